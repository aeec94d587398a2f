"""Make docs/chat.png: a chat in a terminal of 80 columns.

    pip install pyte pillow && python scripts/chat_picture.py -m SmolLM2-135M-upcycled-8x-Q4_1.gguf

The chat runs in a pseudo-terminal; pyte, an emulator of a terminal, tells what is on its screen.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pyte
from PIL import Image, ImageDraw, ImageFont

PICTURE = Path(__file__).parents[1] / "docs" / "chat.png"
FONT = "/usr/share/fonts/truetype/dejavu/DejaVuSansMono.ttf"
FONT_SIZE, LINE_HEIGHT, MARGIN = 22, 30, 24
PAPER, INK = "#16181b", "#e8e8e6"
COLUMNS, ROWS = 80, 26
QUESTIONS = ("Why do leaves fall in autumn?", "Say that in one short sentence.", "/stats")
LIMIT_S = 180


def main() -> None:
    """Have the chat, then draw its screen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", type=Path, required=True, help="a model that chats")
    parser.add_argument("--font", default=FONT, help="a font whose letters have one width")
    options = parser.parse_args()
    draw(chat(options.model), options.font).save(PICTURE, optimize=True)


def chat(model: Path) -> list[str]:
    """The lines of a terminal after `gguf-moe chat` was asked the questions."""
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    command = (sys.executable, "-m", "gguf_moe", "chat", "-m", str(model), "--temp", "0", "-n", "90")
    stream.feed(f"$ gguf-moe chat -m {model.name} --temp 0 -n 90\r\n".encode())
    environment = os.environ | {"TERM": "xterm"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        questions, deadline = [*QUESTIONS, None], time.monotonic() + LIMIT_S
        while questions and time.monotonic() < deadline:
            if select.select([ours], [], [], 0.5)[0]:
                stream.feed(os.read(ours, 1 << 16))
            elif screen.display[screen.cursor.y].rstrip() == ">" and (question := questions.pop(0)):
                os.write(ours, question.encode() + b"\n")
        process.kill()
    os.close(ours)
    return "\n".join(line.rstrip() for line in screen.display).rstrip().splitlines()


def draw(lines: list[str], font_path: str) -> Image.Image:
    """A picture of lines in a dark terminal."""
    font = ImageFont.truetype(font_path, FONT_SIZE)
    size = (round(font.getlength("m") * COLUMNS) + 2 * MARGIN, LINE_HEIGHT * len(lines) + 2 * MARGIN)
    picture = Image.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(picture)
    for i, line in enumerate(lines):
        pen.text((MARGIN, MARGIN + i * LINE_HEIGHT), line, INK, font)
    return picture.quantize(32)


if __name__ == "__main__":
    main()
