"""conformance/coverage.toml says what there is: the suites, the planted faults, and the page that is kept of it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import msgspec
import pytest

from harness.backend import load_backends
from harness.cli_coverage import COVERAGE
from harness.coverage import Defect, read_coverage
from harness.golden import TREE
from harness.report.coverage import markdown_coverage

TABLE = read_coverage(COVERAGE)
BATTERY = "battery: "
NUMBERS = range(1, 22)


@cache
def collected(*arguments: str) -> frozenset[str]:
    """Ids of all tests that pytest finds, from the project's folder on."""
    given = (sys.executable, "-m", "pytest", "-c", "pyproject.toml", "--collect-only", "-q", "-p", "no:cacheprovider")
    done = subprocess.run([*given, *arguments], capture_output=True, text=True, check=False, cwd=TREE)
    found = frozenset(line for line in done.stdout.splitlines() if "::" in line)
    assert found, done.stdout + done.stderr
    return found


def cases() -> dict[str, set[str]]:
    """Every case of the suites, `test_name[subject]`, by the name of its file."""
    found: dict[str, set[str]] = {}
    for line in collected("conformance", "--targets=pytorch:cpu:fp32", "--minutes=1"):
        file, _, name = line.partition("::")
        test, _, subject = name.removesuffix("]").partition("[")
        subject = subject.removeprefix("pytorch:cpu:fp32").removeprefix("-")
        found.setdefault(Path(file).stem, set()).add(f"{test}[{subject}]" if subject else test)
    return found


@cache
def battery_names() -> frozenset[str]:
    """Every text in the battery's modules, among which are the names of its faults."""
    files = (TREE / "tests" / "detection" / "battery").glob("*.py")
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    return frozenset(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


def test_the_suites_and_tests_are_those_that_there_are() -> None:
    there = {file.removeprefix("test_"): {one.split("[")[0] for one in found} for file, found in cases().items()}
    stated = {suite.id: {test.split("[")[0] for test in suite.tests} for suite in TABLE.suite}
    assert stated == there


def test_every_case_has_a_row_and_every_subject_that_is_named_is_there() -> None:
    there = set().union(*cases().values())
    assert [case for case in sorted(there) if TABLE.row(case) is None] == []
    assert [row for _, row, _ in TABLE.rows() if "[" in row and row not in there] == []


def test_every_exemption_is_about_some_case() -> None:
    there = set().union(*cases().values())
    for one in TABLE.exemption:
        for pattern in one.cases:
            narrowed = msgspec.structs.replace(one, cases=(pattern,))
            assert any(narrowed.covers_row(case) for case in there), pattern


def test_every_declared_target_has_a_column_and_every_column_a_target() -> None:
    declared = [target for backend in load_backends().values() for target in backend.targets()]
    own = [target for target in declared if not target.backend.startswith("planted")]
    assert [str(target) for target in own if TABLE.column(target) is None] == []
    assert [column.id for column in TABLE.backend if not any(map(column.holds, own))] == []


def test_the_defects_of_the_field_are_all_there() -> None:
    assert [defect.number for defect in TABLE.defect] == list(NUMBERS)


@pytest.mark.parametrize("defect", TABLE.defect, ids=lambda defect: f"defect-{defect.number}")
def test_a_defect_is_proved_to_be_caught_by_planted_faults_that_there_are(defect: Defect) -> None:
    planted = [one for one in defect.proved_by if one.startswith((BATTERY, "tests/detection/", "tests/plugin/"))]
    assert planted, "no planted fault imitates it"
    for one in defect.proved_by:
        if one.startswith(BATTERY):
            name = one.removeprefix(BATTERY)
            assert name in battery_names(), f"the battery has no fault {name!r}"
            page = (TREE / "docs" / "detection.md").read_text(encoding="utf-8")
            row = re.compile(rf"^\| {re.escape(name)}(, [^|]*)? \|.* \| yes \|", re.MULTILINE)
            assert row.search(page), f"docs/detection.md knows of no fault {name!r} that was found"
        else:
            file = one.partition("::")[0]
            found = collected(*sorted({p.partition("::")[0] for d in TABLE.defect for p in d.proved_by if "::" in p}))
            there = one in found if one.endswith("]") else any(test.split("[")[0] == one for test in found)
            assert there, f"{file} has no such test: {one}"


@pytest.mark.parametrize("defect", TABLE.defect, ids=lambda defect: f"defect-{defect.number}")
def test_the_page_on_defects_tells_of_each_with_its_tests(defect: Defect) -> None:
    page = (TREE / "docs" / "field-defects.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (\d+)\. .*\n((?:(?!## ).*\n)*)", page, re.MULTILINE))
    section = sections[str(defect.number)]
    for test in defect.caught_by:
        assert f"`{test}`" in section, f"section {defect.number} does not name {test}"
    for source in defect.sources:
        assert not source.startswith("https://") or source in section, f"section {defect.number} lacks {source}"


def test_the_page_is_what_the_command_prints() -> None:
    page = (TREE / "docs" / "coverage.md").read_text(encoding="utf-8")
    assert page == markdown_coverage(TABLE), "run: phi3-conformance coverage --markdown > docs/coverage.md"
