"""A GGUF writer that can write wrong things: it checks nothing, and each part can be replaced."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys

import pytest

CODES = dict(enumerate("BbHhIif?__Qqd"))  # value type id -> code of struct


class Writer:
    U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)

    @staticmethod
    def text(value, length=None):
        """A length and the bytes; `length` may lie."""
        data = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value
        return struct.pack("<Q", len(data) if length is None else length) + data

    @classmethod
    def raw_key(cls, name, type_id, payload):
        return cls.text(name) + struct.pack("<I", type_id) + payload

    @classmethod
    def key(cls, name, type_id, value):
        payload = cls.text(value) if type_id == cls.STR else struct.pack("<" + CODES[type_id], value)
        return cls.raw_key(name, type_id, payload)

    @classmethod
    def array(cls, name, type_id, values, n=None):
        """An array; `n`, the stored number of values, may lie."""
        if type_id == cls.STR:
            payload = b"".join(map(cls.text, values))
        else:
            payload = struct.pack(f"<{len(values)}{CODES[type_id]}", *values)
        return cls.raw_key(
            name, cls.ARR, struct.pack("<IQ", type_id, len(values) if n is None else n) + payload
        )

    @classmethod
    def tensor(cls, name, shape, offset=0, type_id=0, n_dims=None):
        n_dims = len(shape) if n_dims is None else n_dims
        return cls.text(name) + struct.pack(f"<I{len(shape)}QIQ", n_dims, *shape, type_id, offset)

    @staticmethod
    def file(
        keys=(), tensors=(), data=b"", *, magic=b"GGUF", version=3, n_keys=None, n_tensors=None, alignment=32
    ):
        n_keys = len(keys) if n_keys is None else n_keys
        n_tensors = len(tensors) if n_tensors is None else n_tensors
        header = magic + struct.pack("<IQQ", version, n_tensors, n_keys) + b"".join(keys) + b"".join(tensors)
        return header + b"\0" * (-len(header) % alignment) + data

    @classmethod
    def model(cls, keys=(), tensors=(), architecture="llama", **options):
        """A file of F32 tensors, given as (name, shape), that lie one behind the other."""
        table, data = [], b""
        for name, shape in tensors:
            table.append(cls.tensor(name, shape, len(data)))
            n = 4 * math.prod(shape)
            data += bytes(i % 251 for i in range(n)) + b"\0" * (-n % 32)
        return cls.file(
            [cls.key("general.architecture", cls.STR, architecture), *keys], table, data, **options
        )


@pytest.fixture(scope="session")
def gguf_writer():
    return Writer


@pytest.fixture
def write(tmp_path):
    """Write bytes to a file of this test and return its path."""

    def write_bytes(data, name="model.gguf"):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write_bytes


@pytest.fixture(scope="session")
def run_python():
    """Run a script in a new interpreter that finds the package as this one does; returns its output."""

    def run(script, *arguments, flags=(), timeout=60):
        done = subprocess.run(
            [sys.executable, *flags, "-c", script, *map(str, arguments)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, f"exit status {done.returncode}\n{done.stderr}"
        return done.stdout

    return run


@pytest.fixture(scope="session")
def open_all(run_python):
    """Open every file of a directory in a new interpreter; returns what became of each, by file name.

    Each file gets 2 seconds of processor time, and memory may grow by 200 MB: more kills the interpreter, or
    is a MemoryError.
    """
    script = """if True:
        import json, pathlib, re, resource, signal, sys
        from gguf_moe.checkpoint import open_checkpoint
        from gguf_moe.errors import GGUFMoeError
        in_use = int(re.search(r"VmData:\\s*(\\d+) kB", open("/proc/self/status").read())[1]) << 10
        resource.setrlimit(resource.RLIMIT_DATA, (in_use + 200_000_000,) * 2)
        outcomes = {}
        for path in pathlib.Path(sys.argv[1]).iterdir():
            signal.setitimer(signal.ITIMER_PROF, 2)
            try:
                open_checkpoint(path).close()
                outcomes[path.name] = "opened"
            except GGUFMoeError:
                outcomes[path.name] = "refused"
        print(json.dumps(outcomes))
    """

    def run(directory, flags=()):
        return json.loads(run_python(script, directory, flags=flags))

    return run
