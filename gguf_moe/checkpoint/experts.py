"""The experts of one layer, the same view of every way in which files have stored them."""

from __future__ import annotations

from dataclasses import dataclass

from gguf_moe.checkpoint.file import Checkpoint, Tensor
from gguf_moe.errors import GGUFError
from gguf_moe_kernels.quants import GGMLType


@dataclass(frozen=True, slots=True)
class ExpertTensors:
    """One role (gate, up or down) of the experts of one layer. Index `ie` of each tuple is expert `ie`.

    The addresses are valid as long as the checkpoint is open.
    """

    shape: tuple[int, int]  # (n_in, n_out) of each expert: n_out rows of n_in elements
    qtypes: tuple[GGMLType, ...]
    addresses: tuple[int, ...]
    nbytes: tuple[int, ...]


def expert_tensors(
    checkpoint: Checkpoint, il: int, role: str, n_expert: int, n_in: int, n_out: int
) -> ExpertTensors:
    """The weights of all experts of layer `il` for `role`: "gate", "up" or "down".

    Three forms are read:
    `ffn_{role}_exps` [n_in, n_out, n_expert], where expert `ie` is slab `ie`;
    `ffn_gate_up_exps` [n_in, 2 * n_out, n_expert], where the gate rows of an expert lie before its up rows;
    `ffn_{role}.{ie}` [n_in, n_out], the form of December 2023, where experts may differ in type.

    Raises GGUFError when none or more than one form is there, or an expert is missing or has another shape;
    BusyError when the checkpoint is closed.
    """
    if role not in ("gate", "up", "down"):
        raise ValueError(f"role is {role!r}, but must be 'gate', 'up' or 'down'")
    block = f"blk.{il}.ffn_"
    merged, fused = f"{block}{role}_exps.weight", f"{block}gate_up_exps.weight"
    singles = [f"{block}{role}.{ie}.weight" for ie in range(n_expert)]
    whole = (merged,) if role == "down" else (merged, fused)
    forms = [name for name in whole if name in checkpoint.tensors]
    forms += [name for name in singles if name in checkpoint.tensors][:1]
    if len(forms) > 1:
        raise GGUFError(
            f"{checkpoint.path}: layer {il} stores its experts twice, as {forms[0]} and as {forms[1]}; "
            "download or convert the file again."
        )
    if forms and forms[0] == fused:
        tensor = checkpoint.tensor(fused, (n_in, 2 * n_out, n_expert))
        return _slabs(tensor, n_expert, n_in, n_out, stride=2 * n_out, first_row=n_out if role == "up" else 0)
    if forms and forms[0] != merged:
        return _singles(checkpoint, singles, f"{block}{role}.{n_expert}.weight", n_in, n_out)
    return _slabs(checkpoint.tensor(merged, (n_in, n_out, n_expert)), n_expert, n_in, n_out, stride=n_out)


def _slabs(
    tensor: Tensor, n_expert: int, n_in: int, n_out: int, stride: int, first_row: int = 0
) -> ExpertTensors:
    """Experts one behind the other: `n_out` rows from `first_row` on, in every `stride` rows."""
    row_size = tensor.qtype.row_size(n_in)
    start = tensor.address + first_row * row_size
    return ExpertTensors(
        shape=(n_in, n_out),
        qtypes=(tensor.qtype,) * n_expert,
        addresses=tuple(start + ie * stride * row_size for ie in range(n_expert)),
        nbytes=(n_out * row_size,) * n_expert,
    )


def _singles(
    checkpoint: Checkpoint, names: list[str], one_too_many: str, n_in: int, n_out: int
) -> ExpertTensors:
    """Each expert in a tensor of its own."""
    missing = [name for name in names if name not in checkpoint.tensors]
    if missing:
        raise GGUFError(
            f"{checkpoint.path}: the expert tensors are incomplete: {missing[0]} is missing "
            f"({len(names) - len(missing)} of {len(names)} are there); download or convert the file again."
        )
    if one_too_many in checkpoint.tensors:
        raise GGUFError(
            f"{checkpoint.path}: there is a tensor {one_too_many}, but by the metadata only {len(names)} "
            "experts; the file contradicts itself: download or convert it again."
        )
    tensors = [checkpoint.tensor(name, (n_in, n_out)) for name in names]
    return ExpertTensors(
        shape=(n_in, n_out),
        qtypes=tuple(tensor.qtype for tensor in tensors),
        addresses=tuple(tensor.address for tensor in tensors),
        nbytes=tuple(tensor.nbytes for tensor in tensors),
    )
