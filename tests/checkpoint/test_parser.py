"""The header: every value type arrives as it was written, by our own writer and by gguf-py's."""

import json
import math

import gguf
import numpy as np
import pytest

from gguf_moe.checkpoint import open_checkpoint


@pytest.mark.parametrize("version", [2, 3])
def test_scalars(gguf_writer, write, version):
    g = gguf_writer
    values = {
        "u8": (g.U8, 255),
        "i8": (g.I8, -128),
        "u16": (g.U16, 65535),
        "i16": (g.I16, -32768),
        "u32": (g.U32, 2**32 - 1),
        "i32": (g.I32, -(2**31)),
        "u64": (g.U64, 2**64 - 1),
        "i64": (g.I64, -(2**63)),
        "f32": (g.F32, 0.5),
        "f64": (g.F64, math.pi),
        "bool": (g.BOOL, True),
        "str": (g.STR, "Straße ✓"),
    }
    keys = [g.key(f"test.{name}", type_id, value) for name, (type_id, value) in values.items()]
    with open_checkpoint(write(g.file(keys, version=version))) as checkpoint:
        for name, (_, value) in values.items():
            assert checkpoint.metadata[f"test.{name}"] == value
            assert checkpoint.metadata.type_name(f"test.{name}") == name
        assert type(checkpoint.metadata["test.bool"]) is bool
        assert len(checkpoint.metadata) == len(values)


def test_arrays(gguf_writer, write):
    g = gguf_writer
    keys = [
        g.array("u8", g.U8, [0, 255]),
        g.array("i16", g.I16, [-1, 2, -3]),
        g.array("u64", g.U64, [2**64 - 1]),
        g.array("f32", g.F32, [0.5, -math.inf]),
        g.array("bool", g.BOOL, [True, False]),
        g.array("none", g.F32, []),
        g.array("str", g.STR, ["", "a", "ü"]),
        g.array("no_str", g.STR, []),
    ]
    metadata = open_checkpoint(write(g.file(keys))).metadata
    assert {key: list(metadata[key]) for key in metadata} == {
        "u8": [0, 255],
        "i16": [-1, 2, -3],
        "u64": [2**64 - 1],
        "f32": [0.5, -math.inf],
        "bool": [True, False],
        "none": [],
        "str": ["", "a", "ü"],
        "no_str": [],
    }
    assert metadata.type_name("i16") == "arr[i16, 3]"
    assert metadata.type_name("no_str") == "arr[str, 0]"
    assert metadata["bool"].dtype == np.bool_
    with pytest.raises(ValueError, match="read-only"):
        metadata["u8"][0] = 1


def test_bytes_that_are_not_utf8(gguf_writer, write):
    g = gguf_writer
    keys = [g.array("tokens", g.STR, [b"\xff\x80", b"ok"]), g.key("text", g.STR, b"a\xffb")]
    metadata = open_checkpoint(write(g.file(keys))).metadata
    assert [token.encode("utf-8", "surrogateescape") for token in metadata["tokens"]] == [b"\xff\x80", b"ok"]
    assert metadata["text"] == "a\ufffdb"


def test_reads_what_gguf_py_writes(tmp_path):
    path = tmp_path / "model.gguf"
    rng = np.random.default_rng(0)
    tensors = {
        "token_embd.weight": rng.standard_normal((5, 64), np.float32),
        "blk.0.ffn_gate_exps.weight": rng.standard_normal((3, 7, 256), np.float32),
        "output_norm.weight": rng.standard_normal(64, np.float32),
    }
    qtypes = {"token_embd.weight": "Q8_0", "blk.0.ffn_gate_exps.weight": "Q4_K", "output_norm.weight": "F32"}
    written = {}
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_uint32("qwen3moe.block_count", 1)
    writer.add_float32("qwen3moe.rope.freq_base", 1e6)
    writer.add_bool("qwen3moe.expert_weights_norm", True)
    writer.add_array("tokenizer.ggml.tokens", ["<s>", "Ġthe", "日本"])
    writer.add_array("tokenizer.ggml.token_type", [3, 1, 1])
    writer.add_array("qwen3moe.scales", [0.25, 0.5])
    for name, values in tensors.items():
        qtype = gguf.GGMLQuantizationType[qtypes[name]]
        if qtype == gguf.GGMLQuantizationType.Q4_K:  # gguf-py can only read it
            written[name] = rng.integers(0, 256, (3, 7, 144), np.uint8)
        else:
            written[name] = gguf.quantize(values, qtype)
        writer.add_tensor(name, written[name], raw_dtype=qtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    with open_checkpoint(path) as checkpoint:
        metadata = checkpoint.metadata
        assert metadata.architecture == "qwen3moe"
        assert metadata.arch.integer("block_count") == 1
        assert metadata.arch.number("rope.freq_base") == 1e6
        assert metadata.arch.boolean("expert_weights_norm") is True
        assert metadata.strings("tokenizer.ggml.tokens") == ["<s>", "Ġthe", "日本"]
        assert metadata.integers("tokenizer.ggml.token_type").tolist() == [3, 1, 1]
        assert metadata.arch.numbers("scales").tolist() == [0.25, 0.5]
        assert list(checkpoint.tensors) == list(tensors)
        for name, values in tensors.items():
            tensor = checkpoint.tensor(name, shape=values.shape[::-1])
            assert tensor.qtype.name == qtypes[name]
            assert tensor.data.tobytes() == written[name].tobytes()


def test_large_vocabulary_opens_quickly_in_bounded_memory(gguf_writer, write, run_python):
    g, n = gguf_writer, 150_000
    keys = [
        g.key("general.architecture", g.STR, "llama"),
        g.array("tokenizer.ggml.tokens", g.STR, [f"Ġtoken{i}" for i in range(n)]),
        g.array("tokenizer.ggml.scores", g.F32, [-float(i) for i in range(n)]),
        g.array("tokenizer.ggml.token_type", g.I32, [1] * n),
        g.array("tokenizer.ggml.merges", g.STR, [f"Ġ{i} t" for i in range(n)]),
    ]
    # The timer counts the processor time of this process alone, so that a busy machine does not matter.
    script = """if True:
        import json, signal, sys, tracemalloc
        from gguf_moe.checkpoint import open_checkpoint
        signal.setitimer(signal.ITIMER_PROF, 0.5)
        open_checkpoint(sys.argv[1])
        signal.setitimer(signal.ITIMER_PROF, 0)
        tracemalloc.start()
        metadata = open_checkpoint(sys.argv[1]).metadata
        tokens, merges = (metadata.strings(f"tokenizer.ggml.{key}") for key in ("tokens", "merges"))
        print(json.dumps([len(tokens), tokens[-1], merges[-1], tracemalloc.get_traced_memory()[1]]))
    """
    n_tokens, token, merge, peak = json.loads(run_python(script, write(g.file(keys))))
    assert (n_tokens, token, merge) == (n, f"Ġtoken{n - 1}", f"Ġ{n - 1} t")
    assert peak < 50e6
