"""Questions that `headkv bench` asks, in four tasks. They share no wording with the examples of scoring."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_PLACES = (
    "boat house",
    "old mill",
    "observatory",
    "north gate",
    "wine cellar",
    "archive",
    "greenhouse",
    "bakery",
)
_TOWNS = ("Velmora", "Ostrand", "Kirnach", "Talbeck", "Morwick", "Sandholm", "Quillport", "Ardenfield")
_PEOPLE = ("Marta", "Tobias", "Ilse", "Ruben", "Farida", "Anselm", "Noemi", "Gregor")
_THINGS = ("brass telescope", "tin whistle", "glass chess set", "leather atlas", "wax seal", "toy railway")
_COLOURS = ("purple", "orange", "crimson", "turquoise", "beige")
_JOBS = ("postmaster", "dentist", "locksmith", "librarian", "beekeeper", "notary")
_VEHICLES = ("fire engine", "motor scooter", "donkey cart", "milk van", "steamroller", "minibus")
_ROOFING = ("birch bark", "old sailcloth", "river clay", "goat hides", "oyster shells")
_HEAVY = ("loom", "harmonium", "anvil", "sewing machine", "cradle")
_FINISHES = ("amber", "velvet", "hollow", "silver", "crooked", "mossy")
_EMBLEMS = ("lantern", "compass", "thimble", "anchor", "feather", "hourglass")
_INSTRUMENTS = ("bassoon", "mandolin", "bagpipes", "trombone", "zither")


@dataclass(frozen=True)
class Question:
    """facts: hidden in the document, each by itself. lead and expected: how the gold answer begins and ends.

    wrong: what an answer about another fact would say.
    """

    kind: str
    facts: tuple[str, ...]
    text: str
    lead: str
    expected: str
    wrong: tuple[str, ...] = ()


Maker = Callable[[random.Random], Question]


def access_code(rng: random.Random) -> Question:
    what = f"access code of the {rng.choice(_PLACES)} in {rng.choice(_TOWNS)}"
    number = _number(rng)
    return Question("code", (f"The {what} is {number}.",), f"What is the {what}?", f"The {what} is", number)


def locker(rng: random.Random) -> Question:
    what, number = f"locker number of {rng.choice(_PEOPLE)}", _number(rng)
    return Question("locker", (f"The {what} is {number}.",), f"What is the {what}?", f"The {what} is", number)


def ticket(rng: random.Random) -> Question:
    what, number = f"winning ticket of the lottery in {rng.choice(_TOWNS)}", _number(rng)
    return Question(
        "ticket",
        (f"The {what} was number {number}.",),
        f"What was the number of the {what}?",
        f"The number of the {what} was",
        number,
    )


def alarms(rng: random.Random) -> Question:
    town = rng.choice(_TOWNS)
    names = [f"alarm code of the {place} in {town}" for place in rng.sample(_PLACES, 4)]
    return _one_of(rng, "alarms", names)


def badges(rng: random.Random) -> Question:
    return _one_of(rng, "badges", [f"badge number of {person}" for person in rng.sample(_PEOPLE, 4)])


def postcodes(rng: random.Random) -> Question:
    return _one_of(rng, "postcodes", [f"postcode of {town}" for town in rng.sample(_TOWNS, 4)])


def doors(rng: random.Random) -> Question:
    """Person and thing -> place -> number."""
    thing = rng.choice(_THINGS)
    people, places = rng.sample(_PEOPLE, 2), rng.sample(_PLACES, 2)
    numbers = [_number(rng), _number(rng)]
    return Question(
        "doors",
        (
            f"{people[0]} stores the {thing} in the {places[0]}.",
            f"The door of the {places[0]} opens with the number {numbers[0]}.",
            f"The door of the {places[1]} opens with the number {numbers[1]}.",
        ),
        f"Which number opens the door of the place where {people[0]} stores the {thing}?",
        "The number that opens the door is",
        numbers[0],
        (numbers[1],),
    )


def boxes(rng: random.Random) -> Question:
    """Thing -> box -> place."""
    things, colours, places = rng.sample(_THINGS, 2), rng.sample(_COLOURS, 2), rng.sample(_PLACES, 2)
    return Question(
        "boxes",
        (
            f"The {things[0]} was packed into the {colours[0]} box.",
            f"The {colours[0]} box stands in the {places[0]}.",
            f"The {things[1]} was packed into the {colours[1]} box.",
            f"The {colours[1]} box stands in the {places[1]}.",
        ),
        f"Where does the box with the {things[0]} stand?",
        f"The box with the {things[0]} stands in the",
        places[0],
        (places[1],),
    )


def jobs(rng: random.Random) -> Question:
    """Person -> job -> vehicle."""
    people, trades, vehicles = rng.sample(_PEOPLE, 2), rng.sample(_JOBS, 2), rng.sample(_VEHICLES, 2)
    return Question(
        "jobs",
        (
            f"The new {trades[0]} is {people[0]}.",
            f"Every morning the {trades[0]} drives to work in a {vehicles[0]}.",
            f"The new {trades[1]} is {people[1]}.",
            f"Every morning the {trades[1]} drives to work in a {vehicles[1]}.",
        ),
        f"What does {people[0]} drive to work in?",
        f"{people[0]} drives to work in a",
        vehicles[0],
        (vehicles[1],),
    )


def roof(rng: random.Random) -> Question:
    who, stuff = rng.choice(_PEOPLE), rng.choice(_ROOFING)
    story = (
        f"{who} had not meant to stay in {rng.choice(_TOWNS)}. The coach had lost a wheel, the inn was full, "
        "so the schoolmaster offered the loft, among maps and jars of beetles. In the morning his roof was "
        f"mended with {stuff}, which nobody there had ever heard of, and by nightfall four neighbours had "
        "come to beg for the same."
    )
    return Question(
        "roof",
        (story,),
        f"What did {who} mend the schoolmaster's roof with?",
        "The schoolmaster's roof was mended with",
        stuff,
    )


def flood(rng: random.Random) -> Question:
    who, first = rng.choice(_PEOPLE), rng.choice(_HEAVY)
    story = (
        f"When the river rose again that autumn, {who} carried the {first} up to the bell tower "
        "first, then the flour, and only at the very end the pewter. People laughed about it for ages. But "
        "the pewter had been dull before, and in the wet months that followed there was bread."
    )
    return Question(
        "flood",
        (story,),
        f"What did {who} carry up to the bell tower first?",
        f"First {who} carried up the",
        first,
    )


def sundays(rng: random.Random) -> Question:
    who, instrument = rng.choice(_PEOPLE), rng.choice(_INSTRUMENTS)
    story = (
        f"Nobody in {rng.choice(_TOWNS)} knew why {who} had quit the navy. There were leeks to be hoed and "
        f"a tabby cat to be fed, and every Sunday after dinner {who} practised the {instrument}, "
        "loudly and not well. When the mayor begged for a little peace, the practice was moved to five in "
        "the morning."
    )
    return Question(
        "sundays",
        (story,),
        f"What did {who} practise every Sunday?",
        f"Every Sunday {who} practised the",
        instrument,
    )


def magic(rng: random.Random) -> Question:
    """One of two needles as RULER words them."""
    finishes, emblems = rng.sample(_FINISHES, 2), rng.sample(_EMBLEMS, 2)
    names = [f"{finish}-{emblem}" for finish, emblem in zip(finishes, emblems, strict=True)]
    return _one_of(rng, "magic", [f"special magic number for {name}" for name in names])


TASKS: Mapping[str, tuple[Maker, ...]] = {
    "needle": (access_code, locker, ticket),
    "keys": (alarms, badges, postcodes),
    "hops": (doors, boxes, jobs),
    "prose": (roof, flood, sundays),
}
"""needle: one fact. keys: one of four facts that differ in a name. hops: two facts that have to be put
together, and others like them. prose: a detail of a story."""

SINGLE_FACT = ("needle", "keys", "prose")
"""Tasks whose answer stands in one place."""


def _one_of(rng: random.Random, kind: str, names: list[str]) -> Question:
    """The first of the names is asked for."""
    numbers = [_number(rng) for _ in names]
    return Question(
        kind,
        tuple(f"The {name} is {number}." for name, number in zip(names, numbers, strict=True)),
        f"What is the {names[0]}?",
        f"The {names[0]} is",
        numbers[0],
        tuple(numbers[1:]),
    )


def _number(rng: random.Random) -> str:
    return str(rng.randrange(10000, 100000))
