"""The parts of a record as they come in, without what is private, and each of them in the journal at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from harness.devices import Machine
from harness.discovery import RuntimeReport
from harness.journal import Journal
from harness.privacy import Privacy
from harness.record import CaseRecord, Detail, PromptRecord, RunRecord, SessionRecord, WaiverRecord
from harness.untrusted import all_printable
from harness.words import Words


class Ledger:
    """Cases, sessions, prompts, waivers, words and platforms of a run, each entered once and kept up to date.

    `warn` is told once if the journal cannot be written; the run goes on without.
    """

    def __init__(self, privacy: Privacy, warn: Callable[[str], None]) -> None:
        self.machines: dict[str, Machine] = {}
        self.runtimes: dict[str, RuntimeReport] = {}
        self._privacy = privacy
        self._warn = warn
        self._cases: dict[str, CaseRecord] = {}
        self._sessions: dict[str, SessionRecord] = {}
        self._prompts: dict[tuple[str, str], PromptRecord] = {}
        self._waivers: dict[str, WaiverRecord] = {}
        self._words: dict[int, str] = {}
        self._unread: set[int] = set()
        self._journal: Journal | None = None

    @property
    def cases(self) -> list[CaseRecord]:
        """The cases in the order in which they were finished."""
        return list(self._cases.values())

    @property
    def sessions(self) -> list[SessionRecord]:
        """The sessions in the order in which they were loaded."""
        return list(self._sessions.values())

    def begin(self, path: Path, header: RunRecord) -> None:
        """Begin the journal of the record at `path`."""
        self._guard(lambda: setattr(self, "_journal", Journal(path, msgspec.to_builtins(header))))

    def case(self, plain: Mapping[str, Any]) -> CaseRecord:
        """Enter a case. What goes wrong after a case has failed takes nothing from it; a pass is overruled."""
        found = msgspec.convert(self._public(plain), CaseRecord)
        known = self._cases.get(found.id)
        if known is not None and known.outcome not in ("PASS", "UNSUPPORTED"):
            return known
        if known is not None and found.detail is None:
            found = msgspec.structs.replace(found, detail=known.detail)
        self._cases[found.id] = found
        self._unread |= _tokens(found.detail)
        self._write("case", found)
        return found

    def session(self, plain: Mapping[str, Any]) -> SessionRecord:
        """Enter a session, with the evidence known of it before where it brings none."""
        found = msgspec.convert(self._public(plain), SessionRecord)
        known = self._sessions.get(found.target)
        if found.evidence is None and known is not None:
            found = msgspec.structs.replace(found, evidence=known.evidence)
        if found != known:
            self._sessions[found.target] = found
            self._write("session", found)
        return found

    def knows_prompt(self, suite: str, prompt_id: str) -> bool:
        """Whether a prompt was entered; making it takes a reading of its golden."""
        return (suite, prompt_id) in self._prompts

    def prompt(self, found: PromptRecord) -> None:
        """Enter a prompt."""
        self._prompts[found.suite, found.id] = found
        self._unread |= {*found.tokens, *(token for row in found.top.tokens for token in row)}
        self._write("prompt", found)

    def waiver(self, found: WaiverRecord) -> None:
        """Enter a waiver that covers a case."""
        if found.id not in self._waivers:
            self._waivers[found.id] = found
            self._write("waiver", found)

    def words(self, words: Words) -> None:
        """Enter the texts of all tokens in what was entered since the last time."""
        new = words.texts(sorted(self._unread - self._words.keys()))
        self._unread.clear()
        if new:
            self._words.update(new)
            self._write("words", {str(token): text for token, text in new.items()})

    def platform(self, machines: Mapping[str, Machine], runtimes: Sequence[RuntimeReport]) -> None:
        """Add to what is known of hosts and runtimes; xdist's workers each find out a part."""
        before = (dict(self.machines), dict(self.runtimes))
        self.machines |= machines
        for found in runtimes:
            key = f"{found.backend}:{found.host}:{found.python}:{sorted(found.versions.items())}"
            known = self.runtimes.get(key)
            devices = {**(known.devices if known else {}), **found.devices}
            self.runtimes[key] = msgspec.structs.replace(found, devices=devices)
        if (self.machines, self.runtimes) != before:
            self._write("platform", self._platform())

    def complete(self, header: RunRecord) -> RunRecord:
        """The record: a header with everything that was entered."""
        platform = msgspec.convert(self._platform(), _Platform)
        return msgspec.structs.replace(
            header,
            cases=self.cases,
            sessions=self.sessions,
            prompts=list(self._prompts.values()),
            waivers=list(self._waivers.values()),
            words={str(token): text for token, text in sorted(self._words.items())},
            hosts=platform.hosts,
            runtimes=platform.runtimes,
        )

    def end(self, *, written: bool) -> None:
        """Have done with the journal: the record is `written`, or it is all that there is."""
        journal, self._journal = self._journal, None
        if journal is not None:
            self._guard(journal.remove if written else journal.close)

    def _platform(self) -> dict[str, Any]:
        found = {"hosts": self.machines, "runtimes": list(self.runtimes.values())}
        plain: dict[str, Any] = self._public(msgspec.to_builtins(found))
        return plain

    def _public(self, plain: Mapping[str, Any]) -> Any:
        return all_printable(self._privacy.hide_all(plain))

    def _write(self, what: str, value: Any) -> None:
        journal = self._journal
        if journal is not None:
            self._guard(lambda: journal.write(what, msgspec.to_builtins(value)))

    def _guard(self, action: Callable[[], None]) -> None:
        try:
            action()
        except OSError as error:
            self._journal = None
            self._warn(f"the journal of this run cannot be written, so a run that is killed leaves nothing: {error}")


def _tokens(detail: Detail | None) -> set[int]:
    if detail is None:
        return set()
    return {*detail.tokens, *(token for row in (detail.top.tokens if detail.top else ()) for token in row)}


class _Platform(msgspec.Struct):
    hosts: dict[str, Machine]
    runtimes: list[RuntimeReport]
