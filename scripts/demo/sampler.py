"""A dense llama model in PyTorch that continues thousands of prompts at once."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from gguf import GGUFReader
from gguf.quants import dequantize
from torch import Tensor

BATCH = 4096
MAX_NEW_TOKENS = 216
PENALTY, PENALTY_LAST = 1.08, 64  # llama.cpp's repetition penalty: it keeps a small model out of loops


class Sampler:
    """SmolLM2's weights in bfloat16, and a KV cache of [n_head_kv * BATCH] heads per layer."""

    def __init__(self, path: Path, device: str, n_ctx: int, batch: int = BATCH) -> None:
        reader = GGUFReader(path)
        keys = {k.removeprefix("llama."): f.contents() for k, f in reader.fields.items() if "llama." in k}
        self.n_layer = keys["block_count"]
        self.n_head, self.n_head_kv = keys["attention.head_count"], keys["attention.head_count_kv"]
        self.n_embd = keys["embedding_length"]
        self.n_embd_head = self.n_embd // self.n_head
        self.eps = keys["attention.layer_norm_rms_epsilon"]
        self.device, self.batch, self.n_ctx = device, batch, n_ctx
        self.weights = {
            t.name.removesuffix(".weight"): torch.from_numpy(dequantize(t.data, t.tensor_type).copy()).to(
                device, torch.bfloat16
            )
            for t in reader.tensors
        }
        turns = keys["rope.freq_base"] ** (-torch.arange(0, self.n_embd_head, 2) / self.n_embd_head)
        angles = torch.outer(torch.arange(n_ctx), turns).to(device)
        self.cos, self.sin = angles.cos().bfloat16(), angles.sin().bfloat16()
        shape = (self.n_layer, batch * self.n_head_kv, n_ctx, self.n_embd_head)
        self.k, self.v = (torch.zeros(shape, dtype=torch.bfloat16, device=device) for _ in "kv")

    @torch.inference_mode()
    def generate(self, prompts: Tensor, eos: int, temperature: float, min_p: float) -> Tensor:
        """Continue int64 [batch, n_prompt] until most have ended: int64 [batch, n_new], eos after the end."""
        n_past = 0
        # Part by part, as the prompt's activations and scores are larger than one token's.
        last = torch.cat([self._extend(part, 0, i * 256) for i, part in enumerate(prompts.split(256))])
        n_past = prompts.shape[1]
        ended = torch.zeros(len(prompts), dtype=torch.bool, device=self.device)
        out: list[Tensor] = []
        for step in range(min(MAX_NEW_TOKENS, self.n_ctx - n_past)):
            token = self._sample(last, temperature, min_p, out[-PENALTY_LAST:]).masked_fill(ended, eos)
            out.append(token)
            ended |= token == eos
            if step % 16 == 0 and ended.float().mean() > 0.93:
                break
            last = self._extend(token[:, None], n_past, 0)
            n_past += 1
        return torch.stack(out, 1)

    def _sample(self, x: Tensor, temperature: float, min_p: float, recent: list[Tensor]) -> Tensor:
        logits = (x @ self.weights.get("output", self.weights["token_embd"]).T).float()
        if recent:
            ids = torch.stack(recent, 1)
            seen = logits.gather(1, ids)
            logits.scatter_(1, ids, torch.where(seen > 0, seen / PENALTY, seen * PENALTY))
        floor = logits.amax(1, keepdim=True) + math.log(min_p)
        noise = torch.empty_like(logits).exponential_().log_()
        return (logits / temperature - noise).masked_fill_(logits < floor, -torch.inf).argmax(1)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.rms_norm(x, (self.n_embd,), self.weights[name], self.eps)

    def _rope(self, x: Tensor, n_past: int) -> Tensor:
        """GGUF's llama files turn neighbouring elements; x is [batch, head, n, n_embd_head]."""
        cos, sin = (t[n_past : n_past + x.shape[2]] for t in (self.cos, self.sin))
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2)

    def _extend(self, tokens: Tensor, n_past: int, row: int) -> Tensor:
        """Run int64 [b, n] tokens of the rows from `row` on: the last one's normed output [b, n_embd]."""
        w, (b, n) = self.weights, tokens.shape
        x = w["token_embd"][tokens]
        for il in range(self.n_layer):
            blk = f"blk.{il}."
            h = self._norm(x, blk + "attn_norm")
            q, k, v = (
                (h @ w[blk + f"attn_{c}"].T).view(b, n, -1, self.n_embd_head).transpose(1, 2) for c in "qkv"
            )
            q, k = self._rope(q, n_past), self._rope(k, n_past)
            x = x + self._attention(q, k, v, il, n_past, row) @ w[blk + "attn_output"].T
            h = self._norm(x, blk + "ffn_norm")
            x = x + (F.silu(h @ w[blk + "ffn_gate"].T) * (h @ w[blk + "ffn_up"].T)) @ w[blk + "ffn_down"].T
        return self._norm(x[:, -1], "output_norm")

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, il: int, n_past: int, row: int) -> Tensor:
        b, n_head, n, d = q.shape
        heads = slice(row * self.n_head_kv, (row + b) * self.n_head_kv)
        for cache, new in ((self.k, k), (self.v, v)):
            cache[il, heads, n_past : n_past + n] = new.reshape(-1, n, d)
        if n > 1:
            repeats = self.n_head // self.n_head_kv
            k, v = (t.repeat_interleave(repeats, 1) for t in (k, v))
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            keys, values = (cache[il, heads, : n_past + 1] for cache in (self.k, self.v))
            scores = torch.bmm(q.reshape(b * self.n_head_kv, -1, d) * d**-0.5, keys.transpose(1, 2))
            out = torch.bmm(scores.float().softmax(-1).bfloat16(), values).view(b, n_head, 1, d)
        return out.transpose(1, 2).reshape(b, n, -1)
