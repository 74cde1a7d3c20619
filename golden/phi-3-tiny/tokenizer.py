"""The byte-level BPE tokenizers of the bundled checkpoints, laid out as Phi-3's or Phi-4-mini's is."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from chat import Conversation
from corpus import Split

VOCABULARY = 2048
END_OF_TEXT, ASSISTANT, END = "<|endoftext|>", "<|assistant|>", "<|end|>"


class Form(NamedTuple):
    """How a checkpoint writes chats.

    `vocabulary`: how many tokens there are, `special` the last of them, in the order of the real checkpoint. `after`
    follows each special token of a chat. `ends` are the tokens that end an answer, `positions` the context in tokens.
    """

    vocabulary: int
    special: tuple[str, ...]
    after: str
    ends: tuple[str, ...]
    positions: int

    @property
    def template(self) -> str:
        """The chat template, in Jinja."""
        after = self.after.replace("\n", "\\n")
        turn = f"'<|' + message['role'] + '|>{after}' + message['content'] + '<|end|>{after}'"
        return (
            f"{{%- for message in messages -%}}{{{{ {turn} }}}}{{%- endfor -%}}"
            f"{{%- if add_generation_prompt -%}}{{{{ '<|assistant|>{after}' }}}}"
            "{%- else -%}{{ '<|endoftext|>' }}{%- endif -%}"
        )


PHI_3 = Form(
    vocabulary=VOCABULARY,
    special=(
        END_OF_TEXT,
        ASSISTANT,
        "<|placeholder1|>",
        "<|placeholder2|>",
        "<|placeholder3|>",
        "<|placeholder4|>",
        "<|system|>",
        END,
        "<|placeholder5|>",
        "<|placeholder6|>",
        "<|user|>",
    ),
    after="\n",
    ends=(END_OF_TEXT, ASSISTANT, END),
    positions=1024,
)
PHI_4_MINI = Form(
    vocabulary=VOCABULARY,
    special=(
        END_OF_TEXT,
        "<|endofprompt|>",
        ASSISTANT,
        END,
        "<|user|>",
        "<|system|>",
        "<|tool|>",
        "<|/tool|>",
        "<|tool_call|>",
        "<|/tool_call|>",
        "<|tool_response|>",
        "<|tag|>",
    ),
    after="",
    ends=(END, END_OF_TEXT),
    positions=1024,
)


def render(conversation: Conversation, form: Form = PHI_3) -> str:
    """The text of a finished conversation, as the chat template gives it."""
    after = form.after
    turns = (f"<|{item['role']}|>{after}{item['content']}<|end|>{after}" for item in conversation)
    return "".join(turns) + END_OF_TEXT


def train_tokenizer(split: Split, form: Form = PHI_3) -> Tokenizer:
    """Learn the merges from the training texts and put the special tokens at the end."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=form.vocabulary - len(form.special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_plain_texts(split), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in form.special])
    if tokenizer.get_vocab_size() != form.vocabulary:
        raise ValueError(
            f"the tokenizer has {tokenizer.get_vocab_size()} tokens, not {form.vocabulary}: "
            "the corpus is too small for so many merges"
        )
    return tokenizer


def _plain_texts(split: Split) -> Iterable[str]:
    for texts in split.texts.values():
        yield from texts
    for conversation in split.chat:
        yield from (message["content"] for message in conversation)


def save_tokenizer(tokenizer: Tokenizer, folder: Path, form: Form = PHI_3) -> None:
    """Write the tokenizer's files so that transformers 4 and 5 read them alike."""
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token in form.special
    }
    config = {
        "add_bos_token": False,
        "add_eos_token": False,
        "added_tokens_decoder": added,
        **special,
        "chat_template": form.template,
        "clean_up_tokenization_spaces": False,
        "model_max_length": form.positions,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", special)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that is the same on every system."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")
