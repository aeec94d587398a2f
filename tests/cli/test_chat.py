"""gguf-moe chat, in a pipe and in a terminal."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

import command_line
import pytest
from command_line import FIXTURE, ROOT, TIMEOUT

ARGUMENTS = ("chat", "-m", str(FIXTURE), "--temp", "0", "-t", "2")


@pytest.fixture(scope="module")
def environment(kernel_cache):
    return command_line.environment(kernel_cache) | {"TERM": "xterm"}


@pytest.fixture
def piped(environment):
    def run(*lines, arguments=("-n", "8")):
        command = [sys.executable, "-m", "gguf_moe", *ARGUMENTS, *arguments]
        text = "\n".join(lines).encode()
        return subprocess.run(command, input=text, capture_output=True, timeout=TIMEOUT, env=environment)

    return run


class Terminal:
    """A chat in a terminal of its own."""

    def __init__(self, environment, *arguments):
        self.shown = b""
        self.pid, self._file = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.execve(sys.executable, [sys.executable, "-m", "gguf_moe", *ARGUMENTS, *arguments], environment)

    def wait_for(self, text, start=0, keys=""):
        """Read, and type keys, until the text is shown after `start`; the place where it ends."""
        end = time.monotonic() + TIMEOUT
        while (at := self.shown.find(text.encode(), start)) < 0:
            assert time.monotonic() < end, self.shown
            self.type(keys)
            if select.select([self._file], [], [], 0.5)[0]:
                self.shown += os.read(self._file, 4096)
        return at + len(text)

    def type(self, text):
        os.write(self._file, text.encode())

    def status(self):
        """The exit code, once the program has ended."""
        try:
            while os.read(self._file, 4096):
                pass
        except OSError:
            pass
        os.close(self._file)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_lines_of_a_pipe_are_answered_in_plain_text(piped):
    done = piped("Hi", "", "And then?")
    assert done.returncode == 0
    assert done.stdout.count(b"\n") >= 2
    assert b"\x1b" not in done.stdout + done.stderr
    assert b">" not in done.stderr


def test_a_conversation_is_kept_and_goes_on(piped, tmp_path):
    file = tmp_path / "chat.json"
    done = piped(
        "Hi",
        f"/save {file}",
        "More",
        "/stats",
        "/exit",
        "not read",
        arguments=("-n", "8", "-sys", "Be brief."),
    )
    assert done.returncode == 0
    assert "tokens reused" in done.stderr.decode()
    messages = json.loads(file.read_text())["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    again = piped(f"/load {file}", "More", f"/save {file}")
    assert again.returncode == 0
    longer = json.loads(file.read_text())["messages"]
    assert longer[:3] == messages
    assert [message["role"] for message in longer[3:]] == ["user", "assistant"]


def test_several_lines_are_one_message(piped, tmp_path):
    file = tmp_path / "chat.json"
    piped('"""first', "second", 'third"""', "a\\", "b", f"/save {file}")
    users = [m["content"] for m in json.loads(file.read_text())["messages"] if m["role"] == "user"]
    assert users == ["first\nsecond\nthird", "a\nb"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["/fly"], "/fly is not a command"),
        (["/load"], "/load needs the name"),
        (["/load nothing.json"], "nothing.json"),
        ([f"/load {ROOT / 'LICENSE'}"], "is no conversation"),
        (["/save /no/such/place"], "/no/such/place cannot be written (No such file or directory)"),
        (["/again"], "no message to answer"),
        (["x " * 2000], "the context holds 512"),
    ],
)
def test_errors_are_one_sentence(piped, lines, message):
    done = piped(*lines)
    assert done.returncode == 1
    assert done.stdout == b""
    assert done.stderr.startswith(b"Error: ")
    assert done.stderr.count(b"\n") == 1
    assert message in done.stderr.decode()


def test_options_that_are_wrong_are_named(piped):
    done = piped("Hi", arguments=("--chat-template-kwargs", "[1]"))
    assert done.returncode == 1
    assert b"must be a JSON object" in done.stderr


def test_ctrl_c_stops_the_answer_and_not_the_program(environment):
    terminal = Terminal(environment)
    at = terminal.wait_for("\n> ")
    terminal.type("Hi\n")
    at = terminal.wait_for("Hi\r\n", at)
    terminal.wait_for(" ", at + 20)  # the answer has begun
    terminal.type("\x03")
    at = terminal.wait_for("[stopped]", at)
    at = terminal.wait_for("\n> ", at)
    at = terminal.wait_for("/exit ends the chat]", at, keys="\x03")
    terminal.type("/fly\n")
    at = terminal.wait_for("Error: /fly is not a command", at)
    terminal.type("/stats\n")
    at = terminal.wait_for("last answer:", at)
    at = terminal.wait_for("\n> ", at)
    terminal.type("\x04")
    assert terminal.status() == 0
    assert b"Traceback" not in terminal.shown


def test_without_a_template_the_demo_model_goes_on_with_the_text(environment):
    options = ("--temp", "0", "-n", "12", "-t", "2")
    command = [sys.executable, "-m", "gguf_moe", "chat", *options]
    text = b"Once upon a time, there was a little fox\nThe next day\n"
    chat = subprocess.run(command, input=text, capture_output=True, timeout=TIMEOUT, env=environment)
    assert chat.returncode == 0
    assert chat.stderr.count(b"has no chat template") == 1
    command = [sys.executable, "-m", "gguf_moe", "generate", *options, text.splitlines()[0]]
    alone = subprocess.run(command, capture_output=True, timeout=TIMEOUT, env=environment)
    first, second = chat.stdout.splitlines()
    assert first == alone.stdout.rstrip(b"\n")
    assert second
