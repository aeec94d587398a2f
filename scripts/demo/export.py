"""Stage `export`: the trained weights as a GGUF file, and llama.cpp's Q4_K_M of it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import random_model
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from model_file import Tensor, write_tensors

from demo.mixture import Sizes

DESCRIPTION = (
    "A small mixture of experts that writes simple stories and dialogues for children. "
    "It shows gguf-moe at work; it knows nothing."
)
SOURCE = (
    "Trained from scratch on stories and dialogues along outlines of this project, in which "
    "SmolLM2-135M-Instruct (HuggingFaceTB, Apache-2.0) wrote sentences; "
    "see docs/demo-model.md and scripts/train_demo.py."
)
SMOLLM2_URL = "https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct"


def add_metadata(writer: GGUFWriter, sizes: Sizes) -> None:
    writer.add_type("model")
    writer.add_name("gguf-moe demo")
    writer.add_description(DESCRIPTION)
    writer.add_license("apache-2.0")
    writer.add_languages(["en"])
    writer.add_tags(["text-generation", "mixture-of-experts", "stories"])
    writer.add_dataset_count(1)
    writer.add_dataset_name(0, "Stories and dialogues with sentences by SmolLM2")
    writer.add_dataset_description(0, SOURCE)
    writer.add_dataset_url(0, SMOLLM2_URL)
    writer.add_file_type(LlamaFileType.ALL_F32)
    writer.add_block_count(sizes.n_layer)
    writer.add_context_length(sizes.n_ctx_train)
    writer.add_embedding_length(sizes.n_embd)
    writer.add_feed_forward_length(sizes.n_ff)
    writer.add_head_count(sizes.n_head)
    writer.add_head_count_kv(sizes.n_head_kv)
    writer.add_key_length(sizes.n_embd_head)
    writer.add_value_length(sizes.n_embd_head)
    writer.add_rope_dimension_count(sizes.n_embd_head)
    writer.add_rope_freq_base(sizes.rope_freq_base)
    writer.add_layer_norm_rms_eps(sizes.eps)
    writer.add_expert_count(sizes.n_expert)
    writer.add_expert_used_count(sizes.n_expert_used)
    writer.add_vocab_size(sizes.n_vocab)


def add_vocabulary(writer: GGUFWriter, path: Path) -> int:
    """The vocabulary of a tokenizer's JSON. Returns the number of tokens."""
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if i < 2 else TokenType.NORMAL for i in range(len(tokens))])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    return len(tokens)


def export(checkpoint: Path, vocabulary: Path, f32: Path, q4_k_m: Path) -> None:
    """Write both files."""
    import torch

    weights = {k: w.float().numpy() for k, w in torch.load(checkpoint, weights_only=True).items()}
    writer = GGUFWriter(f32, "llama")
    n_layer = 1 + max(int(k.split(".")[1]) for k in weights if k.startswith("blk."))
    n_vocab, n_embd = weights["token_embd.weight"].shape
    add_metadata(writer, Sizes(n_vocab=n_vocab, n_embd=n_embd, n_layer=n_layer))
    if add_vocabulary(writer, vocabulary) != n_vocab:
        raise SystemExit(f"{vocabulary}: the checkpoint has another vocabulary of {n_vocab} tokens")
    tensors = [
        Tensor(name, w.shape, GGMLQuantizationType.F32, partial(np.ascontiguousarray, w))
        for name, w in weights.items()
    ]
    write_tensors(writer, tensors)
    random_model.quantize(f32, q4_k_m, "Q4_K_M")
    print(f"{q4_k_m}: {q4_k_m.stat().st_size / 1e6:.2f} MB")
