"""Each architecture on a GPU: its tiny file gives llama.cpp's logits, wherever its experts are.

docs/models.md says of each whether that was on the emulated device alone or on a real one too
(scripts/models_table.py).
"""

from pathlib import Path

import numpy as np
import pytest
from tiny_fixtures import N_LOGITS
from tiny_models import write_tiny
from tiny_table import TINY

from gguf_moe.graph.task import Kind

ROOT = Path(__file__).parents[3]
FIXTURES = ROOT / "tests" / "fixtures" / "architectures"


N_CTX = 512
"""As llama.cpp had it: it chooses some models' rope factors by the size of the context."""


@pytest.mark.slow
@pytest.mark.parametrize("arch", sorted(TINY))
def test_logits_are_llama_cpps(hybrid_context, arch, tmp_path):
    path = write_tiny(arch, tmp_path / f"{arch}.gguf")
    with np.load(FIXTURES / f"{arch}.npz", allow_pickle=False) as expected:
        ids, base = expected["ids"][0, :N_LOGITS].tolist(), expected["logits"].astype(np.float64)
    with hybrid_context(path, slots=3, n_batch=24, n_ctx=N_CTX, kv_kind=Kind.F32) as context:
        logits = np.concatenate(
            [context.extend(ids[:-8], N_LOGITS - 8).copy()]
            + [context.extend([token], 1).copy() for token in ids[-8:]]
        )
        usage = context.gpu.usage()
    nmse = np.square(base - logits).sum() / np.square(base).sum()
    assert nmse <= 1e-6
    assert usage.misses
    assert usage.hits
