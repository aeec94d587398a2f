"""Which tokens may come next. llguidance (extra `json`) follows the grammar; this is its one user."""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from typing import Any

import numpy as np

from gguf_moe.constrain.grammar import WHITE_SPACE, Grammar, Kind
from gguf_moe.constrain.preface import NO_PREFACE
from gguf_moe.errors import ConstraintError, OptionError
from gguf_moe.text.tokenizer import Tokenizer

MAX_TOKEN_BYTES = 1000
"""Longer tokens are never allowed: llguidance has no room for them."""
MAX_LEXER_STATES = 50_000
"""About 2 kB each."""
N_KEPT = 16
"""Compiled grammars that are kept: clients ask for the same one again."""

# The model chooses among all tokens that fit, as in llama.cpp. Otherwise llguidance cuts texts that
# are certain into tokens.
_OPTIONS = '%llguidance {"no_forcing": true}'

_EXCERPT = re.compile(r"\s*(\d+ \||\^+\s*$)")
"""Lines of a message that quote a grammar, and point into it."""


class Matchers:
    """Compiles grammars for one vocabulary. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._vocabulary: Any = None
        self._compiled: OrderedDict[tuple[Grammar, str], Any] = OrderedDict()
        self._lock = threading.Lock()

    def matcher(self, grammar: Grammar, preface: str = NO_PREFACE) -> Matcher:
        """A new matcher at the beginning of a text. preface: a start rule of `preface_of`.

        Raises OptionError if the grammar is wrong, or the package llguidance is missing.
        """
        key = grammar, preface
        with self._lock:
            if key not in self._compiled:
                self._compiled[key] = self._compile(grammar, preface)
            self._compiled.move_to_end(key)
            while len(self._compiled) > N_KEPT:
                self._compiled.popitem(last=False)
            return Matcher(self._compiled[key].deep_copy(), self._tokenizer.n_vocab)

    def _compile(self, grammar: Grammar, preface: str) -> Any:
        """An LLMatcher."""
        try:
            from llguidance import LLMatcher, LLParserLimits
        except ModuleNotFoundError as e:
            raise OptionError(
                f"{grammar.kind.value} needs the package {e.name}; "
                "install it with: pip install 'gguf-moe[json]'"
            ) from None
        self._vocabulary = self._vocabulary or _vocabulary(self._tokenizer)
        limits = LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)
        grammars = [{"lark_grammar": f"{_OPTIONS}\n{preface}"}, _translated(grammar) | {"name": "answer"}]
        found = LLMatcher(self._vocabulary, json.dumps({"grammars": grammars}), log_level=0, limits=limits)
        found.compute_bitmask()  # so that a grammar which no text fits is found before any work
        if found.is_error():
            raise OptionError(f"{grammar.kind.value} cannot be used: {_told(found.get_error())}.")
        return found


class Matcher:
    """Where one text is in its grammar. It never lets a token through that does not fit."""

    def __init__(self, inner: Any, n_vocab: int):
        self._inner = inner
        self._n_vocab = n_vocab

    @property
    def is_finished(self) -> bool:
        """Whether the text is complete, and nothing can be added to it."""
        return bool(self._inner.is_stopped() and not self._inner.is_error())

    def mask(self, logits: np.ndarray) -> None:
        """Set the logits of all tokens that do not fit to -inf. logits: float32 [n_vocab], changed in place.

        Tokens that end a generation fit where the text may end. Raises ConstraintError if none fits.
        """
        bits = np.frombuffer(self._inner.compute_bitmask(), np.uint8)
        if self._inner.is_error():
            raise self._error()
        fits = np.unpackbits(bits, bitorder="little", count=self._n_vocab).view(bool)
        n = min(len(logits), self._n_vocab)
        np.copyto(logits[:n], -np.inf, where=~fits[:n])
        logits[n:] = -np.inf
        if logits.max() == -np.inf:
            raise ConstraintError("no token of the model fits the schema or grammar here; change it.")

    def accept(self, token: int) -> None:
        """Go on behind a token. Raises ConstraintError if it does not fit."""
        if not self._inner.consume_token(token):
            raise self._error()

    def _error(self) -> ConstraintError:
        told = _told(self._inner.get_error())
        return ConstraintError(
            f"the text could not be kept to the schema or grammar ({told}); use a simpler one."
        )


class _Words:
    """A vocabulary as llguidance's TokenizerWrapper wants it."""

    def __init__(self, tokenizer: Tokenizer):
        ids = range(tokenizer.n_vocab)
        self.eos_token_id = min(tokenizer.eog_ids, default=None)
        self.bos_token_id = tokenizer.bos_id
        texts = [tokenizer.token_bytes(i) for i in ids]
        self.tokens = [text if len(text) <= MAX_TOKEN_BYTES else b"" for text in texts]
        self.special_token_ids = [i for i in ids if tokenizer.is_control(i) or i in tokenizer.eog_ids]

    def __call__(self, text: str | bytes) -> list[int]:
        """Only for grammars that force tokens, which ours do not."""
        raise NotImplementedError


def _vocabulary(tokenizer: Tokenizer) -> Any:
    """An LLTokenizer. Takes about a second for 100,000 tokens."""
    from llguidance import LLTokenizer, TokenizerWrapper

    return LLTokenizer(TokenizerWrapper(_Words(tokenizer)), eos_token=sorted(tokenizer.eog_ids) or None)


def _translated(grammar: Grammar) -> dict[str, Any]:
    """The grammar in llguidance's form. Raises OptionError."""
    from llguidance import LLMatcher, regex_to_lark
    from llguidance.gbnf_to_lark import any_to_lark

    match grammar.kind:
        case Kind.JSON_SCHEMA:
            written = LLMatcher.grammar_from_json_schema(grammar.text, {"whitespace_pattern": WHITE_SPACE})
            found: dict[str, Any] = json.loads(written)["grammars"][0]
            return found
        case Kind.REGEX:
            return {"lark_grammar": f"start: /{regex_to_lark(grammar.text, 'dw')}/"}
        case Kind.TOOL_CHOICE:
            return {"lark_grammar": grammar.text}
        case Kind.RULES:
            try:
                return {"lark_grammar": any_to_lark(grammar.text)}
            except Exception as e:  # it raises whatever it meets
                raise OptionError(f"grammar is neither Lark nor GBNF: {_told(str(e))}.") from None


def _told(message: str) -> str:
    """The beginning of llguidance's message, as a part of a sentence."""
    lines = message.replace("<non-verbose/>", "").replace("NoExtensionBias", "no text fits").splitlines()
    said = [line for line in lines if not _EXCERPT.match(line)]
    return " ".join(" ".join(said).split())[:200].rstrip(".,; ") or "it is not valid"
