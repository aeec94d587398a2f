"""How a byte-level BPE tokenizer cuts a text into words before it merges bytes, by the name in the file.

A name (`tokenizer.ggml.pre`) stands for a list of regular expressions. Each one cuts the pieces that the one
before it left: what it matches becomes a piece, and so does what lies between two matches. The expressions
are those of the models' own tokenizer.json files where these are known, and else those of llama.cpp
(src/llama-vocab.cpp), whose engine can only approximate some. The syntax is Oniguruma's, as in the
tokenizers library.
"""

from __future__ import annotations

import difflib
import logging
from dataclasses import dataclass

from gguf_moe.checkpoint.metadata import Metadata
from gguf_moe.errors import OptionError, UnsupportedModelError

logger = logging.getLogger(__name__)

PRE_KEY = "tokenizer.ggml.pre"


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """What a pre-tokenizer's name says."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False  # a word that is a token as a whole is taken without merging
    add_bos: bool = False  # holds when the file has no tokenizer.ggml.add_bos_token
    force_bos: bool = False  # holds whatever the file says
    byte_level: bool = (
        True  # False: tokens are plain UTF-8 with U+2581 for a space, and <0xNN> for single bytes
    )


_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_PUNCTUATION = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"

_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_HAN_LAST = r"&&[^\p{Han}]]"

# A run of digits in groups of three that are counted from its end, as in 1|234|567.
_DIGIT_GROUPS = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"

_ASCII_PUNCTUATION = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
_HAN_AND_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_CJK_PUNCTUATION = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
_HAN_AND_HANGUL = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"

# The letters of the scripts with upper and lower case, as DeepSeek-LLM's tokenizer.json lists them.
_CASED_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-"
    "\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-"
    "\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf"
    "\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-"
    "\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc"
    "\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115"
    "\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e"
    "\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-"
    "\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a"
    "\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-"
    "\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)

_SENTENCE_MARKS = ".,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c"

_SCRIPTS_WITHOUT_SPACES = (
    "\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-\u0e7f"
    "\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff"
)


def _alternatives(*parts: str) -> str:
    return "|".join(parts)


def _cased_words(contraction: str = "", upper: str = _UPPER, lower: str = _LOWER) -> str:
    """Words that end where lower case is followed by upper case, as in "camel|Case"."""
    mark = r"[^\r\n\p{L}\p{N}]?"
    return f"{mark}{upper}*{lower}+{contraction}|{mark}{upper}+{lower}*{contraction}"


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = _alternatives(_CONTRACTION, _WORD, r"\p{N}{1,3}", _PUNCTUATION, _SPACES)
_QWEN2 = _alternatives(_CONTRACTION, _WORD, r"\p{N}", _PUNCTUATION, _SPACES)
_QWEN35 = _alternatives(
    _CONTRACTION,
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
    r"\p{N}",
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
    _SPACES,
)
_GPT4O = _alternatives(
    _cased_words(_CONTRACTION + "?"), r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", _SPACES
)
_TEKKEN = _alternatives(_cased_words(), r"\p{N}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", _SPACES)
_KIMI = _alternatives(
    r"[\p{Han}]+",
    _cased_words(_CONTRACTION + "?", _UPPER[:-1] + _HAN_LAST, _LOWER[:-1] + _HAN_LAST),
    r"\p{N}{1,3}",
    _PUNCTUATION,
    _SPACES,
)
_DEEPSEEK3 = _alternatives(
    _ASCII_PUNCTUATION + "[A-Za-z]+",
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
    r" ?[\p{P}\p{S}]+[\r\n]*",
    _SPACES,
)
_SPARK = _alternatives(
    _ASCII_PUNCTUATION + "[A-Za-z]+",
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+",
    r" ?[\p{P}\p{S}]+",
    r"[\r\n]|\s+(?!\S)|\s+",
)
_BAILING = _alternatives(
    r"'(?i:[sdmt]|ll|ve|re)",
    r"[^\r\n\p{L}\p{N}]?+\p{L}+",
    r"\p{N}",
    r" ?[^\s\p{L}\p{N}]++[\r\n]*",
    r"\s*[\r\n]|\s+(?!\S)|\s+",
)
_EXAONE_MOE = _alternatives(
    _CONTRACTION,
    r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+",
    r"\p{N}",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]?",
    r"\s*[\r\n]|\s+(?!\S)|\s+",
)
_JAIS2 = _alternatives(
    _CONTRACTION,
    _WORD,
    r"\p{N}{1,3}",
    _PUNCTUATION,
    r"\s*[\r\n]+",
    *(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)),
    r"\s{1,2}(?!\S)|\s{1}",
)
_MINICPM5 = _alternatives(_CONTRACTION, _WORD, r"\p{N}+", _PUNCTUATION, _SPACES)
_SEED_CODER = _alternatives(_CONTRACTION, _WORD, r"\p{N}{1}", r" ?[^\s\p{L}\p{N}\r\n]+", _SPACES)
_CHAMELEON = (
    "<sentinel:[0-9]+>",
    "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
    r"([\t\n]|    |  )",
    r"\p{N}",
    r"[\p{P}!-/:-@\[-`{-~]",
)
_YOUTU_SCRIPTS = (
    "[\uac00-\ud7a3\u3131-\u318e]+"
    "|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+"
    f"|[\u3105-\u312f]+|{_HAN_AND_KANA}"
)
_YOUTU = _alternatives(_cased_words(_CONTRACTION + "?"), r"\p{N}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", _SPACES)
_BLOOM = rf" ?[^(\s|{_SENTENCE_MARKS})]+"
_LINES = r"[^\n]+|[\n]+"

_DIGITS = r"\p{N}{1,3}"

DEFAULT = PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))
"""For files from before May 2024, which do not name one; right for few of them."""

# Every name that llama.cpp knows, but "whitespace", which is for text embeddings.
_FAMILIES = {
    "default": DEFAULT,
    "falcon-h1 falcon3 jina-v5-nano lfm2 llama-bpe llama-v3 llama3 midm-2.0 pixtral": PreTokenizer(
        (_LLAMA3,), ignore_merges=True, add_bos=True
    ),
    "glm4 glm5": PreTokenizer((_LLAMA3,), ignore_merges=True),
    "chatglm-bpe dbrx smaug-bpe": PreTokenizer((_LLAMA3,)),
    "deepseek-r1-qwen f2llmv2 grok-2 hunyuan kormo megrez qwen2 solar-open stablelm2": PreTokenizer(
        (_QWEN2,)
    ),
    "qwen35": PreTokenizer((_QWEN35,)),
    "laguna": PreTokenizer((_LINES, _QWEN2)),
    "gpt-4o kanana2 llama4 minimax-m2 talkie": PreTokenizer((_GPT4O,)),
    "granite-embed-multi-97m": PreTokenizer((_GPT4O,), ignore_merges=True),
    "cohere2moe tiny_aya": PreTokenizer((r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O)),
    "youtu": PreTokenizer((_YOUTU_SCRIPTS, _YOUTU), ignore_merges=True),
    "kimi-k2": PreTokenizer((_KIMI,)),
    "tekken": PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True),
    "deepseek-v3 hunyuan-dense hy_v4 joyai-llm": PreTokenizer((_DIGITS, _HAN_AND_KANA, _DEEPSEEK3)),
    "spark2_5": PreTokenizer((_DIGITS, _HAN_AND_KANA, _SPARK, r"\p{N}")),
    "afmoe": PreTokenizer((_DIGIT_GROUPS, f"[{_SCRIPTS_WITHOUT_SPACES}]+", _DEEPSEEK3)),
    "deepseek-llm": PreTokenizer(
        (r"[\r\n]", rf"\s?[{_CASED_LETTERS}]+", _CJK_PUNCTUATION, r"\s+$", _HAN_AND_HANGUL, r"\p{N}+")
    ),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_AND_HANGUL, r"\p{N}")),
    "bailingmoe bailingmoe2 llada-moe": PreTokenizer((_BAILING,)),
    "a.x-4.0 exaone4 gigachat gpt-2 granite-docling jais jina-de jina-es jina-v1-en jina-v2-code jina-v2-de "
    "jina-v2-es mellum modern-bert mpt olmo phi-2 roberta-bpe trillion": PreTokenizer((_GPT2,)),
    "codeshell command-r exaone mellum2 minerva-7b refact smollm starcoder": PreTokenizer((r"\p{N}", _GPT2)),
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "chameleon": PreTokenizer((*_CHAMELEON, _GPT2), add_bos=True),
    "exaone-moe": PreTokenizer((_EXAONE_MOE,)),
    "jais-2": PreTokenizer((_JAIS2,)),
    "minicpm5": PreTokenizer((_DIGITS, _MINICPM5), ignore_merges=True),
    "seed-coder": PreTokenizer((_SEED_CODER,)),
    "ufakzeka": PreTokenizer((_alternatives(_WORD, r"\p{N}", _PUNCTUATION, _SPACES),)),
    "superbpe": PreTokenizer((r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    "bloom gpt3-finnish poro-chat": PreTokenizer((_BLOOM,)),
    "viking": PreTokenizer((_BLOOM, r"\p{N}")),
    "gemma4 granite-embed-multi-311m": PreTokenizer((_LINES,), force_bos=True, byte_level=False),
    "sarvam-moe": PreTokenizer((_LINES,), byte_level=False),
}

PRE_TOKENIZERS = {name: found for names, found in _FAMILIES.items() for name in names.split()}


def find_pre_tokenizer(metadata: Metadata, pre: str | None = None) -> PreTokenizer:
    """The pre-tokenizer that the file names, or the one named `pre` in its place.

    Raises UnsupportedModelError when the file's name is not in the table, OptionError when `pre` is not.
    """
    if pre is not None:
        if pre not in PRE_TOKENIZERS:
            raise OptionError(f"There is no pre-tokenizer named {pre!r}; {_names_like(pre)}.")
        return PRE_TOKENIZERS[pre]
    name = metadata.string(PRE_KEY, "default") or "default"
    if name not in PRE_TOKENIZERS:
        raise UnsupportedModelError(
            f"{metadata.path}: {PRE_KEY} is {name[:80]!r}, a pre-tokenizer that is not implemented; "
            f"{_names_like(name)}. Name the one to use with --pre-tokenizer NAME (pre= in Python)."
        )
    if name == "default":
        logger.warning(
            "%s: the file names no pre-tokenizer (%s), so that the model may read some words wrongly; "
            "convert it again, or name the right one with --pre-tokenizer NAME (pre= in Python).",
            metadata.path,
            PRE_KEY,
        )
    return PRE_TOKENIZERS[name]


def _names_like(name: str) -> str:
    close = difflib.get_close_matches(name[:80], PRE_TOKENIZERS, n=4, cutoff=0.5)
    if close:
        return f"the names most like it are {', '.join(close)}"
    return f"the known names are {', '.join(sorted(PRE_TOKENIZERS))}"
