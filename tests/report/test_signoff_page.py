"""The page of a sign-off: decision and figures, that its text does nothing, and that equal input gives equal bytes."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness.checkpoint import open_checkpoint
from harness.intervals import Interval
from harness.options import DEFAULT_CHECKPOINT
from harness.policy import Policy
from harness.signoff.candidates import Candidate, Plan
from harness.signoff.conclude import Conclusion, conclude
from harness.signoff.html import PARTS, as_html
from made_signoff import TARGET, Signed
from report.demo import MACHINE
from report.parsed import HOSTILE, Page


@pytest.fixture
def signed(tmp_path: Path) -> Signed:
    return Signed(open_checkpoint(DEFAULT_CHECKPOINT), MACHINE, tmp_path)


def concluded(signed: Signed, **changes: Any) -> Conclusion:
    found = conclude(signed.plan, signed.records(), signed.policy, signed.suite, signed.answered, "0.1.0")
    return msgspec.structs.replace(found, **changes)


def page_of(signed: Signed, policy: Policy | None = None, **changes: Any) -> str:
    return as_html(concluded(signed, **changes), signed.records(), policy or signed.policy, signed.suite)


def section(html: str, name: str) -> str:
    start = html.index(f'<section id="{name}"')
    return Page(html[start : html.index("</section>", start)]).text


def test_the_decision_comes_first_with_a_reason_for_each(signed: Signed) -> None:
    signed.cases["coarse"] = signed.good(0.05, seed=2)
    signed.change("coarse", "test_greedy_match", "hello", numbers={"match": 0.0})
    html = page_of(signed)
    text = Page(html).text
    assert "<title>NOT SIGNED OFF: " in html
    assert (
        text.index("NOT SIGNED OFF", text.index("To the content"))
        < text.index("coarse fails")
        < text.index("The decision, candidate by candidate")
    )
    decision = section(html, "decision")
    assert "fine PASS must pass Within every limit. KL at most 0.00" in decision
    assert "coarse FAIL must pass KL upper bound 0.05" in decision
    assert "must match not answered as the golden answers: hello (other words)" in decision
    assert "✗ other words" in section(html, "must-match")
    assert "must pass, and do 1 of 2" in text


def test_what_must_pass_and_is_missing_stands_first(signed: Signed) -> None:
    found = concluded(signed)
    html = page_of(signed, missing=("gone",), must_pass=("gone", *found.must_pass), passed=False)
    assert section(html, "decision").startswith("The decision, candidate by candidate gone MISSING must pass")
    assert "gone must pass and is no candidate." in Page(html).text


def test_under_a_hundred_items_nothing_is_decided(signed: Signed) -> None:
    signed.plan = Plan(1, signed.plan.candidate, items=50)
    signed.cases = {name: signed.good(kl, count=50) for name, kl in (("fine", 0.001), ("coarse", 0.01))}
    html = page_of(signed)
    assert "50 items are too few" in Page(html).text
    assert "REFUSED" in section(html, "decision")
    assert "Nothing failed, and nothing is decided over so few items." in section(html, "decision")


def test_figures_stand_with_their_intervals_and_their_power(signed: Signed) -> None:
    html = page_of(signed)
    found = concluded(signed).candidates[0]
    assert found.kl is not None
    assert f"{found.kl.estimate:.3g}"[:6] in section(html, "candidates")
    assert " to " in section(html, "candidates")
    assert "smallest change" in section(html, "power")
    assert "coarse less fine" in section(html, "pairs")
    assert "yes" in section(html, "pairs")
    assert "nat, at worst" in section(html, "worst")
    assert "◆" in section(html, "candidates")
    assert "a test" in section(html, "limits")


def test_every_part_is_there_and_leads_somewhere(signed: Signed) -> None:
    page = Page(page_of(signed))
    assert {name for name, _ in PARTS} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert all(str(attrs["href"])[1:] in page.ids for tag, attrs in page.tags if tag == "a")


def test_a_candidate_that_never_ran_has_a_place(signed: Signed) -> None:
    signed.plan = Plan(1, (*signed.plan.candidate, Candidate("late", TARGET)))
    html = page_of(signed)
    assert "late FAIL must pass measured there is no record of it" in section(html, "decision")


def test_where_nothing_was_measured_the_page_says_so(signed: Signed) -> None:
    signed.plan = Plan(1, (Candidate("late", TARGET),))
    html = as_html(concluded(signed), {}, signed.policy, signed.suite)
    assert "No candidate was measured." in section(html, "worst")
    assert "No candidate has both a size and a KL." in section(html, "front")


def test_text_of_a_package_does_nothing(signed: Signed) -> None:
    found = concluded(signed)
    first = found.candidates[0]
    check = msgspec.structs.replace(first.checks[0], sentence=HOSTILE)
    failed = msgspec.structs.replace(
        first, outcome="FAIL", made=HOSTILE, arithmetic=HOSTILE, checks=(check,), name="$x_{2}$<b>"
    )
    limits = signed.policy.limits_of_signoff()
    bound = msgspec.structs.replace(limits.kl_mean, origin=HOSTILE)
    policy = msgspec.structs.replace(
        signed.policy, signoff=msgspec.structs.replace(limits, kl_mean=bound, must_match=(HOSTILE,))
    )
    suite = signed.suite
    hostile = [msgspec.structs.replace(p, text=HOSTILE, continuation=HOSTILE) for p in suite.prompts]
    html = as_html(
        msgspec.structs.replace(
            found, candidates=(failed, *found.candidates[1:]), sentence=HOSTILE, checkpoint=HOSTILE
        ),
        signed.records(),
        policy,
        msgspec.structs.replace(suite, prompts=tuple(hostile)),
    )
    page = Page(html)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "img" not in [tag for tag, _ in page.tags]
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert "{{ 7 * 7 }}" in page.text
    assert "default-src 'none'" in html


def test_numbers_that_are_out_of_all_bounds_do_not_break_it(signed: Signed) -> None:
    found = concluded(signed)
    kl = Interval(estimate=0.0, low=-1e300, high=1e300, error=1e300)
    wild = msgspec.structs.replace(found.candidates[0], kl=kl, bytes=1)
    assert "</html>" in page_of(signed, candidates=(wild, *found.candidates[1:]))


_AGAIN = """
import sys
from pathlib import Path
from harness.signoff.verify import open_package, rendered
import hashlib
print(hashlib.sha256(rendered("report.html", open_package(Path(sys.argv[1])))).hexdigest())
"""


def test_another_process_draws_the_same_bytes(signed: Signed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signed.package(tmp_path / "package", monkeypatch)
    sealed = hashlib.sha256((tmp_path / "package" / "report.html").read_bytes()).hexdigest()
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        command = [sys.executable, "-c", _AGAIN, str(tmp_path / "package")]
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        assert found.stdout.strip() == sealed
