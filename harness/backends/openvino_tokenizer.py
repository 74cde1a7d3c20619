"""OpenVINO's tokenizer: two models that optimum-cli exports beside the language model, run by OpenVINO GenAI."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from harness.errors import Unsupported
from harness.tokenization import Chat

FILES = ("openvino_tokenizer.xml", "openvino_detokenizer.xml")
"""The models of a tokenizer, in the folder of an artifact."""


class OpenVinoTokenizer:
    """`openvino_genai.Tokenizer` and `TextStreamer`; see `harness.tokenization.Tokenizer`.

    OpenVINO GenAI has a core of its own. Raises Unsupported where it is not installed, or the artifact has no such
    models.
    """

    def __init__(self, artifact: Path) -> None:
        if importlib.util.find_spec("openvino_genai") is None:
            raise Unsupported(
                "OpenVINO's tokenizer is run by openvino-genai, which is not installed",
                "python -m pip install openvino-genai, of the same release as openvino",
            )
        missing = [name for name in FILES if not (artifact / name).is_file()]
        if missing:
            raise Unsupported(f"the artifact has no {missing[0]}", "export it with openvino-tokenizers installed")
        self._genai = _genai()
        self._tokenizer = self._genai.Tokenizer(str(artifact))

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids."""
        found = self._tokenizer.encode(text, add_special_tokens=special).input_ids.data
        return [int(token) for token in found[0]] if found.size else []

    def decode(self, tokens: list[int], *, special: bool) -> str:
        """The text."""
        return str(self._tokenizer.decode(tokens, skip_special_tokens=not special))

    def stream(self, tokens: list[int]) -> list[str]:
        """What TextStreamer gives out."""
        given = [""]

        def take(text: str) -> object:
            given[-1] += text
            return self._genai.StreamingStatus.RUNNING

        streamer = self._genai.TextStreamer(self._tokenizer, take)
        for token in tokens:
            streamer.write(token)
            given.append("")
        streamer.end()
        return given

    def render(self, chat: Chat, *, answer: bool) -> str:
        """The chat under the artifact's template."""
        return str(self._tokenizer.apply_chat_template([dict(one) for one in chat], add_generation_prompt=answer))


def _genai() -> Any:
    """The module, with OpenVINO left as it was.

    Its first tokenizer imports openvino_tokenizers, which has every later core and frontend of the process load its
    extension: sessions, probes and operators are judged in the cores that their users have.
    """
    import openvino

    patched = (openvino.Core, openvino.frontend.frontend.FrontEnd)
    before = [cls.__init__ for cls in patched]
    import openvino_genai
    import openvino_tokenizers  # noqa: F401 - so that it is imported now

    for cls, init in zip(patched, before, strict=True):
        cls.__init__ = init
    return openvino_genai
