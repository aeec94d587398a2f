"""What fits where: the KV cache's type and length, and the file's pages, against the machine's memory."""

from __future__ import annotations

import logging
from collections.abc import Callable

from gguf_moe.arch.hparams import HParams
from gguf_moe.arch.weights import Weights
from gguf_moe.checkpoint import Checkpoint
from gguf_moe.errors import OptionError, OutOfMemoryError
from gguf_moe.graph.task import Kind
from gguf_moe.runtime import machine, pages
from gguf_moe_kernels.quants import GGMLType

logger = logging.getLogger(__name__)

MIN_CONTEXT = 512
"""The default context is at least this long, or as long as the model was trained for."""
KV_SHARE = 0.8
"""The share of the memory left beside the file that the default context may take."""
GIB = 1 << 30
_REMEDY = {
    Kind.F32: "use a smaller context (--ctx) or --kv f16",
    Kind.F16: "use a smaller context (--ctx) or --kv q8_0",
    Kind.Q8_0: "use a smaller context (--ctx)",
}
"""Where a KV cache of a type does not fit."""


def kv_kind(kv_type: str | None, hparams: HParams, weights: Weights) -> Kind:
    """The KV cache's element type: as asked, or F32 for a file of F32 matrices, else F16.

    Raises OptionError for q8_0 if heads are not whole blocks.
    """
    if kv_type is not None:
        kind = Kind(kv_type)
        if kind is Kind.Q8_0:
            _check_blocks(hparams)
        return kind
    qtypes = {tensor.qtype for block in weights.blk for tensor in block.tensors.values()}
    return Kind.F32 if qtypes == {GGMLType.F32} else Kind.F16


def _check_blocks(hparams: HParams) -> None:
    block_size = GGMLType.Q8_0.block_size
    for il in hparams.kv_layers:
        hp = hparams.of_layer(il)
        for what, n in (("keys", hp.n_embd_head_k), ("values", hp.n_embd_head_v)):
            if n % block_size:
                raise OptionError(
                    f"a KV cache of q8_0 has blocks of {block_size} elements, but a head's {what} have {n} "
                    f"in layer {il} of this model; use f16 (--kv f16)."
                )


def cache_bytes(hparams: HParams, n_ctx: int, kind: Kind) -> int:
    """Bytes of the KV cache for n_ctx positions."""
    return n_ctx * kind.row_size(sum(hparams.of_layer(il).n_embd_cache for il in hparams.kv_layers))


def state_bytes(hparams: HParams) -> int:
    """Bytes of the states of recurrent layers, whatever the context."""
    return 4 * hparams.ssm.n_state * hparams.is_recr.count(True)


def check_memory(needed: int, what: str) -> None:
    """Raise OutOfMemoryError if so many bytes are not available."""
    available = machine.available_memory()
    if needed > available:
        raise OutOfMemoryError(
            f"{what} need {needed / GIB:.1f} GiB, but {available / GIB:.1f} GiB are available; "
            "use fewer tokens at a time."
        )


def context_length(
    checkpoint: Checkpoint, hparams: HParams, kind: Kind, n_ctx: int | None, n_seq_max: int = 1
) -> int:
    """The context to use for each of n_seq_max sequences.

    Raises OutOfMemoryError if the one asked for does not fit.
    """
    # The states of a sequence, and a copy of them.
    available = max(0, machine.available_memory() - 2 * n_seq_max * state_bytes(hparams))
    if n_ctx is not None:
        needed = n_seq_max * cache_bytes(hparams, n_ctx, kind)
        if needed > available:
            raise OutOfMemoryError(
                f"{checkpoint.path}: the KV cache of {n_seq_max * n_ctx} positions needs "
                f"{needed / GIB:.1f} GiB, but {available / GIB:.1f} GiB are available; "
                f"{_REMEDY[kind]}."
            )
        if n_ctx > hparams.n_ctx_train:
            logger.warning(
                "the context of %d is longer than the %d that the model was trained for; "
                "what it writes beyond that may be poor",
                n_ctx,
                hparams.n_ctx_train,
            )
        return n_ctx
    budget = KV_SHARE * max(0, available - checkpoint.nbytes)
    fits = int(budget // (n_seq_max * cache_bytes(hparams, 1, kind))) // 256 * 256
    return min(hparams.n_ctx_train, max(fits, MIN_CONTEXT))


def warm_page_cache(checkpoint: Checkpoint, progress: Callable[[int, int], None] | None) -> None:
    """Read a mapped file that is not in memory yet; warn if it will not fit."""
    total = machine.total_memory()
    if checkpoint.nbytes > total:
        logger.warning(
            "%s has %.1f GiB, but this machine has %.1f GiB of memory; weights will be read from disk "
            "again and again, which is very slow",
            checkpoint.path,
            checkpoint.nbytes / GIB,
            total / GIB,
        )
    elif pages.resident_share(checkpoint) < pages.MOSTLY:
        pages.read_ahead(checkpoint, progress)
