"""Chats as tokens: expected masks are TRL's own, with every template that TRL ships."""

import json
import re
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from typing import Any

import datasets
import pytest
from jinja2.exceptions import TemplateError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import chat_template_utils
from trl import chat_template_utils as trl_templates

from albat_core.backbones import input_fingerprint
from albat_core.backbones.config import BackboneConfig
from albat_core.backbones.language.chats import ChatRenderer
from albat_core.backbones.language.tokens import TextEncoder
from albat_core.errors import BackboneError, InputError
from albat_core.records.examples import Example, examples_to_table, table_to_examples
from albat_core.records.mixtures import MIXTURE_SCHEMA
from albat_core.records.tables import write_table
from tests.toys import save_backbone

TEMPLATES = Path(trl_templates.__file__).parent / "chat_templates"
TRAINED = sorted(p.stem.removesuffix("_training") for p in TEMPLATES.glob("*_training.jinja"))
SHIPPED = sorted(p.stem for p in TEMPLATES.glob("*.jinja") if "_training" not in p.stem)
IN_PARTS = {"idefics3", "llava_next", "smolvlm"}  # these take a content as a list of its parts
DAY = BackboneConfig(path="any").chat_date
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_SPECIAL = re.compile(r"</?s>|<\|?[^\s<>'\"{}+]{1,40}\|?>|\[/?[A-Z_]{3,20}\]")

Messages = list[dict[str, Any]]


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def answer(content: Any, **keys: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **keys}


CALL = {
    "id": "1",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Rome"}},
}
CHATS: dict[str, Messages] = {
    "two turns": [user("hi there"), answer("seed one"), user("and?"), answer("leaf two")],
    "a system prompt": [
        {"role": "system", "content": "be good"},
        user("hi"),
        answer("seed"),
        user("and?"),
        answer("leaf"),
    ],
    "all the same": [user("hi"), answer("hi"), user("hi"), answer("hi")],
    "line breaks": [user("hi"), answer("\nseed"), user("hi"), answer("\n\nleaf\n")],
    "the assistant first": [answer("hello"), user("hi"), answer("seed")],
    "reasoning": [
        user("hi"),
        answer("seed", reasoning_content="why"),
        user("and?"),
        answer("leaf", reasoning_content="because"),
    ],
    "reasoning in the content": [
        user("hi"),
        answer("<think>\nwhy\n</think>\n\nseed"),
        user("and?"),
        answer("<think>\nbecause\n</think>\n\nleaf"),
    ],
    "reasoning in the first of all": [
        answer("<think>\nwhy\n</think>\n\nhello"),
        user("a"),
        answer("b"),
    ],
    "reasoning before a greeting": [
        answer("hello", reasoning_content="why"),
        user("hi"),
        answer("seed"),
    ],
    "a call": [
        user("hi"),
        answer("", tool_calls=[CALL]),
        {"role": "tool", "name": "weather", "tool_call_id": "1", "content": "sun"},
        answer("it is sun"),
    ],
}
OTHERWISE = {
    # the template writes the end of what tools said, for TRL the assistant does
    ("deepseekv3", "a call"),
    # the token that ends a call has no loss in TRL
    ("diffusion_gemma", "a call"),
}
"""Where TRL's mask is not what the assistant says and its end."""


def tokenizer_of(template: str) -> Any:
    """A tokenizer of bytes, and of the special tokens that a template names."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={c: n for n, c in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    tokenizer.add_tokens(sorted({*_SPECIAL.findall(template)}), special_tokens=True)
    tokenizer.chat_template = template
    return tokenizer


def shaped(name: str, messages: Messages) -> Messages:
    if name not in IN_PARTS:
        return messages
    return [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]


def spoken(tokenizer: Any, messages: Messages, **fields: Any) -> tuple[list[int], list[bool]]:
    row = Example("e", "d", "s", messages=tuple(messages), **fields)
    found = ChatRenderer(tokenizer, "tokenizer", DAY).spoken(row)
    return found.ids, found.mask


def learnt(tokenizer: Any, messages: Messages, **fields: Any) -> str:
    """What carries loss, runs of it apart by ``¦``."""
    ids, mask = spoken(tokenizer, messages, **fields)
    runs = [""]
    for token, learns in zip(ids, mask, strict=True):
        if learns:
            runs[-1] += tokenizer.decode([token])
        elif runs[-1]:
            runs.append("")
    return "¦".join(run for run in runs if run)


@pytest.fixture
def fixed_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let transformers itself think that it is the day."""
    set_day(monkeypatch, DAY)


def set_day(monkeypatch: pytest.MonkeyPatch, day: date) -> None:
    class Frozen(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Frozen":
            return cls(day.year, day.month, day.day, tzinfo=tz)

    monkeypatch.setattr(chat_template_utils, "datetime", Frozen)


def header_of(tokenizer: Any, name: str) -> list[int]:
    """The tokens that a template writes to have a user's message answered."""
    ask = shaped(name, [user("a")])
    prompt = tokenizer.apply_chat_template(ask, tokenize=False, add_generation_prompt=True)
    plain = tokenizer.apply_chat_template(ask, tokenize=False)
    header = prompt.removeprefix(plain.removesuffix("</s>"))  # Phi-3 ends what is not to go on
    return list(tokenizer(header, add_special_tokens=False)["input_ids"])


def without_headers(ids: list[int], marked: list[int], header: list[int]) -> list[bool]:
    """TRL's marks but for what of a header is within: it is given to the model, not learnt."""
    mask = list(map(bool, marked))
    for start in range(len(mask)):
        if not mask[start] or (start and mask[start - 1]):
            continue
        for begin in range(max(0, start - len(header) + 1), start + 1):
            same = 0
            while ids[begin + same : begin + same + 1] == header[same : same + 1] != []:
                same += 1
            if begin + same >= start and same:
                mask[start : begin + same] = [False] * (begin + same - start)
                break
    return mask


def unmarked(template: str) -> str:
    """A template that writes the same without marks of what is generated."""
    template = re.sub(r"(\{%-?\s*)endgeneration(\s*-?%\})", r"\1endif\2", template)
    return re.sub(r"(\{%-?\s*)generation(\s*-?%\})", r"\1if true\2", template)


@pytest.mark.usefixtures("fixed_day")
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("name", TRAINED)
def test_loss_falls_where_trl_lets_it_fall(name: str, chat: str) -> None:
    original = (TEMPLATES / f"{name}.jinja").read_text()
    tokenizer, messages = tokenizer_of(original), shaped(name, CHATS[chat])
    marked = trl_templates.get_training_chat_template(tokenizer)
    tokenizer = tokenizer_of(original + marked)
    tokenizer.chat_template = marked
    try:
        expected = tokenizer.apply_chat_template(
            messages, return_dict=True, return_assistant_tokens_mask=True
        )
    except (TemplateError, TypeError):
        with pytest.raises(InputError, match="it refuses message"):
            spoken(tokenizer, messages)
        return
    if chat == "a call" and not trl_templates.supports_tool_calling(tokenizer):
        with pytest.raises(InputError, match="leaves out those of message 1"):
            spoken(tokenizer, messages)
        return
    if (name, chat) in OTHERWISE:
        pytest.skip("TRL's mask has another meaning there")
    ids = expected["input_ids"]
    mask = without_headers(ids, expected["assistant_masks"], header_of(tokenizer, name))
    assert any(mask)
    for template in (marked, unmarked(marked), original):
        tokenizer.chat_template = template
        found = spoken(tokenizer, messages)
        if template is not original or found[0] == ids:
            assert found == (ids, mask)


def called(number: int) -> list[dict[str, Any]]:
    arguments = {"city": f"ARGUMENT{number}"}
    return [CALL | {"function": {"name": "weather", "arguments": arguments}}]


def told(number: int) -> dict[str, Any]:
    return {"role": "tool", "name": "weather", "tool_call_id": "1", "content": f"TOLD{number}"}


WITH_TOOLS: dict[str, Messages] = {
    "words beside a call": [
        user("ASKED1"),
        answer("ANSWER1", tool_calls=called(1)),
        told(1),
        answer("ANSWER2"),
    ],
    "calls one after the other": [
        user("ASKED1"),
        answer("", tool_calls=called(1)),
        told(1),
        answer("ANSWER1", tool_calls=called(2)),
        told(2),
        answer("ANSWER2"),
        user("ASKED2"),
        answer("ANSWER3"),
    ],
    "thoughts that are dropped": [
        user("ASKED1"),
        answer("", reasoning_content="ANSWER1", tool_calls=called(1)),
        told(1),
        answer("ANSWER2", reasoning_content="ANSWER3"),
        user("ASKED2"),
        answer("ANSWER4", reasoning_content="ANSWER5"),
    ],
}


@pytest.mark.usefixtures("fixed_day")
@pytest.mark.parametrize("chat", WITH_TOOLS)
@pytest.mark.parametrize("name", SHIPPED)
def test_of_chats_with_tools_all_that_the_assistant_says_is_learnt_and_no_more(
    name: str, chat: str
) -> None:
    tokenizer = tokenizer_of((TEMPLATES / f"{name}.jinja").read_text())
    try:
        ids, mask = spoken(tokenizer, shaped(name, WITH_TOOLS[chat]))
    except (InputError, KeyError):  # the template takes no tools
        return
    whole, learnt = (
        re.findall(r"[A-Z]{4,8}\d", text)
        for text in (
            tokenizer.decode(ids),
            tokenizer.decode([n for n, m in zip(ids, mask, strict=True) if m]),
        )
    )
    said = [word for word in whole if word.startswith(("ANSWER", "ARGUMENT"))]
    assert learnt == said
    assert len(said) >= 2  # some templates leave words beside a call out


@pytest.mark.usefixtures("fixed_day")
@pytest.mark.parametrize("name", SHIPPED)
def test_an_answer_is_trl_s_completion(name: str) -> None:
    tokenizer = tokenizer_of((TEMPLATES / f"{name}.jinja").read_text())
    prompt, whole = shaped(name, [user("hi there")]), shaped(name, CHATS["two turns"][:2])
    asked = tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
    ids = tokenizer.apply_chat_template(whole)["input_ids"]
    found, mask = spoken(tokenizer, whole)
    assert found == ids
    if ids[: len(asked)] == asked and name not in IN_PARTS:
        assert mask == [n >= len(asked) for n in range(len(ids))]


@pytest.mark.usefixtures("fixed_day")
@pytest.mark.parametrize("chat", ["two turns", "a system prompt", "line breaks", "reasoning"])
@pytest.mark.parametrize("name", SHIPPED)
def test_the_last_answer_is_asked_for_as_it_is_learnt(name: str, chat: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of((TEMPLATES / f"{name}.jinja").read_text())
    row = Example("e", "d", "s", messages=tuple(shaped(name, CHATS[chat])))
    try:
        ids, mask = spoken(tokenizer, list(row.messages or ()))
    except InputError:
        pytest.skip("the template refuses the chat")
    encoder = TextEncoder(BackboneConfig(path=str(save_backbone(tmp_path)), max_length=512))
    encoder.tokenizer = tokenizer
    encoder._chats = ChatRenderer(tokenizer, "tokenizer", DAY)
    question = encoder.question(row)
    first = len(question.ids)
    assert question.ids == ids[:first]
    assert mask[first] and not mask[first - 1]
    said = CHATS[chat][-1]["content"].strip()
    assert question.reference.endswith(said)
    if chat != "reasoning":  # what is thought is compared too
        assert question.reference == said
    learnt_last = [token for token, learns in zip(ids[first:], mask[first:], strict=True) if learns]
    assert encoder.said(question, learnt_last) == question.reference
    assert ("because" in tokenizer.decode(learnt_last)) == ("because" in question.reference)
    assert question.end is not None or question.stop == ""
    if question.end is not None:
        assert question.end in learnt_last


# What is said of templates, one by one


def qwen3() -> Any:
    return tokenizer_of((TEMPLATES / "qwen3.jinja").read_text())


def test_a_chat_is_cut_to_its_longest_beginning_that_fits(tmp_path: Path) -> None:
    """It gets shorter where a thought is left out behind the next question."""
    encoder = TextEncoder(BackboneConfig(path=str(save_backbone(tmp_path)), max_length=300))
    encoder.tokenizer = tokenizer_of((TEMPLATES / "qwen3.jinja").read_text())
    encoder._chats = ChatRenderer(encoder.tokenizer, "tokenizer", DAY)
    turns = [(f"q{n}", answer(f"a{n}", reasoning_content="w" * n)) for n in (400, 401, 1, 402)]
    messages = tuple(each for asked, said in turns for each in (user(asked), said))
    lengths = [
        len(encoder.tokens(Example("e", "d", "s", messages=messages[:count]))[0])
        for count in (2, 4, 6, 8)
    ]
    assert [length <= 300 for length in lengths] == [False, False, True, False]
    (piece,) = encoder.pieces(Example("e", "d", "s", messages=messages))
    assert piece.messages == messages[:6]


def test_a_template_that_rewrites_earlier_turns_keeps_its_own_text() -> None:
    tokenizer = qwen3()
    messages = CHATS["reasoning in the content"]
    ids, _ = spoken(tokenizer, messages)
    assert ids == tokenizer.apply_chat_template(messages)["input_ids"]
    assert learnt(tokenizer, messages) == (
        "seed<|im_end|>\n¦<think>\nbecause\n</think>\n\nleaf<|im_end|>\n"
    )


def test_a_chat_that_the_assistant_begins_teaches_neither_header_nor_system_prompt() -> None:
    tokenizer = tokenizer_of((TEMPLATES / "qwen2_5.jinja").read_text())
    assert "You are Qwen" in tokenizer.decode(spoken(tokenizer, [answer("hello")])[0])
    assert learnt(tokenizer, [answer("hello")]) == "hello<|im_end|>\n"
    assert learnt(tokenizer_of(CHATML), [answer("hello")]) == "hello<|im_end|>\n"


def test_a_token_across_a_header_s_end_is_learnt() -> None:
    tokenizer = tokenizer_of(CHATML)
    tokenizer.add_tokens(["\n\n"])
    ids, mask = spoken(tokenizer, [user("hi"), answer("\nseed")])
    both = tokenizer.convert_tokens_to_ids("\n\n")
    assert mask[ids.index(both)]
    chat = tokenizer.apply_chat_template([user("hi"), answer("\nseed")])
    assert ids == chat["input_ids"]


@pytest.mark.parametrize("name", SHIPPED)
def test_contents_are_written_whichever_of_their_kinds_a_template_knows(name: str) -> None:
    tokenizer = tokenizer_of((TEMPLATES / f"{name}.jinja").read_text())
    chat = CHATS["two turns"]
    expected = learnt(tokenizer, shaped(name, chat))  # the kind that it was written for
    assert "seed one" in expected
    assert "leaf two" in expected
    parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in chat]
    assert learnt(tokenizer, chat) == expected
    assert learnt(tokenizer, parts) == expected
    assert learnt(tokenizer, [chat[0], *parts[1:]]) == expected


def test_parts_are_joined_where_a_template_prints_lists() -> None:
    tokenizer = tokenizer_of((TEMPLATES / "llama3.jinja").read_text())
    parts = [{"type": "text", "text": "seed "}, {"type": "text", "text": "one"}]
    assert "{'type'" in tokenizer.apply_chat_template([answer(parts)], tokenize=False)
    assert learnt(tokenizer, [user("hi"), answer(parts)]) == "seed one<|eot_id|>"


def test_weight_0_is_no_loss_on_that_turn() -> None:
    tokenizer = tokenizer_of(CHATML)
    one, two, three = answer("one", weight=0), answer("two", weight=1), answer("three", weight=0)
    chat = [user("a"), one, user("b"), two, user("c"), three]
    assert learnt(tokenizer, chat) == "two<|im_end|>\n"
    ids, _ = spoken(tokenizer, chat)
    assert ids == tokenizer.apply_chat_template(chat[:4])["input_ids"]
    assert spoken(tokenizer, chat[:2]) == ([], [])


@pytest.mark.parametrize("header", ["{{ m['role'] + ': ' }}", ""], ids=["named", "bare"])
def test_a_header_that_is_written_unasked_is_not_learnt(header: str) -> None:
    template = "{% for m in messages %}" + header + "{{ m['content'] + '<end>' }}{% endfor %}"
    space = " " if header else ""
    tokenizer = tokenizer_of(template)
    assert learnt(tokenizer, CHATS["two turns"]) == f"{space}seed one<end>¦{space}leaf two<end>"
    assert learnt(tokenizer, CHATS["the assistant first"]).endswith(f"¦{space}seed<end>")


def test_what_ends_the_last_message_alone_does_not_hide_the_header() -> None:
    template = CHATML.replace("'<|im_end|>\n'", "('<end>' if loop.last else '<|im_end|>\n')")
    assert template != CHATML
    tokenizer = tokenizer_of(template)
    assert learnt(tokenizer, CHATS["two turns"]) == "seed one<|im_end|>¦leaf two<end>"


def test_tools_reach_the_template_from_the_row_or_a_message() -> None:
    tokenizer, tool = qwen3(), {"type": "function", "function": {"name": "weather"}}
    chat = CHATS["a call"]
    expected = tokenizer.apply_chat_template(chat, tools=[tool])["input_ids"]
    assert spoken(tokenizer, chat, tools=json.dumps([tool]))[0] == expected
    assert spoken(tokenizer, [{**chat[0], "tools": [tool]}, *chat[1:]])[0] == expected
    assert spoken(tokenizer, chat)[0] != expected


def test_arguments_that_are_json_are_written_as_what_they_say() -> None:
    text = {**CALL, "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    for name in ("qwen2_5", "llama3_1", "deepseekv3"):  # the last prints text, the others objects
        tokenizer = tokenizer_of((TEMPLATES / f"{name}.jinja").read_text())
        said = [
            spoken(tokenizer, [user("hi"), answer("", tool_calls=[call])]) for call in (CALL, text)
        ]
        assert said[0] == said[1]
        assert '{"city": "Rome"}' in tokenizer.decode(said[0][0])


def test_a_refusal_names_the_message_and_its_role() -> None:
    tokenizer = tokenizer_of((TEMPLATES / "gemma.jinja").read_text())
    with pytest.raises(InputError, match=r"message 0, of role .system. \(System role not"):
        spoken(tokenizer, CHATS["a system prompt"])
    with pytest.raises(InputError, match=r"message 2, of role .assistant. .*must alternate"):
        spoken(tokenizer, [user("a"), answer("b"), answer("c")])


def test_marks_in_a_template_are_kept_to_and_the_end_is_learnt_with_them() -> None:
    template = CHATML.replace(
        "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}",
        "{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}"
        "{{ '<plan>' + m['name'] + '</plan>' }}"
        "{% generation %}{{ m['content'] }}{% endgeneration %}"
        "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}",
    )
    chat = [user("a"), answer("one", name="x"), user("b"), answer("two", name="y")]
    assert learnt(tokenizer_of(template), chat) == "one<|im_end|>\n¦two<|im_end|>\n"


@pytest.mark.parametrize("name", ["gptoss", "llama3_2", "muse_glimmer"])
def test_today_is_the_same_day_every_day(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_of((TEMPLATES / f"{name}.jinja").read_text())
    chat = CHATS["two turns"]
    set_day(monkeypatch, date(2031, 3, 5))
    found = spoken(tokenizer, chat)[0]
    assert found != tokenizer.apply_chat_template(chat)["input_ids"]
    set_day(monkeypatch, DAY)
    assert found == tokenizer.apply_chat_template(chat)["input_ids"]


def test_every_way_to_write_a_day_is_that_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    formats = "%A %a %B %b %d %-d %e %m %-m %Y %y %j %H:%M:%S %I %p %x %X %c %F %D %U %%"
    template = f"{{{{ strftime_now('{formats}') }}}}\n{CHATML}"
    tokenizer = tokenizer_of(template)
    set_day(monkeypatch, DAY)
    expected = tokenizer.apply_chat_template(CHATS["two turns"])["input_ids"]
    assert spoken(tokenizer, CHATS["two turns"])[0] == expected


# Whole encoders


def encoder_of(folder: Path, change: Any, **settings: Any) -> TextEncoder:
    """An encoder of a toy backbone whose tokenizer was changed before it was saved."""
    tokenizer = AutoTokenizer.from_pretrained(save_backbone(folder))
    change(tokenizer)
    tokenizer.save_pretrained(folder)
    return TextEncoder(BackboneConfig(path=str(folder), max_length=64, **settings))


def with_template(template: str) -> Any:
    return lambda tokenizer: setattr(tokenizer, "chat_template", template)


def example(text: str | None = None, **fields: Any) -> Example:
    return Example("e", "d", "s", text=text, **fields)


def said(encoder: TextEncoder, row: Example) -> str:
    ids, mask = encoder.tokens(row)
    return str(encoder.tokenizer.decode([t for t, m in zip(ids, mask, strict=True) if m]))


def test_an_end_is_added_where_the_template_writes_none(tmp_path: Path) -> None:
    none = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    encoder = encoder_of(tmp_path, with_template(none))
    row = example(messages=tuple(CHATS["two turns"]))
    assert encoder.tokenizer.decode(encoder.tokens(row)[0]).endswith("leaf two\n</s>")
    assert said(encoder, row) == " seed one\n leaf two\n</s>"


def test_a_text_that_begins_itself_is_begun_once(tmp_path: Path) -> None:
    template = "{{ bos_token }}" + CHATML
    encoder = encoder_of(tmp_path, with_template(template))
    bos = encoder.tokenizer.bos_token_id
    chat = example(messages=tuple(CHATS["two turns"]))
    written = example("<s>Q: leaf? A: root", prompt="<s>Q: leaf? A:")
    for row in (chat, written, example("leaf")):
        ids, _ = encoder.tokens(row)
        assert (ids[0], ids.count(bos)) == (bos, 1)
    assert (
        encoder.tokens(written)[0]
        == encoder.tokens(replace(written, text="Q: leaf? A: root", prompt=None))[0]
    )
    assert said(encoder, written) == " root</s>"


def ended(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )


def nothing(tokenizer: Any) -> None:
    """Leave a tokenizer as it is."""


@pytest.mark.parametrize(
    "row",
    [
        example("leaf root seed."),
        example("leaf root", continues=True),
        example("Q: leaf? A: root seed.", prompt="Q: leaf? A:"),
        example("Q: leaf? A: root", prompt="Q: leaf? A:", continues=True),
        example(messages=tuple(CHATS["two turns"])),
    ],
    ids=["text", "piece", "answer", "beginning of an answer", "chat"],
)
def test_a_tokenizer_that_ends_texts_itself_changes_nothing(tmp_path: Path, row: Example) -> None:
    usual, ending = encoder_of(tmp_path / "a", nothing), encoder_of(tmp_path / "b", ended)
    assert ending.tokenizer("leaf")["input_ids"][-1] == ending.tokenizer.eos_token_id
    assert ending.tokens(row) == usual.tokens(row)
    assert ending.beginnings(["leaf root"]) == usual.beginnings(["leaf root"])
    long = replace(row, text=f"{row.text} {'leaf root ' * 60}", messages=None)
    assert ending.pieces(long) == usual.pieces(long)


def test_the_day_is_a_setting_that_decides_the_key_when_it_is_set(tmp_path: Path) -> None:
    template = "{{ strftime_now('%Y-%m-%d') }}" + CHATML
    usual = encoder_of(tmp_path, with_template(template))
    config = BackboneConfig(path=str(tmp_path), max_length=64)
    other = config.model_copy(update={"chat_date": date(2030, 1, 2)})
    row = example(messages=tuple(CHATS["two turns"]))
    assert DAY.isoformat() in usual.tokenizer.decode(usual.tokens(row)[0])
    encoder = TextEncoder(other)
    assert "2030-01-02" in encoder.tokenizer.decode(encoder.tokens(row)[0])
    keys = {input_fingerprint(c) for c in (config, other)}
    assert len(keys) == 2
    assert "date" not in input_fingerprint(config)


def test_rows_without_a_template_are_refused(tmp_path: Path) -> None:
    encoder = encoder_of(tmp_path, nothing)
    encoder.tokenizer.chat_template = None
    with pytest.raises(BackboneError, match="expected a chat template"):
        encoder.tokens(example(messages=tuple(CHATS["two turns"])))


def test_a_mixture_gives_datasets_the_messages_as_they_came(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "weather", "description": None}}
    rows = [
        Example("a", "a", "s", messages=tuple(CHATS["a call"]), tools=json.dumps([tool])),
        Example("b", "b", "s", messages=tuple(CHATS["reasoning"])),
        Example("c", "c", "s", text="leaf"),
    ]
    table = examples_to_table(rows)
    assert table_to_examples(table) == rows
    field = MIXTURE_SCHEMA.field("messages")
    place = table.column_names.index("messages")
    table = table.set_column(place, field, table["messages"].cast(field.type))
    write_table(table, tmp_path / "mixture" / "train.parquet")
    opened = datasets.load_dataset(str(tmp_path / "mixture"), cache_dir=str(tmp_path / "cache"))
    assert [row["messages"] for row in opened["train"]] == [
        None if row.messages is None else list(row.messages) for row in rows
    ]
    # as TRL's trainer hands them to the template
    first, tokenizer = opened["train"][0], qwen3()
    ids = tokenizer.apply_chat_template(first["messages"], tools=json.loads(first["tools"]))
    assert ids["input_ids"] == spoken(tokenizer, CHATS["a call"], tools=rows[0].tools)[0]


@pytest.mark.usefixtures("fixed_day")
@pytest.mark.parametrize("name", SHIPPED)
def test_a_chat_begins_with_what_stands_in_front_of_a_user_s_words(name: str) -> None:
    tokenizer = tokenizer_of((TEMPLATES / f"{name}.jinja").read_text())
    [asked] = shaped(name, [user("seed root")])
    prompt = tokenizer.apply_chat_template([asked], tokenize=False, add_generation_prompt=True)
    front, closing = ChatRenderer(tokenizer, "tokenizer", DAY).opening()
    before, words, behind = prompt.partition("seed root")
    assert words
    assert before.rstrip(" ") == front != ""
    heads = [t for t in tokenizer.added_tokens_encoder if behind.strip().startswith(t)]
    assert closing == max(heads, key=len, default=behind.strip()) != ""
