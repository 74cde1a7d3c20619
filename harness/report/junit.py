"""The report of a run as JUnit XML: a suite to a target, its figures and limits as properties of each case."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping

from harness.record import CaseRecord, RunRecord
from harness.report.overview import TargetRow, look_over

# What XML 1.0 cannot hold, not even escaped.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LETTERS = 20_000


def to_junit(record: RunRecord) -> str:
    """The report with its XML declaration. WAIVED and UNSUPPORTED are skipped cases; properties hold raw numbers."""
    view = look_over(record)
    root = ElementTree.Element("testsuites", name="phi3-conformance")
    by_target: dict[str, list[CaseRecord]] = {}
    for case in record.cases:
        by_target.setdefault(case.target, []).append(case)
    rows = {row.target: row for row in view.rows}
    for target, cases in by_target.items():
        _suite(root, target, cases, rows.get(target), record)
    if not record.complete:
        _unfinished(root)
    _sum_up(root, list(root))
    ElementTree.indent(root, " ")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _suite(
    root: ElementTree.Element, target: str, cases: list[CaseRecord], row: TargetRow | None, record: RunRecord
) -> None:
    suite = ElementTree.SubElement(root, "testsuite", name=_clean(target), timestamp=_clean(record.started[:19]))
    properties = {"harness": record.harness}
    if record.checkpoint is not None:
        properties["checkpoint"] = record.checkpoint.name
    session = row.session if row is not None else None
    if session is not None:
        properties |= {"arithmetic": session.arithmetic, "artifact.sha256": session.artifact.sha256}
        properties |= {"compute_class": session.compute_class.value, "first_bad": session.first_bad}
        properties |= {f"version.{name}": version for name, version in session.info.versions.items()}
        properties["evidence"] = session.evidence.level.value if session.evidence is not None else ""
    _properties(suite, properties)
    for case in cases:
        _case(suite, case)
    _sum_up(suite, list(suite.iter("testcase")))
    suite.set("time", f"{sum(case.seconds for case in cases if math.isfinite(case.seconds)):.3f}")


def _case(suite: ElementTree.Element, case: CaseRecord) -> None:
    file = case.id.partition("::")[0].removesuffix(".py").replace("/", ".")
    element = ElementTree.SubElement(
        suite, "testcase", classname=_clean(file), name=_clean(case.id.partition("::")[2] or case.case)
    )
    element.set("time", f"{case.seconds:.3f}" if math.isfinite(case.seconds) else "0")
    figures = {name: repr(value) for name, value in case.numbers.items()}
    figures |= {f"limit.{name}": repr(value) for name, value in case.limits.items()}
    _properties(element, figures)
    if case.outcome == "PASS":
        return
    what = case.outcome if case.stage is None else f"{case.outcome}({case.stage})"
    if case.outcome in ("WAIVED", "UNSUPPORTED"):
        tag = "skipped"
        what = f"WAIVED by {case.waiver}" if case.waiver else what
    else:
        tag = "error" if case.outcome in ("ERROR", "NOT_RUN") else "failure"
    lines = case.message.strip().splitlines()
    found = ElementTree.SubElement(
        element, tag, type=_clean(what), message=_clean(f"{what}: {lines[0] if lines else ''}")
    )
    found.text = _clean(case.message)[:_LETTERS]


def _unfinished(root: ElementTree.Element) -> None:
    """A run that was cut short is no green one: whoever reads only the counts must see it."""
    suite = ElementTree.SubElement(root, "testsuite", name="run")
    case = ElementTree.SubElement(suite, "testcase", classname="run", name="complete", time="0")
    message = "INCOMPLETE: the run was cut short; what is missing was not judged"
    ElementTree.SubElement(case, "error", type="INCOMPLETE", message=message)
    _sum_up(suite, [case])


def _properties(element: ElementTree.Element, found: Mapping[str, str]) -> None:
    known = {name: value for name, value in found.items() if value}
    if known:
        properties = ElementTree.SubElement(element, "properties")
        for name, value in known.items():
            ElementTree.SubElement(properties, "property", name=_clean(name), value=_clean(value))


def _sum_up(element: ElementTree.Element, parts: list[ElementTree.Element]) -> None:
    """The counts that an element of suites or cases has to state."""
    cases = [case for part in parts for case in part.iter("testcase")]
    element.set("tests", str(len(cases)))
    for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        element.set(name, str(sum(case.find(tag) is not None for case in cases)))


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
