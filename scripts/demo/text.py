"""Stage `text`: stories and dialogues written by SmolLM2-135M-Instruct, deduplicated and filtered."""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from demo.prompts import make_prompts
from gguf_moe.checkpoint import open_checkpoint
from gguf_moe.text.tokenizer import Tokenizer, build_tokenizer

TEMPERATURE, MIN_P = 0.7, 0.08
HELD_OUT_BYTES = 200_000
N_PROMPT, MAX_WORDS = 80, 140
WINDOW, MIN_VARIETY = 40, 0.58
"""Of so many words in a row, such a share must be different; a text ends where it begins to ramble."""
META = re.compile(
    r"as an ai|language model|assistant|here is|here's|note:|title:|the end\b|dialogue|stor(?:y|ies)\b|moral|"
    r"http|chapter|example|version|character|conversation|simple words|scene|narrat|sentence|prompt|teaches",
    re.IGNORECASE,
)
ALLOWED = re.compile(r"[A-Za-z0-9 \n.,!?;:'\"()-]+")
TYPOGRAPHY = str.maketrans(
    {
        "\u2019": "'",
        "\u2018": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u2026": "...",
        "\u2013": "-",
        "\u2014": "-",
    }
)


def sample(smollm2: Path, folder: Path, device: str, seconds: float, batch: int, seed: int) -> None:
    """Sample for so many seconds. Every batch is a file in `folder`, so a second call goes on."""
    import torch

    from demo.sampler import MAX_NEW_TOKENS, Sampler

    start = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = smollm2_tokenizer(smollm2)
    end_of_text, end_of_turn = (tokenizer.encode(t, bos=False)[0] for t in ("<|endoftext|>", "<|im_end|>"))
    sampler = Sampler(smollm2, device, N_PROMPT + MAX_NEW_TOKENS, batch)
    i = len(list(folder.glob("*.npy")))
    while time.monotonic() - start < seconds:
        began = time.monotonic()
        torch.manual_seed(seed + i)
        prompts = [tokenizer.encode(p.text, bos=False)[-N_PROMPT:] for p in make_prompts(batch, seed + i)]
        # In front stands what divides documents in SmolLM2's own training text, so no mask is needed.
        padded = [[end_of_text] * (N_PROMPT - len(ids)) + ids for ids in prompts]
        new = sampler.generate(torch.tensor(padded, device=device), end_of_turn, TEMPERATURE, MIN_P)
        np.save(folder / f"{i:03}.npy", new.to(torch.int32).cpu().numpy())
        print(f"batch {i}: {new.shape[0]} texts, {new.shape[1]} steps, {time.monotonic() - began:.1f} s")
        i += 1


def smollm2_tokenizer(path: Path) -> Tokenizer:
    with open_checkpoint(path) as checkpoint:
        return build_tokenizer(checkpoint.metadata)


def clean(text: str, is_dialogue: bool) -> str | None:
    """The good beginning of a text, with plain quotes and single newlines.

    It ends before the first sentence that speaks about the text or repeats an earlier one. None if too
    little is left.
    """
    text = re.sub(r"[ \t]+", " ", text.translate(TYPOGRAPHY))
    text = re.sub(r" *\n\s*", "\n", text).strip()
    pieces = text.splitlines(keepends=True) if is_dialogue else SENTENCE.findall(text)
    speakers = {piece.partition(":")[0] for piece in pieces[:2]}
    seen: set[tuple[str, ...]] = set()
    kept: list[str] = []
    so_far: list[str] = []
    for piece in pieces:
        words = plain_words(piece)
        grams = set(_ngrams(words, 7)) | ({tuple(words)} if len(words) > 2 else set())
        is_line = piece.partition(":")[0] in speakers if is_dialogue else ": " not in piece
        is_sentence = piece.rstrip().endswith((".", "!", "?", '"'))
        if (
            sum(len(k.split()) for k in kept) > MAX_WORDS
            or not is_line
            or not is_sentence
            or not ALLOWED.fullmatch(piece)
            or META.search(piece)
        ):
            break
        if not seen.isdisjoint(grams) or max(Counter(words).values(), default=0) > 6:
            break
        so_far += plain_words(piece)
        if len(so_far) >= WINDOW and len(set(so_far[-WINDOW:])) < MIN_VARIETY * WINDOW:
            break
        seen |= grams
        kept.append(piece)
    while kept and "".join(kept).count('"') % 2:
        kept.pop()
    result = "".join(kept).strip()
    if len(result.split()) < 45 or (is_dialogue and (len(kept) < 4 or len(speakers) != 2)):
        return None
    return result


SENTENCE = re.compile(r"[^.!?]*[.!?]+\"?\s*|[^.!?]+")


def plain_words(text: str) -> list[str]:
    """Words in lower case, without what stands around them."""
    return [plain for word in text.split() if (plain := word.lower().strip(".,!?;:\"'()-"))]


def _ngrams(words: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[i:] for i in range(n)), strict=False))


def clean_batch(smollm2: Path, path: Path, seed: int) -> list[str]:
    """The texts of one batch that are worth learning from."""
    tokenizer = smollm2_tokenizer(smollm2)
    end = tokenizer.encode("<|im_end|>", bos=False)[0]
    rows = np.load(path).tolist()
    texts = []
    for row, prompt in zip(rows, make_prompts(len(rows), seed + int(path.stem)), strict=True):
        n = row.index(end) if end in row else len(row)
        text = clean(prompt.opening + tokenizer.decode(row[:n], special=False), prompt.is_dialogue)
        if text:
            texts.append(text)
    return texts


def collect(smollm2: Path, folder: Path, train: Path, held_out: Path, seed: int) -> None:
    """All good texts, each once, in a fixed random order: the first 200 kB held out, the rest to train on.

    Two texts count as the same if they begin with the same twelve words. Texts are divided by a blank line.
    """
    paths = sorted(folder.glob("*.npy"))
    with ProcessPoolExecutor() as pool:
        batches = list(pool.map(clean_batch, [smollm2] * len(paths), paths, [seed] * len(paths)))
    texts = list({" ".join(plain_words(t)[:12]): t for batch in batches for t in batch}.values())
    random.Random(seed).shuffle(texts)
    size = n_held_out = 0
    while size < HELD_OUT_BYTES and n_held_out < len(texts) // 10:
        size += len(texts[n_held_out]) + 2
        n_held_out += 1
    held_out.write_text("\n\n".join(texts[:n_held_out]) + "\n", encoding="utf-8")
    train.write_text("\n\n".join(texts[n_held_out:]) + "\n", encoding="utf-8")
    print(f"{len(texts)} texts, {n_held_out} held out, {train.stat().st_size / 1e6:.1f} MB to train on")
