"""A dense llama model in PyTorch that writes into the gaps of thousands of texts at once.

Every row of the batch has its own text and its own position; when one is finished, the next takes its row.
A step runs one token of every row, given or written alike, so all steps are the same work: one CUDA graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from gguf import GGUFReader
from gguf.quants import dequantize
from torch import Tensor

from demo.text import END, GAP

MAX_GAP = 32  # tokens; a longer sentence is cut off
STEPS = 16  # between two looks at which rows are finished


class Written(NamedTuple):
    """A finished text: its script's number, and for each gap the token ids and their mean log probability."""

    number: int
    gaps: list[list[int]]
    logp: list[float]


class Vocabulary(NamedTuple):
    """What the sampler must know of each token."""

    allowed: list[bool]  # may be written
    ends: list[bool]  # ends a sentence
    quotes: list[bool]  # opens or closes a quotation


class Layer(NamedTuple):
    """A layer's weights; those that meet the same input are one matrix."""

    attn_norm: Tensor
    attn_qkv: Tensor
    attn_output: Tensor
    ffn_norm: Tensor
    ffn_gate_up: Tensor
    ffn_down: Tensor


class Model:
    """SmolLM2's weights, and a KV cache of [batch, n_ctx, n_head_kv, n_embd_head] per layer."""

    def __init__(self, path: Path, device: str, batch: int, n_ctx: int) -> None:
        reader = GGUFReader(path)
        keys = {k.removeprefix("llama."): f.contents() for k, f in reader.fields.items() if "llama." in k}
        self.n_head, self.n_head_kv = keys["attention.head_count"], keys["attention.head_count_kv"]
        self.n_embd = keys["embedding_length"]
        self.d = self.n_embd // self.n_head
        self.eps = keys["attention.layer_norm_rms_epsilon"]
        self.n_ctx = n_ctx
        self.dtype = torch.float32 if device == "cpu" else torch.bfloat16
        w = {
            t.name.removesuffix(".weight"): torch.from_numpy(dequantize(t.data, t.tensor_type).copy()).to(
                device, self.dtype
            )
            for t in reader.tensors
        }
        self.token_embd, self.output_norm = w["token_embd"], w["output_norm"]
        self.layers = [
            Layer(
                w[blk + "attn_norm"],
                torch.cat([w[blk + f"attn_{c}"] for c in "qkv"]),
                w[blk + "attn_output"],
                w[blk + "ffn_norm"],
                torch.cat([w[blk + "ffn_gate"], w[blk + "ffn_up"]]),
                w[blk + "ffn_down"],
            )
            for blk in (f"blk.{il}." for il in range(keys["block_count"]))
        ]
        turns = keys["rope.freq_base"] ** (-torch.arange(0, self.d, 2) / self.d)
        angles = torch.outer(torch.arange(n_ctx), turns).to(device)
        self.cos, self.sin = angles.cos(), angles.sin()
        shape = (batch, n_ctx, self.n_head_kv, self.d)
        self.k, self.v = (
            [torch.zeros(shape, dtype=self.dtype, device=device) for _ in self.layers] for _ in "kv"
        )
        self.rows = torch.arange(batch, device=device)
        self.attention, self.before, self.after = self._attention, self._before, self._after
        if device != "cpu":
            from demo.attention import attention

            self.attention = attention
            # The parts of a layer are compiled and called 30 times: as one program all would take minutes.
            # The cache is written between them, where no compiler can decide to copy it.
            self.before, self.after = (torch.compile(f, dynamic=False) for f in (self._before, self._after))

    def logits(self, tokens: Tensor, pos: Tensor) -> Tensor:
        """The next token's logits [batch, n_vocab], after int64 [batch] tokens at [batch] positions."""
        x = self.token_embd[tokens]
        cos, sin = self.cos[pos][:, None], self.sin[pos][:, None]
        for weights, k, v in zip(self.layers, self.k, self.v, strict=True):
            q, k[self.rows, pos], v[self.rows, pos] = self.before(x, weights, cos, sin)
            x = self.after(x, self.attention(q, k, v, pos), weights)
        return F.rms_norm(x, (self.n_embd,), self.output_norm, self.eps) @ self.token_embd.T

    def _before(self, x: Tensor, weights: Layer, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of [batch, n_embd]: queries [batch, n_head_kv, group, d], keys and values [batch, n_head_kv, d]."""
        b, n_kv = len(x), self.n_head_kv
        h = F.rms_norm(x, (self.n_embd,), weights.attn_norm, self.eps) @ weights.attn_qkv.T
        q, k, v = h.view(b, -1, self.d).split([self.n_head, n_kv, n_kv], 1)
        return self._rope(q, cos, sin).view(b, n_kv, -1, self.d), self._rope(k, cos, sin), v

    def _after(self, x: Tensor, attended: Tensor, weights: Layer) -> Tensor:
        """The layer's output [batch, n_embd]; `attended` is like the queries."""
        x = x + attended.reshape(len(x), -1) @ weights.attn_output.T
        h = F.rms_norm(x, (self.n_embd,), weights.ffn_norm, self.eps) @ weights.ffn_gate_up.T
        gate, up = h.chunk(2, 1)
        return x + (F.silu(gate) * up) @ weights.ffn_down.T

    @staticmethod
    def _attention(q: Tensor, k: Tensor, v: Tensor, pos: Tensor) -> Tensor:
        """For the CPU: q is [batch, n_head_kv, group, d], k and v are [batch, n_ctx, n_head_kv, d]."""
        seen = torch.arange(k.shape[1]) <= pos[:, None]
        k, v = k.transpose(1, 2), v.transpose(1, 2)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None])

    def _rope(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """GGUF's llama files turn neighbouring elements; x is [batch, head, n_embd_head]."""
        a, b = x[..., 0::2].float(), x[..., 1::2].float()
        return torch.stack((a * cos - b * sin, a * sin + b * cos), -1).flatten(-2).to(self.dtype)


class Sampler:
    """The rows' states, and the step that moves all of them by one token."""

    def __init__(
        self, model: Model, vocabulary: Vocabulary, temperature: float, min_p: float, head: list[int]
    ) -> None:
        """`head` are the tokens that every script begins with; a row keeps them in its cache."""
        self.model, self.temperature, self.min_p, self.n_head = model, temperature, min_p, len(head)
        batch, n_ctx = len(model.rows), model.n_ctx
        device = self.device = model.rows.device
        self.allowed, self.ends, self.quotes = (torch.tensor(a, device=device) for a in vocabulary)
        self.script = torch.full((batch, n_ctx), END, dtype=torch.int64, device=device)
        self.out, self.gap_of = (torch.zeros_like(self.script) for _ in range(2))
        self.logp = torch.zeros((batch, n_ctx), device=device)
        self.pos, self.at, self.n_gap, self.token = (
            torch.zeros(batch, dtype=torch.int64, device=device) for _ in range(4)
        )
        self.is_open, self.done = (torch.zeros(batch, dtype=torch.bool, device=device) for _ in range(2))
        for i, token in enumerate(head):
            self.pos.fill_(i)
            model.logits(torch.full_like(self.token, token), self.pos)
        self.done.fill_(True)
        self.pick = torch.compile(self._pick, dynamic=False) if device.type == "cuda" else self._pick
        self.steps = self._captured() if device.type == "cuda" else self._steps

    def _pick(self, logits: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """One allowed token for each row, and the row's logsumexp; both inputs are [batch, n_vocab].

        min_p looks at temperature 1, as in llama.cpp. `noise` is exponential (the Gumbel-max trick).
        """
        logits = logits.float()
        total = logits.logsumexp(1)
        logits = torch.where(self.allowed, logits, -torch.inf)
        floor = logits.amax(1, keepdim=True) + math.log(self.min_p)
        scores = torch.where(logits < floor, -torch.inf, logits / self.temperature - noise.log())
        return scores.argmax(1), total

    def _captured(self) -> Callable[[], None]:
        """STEPS replays of one step as a CUDA graph."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self._step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()

        def steps() -> None:
            for _ in range(STEPS):
                graph.replay()

        return steps

    def _steps(self) -> None:
        for _ in range(STEPS):
            self._step()

    def _step(self) -> None:
        """Every row: run its token, then take the next one from the script, or in a gap the sampled one."""
        rows = self.model.rows
        logits = self.model.logits(self.token, self.pos)
        noise = torch.empty_like(logits, dtype=torch.float32).exponential_()
        written, total = self.pick(logits, noise)
        wanted = self.script[rows, self.at]
        in_gap = wanted == GAP
        self.done |= (wanted == END) | (self.pos >= self.model.n_ctx - 2)
        runs = ~self.done
        token = torch.where(in_gap, written, wanted).clamp(min=0)
        self.pos += runs
        # A finished row writes into the place after its last token, where no gap is.
        at = self.pos + ~runs
        self.out[rows, at], self.logp[rows, at] = token, logits[rows, token].float() - total
        self.gap_of[rows, at] = torch.where(in_gap & runs, self.at, -1)
        self.token.copy_(torch.where(runs, token, self.token))
        self.is_open ^= self.quotes[token] & runs
        self.n_gap.copy_((self.n_gap + 1) * in_gap)
        closed = in_gap & ((self.ends[token] & ~self.is_open) | (self.n_gap >= MAX_GAP))
        self.at += runs & (closed | ~in_gap)
        self.n_gap *= ~closed
        self.is_open &= ~closed

    @torch.inference_mode()
    def write(self, scripts: Iterator[tuple[int, list[int]]]) -> Iterator[list[Written]]:
        """Numbered scripts, each beginning with `head`, to finished texts, some at a time."""
        numbers = np.full(len(self.pos), -1)
        while True:
            ready = self.done.nonzero().flatten()
            rows = ready.cpu().numpy()
            finished = numbers[rows]
            found = [t[ready].cpu().numpy() for t in (self.out, self.gap_of, self.logp)]
            numbers[rows] = -1
            self._start(rows, list(islice(scripts, len(rows))), numbers)
            if (numbers >= 0).any():
                self.steps()
            # While the GPU works on the steps, the host reads the texts.
            yield [_written(*text) for text in zip(finished, *found, strict=True) if text[0] >= 0]
            if (numbers < 0).all():
                return

    def _start(self, rows: np.ndarray, scripts: list[tuple[int, list[int]]], numbers: np.ndarray) -> None:
        """Give new scripts to the first of the rows."""
        if not scripts:
            return
        table = np.full((len(scripts), self.model.n_ctx), END)
        for i, (number, script) in enumerate(scripts):
            numbers[rows[i]] = number
            table[i, : len(script)] = script[: self.model.n_ctx]
        at = torch.from_numpy(rows[: len(scripts)]).to(self.device)
        self.script[at] = torch.from_numpy(table).to(self.device)
        self.token[at] = self.script[at, self.n_head]
        self.pos[at], self.at[at], self.n_gap[at] = self.n_head, self.n_head + 1, 0
        self.is_open[at], self.done[at], self.gap_of[at] = False, False, -1


def _written(number: int, tokens: np.ndarray, gap_of: np.ndarray, logp: np.ndarray) -> Written:
    """One row's arrays [n_ctx], cut at the gaps."""
    at = np.flatnonzero(gap_of >= 0)
    parts = np.split(at, np.flatnonzero(np.diff(gap_of[at])) + 1) if len(at) else []
    return Written(int(number), [tokens[i].tolist() for i in parts], [float(logp[i].mean()) for i in parts])
