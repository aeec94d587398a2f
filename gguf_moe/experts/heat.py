"""Heat in a file: which experts a model used lately, for a warm start. JSON, some 100 kB."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from gguf_moe.errors import GGUFMoeError
from gguf_moe.experts.policies import Heat
from gguf_moe.files import written_whole

FORMAT = "gguf-moe heat 1"
MAX_BYTES = 64 << 20
LARGEST = 1e12
"""No honest number of uses comes near it."""


@dataclass(frozen=True, slots=True)
class HeatOwner:
    """The model whose heat it is."""

    architecture: str
    name: str
    n_layer: int
    n_expert: int


def save_heat(path: str | os.PathLike[str], heat: Heat, owner: HeatOwner) -> None:
    """Write the file, whole or not at all. Raises GGUFMoeError if that fails."""
    content = {
        "format": FORMAT,
        "architecture": owner.architecture,
        "name": owner.name,
        "heat": [[round(value, 4) for value in layer] for layer in heat],
    }
    try:
        with written_whole(path) as file:
            file.write(json.dumps(content).encode())
    except OSError as e:
        raise GGUFMoeError(
            f"{path}: the heat cannot be saved ({e.strerror}); choose another place."
        ) from None


def load_heat(path: str | os.PathLike[str], owner: HeatOwner) -> Heat:
    """Read a file for this model. Raises GGUFMoeError if it is damaged or is another model's."""
    content = _read(Path(path))
    for key, expected in (("architecture", owner.architecture), ("name", owner.name)):
        if content.get(key) != expected:
            raise GGUFMoeError(
                f"{path}: this heat is of a model with {key} {str(content.get(key))[:80]!r}, "
                f"not {expected!r}; use the file that this model saved."
            )
    heat = content.get("heat")
    if not _is_table(heat, owner):
        raise GGUFMoeError(
            f"{path}: the heat must be {owner.n_layer} lists of {owner.n_expert} numbers from 0 to "
            f"{LARGEST:.0e}; save it again."
        )
    return [[float(value) for value in layer] for layer in heat]


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as e:
        raise GGUFMoeError(f"{path}: the heat cannot be read ({e.strerror}).") from None
    try:
        content = json.loads(data) if len(data) <= MAX_BYTES else None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise GGUFMoeError(f"{path}: this is not a file of heat ({FORMAT}); save it again.")
    return content


def _is_table(heat: Any, owner: HeatOwner) -> TypeGuard[Heat]:
    return (
        isinstance(heat, list)
        and len(heat) == owner.n_layer
        and all(isinstance(layer, list) and len(layer) == owner.n_expert for layer in heat)
        and all(_is_heat(value) for layer in heat for value in layer)
    )


def _is_heat(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and 0 <= value <= LARGEST
