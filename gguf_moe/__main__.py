"""The `gguf-moe` command, and `python -m gguf_moe`."""

import sys

INTERRUPTED = 130


def main() -> None:
    """Run the command line. Ctrl-C ends it quietly, also while its modules are still being imported."""
    try:
        from gguf_moe.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
