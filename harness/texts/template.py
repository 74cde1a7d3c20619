"""A checkpoint's chat template, rendered as transformers documents it, without transformers.

Templates are Jinja in a sandbox, blocks trimmed, with the names of the special tokens, `raise_exception`,
`strftime_now` and a `tojson` that escapes nothing for HTML (transformers, utils/chat_template_utils.py,
`_compile_jinja_template`).
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from harness.errors import Unsupported

_REMEDY = "add chat_template.jinja to the checkpoint"
_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ChatTemplate:
    """The template of a checkpoint folder. Raises Unsupported where there is none, or it is no Jinja."""

    def __init__(self, checkpoint: Path) -> None:
        import jinja2
        import jinja2.ext
        import jinja2.sandbox

        config = _read(checkpoint / "tokenizer_config.json")
        source = _source(checkpoint, config)
        if source is None:
            raise Unsupported("the checkpoint has no chat template", _REMEDY)
        environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        self._names = _special_tokens(checkpoint, config)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise Unsupported(f"the checkpoint's chat template is no Jinja: {error}", _REMEDY) from None

    def render(self, chat: list[dict[str, str]], *, answer: bool) -> str | None:
        """The text of a chat; with `answer`, up to where the answer begins. None where the template refuses it."""
        import jinja2

        try:
            return self._template.render(messages=chat, add_generation_prompt=answer, **self._names)
        except jinja2.TemplateError:
            return None


def _source(checkpoint: Path, config: dict[str, Any]) -> str | None:
    """The template's text: a file of its own comes before the one in the configuration, which may hold several."""
    file = checkpoint / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {str(one.get("name")): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _special_tokens(checkpoint: Path, config: dict[str, Any]) -> dict[str, str]:
    both = {**_read(checkpoint / "special_tokens_map.json"), **config}
    found = {name: both[name] for name in _SPECIAL_NAMES if both.get(name)}
    return {name: str(value["content"] if isinstance(value, dict) else value) for name, value in found.items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _to_json(value: Any, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, **options)


def _refuse(message: str) -> str:
    import jinja2

    raise jinja2.TemplateError(message)
