"""What tokens stand for, as the checkpoint's own tokenizer decodes them one by one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any


class Words:
    """The texts of tokens of a checkpoint folder; the tokenizer is read when the first text is asked for."""

    def __init__(self, checkpoint: Path) -> None:
        self._path = checkpoint / "tokenizer.json"
        self._tokenizer: Any = None
        self._unreadable = False

    def texts(self, tokens: Iterable[int]) -> dict[int, str]:
        """The text of each token; of none where the checkpoint has no tokenizer.json that can be read."""
        if self._tokenizer is None and not self._unreadable:
            self._open()
        if self._tokenizer is None:
            return {}
        return {token: self._tokenizer.decode([token], skip_special_tokens=False) for token in tokens}

    def _open(self) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(self._path))
        except Exception:  # noqa: BLE001 - the library raises bare Exception; nothing must fail for want of a word
            self._unreadable = True
