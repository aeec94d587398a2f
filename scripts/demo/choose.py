"""Which of SmolLM2's sentences are good enough to stay in a text."""

from __future__ import annotations

import re
from itertools import pairwise

from demo.prompts import KINDS, Prompt

MIN_LOGP = -1.75  # mean per token; what SmolLM2 itself finds unlikely is mostly nonsense
N_WORDS = range(2, 19)
N_REPEATED = 4  # so many words in a row stand only once in a text
MAX_CUTS = 3  # half sentences that go, as no good end was found
STORY_WORDS, DIALOGUE_WORDS = range(84, 281), range(25, 231)
SENTENCE_END = re.compile(r"[.!?]\"?$")
WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")
QUOTATION = re.compile(r"\"[^\"]*\"?")
OUT_OF_PLACE = re.compile(
    r"\b(story|stories|tale|chapter|character|characters|title|moral|narrator|author|reader|readers|assistant|ai|"
    r"scene|dialogue|example|theme|dead|death|died|die|kill|killed|blood|war|drunk|wife|husband|marry|married)\b",
    re.IGNORECASE,
)
NOT_TOLD = frozenset(  # in a told sentence, outside of quotations
    (
        "i me my mine we us our ours you your yours is are am isn't aren't has hasn't will won't can can't "
        "do does don't doesn't i'm i'll it's that's there's let's"
    ).split()
)
PRONOUNS = (frozenset("he him his himself".split()), frozenset("she her hers herself".split()))
COMMON = frozenset(
    (
        "a about after again all also always an and any as asked at away back be because been before began "
        "but by came could day did didn't down even ever every everyone felt few first for found from gave "
        "get go good got had happy have he heart her here hers herself him himself his home how i if in "
        "into it it's its just knew know last left like little long looked love loved made make many me "
        "more most much my never new next no not now of off old on once one only or other others our out "
        "over put ran really right sad said sat saw see she small smile smiled so some something soon still "
        "take than thank that the their them then there they thing things this thought time to together "
        "told too took tried two until up us very wanted was wasn't we went were what when where which "
        "while who why will wish with without world would yes you your"
    ).split()
)


def words_of(text: str) -> list[str]:
    return [word.lower() for word in WORD.findall(text)]


def stem(word: str) -> str:
    """So that "lamps" and "lamp", "walked" and "walking" count as the same."""
    for ending in ("'s", "ing", "ed", "es", "s", "e"):
        if word.endswith(ending) and len(word) - len(ending) > 2:
            return word.removesuffix(ending)
    return word


def topic_of(words: list[str]) -> set[str]:
    """Stems of the words that say what a text is about."""
    return {stem(word) for word in words if word not in COMMON}


def _n_grams(words: list[str]) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + N_REPEATED]) for i in range(len(words) - N_REPEATED + 1)}


class Judge:
    """Judges the sentences for one prompt's text."""

    def __init__(self, prompt: Prompt, simple: frozenset[str]) -> None:
        given = words_of(f"{prompt.question} {' '.join(prompt.parts)}")
        self.simple = simple
        self.hero = prompt.names[0]
        self.names = {name.lower() for name in prompt.names}
        self.is_dialogue = prompt.parts[0].startswith(f"{self.hero}:")
        self.topic = topic_of(given) - self.names
        others = [group for group in (*PRONOUNS, *({kind} for kind in KINDS)) if group.isdisjoint(given)]
        self.foreign = frozenset() if self.is_dialogue else frozenset().union(*others)

    def is_good(self, sentence: str, before: str, logp: float, is_free: bool) -> bool:
        """Whether SmolLM2's `sentence` may follow `before`; a free one stands between whole sentences."""
        words = words_of(sentence)
        if (
            logp < MIN_LOGP
            or len(words) not in N_WORDS
            or not SENTENCE_END.search(sentence)
            or (before + sentence).count('"') % 2
            or self.hero not in before + sentence
            or OUT_OF_PLACE.search(sentence)
            or not self.foreign.isdisjoint(words)
            or not self._are_known(sentence, words, before)
        ):
            return False
        if is_free and not self.is_dialogue:
            told = words_of(QUOTATION.sub(" ", sentence))
            if not told or not NOT_TOLD.isdisjoint(told):
                return False
        # The first sentence tells who the hero is, in words that need not come back.
        is_first = not re.search(r"[.!?]\"?\s", before)
        said = words_of(before)
        is_strict = is_free and not self.is_dialogue
        return (is_first or self._is_on_topic(words, said, is_strict)) and self._is_new(words, said)

    def _are_known(self, sentence: str, words: list[str], before: str) -> bool:
        """No new names, and only words that many texts have."""
        names = {name for name in self.names if name in before.lower()} | {self.hero.lower()}
        capital = re.findall(r"(?<=[a-z,:] )[A-Z][a-z']+", sentence)
        return all(w in self.simple or w.removesuffix("'s") in names for w in words) and all(
            word.lower().removesuffix("'s") in names or word.startswith("I'") for word in capital
        )

    def _is_on_topic(self, words: list[str], said: list[str], is_strict: bool) -> bool:
        """Mostly words that have to do with the outline, or with what was said."""
        topic = topic_of(words) - self.names
        n_known = len(topic & (self.topic | topic_of(said)))
        return len(topic) - n_known <= n_known + (0 if is_strict else 2)

    def _is_new(self, words: list[str], before: list[str]) -> bool:
        """Says no four words again, and does not stutter."""
        grams = _n_grams(words)
        if len(grams) < len(words) - N_REPEATED + 1 or not grams.isdisjoint(_n_grams(before)):
            return False
        if len(words) < N_REPEATED and words == before[-len(words) :]:
            return False
        rare = [word for word in words if word not in COMMON]
        return all(a != b for a, b in pairwise(words)) and len(set(rare)) > len(rare) - 2


def choose(prompt: Prompt, gaps: list[str], logp: list[float], simple: frozenset[str]) -> str | None:
    """The outline with the good sentences in its gaps; None if it cannot do without the bad ones."""
    if len(gaps) != len(prompt.parts) - 1:
        return None
    judge = Judge(prompt, simple)
    text, n_cut = prompt.parts[0], 0
    goes_on = True  # a gap ends with its first bad sentence
    for sentence, p, part in zip(gaps, logp, prompt.parts[1:], strict=True):
        is_free = SENTENCE_END.search(text) is not None and text.count('"') % 2 == 0
        if goes_on and judge.is_good(sentence, text, p, is_free):
            text += sentence
        elif goes_on and not is_free:
            cut = without_last_start(text)
            n_cut += 1
            if cut is None or n_cut > MAX_CUTS or judge.is_dialogue:
                return None
            text = cut
            goes_on = False
        else:
            goes_on = False
        text += part
        goes_on |= part != ""
    return text if len(text.split()) in (DIALOGUE_WORDS if judge.is_dialogue else STORY_WORDS) else None


def without_last_start(text: str) -> str | None:
    """The text without the half sentence at its end; an open quotation is closed. None if nothing is left."""
    if SENTENCE_END.search(text):
        return text + '"'
    start = re.match(r"(.*[.!?]\"?)[ \n][^.!?\n]*$", text, re.DOTALL)
    if start is None or start[1].count('"') % 2:
        return None
    return start[1]
