"""Every kernel file compiles for every generation of GPUs, by the compiler that CuPy uses."""

import pytest

from gguf_moe_kernels.cuda import source
from gguf_moe_kernels.cuda.library import OPTIONS


@pytest.mark.parametrize(("file", "qtype"), source.modules())
def test_it_compiles(nvrtc, file, qtype):
    text = source.module_source(file, qtype)
    # What depends on the generation does not depend on the type.
    is_alike = qtype not in (None, "q4_k", "q6_k", "q8_0")
    for capability in (90,) if is_alike else (70, 86, 89, 90, 120):
        compiled, log = nvrtc.compile(text, [*OPTIONS, f"--gpu-architecture=sm_{capability}"])
        assert compiled, f"{capability}: {log}"


def test_a_name_says_file_function_and_type(monkeypatch):
    monkeypatch.setattr(source, "_is_typed", lambda file: file == "matmul")
    assert source.split_name("matmul.matmul_id_iq4_nl") == ("matmul", "matmul_id_iq4_nl", "iq4_nl")
    assert source.split_name("activation.quantize_q8_0") == ("activation", "quantize_q8_0", None)


def test_structs_have_the_fields_of_python():
    text = source.preamble("q4_k")
    assert "struct RmsNorm { long long x; long long weight; long long bias; long long out;" in text
    assert "#define TYPED(name) name##_q4_k\n" in text
    assert "constexpr float OAI_LIMIT = 0x1.c000000000000p+2f;\n" in text
