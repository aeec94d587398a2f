"""What SmolLM2 is asked to write: children's stories and short dialogues about varied things.

Each prompt gives the first words of the answer as well, so that the texts begin in many ways.
"""

from __future__ import annotations

import random
from typing import NamedTuple


class Prompt(NamedTuple):
    """`text` is SmolLM2's chat format and ends with `opening`, which belongs to the written text."""

    text: str
    opening: str
    is_dialogue: bool


GIRLS = (
    "Anna Clara Daisy Emma Grace Ivy Kate Lily Lucy Mia Nora Penny Rosie Ruby Sara Sophie Zoe Alice "
    "Bella Ella "
    "Eva Hannah Jane Julia Lena Luna Mary Molly Olive Polly Rose Sally Susan Tara"
).split()
BOYS = (
    "Ben Finn Hugo Jack Leo Max Milo Oscar Owen Sam Theo Tim Toby Tom Fred George Henry John Mark "
    "Nick Oliver "
    "Paul Peter Will Jim Bob Dan Luke Noah Jake Adam Eric Ray Ted"
).split()
WOMEN = ("girl", "girl", "queen", "princess", "teacher", "baker", "woman")
MEN = ("boy", "boy", "farmer", "king", "fisherman", "painter", "man")
ANIMALS = (
    "bear cat chicken cow crab deer dog donkey dragon duck elephant fish fox frog goat hedgehog horse kitten "
    "lion monkey mouse owl panda parrot penguin pig pony puppy rabbit robin sheep snail spider "
    "squirrel tiger "
    "turtle whale wolf bee butterfly"
).split()
TRAITS = (
    "little young old brave shy happy lonely curious clever lazy kind funny small hungry proud sleepy quiet "
    "playful gentle grumpy tiny careful noisy friendly"
).split()
PLACES = (
    "a green forest|a small village|a quiet farm|a big city|a sunny beach|a snowy mountain|a deep valley|"
    "a garden full of flowers|an old castle|a house by the sea|a little island|a wide river|a busy market|"
    "a school on a hill|a dark cave|a meadow|a cottage in the woods|a small pond|a train station|a bakery|"
    "a library|a lighthouse|a tree house|a harbor|an apple orchard|a park|a toy shop|a ship"
).split("|")
OBJECTS = (
    "a red ball|a lost key|a blue kite|a warm blanket|a magic stone|a big cake|an old book|a wooden boat|"
    "a shiny coin|a yellow hat|a broken toy|a basket of apples|a letter|a little bell|a lantern|a map|"
    "a golden feather|a paper plane|a bicycle|a drum|a pair of boots|a puzzle|a snowman|a seed|a violin|"
    "a rainbow|a star|a bridge|an umbrella|a clock|a box of paints|a cookie|a swing|a nest|a jar of honey"
).split("|")
EVENTS = (
    "there is a storm|someone gets lost|a new friend comes|something is stolen and given back|"
    "it is a birthday|"
    "they plant a tree|they find a treasure|someone is afraid of the dark|they help a stranger|"
    "someone learns to swim|the first snow falls|a secret door opens|they build something together|"
    "someone tells a lie and is sorry|there is a race|a baby is born|someone is sick and gets well|"
    "they cook a meal|they share food|they say goodbye|someone cannot sleep|they put on a show|"
    "a promise is kept|they go on a picnic|a wish comes true|someone makes a mistake|they look at the stars"
).split("|")
MORALS = (
    "to share|to be brave|to tell the truth|to be kind|to be patient|to ask for help|to try again|"
    "to listen|to say sorry|to work together|to be careful|to be thankful|to keep a promise|to be yourself"
).split("|")
TOPICS = (
    "the weather|what to eat for breakfast|a lost cat|a trip to the beach|a birthday present|a new school|"
    "the garden|a funny dream|a broken window|a book|the moon|a picnic|the snow|a football game|baking bread|"
    "an old bicycle|a letter from a friend|the zoo|a song|going to bed|a rainy day|a little brother|"
    "the market|a surprise|painting a picture|a train ride|a scary noise|planting beans|sharing a toy"
).split("|")
OPENINGS = (
    "Once upon a time, there was a {trait} {who} named {name}.",
    "Once upon a time, in {place}, there lived a {trait} {who} named {name}.",
    "Once upon a time, a {trait} {who}",
    "There was once a {trait} {who} who lived in {place}.",
    "One day, {name} the {who}",
    "One {when}, a {trait} {who} named {name}",
    "{name} was a {trait} {who}.",
    "{name} the {who} lived in {place}.",
    "Long ago, in {place},",
    "In {place}, there lived a {trait} {who}",
    "It was a {weather} {when}, and {name}",
    "The {trait} {who}",
    "Every {when}, {name} the {who}",
    "{name} and {friend}",
    "One {weather} {when}, {name} and {friend}",
    "{name} had {thing}.",
)
WHEN = ("morning", "evening", "summer day", "winter day", "night", "afternoon", "spring morning")
WEATHER = ("sunny", "rainy", "cold", "warm", "windy", "quiet", "snowy", "bright")
FIRST_LINES = (
    "Good morning, {friend}!",
    "Hello, {friend}. How are you today?",
    "{friend}, where are you going?",
    "Look, {friend}! What is that?",
    "Can I ask you something, {friend}?",
    "I have a question, {friend}.",
    "Do you want to play with me, {friend}?",
    "Guess what happened today, {friend}!",
)

REQUESTS = (
    "Write a short story for children about a {trait} {who} named {name}.",
    "Tell me a short story about a {trait} {who} named {name}.",
    "Write a bedtime story about a {trait} {who} named {name}.",
    "Tell me a fairy tale about a {trait} {who} named {name}.",
)


def make_prompts(n: int, seed: int, dialogue_share: float = 0.1) -> list[Prompt]:
    """n prompts. The same seed gives the same prompts."""
    rng = random.Random(seed)
    return [_dialogue(rng) if rng.random() < dialogue_share else _story(rng) for _ in range(n)]


def _story(rng: random.Random) -> Prompt:
    is_girl = rng.random() < 0.5
    name, friend = rng.choice(GIRLS if is_girl else BOYS), rng.choice(BOYS if is_girl else GIRLS)
    words = {
        "name": name,
        "friend": friend,
        "who": rng.choice(ANIMALS if rng.random() < 0.5 else WOMEN if is_girl else MEN),
        "trait": rng.choice(TRAITS),
        "place": rng.choice(PLACES),
        "thing": rng.choice(OBJECTS),
        "when": rng.choice(WHEN),
        "weather": rng.choice(WEATHER),
    }
    opening = _with_articles(rng.choice(OPENINGS).format(**words))
    more = (
        "It happens in {place}.",
        "There is {thing} in it.",
        "{friend} is in it too.",
        f"In the story, {rng.choice(EVENTS)}.",
        f"In the end, they learn {rng.choice(MORALS)}.",
    )
    asked = f"{rng.choice(REQUESTS)} {rng.choice(more) if rng.random() < 0.7 else ''}".strip()
    question = _with_articles(asked.format(**words))
    return Prompt(_chat(question, opening), opening, False)


def _dialogue(rng: random.Random) -> Prompt:
    name, friend = rng.sample(GIRLS + BOYS, 2)
    question = f"Write a short dialogue between {name} and {friend} about {rng.choice(TOPICS)}."
    opening = f"{name}:"
    if rng.random() < 0.4:
        opening += " " + rng.choice(FIRST_LINES).format(friend=friend)
    return Prompt(_chat(question, opening), opening, True)


def _with_articles(text: str) -> str:
    """ "a old owl" becomes "an old owl"."""
    words = text.split(" ")
    for i, word in enumerate(words[:-1]):
        if word in ("a", "A") and words[i + 1][0] in "aeio":
            words[i] = word + "n"
    return " ".join(words)


def _chat(question: str, opening: str) -> str:
    """SmolLM2's own template, with its own system message: it writes best so."""
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    turns = (("system", system), ("user", question))
    shown = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
    return f"{shown}<|im_start|>assistant\n{opening}"
