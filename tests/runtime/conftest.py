"""Contexts of a file: run by the crew, or by the oracle."""

import contextlib

import pytest

from gguf_moe.arch import find_arch
from gguf_moe.arch.hparams import read_hparams
from gguf_moe.arch.weights import load_weights
from gguf_moe.checkpoint import open_checkpoint
from gguf_moe.graph.task import Kind
from gguf_moe.runtime.context import Context, kernels_of
from gguf_moe.runtime.inline import InlineContext


@pytest.fixture(scope="session")
def moe_file(tiny_gguf, tmp_path_factory):
    return tiny_gguf(tmp_path_factory.mktemp("models") / "moe.gguf")


@pytest.fixture(scope="session")
def dense_file(tiny_gguf, tmp_path_factory):
    return tiny_gguf(tmp_path_factory.mktemp("models") / "dense.gguf", n_expert=0, n_head_kv=1)


def model_of(path):
    checkpoint = open_checkpoint(path)
    arch = find_arch(checkpoint.metadata)
    hparams = read_hparams(checkpoint.metadata, arch)
    return arch, hparams, load_weights(checkpoint, arch, hparams)


@pytest.fixture(scope="session")
def crew_context(library):
    """crew_context(path, n_threads, ...): a context manager; the context is closed at its end."""

    @contextlib.contextmanager
    def make(path, n_threads, n_batch=8, n_ctx=32, kv_kind=Kind.F16):
        context = Context(*model_of(path), n_ctx=n_ctx, n_batch=n_batch, kv_kind=kv_kind)
        rows = context.rows(n_threads)
        library.prepare(kernels_of(rows))
        context.start(rows, library, n_threads)
        with contextlib.closing(context):
            yield context

    return make


@pytest.fixture(scope="session")
def inline_context():
    def make(path, n_batch=8, n_ctx=32, kv_kind=Kind.F16, on_task=None):
        return InlineContext(*model_of(path), n_ctx=n_ctx, n_batch=n_batch, kv_kind=kv_kind, on_task=on_task)

    return make
