"""The launches by which the GPU meets the CPU in a layer with experts."""

from __future__ import annotations

from gguf_moe.errors import UnsupportedModelError
from gguf_moe.graph.task import Buffer, Kind, Op, Rows, Task
from gguf_moe.runtime.gpu.link import bytes_over_link
from gguf_moe.runtime.gpu.mailbox import Mailbox
from gguf_moe.runtime.gpu.memory import DeviceMemory
from gguf_moe.runtime.gpu.sections import ExpertSection
from gguf_moe.runtime.memory import row_size
from gguf_moe.runtime.ops import Lowered
from gguf_moe.runtime.program import Value
from gguf_moe_kernels import structs

HEARTBEAT_LIMIT_NS = 10_000_000_000
"""How long the GPU waits for an answer while the CPU shows no progress."""


def ready_words(memory: DeviceMemory, n_layer: int) -> tuple[int, int]:
    """Address and bytes of the `ready` words: for each layer with experts the join's, then the receiver's."""
    nbytes = 8 * max(2 * n_layer, 1)
    return memory.scratch("ready", nbytes), nbytes


def waited_address(memory: DeviceMemory) -> int:
    """Where the joins count for how long they have waited: int64 nanoseconds on the device."""
    return memory.scratch("waited", 8)


def post(section: ExpertSection, memory: DeviceMemory, mailbox: Mailbox, layer: int) -> Lowered:
    """What the GPU lacks in a layer goes to the CPU."""
    place, ids, x = mailbox.post(layer), section.rows.inputs["ids"], section.x
    if len(x) > 2:
        raise UnsupportedModelError(
            f"layer {layer} has experts of types that need {len(x)} formats of activations, but the GPU can "
            "post two; use --device cpu."
        )
    gate = next(task for task in section.tasks if task.op is Op.MATMUL_ID).experts("weight")
    special: dict[str, Value] = {
        "weights": memory.weights.table(gate),
        "k": ids.cols,
        "used": place.used,
        "n_used": place.n_used,
        "first": place.first,
        "x_index": place.x_index,
        "place": place.place,
        "all_ids": place.all_ids,
        "missing_place": memory.scratch("missing_place", 4 * ids.rows * ids.cols),
        "n_missing": memory.scratch("n_missing", 8),
        "aborted": memory.word("aborted"),
        "step": memory.word("step"),
        "sequence": place.sequence,
    }
    for prefix, buffer in zip(("x", "x_2"), x, strict=False):
        special |= {
            prefix: memory.address(buffer),
            f"{prefix}_out": mailbox.address(buffer) or 0,
            f"{prefix}_size": row_size(buffer),
        }
    return "mailbox.mailbox_post", structs.MAILBOX_POST, special


def join(
    task: Task, memory: DeviceMemory, mailbox: Mailbox, layer: int, n_layer: int, link: Link | None
) -> Lowered:
    """The sum of the experts, which waits for the CPU's answer unless all of it came before."""
    place = task.inputs["place"]
    special = _waiting(memory, mailbox, layer, n_layer) | {
        "answer": mailbox.post(layer).answer,
        "ready": ready_words(memory, n_layer)[0] + 8 * layer,
        "k": place.cols,
        "n": task.outputs["out"].cols,
        "x_missing": mailbox.address(task.inputs["x"]) or 0,
        "missing_place": memory.scratch("missing_place", 4 * place.rows * place.cols),
    }
    if link and not link.is_whole:
        special |= {"x_link": memory.address(link.out), "split": link.n_rows}
    elif link:  # all outputs are on the device then
        special["missing_place"] = memory.weights.constant([-1] * place.rows * place.cols)
        special["n_missing"] = memory.weights.constant([0])
    return "mailbox.moe_join", structs.MOE_JOIN, special


def _waiting(memory: DeviceMemory, mailbox: Mailbox, layer: int, n_layer: int) -> dict[str, Value]:
    """What a kernel needs that waits for a layer's answer."""
    return {
        "n_missing": memory.scratch("n_missing", 8),
        "aborted": memory.word("aborted"),
        "step": memory.word("step"),
        "abort": mailbox.abort_address,
        "heartbeat": mailbox.heartbeat_address,
        "limit": HEARTBEAT_LIMIT_NS,
        "waited": waited_address(memory),
    }


class Link:
    """The launches by which the first n_rows rows of a layer's missing down matrices come over the link."""

    def __init__(
        self,
        section: ExpertSection,
        n_rows: int,
        room: int,
        memory: DeviceMemory,
        mailbox: Mailbox,
        layer: int,
        n_layer: int,
    ):
        """`room`: bytes for an expert, the same for all layers."""
        self.section = section
        self.n_rows = n_rows
        self._room = room
        out = section.down.outputs["out"]
        self.is_whole = n_rows == out.cols
        self.out = out if self.is_whole else Buffer(f"link_out_{n_rows}", Kind.F32, out.rows, n_rows)
        """What these rows give."""
        self._memory, self._mailbox = memory, mailbox
        self._layer, self._n_layer = layer, n_layer
        self._ids = section.rows.inputs["ids"]
        self._experts = section.down.experts("weight")
        n_expert = len(self._experts.nbytes)
        self._table = memory.scratch(f"link_table_{n_expert}", 8 * n_expert)

    def fetch(self) -> Lowered:
        """Beside all else, from the post on."""
        ids, nbytes = self._ids, bytes_over_link(self._experts, self.n_rows)
        n = ids.rows * ids.cols
        special: dict[str, Value] = {
            "ids": self._memory.address(ids),
            "missing_place": self._memory.scratch("missing_place", 4 * n),
            "k": ids.cols,
            "weights": self._memory.weights.constant(list(self._experts.addresses)),
            "nbytes": nbytes,
            "target": self._memory.scratch("link_weights", self._room * n),
            "table": self._table,
            "n_expert": len(self._experts.nbytes),
            "aborted": self._memory.word("aborted"),
            "rows": self._memory.rows_address(Rows.TOKENS),
        }
        return "link.fetch_missing", structs.FETCH_MISSING, special

    def receive(self) -> Lowered:
        """Takes over what the CPU has computed, into the rows that the hits leave free."""
        hidden = self.section.hidden
        special = _waiting(self._memory, self._mailbox, self._layer, self._n_layer) | {
            "answer": self._mailbox.post(self._layer).hidden,
            "ready": ready_words(self._memory, self._n_layer)[0] + 8 * (self._n_layer + self._layer),
            "x_missing": self._mailbox.address(hidden) or 0,
            "x": self._memory.address(hidden),
            "x_size": row_size(hidden),
            "place": self._memory.address(self.section.rows.outputs["place"]),
            "missing_place": self._memory.scratch("missing_place", 4 * self._ids.rows * self._ids.cols),
            "k": self._ids.cols,
            "rows": self._memory.rows_address(Rows.TOKENS),
        }
        return "link.receive", structs.RECEIVE, special

    def matmul(self, down: Lowered) -> Lowered:
        """The matmul of the hits once more, with the weights that have come."""
        kernel, struct, special = down
        out = self._memory.address(self.out)
        return kernel, struct, {**special, "weights": self._table, "n_out": self.n_rows, "out": out}
