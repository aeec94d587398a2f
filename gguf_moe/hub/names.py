"""Names: hf:REPO[:QUANT], hf:REPO/FILE.gguf, parts of split files; which file of a repository is meant."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gguf_moe.errors import OptionError

PART_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
"""The name of a part as llama-gguf-split writes it; `number` counts from 1."""

PREFIX = "hf:"
USUAL_QUANTS = ("Q4_K_M", "Q4_K_XL", "Q4_K_S", "MXFP4", "Q4_0", "Q8_0")
"""The first of these that is there is taken if none is asked for; llama.cpp's -hf begins with Q4_K_M too."""

_WORD = r"\w(?:[\w.-]{0,94}\w)?"
_NAME = re.compile(rf"hf:(?P<repo>{_WORD}/{_WORD})(?:/(?P<file>.+\.gguf)|:(?P<quant>[\w.-]+))?", re.ASCII)
_NO_REPO = re.compile(r"--|\.\.|\.git$")
"""What the hub has in no repository's name."""
_QUANT = re.compile(
    r"(?<![a-z0-9])(?:ud-)?(?:i?q[1-8](?:_[a-z0-9]+)*|tq[12]_0|bf16|f16|f32|mxfp4(?:_moe)?|nvfp4)(?![a-z0-9])",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class HubName:
    """A model on the hub: a repository, and a file's path in it, or a quantization, or neither."""

    repo: str
    quant: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        return f"{PREFIX}{self.repo}" + (
            f":{self.quant}" if self.quant else f"/{self.file}" if self.file else ""
        )


def is_hub_name(path: str | os.PathLike[str]) -> bool:
    """Whether this is a model's name on the hub, and no path."""
    return os.fspath(path).startswith(PREFIX)


def parse_name(text: str) -> HubName:
    """The parts of a name. Raises OptionError."""
    found = _NAME.fullmatch(text)
    if not found or _NO_REPO.search(found["repo"]):
        raise OptionError(
            f"{text!r} must be hf:OWNER/NAME, hf:OWNER/NAME:QUANT or hf:OWNER/NAME/FILE.gguf; "
            "a file whose name begins so is given as ./hf:..."
        )
    return HubName(found["repo"], found["quant"], found["file"])


def choose(paths: Iterable[str], name: HubName) -> list[str]:
    """The file among a repository's `paths` that is meant, or all its parts in order; empty if there is none.

    A split model with a part missing does not count.
    """
    models = _models(paths)
    if name.file:
        return next((parts for parts in models.values() if name.file in parts), [])
    weights = {stem: parts for stem, parts in models.items() if _has_weights(stem)}
    for quant in [name.quant] if name.quant else USUAL_QUANTS:
        if fitting := _of_quant(weights, quant):
            return fitting
    return [] if name.quant else next(iter(weights.values()), [])


def quants_of(paths: Iterable[str]) -> list[str]:
    """The quantizations that a repository has whole models of, for a message."""
    found = {quant_of(stem) or parts[0] for stem, parts in _models(paths).items() if _has_weights(stem)}
    return sorted(found)


def quant_of(path: str) -> str | None:
    """The quantization that a file's name tells, as Q4_K_M or UD-Q4_K_XL."""
    found = _QUANT.findall(path)
    return found[-1].upper() if found else None


def _models(paths: Iterable[str]) -> dict[str, list[str]]:
    """Whole models by their path without .gguf and part number; the parts of each in order."""
    parts: dict[tuple[str, int], list[str]] = {}
    for path in sorted(paths):
        if part := PART_NAME.fullmatch(path):
            parts.setdefault((part["stem"], int(part["count"])), []).append(path)
        elif path.endswith(".gguf"):
            parts.setdefault((path.removesuffix(".gguf"), 1), []).append(path)
    return {stem: found for (stem, count), found in parts.items() if len(found) == count}


def _has_weights(stem: str) -> bool:
    """Not so for the parts that see or hear (mmproj), and for importance matrices."""
    return "mmproj" not in stem.lower() and not ("imatrix" in stem.lower() and quant_of(stem) is None)


def _of_quant(models: Mapping[str, list[str]], quant: str) -> list[str]:
    """The model whose name has this quantization; of several the one that has nothing before it, as UD-."""
    named = re.compile(rf"(?:^|[-._/]){re.escape(quant)}(?=$|[-./])", re.IGNORECASE)
    fitting = [stem for stem in models if named.search(stem)]
    fitting.sort(key=lambda stem: (quant_of(stem) != quant.upper(), stem))
    return models[fitting[0]] if fitting else []


def size(n: float) -> str:
    """Bytes as a person reads them."""
    return f"{n / 1e9:.2f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"
