"""What tests share: compiled kernels, a caller for them, comparison by bits, and tiny models."""

import contextlib
import ctypes
import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import bits
import gguf
import numpy as np
import pytest
from command_line import TIMEOUT, environment
from run_folder import run_folder
from tiny_vocabularies import add_spm
from weight_rows import set_scales

from gguf_moe.arch.model import read_model
from gguf_moe.checkpoint import open_checkpoint
from gguf_moe.graph.task import Kind
from gguf_moe.runtime.context import Context
from gguf_moe.runtime.crew import kernels_of
from gguf_moe.runtime.inline import InlineContext
from gguf_moe_kernels.activations import ACTIVATION_FORMAT
from gguf_moe_kernels.cpu.library import KernelLibrary
from gguf_moe_kernels.quants import GGMLType

ROOT = Path(__file__).parent.parent
LETTERS = ("▁", *"etaoinshrdlucmfwygpbvk")
PAIRS = ("▁t", "he", "in", "er", "an", "re", "on", "at", "en", "nd", "ti", "es", "or", "te", "of")
PIECES = (*LETTERS, *PAIRS, "▁the", "▁a", "ing")
"""Of the vocabulary of tiny models, behind its specials and the 256 bytes."""
N_VOCAB = 300


gc.set_threshold(100_000, 50, 100)  # compiling kernels makes many objects that stay


@pytest.fixture
def rng():
    return np.random.default_rng(1)


@pytest.fixture(scope="session")
def kernel_cache(tmp_path_factory):
    """A directory for compiled kernels that all tests of a run share, also those of another process of it."""
    return run_folder(tmp_path_factory, "kernels")


@pytest.fixture(scope="session")
def library(kernel_cache):
    library = KernelLibrary(kernel_cache)
    yield library
    library.close()


@pytest.fixture(scope="session")
def crew_context(library):
    """crew_context(path, n_threads, ...): a context manager; the context is closed at its end."""

    @contextlib.contextmanager
    def make(path, n_threads, n_batch=8, n_ctx=32, kv_kind=Kind.F16, **options):
        context = Context(
            *read_model(open_checkpoint(path)), n_ctx=n_ctx, n_batch=n_batch, kv_kind=kv_kind, **options
        )
        rows = context.rows(n_threads)
        library.prepare(kernels_of(rows))
        context.start(rows, library, n_threads)
        with contextlib.closing(context):
            yield context

    return make


@pytest.fixture(scope="session")
def inline_context():
    def make(path, n_batch=8, n_ctx=32, kv_kind=Kind.F16, **options):
        return InlineContext(
            *read_model(open_checkpoint(path)), n_ctx=n_ctx, n_batch=n_batch, kv_kind=kv_kind, **options
        )

    return make


@pytest.fixture(scope="session")
def call_kernel(library):
    """call_kernel("q4_k.tile", *arguments): arrays are passed as their addresses."""

    def call(name, *arguments):
        numbers = [a.__array_interface__["data"][0] if isinstance(a, np.ndarray) else a for a in arguments]
        function = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * len(numbers))(library.address(name))
        return function(*numbers)

    return call


@pytest.fixture(scope="session")
def call_op(call_kernel):
    """call_op(name, struct, arguments): all chunks of an op; `rows` and `n_past` are given as numbers."""

    def call(name, struct, **arguments):
        packed, kept = np.zeros((), struct), []
        for field in struct.names:
            value = arguments.pop(field)
            if field in ("rows", "n_past"):
                value = np.array([value], np.int64)
            kept.append(value)
            packed[field] = value.__array_interface__["data"][0] if isinstance(value, np.ndarray) else value
        assert not arguments, f"{name} has no {list(arguments)}"
        chunk = 0
        while call_kernel(name, packed, chunk, 0):
            chunk += 1
        return chunk

    return call


@pytest.fixture(scope="session")
def assert_same_bits():
    return bits.assert_same_bits


@pytest.fixture(scope="session")
def random_rows():
    """random_rows(rng, qtype, n_rows, n): random weights, near deviation 1, as u8 [n_rows, row_size]."""
    return _random_rows


def _random_rows(rng, qtype, n_rows, n):
    weights = rng.standard_normal((n_rows, n), np.float32)
    try:
        rows = gguf.quants.quantize(weights, gguf.GGMLQuantizationType(qtype))
    except NotImplementedError:
        # gguf cannot quantize to it: random bytes, and scales that are finite and small.
        rows = rng.integers(0, 256, (n_rows, qtype.row_size(n)), np.uint8)
        blocks = rows.reshape(n_rows, -1, qtype.type_size)
        set_scales(blocks, qtype, lambda shape: rng.uniform(1e-4, 1e-3, shape))
    return np.ascontiguousarray(rows).view(np.uint8).reshape(n_rows, -1)


@pytest.fixture(scope="session")
def run_python():
    """Run a script in a new interpreter that finds the packages; returns its output."""

    def run(script, *arguments, timeout=60, **environment):
        done = subprocess.run(
            [sys.executable, "-c", script, *map(str, arguments)],
            env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"} | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


@pytest.fixture(scope="session")
def command(kernel_cache):
    """Run `gguf-moe` with these arguments; the finished process."""

    def run(*arguments, stdin=b"", **options):
        return subprocess.run(
            [sys.executable, "-m", "gguf_moe", *map(str, arguments)],
            input=stdin,
            capture_output=True,
            timeout=TIMEOUT,
            env=environment(kernel_cache),
            **options,
        )

    return run


@pytest.fixture
def hears_ctrl_c():
    """SIGINT raises KeyboardInterrupt, as in the foreground; a shell's background jobs ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def tiny_gguf():
    """tiny_gguf(path, ...): write a model of the llama architecture with random weights; returns the path.

    n_expert 0 makes it dense. `qtypes` are dealt to the matrices in turn; each must fit rows of 256.
    """
    return _tiny_gguf


@pytest.fixture(scope="session")
def few_kernels_file(tmp_path_factory):
    """A model for what must compile anew: it needs few kernels."""
    path = tmp_path_factory.mktemp("models") / "few-kernels.gguf"
    return _tiny_gguf(path, n_layer=1, n_expert=0, qtypes=(GGMLType.F32,))


def _tiny_gguf(
    path,
    *,
    n_layer=2,
    n_embd=256,
    n_ff=256,
    n_head=4,
    n_head_kv=2,
    n_expert=4,
    n_expert_used=2,
    n_ctx=128,
    qtypes=tuple(ACTIVATION_FORMAT),
    seed=0,
    keys=None,
):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(n_ctx)
    writer.add_block_count(n_layer)
    writer.add_embedding_length(n_embd)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(n_head)
    writer.add_head_count_kv(n_head_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    if n_expert:
        writer.add_expert_count(n_expert)
        writer.add_expert_used_count(n_expert_used)
    for key, (value, value_type) in (keys or {}).items():
        writer.add_key_value(key, value, value_type)
    assert add_spm(writer, PIECES) == N_VOCAB
    n_embd_gqa = n_embd // n_head * n_head_kv
    rng, dealt = np.random.default_rng(seed), 0

    def add(name, *shape, qtype=None):
        """A tensor; the shape is outermost first."""
        nonlocal dealt
        if len(shape) == 1:
            writer.add_tensor(f"{name}.weight", rng.uniform(0.5, 1.5, shape).astype(np.float32))
            return
        if qtype is None:
            qtype = GGMLType(qtypes[dealt % len(qtypes)])
            dealt += 1
        rows = _random_rows(rng, qtype, int(np.prod(shape[:-1])), shape[-1])
        data = rows.reshape(*shape[:-1], -1)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=gguf.GGMLQuantizationType(qtype))

    add("token_embd", N_VOCAB, n_embd)
    add("output_norm", n_embd)
    add("output", N_VOCAB, n_embd, qtype=GGMLType(qtypes[-1]))
    for il in range(n_layer):
        add(f"blk.{il}.attn_norm", n_embd)
        add(f"blk.{il}.attn_q", n_embd, n_embd)
        add(f"blk.{il}.attn_k", n_embd_gqa, n_embd)
        add(f"blk.{il}.attn_v", n_embd_gqa, n_embd)
        add(f"blk.{il}.attn_output", n_embd, n_embd)
        add(f"blk.{il}.ffn_norm", n_embd)
        exps, experts = ("_exps", (n_expert,)) if n_expert else ("", ())
        if n_expert:
            add(f"blk.{il}.ffn_gate_inp", n_expert, n_embd, qtype=GGMLType.F32)
        add(f"blk.{il}.ffn_gate{exps}", *experts, n_ff, n_embd)
        add(f"blk.{il}.ffn_up{exps}", *experts, n_ff, n_embd)
        add(f"blk.{il}.ffn_down{exps}", *experts, n_embd, n_ff)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
