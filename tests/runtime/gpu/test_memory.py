"""Device memory: what is uploaded once and found again."""

import pytest

from gguf_moe.errors import DeviceError
from gguf_moe.runtime.gpu import device
from gguf_moe.runtime.gpu.memory import DeviceWeights


def test_constants_that_differ_have_different_addresses(emulated_gpu):
    weights = DeviceWeights(emulated_gpu)
    # The hashes of -1 and -2 are equal.
    lists = [[-1, -1], [-2, -2], [-1], [0]]
    addresses = [weights.constant(values) for values in lists]
    assert len(set(addresses)) == len(lists)
    assert [weights.constant(values) for values in lists] == addresses
    assert weights.nbytes == 8 * sum(map(len, lists))


def test_weights_that_never_arrive_are_not_waited_for_without_end(emulated_gpu, monkeypatch):
    weights = DeviceWeights(emulated_gpu)
    weights.constant([1])
    weights.finish()
    monkeypatch.setattr(emulated_gpu, "is_idle", lambda stream: False)
    monkeypatch.setattr(device, "STEP_LIMIT_S", 0.1)
    with pytest.raises(DeviceError, match="has not finished the upload of the weights"):
        weights.finish()
