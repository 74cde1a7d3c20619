"""The training texts of the bundled checkpoint: where each comes from, and their hash.

Every text is free to use:

- ``topics``: the reference help of the running Python (``pydoc_data.topics``), under the Python Software
  Foundation licence;
- ``licences``: the licence of the running Python and the Apache licence that transformers ships,
  which allow verbatim copies;
- ``essays`` (essays.txt), ``stories`` (stories.py) and ``chat`` (chat.py): written for this project, under its
  MIT licence.

The first two depend on the Python and the transformers that run this, so the corpus is hashed source by source.
"""

import hashlib
import importlib.metadata
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics

from chat import Conversation, conversation
from stories import story

HERE = Path(__file__).parent
SEED = 20261122
STORIES = 700
CONVERSATIONS = 9000
HELD_OUT = 16  # one document in so many is never trained on


@dataclass(frozen=True)
class Split:
    """Documents by source; a chat document is a conversation, any other a text."""

    texts: Mapping[str, Sequence[str]]
    chat: Sequence[Conversation]


@dataclass(frozen=True)
class Corpus:
    """The whole corpus, split, with the SHA-256 of each source and of all of them together."""

    train: Split
    held_out: Split
    hashes: Mapping[str, str]
    sha256: str


def python_topics() -> list[str]:
    """The topics of Python's reference help, without those that are too short to be prose."""
    return [text for _, text in sorted(topics.topics.items()) if len(text) > 200]


def licences() -> list[str]:
    """The Python licence and the Apache licence."""
    python = "\n".join(line.rstrip() for line in _python_licence().splitlines())
    files = importlib.metadata.files("transformers") or []
    apache = next(file for file in files if file.name == "LICENSE")
    return [python, Path(str(apache.locate())).read_text(encoding="utf-8")]


def _python_licence() -> str:
    """The licence of the running Python: beside its library, or beside its executable on Windows."""
    library = Path(topics.__file__).parents[1]
    for path in (library / "LICENSE.txt", library.parent / "LICENSE.txt"):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise FileNotFoundError(f"no LICENSE.txt in {library} or above it; run this with a Python from python.org or pyenv")


def essays() -> list[str]:
    """The essays, one a paragraph."""
    return (HERE / "essays.txt").read_text(encoding="utf-8").strip().split("\n\n")


def build() -> Corpus:
    """Collect every source, hash it and set documents aside for evaluation."""
    rng = random.Random(SEED)
    texts = {"topics": python_topics(), "licences": licences(), "essays": essays()}
    texts["stories"] = [story(rng) for _ in range(STORIES)]
    chat = [conversation(rng) for _ in range(CONVERSATIONS)]
    sources: dict[str, Sequence[object]] = {**texts, "chat": chat}
    hashes = {name: _sha256(documents) for name, documents in sources.items()}
    train_texts, held_out_texts = {}, {}
    for name, documents in texts.items():
        train_texts[name] = [text for text in documents if not is_held_out(text)]
        held_out_texts[name] = [text for text in documents if is_held_out(text)]
    return Corpus(
        train=Split(train_texts, [item for item in chat if not is_held_out(item)]),
        held_out=Split(held_out_texts, [item for item in chat if is_held_out(item)]),
        hashes=hashes,
        sha256=_sha256([hashes]),
    )


def is_held_out(document: object) -> bool:
    """Whether a document is set aside; equal documents always go to the same side."""
    return int(_sha256([document])[:8], 16) % HELD_OUT == 0


def _sha256(documents: Sequence[object]) -> str:
    text = json.dumps(list(documents), ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
