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
        n_q, n_kv = s.n_head * s.n_embd_head, s.n_head_kv * s.n_embd_head
        shapes: dict[str, tuple[int, ...]] = {"token_embd": (s.n_vocab, s.n_embd), "output_norm": (s.n_embd,)}
        for il in range(s.n_layer):
            block = {
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
            shapes |= {f"blk-{il}-{name}": shape for name, shape in block.items()}
        self.weights = nn.ParameterDict({name: self._start(name, shape) for name, shape in shapes.items()})
        turns = s.rope_freq_base ** (-torch.arange(0, s.n_embd_head, 2) / s.n_embd_head)
        angles = torch.outer(torch.arange(s.n_ctx_train), turns)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def _start(self, name: str, shape: tuple[int, ...]) -> nn.Parameter:
        if len(shape) == 1:
            return nn.Parameter(torch.ones(shape))
        std = 0.02
        if "attn_output" in name or "ffn_down" in name:
            std /= (2 * self.sizes.n_layer) ** 0.5
        return nn.Parameter(torch.randn(shape) * std)

    def _weight(self, name: str, il: int | None = None) -> Tensor:
        w = self.weights[name if il is None else f"blk-{il}-{name}"]
        return rounded(w, QUANTIZED_BITS[name]) if self.quantize and name in QUANTIZED_BITS else w

    def forward(self, tokens: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Logits [b, n, n_vocab]; router logits [b * n, n_expert] and chosen ids per layer."""
        s = self.sizes
        x = F.embedding(tokens, self.weights["token_embd"])
        routers: list[Tensor] = []
        chosen: list[Tensor] = []
        for il in range(s.n_layer):
            h = F.rms_norm(x, (s.n_embd,), self._weight("attn_norm", il), s.eps)
            x = x + F.dropout(self._attention(h, il), self.dropout, self.training)
            h = F.rms_norm(x, (s.n_embd,), self._weight("ffn_norm", il), s.eps)
            out, router, ids = self._experts(h, il)
            x = x + F.dropout(out, self.dropout, self.training)
            routers.append(router)
            chosen.append(ids)
        x = F.rms_norm(x, (s.n_embd,), self.weights["output_norm"], s.eps)
        return x @ self.weights["token_embd"].T, routers, chosen

    def _rope(self, x: Tensor) -> Tensor:
        """Neighbouring elements are turned, as GGUF's llama files want it; x is [b, head, n, n_embd_head]."""
        cos, sin = self.cos[: x.shape[2]], self.sin[: x.shape[2]]
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).to(x.dtype)

    def _attention(self, h: Tensor, il: int) -> Tensor:
        b, n, _ = h.shape
        q, k, v = (
            (h @ self._weight(f"attn_{c}", il).T).view(b, n, -1, self.sizes.n_embd_head).transpose(1, 2)
            for c in "qkv"
        )
        q, k = self._rope(q), self._rope(k)
        repeats = self.sizes.n_head // self.sizes.n_head_kv
        k, v = (t.repeat_interleave(repeats, 1) for t in (k, v))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return out.transpose(1, 2).reshape(b, n, -1) @ self._weight("attn_output", il).T

    def _experts(self, h: Tensor, il: int) -> tuple[Tensor, Tensor, Tensor]:
        s = self.sizes
        flat = h.reshape(-1, s.n_embd)
        with torch.autocast(h.device.type, enabled=False):
            router = flat.float() @ self._weight("ffn_gate_inp", il).T
        top, ids = router.softmax(-1).topk(s.n_expert_used, -1)
        mix = torch.zeros_like(router).scatter(1, ids, top / top.sum(-1, keepdim=True))
        gate, up = (
            flat @ self._weight(f"ffn_{role}_exps", il).reshape(-1, s.n_embd).T for role in ("gate", "up")
        )
        hidden = (F.silu(gate) * up).view(-1, s.n_expert, s.n_ff) * mix.to(gate.dtype)[..., None]
        down = self._weight("ffn_down_exps", il).transpose(0, 1).reshape(s.n_embd, -1)
        return (hidden.flatten(1) @ down.T).view_as(h), router, ids


def router_losses(routers: list[Tensor], chosen: list[Tensor], n_expert: int) -> tuple[Tensor, Tensor]:
    """Load balance (Switch Transformer, equation 4; 1 is even) and z-loss (ST-MoE), means over layers."""
    balance, z = [], []
    for router, ids in zip(routers, chosen, strict=True):
        share = F.one_hot(ids, n_expert).float().sum(1).mean(0) / ids.shape[1]
        balance.append(n_expert * (share * router.softmax(-1).mean(0)).sum())
        z.append(router.logsumexp(-1).square().mean())
    return torch.stack(balance).mean(), torch.stack(z).mean()
