"""Where a model of the hub lies: in huggingface_hub's cache, which other programs use too. No network."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

from gguf_moe.errors import HubError, OptionError
from gguf_moe.hub.names import HubName, choose, is_hub_name, parse_name, quants_of


def located(path: str | os.PathLike[str]) -> Path:
    """A path as it is; for a name as hf:REPO:QUANT the file in the cache, of a split model the first part.

    Raises HubError if it is not there, OptionError for a name that is none.
    """
    if not os.fspath(path):
        raise OptionError("the name of the model's file is empty; give the path of a GGUF file.")
    return cached(parse_name(os.fspath(path))) if is_hub_name(path) else Path(path)


def cached(name: HubName, cache_dir: Path | None = None) -> Path:
    """The file in the cache, of a split model the first part. Raises HubError if it is not there.

    cache_dir None is where huggingface_hub has its cache.
    """
    cache_dir = cache_dir or default_cache_dir()
    there: list[str] = []
    for snapshot in _snapshots(repo_dir(cache_dir, name.repo)):
        # A link whose file is gone is no file.
        paths = [str(path.relative_to(snapshot)) for path in snapshot.rglob("*.gguf") if path.is_file()]
        if chosen := choose(paths, name):
            return snapshot / chosen[0]
        there += quants_of(paths)
    others = f", only {', '.join(dict.fromkeys(there))}" if there else ""
    raise HubError(f"{name} is not in {cache_dir}{others}; download it with: gguf-moe pull {name}")


def default_cache_dir() -> Path:
    """Where huggingface_hub has its cache."""
    return Path(hub_module("constants").HF_HUB_CACHE)


def repo_dir(cache_dir: Path, repo: str) -> Path:
    """A model repository's directory in a cache, as huggingface_hub names it."""
    return cache_dir / f"models--{repo.replace('/', '--')}"


def hub_module(name: str) -> Any:
    """A module of huggingface_hub. Raises OptionError if it is not installed."""
    try:
        return import_module(f"huggingface_hub.{name}")
    except ModuleNotFoundError as e:
        raise OptionError(
            f"hf: names need the package {e.name}; install it with: pip install 'gguf-moe[hub]'"
        ) from None


def _snapshots(repo: Path) -> list[Path]:
    """The states of a repository that were downloaded: that of the branch main, then the newest."""
    try:
        main = (repo / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        main = ""
    try:
        found = [path for path in (repo / "snapshots").iterdir() if path.is_dir()]
    except OSError:
        return []
    return sorted(found, key=lambda path: (path.name != main, -path.stat().st_mtime))
