"""Pages of one file: templates in, HTML out. What is put in is escaped; nothing is fetched when the page is read.

The frame is `base.html`, the pieces are the macros of `parts.html`, the look is `page.css`. A page of another kind
extends the frame, fills its blocks and is rendered by `render`.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import itertools
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from harness.report import figures
from harness.report.overview import ORDER, tone

_SIGNS = {"PASS": "✓", "WAIVED": "~", "UNSUPPORTED": "–", "": ""}


def render(template: str, *, title: str, parts: Sequence[tuple[str, str]], **context: Any) -> str:
    """A page: `template` extends base.html; `parts` are the ids and names of its sections, for the way through it."""
    script = _text("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = _environment().get_template(template)
    return page.render(
        title=title,
        parts=parts,
        style=Markup(_text("page.css")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        **context,
    )


def sign(outcome: str) -> str:
    """A sign for an outcome, so that its colour is never all that tells it."""
    return _SIGNS.get(outcome, "✗")


def spoken(counts: dict[str, int]) -> str:
    """Counts by outcome in words: `3 fail, 139 pass`."""
    known = [(outcome, counts[outcome]) for outcome in ORDER if counts.get(outcome)]
    return ", ".join(f"{times:,} {outcome.lower().replace('_', ' ')}" for outcome, times in known)


@functools.cache
def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("harness.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["capitalize_first"] = _capitalise
    made.filters["groupby_in_order"] = _grouped
    made.globals |= {
        "number": figures.number,
        "ratio": figures.ratio,
        "share": figures.share,
        "size": figures.size,
        "duration": figures.duration,
        "milliseconds": figures.milliseconds,
        "count": figures.count,
        "shown": figures.shown,
        "tone_of": tone,
        "sign_of": sign,
        "spoken": spoken,
    }
    return made


@functools.cache
def _text(name: str) -> str:
    return resources.files("harness.report").joinpath("templates", name).read_text(encoding="utf-8")


def _capitalise(text: str) -> str:
    return text[:1].upper() + text[1:]


def _grouped(items: Iterable[Any], attribute: str) -> list[tuple[Any, list[Any]]]:
    """Neighbours with the same attribute together, in their order; jinja's own filter sorts."""
    return [(key, list(own)) for key, own in itertools.groupby(items, key=lambda item: getattr(item, attribute))]
