"""The text as token ids: every epoch in another order, cut into windows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

BOS, EOS = 0, 1
JOINED_SHARE = 0.12  # of texts that follow each other after a blank line, as in the held-out file


class Texts:
    """All texts of a file as one row of uint16 ids."""

    def __init__(self, path: Path, tokenizer: Tokenizer) -> None:
        texts = path.read_text(encoding="utf-8").strip().split("\n\n")
        docs = [np.array(e.ids, np.uint16) for e in tokenizer.encode_batch_fast(texts)]
        self.ids = np.concatenate(docs)
        self.ends = np.cumsum([len(d) for d in docs])
        self.blank = np.array(tokenizer.encode("\n\n").ids, np.uint16)

    def windows(self, n: int, seed: tuple[int, int]) -> torch.Tensor:
        """One epoch as int16 [count, n + 1], in a random order; most texts stand between BOS and EOS."""
        rng = np.random.default_rng(seed)
        bos, eos = np.array([BOS], np.uint16), np.array([EOS], np.uint16)
        order = rng.permutation(len(self.ends))
        n_joined = int(JOINED_SHARE * len(order))
        parts = [part for i in order[n_joined:] for part in (bos, self._text(i), eos)]
        parts += [part for i in order[:n_joined] for part in (self._text(i), self.blank)]
        return shuffled(cut(np.concatenate(parts), n), rng)

    def _text(self, i: int) -> np.ndarray:
        return self.ids[self.ends[i - 1] if i else 0 : self.ends[i]]


def cut(ids: np.ndarray, n: int) -> np.ndarray:
    """[count, n + 1]; a window's last token is the next one's first."""
    count = (len(ids) - 1) // n
    return ids[np.arange(count)[:, None] * n + np.arange(n + 1)].astype(np.int16)


def shuffled(windows: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy(windows[rng.permutation(len(windows))])
