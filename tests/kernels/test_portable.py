"""Every tier of instructions gives the bits that the reference gives."""

import json
import platform

import llvmlite.binding as llvm
import pytest

from gguf_moe_kernels.cpu.simd import Tier

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="x86-64 only")

SCRIPT = """if True:
    import ctypes, gc, hashlib, json, pathlib, sys
    import numpy as np
    from gguf_moe_kernels import structs
    from gguf_moe_kernels.activations import ACTIVATION_FORMAT, ActivationFormat
    from gguf_moe_kernels.cpu.library import KernelLibrary
    from gguf_moe_kernels.cpu.simd import TIER
    from gguf_moe_kernels.quants import GGMLType
    from gguf_moe_kernels.ref import activations, kv_cache, matmul, ops, quants

    gc.disable()  # see cpu/worker.py
    library, rng = KernelLibrary(pathlib.Path(sys.argv[1])), np.random.default_rng(3)

    def call(name, *arguments):
        numbers = [a.ctypes.data if isinstance(a, np.ndarray) else a for a in arguments]
        function = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * len(numbers))
        return function(library.address(name))(*numbers)

    def digest(array):
        return hashlib.sha256(array.tobytes()).hexdigest()

    results = {}
    qtypes = [qtype for qtype in ACTIVATION_FORMAT if qtype.name in sys.argv[2:] or not sys.argv[2:]]
    for qtype, width in [(qtype, width) for qtype in qtypes for width in (768, 2048)]:
        activation = ACTIVATION_FORMAT[qtype]
        if qtype is GGMLType.F32:
            rows = rng.standard_normal((37, width), np.float32).view(np.uint8)
        else:
            rows = rng.integers(0, 256, (500, qtype.row_size(width)), np.uint8)
            rows = np.ascontiguousarray(rows[np.isfinite(quants.dequantize(qtype, rows)).all(axis=1)][:37])
        n = rows.shape[1] // qtype.type_size * qtype.block_size
        x = rng.standard_normal((6, n), np.float32)
        x = x if activation is ActivationFormat.F32 else activations.quantize(activation, x)
        expected = matmul.tile(qtype, rows, x)
        for n_x in (1, 2, 3, 4, 6):
            out = np.zeros((n_x, len(rows)), np.float32)
            name, row_size, stride = qtype.name.lower() + ".tile", rows.shape[1], out.strides[0]
            call(name, rows, row_size, len(rows), n, x, x.strides[0], 0, n_x, out, stride)
            results[f"{qtype.name} [{width}], {n_x} tokens"] = [digest(out), digest(expected[:n_x])]

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
    kv_cache.kv_store(x, expected, 0)
    results["kv_store"] = [digest(cache), digest(expected)]
    q, scores, out, expected = x.copy(), np.zeros(2, np.float32), np.zeros_like(x), np.zeros_like(x)
    heads = {"n_head": 2, "n_head_kv": 2, "scale": 0.2}
    op("attention.attention_f16_1", structs.ATTENTION,
       {"q": q, "k": cache, "v": cache, "out": out, "n_embd_head_k": 40, "n_embd_head_v": 40, "v_width": 80,
        "n_past": past, "scores": scores, "scores_stride": 8, "rows": n, **heads})
    kv_cache.attention(q, cache, cache, expected, 0, **heads)
    results["attention"] = [digest(out), digest(expected)]
    q = rng.standard_normal((2, 64), np.float32)
    cache, expected = np.zeros((2, 68), np.uint8), np.zeros((2, 68), np.uint8)
    op("elementwise.kv_store_q8_0", structs.KV_STORE,
       {"x": q, "cache": cache, "n": 64, "n_past": past, "rows": n})
    kv_cache.kv_store(q, expected, 0)
    results["kv_store in blocks"] = [digest(cache), digest(expected)]
    out, expected = np.zeros_like(q), np.zeros_like(q)
    op("attention.attention_q8_0_1", structs.ATTENTION,
       {"q": q, "k": cache, "v": cache, "out": out, "n_embd_head_k": 32, "n_embd_head_v": 32, "v_width": 64,
        "n_past": past, "scores": scores, "scores_stride": 8, "rows": n, **heads})
    kv_cache.attention(q, cache, cache, expected, 0, **heads)
    results["attention over blocks"] = [digest(out), digest(expected)]
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
    print(json.dumps({"tier": TIER.name, "results": results}))
"""


AVX2 = "+avx2,+fma,+f16c,+bmi,+bmi2"
AVX512 = f"{AVX2},+avx512f,+avx512bw,+avx512dq,+avx512vl,+avx512vnni"
CPUS = {
    "portable": ("x86-64", "", "PORTABLE"),
    "AVX2": ("x86-64", AVX2, "AVX2"),
    "AVX2, VNNI": ("x86-64", f"{AVX2},+avxvnni", "AVX2_VNNI"),
    "AVX-512": ("x86-64", AVX512, "AVX512"),
    "AVX-512, VBMI": ("x86-64", f"{AVX512},+avx512vbmi", "AVX512"),
}
"""Each with its tier; the last two differ in where codebooks are looked up."""


FEW = ("F32", "F16", "Q5_1", "Q8_0", "Q4_K", "Q6_K", "IQ4_XS", "IQ2_S", "TQ1_0", "MXFP4")
"""Types that together use all that differs between the tiers; to compile all takes long."""
DOTS = ("Q5_1", "Q8_0", "Q4_K", "IQ2_S", "MXFP4")
"""Types that together use all that VNNI changes."""
CODEBOOKS = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ3_S")
"""Types with kernels of their own for AVX2."""


@pytest.mark.parametrize(
    ("cpu", "qtypes"),
    [
        ("portable", FEW),
        ("AVX2", FEW + CODEBOOKS),
        ("AVX2, VNNI", DOTS),
        ("AVX-512, VBMI", ("IQ1_S", "IQ2_XS")),
        *(pytest.param(cpu, (), marks=pytest.mark.slow) for cpu in CPUS),
    ],
)
def test_kernels_for_another_cpu_give_the_reference_bits(cpu, qtypes, tmp_path, run_python):
    name, features, tier = CPUS[cpu]
    has = {name for name, there in llvm.get_host_cpu_features().items() if there}
    missing = {feature.removeprefix("+") for feature in features.split(",") if feature} - has
    if missing:
        pytest.skip(f"this CPU lacks {missing}")
    out = json.loads(
        run_python(SCRIPT, tmp_path, *qtypes, timeout=300, NUMBA_CPU_NAME=name, NUMBA_CPU_FEATURES=features)
    )
    assert out["tier"] == tier
    assert not [name for name, (kernel, reference) in out["results"].items() if kernel != reference]


def test_kernels_of_this_cpu_give_the_reference_bits(kernel_cache, run_python):
    out = json.loads(run_python(SCRIPT, kernel_cache, timeout=300))
    assert not [name for name, (kernel, reference) in out["results"].items() if kernel != reference]


@pytest.mark.parametrize(
    ("features", "tier"),
    [
        ("", "PORTABLE"),
        ("+avx", "PORTABLE"),
        ("+avx512vnni,+avx512bw", "PORTABLE"),
        ("+avx2", "AVX2"),
        ("+avx2,+avx512bw,+avx512vl", "AVX2"),
        ("+avx2,+avx512bw,+avx512vl,-avx512vnni", "AVX2"),
        ("+avx2,+avxvnni", "AVX2_VNNI"),
        ("+avx2,+avx512bw,+avx512vl,+avx512vnni", "AVX512"),
    ],
)
def test_a_tier_needs_all_its_features(features, tier):
    assert Tier.of(set(features.split(","))).name == tier
