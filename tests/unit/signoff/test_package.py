"""A package that was changed, cut or added to is refused, also by somebody who writes a new manifest for it."""

from __future__ import annotations

import io
import json
import stat
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import msgspec
import pytest

from harness.errors import PackageError
from harness.signoff import package as packages
from harness.signoff import verify as verifying
from harness.signoff.package import MANIFEST, begin_folder, read_files, seal, write_zip
from harness.signoff.verify import open_package, verify
from made_signoff import Signed

Make = Callable[[], Path]


def problems(path: Path) -> str:
    return "\n".join(verify(path).problems)


def reseal(folder: Path) -> None:
    """Write the manifest that goes with what is there now, as a forger would."""
    files = {name: data for name, data in read_files(folder).items() if name != MANIFEST}
    manifest = json.loads((folder / MANIFEST).read_bytes())
    sealed = seal(files, manifest["harness"], manifest["checkpoint"], manifest["created"])
    (folder / MANIFEST).write_bytes(sealed)


def edit(path: Path, change: Callable[[Any], None]) -> None:
    plain = json.loads(path.read_bytes())
    change(plain)
    path.write_text(json.dumps(plain), encoding="utf-8")


def test_a_package_verifies_as_a_folder_and_as_a_zip_file(make_package: Make, tmp_path: Path) -> None:
    folder = make_package()
    found = verify(folder)
    assert found.problems == ()
    assert found.package is not None
    assert found.package.conclusion.passed
    write_zip(tmp_path / "one.zip", read_files(folder))
    write_zip(tmp_path / "two.zip", read_files(folder))
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    zipped = verify(tmp_path / "one.zip")
    assert zipped.problems == ()
    assert zipped.package is not None
    assert zipped.package.identity == found.package.identity
    assert zipped.package.conclusion == found.package.conclusion


def test_every_byte_counts(make_package: Make) -> None:
    folder = make_package()
    for name, data in read_files(folder).items():
        place = len(data) // 2
        (folder / name).write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        try:
            said = problems(folder)
        except PackageError as error:
            assert name == MANIFEST
            said = str(error)
        assert name == MANIFEST or f"{name} was changed" in said
        assert said
        (folder / name).write_bytes(data)
    assert problems(folder) == ""


def test_every_file_counts(make_package: Make) -> None:
    folder = make_package()
    for name, data in read_files(folder).items():
        (folder / name).unlink()
        if name == MANIFEST:
            with pytest.raises(PackageError, match=r"no manifest\.json"):
                verify(folder)
        else:
            assert f"{name} is missing" in problems(folder)
        (folder / name).write_bytes(data)


def test_nothing_may_be_added(make_package: Make) -> None:
    folder = make_package()
    (folder / "records" / "third.json").write_text("{}", encoding="utf-8")
    assert problems(folder) == "records/third.json was added"


def test_a_file_that_no_sign_off_has_is_refused_though_it_is_listed(make_package: Make) -> None:
    folder = make_package()
    (folder / "setup.py").write_text("", encoding="utf-8")
    reseal(folder)
    assert problems(folder) == "setup.py is no file of a sign-off"


@pytest.mark.parametrize(
    "name", ["goldens/scored.json", "artifacts/fine.json", "audits/fine.json", "records/fine.json", "policy.toml"]
)
def test_a_part_that_was_taken_out_is_missed_though_it_is_not_listed(make_package: Make, name: str) -> None:
    folder = make_package()
    (folder / name).unlink()
    reseal(folder)
    assert name in problems(folder)


def test_a_changed_verdict_is_found(signed: Signed, make_package: Make) -> None:
    signed.cases["coarse"] = signed.good(0.05)
    folder = make_package()

    def pass_all(plain: Any) -> None:
        plain["passed"] = True
        for candidate in plain["candidates"]:
            candidate["outcome"] = "PASS"

    edit(folder / "signoff.json", pass_all)
    reseal(folder)
    said = problems(folder)
    assert "its numbers give another verdict: Not signed off: coarse fails." in said
    assert "its numbers give FAIL for coarse, not PASS" in said


@pytest.mark.parametrize("number", ["kl", "nll", "top1", "quantisation_kl", "prefill_error"])
def test_a_changed_number_of_one_prompt_is_found(make_package: Make, number: str) -> None:
    folder = make_package()

    def change(plain: Any) -> None:
        case = next(c for c in plain["cases"] if c["case"] == "test_sign_off[text-030]")
        case["numbers"][number] *= 0.5

    edit(folder / "records" / "coarse.json", change)
    reseal(folder)
    assert "its numbers do not give what it says" in problems(folder)


def test_a_prompt_that_was_left_out_is_found(make_package: Make) -> None:
    folder = make_package()

    def change(plain: Any) -> None:
        plain["cases"] = [case for case in plain["cases"] if case["case"] != "test_sign_off[text-030]"]

    edit(folder / "records" / "coarse.json", change)
    reseal(folder)
    assert "its numbers give FAIL for coarse, not PASS" in problems(folder)


def test_a_candidate_that_was_left_out_of_the_conclusion_is_found(make_package: Make) -> None:
    folder = make_package()
    edit(folder / "signoff.json", lambda plain: plain["candidates"].pop())
    reseal(folder)
    assert "its numbers" in problems(folder)


def test_a_candidate_that_was_left_out_of_everything_changes_the_identity_and_no_more(make_package: Make) -> None:
    """Nobody can tell that there was a third one: the sender's SHA-256 does."""
    folder = make_package()
    whole = open_package(folder)
    edit(folder / "candidates.json", lambda plain: plain["candidate"].pop())
    for name in ("records", "audits", "artifacts"):
        (folder / name / "coarse.json").unlink()
    reseal(folder)
    assert "its numbers" in problems(folder)
    assert packages.identity(read_files(folder)) != whole.identity


def test_a_laxer_policy_is_found(make_package: Make) -> None:
    folder = make_package()
    path = folder / "policy.toml"
    path.write_text(path.read_text(encoding="utf-8").replace("limit = 0.02, origin", "limit = 2.0, origin"), "utf-8")
    reseal(folder)
    assert "records/coarse.json was made with another policy" in problems(folder)


@pytest.mark.parametrize(
    ("name", "said"),
    [("suite/scored.jsonl", "other prompts"), ("suite/core.jsonl", "other prompts"), ("waivers.toml", "other waivers")],
)
def test_other_inputs_are_found(make_package: Make, name: str, said: str) -> None:
    folder = make_package()
    path = folder / name
    path.write_bytes(path.read_bytes().replace(b'"ab"', b'"cd"') + b"\n# more\n" * name.endswith(".toml"))
    reseal(folder)
    assert said in problems(folder)


def test_another_golden_is_found(make_package: Make) -> None:
    folder = make_package()
    edit(folder / "goldens" / "scored.json", lambda plain: plain["cases"][0].update(margins=[9.0]))
    reseal(folder)
    assert "goldens/scored.json was changed" in problems(folder)


def test_a_record_of_another_recording_of_the_golden_is_found(make_package: Make) -> None:
    folder = make_package()
    edit(folder / "records" / "fine.json", lambda plain: plain.update(goldens={"scored": "1" * 64}))
    reseal(folder)
    assert "records/fine.json was made with another golden of scored" in problems(folder)


def test_a_manifest_that_is_no_text_is_refused(make_package: Make) -> None:
    folder = make_package()
    content = (folder / MANIFEST).read_bytes()
    (folder / MANIFEST).write_bytes(content.replace(b'"harness": "', b'"harness": "\xff', 1))
    with pytest.raises(PackageError, match="cannot be read"):
        verify(folder)


def test_numbers_that_are_missing_are_refused(make_package: Make) -> None:
    folder = make_package()
    edit(folder / "records" / "fine.json", _without_tensors)
    reseal(folder)
    assert "cannot be used" in problems(folder)


def _without_tensors(plain: Any) -> None:
    case = next(case for case in plain["cases"] if case["test"] == "test_weights")
    del case["numbers"]["tensors"]


def test_another_artifact_is_found(make_package: Make) -> None:
    folder = make_package()
    edit(folder / "artifacts" / "fine.json", lambda plain: plain.update(sha256="1" * 64))
    reseal(folder)
    assert "artifacts/fine.json is of another artifact" in problems(folder)


def test_another_audit_is_found(make_package: Make) -> None:
    folder = make_package()
    edit(folder / "audits" / "fine.json", lambda plain: plain.update(count=3))
    reseal(folder)
    assert "audits/fine.json is not what its record says" in problems(folder)


def test_records_of_two_checkpoints_are_found(make_package: Make) -> None:
    folder = make_package()
    edit(folder / "records" / "fine.json", lambda p: p["checkpoint"]["fingerprint"].update(weights="0" * 64))
    reseal(folder)
    assert "several checkpoints" in problems(folder)


def test_a_report_that_says_something_else_is_found(signed: Signed, make_package: Make) -> None:
    signed.cases["coarse"] = signed.good(0.05)
    folder = make_package()
    path = folder / "report.md"
    path.write_text(path.read_text(encoding="utf-8").replace("Not signed off", "Signed off"), encoding="utf-8")
    reseal(folder)
    assert problems(folder) == "report.md does not say what the numbers do"


def test_a_manifest_in_another_form_is_refused(make_package: Make) -> None:
    folder = make_package()
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_bytes())), encoding="utf-8")
    assert problems(folder) == "manifest.json is not written as a manifest is"


@pytest.mark.parametrize("name", ["records/fine.json", "signoff.json", "candidates.json", "goldens/core.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"[" * 100_000, b"\xff\xfe", b'{"schema": 1}'])
def test_what_is_no_part_is_refused_with_a_sentence(make_package: Make, name: str, content: bytes) -> None:
    folder = make_package()
    (folder / name).write_bytes(content)
    reseal(folder)
    assert problems(folder)


def zipped(path: Path, *entries: tuple[zipfile.ZipInfo | str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize(
    "name", ["../evil", "records/../../evil", "/etc/passwd", "C:/evil", "records\\..\\evil", "a//b", "x" * 300]
)
def test_a_zip_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    entry = zipfile.ZipInfo("placeholder")
    entry.filename = name
    with pytest.raises(PackageError, match="leads elsewhere"):
        read_files(zipped(tmp_path / "evil.zip", (entry, b"x")))
    assert not (tmp_path.parent / "evil").exists()


def test_a_zip_with_a_link_is_refused(tmp_path: Path) -> None:
    entry = zipfile.ZipInfo("policy.toml")
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(PackageError, match="link"):
        read_files(zipped(tmp_path / "evil.zip", (entry, b"/etc/passwd")))


def test_a_zip_with_a_name_twice_is_refused(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        path = zipped(tmp_path / "evil.zip", ("policy.toml", b"a"), ("policy.toml", b"b"))
    with pytest.raises(PackageError, match="twice"):
        read_files(path)


def test_a_zip_bomb_is_refused_before_it_unpacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_MOST_BYTES", 1 << 20)
    path = zipped(tmp_path / "bomb.zip", ("records/a.json", bytes(8 << 20)))
    assert path.stat().st_size < 20_000
    with pytest.raises(PackageError, match="unpacks to more"):
        read_files(path)


def test_a_zip_that_lies_about_its_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "_MOST_BYTES", 1 << 20)
    path = zipped(tmp_path / "bomb.zip", ("records/a.json", bytes(8 << 20)))
    data = path.read_bytes().replace((8 << 20).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    path.write_bytes(data)
    with pytest.raises(PackageError):
        read_files(path)


def test_many_files_are_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "many.zip", *((f"records/{n}.json", b"") for n in range(1001)))
    with pytest.raises(PackageError, match="1001 entries"):
        read_files(path)


@pytest.mark.parametrize("cut", [0.0, 0.3, 0.9])
def test_a_damaged_zip_is_refused(make_package: Make, tmp_path: Path, cut: float) -> None:
    buffer = io.BytesIO()
    write_zip(tmp_path / "good.zip", read_files(make_package()))
    buffer.write((tmp_path / "good.zip").read_bytes())
    (tmp_path / "bad.zip").write_bytes(buffer.getvalue()[: int(len(buffer.getvalue()) * cut)])
    with pytest.raises(PackageError, match="have it sent again"):
        verify(tmp_path / "bad.zip")


def test_a_zip_whose_contents_rotted_is_refused(make_package: Make, tmp_path: Path) -> None:
    path = tmp_path / "rotten.zip"
    write_zip(path, read_files(make_package()))
    data = bytearray(path.read_bytes())
    data[60:200] = bytes(140)
    path.write_bytes(bytes(data))
    with pytest.raises(PackageError):
        verify(path)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_folder_with_a_link_is_refused(make_package: Make, tmp_path: Path) -> None:
    folder = make_package()
    outside = tmp_path / "policy.toml"
    (folder / "policy.toml").unlink()
    (folder / "policy.toml").symlink_to(outside)
    with pytest.raises(PackageError, match="link"):
        verify(folder)


def test_a_suite_without_end_is_refused(make_package: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_package()
    monkeypatch.setattr(verifying, "_MOST_ITEMS", 119)
    assert "its suite has 120 items" in problems(folder)


def test_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PackageError, match="there is no package"):
        verify(tmp_path / "nowhere")


def test_a_sign_off_overwrites_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(PackageError, match="not empty"):
        begin_folder(tmp_path, b"{}")


def test_a_finished_one_is_not_gone_on_with(make_package: Make) -> None:
    folder = make_package()
    with pytest.raises(PackageError, match="already"):
        begin_folder(folder, (folder / "candidates.json").read_bytes())


def test_one_that_was_cut_short_goes_on_where_it_was(
    signed: Signed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "package"
    signed.package(out, monkeypatch)
    for name in ("manifest.json", "records/coarse.json"):
        (out / name).unlink()
    signed.cases["fine"] = signed.cases["coarse"] = signed.good(0.015)
    signed.package(out, monkeypatch)
    kl = {one.name: one.kl for one in open_package(out).conclusion.candidates}
    assert kl["fine"] is not None
    assert kl["coarse"] is not None
    assert kl["fine"].estimate < 0.002, "measured again"
    assert kl["coarse"].estimate > 0.01, "not measured again"


def test_one_of_other_candidates_is_not_gone_on_with(
    signed: Signed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "package"
    signed.package(out, monkeypatch)
    (out / "manifest.json").unlink()
    signed.plan = type(signed.plan)(1, signed.plan.candidate, must_pass=("fine",))
    with pytest.raises(PackageError, match="not empty"):
        signed.package(out, monkeypatch)


def test_what_was_measured_by_another_policy_is_measured_again(
    signed: Signed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "package"
    signed.package(out, monkeypatch)
    (out / "manifest.json").unlink()
    signed.policy_path.write_text(signed.policy_path.read_text(encoding="utf-8") + "\n# changed\n", encoding="utf-8")
    signed.cases["fine"] = signed.good(0.015)
    signed.package(out, monkeypatch)
    fine = open_package(out).conclusion.candidates[0].kl
    assert fine is not None
    assert fine.estimate > 0.01


def test_what_was_measured_on_another_machine_or_driver_is_measured_again(
    signed: Signed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "package"
    signed.package(out, monkeypatch)
    (out / "manifest.json").unlink()
    signed.machine = msgspec.structs.replace(signed.machine, release="another")
    signed.cases["fine"] = signed.good(0.015)
    signed.package(out, monkeypatch)
    fine = open_package(out).conclusion.candidates[0].kl
    assert fine is not None
    assert fine.estimate > 0.01


def test_an_unknown_report_is_refused(make_package: Make) -> None:
    folder = make_package()
    (folder / "report.htm").write_text("<h1>Signed off</h1>", encoding="utf-8")
    reseal(folder)
    assert problems(folder) == "report.htm is no file of a sign-off"


def change_page(folder: Path, old: str, new: str) -> None:
    path = folder / "report.html"
    page = path.read_text(encoding="utf-8")
    assert old in page
    path.write_text(page.replace(old, new), encoding="utf-8", newline="\n")
    reseal(folder)


def test_a_page_that_says_something_else_is_found(signed: Signed, make_package: Make) -> None:
    signed.cases["coarse"] = signed.good(0.05)
    folder = make_package()
    change_page(folder, "NOT SIGNED OFF", "SIGNED OFF")
    assert problems(folder) == "report.html does not say what the numbers do"


def test_a_page_with_other_plots_is_found(make_package: Make) -> None:
    folder = make_package()
    change_page(folder, ">mean KL, nat</text>", ">mean KL, bit</text>")
    assert problems(folder) == "report.html does not say what the numbers do"


def test_plots_of_another_matplotlib_are_not_compared_and_that_is_said(make_package: Make) -> None:
    folder = make_package()
    change_page(folder, ">mean KL, nat</text>", "> mean KL, nat </text>")
    change_page(folder, f"Plots by matplotlib {matplotlib.__version__}.", "Plots by matplotlib 3.1.0rc1.")
    found = verify(folder)
    assert found.problems == ()
    assert "matplotlib 3.1.0rc1 drew its plots, which were not compared" in found.notes[0]
    change_page(folder, "The decision, candidate by candidate", "What was decided")
    assert problems(folder) == "report.html does not say what the numbers do"


def test_a_page_that_is_no_text_is_refused(make_package: Make) -> None:
    folder = make_package()
    (folder / "report.html").write_bytes(b"\xff\xfe")
    reseal(folder)
    assert problems(folder) == "report.html does not say what the numbers do"


def test_a_number_too_large_to_be_a_perplexity_is_refused(make_package: Make) -> None:
    folder = make_package()
    edit(folder / "signoff.json", lambda plain: plain["candidates"][0]["nll_change"].update(high=1e5))
    reseal(folder)
    assert problems(folder)


def test_where_a_ready_made_folder_lay_is_not_told(signed: Signed, make_package: Make) -> None:
    plain = json.loads((make_package() / "candidates.json").read_bytes())
    assert [one["name"] for one in plain["candidate"]] == ["fine", "coarse"]
    folder = signed.folder / "deep" / "vendor-int4"
    candidate = signed.plan.candidate[0]
    given = type(candidate)("vendor", candidate.target, artifact=str(folder))
    assert type(signed.plan)(1, (given,)).public().candidate[0].artifact == "vendor-int4"
