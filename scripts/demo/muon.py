"""The optimizer: Muon for the matrices in the layers, AdamW for all else."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor, nn

MOMENTUM, WEIGHT_DECAY = 0.95, 0.1
# Jordan's coefficients: five steps bring all singular values close to 1.
A, B, C = 3.4445, -4.7750, 2.0315


def orthogonal(g: Tensor) -> Tensor:
    """The matrices [n, rows, columns] with singular values near 1: five Newton-Schulz steps in BF16."""
    x = g.bfloat16()
    is_tall = x.shape[1] > x.shape[2]
    if is_tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = A * x + (B * square + C * square @ square) @ x
    return (x.mT if is_tall else x).to(g.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal (Jordan 2024). Parameters are [..., rows, columns].

    The step has AdamW's usual size (Moonlight, equation 4), so that both take the same learning rate.
    """

    def __init__(self, params: list[nn.Parameter], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for p in group["params"]:
                by_shape[p.shape[-2:]].append(p)
            for (rows, columns), params in by_shape.items():
                gradients = [p.grad for p in params]
                momenta = [self.state[p].setdefault("momentum", torch.zeros_like(p)) for p in params]
                torch._foreach_mul_(momenta, MOMENTUM)
                torch._foreach_add_(momenta, gradients)
                ahead = torch._foreach_add(gradients, momenta, alpha=MOMENTUM)
                # All matrices of one shape, experts too, are one batch.
                step = orthogonal(torch.cat([a.reshape(-1, rows, columns) for a in ahead]))
                size = 0.2 * max(rows, columns) ** 0.5 * group["lr"]
                parts = step.split([p.numel() // (rows * columns) for p in params])
                torch._foreach_mul_(params, 1 - group["lr"] * WEIGHT_DECAY)
                steps = [part.view_as(p) for part, p in zip(parts, params, strict=True)]
                torch._foreach_add_(params, steps, alpha=-size)


def make_optimizers(model: nn.Module, lr: float, device: str) -> list[torch.optim.Optimizer]:
    """Muon for attention and experts; AdamW for the embedding, the routers and the norms."""
    kinds: dict[str, list[nn.Parameter]] = {"norm": [], "embedding": [], "matrix": []}
    for name, p in model.named_parameters():
        is_embedding = "token_embd" in name or "gate_inp" in name
        kinds["norm" if "norm" in name else "embedding" if is_embedding else "matrix"].append(p)
    groups = [
        {"params": kinds["embedding"], "weight_decay": WEIGHT_DECAY},
        {"params": kinds["norm"], "weight_decay": 0.0},
    ]
    return [
        Muon(kinds["matrix"], lr),
        torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=device != "cpu"),
    ]
