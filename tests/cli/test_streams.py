"""The command line's streams, terminal and Ctrl-C: how it ends, and what is on stderr then."""

import json
import os
import pty
import select
import shlex
import signal
import subprocess
import sys
import time

import pytest
from command_line import FIXTURE, PROMPT, ROOT, TIMEOUT, environment, generate


@pytest.mark.parametrize(
    ("redirection", "code", "message"),
    [
        (">/dev/full", 1, "Error: the output cannot be read or written (No space left on device).\n"),
        ("| true; exit ${PIPESTATUS[0]}", 1, ""),
        (">&-", 0, "prompt "),
        ("2>&-", 0, ""),
        ("2>/dev/full", 1, ""),
    ],
)
def test_a_stream_that_takes_nothing_ends_without_a_traceback(kernel_cache, redirection, code, message):
    words = map(str, (sys.executable, "-m", "gguf_moe", *generate(PROMPT)))
    done = subprocess.run(
        ["bash", "-c", f"{shlex.join(words)} {redirection}"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=TIMEOUT,
        env=environment(kernel_cache),
    )
    assert done.returncode == code
    error = done.stderr.decode()
    assert "Traceback" not in error
    assert message in error


def test_a_closed_stdin_is_empty(kernel_cache):
    done = subprocess.run(
        ["bash", "-c", shlex.join([sys.executable, "-m", "gguf_moe", "chat", "-m", str(FIXTURE)]) + " <&-"],
        capture_output=True,
        timeout=TIMEOUT,
        env=environment(kernel_cache),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_what_the_locale_cannot_write_is_a_question_mark(command, kernel_cache):
    ids = json.loads(command("tokenize", "-m", FIXTURE, "café 日本", "--json").stdout)["token_ids"]
    done = subprocess.run(
        [sys.executable, "-m", "gguf_moe", "detokenize", "-m", FIXTURE, *map(str, ids)],
        capture_output=True,
        timeout=TIMEOUT,
        env=environment(kernel_cache) | {"PYTHONIOENCODING": "latin-1"},
    )
    assert (done.returncode, done.stdout) == (0, b"caf\xe9 ??\n")


def test_bytes_that_are_not_utf8_are_named(command):
    done = command(*generate("-"), stdin=b"caf\xe9")
    assert done.returncode == 1
    assert b"stdin is not UTF-8 (byte 3)" in done.stderr


def test_a_reader_that_leaves_early_is_no_error_message(kernel_cache):
    line = f"'{sys.executable}' -m gguf_moe inspect '{FIXTURE}' | head -n 1"
    done = subprocess.run(
        line, shell=True, capture_output=True, timeout=TIMEOUT, env=environment(kernel_cache)
    )
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr


def test_ctrl_c_ends_a_measurement_with_130(kernel_cache):
    arguments = ("bench", "-m", str(FIXTURE), "-p", "8", "-n", "0", "-r", "1000000")
    process = subprocess.Popen(
        [sys.executable, "-m", "gguf_moe", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(kernel_cache) | {"PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores it
    )
    assert process.stdout.readline().startswith(b"model")
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    rest, error = process.communicate(timeout=20)
    assert process.returncode == 130
    assert rest == error.strip() == b""


def test_ctrl_c_while_modules_are_imported_ends_with_130():
    program = """
import sys
from gguf_moe.__main__ import main

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupt())
main()
"""
    paths = os.pathsep.join((str(ROOT), str(ROOT / "kernels")))
    environ = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=TIMEOUT, env=environ)
    assert done.returncode == 130
    assert done.stderr == b""


def test_ctrl_c_ends_soon_with_130(kernel_cache, tmp_path):
    text = tmp_path / "long.txt"
    text.write_text((ROOT / "LICENSE").read_text() * 2000)
    process = subprocess.Popen(
        [sys.executable, "-m", "gguf_moe", "perplexity", "-m", str(FIXTURE), "-f", str(text)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(kernel_cache),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job ignores it
    )
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"Traceback" not in error


def test_a_terminal_sees_progress_that_is_wiped_again(kernel_cache, few_kernels_file, tmp_path):
    leader, follower = pty.openpty()
    environ = environment(kernel_cache) | {"GGUF_MOE_CACHE_DIR": str(tmp_path / "cold")}
    process = subprocess.Popen(
        [sys.executable, "-m", "gguf_moe", "warmup", "-m", str(few_kernels_file)],
        stdout=subprocess.DEVNULL,
        stderr=follower,
        env=environ,
    )
    os.close(follower)
    shown = b""
    while select.select([leader], [], [], TIMEOUT)[0]:
        try:
            shown += os.read(leader, 4096)
        except OSError:
            break
    os.close(leader)
    assert process.wait(TIMEOUT) == 0
    assert b"compiling kernels (once) 0/" in shown
    assert shown.rstrip().split(b"\r\x1b[K")[-1].startswith(b"compiled ")
