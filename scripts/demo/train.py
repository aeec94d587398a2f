"""Stage `train`: the mixture on the text, with a balanced router, the last third as Q4_K_M will round it."""

from __future__ import annotations

import csv
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from demo.mixture import Mixture, Sizes, router_losses

BATCH, N_CTX = 64, 512
PEAK_LR, WARM_UP = 2e-3, 100
BALANCE, Z = 0.02, 1e-4
JOINED_SHARE = 0.12  # of texts that follow each other after a blank line, as in the held-out file
QUANTIZED_FROM = 0.65  # of all steps
COLUMNS = ("step", "tokens", "lr", "loss", "held_out_loss", "balance", "min_share", "max_share")


def epoch(docs: list[np.ndarray], blank: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """All texts in a new order as one row of ids; most stand between BOS (0) and EOS (1)."""
    order = rng.permutation(len(docs))
    n_joined = int(JOINED_SHARE * len(docs))
    joined = [part for i in order[:n_joined] for part in (docs[i], blank)]
    bos, eos = np.array([0], np.int64), np.array([1], np.int64)
    single = [part for i in order[n_joined:] for part in (bos, docs[i], eos)]
    return np.concatenate(single + joined)


def windows(ids: np.ndarray, n: int) -> torch.Tensor:
    count = (len(ids) - 1) // n
    return torch.from_numpy(np.stack([ids[i * n : i * n + n + 1] for i in range(count)]))


def shares(chosen: list[torch.Tensor], n_expert: int) -> torch.Tensor:
    """The share of the choices of each layer that each expert gets: [n_layer, n_expert]."""
    return torch.stack([torch.bincount(i.flatten(), minlength=n_expert) / i.numel() for i in chosen]).cpu()


@torch.no_grad()
def evaluate(model: Mixture, held_out: torch.Tensor) -> dict:
    """Mean loss over the second half of each window, expert shares, and reuse by the next token per layer."""
    model.eval()
    losses, ids_of = [], []
    for part in held_out.split(BATCH):
        inputs = part[:, :-1].clone()
        inputs[:, 0] = 0
        logits, _, chosen = model(inputs)
        half = N_CTX // 2
        losses.append(
            F.cross_entropy(logits[:, half:].float().transpose(1, 2), part[:, half + 1 :], reduction="none")
        )
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
    return PEAK_LR * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def train(
    text: Path,
    held_out_text: Path,
    vocabulary: Path,
    out: Path,
    device: str,
    epochs: int,
    seconds: float,
    seed: int,
) -> None:
    """Write model.pt (F16 matrices), demo-training.csv and routing.json into `out`.

    Should the epochs take longer than `seconds`, there are fewer of them.
    """
    torch.manual_seed(seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    rng = np.random.default_rng(seed)
    tokenizer = Tokenizer.from_file(str(vocabulary))
    encoded = tokenizer.encode_batch(text.read_text(encoding="utf-8").strip().split("\n\n"))
    docs = [np.array(e.ids, np.int64) for e in encoded]
    blank = np.array(tokenizer.encode("\n\n").ids, np.int64)
    held_out = windows(np.array(tokenizer.encode(held_out_text.read_text(encoding="utf-8")).ids), N_CTX).to(
        device
    )
    sizes = Sizes(n_vocab=tokenizer.get_vocab_size())
    model = Mixture(sizes, dropout=0.1).to(device)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.95), fused=device != "cpu")
    per_epoch = (sum(map(len, docs)) // N_CTX) // BATCH
    n_steps, step, start = per_epoch * epochs, 0, time.monotonic()
    print(
        f"{len(docs)} texts, {sum(map(len, docs)) / 1e6:.1f} M tokens, "
        f"{per_epoch} steps an epoch, {n_steps} steps"
    )
    rows: list[tuple] = []
    while step < n_steps:
        batches = windows(epoch(docs, blank, rng), N_CTX)
        batches = batches[torch.from_numpy(rng.permutation(len(batches)))].to(device)
        for batch in batches.split(BATCH):
            if step == 60:
                speed = (time.monotonic() - start) / 60
                n_steps = min(n_steps, int(seconds / speed))
                print(f"{speed * 1e3:.0f} ms a step, {n_steps} steps")
            if len(batch) < BATCH or step >= n_steps:
                break
            model.quantize = step >= QUANTIZED_FROM * n_steps
            lr = learning_rate(step, n_steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            with torch.autocast(device, torch.bfloat16):
                logits, routers, chosen = model(batch[:, :-1])
                loss = F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
            balance, z = router_losses(routers, chosen, sizes.n_expert)
            (loss + BALANCE * balance + Z * z).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            if step % 50 == 0 or step == n_steps:
                use = shares(chosen, sizes.n_expert)
                test = evaluate(model, held_out)["loss"] if step % 100 == 0 or step == n_steps else None
                numbers = (lr, loss.item(), test, balance.item(), use.min().item(), use.max().item())
                rows.append(
                    (step, step * BATCH * N_CTX, *(round(n, 5) if n is not None else "" for n in numbers))
                )
                print(*rows[-1], f"{time.monotonic() - start:.0f}s")
    out.mkdir(parents=True, exist_ok=True)
    with (out / "demo-training.csv").open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *rows])
    result = {}
    for model.quantize in (True, False):
        result["rounded" if model.quantize else "plain"] = evaluate(model, held_out)
    print(json.dumps({k: math.exp(r["loss"]) for k, r in result.items()}), result["plain"]["shares"])
    (out / "routing.json").write_text(json.dumps(result))
    halved = {k: w.detach().cpu() for k, w in model.weights.items()}
    halved = {k: w.half() if w.ndim > 1 and "gate_inp" not in k else w for k, w in halved.items()}
    torch.save(halved, out / "model.pt")
