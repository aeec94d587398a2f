"""Which file of a repository a name means."""

import pytest

from gguf_moe.errors import OptionError
from gguf_moe.hub.names import HubName, choose, parse_name, quants_of

PARTS = [f"Q5_K_M/big-Q5_K_M-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
PATHS = [
    "README.md",
    "big-Q4_K_M.gguf",
    "big-Q8_0.gguf",
    "big-UD-Q4_K_M.gguf",
    "big-q6_k.gguf",
    *PARTS,
    "big-IQ2_XS-00001-of-00002.gguf",
    "imatrix_big.gguf",
    "mmproj-F16.gguf",
]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hf:owner/name", HubName("owner/name")),
        ("hf:owner/name.v1-GGUF:Q4_K_M", HubName("owner/name.v1-GGUF", quant="Q4_K_M")),
        ("hf:owner/name/sub/x.gguf", HubName("owner/name", file="sub/x.gguf")),
    ],
)
def test_names_are_read_and_written(text, name):
    assert parse_name(text) == name
    assert str(name) == text


@pytest.mark.parametrize(
    "text",
    [
        *("hf:", "hf:name", "hf:a/b/c", "hf:a/b:", "hf:a/b:Q4/x.gguf", "a/b"),
        *("hf:../b", "hf:a/-b", "hf:a/b--c", "hf:a/b..c", "hf:a/b.git", "hf:a/" + "b" * 97),
    ],
)
def test_other_names_are_refused(text):
    with pytest.raises(OptionError, match="must be hf:OWNER/NAME"):
        parse_name(text)


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        (HubName("o/n"), ["big-Q4_K_M.gguf"]),
        (HubName("o/n", quant="q8_0"), ["big-Q8_0.gguf"]),
        (HubName("o/n", quant="UD-Q4_K_M"), ["big-UD-Q4_K_M.gguf"]),
        (HubName("o/n", quant="Q6_K"), ["big-q6_k.gguf"]),
        (HubName("o/n", quant="Q4_K"), []),
        (HubName("o/n", quant="F16"), []),
        (HubName("o/n", quant="Q5_K_M"), PARTS),
        (HubName("o/n", quant="IQ2_XS"), []),  # its second part is missing
        (HubName("o/n", file=PARTS[1]), PARTS),
        (HubName("o/n", file="mmproj-F16.gguf"), ["mmproj-F16.gguf"]),
        (HubName("o/n", file="README.md"), []),
    ],
    ids=str,
)
def test_the_file_that_is_meant(name, chosen):
    assert choose(reversed(PATHS), name) == chosen


def test_without_the_usual_quantizations_the_first_is_taken():
    assert choose(["x.Q6_K.gguf", "mmproj.gguf", "x.IQ2_M.gguf"], HubName("o/n")) == ["x.IQ2_M.gguf"]


def test_quantizations_are_listed_for_messages():
    assert quants_of(PATHS) == ["Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "UD-Q4_K_M"]
