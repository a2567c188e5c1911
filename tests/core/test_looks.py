"""The look at a source: what stops a run, and what the run would skip, once for all files."""

from pathlib import Path

import pytest
from datasets.data_files import get_data_patterns
from PIL import Image

from albat_core.sources.checks import look_at
from albat_core.sources.config import SourceConfig
from albat_core.sources.formats.images import Images
from tests.core.picture_files import write_pictures
from tests.core.row_files import write_jsonl, write_texts


def test_it_tells_once_what_the_run_would_skip(tmp_path: Path) -> None:
    for part in range(3):
        rows = [{"q": "a", "a": None if row < 2 else "b", "i": ""} for row in range(5)]
        write_jsonl(tmp_path / f"{part}.jsonl", rows)
    (tmp_path / "9.jsonl").write_text("")
    source = SourceConfig(path=str(tmp_path), prompt_template="{q}{i}", answer_template="{a}")
    look = look_at(source)
    assert look.problems == []
    assert look.notes() == [
        "of 15 rows looked at, 6 skipped: 'a' is null or blank in 6",
        "of 15 rows looked at, some have an empty field: 'i' is null or blank in 9",
        "files without rows: 1 (9.jsonl)",
    ]


def test_it_says_how_far_it_looked(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "r.jsonl", [{"text": "a"}] * 300)
    (note,) = look_at(SourceConfig(path=str(path))).notes()
    assert note.startswith("what lies behind the 200 rows looked at")


def test_it_says_what_is_one_document(tmp_path: Path) -> None:
    folder = write_texts(tmp_path / "t", ["a.txt", "b.md"])
    (note,) = look_at(SourceConfig(path=str(folder))).notes()
    assert note.startswith("files that are one document each")
    assert note.endswith("2 (a.txt, b.md)")


def test_it_says_where_chats_have_no_question(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": [{"role": "assistant", "content": "a"}]}]
    path = write_jsonl(tmp_path / "r.jsonl", rows)
    look = look_at(SourceConfig(path=str(path), messages_column="completion"))
    assert look.notes() == ["chats have turns of role 'assistant' alone: no question is read"]
    write_jsonl(path, [{"completion": [{"role": "user", "content": "q"}, *rows[0]["completion"]]}])
    assert look_at(SourceConfig(path=str(path), messages_column="completion")).notes() == []


def test_it_finds_ids_that_repeat_across_files(tmp_path: Path) -> None:
    for name in "ab":
        write_jsonl(tmp_path / f"{name}.jsonl", [{"id": 0, "text": name}])
    source = SourceConfig(path=str(tmp_path), id_column="id")
    (error,) = look_at(source).problems
    assert "'0' is also in" in str(error)
    assert "drop id_column" in str(error)
    assert look_at(source.model_copy(update={"id_column": None})).problems == []
    ids: dict[str, str] = {}
    one = SourceConfig(path=str(tmp_path / "a.jsonl"), id_column="id")
    other = SourceConfig(path=str(tmp_path / "b.jsonl"), id_column="id")
    assert look_at(one, ids).problems == []
    assert len(look_at(other, ids).problems) == 1


def test_a_column_of_numbers_is_no_text(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "r.jsonl", [{"text": "a", "label": n} for n in range(3)])
    (error,) = look_at(SourceConfig(path=str(path), text_column="label")).problems
    assert "every row has a number" in str(error)


@pytest.mark.parametrize("role", ["gpt", "model", "Assistant"])
def test_chats_without_an_assistant_are_told_the_roles_that_they_have(
    tmp_path: Path, role: str
) -> None:
    chat = [{"role": "user", "content": "a"}, {"role": role, "content": "b"}]
    path = write_jsonl(tmp_path / "r.jsonl", [{"messages": chat}] * 3)
    source = SourceConfig(path=str(path), messages_column="messages")
    (error,) = look_at(source).problems
    assert "expected messages of role 'assistant'" in str(error)
    assert f"got only 'user', '{role}'" in str(error)
    other = [chat[0], {**chat[1], "role": "assistant"}]
    blank = [chat[0], {"role": "assistant", "content": ""}]
    write_jsonl(path, [{"messages": each} for each in (chat, other, blank)])
    look = look_at(source)
    assert look.problems == []
    said = "of 3 rows looked at, 1 skipped: 'messages (answers)' is null or blank in 1"
    assert look.notes() == [said]


@pytest.mark.parametrize(
    "names",
    [
        ["data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl"],
        ["train.jsonl", "dev.jsonl", "eval.jsonl"],
        ["my_train_1.jsonl", "my_valid_1.jsonl"],
        ["train/a.jsonl", "validation/a.jsonl"],
        ["train.jsonl", "contest.jsonl"],
        ["train-0.jsonl", "train-1.jsonl"],
        ["a.jsonl", "b.jsonl"],
    ],
)
def test_splits_of_a_data_set_that_are_read_as_one_are_named(
    tmp_path: Path, names: list[str]
) -> None:
    for name in names:
        write_jsonl(tmp_path / "set" / name, [{"text": "a"}])
    expected = get_data_patterns(str(tmp_path / "set"))
    look = look_at(SourceConfig(path=str(tmp_path / "set")))
    notes = look.untold()
    assert not look.notes()  # told once
    said = [note.partition(",")[0].removeprefix("files of the split ") for note in notes]
    assert sorted(said) == sorted(expected if len(expected) > 1 else [])


def test_pictures_without_captions_are_told_three_ways_that_work(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    write_pictures(folder, [f"{i:02}.png" for i in range(12)])
    source = SourceConfig(path=str(folder))
    (error,) = look_at(source).problems
    for word in ("none of the 12", ".txt", "metadata.jsonl", "file_name", "template"):
        assert word in str(error)
    given = SourceConfig(path=str(folder), template="a photo of {token} dog", token="sks")
    assert look_at(given).problems == []
    rows = [{"file_name": f"{i:02}.png", "text": "a dog"} for i in range(12)]
    table = write_jsonl(folder / "metadata.jsonl", rows)
    assert look_at(source).problems == []
    table.unlink()
    for i in range(12):
        (folder / f"{i:02}.txt").write_text("a dog")
    assert look_at(source).problems == []


@pytest.mark.parametrize("ending", Images.endings)
def test_every_ending_of_pictures_is_read_by_pillow(tmp_path: Path, ending: str) -> None:
    Image.init()
    form = Image.registered_extensions()[ending]
    Image.new("RGB", (8, 8), "red").save(tmp_path / f"a{ending}", form)
    look = look_at(SourceConfig(path=str(tmp_path), template="a dog"))
    assert (look.problems, look.notes()) == ([], [])
    assert len(look.rows) == 1


def test_files_that_are_left_out_are_named(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a.png"])
    for name in ("b.heic", "c.heic", "Thumbs.db"):
        (tmp_path / name).write_bytes(b"x")
    look = look_at(SourceConfig(path=str(tmp_path), format="images", template="a dog"))
    assert look.notes() == ["files left out, as format is images: 2 (b.heic, c.heic)"]
