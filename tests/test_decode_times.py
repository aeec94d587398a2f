"""scripts/decode_times.py: where the time of a token goes on the CPU."""

from __future__ import annotations

from pathlib import Path

import decode_times
import numpy as np

import gguf_moe

FILE = Path(__file__).parent / "fixtures" / "fixture-bpe.Q4_K_M.gguf"


def test_watched_rows_give_the_same_token_and_times_in_their_order(kernel_cache: Path) -> None:
    with gguf_moe.load(FILE, threads=2, cache_dir=kernel_cache) as model:
        expected = model._context.extend([5, 6], 1).copy()
        model._context.truncate(1)
        watches = decode_times.Stopwatches(model._context._runner._program.table, model._loaded.library, 2)
        np.testing.assert_array_equal(model._context.extend([6], 1), expected)
        first, last, busy = (watches.times[..., i] for i in range(3))
        assert (first <= last).all()
        assert (last[:-1] <= first[1:]).all()
        assert (busy <= last - first).all()

        times = decode_times.measure(model, n_threads=2, n_steps=3, at_once=2)
        tasks = model._context.graph.tasks
        kinds = decode_times.sums_by_kind(times, tasks, decode_times.expert_share(model.hparams, 2))
        assert sum(kind.number for kind in kinds.values()) == len(tasks)
        assert kinds["Qcur Q4_K"].number == model.hparams.n_layer
        # Three of four experts of 256 x 256 weights in two layers, 144 bytes for 256 weights.
        assert kinds["ffn_moe_up Q4_K"].megabytes == 2 * 3 * 256 * 144 / 1e6
