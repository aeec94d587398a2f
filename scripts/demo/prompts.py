"""What SmolLM2 is asked to write, and the words that it gets: short stories and dialogues.

A prompt is a question and an outline. The outline's sentences are given; where it has a gap, SmolLM2 writes
up to three sentences. So the plot holds together, and names and pronouns fit.

Outlines are in plots.txt and dialogues.txt, divided by blank lines. There `_` is a gap: after a whole
sentence for new ones, after half a sentence for its end first. `(a|b)` is one of both at random. `{H}` is the
hero, `{he}` and so on are the hero's pronouns. `{F}` is the friend; `{friend}` says who that is, too.

A plot begins with the openings that it fits, `[trait=shy|lonely; home=a small village]`: the keys are
_words'. So an opening leads to plots of its own.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Prompt(NamedTuple):
    """`question` is the user's turn. Between the given `parts` of the text SmolLM2 writes one sentence each.

    An empty part stands between two sentences of the same gap.
    """

    question: str
    parts: list[str]
    names: tuple[str, ...]


GIRLS = (
    "Anna Clara Daisy Emma Grace Ivy Kate Lily Lucy Mia Nora Penny Rosie Ruby Sara Sophie Zoe Alice "
    "Bella Ella Eva Hannah Jane Julia Lena Luna Mary Molly Olive Polly Rose Sally Susan Tara"
).split()
BOYS = (
    "Ben Finn Hugo Jack Leo Max Milo Oscar Owen Sam Theo Tim Toby Tom Fred George Henry John Mark Nick "
    "Oliver Paul Peter Will Jim Bob Dan Luke Noah Jake Adam Eric Ray Ted"
).split()
WOMEN = ("girl", "woman", "princess", "queen", "witch", "fairy", "old woman")
MEN = ("boy", "man", "prince", "king", "wizard", "old man", "fisherman", "postman", "knight")
TRADES = (
    "baker cook farmer gardener merchant painter sailor shepherd shoemaker tailor "
    "waiter woodcutter giant snowman scarecrow"
).split()
ANIMALS = (
    "bear cat chicken cow crab deer dog donkey dragon duck elephant fox frog goat hedgehog horse kitten "
    "lion monkey mouse owl panda parrot penguin pig pony puppy rabbit robin sheep snail squirrel tiger "
    "turtle wolf badger"
).split()
RELATIVES = {
    True: ("sister", "aunt", "cousin", "neighbor", "grandmother"),
    False: ("brother", "uncle", "cousin", "neighbor", "grandfather"),
}
KINDS = frozenset((*WOMEN, *MEN, *TRADES, *ANIMALS))
PLACES = (
    "the forest|the village|the garden|the meadow|the valley|the park|the old castle|the apple orchard|"
    "the harbor|the woods|the big field|the old mill|the hills|the green valley|the beach|the little wood"
).split("|")
HOMES = (
    "a green forest|a small village|a big city|a snowy mountain|a deep valley|a farm|a green valley|"
    "a house by the sea|a house on an island|a house on a hill|a meadow|a cottage in the woods|"
    "a tree house|an old castle|a lighthouse|a small town|a house with a red roof|a house with a garden"
).split("|")
TOYS = (
    "red ball|blue kite|wooden boat|yellow hat|little bell|golden feather|paper plane|drum|warm blanket|"
    "toy train|silver key|music box|red scarf|shiny coin|toy horse|picture book|magic stone|"
    "box of paints|teddy bear|umbrella|lantern|puzzle|green marble|pair of boots|straw basket"
).split("|")
FOODS = (
    "apple pie|chocolate cake|loaf of bread|bowl of honey|jar of jam|basket of berries|bag of nuts|"
    "cookie|melon|piece of cheese|plate of pancakes|sandwich|bag of candy|plum cake|bowl of cherries"
).split("|")
OPENINGS = (
    "Once upon a time, there was a {trait} {who} named {H}._",
    "Once upon a time, there was a {trait} {who} named {H}. {He} lived in {home}._",
    "Once upon a time, in {home}, there lived a {trait} {who} named {H}._",
    "Once upon a time, a {trait} {who} named {H} lived in {home}._",
    "There was once a {trait} {who} named {H} who lived in {home}._",
    "There once was a {trait} {who}. {His} name was {H}._",
    "Long ago, in {home}, there lived a {trait} {who} named {H}._",
    "Many years ago, a {trait} {who} named {H} lived in {home}._",
    "Long ago, there was a {trait} {who} named {H}._",
    "Far away, in {home}, there was a {trait} {who} named {H}._",
    "In {home}, there lived a {trait} {who} named {H}._",
    "{H} was a {trait} {who}._",
    "{H} was a {trait} {who} who lived in {home}._",
    "{H} the {who} lived in {home}. {He} was very {trait}._",
    "{H} the {who} was always {trait}._",
    "{H} and {friend} lived in {home}._",
    "{H} and {friend} were (good|best) friends. {H} was {trait}._",
    "The {trait} {who} was called {H}._",
    "A {trait} {who} named {H} lived in {home} with {friend}._",
)
WEATHER_OPENINGS = (
    "One {weather} {when}, a {trait} {who} named {H}_",
    "One {weather} {when}, a {trait} {who} named {H} looked out of the window._",
    "One {weather} {when}, {H} the {who}_",
    "One {weather} {when}, {H} and {friend}_",
    "One {weather} {when}, {H} and {friend} were at home._",
    "It was a {weather} {when}, and {H} the {who}_",
    "It was a {weather} {when}. {H} was a {trait} {who} who lived in {home}._",
)
WHEN = ("morning", "evening", "day", "afternoon")
WEATHER = ("cold", "warm", "quiet")
QUESTIONS = (
    "Write a short story for children about a {trait} {who} named {H}.",
    "Tell me a short story about a {trait} {who} named {H} and {friend}.",
    "Write a bedtime story about a {trait} {who} named {H}.",
    "Tell me a simple story about {H} the {who}.",
)
N_SENTENCES = 3  # that SmolLM2 writes into a gap
GAP_SHARE = 0.8  # of the gaps after whole sentences, so that lengths differ
KIND_SHARE = 0.2  # of the sentences that begin with "The rabbit", not with its name
DIALOGUE_SHARE = 0.08
CHOICE = re.compile(r"\(([^()]*\|[^()]*)\)")


def _paragraphs(name: str, joint: str) -> list[str]:
    texts = (Path(__file__).parent / name).read_text("utf-8").strip().split("\n\n")
    return [joint.join(text.split("\n")) for text in texts]


def _with_tags(text: str) -> tuple[dict[str, list[str]], str]:
    """ "[trait=shy|old] {H} was" becomes {"trait": ["shy", "old"]} and "{H} was"."""
    tags, plot = text.removeprefix("[").split("] ", 1)
    pairs = (tag.split("=") for tag in tags.split("; "))
    return {key: values.split("|") for key, values in pairs}, plot


PLOTS = [_with_tags(text) for text in _paragraphs("plots.txt", " ")]
DIALOGUES = _paragraphs("dialogues.txt", "\n")


def make_prompts(n: int, seed: int) -> list[Prompt]:
    """n prompts. The same seed gives the same prompts."""
    rng = random.Random(seed)
    return [_prompt(rng) for _ in range(n)]


def _prompt(rng: random.Random) -> Prompt:
    if rng.random() < DIALOGUE_SHARE:
        words = _words(rng, {})
        question = "Write a short dialogue between {H} and {F}."
        outline = _chosen(rng.choice(DIALOGUES), rng)
    else:
        tags, plot = rng.choice(PLOTS)
        words = _words(rng, tags)
        question = rng.choice(QUESTIONS)
        has_time = not tags.keys().isdisjoint(("weather", "when", "kin"))
        opening = rng.choice(WEATHER_OPENINGS if has_time and rng.random() < 0.5 else OPENINGS)
        plot = _with_kinds(_with_fewer_gaps(plot, rng), rng)
        outline = _chosen(f"{opening}{rng.choice((' ', ' ', chr(10)))}{plot}", rng)
    question, outline = (_with_articles(t.format(**words)) for t in (question, outline))
    # The blank before a gap is SmolLM2's to write: it belongs to its next token.
    parts = re.split(r" ?_", outline)
    return Prompt(question, _with_more_sentences(parts), (words["H"], words["F"]))


def _words(rng: random.Random, tags: dict[str, list[str]]) -> dict[str, str]:
    """A hero, a friend and their world, such as the plot wants them."""

    def pick(key: str, others: Sequence[str]) -> str:
        return rng.choice(tags.get(key, others))

    is_animal, is_girl = rng.random() < 0.5, rng.random() < 0.5
    who = pick("who", ANIMALS if is_animal else ("girl", "woman") if is_girl else ("boy", "man"))
    is_animal = who in ANIMALS
    is_girl = who in WOMEN or (who not in MEN and is_girl)
    name = rng.choice(GIRLS if is_girl else BOYS)
    his = "her" if is_girl else "his"
    friend, other, f_is_girl = _friend(rng, tags.get("kin"), who, name, his)
    return {
        "H": name,
        "F": other,
        "he": "she" if is_girl else "he",
        "He": "She" if is_girl else "He",
        "his": his,
        "His": his.capitalize(),
        "him": "her" if is_girl else "him",
        "fhis": "her" if f_is_girl else "his",
        "friend": friend,
        "Friend": friend[0].upper() + friend[1:],
        "who": who,
        "trait": pick("trait", ("little", "young", "kind")),
        "place": pick("place", PLACES),
        "home": pick("home", HOMES),
        "toy": pick("toy", TOYS),
        "food": pick("food", FOODS),
        "when": pick("when", WHEN),
        "weather": pick("weather", WEATHER),
    }


def _friend(
    rng: random.Random, kin: list[str] | None, who: str, name: str, his: str
) -> tuple[str, str, bool]:
    """Who the friend is ("her aunt Mary"), the friend's name, and whether that is a girl or a woman."""
    is_girl = rng.random() < 0.5
    kind = rng.choice(kin or RELATIVES[is_girl])
    if kin:
        is_girl = kind in RELATIVES[True]
    other = rng.choice([n for n in (GIRLS if is_girl else BOYS) if n != name])
    if kin is None and rng.random() < 0.4:
        return f"{his} friend {other}", other, is_girl
    if kin is None and who in ANIMALS:
        return f"{other} the {rng.choice([a for a in ANIMALS if a != who])}", other, is_girl
    if kind.startswith("grand"):
        return f"{his} {kind}", kind.capitalize(), is_girl
    return f"{his} {kind} {other}", other, is_girl


def _chosen(text: str, rng: random.Random) -> str:
    """The text with one of each `(a|b)`."""
    return CHOICE.sub(lambda match: rng.choice(match[1].split("|")), text)


def _with_fewer_gaps(plot: str, rng: random.Random) -> str:
    """The plot without some of the gaps between whole sentences."""
    return re.sub(r" _(?=[ ]|$)", lambda _: " _" if rng.random() < GAP_SHARE else "", plot)


def _with_kinds(plot: str, rng: random.Random) -> str:
    """The plot where some sentences begin with "The rabbit" and not with the rabbit's name."""
    begins = r"(?<=[.!?_] )\{H\}(?= [a-z])"
    return re.sub(begins, lambda m: "The {who}" if rng.random() < KIND_SHARE else m[0], plot)


def _with_more_sentences(parts: list[str]) -> list[str]:
    """Each gap so often that SmolLM2 writes N_SENTENCES there; a half sentence's end is one of them."""
    return [parts[0], *(p for part in parts[1:] for p in (*[""] * (N_SENTENCES - 1), part))]


def _with_articles(text: str) -> str:
    """ "a old owl" becomes "an old owl"."""
    return re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", text)
