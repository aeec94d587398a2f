"""Stage `train`: the mixture on the text, with a balanced router, the last part as Q4_K_M will round it."""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from demo.data import Texts, cut
from demo.mixture import Mixture, Sizes, router_losses
from demo.muon import make_optimizers

BATCH, N_CTX = 256, 512
PEAK_LR, WARM_UP = 3e-3, 200
BALANCE, Z = 0.02, 1e-4
DROPOUT = 0.1
QUANTIZED_FROM = 0.8  # of all steps
LOGGED = 100  # steps from row to row of the CSV
COLUMNS = ("step", "tokens", "lr", "loss", "held_out_loss", "balance", "min_share", "max_share")


def shares(chosen: list[Tensor], n_expert: int) -> Tensor:
    """The share of the choices of each layer that each expert gets: [n_layer, n_expert]."""
    return torch.stack([torch.bincount(i.flatten(), minlength=n_expert) / i.numel() for i in chosen]).cpu()


@torch.no_grad()
def evaluate(model: Mixture, held_out: Tensor) -> dict:
    """Mean loss over the second half of each window, expert shares, and reuse by the next token per layer."""
    model.eval()
    losses, ids_of = [], []
    for part in held_out.split(32):
        inputs = part[:, :-1].clone()
        inputs[:, 0] = 0
        x, _, chosen = model(inputs)
        half = N_CTX // 2
        logits = model.head(x[:, half:])
        losses.append(F.cross_entropy(logits.transpose(1, 2), part[:, half + 1 :], reduction="none"))
        ids_of.append([ids.view(len(part), -1, ids.shape[-1]) for ids in chosen])
    model.train()
    chosen = [torch.cat([ids[il] for ids in ids_of]) for il in range(model.sizes.n_layer)]
    reuse = [(c[:, 1:, :, None] == c[:, :-1, None, :]).any(-1).float().mean().item() for c in chosen]
    loss = torch.cat(losses).mean().item()
    return {"loss": loss, "shares": shares(chosen, model.sizes.n_expert).tolist(), "reuse": reuse}


def learning_rate(step: int, n_steps: int) -> float:
    if step < WARM_UP:
        return PEAK_LR * (step + 1) / WARM_UP
    done = (step - WARM_UP) / max(1, n_steps - WARM_UP)
    return PEAK_LR * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


class Training:
    """The model, its optimizers and what was logged. `save` and `load` carry them from call to call."""

    def __init__(self, sizes: Sizes, held_out: Tensor, device: str, n_steps: int, seed: int) -> None:
        torch.manual_seed(seed)
        torch.backends.cuda.matmul.allow_tf32 = True
        self.device, self.held_out, self.n_steps, self.step = device, held_out, n_steps, 0
        self.model = Mixture(sizes, DROPOUT).to(device)
        self.optimizers = make_optimizers(self.model, PEAK_LR, device)
        self.rows: list[list[float | str]] = []
        self._loss = self.loss
        if device != "cpu":
            # One layer is compiled and called for each: as one program all would take minutes.
            self.model.trained_block = torch.compile(self.model.block)
            self._loss = torch.compile(self.loss)

    def loss(self, x: Tensor, targets: Tensor) -> Tensor:
        """Mean over [b, n] targets of the outputs [b, n, n_embd]."""
        return F.cross_entropy(self.model.head(x).flatten(0, 1).float(), targets.flatten())

    def train_on(self, batch: Tensor) -> None:
        """One step on [BATCH, N_CTX + 1] tokens."""
        self.model.quantize = self.step >= QUANTIZED_FROM * self.n_steps
        lr = learning_rate(self.step, self.n_steps)
        with torch.autocast(self.device, torch.bfloat16):
            x, routers, chosen = self.model(batch[:, :-1])
            loss = self._loss(x, batch[:, 1:])
        balance, z = router_losses(routers, chosen, self.model.sizes.n_expert)
        (loss + BALANCE * balance + Z * z).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        if self.step % LOGGED == 0 or self.step == self.n_steps:
            self._log(lr, loss, balance, chosen)

    def _log(self, lr: float, loss: Tensor, balance: Tensor, chosen: list[Tensor]) -> None:
        use = shares(chosen, self.model.sizes.n_expert)
        is_tested = self.step % (10 * LOGGED) == 0 or self.step == self.n_steps
        test = evaluate(self.model, self.held_out)["loss"] if is_tested else ""
        numbers = (lr, loss.item(), test, balance.item(), use.min().item(), use.max().item())
        tokens = self.step * BATCH * N_CTX
        self.rows.append([self.step, tokens, *(round(n, 5) if n != "" else "" for n in numbers)])
        if is_tested or self.step == LOGGED:
            print(*self.rows[-1], flush=True)

    def save(self, path: Path) -> None:
        state = {"step": self.step, "rows": self.rows, "model": self.model.state_dict()}
        torch.save(state | {"optimizers": [o.state_dict() for o in self.optimizers]}, path)

    def load(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.step, self.rows = state["step"], state["rows"]
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def batches(texts: Texts, first: int, n_steps: int, seed: int) -> Iterator[Tensor]:
    """The batches of steps `first` to n_steps, int16 [BATCH, N_CTX + 1]; the next epoch is cut meanwhile."""
    per_epoch = len(texts.windows(N_CTX, (seed, 0))) // BATCH
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(texts.windows, N_CTX, (seed, first // per_epoch))
        for step in range(first, n_steps):
            epoch, i = divmod(step, per_epoch)
            if step == first or i == 0:
                windows = following.result()
                following = pool.submit(texts.windows, N_CTX, (seed, epoch + 1))
            yield windows[i * BATCH : (i + 1) * BATCH]


def train(
    text: Path,
    held_out_text: Path,
    vocabulary: Path,
    out: Path,
    device: str,
    n_tokens: float,
    seconds: float,
    seed: int,
) -> None:
    """Train on n_tokens, for at most so many seconds; a second call goes on from training.pt.

    At the end model.pt (F16 matrices), demo-training.csv and routing.json are in `out`.
    """
    start = time.monotonic()
    tokenizer = Tokenizer.from_file(str(vocabulary))
    texts = Texts(text, tokenizer)
    held_out = cut(np.array(tokenizer.encode(held_out_text.read_text(encoding="utf-8")).ids), N_CTX)
    sizes = Sizes(n_vocab=tokenizer.get_vocab_size())
    n_steps = int(n_tokens / (BATCH * N_CTX))
    training = Training(sizes, torch.from_numpy(held_out).long().to(device), device, n_steps, seed)
    state = out / "training.pt"
    if state.exists():
        training.load(state)
    n_seen = n_tokens / len(texts.ids)
    print(
        f"{len(texts.ends)} texts, {len(texts.ids) / 1e6:.1f} M tokens, seen {n_seen:.1f} times", flush=True
    )
    began, first = time.monotonic(), training.step
    for batch in batches(texts, first, n_steps, seed):
        training.train_on(batch.to(device, non_blocking=True).long())
        if training.step - first == 200:
            speed = 100 * BATCH * N_CTX / (time.monotonic() - began)
            print(f"{speed / 1e6:.2f} M tokens a second", flush=True)
        elif training.step - first == 100:
            began = time.monotonic()
        if time.monotonic() - start > seconds:
            break
    training.save(state)
    if training.step == n_steps:
        finish(training, out)


def finish(training: Training, out: Path) -> None:
    """Write what the other stages need."""
    with (out / "demo-training.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *training.rows])
    model = training.model
    result = {}
    for model.quantize in (True, False):
        result["rounded" if model.quantize else "plain"] = evaluate(model, training.held_out)
    print({k: math.exp(r["loss"]) for k, r in result.items()})
    (out / "routing.json").write_text(json.dumps(result))
    weights = {k: w.cpu() for k, w in model.tensors().items()}
    halved = {k: w.half() if w.ndim > 1 and "gate_inp" not in k else w.clone() for k, w in weights.items()}
    torch.save(halved, out / "model.pt")
