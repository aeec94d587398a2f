#!/usr/bin/env python3
"""Ask llama.cpp for the ids of hard texts by each pre-tokenizer that it knows, and store them.

  python scripts/pretokenizer_fixtures.py --peer-python PEER tests/text/data

PEER is an interpreter that has llama-cpp-python. Reads pretokenizers.inp, writes pretokenizers.json.xz. For
each name llama.cpp reads a vocabulary with this name, whose merges would make one token of each text as a
whole: so where a text is cut shows in its ids.
"""

from __future__ import annotations

import argparse
import json
import lzma
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter
from llama_cpp_peer import ask_vocabulary

from gguf_moe.text.bpe import byte_level_alphabet
from gguf_moe.text.pretokenizers import PRE_TOKENIZERS

SEPARATOR = "\n__ggml_vocab_test__\n"
NORMAL, CONTROL, BYTE = 1, 3, 6  # token types
BOS = "<bos>"


def letters_of(text: str, byte_level: bool) -> list[str]:
    """What a text's merges begin with."""
    if not byte_level:
        return list(text.replace(" ", "\u2581"))
    letter = {byte: char for char, byte in byte_level_alphabet().items()}
    return [letter[byte] for byte in text.encode()]


def train(texts: list[list[str]]) -> Iterator[tuple[str, str]]:
    """Merges, the most frequent pair first, until each text is one token."""
    tokens = sorted({letter for text in texts for letter in text})
    number = {token: i for i, token in enumerate(tokens)}
    end = -1
    ids = np.array([i for text in texts for i in (*(number[letter] for letter in text), end)])
    while (inside := (ids[:-1] != end) & (ids[1:] != end)).any():
        pairs, counts = np.unique(ids[:-1][inside] << 32 | ids[1:][inside], return_counts=True)
        left, right = divmod(int(pairs[counts.argmax()]), 1 << 32)
        yield tokens[left], tokens[right]
        found = np.flatnonzero((ids[:-1] == left) & (ids[1:] == right)).tolist()
        taken = [at for i, at in enumerate(found) if not i or at != found[i - 1] + 1 or left != right]
        ids[taken] = len(tokens)
        ids = np.delete(ids, np.array(taken) + 1)
        tokens.append(tokens[left] + tokens[right])


def vocabulary(texts: list[str], byte_level: bool) -> dict[str, Any]:
    """The keys tokenizer.ggml.* but for the name of the pre-tokenizer."""
    letters = [letters_of(text, byte_level) for text in texts]
    merges = [" ".join(pair) for pair in train(letters)]
    alphabet = [] if byte_level else [f"<0x{byte:02X}>" for byte in range(256)]
    plain = byte_level_alphabet() if byte_level else sorted({x for text in letters for x in text})
    made = dict.fromkeys(merge.replace(" ", "") for merge in merges)
    tokens = [BOS, *alphabet, *dict.fromkeys([*plain, *made])]
    types = [CONTROL] + [BYTE] * len(alphabet)
    types += [NORMAL] * (len(tokens) - len(types))
    return {"model": "gpt2", "tokens": tokens, "token_type": types, "merges": merges, "bos_token_id": 0}


def write(path: Path, values: dict[str, Any], pre: str) -> None:
    """A file that has nothing but a vocabulary."""
    writer = GGUFWriter(path, "llama")
    writer.add_tokenizer_model(values["model"])
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(values["tokens"])
    writer.add_token_types(values["token_type"])
    writer.add_token_merges(values["merges"])
    writer.add_bos_token_id(values["bos_token_id"])
    writer.add_add_bos_token(False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", required=True, metavar="PEER")
    parser.add_argument("directory", type=Path)
    arguments = parser.parse_args()
    texts = (arguments.directory / "pretokenizers.inp").read_bytes().decode().split(SEPARATOR)
    vocabularies = {kind: vocabulary(texts, kind == "bytes") for kind in ("bytes", "letters")}
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, pre in sorted(PRE_TOKENIZERS.items()):
            kind = "bytes" if pre.byte_level else "letters"
            path = Path(folder) / f"{name}.gguf"
            write(path, vocabularies[kind], name)
            answer = ask_vocabulary(arguments.peer_python, path, texts, Path(folder) / name)
            ids = [row[1:] if row[:1] == [0] else row for row in answer["ids"]]
            same = results.setdefault(json.dumps(ids), {"vocabulary": kind, "names": [], "ids": ids})
            same["names"].append(name)
            print(name, flush=True)
    stored = {"version": answer["version"], "vocabularies": vocabularies, "results": list(results.values())}
    packed = lzma.compress(json.dumps(stored, ensure_ascii=False).encode(), preset=9)
    (arguments.directory / "pretokenizers.json.xz").write_bytes(packed)


if __name__ == "__main__":
    main()
