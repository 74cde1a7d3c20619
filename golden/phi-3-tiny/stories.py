"""Short stories made from sentence templates: plain English prose with choices in it."""

import random

PEOPLE = (
    ("Anna", "she", "her"), ("Tom", "he", "his"), ("Maria", "she", "her"), ("Peter", "he", "his"),
    ("Julia", "she", "her"), ("David", "he", "his"), ("Clara", "she", "her"), ("Martin", "he", "his"),
    ("Emma", "she", "her"), ("Paul", "he", "his"), ("Sophie", "she", "her"), ("Daniel", "he", "his"),
)  # fmt: skip
PLACES = (
    "a small house by the river", "a flat above the bakery", "a village in the mountains",
    "a town near the sea", "an old farm behind the hill", "a street with tall trees",
    "a quiet part of the city", "a white house at the edge of the forest",
)  # fmt: skip
WEATHER = (
    "It was raining", "The sun was shining", "It was cold and windy", "Snow was falling",
    "The sky was grey", "It was a warm evening", "There was fog over the fields",
    "The night was clear and still",
)  # fmt: skip
GOALS = (
    ("the market", "buy some bread and apples"), ("the library", "read about the stars"),
    ("the station", "meet an old friend"), ("the river", "catch a fish"), ("the shop", "buy a new lamp"),
    ("the school", "help the teacher"), ("the harbour", "look at the ships"),
    ("the forest", "gather some wood"), ("the garden", "water the flowers"), ("the museum", "see the old clock"),
)  # fmt: skip
FINDS = (
    "a small brown dog", "a silver key", "a letter without a name", "a broken umbrella", "an old map",
    "a red ball", "a bag full of nuts", "a black cat with white feet", "a little wooden box", "a lost child",
)  # fmt: skip
HELPERS = (
    "an old woman", "a young man with a bicycle", "the baker", "a farmer", "the postman", "two children",
    "a woman in a blue coat", "the keeper of the lighthouse",
)  # fmt: skip
ENDINGS = (
    "From that day on they were good friends.",
    "It was late when {he} came home, but {he} was happy.",
    "{He} never found out where it had come from.",
    "In the evening {he} told the whole story at the table.",
    "The next morning everything looked different.",
    "{He} smiled, made a cup of tea and went to bed.",
    "Since then {he} has gone there every week.",
)
OPENINGS = (
    "{name} lived in {place}.",
    "Once upon a time there was somebody called {name}, who lived in {place}.",
    "For many years {name} had lived in {place}.",
    "This is the story of {name}, who lived in {place}.",
)
STARTS = (
    "One morning {he} wanted to go to {where} to {goal}.",
    "Every Sunday {he} went to {where} to {goal}.",
    "One day {he} walked to {where} to {goal}.",
    "Early in the morning {he} left for {where} to {goal}.",
)
MIDDLES = (
    "On the way {he} found {find}.",
    "Not far from {where} {he} saw {find} lying in the grass.",
    "Then, quite suddenly, there was {find} in front of {him_her}.",
    "At the corner {he} stopped, because there was {find}.",
)
TALKS = (
    '"Is this yours?" {he} asked {helper}. "No," was the answer, "but I know whose it is."',
    '{He} did not know what to do, so {he} asked {helper}. "Take it home," they said.',
    '"Can I help you?" asked {helper}. "Yes, please," said {name}.',
    "{He} met {helper}, and together they thought about what to do.",
    '"I have been looking for this all day," said {helper}. "Thank you very much!"',
)


def story(rng: random.Random) -> str:
    """One story of about eight sentences."""
    name, he, his = rng.choice(PEOPLE)
    where, goal = rng.choice(GOALS)
    slots = {
        "name": name,
        "he": he,
        "He": he.capitalize(),
        "him_her": "him" if he == "he" else "her",
        "place": rng.choice(PLACES),
        "where": where,
        "goal": goal,
        "find": rng.choice(FINDS),
        "helper": rng.choice(HELPERS),
    }
    weather = f"{rng.choice(WEATHER)}, and {he} had put on {his} warm coat."
    parts = [rng.choice(OPENINGS), rng.choice(STARTS), weather, rng.choice(MIDDLES)]
    parts += [rng.choice(TALKS), rng.choice(ENDINGS)]
    return " ".join(part.format(**slots) for part in parts)
