"""Every kernel file compiles for every generation of GPUs, by the compiler that CuPy uses."""

import pytest

from gguf_moe_kernels.cuda import source
from gguf_moe_kernels.cuda.library import OPTIONS

CAPABILITIES = (70, 86, 89, 90, 120)
# To see that it compiles, the compiler and the assembler need not optimize: that is most of their time.
QUICKLY = "--Ofast-compile=max"


def check(nvrtc, file, qtype, capabilities, *options):
    text = source.module_source(file, qtype)
    for capability in capabilities:
        compiled, log = nvrtc.compile(text, [*OPTIONS, *options, f"--gpu-architecture=sm_{capability}"])
        assert compiled, f"{capability}: {log}"


@pytest.mark.parametrize(
    ("number", "file", "qtype"), [(i, *module) for i, module in enumerate(source.modules())]
)
def test_it_compiles(nvrtc, number, file, qtype):
    # What depends on the generation does not depend on the type: one type meets all, the others one each.
    one_each = qtype not in (None, "q4_k")
    check(
        nvrtc, file, qtype, CAPABILITIES[number % 5 : number % 5 + 1] if one_each else CAPABILITIES, QUICKLY
    )


@pytest.mark.slow
@pytest.mark.parametrize(("file", "qtype"), source.modules())
def test_it_compiles_as_on_a_device(nvrtc, file, qtype):
    check(nvrtc, file, qtype, CAPABILITIES)


def test_a_name_says_file_function_and_type(monkeypatch):
    monkeypatch.setattr(source, "_is_typed", lambda file: file == "matmul")
    assert source.split_name("matmul.matmul_id_iq4_nl") == ("matmul", "matmul_id_iq4_nl", "iq4_nl")
    assert source.split_name("activation.quantize_q8_0") == ("activation", "quantize_q8_0", None)


def test_structs_have_the_fields_of_python():
    text = source.preamble("q4_k")
    assert "struct RmsNorm { long long x; long long weight; long long bias; long long out;" in text
    assert "#define TYPED(name) name##_q4_k\n" in text
    assert "constexpr float OAI_LIMIT = 0x1.c000000000000p+2f;\n" in text
