"""The peak of a GPU's memory while something else runs, as nvidia-smi sees it."""

from __future__ import annotations

import subprocess
import threading
from types import TracebackType

COMMAND = ("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-i")


class PeakMemory:
    """A context manager; afterwards `peak` has the bytes beyond those that were used before it."""

    def __init__(self, gpu: int = 0):
        self._gpu = gpu
        self.peak = 0

    def __enter__(self) -> PeakMemory:
        before = int(subprocess.run([*COMMAND, str(self._gpu)], capture_output=True, check=True).stdout)
        self._process = subprocess.Popen(
            [*COMMAND, str(self._gpu), "-lms", "50"], stdout=subprocess.PIPE, text=True
        )
        self._thread = threading.Thread(target=self._watch, args=(before,))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait()
        self._thread.join()

    def _watch(self, before: int) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.strip().isdigit():
                self.peak = max(self.peak, (int(line) - before) << 20)
