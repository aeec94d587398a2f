"""Where slots lie, what is lost when the room in front grows, and which slots have a part of the end."""

from types import SimpleNamespace

import pytest

from gguf_moe.runtime.gpu.slot_memory import ROLES, SlotMemory


@pytest.fixture
def memory():
    """Three layers with 2, 0 and 3 slots of 768 and 1536 bytes, behind 1000 bytes."""
    layers = [
        SimpleNamespace(**{role: SimpleNamespace(nbytes=[n, 1]) for role in ROLES}) for n in (256, 1, 512)
    ]
    memory = SlotMemory(SimpleNamespace(allocate=lambda nbytes: 4096), layers)
    assert memory.sizes == [768, 768, 1536]
    memory.allocate([2, 0, 3], 1000)
    return memory


def test_slots_lie_one_behind_the_other(memory):
    assert [memory.address(0, slot) - 4096 for slot in range(2)] == [1000, 1768]
    assert [memory.address(2, slot) - 4096 for slot in range(3)] == [2536, 4072, 5608]
    assert (memory.nbytes, memory.most_front_bytes) == (6144, 7144)


def test_the_front_grows_into_slots(memory):
    assert memory.grow_front(1000) == {}
    assert memory.grow_front(1001) == {0: 1}
    assert memory.address(0, 0) - 4096 == 1768
    assert memory.grow_front(1768) == {}
    assert memory.grow_front(2600) == {0: 1, 2: 1}
    assert memory.address(2, 0) - 4096 == 4072
    assert memory.grow_front(7144) == {2: 2}
    assert memory.nbytes == 0


def test_the_end_may_be_lent(memory):
    assert memory.layers_with_last(0) == []
    assert memory.layers_with_last(1) == [2]
    assert [memory.has_last(2, slot, 1536) for slot in range(3)] == [False, False, True]
    assert [memory.has_last(2, slot, 1537) for slot in range(3)] == [False, True, True]
    assert memory.layers_with_last(4609) == [0, 2]
    assert not memory.has_last(0, 0, 4609)
