"""What SmolLM2 is asked to write, and the words that it gets: short stories and dialogues.

A prompt is a question and an outline. The outline's sentences are given; where it has a gap, SmolLM2 writes
one sentence. So the plot holds together, and names and pronouns fit.

Outlines are in plots.txt and dialogues.txt, divided by blank lines. There `_` is a gap: after a whole
sentence for a new one, after half a sentence for its end. `(a|b)` is one of both at random. `{H}` is the
hero, `{he}` and so on are the hero's pronouns. `{F}` is the friend; `{friend}` says who that is, too.
"""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import NamedTuple


class Prompt(NamedTuple):
    """`question` is the user's turn. `parts` are the given pieces of the text; between them are the gaps."""

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
WOMEN = ("girl", "girl", "girl", "princess", "baker", "woman", "farmer")
MEN = ("boy", "boy", "boy", "prince", "farmer", "fisherman", "man")
ANIMALS = (
    "bear cat chicken cow crab deer dog donkey dragon duck elephant fox frog goat hedgehog horse kitten "
    "lion monkey mouse owl panda parrot penguin pig pony puppy rabbit robin sheep snail squirrel tiger "
    "turtle wolf"
).split()
RELATIVES = {
    True: ("sister", "aunt", "cousin", "neighbor"),
    False: ("brother", "uncle", "cousin", "neighbor"),
}
KINDS = frozenset((*WOMEN, *MEN, *ANIMALS))
TRAITS = (
    "little young old brave shy happy lonely curious clever lazy kind funny small hungry proud sleepy "
    "quiet playful gentle grumpy tiny careful noisy friendly"
).split()
PLACES = (
    "the forest|the village|the garden|the meadow|the valley|the park|the old castle|the apple orchard|"
    "the harbor|the woods|the big field|the old mill|the hills|the green valley|the beach|the little wood"
).split("|")
HOMES = (
    "a green forest|a small village|a big city|a snowy mountain|a deep valley|"
    "a house by the sea|a house on an island|a house on a hill|a meadow|a cottage in the woods|"
    "a tree house|an old castle|a lighthouse|a small town|a house with a red roof"
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
    "Once upon a time,_",
    "Once upon a time_",
    "There was once a {trait} {who} named {H} who lived in {home}._",
    "Long ago, in {home}, there lived a {trait} {who} named {H}._",
    "Long ago, there was a {trait} {who} named {H}._",
    "In {home}, there lived a {trait} {who} named {H}._",
    "{H} was a {trait} {who}._",
    "{H} was a {trait} {who} who lived in {home}._",
    "{H} the {who} lived in {home}._",
    "{H} and {friend} lived in {home}._",
    "{H} and {friend} were (good|best) friends._",
    "One {weather} {when}, a {trait} {who} named {H}_",
    "One {weather} {when}, {H} the {who}_",
    "One {weather} {when}, {H} and {friend}_",
    "It was a {weather} {when}, and {H} the {who}_",
    "The {trait} {who} was called {H}._",
    "Every {when}, {H} the {who}_",
    "{H} had a {toy}._",
)
WHEN = ("morning", "evening", "summer day", "winter day", "afternoon", "spring morning")
WEATHER = ("sunny", "rainy", "cold", "warm", "windy", "quiet", "bright")
QUESTIONS = (
    "Write a short story for children about a {trait} {who} named {H}.",
    "Tell me a short story about a {trait} {who} named {H} and {friend}.",
    "Write a bedtime story about a {trait} {who} named {H}.",
    "Tell me a simple story about {H} the {who}.",
)
_FOLDER = Path(__file__).parent
PLOTS = [" ".join(p.split("\n")) for p in (_FOLDER / "plots.txt").read_text("utf-8").strip().split("\n\n")]
DIALOGUES = (_FOLDER / "dialogues.txt").read_text("utf-8").strip().split("\n\n")
DIALOGUE_SHARE = 0.06
CHOICE = re.compile(r"\(([^()]*\|[^()]*)\)")


def make_prompts(n: int, seed: int) -> list[Prompt]:
    """n prompts. The same seed gives the same prompts."""
    rng = random.Random(seed)
    return [_prompt(rng) for _ in range(n)]


def _prompt(rng: random.Random) -> Prompt:
    words = _words(rng)
    if rng.random() < DIALOGUE_SHARE:
        question = "Write a short dialogue between {H} and {F}."
        outline = _chosen(rng.choice(DIALOGUES), rng)
    else:
        question = rng.choice(QUESTIONS)
        opening, plot = (_chosen(rng.choice(texts), rng) for texts in (OPENINGS, PLOTS))
        outline = opening + rng.choice((" ", " ", "\n")) + _with_fewer_gaps(plot, rng)
    question, outline = (_with_articles(t.format(**words)) for t in (question, outline))
    # The blank before a gap is SmolLM2's to write: it belongs to its next token.
    return Prompt(question, re.split(r" ?_", outline), (words["H"], words["F"]))


def _words(rng: random.Random) -> dict[str, str]:
    is_girl, f_is_girl = rng.random() < 0.5, rng.random() < 0.5
    name = rng.choice(GIRLS if is_girl else BOYS)
    other = rng.choice([n for n in (GIRLS if f_is_girl else BOYS) if n != name])
    is_animal = rng.random() < 0.5
    his = "her" if is_girl else "his"
    kind = rng.choice(ANIMALS if is_animal else RELATIVES[f_is_girl])
    friend = f"{other} the {kind}" if is_animal else f"{his} {kind} {other}"
    if rng.random() < 0.4:
        friend = f"{his} friend {other}"
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
        "who": rng.choice(ANIMALS if is_animal else WOMEN if is_girl else MEN),
        "trait": rng.choice(TRAITS),
        "place": rng.choice(PLACES),
        "home": rng.choice(HOMES),
        "toy": rng.choice(TOYS),
        "food": rng.choice(FOODS),
        "when": rng.choice(WHEN),
        "weather": rng.choice(WEATHER),
    }


def _chosen(text: str, rng: random.Random) -> str:
    """The text with one of each `(a|b)`."""
    return CHOICE.sub(lambda match: rng.choice(match[1].split("|")), text)


def _with_fewer_gaps(plot: str, rng: random.Random) -> str:
    """The plot without some of the gaps between whole sentences, so that lengths differ."""
    return re.sub(r" _(?=[ ]|$)", lambda _: rng.choice(("", " _", " _")), plot)


def _with_articles(text: str) -> str:
    """ "a old owl" becomes "an old owl"."""
    return re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", text)
