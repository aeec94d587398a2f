"""Device memory: what is uploaded once and found again."""

from gguf_moe.runtime.gpu.memory import DeviceWeights


def test_constants_that_differ_have_different_addresses(emulated_gpu):
    weights = DeviceWeights(emulated_gpu)
    # The hashes of -1 and -2 are equal.
    lists = [[-1, -1], [-2, -2], [-1], [0]]
    addresses = [weights.constant(values) for values in lists]
    assert len(set(addresses)) == len(lists)
    assert [weights.constant(values) for values in lists] == addresses
    assert weights.nbytes == 8 * sum(map(len, lists))
