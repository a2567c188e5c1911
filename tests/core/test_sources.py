"""Sources: their configuration, and the examples that rows become."""

import gzip
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from albat_core.records.examples import Example
from albat_core.sources.config import SourceConfig
from tests.core.row_files import refused, rows_of, write_csv, write_jsonl, write_parquet


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"text_column": "t", "template": "{a}"}, "text_column and template exclude each other"),
        ({"messages_column": "m", "prompt_template": "p", "answer_template": "{a}"}, "exclude"),
        ({"prompt_template": "{q}"}, "prompt_template and answer_template need each other"),
        ({"answer_template": "{q}"}, "prompt_template and answer_template need each other"),
        ({"template": "no columns", "format": "jsonl"}, "names no column"),
        ({"answer_template": "none", "prompt_template": "{a}"}, "names no column"),
        ({"token": "sks", "template": "a {breed} dog"}, "no template has"),
        ({"image_column": "i", "messages_column": "m"}, "messages_column is not for pictures"),
        ({"tools_column": "t"}, "tools_column is for chats"),
        (
            {"format": "images", "prompt_template": "p", "answer_template": "{a}"},
            "prompt_template is not for pictures",
        ),
        ({"image_column": ""}, "image_column"),
        ({"template": "open { brace {a}"}, "write {{ or }}"),
        ({"template": "{a:>3}"}, "a column's name only"),
        ({"template": "{}"}, "a column's name only"),
        ({"share": 0.0}, "share"),
        ({"share": 1.1}, "share"),
        ({"text_column": ""}, "text_column"),
        ({"path": ()}, "path names nothing"),
        ({"path": ("x", " ")}, "path names nothing"),
        ({"colour": "blue"}, "colour"),
    ],
)
def test_config_refuses(fields: dict, said: str) -> None:
    with pytest.raises(ValidationError, match=said.replace("{", r"\{")):
        SourceConfig(**{"path": "x", **fields})


def test_config_tells_all_mistakes_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        SourceConfig(path="", format="csv", template="plain", text_column="t")
    for said in ("path names nothing", "exclude each other", "names no column"):
        assert said in str(caught.value)


def test_defaults_name_rows_by_file_and_source_by_stem(tmp_path: Path) -> None:
    path = tmp_path / "news.v2.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n\n{"text": "b"}\n'))
    assert rows_of(path) == [
        Example("news.v2.jsonl.gz:0", "news.v2.jsonl.gz:0", "news.v2", text="a"),
        Example("news.v2.jsonl.gz:1", "news.v2.jsonl.gz:1", "news.v2", text="b"),
    ]
    assert [e.example_id for e in rows_of(path, name="wiki")] == [
        "wiki/news.v2.jsonl.gz:0",
        "wiki/news.v2.jsonl.gz:1",
    ]


def test_source_column_and_nulls_in_it(tmp_path: Path) -> None:
    rows = [{"text": "a", "s": "x", "d": "p"}, {"text": "b", "s": None, "d": None}]
    got = rows_of(write_jsonl(tmp_path / "r.jsonl", rows), source_column="s", document_column="d")
    assert [(e.source, e.document) for e in got] == [("x", "p"), ("r", "r.jsonl:1")]


def test_templates(tmp_path: Path) -> None:
    rows = [
        {"q": "Why?", "a b": "So.", "n": 3},
        {"q": "How?", "a b": None, "n": 4},
        {"q": " ", "a b": "", "n": None},
    ]
    path = write_jsonl(tmp_path / "qa.jsonl", rows)
    assert [e.text for e in rows_of(path, template="{{Q{n}}} {q}\n{a b}")] == [
        "{Q3} Why?\nSo.",
        "{Q4} How?\n",  # null is as empty as ""
        None,
    ]
    assert [e.text for e in rows_of(path, template="<{q}>")] == ["<Why?>", "<How?>", None]
    pair = rows_of(path, prompt_template="Q: {q}\n", answer_template="A: {a b}")
    assert pair[0] == Example("qa.jsonl:0", "qa.jsonl:0", "qa", "Q: Why?\nA: So.", "Q: Why?\n")
    assert [(e.text, e.prompt) for e in pair[1:]] == [(None, None)] * 2
    constant = rows_of(path, prompt_template="Go on: ", answer_template="{q}")
    assert (constant[1].prompt, constant[1].text) == ("Go on: ", "Go on: How?")


def test_messages_in_every_shape_they_come_in(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": null}'}}
    chat = [
        {"role": "user", "content": "Hi", "name": "x"},
        {"role": "assistant", "tool_calls": [call], "reasoning_content": "Hm", "weight": 0},
        {"role": "tool", "content": "1", "tool_call_id": "7"},
        {"role": "assistant", "content": "Ho"},
    ]
    rows = [{"chat": chat}, {"chat": None}, {"chat": []}, {"chat": [{**chat[0], "content": " "}]}]
    texts = [{"chat": json.dumps(row["chat"])} for row in rows]
    for path in (
        write_jsonl(tmp_path / "a.jsonl", rows),
        write_jsonl(tmp_path / "b.jsonl", texts),
        write_csv(tmp_path / "c.csv", texts),
        write_parquet(tmp_path / "d.parquet", rows),
    ):
        got = rows_of(path, messages_column="chat")
        assert [e.messages for e in got] == [tuple(chat), None, None, None], path.name
        assert all(e.text is None and e.prompt is None for e in got)


def test_a_chat_whose_answers_are_blank_is_skipped_as_a_blank_answer_is(tmp_path: Path) -> None:
    def chat(*answers: object, **keys: object) -> dict:
        return {
            "chat": [
                message
                for said in answers
                for message in (
                    {"role": "user", "content": "Hi"},
                    {"role": "assistant", "content": said, **keys},
                )
            ]
        }

    blank = [{"type": "text", "text": " "}]
    rows = [chat(""), chat(" \n"), chat(blank), chat("", blank), chat("Ho", ""), chat("", x=1)]
    rows += [chat("", reasoning="Hm"), chat("Ho", weight=0)]
    rows.append({"chat": [*chat("Ho", weight=0)["chat"], *chat("")["chat"]]})
    got = rows_of(write_jsonl(tmp_path / "a.jsonl", rows), messages_column="chat")
    kept = [row.messages is not None for row in got]
    assert kept == [False, False, False, False, True, False, True, True, False]
    pairs = write_jsonl(tmp_path / "b.jsonl", [{"q": "Hi", "a": a} for a in ("", " \n", "Ho")])
    answered = rows_of(pairs, prompt_template="{q}", answer_template="{a}")
    assert [row.text is not None for row in answered] == [False, False, True]


def test_a_content_of_null_is_a_blank_one(tmp_path: Path) -> None:
    asked = {"role": "user", "content": "Hi"}
    call = {"type": "function", "function": {"name": "f"}}
    said: list[dict] = [
        {"content": None},
        {"content": None, "tool_calls": [call]},
        {"content": "Ho"},
    ]
    chats = [[asked, {"role": "assistant", **each}] for each in said]
    chats.append([{"role": "system", "content": None}, *chats[2]])
    rows = [{"chat": chat} for chat in chats]
    called = {"role": "assistant", "tool_calls": [call]}
    expected = [None, (asked, called), (asked, chats[2][1])]
    expected.append(({"role": "system", "content": ""}, *chats[2]))
    texts = [{"chat": json.dumps(chat)} for chat in chats]
    for form, write, given in (
        ("jsonl", write_jsonl, rows),
        ("parquet", write_parquet, rows),
        ("csv", write_csv, texts),
        ("json.parquet", write_parquet, texts),
    ):
        got = rows_of(write(tmp_path / f"a.{form}", given), messages_column="chat")
        assert [row.messages for row in got] == expected, form


@pytest.mark.parametrize(
    ("key", "value"), [("loss", False), ("train", False), ("training", False), ("masked", True)]
)
def test_what_others_mean_by_no_loss_is_refused_by_name(
    tmp_path: Path, key: str, value: bool
) -> None:
    asked = {"role": "user", "content": "Hi", key: value}
    said = {"role": "assistant", "content": "Ho"}
    for form, write in (("jsonl", write_jsonl), ("parquet", write_parquet)):
        path = write(tmp_path / f"a.{form}", [{"chat": [asked, {**said, key: value}]}])
        message = refused(lambda: rows_of(path, messages_column="chat"))  # noqa: B023
        assert f"got {key} {str(value).lower()} in message 1" in message
        assert '"weight": 0' in message
        for learnt in ({**said, key: not value}, {**said, key: value, "weight": 0}):
            path = write(tmp_path / f"b.{form}", [{"chat": [asked, learnt]}])
            assert rows_of(path, messages_column="chat")[0].messages == (asked, learnt)


def test_null_is_what_it_says_in_json_and_nothing_in_a_table(tmp_path: Path) -> None:
    call = {"function": {"name": "f", "arguments": {"x": 1, "y": None}}}
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [call]}]
    rows = [{"chat": chat, "tools": [{"name": "f", "default": None}]}]
    fields = {"messages_column": "chat", "tools_column": "tools"}
    (lines,) = rows_of(write_jsonl(tmp_path / "a.jsonl", rows), **fields)
    assert lines.messages == tuple(chat)
    assert json.loads(lines.tools) == rows[0]["tools"]
    (table,) = rows_of(write_parquet(tmp_path / "a.parquet", rows), **fields)
    assert table.messages[1]["tool_calls"] == [{"function": {"name": "f", "arguments": {"x": 1}}}]
    assert json.loads(table.tools) == [{"name": "f"}]


@pytest.mark.parametrize(
    ("row", "fields", "said"),
    [
        ({"text": ["a"]}, {}, "got list"),
        ({"text": "a", "x": [1]}, {"template": "{text}{x}"}, "number in column 'x', got list"),
        ({"text": "a", "x": None}, {"id_column": "x"}, "id_column 'x', got null"),
        ({"text": "a", "x": " "}, {"id_column": "x"}, "id_column 'x', got a blank"),
        ({"text": "a", "x": True}, {"id_column": "x"}, "got True"),
        ({"text": "a", "x": [1]}, {"document_column": "x"}, "document_column 'x', got [1]"),
        ({"text": "a", "x": {"k": 1}}, {"source_column": "x"}, "source_column 'x', got {'k': 1}"),
        ({"m": "hello"}, {"messages_column": "m"}, "text that is not JSON"),
        ({"m": {"role": "user"}}, {"messages_column": "m"}, "got dict"),
        ({"m": ["hello"]}, {"messages_column": "m"}, "got str as message 0"),
        ({"m": [{"from": "u", "value": "v"}]}, {"messages_column": "m"}, "0 with from, value"),
        (
            {"m": [{"role": "user", "content": "a"}, {"role": "assistant"}]},
            {"messages_column": "m"},
            "message 1 with role",
        ),
        ({"m": [{"role": "", "content": "a"}]}, {"messages_column": "m"}, "blank role"),
        ({"m": [{"role": "user", "text": "a"}]}, {"messages_column": "m"}, "0 with role, text"),
        (
            {"m": [{"role": "assistant", "content": "a", "weight": 0.5}]},
            {"messages_column": "m"},
            "expected 0 or 1 as the weight of message 0, got 0.5",
        ),
        (
            {"m": [{"role": "assistant", "content": "", "function_call": {"name": "f"}}]},
            {"messages_column": "m"},
            "got function_call in message 0",
        ),
        (
            {"m": [{"role": "user", "content": [{"type": "image"}]}]},
            {"messages_column": "m"},
            "parts of text in message 0, got one of type image",
        ),
        (
            {"m": [{"role": "user", "content": "a"}], "t": "f"},
            {"messages_column": "m", "tools_column": "t"},
            "expected a list of tools, each an object, got text that is not JSON",
        ),
        ({"m": '[{"role": "u", "content": "\\ud800"}]'}, {"messages_column": "m"}, "surrogate"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, row: dict, fields: dict, said: str) -> None:
    path = tmp_path / "r.jsonl"
    good = {"text": "a", "x": "y", "m": [{"role": "user", "content": "a"}]}
    message = refused(lambda: rows_of(write_jsonl(path, [good, row]), **fields))
    assert said in message
    assert f"{path}:1: " in message
