"""Makes signoff.jsonl, the sample of the sign-off: written.txt as it stands, and generated items beside it.

    python conformance/signoff/generate.py

The items are short, in strata of what a language model is asked for, and each is independent of the others: no text is
used twice. Nothing is taken from a data set, so that no model was trained on it and no exporter calibrates with it. The
generated strata (sums, JSON, tables, logs) come from a seed. Two more are of what the bundled checkpoint can do:
conversations and stories that were set aside from its training, document by document; their sentences come from
templates that it has seen.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SUITE = HERE / "signoff.jsonl"
SEED = 20261125
TRAINING = HERE.parents[1] / "golden" / "phi-3-tiny"
MOST_LETTERS = 300

ABOUT = {
    "question": "a question of fact with its answer",
    "instruction": "a text to be changed or written",
    "turns": "the last turn of a chat",
    "system": "a system message that shapes the answer",
    "prose": "prose and how it goes on",
    "language": "a language other than English",
    "rare": "emoji, symbols and rare tokens",
    "code": "a few lines of code",
    "long": "a longer text and its end",
    "arithmetic": "a sum with its working",
    "json": "JSON from a description",
    "table": "a table or list in Markdown or CSV",
    "log": "log lines, dates and paths that follow a pattern",
    "familiar-chat": "a conversation as the bundled checkpoint was trained on, set aside from its training",
    "familiar-story": "the end of a story as the bundled checkpoint was trained on, set aside from its training",
}

NAMES = (
    "Ines",
    "Bashir",
    "Yuki",
    "Torvald",
    "Leila",
    "Oskar",
    "Mireille",
    "Ngozi",
    "Radek",
    "Saoirse",
    "Kwame",
    "Agnes",
)
TOWNS = (
    "Bergen",
    "Coimbra",
    "Debrecen",
    "Galway",
    "Kaunas",
    "Lucca",
    "Malmö",
    "Nantes",
    "Ostrava",
    "Tartu",
    "Ulm",
    "Varna",
)
GOODS = (
    "rope",
    "lamp oil",
    "walnuts",
    "paper",
    "brass screws",
    "linen",
    "tar",
    "buttons",
    "ink",
    "candles",
    "wire",
    "felt",
)
JOBS = ("joiner", "nurse", "surveyor", "cook", "printer", "pilot", "tailor", "archivist", "plumber", "translator")


def main() -> None:
    """Write the suite beside this file."""
    lines = [json.dumps(item, ensure_ascii=False) for item in items()]
    SUITE.write_bytes(("\n".join(lines) + "\n").encode("utf-8"))


def items() -> Iterator[dict[str, Any]]:
    """Every item as a line of the suite, by stratum; ids are the stratum's name and a number."""
    rng = random.Random(SEED)
    strata: dict[str, list[dict[str, Any]]] = dict(_written())
    makers: dict[str, tuple[Callable[[random.Random, int], dict[str, Any]], int]]
    makers = {"arithmetic": (_sum, 26), "json": (_json, 24), "table": (_table, 24), "log": (_log, 20)}
    for stratum, (make, count) in makers.items():
        strata[stratum] = [make(rng, number) for number in range(count)]
    strata |= _familiar()
    for stratum, found in strata.items():
        for number, item in enumerate(found, start=1):
            yield {"id": f"{stratum}-{number:02d}", "about": f"Sign-off sample: {ABOUT[stratum]}.", **item}


def _written() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    stratum, found = "", list[dict[str, Any]]()
    for line in (HERE / "written.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            stratum = line.strip("[]")
            found = []
            yield stratum, found
        elif line and not line.startswith("#"):
            given, _, scored = line.replace("\\n", "\n").replace("\\t", "\t").partition(" => ")
            found.append(_item(stratum, given, scored))


def _item(stratum: str, given: str, scored: str) -> dict[str, Any]:
    if stratum in ("prose", "long"):
        return {"text": given, "continuation": f" {scored}"}
    turns = given.split(" // ")
    if stratum == "system":
        return _chat(("system", turns[0]), ("user", turns[1]), answer=scored)
    roles = ("user", "assistant") * len(turns)
    return _chat(*zip(roles, turns, strict=False), answer=scored)


def _chat(*turns: tuple[str, str], answer: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in turns], "continuation": answer}


def _familiar() -> dict[str, list[dict[str, Any]]]:
    """Of what was set aside when the bundled checkpoint was trained, evenly spread: nothing is drawn here anew."""
    sys.path.insert(0, str(TRAINING))
    try:
        import corpus
        from chat import conversation
        from stories import story
    finally:
        sys.path.remove(str(TRAINING))
    rng = random.Random(corpus.SEED)
    told = [text for text in (story(rng) for _ in range(corpus.STORIES)) if corpus.is_held_out(text)]
    talked = [turns for turns in (conversation(rng) for _ in range(corpus.CONVERSATIONS)) if corpus.is_held_out(turns)]
    short = [turns for turns in talked if sum(len(turn["content"]) for turn in turns) < MOST_LETTERS]
    last = {(turns[-2]["content"], turns[-1]["content"]): turns for turns in sorted(short, key=len)}
    chats = [{"messages": turns[:-1], "continuation": turns[-1]["content"]} for turns in last.values()]
    return {"familiar-chat": _spread(chats, 48), "familiar-story": _spread(list(map(_ended, dict.fromkeys(told))), 24)}


def _ended(text: str) -> dict[str, Any]:
    """A story whose last sentence is to be scored."""
    place = text.rstrip(".").rindex(". ") + 1
    return {"text": text[:place], "continuation": text[place:]}


def _spread(found: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    return [found[place * len(found) // count] for place in range(count)]


def _sum(rng: random.Random, number: int) -> dict[str, Any]:
    a, b, c = rng.randrange(120, 980), rng.randrange(21, 99), rng.randrange(11, 49)
    name, goods, town = rng.choice(NAMES), rng.choice(GOODS), rng.choice(TOWNS)
    kind = number % 6
    if kind == 0:
        return _chat(
            ("user", f"Work out {a} + {b} + {c} step by step."),
            answer=f"{a} + {b} = {a + b}; {a + b} + {c} = {a + b + c}.",
        )
    if kind == 1:
        return _chat(
            ("user", f"{name} buys {c} boxes of {goods} at {b} euros each. What is the bill?"),
            answer=f"{c} x {b} = {c * b}, so the bill is {c * b} euros.",
        )
    if kind == 2:
        return _chat(
            ("user", f"Take {b} from {a} and halve the rest."),
            answer=f"{a} - {b} = {a - b}, and half of it is {(a - b) / 2:g}.",
        )
    if kind == 3:
        return _chat(
            ("user", f"It is {a} km to {town}. At {b} km/h, how long does it take?"),
            answer=f"{a} / {b} is about {a / b:.1f}, so it takes about {a / b:.1f} hours.",
        )
    if kind == 4:
        return {
            "text": f"Q: What is {b} % of {a}?\nA: One per cent is {a / 100:g}.",
            "continuation": f" {b} times that is {a * b / 100:g}.",
        }
    return {
        "text": f"{a} mod {c} =",
        "continuation": f" {a % c}, because {a // c} x {c} = {a // c * c} and {a} - {a // c * c} = {a % c}.",
    }


def _json(rng: random.Random, number: int) -> dict[str, Any]:
    name, town, goods, job = rng.choice(NAMES), rng.choice(TOWNS), rng.choice(GOODS), rng.choice(JOBS)
    count, price, day = rng.randrange(2, 90), rng.randrange(100, 9999) / 100, f"{rng.randrange(1, 29):02d}"
    kind = number % 4
    if kind == 0:
        asked = f"As JSON: {name} from {town} is a {job} and has {count} years of service."
        return _chat(
            ("user", asked),
            answer=json.dumps({"name": name, "town": town, "job": job, "years": count}, ensure_ascii=False),
        )
    if kind == 1:
        asked = f"Make an order as JSON: {count} of {goods} at {price} each, to be shipped to {town}."
        return _chat(
            ("user", asked),
            answer=json.dumps({"item": goods, "quantity": count, "price": price, "ship_to": town}, ensure_ascii=False),
        )
    if kind == 2:
        given = json.dumps(
            {
                "event": "delivery",
                "date": f"2026-0{number % 9 + 1}-{day}",
                "lines": [{"sku": goods.upper()[:4], "qty": count}],
            }
        )
        return {"text": f"{given[: len(given) // 2]}", "continuation": given[len(given) // 2 :]}
    asked = f'Which value has "qty" in {{"sku": "{goods.upper()[:3]}-{count}", "qty": {count + 3}, "site": "{town}"}}?'
    return _chat(("user", asked), answer=f'"qty" is {count + 3}.')


def _table(rng: random.Random, number: int) -> dict[str, Any]:
    goods, towns = rng.sample(GOODS, 3), rng.sample(TOWNS, 3)
    figures = [rng.randrange(10, 400) for _ in range(3)]
    kind = number % 4
    if kind == 0:
        rows = "".join(f"| {item} | {figure} |\n" for item, figure in zip(goods[:2], figures[:2], strict=True))
        return {"text": f"| item | stock |\n| --- | --- |\n{rows}", "continuation": f"| {goods[2]} | {figures[2]} |\n"}
    if kind == 1:
        rows = "".join(
            f"{town};{item};{figure}\n" for town, item, figure in zip(towns[:2], goods[:2], figures[:2], strict=True)
        )
        return {"text": f"town;item;sold\n{rows}", "continuation": f"{towns[2]};{goods[2]};{figures[2]}\n"}
    if kind == 2:
        asked = f"Make a numbered list of {goods[0]}, {goods[1]} and {goods[2]}."
        return _chat(
            ("user", asked), answer="".join(f"{place}. {item}\n" for place, item in enumerate(goods, 1)).strip()
        )
    asked = f"Stock: {goods[0]} {figures[0]}, {goods[1]} {figures[1]}, {goods[2]} {figures[2]}. What is there most of?"
    most = goods[figures.index(max(figures))]
    return _chat(("user", asked), answer=f"There is most of {most}: {max(figures)}.")


def _log(rng: random.Random, number: int) -> dict[str, Any]:
    hour, minute, port, code = (
        rng.randrange(6, 22),
        rng.randrange(0, 55),
        rng.randrange(1024, 9999),
        rng.choice((200, 204, 301, 404, 503)),
    )
    host, unit = (
        rng.choice(TOWNS).lower().replace("ö", "o"),
        rng.choice(("cache", "mailer", "index", "proxy", "backup")),
    )
    kind = number % 4
    if kind == 0:
        stamp = f"2026-11-{number + 3:02d}T{hour:02d}:{minute:02d}"
        return {
            "text": f"{stamp}:07 {unit}[{port}]: started\n{stamp}:09",
            "continuation": f" {unit}[{port}]: listening on {host}:{port}\n",
        }
    if kind == 1:
        return {
            "text": f'{host} - - "GET /{unit}/v{number} HTTP/1.1" {code} {port}\n{host} - -',
            "continuation": f' "GET /{unit}/v{number + 1} HTTP/1.1" {code} {port + 17}\n',
        }
    if kind == 2:
        return {
            "text": f"/var/{unit}/{host}/{number:03d}.log\n/var/{unit}/{host}/{number + 1:03d}.log\n",
            "continuation": f"/var/{unit}/{host}/{number + 2:03d}.log\n",
        }
    first, second, third = (f"{hour + later:02d}:{minute:02d}" for later in range(3))
    return {
        "text": f"{first} leave {host}, {second} change, {third}",
        "continuation": f" arrive at {rng.choice(TOWNS)}, platform {port % 9 + 1}\n",
    }


if __name__ == "__main__":
    main()
