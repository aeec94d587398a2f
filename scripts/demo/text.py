"""Stages `sample` and `collect`: SmolLM2-135M-Instruct writes stories, the good ones stay."""

from __future__ import annotations

import json
import random
import re
import time
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache, lru_cache, partial
from itertools import count
from multiprocessing import get_context
from pathlib import Path

from demo.choose import WORD, choose, words_of
from demo.prompts import Prompt, make_prompts
from gguf_moe.checkpoint import open_checkpoint
from gguf_moe.text.tokenizer import Tokenizer, build_tokenizer

TEMPERATURE, MIN_P = 0.7, 0.1
N_CTX = 576
CHUNK = 1024  # prompts of one seed
N_AHEAD = 48  # chunks of prompts that are made ahead
N_SIMPLE = 2500  # words that SmolLM2 may use; the outlines' words come on top
HELD_OUT_BYTES = 200_000
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"  # its own template's
HEAD = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
GAP, END = -1, -2  # in a script: SmolLM2 writes a sentence; the text is finished
WRITABLE = re.compile(r"[A-Za-z ,.!?'\"-]*[A-Za-z,.!?'\"]")
ENDS = re.compile(r"[.!?]\"?$")


@cache
def smollm2_tokenizer(path: Path) -> Tokenizer:
    with open_checkpoint(path) as checkpoint:
        return build_tokenizer(checkpoint.metadata)


@lru_cache(maxsize=16)
def prompts_of_chunk(i: int, seed: int) -> list[Prompt]:
    return make_prompts(CHUNK, 100_000 * seed + i)


def scripts_of_chunk(smollm2: Path, i: int, seed: int) -> list[tuple[int, list[int]]]:
    """Numbered token ids: SmolLM2's chat and the outline, with gaps where it writes."""
    encode = partial(smollm2_tokenizer(smollm2).encode, bos=False)
    head, scripts = encode(HEAD), []
    for number, prompt in enumerate(prompts_of_chunk(i, seed), i * CHUNK):
        ids = encode(f"{prompt.question}<|im_end|>\n<|im_start|>assistant\n{prompt.parts[0]}")
        for part in prompt.parts[1:]:
            ids += [GAP, *encode(part)]
        scripts.append((number, [*head, *ids, END]))
    return scripts


def scripts(smollm2: Path, first: int, seed: int, deadline: float) -> Iterator[tuple[int, list[int]]]:
    """Scripts until the deadline, made ahead by other processes."""
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        pending = deque(pool.submit(scripts_of_chunk, smollm2, first + i, seed) for i in range(N_AHEAD))
        for i in count(first + N_AHEAD):
            for numbered in pending.popleft().result():
                if time.monotonic() > deadline:
                    pool.shutdown(cancel_futures=True)
                    return
                yield numbered
            pending.append(pool.submit(scripts_of_chunk, smollm2, i, seed))


def sample(smollm2: Path, folder: Path, device: str, seconds: float, batch: int, seed: int) -> None:
    """Sample for so many seconds into a file in `folder`; a second call goes on where the first stopped."""
    import torch

    from demo.sampler import Model, Sampler, Vocabulary

    start = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    # The file's name is the chunk that comes next.
    first = max((int(path.stem) for path in folder.glob("*.jsonl")), default=0)
    torch.manual_seed(seed + first)
    tokenizer = smollm2_tokenizer(smollm2)
    pieces = [tokenizer.decode([i], special=False) for i in range(tokenizer.n_vocab)]
    vocabulary = Vocabulary(
        [WRITABLE.fullmatch(piece) is not None for piece in pieces],
        [ENDS.search(piece) is not None for piece in pieces],
        [piece.count('"') % 2 == 1 for piece in pieces],
    )
    head = tokenizer.encode(HEAD, bos=False)
    sampler = Sampler(Model(smollm2, device, batch, N_CTX), vocabulary, TEMPERATURE, MIN_P, head)
    print(f"ready after {time.monotonic() - start:.0f} s", flush=True)
    new, last, n_texts, n_tokens = folder / "new", 0, 0, 0
    with new.open("w", encoding="utf-8") as file:
        for texts in sampler.write(scripts(smollm2, first, seed, time.monotonic() + seconds)):
            for number, gaps, logp in texts:
                words = ["".join(pieces[i] for i in gap) for gap in gaps]
                file.write(json.dumps([number, words, [round(p, 2) for p in logp]]) + "\n")
                last, n_texts, n_tokens = max(last, number), n_texts + 1, n_tokens + sum(map(len, gaps))
    new.rename(folder / f"{last // CHUNK + 1:05}.jsonl")
    print(
        f"{n_texts} texts, {n_tokens / 1e6:.1f} M tokens written, {time.monotonic() - start:.0f} s",
        flush=True,
    )


def gap_words(lines: list[str]) -> Counter[str]:
    """In how many texts SmolLM2 wrote each word in small letters, so that names do not count; I'm is none."""
    return Counter(
        w.lower()
        for line in lines
        for w in set(WORD.findall(" ".join(json.loads(line)[1])))
        if w.islower() or w.startswith("I'")
    )


def good_texts(lines: list[str], seed: int, simple: frozenset[str]) -> list[str]:
    """The texts that are worth learning from."""
    texts = []
    for number, gaps, logp in map(json.loads, lines):
        prompt = prompts_of_chunk(number // CHUNK, seed)[number % CHUNK]
        text = choose(prompt, gaps, logp, simple)
        if text:
            texts.append(text)
    return texts


def collect(folder: Path, train: Path, held_out: Path, seed: int) -> None:
    """All good texts, each once, in a fixed random order: the first 200 kB held out, the rest to train on.

    Two texts count as the same if they begin with the same thirty words. Texts are divided by a blank line.
    """
    lines = [line for path in sorted(folder.glob("*.jsonl")) for line in path.open(encoding="utf-8")]
    parts = [lines[i : i + CHUNK] for i in range(0, len(lines), CHUNK)]
    with ProcessPoolExecutor() as pool:
        counts = sum(pool.map(gap_words, parts[:64]), Counter())
        outlines = words_of(" ".join(" ".join(p.parts) for p in prompts_of_chunk(0, seed)))
        simple = frozenset([word for word, _ in counts.most_common(N_SIMPLE)] + outlines)
        found = pool.map(partial(good_texts, seed=seed, simple=simple), parts)
        texts = list({" ".join(words_of(t)[:30]): t for batch in found for t in batch}.values())
    random.Random(seed).shuffle(texts)
    size = n_held_out = 0
    while size < HELD_OUT_BYTES and n_held_out < len(texts) // 10:
        size += len(texts[n_held_out]) + 2
        n_held_out += 1
    held_out.write_text("\n\n".join(texts[:n_held_out]) + "\n", encoding="utf-8")
    train.write_text("\n\n".join(texts[n_held_out:]) + "\n", encoding="utf-8")
    print(
        f"{len(texts)} of {len(lines)} texts, {n_held_out} held out, "
        f"{train.stat().st_size / 1e6:.1f} MB to train on"
    )
