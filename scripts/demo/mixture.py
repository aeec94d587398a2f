"""Mixtral's architecture in PyTorch, for training. Parameters have GGUF's names and shapes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Sizes:
    """In GGUF's words."""

    n_vocab: int = 4096
    n_layer: int = 8
    n_embd: int = 256
    n_ff: int = 256
    n_head: int = 8
    n_head_kv: int = 2
    n_embd_head: int = 64
    n_expert: int = 8
    n_expert_used: int = 2
    n_ctx_train: int = 512
    rope_freq_base: float = 1e4
    eps: float = 1e-5


# Bits per weight of each kind of matrix in Q4_K_M, for the last part of training; the others lose little.
QUANTIZED_BITS = {"attn_q": 4, "attn_output": 5, "ffn_gate_exps": 4, "ffn_up_exps": 4, "ffn_down_exps": 4}


def rounded(w: Tensor, bits: int) -> Tensor:
    """w with blocks of 32 rounded to 2^bits steps from their minimum; gradients pass as if it were w."""
    blocks = w.detach().view(-1, 32)
    low = blocks.amin(1, keepdim=True).clamp(max=0)
    step = (blocks.amax(1, keepdim=True) - low) / (2**bits - 1) + 1e-12
    near = ((blocks - low) / step).round() * step + low
    return w + (near.view_as(w) - w).detach()


class Mixture(nn.Module):
    """Experts are computed all at once as one wide feed-forward; those not chosen have the weight 0."""

    def __init__(self, sizes: Sizes, dropout: float = 0.0) -> None:
        super().__init__()
        s = self.sizes = sizes
        self.dropout = dropout
        self.quantize = False
        self.trained_block = self.block  # may be replaced by a compiled one
        n_q, n_kv = s.n_head * s.n_embd_head, s.n_head_kv * s.n_embd_head
        shapes: dict[str, tuple[int, ...]] = {"token_embd": (s.n_vocab, s.n_embd), "output_norm": (s.n_embd,)}
        blocks = {
            "attn_norm": (s.n_embd,),
            "attn_q": (n_q, s.n_embd),
            "attn_k": (n_kv, s.n_embd),
            "attn_v": (n_kv, s.n_embd),
            "attn_output": (s.n_embd, n_q),
            "ffn_norm": (s.n_embd,),
            "ffn_gate_inp": (s.n_expert, s.n_embd),
            "ffn_gate_exps": (s.n_expert, s.n_ff, s.n_embd),
            "ffn_up_exps": (s.n_expert, s.n_ff, s.n_embd),
            "ffn_down_exps": (s.n_expert, s.n_embd, s.n_ff),
        }
        # One parameter holds all layers: a step of the optimizer is a few large operations.
        self.weights = nn.ParameterDict({name: self._start(name, shape) for name, shape in shapes.items()})
        self.blocks = nn.ParameterDict(
            {name: self._start(name, (s.n_layer, *shape)) for name, shape in blocks.items()}
        )
        turns = s.rope_freq_base ** (-torch.arange(0, s.n_embd_head, 2) / s.n_embd_head)
        angles = torch.outer(torch.arange(s.n_ctx_train), turns)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def _start(self, name: str, shape: tuple[int, ...]) -> nn.Parameter:
        if "norm" in name:
            return nn.Parameter(torch.ones(shape))
        std = 0.02
        if "attn_output" in name or "ffn_down" in name:
            std /= (2 * self.sizes.n_layer) ** 0.5
        return nn.Parameter(torch.randn(shape) * std)

    def layers(self) -> list[dict[str, Tensor]]:
        """Each layer's weights by name, rounded when `quantize` is set."""
        stacks = dict(self.blocks)
        if self.quantize:
            stacks |= {name: rounded(stacks[name], bits) for name, bits in QUANTIZED_BITS.items()}
        parts = {name: stack.unbind(0) for name, stack in stacks.items()}
        return [{name: part[il] for name, part in parts.items()} for il in range(self.sizes.n_layer)]

    def tensors(self) -> dict[str, Tensor]:
        """All weights by the names that GGUF has."""
        named = {f"{name}.weight": w for name, w in self.weights.items()}
        for name, stack in self.blocks.items():
            named |= {f"blk.{il}.{name}.weight": w for il, w in enumerate(stack)}
        return {name: w.detach() for name, w in named.items()}

    def forward(self, tokens: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Normed outputs [b, n, n_embd]; router logits [b * n, n_expert] and chosen ids per layer."""
        s = self.sizes
        x = F.embedding(tokens, self.weights["token_embd"])
        routers: list[Tensor] = []
        chosen: list[Tensor] = []
        block = self.trained_block if self.training else self.block
        for weights in self.layers():
            x, router, ids = block(x, weights)
            routers.append(router)
            chosen.append(ids)
        return F.rms_norm(x, (s.n_embd,), self.weights["output_norm"], s.eps), routers, chosen

    def head(self, x: Tensor) -> Tensor:
        """Logits [..., n_vocab]; the embedding is used again."""
        return x @ self.weights["token_embd"].T

    def block(self, x: Tensor, w: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """One layer on [b, n, n_embd]: its output, router logits [b * n, n_expert], ids [b * n, used]."""
        s = self.sizes
        h = F.rms_norm(x, (s.n_embd,), w["attn_norm"], s.eps)
        x = x + F.dropout(self._attention(h, w), self.dropout, self.training)
        h = F.rms_norm(x, (s.n_embd,), w["ffn_norm"], s.eps)
        out, router, ids = self._experts(h, w)
        return x + F.dropout(out, self.dropout, self.training), router, ids

    def _rope(self, x: Tensor) -> Tensor:
        """Neighbouring elements are turned, as GGUF's llama files want it; x is [b, head, n, n_embd_head]."""
        cos, sin = self.cos[: x.shape[2]], self.sin[: x.shape[2]]
        a, b = x[..., 0::2].float(), x[..., 1::2].float()
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).to(x.dtype)

    def _attention(self, h: Tensor, w: dict[str, Tensor]) -> Tensor:
        b, n, _ = h.shape
        q, k, v = (
            (h @ w[f"attn_{c}"].T).view(b, n, -1, self.sizes.n_embd_head).transpose(1, 2) for c in "qkv"
        )
        out = F.scaled_dot_product_attention(self._rope(q), self._rope(k), v, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2).reshape(b, n, -1) @ w["attn_output"].T

    def _experts(self, h: Tensor, w: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        s = self.sizes
        flat = h.reshape(-1, s.n_embd)
        with torch.autocast(h.device.type, enabled=False):
            router = flat.float() @ w["ffn_gate_inp"].T
        top, ids = router.softmax(-1).topk(s.n_expert_used, -1)
        mix = torch.zeros_like(router).scatter(1, ids, top / top.sum(-1, keepdim=True))
        gate, up = (flat @ w[f"ffn_{role}_exps"].reshape(-1, s.n_embd).T for role in ("gate", "up"))
        hidden = (F.silu(gate) * up).view(-1, s.n_expert, s.n_ff) * mix.to(gate.dtype)[..., None]
        down = w["ffn_down_exps"].transpose(0, 1).reshape(s.n_embd, -1)
        return (hidden.flatten(1) @ down.T).view_as(h), router, ids


def router_losses(routers: list[Tensor], chosen: list[Tensor], n_expert: int) -> tuple[Tensor, Tensor]:
    """Load balance (Switch Transformer, equation 4; 1 is even) and z-loss (ST-MoE), means over layers."""
    balance, z = [], []
    for router, ids in zip(routers, chosen, strict=True):
        share = F.one_hot(ids, n_expert).float().sum(1).mean(0) / ids.shape[1]
        balance.append(n_expert * (share * router.softmax(-1).mean(0)).sum())
        z.append(router.logsumexp(-1).square().mean())
    return torch.stack(balance).mean(), torch.stack(z).mean()
