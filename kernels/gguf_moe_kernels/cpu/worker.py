"""A process that compiles kernels into a cache directory: python -m gguf_moe_kernels.cpu.worker DIRECTORY.

It reads names from stdin, one a line, and says each again on stdout when the kernel is in the cache. It ends
with stdin, when the cache takes nothing more, or by a traceback if a kernel does not compile.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

from gguf_moe_kernels.cpu.library import KernelLibrary


def main() -> None:
    """Compile what is asked for."""
    # Nearly all objects that Numba makes stay, and looking through them takes a tenth of the time.
    gc.disable()
    library = KernelLibrary(Path(sys.argv[1]))
    for line in sys.stdin:
        library.prepare([line.strip()])
        if not library.keeps:
            return
        sys.stdout.write(line)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
