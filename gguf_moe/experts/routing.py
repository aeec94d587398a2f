"""Routing traces in files: which experts each step chose. They are recorded, or made to be injected."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gguf_moe.errors import GGUFMoeError, OptionError
from gguf_moe.files import written_whole

FORMAT = "gguf-moe routing 1"
MAX_BYTES = 1 << 30
"""Of the ids when unpacked: 512 layers, 8 experts a token and 100,000 tokens are less than half of it."""


@dataclass(frozen=True, slots=True)
class Routing:
    """A trace: `ids` uint8 or uint16 [n_steps, n_layer, n_expert_used], a step being one token.

    Layers without experts hold zeros. `about` is free text by key (model, how it was made).
    """

    ids: np.ndarray
    n_expert: int
    about: dict[str, str] = field(default_factory=dict)

    @property
    def n_steps(self) -> int:
        return int(self.ids.shape[0])

    def check(self, name: str, n_layer: int, n_expert: int, n_expert_used: int) -> None:
        """Raise OptionError if the trace, called `name`, is not one for a model of these sizes."""
        found = (*self.ids.shape[1:], self.n_expert)
        if found != (n_layer, n_expert_used, n_expert):
            raise OptionError(
                f"{name}: the trace has {found[0]} layers, {found[1]} of {found[2]} experts used, but the "
                f"model has {n_layer} layers, {n_expert_used} of {n_expert}; use a trace for this model."
            )


class Replay:
    """Gives a trace out, step by step; it begins again when it is over."""

    def __init__(self, routing: Routing):
        self._ids = routing.ids.reshape(routing.n_steps, -1).astype(np.int32)
        self._next = 0

    def take(self, n_steps: int) -> np.ndarray:
        """The choices of the next n_steps steps: int32 [n_steps, n_layer * n_expert_used]."""
        steps = (self._next + np.arange(n_steps)) % len(self._ids)
        self._next = (self._next + n_steps) % len(self._ids)
        return self._ids[steps]


class Recorder:
    """Collects what the routers of a model choose; `layers` are those that have experts."""

    def __init__(self, n_layer: int, layers: Sequence[int], n_expert: int, n_expert_used: int):
        self._layers = list(layers)
        self._n_expert = n_expert
        self._shape = (n_layer, n_expert_used)
        self._steps: list[np.ndarray] = []

    def add(self, chosen: Sequence[np.ndarray]) -> None:
        """What some tokens chose: for each of `layers` ids [n_tokens, n_expert_used]."""
        ids = np.zeros((len(chosen[0]), *self._shape), np.uint16)
        ids[:, self._layers] = np.stack(chosen, axis=1)
        self._steps.append(ids)

    def routing(self, about: dict[str, str]) -> Routing:
        """All that was recorded; `about` goes into the file. Raises OptionError if that is nothing."""
        if not self._steps:
            raise OptionError("no routing was recorded, as the model has not computed a token.")
        return Routing(np.concatenate(self._steps), self._n_expert, about)


def save_routing(path: str | os.PathLike[str], routing: Routing) -> None:
    """Write the trace as a compressed npz file. Raises GGUFMoeError if that fails."""
    about = json.dumps({"format": FORMAT, "n_expert": routing.n_expert, "about": routing.about})
    dtype = np.uint8 if routing.n_expert <= 256 else np.uint16
    try:
        with written_whole(path) as file:
            np.savez_compressed(file, ids=routing.ids.astype(dtype), metadata=np.array(about))
    except OSError as e:
        raise GGUFMoeError(
            f"{path}: the routing cannot be saved ({e.strerror}); choose another place."
        ) from None


def load_routing(path: str | os.PathLike[str]) -> Routing:
    """Read and check a trace. Raises GGUFMoeError if it is none, is damaged or contradicts itself."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            _check_members(path, file)
            with np.load(file, allow_pickle=False) as arrays:
                ids, metadata = arrays["ids"], arrays["metadata"]
        header: Any = json.loads(str(metadata[()]))
    except OSError as e:
        raise GGUFMoeError(f"{path}: the routing cannot be read ({e.strerror or e}).") from None
    except (ValueError, KeyError, EOFError, RecursionError, MemoryError, zipfile.BadZipFile, zlib.error) as e:
        raise GGUFMoeError(f"{path}: this is not a routing trace, or it is damaged ({e}).") from None
    _check_content(path, ids, header)
    about = header.get("about")
    texts = {str(k): str(v) for k, v in about.items()} if isinstance(about, dict) else {}
    return Routing(ids, header["n_expert"], texts)


def _check_members(path: Path, file: Any) -> None:
    """The archive holds the two arrays and nothing else, and they are not too large when unpacked."""
    with zipfile.ZipFile(file) as archive:
        sizes = {member.filename: member.file_size for member in archive.infolist()}
    file.seek(0)
    if sorted(sizes) != ["ids.npy", "metadata.npy"]:
        raise ValueError("it must hold the arrays ids and metadata")
    if sum(sizes.values()) > MAX_BYTES:
        raise GGUFMoeError(f"{path}: the trace has more than {MAX_BYTES >> 20} MiB; use a shorter one.")


def _check_content(path: Path, ids: np.ndarray, header: Any) -> None:
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise GGUFMoeError(f"{path}: this is not a routing trace of the form {FORMAT!r}.")
    n_expert = header.get("n_expert")
    if type(n_expert) is not int or not 1 <= n_expert <= 1 << 16:
        raise GGUFMoeError(f"{path}: n_expert is {str(n_expert)[:40]}, but must be from 1 to 65536.")
    if ids.dtype not in (np.uint8, np.uint16) or ids.ndim != 3 or not ids.size:
        raise GGUFMoeError(
            f"{path}: ids are {ids.dtype} {list(ids.shape)}, but must be uint8 or uint16 "
            "[n_steps, n_layer, n_expert_used]."
        )
    if int(ids.max()) >= n_expert:
        raise GGUFMoeError(f"{path}: the trace uses expert {int(ids.max())} of {n_expert}.")
