"""The tokenizer suite's parts: texts, oracle, round trips, templates, shrinking and judging."""

from __future__ import annotations

import json
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import tokenizer_files
from harness.backends.openvino_tokenizer import OpenVinoTokenizer
from harness.compare import Outcome
from harness.errors import HarnessError, Unsupported
from harness.options import DEFAULT_CHECKPOINT
from harness.texts import corpus
from harness.texts.agreement import (
    Disagreement,
    Due,
    Reply,
    first_problem,
    gives_early,
    judge_agreement,
    rendering_problem,
    shown,
    stream_problem,
    text_problem,
    tokens_problem,
)
from harness.texts.oracle import Oracle
from harness.texts.promise import read_round_trip
from harness.texts.shrink import Questions, causes, shrink
from harness.texts.template import ChatTemplate
from harness.tokenization import Tokenization

CHECKPOINT = Path(DEFAULT_CHECKPOINT)
CHAT = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module", params=tokenizer_files.KINDS)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("kind") / str(request.param)
    tokenizer_files.KINDS[request.param](folder)
    return folder


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    folder = tmp_path_factory.mktemp("sentencepiece")
    tokenizer_files.sentencepiece(folder)
    return Oracle(folder)


# The oracle


def test_what_is_promised_of_round_trips_is_kept_by_the_oracle_itself(kind: Path) -> None:
    oracle = Oracle(kind)
    texts = [text for name in corpus.KINDS[2:] for text in corpus.texts(name, oracle.added_tokens)]
    promised = [text for text in texts if oracle.round_trip.covers(text)]
    assert len(promised) > len(texts) / 2
    for text in promised:
        assert oracle.decode(oracle.encode(text, special=False), special=True) == text


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"normalizer": {"type": "NFC"}}, "has NFC and is of no kind known"),
        ({"normalizer": {"type": "Lowercase"}}, "has Lowercase"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "has no normaliser and is of no kind known"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "of no kind known"),
        ({"decoder": {"type": "WordPiece"}}, "of no kind known"),
        ({"added_tokens": [{"id": 1}], "normalizer": None}, ""),
        ({"pre_tokenizer": [1, 2]}, "cannot be read: AttributeError"),
    ],
)
def test_no_round_trip_is_promised_of_a_tokenizer_that_changes_texts(
    change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    found = json.loads((CHECKPOINT / "tokenizer.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer.json").write_text(json.dumps({**found, **change}), encoding="utf-8")
    promise = read_round_trip(tmp_path / "tokenizer.json")
    assert promise.promised is (not reason)
    assert reason in promise.reason
    assert promise.covers("a") is promise.promised


def test_no_round_trip_is_promised_of_what_swallows_spaces(sentencepiece: Oracle) -> None:
    assert sentencepiece.round_trip.covers("  two  spaces\n")
    assert not sentencepiece.round_trip.covers("a \u2581 b")  # comes back as a space
    assert not sentencepiece.round_trip.covers("a<|end|> b")
    assert Oracle(CHECKPOINT).round_trip.covers("a<|end|> b")  # swallows nothing


def test_the_tokens_of_single_bytes_are_found(kind: Path) -> None:
    oracle = Oracle(kind)
    assert len(oracle.bytes) == 256
    snowman = [oracle.bytes[byte] for byte in "\N{SNOWMAN}".encode()]
    assert oracle.decode(snowman, special=True) == "\N{SNOWMAN}"
    assert oracle.decode(snowman[:2], special=True).strip("\ufffd") == ""


def test_a_run_of_bytes_that_is_no_text_may_be_read_as_sentencepiece_does(sentencepiece: Oracle) -> None:
    tokens = [sentencepiece.bytes[byte] for byte in b">\xff"]
    assert sentencepiece.readings(tokens, special=True) == ("\ufffd\ufffd", ">\ufffd")
    assert sentencepiece.readings([tokens[0]], special=True) == (">",)
    end = sentencepiece.encode("a<|end|>", special=False)
    assert sentencepiece.readings([*end, tokens[1]], special=True)[1] == "a<|end|>\ufffd"
    assert sentencepiece.readings([*end, tokens[1]], special=False)[1] == "a\ufffd"


def test_without_a_tokenizer_json_that_can_be_read_nothing_is_judged(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"no tokenizer\.json"):
        Oracle(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(Unsupported, match="cannot be read"):
        Oracle(tmp_path)


def test_texts_are_neither_cut_nor_filled_up(tmp_path: Path) -> None:
    found = json.loads((CHECKPOINT / "tokenizer.json").read_text(encoding="utf-8"))
    found["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    found["padding"] = {
        "strategy": {"Fixed": 50},
        "direction": "Right",
        "pad_to_multiple_of": None,
        **{"pad_id": 0, "pad_type_id": 0, "pad_token": "!"},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(found), encoding="utf-8")
    text = "a b c d e f"
    assert Oracle(tmp_path).encode(text, special=True) == Oracle(CHECKPOINT).encode(text, special=True)
    assert len(Oracle(tmp_path).encode(text, special=True)) == 6


# Chat templates


def test_the_bundled_template_is_rendered() -> None:
    template = ChatTemplate(CHECKPOINT)
    assert template.render(CHAT, answer=True) == "<|user|>\nhi<|end|>\n<|assistant|>\n"
    assert template.render(CHAT, answer=False) == "<|user|>\nhi<|end|>\n<|endoftext|>"


def written(folder: Path, **config: Any) -> ChatTemplate:
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return ChatTemplate(folder)


def test_a_template_has_the_names_that_transformers_gives_it(tmp_path: Path) -> None:
    source = "{{ bos_token }}|{{ eos_token }}|{{ messages[0] | tojson }}|{{ strftime_now('%%') }}"
    source += "\n    {% if true %}\nx{% endif %}"
    named = [{"name": "tools", "template": "no"}, {"name": "default", "template": source}]
    template = written(tmp_path, chat_template=named, bos_token={"content": "<s>"}, eos_token="</s>")
    message = {"role": "user", "content": "<\u00e9>"}
    assert template.render([message], answer=True) == '<s>|</s>|{"role": "user", "content": "<\u00e9>"}|%\nx'


def test_a_template_in_a_file_of_its_own_comes_first(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("file", encoding="utf-8")
    assert written(tmp_path, chat_template="config").render(CHAT, answer=True) == "file"


@pytest.mark.parametrize(
    "source",
    ["{{ raise_exception('roles must alternate') }}", "{{ messages.__class__.__mro__ }}", "{{ messages.append(1) }}"],
)
def test_what_a_template_refuses_or_is_not_allowed_is_no_text(source: str, tmp_path: Path) -> None:
    assert written(tmp_path, chat_template=source).render(CHAT, answer=True) is None


def test_without_a_template_nothing_is_judged(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="no chat template"):
        written(tmp_path)
    with pytest.raises(Unsupported, match="is no Jinja"):
        written(tmp_path, chat_template="{% if %}")


# Texts


def test_texts_are_the_same_every_time() -> None:
    first = [corpus.texts.__wrapped__(kind, ("<|end|>",)) for kind in corpus.KINDS[2:]]
    assert first == [corpus.texts.__wrapped__(kind, ("<|end|>",)) for kind in corpus.KINDS[2:]]
    assert corpus.token_lists(100, {}) == corpus.token_lists(100, {})


def test_texts_have_what_tokenizers_get_wrong() -> None:
    texts = {kind: corpus.texts(kind, ("<|end|>", "<|user|>")) for kind in corpus.KINDS[2:]}
    assert "" in texts["words"]
    assert any("\0" in text for text in texts["control-characters"])
    assert not any(corpus.has_control(text) for kind in texts if kind != "control-characters" for text in texts[kind])
    categories = {unicodedata.category(character) for text in texts["unicode"] for character in text}
    assert len(categories) > 20
    assert max(len(text) for text in texts["long-words"]) >= 3000
    assert {"<|end|>", " <|end|> b", "<|END|>", "<|end|"} <= set(texts["special-tokens"])
    for kind in texts:
        "".join(texts[kind]).encode()  # no half of a surrogate pair


def test_every_piece_of_a_vocabulary_is_in_its_texts() -> None:
    pieces = Oracle(CHECKPOINT).pieces()
    assert len(pieces) > 1500
    texts = corpus.of_vocabulary(pieces)
    assert all(any(piece in text for text in texts) for piece in pieces)


def test_every_kind_of_bytes_that_are_no_text_is_asked() -> None:
    oracle = Oracle(CHECKPOINT)
    byte_of = {token: byte for byte, token in oracle.bytes.items()}
    lists = corpus.token_lists(oracle.vocabulary, oracle.bytes)
    asked = [bytes(byte_of[token] for token in tokens) for tokens in lists if set(tokens) <= set(byte_of)]
    for hard in (b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"a\xffb", b"\xf0\x9f\x98"):
        assert hard in asked
        with pytest.raises(UnicodeDecodeError):
            hard.decode()


# Shrinking


def test_a_failing_text_is_shrunk_to_what_makes_it_fail() -> None:
    asked: list[str] = []

    def fails(some: Sequence[str]) -> list[bool]:
        asked.extend(some)
        return ["x" in text and "y" in text for text in some]

    assert shrink("a" * 500 + "x" + "b" * 700 + "y" + "c" * 300, Questions(fails)) == "xy"
    assert len(asked) < 400
    assert shrink("", Questions(fails)) == ""


def test_a_failing_list_of_tokens_is_shrunk() -> None:
    questions: Questions[list[int]] = Questions(lambda some: [tokens.count(3) > 1 for tokens in some])
    assert shrink([1, 2, 3, 4, 5, 3], questions) == [3, 3]


def test_shrinking_ends_when_enough_was_asked() -> None:
    questions: Questions[str] = Questions(lambda some: [len(text) > 900 for text in some], items=50_000)
    assert 900 < len(shrink("a" * 1000, questions)) < 1000
    assert questions.exhausted


def test_inputs_are_explained_by_the_parts_that_make_them_fail() -> None:
    def fails(some: Sequence[str]) -> list[bool]:
        return ["x" in text or "yz" in text for text in some]

    wrong = ["aaxaa", "x", "xxxyz", "ayzbyz", "yxz"]
    assert causes(wrong, fails, 5) == (["x", "yz"], [])
    assert causes(["yyzz"], fails, 5) == (["yz"], [])  # taken out, it comes about anew
    assert causes(wrong, fails, 1) == (["x"], ["yxz", "xxxyz", "ayzbyz"])


def test_another_cause_is_not_shrunk_into_one_that_is_known() -> None:
    def fails(some: Sequence[str]) -> list[bool]:
        return ["<a>" in text or "<ba>" in text for text in some]

    assert causes(["x<ba>", "<a>"], fails, 5) == (["<a>", "<ba>"], [])


def test_nothing_at_all_that_fails_explains_everything() -> None:
    small, left = causes(["", "a"], lambda some: [True] * len(some), 3)
    assert (small, left) == ([""], [])


# Judging


def test_tokens_are_equal_or_the_first_difference_is_shown() -> None:
    assert tokens_problem([1, 2], Reply([1, 2])) == ""
    assert tokens_problem([1, 2], Reply([1])) == "gives tokens [1], where [1, 2] are due"
    assert tokens_problem([1], Reply(None, "ValueError: no")) == "refused (ValueError: no), where tokens [1] is due"
    long = list(range(100))
    problem = tokens_problem(long, Reply([*long[:50], 7, *long[51:]]))
    assert problem.startswith(
        "gives tokens [..., 47, 48, 49, 7, 51, 52, 53, 54, ...] from place 47 of 100, where [..., 47"
    )


def test_texts_are_equal_or_shown_with_their_code_points() -> None:
    assert text_problem("a", Reply("a")) == ""
    assert text_problem("\u00e9", Reply("e")) == "gives 'e', where '\\xe9' (U+00E9) is due"
    problem = text_problem("a" * 100 + "b", Reply("a" * 100 + "c"))
    assert "'aaaaaaaaaaaac' at character 100, where ...'aaaaaaaaaaaab' is due (101 characters, 101 due)" in problem


def test_a_run_of_replacement_characters_counts_as_one_where_bytes_are_no_text() -> None:
    loose = Due(("a\ufffd\ufffdb",), loose=True)
    assert first_problem(text_problem, loose, Reply("a\ufffdb")) == ""
    assert first_problem(text_problem, loose, Reply("ab"))
    assert first_problem(text_problem, Due(("a\ufffd\ufffdb",)), Reply("a\ufffdb"))
    assert first_problem(stream_problem, loose, Reply(["a\ufffd", "\ufffd\ufffdb", ""])) == ""
    assert first_problem(text_problem, Due(("x", "y")), Reply("y")) == ""
    assert "where 'x' is due" in first_problem(text_problem, Due(("x", "y")), Reply("z"))
    assert first_problem(text_problem, loose, Reply(None, "E: x")).startswith("refused (E: x)")


def test_a_refusal_is_due_where_the_template_refuses() -> None:
    assert rendering_problem(None, Reply(None, "TemplateError: roles")) == ""
    assert rendering_problem(None, Reply("x")) == "gives 'x', where the template refuses"
    assert rendering_problem("x", Reply(None, "TemplateError: roles")).startswith("refused")
    assert rendering_problem("x", Reply("x")) == ""


def test_a_stream_gives_the_text_and_never_half_a_character() -> None:
    assert stream_problem("a\u00e9", Reply(["a", "", "\u00e9", ""])) == ""
    assert "half a character, '\\ufffd' (U+FFFD) after token 2 of 3" in stream_problem(
        "a\u00e9", Reply(["a", "\ufffd", "\u00e9", ""])
    )
    assert stream_problem("ab", Reply(["a", "", ""])) == "gives out 'a', where 'ab' is due in all"
    assert "'c' at the end: 'abc', where 'ab' is due" in stream_problem("ab", Reply(["a", "b", "c"]))
    assert stream_problem("a", Reply(None, "E: x")).startswith("refused")
    assert gives_early([Reply(["", "", "all"]), Reply(["a", ""])])
    assert not gives_early([Reply(["", "", "all"]), Reply(None, "E: x")])


def test_nothing_passes_where_nothing_was_asked() -> None:
    verdict = judge_agreement(0, 0, [], "texts")
    assert verdict.outcome is Outcome.FAIL
    assert verdict.message == "zero texts were compared"


def test_the_verdict_spells_out_some_and_counts_the_rest() -> None:
    found = [Disagreement(chr(97 + index), "gives x") for index in range(8)]
    verdict = judge_agreement(30, 12, found, "token lists", unexplained=3)
    assert verdict.numbers == {"token_lists": 30.0, "differing": 12.0}
    lines = verdict.message.splitlines()
    assert lines[0] == "12 of 30 token lists differ from the checkpoint's own; made small:"
    assert lines[1] == "  'a': gives x"
    assert lines[-2:] == ["  and 2 more", "  3 have causes that these do not explain"]
    assert judge_agreement(30, 0, [], "token lists").outcome is Outcome.PASS


def test_everything_is_shown_in_ascii() -> None:
    shown_chat = shown([{"role": "user", "content": "\u00e9"}])
    assert shown_chat == "chat user '\\xe9'"
    assert shown("\u4e2d" * 100).isascii()
    assert shown([1, 2]) == "tokens [1, 2]"


# The worker's side


class Refuses:
    """A tokenizer that raises as runtimes do."""

    def encode(self, text: str, *, special: bool) -> list[int]:
        if "panic" in text:
            raise BaseException("a panic of Rust\nwith a second line")
        if "\ud800" in text:
            raise ValueError(f"no text: {text}")
        return [int(special)]

    def decode(self, tokens: list[int], *, special: bool) -> str:
        return "\ud800" if tokens else str(special)

    def stream(self, _: list[int]) -> list[str]:
        raise Unsupported("no streams", "none")


def tokenization() -> Tokenization:
    session = SimpleNamespace(tokenizer=Refuses)
    return Tokenization(lambda: cast(Any, session))


def test_one_input_that_is_refused_says_nothing_of_others() -> None:
    texts = [b"a", b"panic", "\ud800".encode("utf-8", "surrogatepass"), b"b"]
    answers = tokenization().do_encode_texts(texts, special=True)
    assert answers[0] == answers[3] == ["gave", [1]]
    assert answers[1] == ["raised", "BaseException: a panic of Rust"]
    assert answers[2] == ["raised", "ValueError: no text: ?"]


def test_half_a_surrogate_pair_in_an_answer_is_told_and_not_sent() -> None:
    word, message = tokenization().do_decode_tokens([[1]], special=False)[0]
    assert word == "raised"
    assert message.startswith("UnicodeEncodeError")


def test_what_a_runtime_lacks_is_unsupported_and_no_disagreement() -> None:
    with pytest.raises(Unsupported, match="no streams"):
        tokenization().do_stream_tokens([[1]])
    with pytest.raises(HarnessError, match="gives no tokenizer"):
        Tokenization(lambda: cast(Any, object())).do_encode_texts([b"a"], special=True)


def test_the_tokenizer_of_a_session_loaded_anew_is_read_anew() -> None:
    made: list[Refuses] = []

    def tokenizer() -> Refuses:
        made.append(Refuses())
        return made[-1]

    sessions = [SimpleNamespace(tokenizer=tokenizer), SimpleNamespace(tokenizer=tokenizer)]
    held = Tokenization(lambda: cast(Any, sessions[0]))
    held.do_encode_texts([b"a"], special=True)
    held.do_encode_texts([b"a"], special=True)
    assert len(made) == 1
    sessions.pop(0)
    held.do_encode_texts([b"a"], special=True)
    assert len(made) == 2


def test_openvino_without_its_genai_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino_genai", None)
    with pytest.raises(Unsupported, match="openvino-genai, which is not installed") as raised:
        OpenVinoTokenizer(tmp_path)
    assert "pip install openvino-genai" in raised.value.remedy
