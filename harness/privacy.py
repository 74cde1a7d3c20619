"""What a record must not tell: a record is made to be passed on, so folders, people, machines and secrets are hidden.

Texts of runtimes and exporters are full of paths, and an error of ssh names the machine. What is hidden is replaced by
a word that says what was there.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

# Names that thousands have are nobody's, and are words of other things as well.
_WORDS = (
    "root user admin administrator ubuntu debian runner runneradmin vagrant docker container builder build test tests "
    "localhost localdomain host local home linux windows machine phi intel amd nvidia arm cpu gpu npu cuda dml main "
    "int4 int8 fp16 fp32 bf16 pytorch openvino genai model core long"
)
_ORDINARY = frozenset(_WORDS.split())
_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY", re.IGNORECASE)
_LEAST_SECRET = 8
# Such as `-4 -p 22 -i KEY `, before the machine.
_SSH_OPTIONS = r"(?:-\w+ (?:[^-\s]\S* )?)*"
_PATTERNS = (
    (re.compile(r"(?:hf_|ghp_|gho_|ghs_|github_pat_|glpat-|sk-|xox[abp]-)[A-Za-z0-9_-]{16,}"), "<secret>"),
    (re.compile(r"(?i)(\bbearer\s+)[A-Za-z0-9._~+/=-]{8,}"), r"\1<secret>"),
    (re.compile(r"(://)[^/\s:@]+:[^/\s@]+@"), r"\1<secret>@"),
    (re.compile(r"(?i)\b[a-z]:[\\/]+users[\\/]+[^\\/\s'\":;,]+"), "~"),
    (re.compile(r"(?<![\w.])/(?:home|Users)/[^/\s'\":;,)]+"), "~"),
    (re.compile(rf"(ssh=){_SSH_OPTIONS}[^\s/'\"]+"), r"\1<host>"),
    (re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)*"), "<account>"),
)
# Fields that name things of the record: a person called as a prompt must not rename it. Folders are hidden there too.
_NAMES = frozenset({"id", "test", "target", "case", "suite", "outcome", "stage", "waiver", "kind", "place", "prompt"})


class Privacy:
    """Hides the folder `root` and everything that is in `words`, which maps private words to what is shown for them."""

    def __init__(self, root: Path, words: Mapping[str, str] | None = None) -> None:
        self._folders = list(_folders(root))
        shown = {word.lower(): shown for word, shown in (words or {}).items() if word}
        self._shown = shown
        longest = sorted(map(re.escape, shown), key=len, reverse=True)
        self._words = re.compile(rf"(?i)(?<![A-Za-z0-9])(?:{'|'.join(longest)})(?![A-Za-z0-9])") if shown else None

    def hide(self, text: str) -> str:
        """A text without folders, secrets, accounts, and the names of users and machines."""
        text = self.hide_folders(text)
        if self._words is not None:
            text = self._words.sub(lambda found: self._shown[found.group().lower()], text)
        return text

    def hide_folders(self, text: str) -> str:
        """A text without folders, secrets and accounts."""
        for pattern, shown in (*self._folders, *_PATTERNS):
            text = pattern.sub(shown, text)
        return text

    def hide_all(self, plain: Any, name: str = "") -> Any:
        """Builtins with every text in them hidden; in fields that name things of the record, folders only."""
        if isinstance(plain, str):
            return self.hide_folders(plain) if name in _NAMES else self.hide(plain)
        if isinstance(plain, dict):
            return {key: self.hide_all(value, str(key)) for key, value in plain.items()}
        if isinstance(plain, (list, tuple)):
            numbers = bool(plain) and isinstance(plain[0], (int, float))
            return list(plain) if numbers else [self.hide_all(value, name) for value in plain]
        return plain


def of_this_machine(root: Path, hosts: Iterable[str] = ()) -> Privacy:
    """What is private here: user, machine and secrets of the environment; `hosts` are execnet's names of others."""
    words = dict.fromkeys(_users(), "<user>")
    for host in (socket.gethostname(), *map(_machine, hosts)):
        words |= dict.fromkeys({host, host.split(".")[0]}, "<host>")
    # The first part of an address is a number, and a number is many other things as well.
    words = {word: shown for word, shown in words.items() if not word.isdigit()}
    words |= {account.partition("@")[0]: "<user>" for account in hosts if "@" in account}
    words = {word: shown for word, shown in words.items() if len(word) > 2 and word.lower() not in _ORDINARY}
    secrets = {value for name, value in os.environ.items() if is_secret(name) and len(value) >= _LEAST_SECRET}
    return Privacy(root, {**words, **dict.fromkeys(secrets, "<secret>")})


def machines_named(specs: Iterable[str]) -> list[str]:
    """The accounts or machines in specifications such as `lab1=ssh=user@machine//python=PATH`."""
    return [found for spec in specs for found in re.findall(rf"ssh={_SSH_OPTIONS}([^\s/'\"]+)", spec)]


def is_secret(variable: str) -> bool:
    """Whether an environment variable of that name holds a secret."""
    return _SECRET_NAME.search(variable) is not None


def _users() -> Iterator[str]:
    with contextlib.suppress(Exception):  # KeyError, ImportError or OSError, by version and system
        yield getpass.getuser()
    for name in ("USER", "LOGNAME", "USERNAME", "SUDO_USER"):
        yield os.environ.get(name, "")


def _machine(account: str) -> str:
    return account.rpartition("@")[2]


def _folders(root: Path) -> Iterator[tuple[re.Pattern[str], str]]:
    """The tree, and the home folder with whatever links to it; the tree first, since it may lie in the other."""
    home = Path.home()
    for folder, shown in ((root, "."), (home, "~")):
        for path in {folder, folder.resolve()}:
            if path != Path(path.anchor):
                yield _pattern(path), shown


def _pattern(folder: PurePath) -> re.Pattern[str]:
    """A folder however its separators are written; what only begins like it is another one."""
    parts = [re.escape(part) for part in folder.parts[1:]]
    anchor = re.escape(folder.anchor.rstrip("\\/"))
    insensitive = re.IGNORECASE if folder.drive else 0
    return re.compile(anchor + r"[\\/]+" + r"[\\/]+".join(parts) + r"(?![\w-])", insensitive)
