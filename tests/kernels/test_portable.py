"""Kernels for the plainest CPU of this kind give the bits that the reference and the host's CPU give."""

import json
import platform

import pytest

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86-64 only")

SCRIPT = """if True:
    import ctypes, hashlib, json, pathlib, sys
    import numpy as np
    from gguf_moe_kernels import structs
    from gguf_moe_kernels.activations import ACTIVATION_FORMAT, ActivationFormat
    from gguf_moe_kernels.cpu.library import KernelLibrary
    from gguf_moe_kernels.cpu.target import Target
    from gguf_moe_kernels.quants import GGMLType
    from gguf_moe_kernels.ref import activations, matmul, ops

    library, rng = KernelLibrary(pathlib.Path(sys.argv[1])), np.random.default_rng(3)

    def call(name, *arguments):
        numbers = [a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments]
        function = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * len(numbers))
        return function(library.address(name))(*numbers)

    def digest(array):
        return hashlib.sha256(array.tobytes()).hexdigest()

    results = {}
    for qtype in (GGMLType.Q4_K, GGMLType.Q8_0, GGMLType.F16, GGMLType.F32):
        rows = rng.integers(0, 256, (5, qtype.row_size(512)), np.uint8)
        blocks = rows.reshape(5, -1, qtype.type_size)
        if qtype is GGMLType.F32:
            rows = rng.standard_normal((5, 512), np.float32).view(np.uint8)
        else:
            width = 4 if qtype is GGMLType.Q4_K else 2
            halves = rng.uniform(-0.1, 0.1, (*blocks.shape[:2], width // 2)).astype(np.float16)
            blocks[..., :width] = halves.view(np.uint8)
        x = rng.standard_normal((3, 512), np.float32)
        activation = ACTIVATION_FORMAT[qtype]
        x = x if activation is ActivationFormat.F32 else activations.quantize(activation, x)
        out = np.zeros((3, 5), np.float32)
        row_size = rows.shape[1]
        call(qtype.name.lower() + ".tile", rows, row_size, 5, 512, x, x.strides[0], 0, 3, out, 20)
        results[qtype.name] = [digest(out), digest(matmul.tile(qtype, rows, x))]

    def op(name, struct, arguments):
        packed = np.zeros((), struct)
        for field, value in arguments.items():
            packed[field] = value.ctypes.data if isinstance(value, np.ndarray) else value
        chunk = 0
        while call(name, packed, chunk, 0):
            chunk += 1

    n, past = np.array([2], np.int64), np.array([0], np.int64)
    x = rng.standard_normal((2, 80), np.float32)
    x[0, :6] = 65519, 6e-8, 2.98e-8, -1e-9, 2049, 2051  # the ends and the ties of float16
    cache, expected = np.zeros((2, 80), np.float16), np.zeros((2, 80), np.float16)
    op("elementwise.kv_store_f16", structs.KV_STORE,
       {"x": x, "cache": cache, "n": 80, "n_past": past, "rows": n})
    ops.kv_store(x, expected, 0)
    results["kv_store"] = [digest(cache), digest(expected)]
    q, scores, out, expected = x.copy(), np.zeros(2, np.float32), np.zeros_like(x), np.zeros_like(x)
    heads = {"n_head": 2, "n_head_kv": 2, "scale": 0.2}
    op("attention.attention_f16_1", structs.ATTENTION,
       {"q": q, "k": cache, "v": cache, "out": out, "n_embd_head_k": 40, "n_embd_head_v": 40,
        "n_past": past, "scores": scores, "scores_stride": 8, "rows": n, **heads})
    ops.attention(q, cache, cache, expected, 0, **heads)
    results["attention"] = [digest(out), digest(expected)]
    gate, up = 5 * rng.standard_normal((2, 80), np.float32), x
    expected = gate.copy()
    op("elementwise.swiglu", structs.SWIGLU, {"gate": gate, "up": up, "n": 80, "rows": n})
    ops.swiglu(expected, up)
    results["swiglu"] = [digest(gate), digest(expected)]
    for kind in ActivationFormat:
        if kind is not ActivationFormat.F32:
            x = rng.standard_normal((2, 256), np.float32)
            out = np.zeros((2, kind.row_size(256)), np.uint8)
            op("activation.quantize_" + kind.value, structs.QUANTIZE,
               {"x": x, "n": 256, "out": out, "out_stride": out.shape[1], "rows": n})
            results[kind.name + " activations"] = [digest(out), digest(activations.quantize(kind, x))]

    # Every float16, and float32s at, between and beside them.
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = halves[np.isfinite(halves)]
    exact = halves.astype(np.float32)
    out = np.zeros_like(exact)
    call("f16.dequantize", halves, out, len(out))
    results["f16 to f32"] = [digest(out), digest(exact)]
    steps = np.sort(np.append(exact, np.float32([-65536, 65536])))
    ties = (steps[1:] + steps[:-1]) / 2
    beside = (np.nextafter(ties, np.float32(sign * np.inf)) for sign in (-1, 1))
    x = np.concatenate([steps, ties, *beside])
    out = np.zeros((1, len(x)), np.float16)
    op("elementwise.kv_store_f16", structs.KV_STORE,
       {"x": x, "cache": out, "n": len(x), "n_past": past, "rows": np.array([1], np.int64)})
    with np.errstate(over="ignore"):
        results["f32 to f16"] = [digest(out), digest(x.astype(np.float16))]
    print(json.dumps({"cpu": Target.host().cpu, "results": results}))
"""


@pytest.mark.parametrize("cpu", ["x86-64", "host"])
def test_kernels_of_a_target_give_the_reference_bits(cpu, tmp_path, kernel_cache, run_python):
    environment = {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": ""} if cpu != "host" else {}
    out = json.loads(
        run_python(SCRIPT, tmp_path if environment else kernel_cache, timeout=120, **environment)
    )
    if environment:
        assert out["cpu"] == cpu
    wrong = [name for name, (kernel, reference) in out["results"].items() if kernel != reference]
    assert not wrong
