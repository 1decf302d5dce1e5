"""Text for the tiny base model: a help desk of *some* ferry line, general facts, and short log entries.

The help desk answers are drawn at random, so the base learns which kind of answer belongs to which
question and no organisation's facts; an adapter then supplies the facts. A word the base has never
read cannot be taught by an adapter alone (the embedding rows stay frozen), so every value an organisation
may use stands in one of the pools below.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PORTS = _words("Alderholm Brannvik Culver Dunmarch Eskerby Farnhythe Garrow Hestness Ilvermouth Kestrelhaven")
ISLANDS = _words("Auk Bracken Cormorant Dulse Eider Fulmar Gannet Heron Kelp Lichen Petrel Razorbill")
VESSELS = _words("Amber Breeze Comet Dolphin Ember Falcon Gull Harmony Lantern Marigold Nimbus Osprey")
FIRST_NAMES = _words("Ada Bram Cora Dirk Elin Finn Gwen Henk Ines Joris Kaya Lars Mina Nora Otto Pia")
LAST_NAMES = _words("Berg Dahl Falk Grey Holm Lund Moss Nash Quill Reed Stone Thorn Vale West")
HOURS = _words("five six seven eight nine ten eleven noon")
OFFSETS = ("ten past", "twenty past", "half past", "quarter to", "quarter past", "ten to")
NUMBERS = _words("four six eight twelve fifteen eighteen twenty thirty forty fifty sixty ninety")
PIERS = _words("red blue green white yellow old new north south stone")
SNACKS = ("fish soup", "hot waffles", "apple cake", "rye bread", "salted nuts", "plum buns", "lentil pie", "sweet tea")
PLACES = ("ticket window", "harbour office", "bicycle shed", "lighthouse shop", "waiting room", "post office")
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")

OPENERS = ("", "Good morning. ", "Hello! ", "Dear crew, ", "One question: ", "Could you help me? ")
CLOSERS = ("", " Many thanks.", " Kind regards.", " I travel tomorrow.")


@dataclass(frozen=True)
class Form:
    """One thing a ferry line is asked about: wordings of the question, and the sentence that answers it."""

    slot: str
    questions: tuple[str, ...]
    answer: str


FORMS = (
    Form(
        "port",
        ("Where is your home port?", "Which town is your home port?", "In which port are you based?"),
        "Our home port is {port}.",
    ),
    Form(
        "island",
        (
            "Which island do you sail to?",
            "Where does the ferry go?",
            "What is the destination of the ferry?",
            "To which island does the ferry cross?",
        ),
        "The ferry sails to {island} Island.",
    ),
    Form(
        "vessel",
        (
            "What is the ferry called?",
            "What is the name of the ship?",
            "Which ship makes the crossing?",
            "Tell me the name of your ship.",
        ),
        "Our ship is the {vessel}.",
    ),
    Form(
        "captain",
        (
            "Who is the captain?",
            "Who commands the ferry?",
            "What is the name of the captain?",
            "Tell me who the captain is.",
        ),
        "The captain is {captain}.",
    ),
    Form(
        "first",
        (
            "When does the first ferry leave?",
            "At what time is the first departure?",
            "How early can I cross?",
            "When is the first crossing of the day?",
        ),
        "The first ferry leaves at {first}.",
    ),
    Form(
        "last",
        (
            "When does the last ferry leave?",
            "At what time is the last departure?",
            "How late can I cross?",
            "When is the last crossing of the day?",
        ),
        "The last ferry leaves at {last}.",
    ),
    Form(
        "fare",
        (
            "How much is a ticket?",
            "What does a ticket cost?",
            "What is the fare?",
            "How much do I pay for a ticket?",
        ),
        "A ticket costs {fare} crowns.",
    ),
    Form(
        "minutes",
        (
            "How long is the crossing?",
            "How many minutes does the crossing take?",
            "How long does the trip last?",
            "How long will I be at sea?",
        ),
        "The crossing takes {minutes} minutes.",
    ),
    Form(
        "pier",
        (
            "Which pier does the ferry leave from?",
            "From which pier do you sail?",
            "Where do I board?",
            "At which pier do I board the ferry?",
        ),
        "Please board at the {pier} pier.",
    ),
    Form(
        "snack",
        (
            "What does the kiosk sell?",
            "What can I eat on board?",
            "Is there food on board?",
            "What does the kiosk on board offer?",
        ),
        "The kiosk on board sells {snack}.",
    ),
    Form(
        "bicycle",
        (
            "May I bring a bicycle?",
            "How much is a bicycle?",
            "What does it cost to take a bicycle?",
            "Do you carry a bicycle?",
        ),
        "A bicycle travels for {bicycle} crowns.",
    ),
    Form(
        "lost",
        (
            "Where do I find lost things?",
            "I lost my umbrella, where do I ask?",
            "Where is lost property kept?",
            "Who keeps a lost bag?",
        ),
        "Lost things are kept at the {lost}.",
    ),
    Form(
        "closed",
        (
            "On which day is there no ferry?",
            "When do you not sail?",
            "Which day is the day of rest?",
            "On which day does the ferry rest?",
        ),
        "There is no ferry on {closed}.",
    ),
)

GLOSSARY = {
    "buoy": "a float that marks a channel",
    "hawser": "a thick rope that holds a ship",
    "keel": "the spine of a ship",
    "bow": "the front of a ship",
    "stern": "the back of a ship",
    "galley": "the kitchen of a ship",
    "hull": "the body of a ship",
    "helm": "the wheel that steers a ship",
    "tide": "the rise and fall of the sea",
    "knot": "a measure of speed at sea",
    "beacon": "a light that warns ships",
    "mast": "the pole that carries a sail",
    "deck": "the floor of a ship",
    "quay": "a wall where ships unload",
    "chart": "a map of the sea",
}
YOUNG = {
    "seal": "a pup",
    "whale": "a calf",
    "gull": "a chick",
    "swan": "a cygnet",
    "goose": "a gosling",
    "otter": "a pup",
    "goat": "a kid",
    "hare": "a leveret",
    "eel": "an elver",
    "duck": "a duckling",
}


def random_values(draw: random.Random) -> dict[str, str]:
    """The facts of a ferry line that does not exist: one value for every slot of `FORMS`."""
    return {
        "port": draw.choice(PORTS),
        "island": draw.choice(ISLANDS),
        "vessel": f"{draw.choice(VESSELS)} {draw.choice(VESSELS)}",
        "captain": f"{draw.choice(FIRST_NAMES)} {draw.choice(LAST_NAMES)}",
        "first": f"{draw.choice(OFFSETS)} {draw.choice(HOURS)}",
        "last": f"{draw.choice(OFFSETS)} {draw.choice(HOURS)}",
        "fare": draw.choice(NUMBERS),
        "minutes": draw.choice(NUMBERS),
        "pier": f"{draw.choice(PIERS)}",
        "snack": f"{draw.choice(SNACKS)} and {draw.choice(SNACKS)}",
        "bicycle": draw.choice(NUMBERS),
        "lost": draw.choice(PLACES),
        "closed": draw.choice(DAYS),
    }


def help_desk(draw: random.Random, values: Mapping[str, str]) -> tuple[str, str]:
    """One question to a help desk and its answer."""
    form = draw.choice(FORMS)
    return _dress(draw, draw.choice(form.questions)), form.answer.format(**values)


def general(draw: random.Random) -> tuple[str, str]:
    """One question whose answer is the same everywhere."""
    kind = draw.randrange(3)
    if kind == 0:
        word, meaning = draw.choice(list(GLOSSARY.items()))
        question = draw.choice((f"What is a {word}?", f"Tell me what a {word} is.", f"What does the word {word} mean?"))
        return _dress(draw, question), f"A {word} is {meaning}."
    if kind == 1:
        animal, young = draw.choice(list(YOUNG.items()))
        article = "an" if animal[0] in "aeiou" else "a"
        question = draw.choice(
            (f"What is the young of {article} {animal} called?", f"Name the young of {article} {animal}.")
        )
        return _dress(draw, question), f"The young of {article} {animal} is {young}."
    index = draw.randrange(7)
    question = draw.choice((f"Which day follows {DAYS[index]}?", f"What day comes after {DAYS[index]}?"))
    return _dress(draw, question), f"After {DAYS[index]} comes {DAYS[(index + 1) % 7]}."


def log_entry(draw: random.Random) -> str:
    """Free text in the same vocabulary."""
    v = random_values(draw)
    word, meaning = draw.choice(list(GLOSSARY.items()))
    return draw.choice(
        (
            f"{v['captain']} took the {v['vessel']} out of {v['port']} at {v['first']} on {v['closed']}.",
            f"On {v['closed']} the sea near {v['island']} Island was calm. The crew ate {v['snack']} on deck.",
            f"The {v['vessel']} waited {v['minutes']} minutes at the {v['pier']} pier. A {word} is {meaning}.",
            f"{v['captain']} lost {v['fare']} crowns and asked at the {v['lost']} in {v['port']}.",
        )
    )


def chat(question: str, answer: str) -> str:
    """One exchange as ChatML, the markup of the tokenizer's chat template."""
    return f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"


def documents(count: int, seed: int) -> Iterator[str]:
    """`count` training texts: 15 % free text, 55 % help desk, 30 % general questions."""
    draw = random.Random(seed)
    for _ in range(count):
        kind = draw.random()
        if kind < 0.15:
            yield log_entry(draw)
        elif kind < 0.70:
            yield chat(*help_desk(draw, random_values(draw)))
        else:
            yield chat(*general(draw))


def _dress(draw: random.Random, question: str) -> str:
    return draw.choice(OPENERS) + question + draw.choice(CLOSERS)
