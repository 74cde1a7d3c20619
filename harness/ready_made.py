"""Ready-made artifacts: a folder, or a repository of the Hugging Face hub; and in it the artifact for a target.

Publishers lay several artifacts into one repository, a folder each: `cpu_and_mobile/cpu-int4-rtn-block-32`,
`directml/directml-int4-awq-block-128`. Which of them is a target's is read out of the artifacts (see
`harness.contents`) and not out of these names; where none or several are, the error lists what each is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from harness.contents import Contents, TellsContents
from harness.errors import ArtifactError, HarnessError, UsageError
from harness.target import Target, matches

_HUB = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)((?:/[\w.-]+)*)")
# What tells of the artifacts of a repository, and is small: weights lie in other files.
_SMALL = ("*.json", "*.jinja", "*.onnx", "*.xml")
# How far below the folder that is named an artifact may lie: the published ones lie two folders deep.
_DEPTH = 3


class Chosen(NamedTuple):
    """The artifact for a target; `contents` is None where the backend cannot tell what it is."""

    path: Path
    contents: Contents | None


def find_artifact(name: str, marks: Sequence[str] = ()) -> Path:
    """The folder that `--artifact` names: one of this machine, or `owner/model[/folder]` of the hub.

    A repository is looked for in the hub's cache first, then on the network. One that holds several artifacts, which
    are known by files called one of `marks`, is not downloaded with their weights unless one of its folders is named.
    Raises UsageError where there is nothing of the name.
    """
    try:
        folder = Path(name).expanduser()
    except RuntimeError:  # there is no such user
        folder = Path(name)
    if folder.is_dir():
        return folder.absolute()
    hub = _HUB.fullmatch(name)
    if hub is None or ".." in name.split("/"):
        raise UsageError(f"there is no artifact folder {name}", "name a folder, or owner/model of the Hugging Face hub")
    return _from_hub(hub[1], hub[2].lstrip("/"), marks)


def find_artifacts(given: Sequence[tuple[str, str]], backends: Mapping[str, object]) -> tuple[tuple[str, Path], ...]:
    """What `--artifact` gives by target or glob, with the folder in the name's place; see `find_artifact`."""
    marks = [backend.artifact_mark for backend in backends.values() if isinstance(backend, TellsContents)]
    return tuple((pattern, find_artifact(name, marks)) for pattern, name in given)


def check_artifacts(
    given: Sequence[tuple[str, Path]], targets: Sequence[Target], backends: Mapping[str, object]
) -> None:
    """Raise what is wrong with an artifact that is none for any of the targets that it is given for."""
    for pattern, folder in given:
        problems: list[HarnessError] = []
        meant = [target for target in targets if matches(target, pattern)]
        for target in meant:
            try:
                choose(target, folder, backends[target.backend])
            except HarnessError as error:
                problems.append(error)
        if problems and len(problems) == len(meant):
            raise problems[0]


def choose(target: Target, folder: Path, backend: object) -> Chosen:
    """The artifact for a target in a folder: the folder itself, or the one below it that is what the target asks for.

    Raises UsageError where there is none or more than one, or the folder's own is of another precision; ArtifactError
    where it cannot be read.
    """
    if not isinstance(backend, TellsContents):
        return Chosen(folder, None)
    if not folder.is_dir():
        raise UsageError(f"there is no artifact folder {folder}", "name a folder")
    if (folder / backend.artifact_mark).is_file():
        found = backend.contents(folder)
        if found.precision is not target.precision:
            raise UsageError(
                f"{target} cannot be judged on {spoken(folder)}: its weights are {_in_words(found)}",
                f"judge {_of_precision(target, found)} on it, or give an artifact that is {target.precision.value}",
            )
        return _whole(folder, found)
    read = {path: _read(path, backend) for path in _below(folder, backend.artifact_mark)}
    fitting = {path: found for path, found in read.items() if isinstance(found, Contents) and _fits(found, target)}
    if len(fitting) == 1:
        return _whole(*next(iter(fitting.items())))
    if not read:
        raise UsageError(
            f"{spoken(folder)} holds no artifact for {target}: no {backend.artifact_mark} in it or below it",
            "name the folder of one" if _hub_name(folder) is None else _download(folder, "*"),
        )
    raise UsageError(_several(target, folder, read, fitting), _options(target, folder, fitting))


def spoken(folder: Path) -> str:
    """A folder as it is named in a command: by repository and folder where it lies in the hub's cache."""
    hub = _hub_name(folder)
    return str(folder) if hub is None else "/".join(filter(None, hub))


def _fits(found: Contents, target: Target) -> bool:
    return found.precision is target.precision and (not found.devices or target.base_device in found.devices)


def _read(path: Path, backend: TellsContents) -> Contents | ArtifactError:
    try:
        return backend.contents(path)
    except ArtifactError as error:
        return error


def _whole(folder: Path, found: Contents) -> Chosen:
    """The artifact, if all files that it names are there."""
    if found.missing:
        more = f" and {len(found.missing) - 1} more" if len(found.missing) > 1 else ""
        again = "copy it again with all its files" if _hub_name(folder) is None else _download(folder, "*")
        raise UsageError(f"{spoken(folder)} lacks {found.missing[0]}{more}", again)
    return Chosen(folder, found)


def _in_words(found: Contents) -> str:
    made = f", made for {', '.join(found.devices)}" if found.devices else ""
    return f"{found.precision.value} ({found.recipe}{made})"


def _of_precision(target: Target, found: Contents) -> str:
    return f"{target.backend}:{target.device}:{found.precision.value}"


def _several(
    target: Target,
    folder: Path,
    read: Mapping[Path, Contents | ArtifactError],
    fitting: Mapping[Path, Contents],
) -> str:
    """What lies in a folder, of which not one artifact is the target's."""
    many = f"{len(fitting)} are" if fitting else "none of them is"
    lines = [f"{spoken(folder)} holds {len(read)} artifacts, and {many} for {target}:"]
    for path, found in read.items():
        what = _in_words(found) if isinstance(found, Contents) else f"cannot be read: {found.problem}"
        lines.append(f"    {path.relative_to(folder).as_posix()}: {what}")
    return "\n".join(lines)


def _options(target: Target, folder: Path, fitting: Mapping[Path, object]) -> str:
    """The options that name one artifact each, on lines of their own; or what else can be done."""
    if fitting:
        return "name one:" + "".join(f"\n    --artifact '{target}={spoken(path)}'" for path in fitting)
    rest = "" if _hub_name(folder) is None else f"; if not all of the repository is here, {_download(folder, '*')}"
    return f"give an artifact that is {target.precision.value} for {target.base_device}{rest}"


def _below(folder: Path, mark: str, depth: int = _DEPTH) -> Iterator[Path]:
    """The nearest folders below one that have a file of that name, in the order of their names."""
    for inner in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        if (inner / mark).is_file():
            yield inner
        elif depth > 1:
            yield from _below(inner, mark, depth - 1)


def _hub_name(folder: Path) -> tuple[str, str] | None:
    """Repository and folder of a path in the hub's cache, `models--owner--model/snapshots/REVISION/folder`."""
    parts = folder.parts
    for i, part in enumerate(parts[:-2]):
        if part.startswith("models--") and parts[i + 1] == "snapshots":
            return "/".join(part.split("--")[1:]), "/".join(parts[i + 3 :])
    return None


def _download(folder: Path, files: str) -> str:
    """The command that brings what is missing into the hub's cache."""
    repository, inner = _hub_name(folder) or ("", "")
    return f"download it: {_command(repository, '/'.join(filter(None, [inner, files])))}"


def _command(repository: str, files: str) -> str:
    return f"hf download {repository}" + ("" if files == "*" else f" --include '{files}'")


def _from_hub(repository: str, inner: str, marks: Sequence[str]) -> Path:
    """A repository's snapshot, or the folder of it that is meant, out of the cache or off the network."""
    found = _snapshot(repository, None, local=True)
    if isinstance(found, Path) and _holds(found / inner, marks):
        return found / inner
    found = _snapshot(repository, [f"{inner}/*"] if inner else list(_SMALL), local=False)
    if isinstance(found, Path) and not inner and _holds(found, marks):
        folders = {path for mark in marks for path in [found, *_below(found, mark)] if (path / mark).is_file()}
        if len(folders) == 1:
            only = folders.pop().relative_to(found).as_posix()
            found = _snapshot(repository, None if only == "." else [f"{only}/*"], local=False)
    if isinstance(found, Path) and _holds(found / inner, marks):
        return found / inner
    why = f"its copy there has no {inner or 'artifact'}" if isinstance(found, Path) else found
    files = f"{inner}/*" if inner else "*"
    raise UsageError(
        f"there is no artifact folder {'/'.join(filter(None, [repository, inner]))}, nor is it in the Hugging Face "
        f"cache or to be downloaded: {why}",
        f"with a network, {_command(repository, files)} --local-dir FOLDER; then --artifact TARGET=FOLDER",
    )


def _holds(folder: Path, marks: Sequence[str]) -> bool:
    """Whether a folder has an artifact in it or below it; any file will do where nothing is known of artifacts."""
    if not folder.is_dir():
        return False
    if not marks:
        return any(folder.iterdir())
    return any((folder / mark).is_file() or any(_below(folder, mark)) for mark in marks)


def _snapshot(repository: str, patterns: list[str] | None, *, local: bool) -> Path | str:
    """The folder of a repository in the hub's cache, with the files of some patterns; or why there is none."""
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        found = huggingface_hub.snapshot_download(repository, allow_patterns=patterns, local_files_only=local)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return Path(os.fspath(found))
