"""Imports point downward only: skins, then generate, runtime, graph, arch, checkpoint, kernels."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"gguf_moe": ROOT / "gguf_moe", "gguf_moe_kernels": ROOT / "kernels" / "gguf_moe_kernels"}

# All of gguf_moe may import these.
LEAVES = {"gguf_moe.errors", "gguf_moe.files"}
# Room -> the rooms it may import from.
ALLOWED = {
    "gguf_moe_kernels": set(),
    "gguf_moe.errors": set(),
    "gguf_moe.files": set(),
    "gguf_moe.hub": set(),
    "gguf_moe.checkpoint": {"gguf_moe.hub", "gguf_moe_kernels"},
    "gguf_moe.text": {"gguf_moe.checkpoint"},
    "gguf_moe.arch": {"gguf_moe.checkpoint", "gguf_moe_kernels"},
    "gguf_moe.graph": {"gguf_moe.arch", "gguf_moe.checkpoint", "gguf_moe_kernels"},
    "gguf_moe.experts": set(),
    "gguf_moe.runtime": {
        "gguf_moe.arch",
        "gguf_moe.checkpoint",
        "gguf_moe.experts",
        "gguf_moe.graph",
        "gguf_moe_kernels",
    },
    "gguf_moe.options": set(),
    "gguf_moe.sample": set(),
    "gguf_moe.constrain": {"gguf_moe.text"},
    "gguf_moe.generate": {"gguf_moe.constrain", "gguf_moe.runtime", "gguf_moe.sample", "gguf_moe.text"},
    "gguf_moe.prompts": {"gguf_moe.constrain", "gguf_moe.text"},
    "gguf_moe.continuations": {
        "gguf_moe.constrain",
        "gguf_moe.generate",
        "gguf_moe.prompts",
        "gguf_moe.sample",
        "gguf_moe.text",
    },
    "gguf_moe.scheduler": {"gguf_moe.generate", "gguf_moe.runtime"},
    "gguf_moe.completions": {"gguf_moe.generate", "gguf_moe.text"},
    "gguf_moe.chat": {"gguf_moe.generate", "gguf_moe.prompts", "gguf_moe.text"},
    "gguf_moe.async_model": {"gguf_moe.generate"},
    "gguf_moe.session": {"gguf_moe.checkpoint", "gguf_moe.runtime"},
    "gguf_moe.stats": {"gguf_moe.generate"},
    "gguf_moe.bench": {
        "gguf_moe.arch",
        "gguf_moe.checkpoint",
        "gguf_moe.experts",
        "gguf_moe.options",
        "gguf_moe.runtime",
        "gguf_moe_kernels",
    },
    "gguf_moe.plan": {
        "gguf_moe.arch",
        "gguf_moe.checkpoint",
        "gguf_moe.experts",
        "gguf_moe.graph",
        "gguf_moe.options",
        "gguf_moe.runtime",
        "gguf_moe_kernels",
    },
    "gguf_moe.loading": {
        "gguf_moe.arch",
        "gguf_moe.checkpoint",
        "gguf_moe.experts",
        "gguf_moe.graph",
        "gguf_moe.options",
        "gguf_moe.runtime",
        "gguf_moe.text",
        "gguf_moe_kernels",
    },
    "gguf_moe.report": {"gguf_moe.arch", "gguf_moe.checkpoint", "gguf_moe.runtime", "gguf_moe.text"},
}
SKINS = {
    "gguf_moe.model",
    "gguf_moe.evaluate",
    "gguf_moe.cli",
    "gguf_moe.server",
    "gguf_moe",
    "gguf_moe.__main__",
}


def room_of(module):
    parts = module.split(".")
    return "gguf_moe_kernels" if parts[0] == "gguf_moe_kernels" else ".".join(parts[:2])


def imports_of(path):
    """Modules that a file imports anywhere, except for type checkers only."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if node.module == "gguf_moe")


def modules():
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join((package, *parts)).removesuffix(".__init__"), path


@pytest.mark.parametrize(("module", "path"), sorted(modules()), ids=lambda value: str(value).split("/")[-1])
def test_imports_point_downward(module, path):
    room = room_of(module)
    if room in SKINS:
        return
    assert room in ALLOWED, f"{module} stands in a room that this test does not know"
    for imported in imports_of(path):
        target = room_of(imported)
        if imported.startswith("gguf_moe") and target not in {room, "gguf_moe", *LEAVES}:
            assert target in ALLOWED[room], f"{module} must not import {imported}"


@pytest.mark.parametrize("module", [m for m, _ in modules() if not m.startswith("gguf_moe_kernels.cpu")])
def test_numba_and_the_gguf_package_stay_out(module):
    path = dict(modules())[module]
    assert not {name.split(".")[0] for name in imports_of(path)} & {"numba", "gguf", "cupy"}
