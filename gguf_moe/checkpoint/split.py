"""The parts of a split model, found from any one of them. Format: llama.cpp's gguf-split (LLM_KV_SPLIT_*)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from gguf_moe.checkpoint.foreign import shown
from gguf_moe.checkpoint.part import Part, open_part
from gguf_moe.errors import GGUFError
from gguf_moe.hub.names import PART_NAME


def open_parts(path: Path) -> tuple[Part, ...]:
    """The file at `path`, or, when it is a part of a split model, all parts in order.

    The first part has the metadata; the others have only `split.*` keys. Raises GGUFError for a part that is
    missing or does not belong to the others.
    """
    opened = open_part(path)
    count = opened.metadata.integer("split.count", 0, minimum=0, maximum=65535)
    if count <= 1:  # llama-gguf-split --merge leaves a 0
        return (opened,)
    paths = _part_paths(opened, count)
    parts = tuple(opened if other == path else _open_sibling(other, path, count) for other in paths)
    for number, part in enumerate(parts):
        _check_part(part, number, parts[0], count)
    _check_tensors(parts)
    return parts


def _part_paths(opened: Part, count: int) -> list[Path]:
    number = opened.metadata.integer("split.no", minimum=0, maximum=count - 1)
    suffix = f"-{number + 1:05d}-of-{count:05d}.gguf"
    name = PART_NAME.fullmatch(opened.path.name)
    if name is None or not opened.path.name.endswith(suffix):
        raise GGUFError(
            f"{opened.path}: this is part {number + 1} of {count} of a split model, by its keys split.no and "
            f"split.count, but its name does not end in {suffix}; give all parts the names that they had."
        )
    return [opened.path.with_name(f"{name['stem']}-{i + 1:05d}-of-{count:05d}.gguf") for i in range(count)]


def _open_sibling(path: Path, opened: Path, count: int) -> Part:
    if not os.path.exists(path):
        raise GGUFError(
            f"{path} is missing; {opened.name} is one of {count} parts, which must lie in one directory: "
            "download the missing part."
        )
    return open_part(path)


def _check_part(part: Part, number: int, first: Part, count: int) -> None:
    """Raise unless `part` is the one of this number (from 0) of the same model as `first`."""
    for key, expected in (("split.count", count), ("split.no", number)):
        found = part.metadata.integer(key)
        if found != expected:
            raise GGUFError(
                f"{part.path}: {key} is {found}, but must be {expected} for this name; "
                "the parts are of different models or were renamed: download them again."
            )
    own, architecture = part.metadata.get("general.architecture"), first.metadata.get("general.architecture")
    if own is not None and own != architecture:
        raise GGUFError(
            f"{part.path}: general.architecture is {shown(own)}, but in {first.path.name} it is "
            f"{shown(architecture)}; the parts are of different models: download them again."
        )


def _check_tensors(parts: Sequence[Part]) -> None:
    owners: dict[str, Part] = {}
    for part in parts:
        for place in part.places:
            owner = owners.setdefault(place.name, part)
            if owner is not part:
                raise GGUFError(
                    f"{part.path}: the tensor {shown(place.name)} is also in {owner.path.name}; "
                    "the parts are of different models: download them again."
                )
    for part in parts:
        expected = part.metadata.integer("split.tensors.count", len(owners))
        if expected != len(owners):
            raise GGUFError(
                f"{part.path}: split.tensors.count is {expected}, but the {len(parts)} parts have "
                f"{len(owners)} tensors together; the parts are of different models: download them again."
            )
