"""The corpus: shards cut from files, ids that occur twice, and the look before."""

import string
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from albat_core import progress
from albat_core.backbones.config import BackboneConfig
from albat_core.errors import AlbatError
from albat_core.records import hashes
from albat_core.records.examples import EXAMPLE_SCHEMA, Example, table_to_examples
from albat_core.records.shards import row_notes
from albat_core.records.tables import read_table
from albat_core.sources.checks import check_source
from albat_core.sources.config import SourceConfig
from albat_core.sources.files import InputFile, find_files
from albat_core.stages import shard as corpus
from albat_core.stages.shard import (
    ShardConfig,
    list_parts,
    make_shards,
    refuse_barren,
    refuse_duplicates,
)
from albat_core.store import fingerprints
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from albat_core.store.manifests import Manifest
from albat_core.store.stage import Runtime
from tests.core.row_files import ROWS, only, refused, write_jsonl, write_parquet, write_texts

MAX_WORDS = 8


def split_words(example: Example, max_words: int = MAX_WORDS) -> list[Example]:
    """Cut as a backbone of one token a word would."""
    if example.messages is not None:
        if sum(len(m["content"].split()) for m in example.messages) <= max_words:
            return [example]
        return [
            replace(example, example_id=f"{example.example_id}#0", messages=example.messages[:1])
        ]
    words = (example.text or "").split()
    if len(words) <= max_words:
        return [example]
    if example.prompt is not None and len(example.prompt.split()) >= max_words:
        return []
    cuts = range(0, len(words), max_words)
    return [
        replace(
            example,
            example_id=f"{example.example_id}#{number}",
            text=" ".join(words[start : start + max_words]),
            continues=start != cuts[-1],
        )
        for number, start in enumerate(cuts)
    ]


class OneByOne:
    """A splitter that looks at every row by itself."""

    def __init__(self, pieces: Callable[[Example], list[Example]]) -> None:
        self.pieces = pieces

    def fitting(self, examples: Sequence[Example]) -> list[bool]:
        return [False] * len(examples)


@pytest.fixture
def shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator["Sharder"]:
    monkeypatch.setattr(corpus, "open_splitter", lambda _config: OneByOne(split_words))
    monkeypatch.setattr(corpus, "input_fingerprint", lambda config: f"words-{config.path}")
    return Sharder(tmp_path / "root")


class Sharder:
    """Makes shards of a source with the splitter above."""

    def __init__(self, root: Path) -> None:
        self.store = ArtifactStore(str(root))

    def make(self, file: InputFile, rows: int = 4096, backbone: str = "words") -> ArtifactRef:
        return make_shards(
            file,
            BackboneConfig(path=backbone, max_length=MAX_WORDS, dtype="float32"),
            ShardConfig(rows=rows),
            Runtime(root=self.store.root),
        )

    def __call__(
        self, path: object, rows: int = 4096, **fields: object
    ) -> tuple[Manifest, list[Example]]:
        ref = self.make(only(SourceConfig(path=str(path), **fields)), rows)
        manifest, folder = self.store.manifest(ref), self.store.folder(ref)
        examples = []
        for part in manifest.facts["parts"]:
            table = read_table(folder / part["name"])
            assert table.schema.equals(EXAMPLE_SCHEMA)
            assert table.num_rows == part["rows"] <= rows
            examples += table_to_examples(table)
        assert {f.path for f in manifest.files} == {p["name"] for p in manifest.facts["parts"]}
        assert manifest.rows == len(examples)
        return manifest, examples


def test_shards_hold_every_row_cut_to_size(tmp_path: Path, shard: Sharder) -> None:
    rows = [
        {"i": "long", "d": "x", "text": " ".join(map(str, range(20)))},
        {"i": "short", "d": "x", "text": "a b"},
        {"i": "none", "d": "y", "text": None},
        {"i": "blank", "d": "z", "text": "\n "},
        {"i": "last", "d": "w", "text": "c"},
    ]
    path = write_jsonl(tmp_path / "r.jsonl", rows)
    manifest, examples = shard(path, rows=2, id_column="i", document_column="d")
    assert [e.example_id for e in examples] == ["long#0", "long#1", "long#2", "short", "last"]
    assert " ".join(e.text for e in examples[:3]) == rows[0]["text"]
    assert [e.continues for e in examples] == [True, True, False, False, False]
    assert manifest.facts == {
        "files": [str(path)],
        "rows": 5,
        "documents": 2,
        "null_rows": 2,
        "null_ids": ["none", "blank"],
        "uncaptioned_rows": 0,
        "uncaptioned_ids": [],
        "damaged_rows": 0,
        "damaged_ids": [],
        "left_out_rows": 0,
        "unfit_rows": 0,
        "unfit_ids": [],
        "filtered_rows": 0,
        "filtered_ids": [],
        "filtered_reasons": {},
        "blank_columns": {"text": 2},
        "split_rows": 1,
        "truncated_rows": 0,
        "printed_rows": 0,
        "parts": [
            {"name": "part-00000.parquet", "rows": 2},
            {"name": "part-00001.parquet", "rows": 2},
            {"name": "part-00002.parquet", "rows": 1},
        ],
        "sources": {"r": 5},
    }


def test_shortened_chats_count_as_cut(tmp_path: Path, shard: Sharder) -> None:
    short = [{"role": "user", "content": "Hi"}]
    long = [*short, {"role": "assistant", "content": "no " * 9}]
    path = write_jsonl(tmp_path / "c.jsonl", [{"m": short}, {"m": long}])
    manifest, examples = shard(path, messages_column="m")
    assert examples == [
        Example("c.jsonl:0", "c.jsonl:0", "c", messages=tuple(short)),
        Example("c.jsonl:1#0", "c.jsonl:1", "c", messages=tuple(short)),
    ]
    assert manifest.facts["split_rows"] == 1
    said = refused(lambda: shard(path, messages_column="m", overlong="refuse"))
    assert f"{path}:1: " in said


def test_rows_without_room_for_an_answer_are_counted(tmp_path: Path, shard: Sharder) -> None:
    rows = [{"q": "a " * 9, "a": "b"}] * 7 + [{"q": "a", "a": "b"}]
    manifest, examples = shard(
        write_jsonl(tmp_path / "r.jsonl", rows), prompt_template="{q}: ", answer_template="{a}"
    )
    assert examples == [Example("r.jsonl:7", "r.jsonl:7", "r", text="a: b", prompt="a: ")]
    assert manifest.facts["unfit_rows"] == 7
    assert manifest.facts["unfit_ids"] == [f"r.jsonl:{row}" for row in range(5)]
    assert manifest.facts["documents"] == 1


def test_many_small_parts_hold_one_part_in_memory(
    tmp_path: Path, shard: Sharder, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = 0
    ahead = []

    def counted(example: Example) -> list[Example]:
        nonlocal read
        read += 1
        return [example]

    def written(table: pa.Table, path: Path) -> None:
        ahead.append(read - 10 * len(ahead))
        write(table, path)

    write = corpus.write_table
    monkeypatch.setattr(corpus, "open_splitter", lambda _config: OneByOne(counted))
    monkeypatch.setattr(corpus, "write_table", written)
    path = write_jsonl(tmp_path / "r.jsonl", [{"text": f"t{i}"} for i in range(1000)])
    manifest, examples = shard(path, rows=10)
    assert [e.text for e in examples] == [f"t{i}" for i in range(1000)]
    assert len(manifest.facts["parts"]) == 100
    assert ahead == [10] * 100  # each part is written before the next one's rows are read


def test_of_rows_that_are_truncated_the_beginning_stays(tmp_path: Path, shard: Sharder) -> None:
    rows = [{"q": "x", "a": "b"}, {"q": "y", "a": "c " * 30}]
    path = write_jsonl(tmp_path / "r.jsonl", rows)
    fields = {"prompt_template": "{q} ", "answer_template": "{a}"}
    _, pieces = shard(path, **fields)
    manifest, examples = shard(path, overlong="truncate", **fields)
    assert examples == pieces[:2]
    assert [(e.prompt, e.continues) for e in examples] == [("x ", False), ("y ", True)]
    assert len(pieces) > 3
    assert (manifest.facts["split_rows"], manifest.facts["truncated_rows"]) == (0, 1)
    assert row_notes([manifest.facts]) == (
        "1 row longer than the backbone takes, of which the beginning is kept",
    )


def test_refusals_name_file_and_row(tmp_path: Path, shard: Sharder) -> None:
    path = write_jsonl(tmp_path / "r.jsonl", [{"text": "a"}, {"text": "b " * 9}, {"text": None}])
    said = refused(lambda: shard(path, overlong="refuse"))
    assert f"{path}:1: expected a row that fits whole in {MAX_WORDS} tokens" in said
    said = refused(lambda: shard(path, on_null="refuse"))
    assert f"{path}:2: expected text, the row's is null or blank" in said
    manifest, _ = shard(path)
    assert (manifest.facts["null_rows"], manifest.facts["split_rows"]) == (1, 1)
    long = write_jsonl(tmp_path / "p.jsonl", [{"q": "a " * 9, "a": "b"}])
    fields = {"prompt_template": "{q}", "answer_template": "{a}"}
    assert "fits whole in" in refused(lambda: shard(long, overlong="refuse", **fields))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("r.jsonl", "", "got 0 rows"),
        ("r.csv", "text\n", "got 0 rows"),
        ("r.jsonl", '{"text": null}\n{"text": ""}\n', "got 2 rows, 2 of them null"),
        ("r.jsonl", '{"text": "' + "a " * 99 + '"}\n', "1 of them with no answer"),
    ],
)
def test_files_without_a_usable_row(
    tmp_path: Path, shard: Sharder, name: str, content: str, said: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    fields = {"prompt_template": "{text}", "answer_template": "{text}"} if "a a" in content else {}
    for share in (1.0, 0.001):
        if fields and share < 1:
            continue  # the one row may be left out for its document's sake
        source = SourceConfig(path=str(path), share=share, **fields)
        ref = shard.make(only(source))  # one file of many may have none
        assert said in refused(lambda: refuse_barren(shard.store, source, [ref]))  # noqa: B023


def test_a_part_without_rows_is_no_obstacle(tmp_path: Path, shard: Sharder) -> None:
    table = pa.table({"text": ["one", "two"]})
    for part, rows in enumerate((table, table.slice(0, 0), table)):
        pq.write_table(rows, tmp_path / f"part-{part:05d}.snappy.parquet")
    (tmp_path / "_SUCCESS").touch()  # as Spark leaves it
    source = SourceConfig(path=str(tmp_path))
    refs = [shard.make(file) for file in find_files(source)]
    refuse_barren(shard.store, source, refs)
    assert [shard.store.manifest(ref).rows for ref in refs] == [2, 0, 2]


def test_rows_of_a_share_that_cannot_be_used_are_told(tmp_path: Path, shard: Sharder) -> None:
    rows = [{"q": "leaf " * 200, "a": "root", "doc": f"{n}"} for n in range(40)]
    path = write_jsonl(tmp_path / "r.jsonl", rows)
    templates = {"prompt_template": "{q}", "answer_template": "{a}"}
    source = SourceConfig(path=str(path), document_column="doc", share=0.3, **templates)
    ref = shard.make(only(source))
    counts = shard.store.manifest(ref).facts
    assert counts["unfit_rows"] and counts["left_out_rows"]
    said = refused(lambda: refuse_barren(shard.store, source, [ref]))
    assert f"{counts['unfit_rows']} of them with no answer to learn, or no room for one" in said


def test_a_number_behind_the_rows_looked_at_is_printed_and_counted(
    tmp_path: Path, shard: Sharder
) -> None:
    path = write_jsonl(tmp_path / "r.jsonl", [*({"text": "a"} for _ in range(300)), {"text": 5}])
    assert check_source(SourceConfig(path=str(path))) == []
    manifest, examples = shard(path)
    assert manifest.facts["printed_rows"] == 1
    assert [row.text for row in examples] == ["a"] * 300 + ["5"]


def test_blank_text_file_is_skipped_as_a_row_is(tmp_path: Path, shard: Sharder) -> None:
    path = tmp_path / "a.txt"
    path.write_text(" \n")
    manifest, examples = shard(path)
    assert examples == []
    assert manifest.facts["null_ids"] == ["a.txt:0"]
    assert "is null or blank" in refused(lambda: shard(path, on_null="refuse"))


def test_shares_are_nested_stable_and_keep_documents_whole(tmp_path: Path, shard: Sharder) -> None:
    rows = [{"text": f"t{i}", "d": f"d{i // 3}", "i": f"r{i}"} for i in range(3000)]
    more = [{"text": "new", "d": f"n{i}", "i": f"n{i}"} for i in range(50)] + rows
    fields = {"document_column": "d", "id_column": "i"}
    path = write_jsonl(tmp_path / "r.jsonl", rows)
    kept: dict[float, set[str]] = {}
    for share in (0.1, 0.3, 1.0):
        manifest, examples = shard(path, share=share, **fields)
        documents = {e.document for e in examples}
        # within five standard deviations of a binomial over 1000 documents
        assert abs(len(documents) - 1000 * share) <= 5 * (1000 * share * (1 - share)) ** 0.5
        assert len(examples) == 3 * len(documents)
        assert manifest.facts["documents"] == len(documents)
        assert manifest.facts["left_out_rows"] == 3000 - len(examples)
        kept[share] = documents
    assert kept[0.1] < kept[0.3] < kept[1.0]
    _, examples = shard(write_jsonl(tmp_path / "more.jsonl", more), share=0.3, **fields)
    assert {e.document for e in examples if e.document.startswith("d")} == kept[0.3]


def test_share_may_leave_a_file_without_rows(tmp_path: Path, shard: Sharder) -> None:
    path = write_jsonl(tmp_path / "r.jsonl", [{"text": "a"}])
    manifest, examples = shard(path, share=1e-9)
    assert examples == []
    assert manifest.files == ()
    assert manifest.facts["left_out_rows"] == 1
    assert manifest.facts["parts"] == []


def test_key_follows_content_config_and_tokenizer_but_not_place(
    tmp_path: Path, shard: Sharder
) -> None:
    def key(path: Path, backbone: str = "words", rows: int = 4096, **fields: object) -> str:
        return shard.make(only(SourceConfig(path=str(path), **fields)), rows, backbone).key

    path = write_jsonl(tmp_path / "a" / "r.jsonl", ROWS)
    first = key(path)
    moved = only(SourceConfig(path=str(write_jsonl(tmp_path / "b" / "r.jsonl", ROWS))))
    assert shard.make(moved).reused
    others = [
        key(path, backbone="other"),
        key(path, rows=7),
        key(path, share=0.999),
        key(path, name="x"),
        key(path, text_column="page"),
        key(write_jsonl(tmp_path / "a" / "s.jsonl", ROWS)),
        key(write_jsonl(path, ROWS[:2])),
    ]
    assert len({first, *others}) == 8


def test_progress_counts_bytes(tmp_path: Path, shard: Sharder) -> None:
    told: list[object] = []

    class Told(progress.Silent):
        @contextmanager
        def track(self, label: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
            told.append((label, total, unit))
            yield told.append

    jsonl = write_jsonl(tmp_path / "r.jsonl", ROWS)
    parquet = write_parquet(tmp_path / "p.parquet", ROWS)
    with progress.reporting_to(Told()):
        for path in (jsonl, parquet):
            told.clear()
            shard(path)
            assert told[0] == (f"cut {path.stem}", path.stat().st_size, "bytes")
            assert sum(told[1:]) == path.stat().st_size  # type: ignore[arg-type]


def test_repeated_id_in_a_file_names_both_rows(tmp_path: Path, shard: Sharder) -> None:
    for first, second in (("a", "a"), ("a " * 9, "a " * 9)):  # whole, and cut in pieces
        rows = [{"i": f"r{i}", "text": "t"} for i in range(30)]
        rows[4] = {"i": "twice", "text": first}
        rows[21] = {"i": "twice", "text": second}
        path = write_jsonl(tmp_path / "r.jsonl", rows)
        said = refused(lambda: shard(path, rows=5, id_column="i"))  # noqa: B023
        assert said.startswith(f"{path}:21: ")
        assert f"'twice{'#0' if first != 'a' else ''}' is also in {path}:4" in said
        assert list(shard.store.all_refs()) == []
    rows = [{"i": "a#1", "text": "t"}, {"i": "a", "text": "t " * 9}]  # a's second piece is a#1 too
    path = write_jsonl(tmp_path / "r.jsonl", rows)
    said = refused(lambda: shard(path, id_column="i"))
    assert f"{path}:1: expected each id once, 'a#1' is also in {path}:0" in said


def test_repeated_id_across_files_names_both(tmp_path: Path, shard: Sharder) -> None:
    def make(folder: str, **fields: object) -> ArtifactRef:
        return shard.make(only(SourceConfig(path=str(tmp_path / folder), **fields)), rows=3)

    write_jsonl(tmp_path / "x" / "r.jsonl", [{"text": f"x{i}"} for i in range(10)])
    write_jsonl(tmp_path / "y" / "r.jsonl", [{"text": f"y{i}"} for i in range(10)])
    write_texts(tmp_path / "z", ["r.txt"])
    x, y, z = make("x"), make("y"), make("z")
    refuse_duplicates(shard.store, [])
    refuse_duplicates(shard.store, [x, z])
    said = refused(lambda: refuse_duplicates(shard.store, [x, z, y]))
    assert f"{tmp_path}/y/r.jsonl: expected each id once, 'r.jsonl:0' is also in" in said
    assert f"also in {tmp_path}/x/r.jsonl" in said
    refuse_duplicates(shard.store, [x, z, make("y", name="why")])  # what the remedy says
    assert "also in" in refused(lambda: refuse_duplicates(shard.store, [x, x]))


def test_of_a_corpus_that_grew_only_new_ids_are_read(
    tmp_path: Path, shard: Sharder, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = []
    for name in "xyz":
        path = write_jsonl(
            tmp_path / f"{name}.jsonl", [{"i": f"{name}{n}", "text": "t"} for n in range(9)]
        )
        refs.append(shard.make(only(SourceConfig(path=str(path), id_column="i")), rows=4))
    runtime = Runtime(root=shard.store.root)
    read: list[Path] = []
    ids_in = corpus._ids_in
    monkeypatch.setattr(corpus, "_ids_in", lambda path: (read.append(path), ids_in(path))[1])

    def files(*shards: ArtifactRef) -> int:
        read.clear()
        parts = list_parts(shards, runtime)
        assert [part.rows for part in parts] == [4, 4, 1] * len(shards)
        return len(read)

    assert files(*refs[:2]) == 6
    assert files(*refs[:2]) == 0
    assert files(*refs) == 3
    assert files(refs[0], refs[2]) == 0  # what went is not read either
    copy = write_jsonl(tmp_path / "copy.jsonl", [{"i": "y3", "text": "other"}])
    twice = shard.make(only(SourceConfig(path=str(copy), id_column="i")))
    list_parts(refs, runtime)
    said = refused(lambda: list_parts([*refs, twice], runtime))
    assert f"{copy}: expected each id once, 'y3' is also in {tmp_path}/y.jsonl" in said
    assert refused(lambda: list_parts([*refs, twice], runtime)) == said


def test_ids_that_only_share_a_hash_are_not_repeated(
    tmp_path: Path, shard: Sharder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "_hash", lambda _text: 7)
    path = write_jsonl(tmp_path / "r.jsonl", [{"text": f"t{i}"} for i in range(5)])
    ref = shard.make(only(SourceConfig(path=str(path))))
    refuse_duplicates(shard.store, [ref])
    assert "also in" in refused(lambda: refuse_duplicates(shard.store, [ref, ref]))


@pytest.mark.parametrize("count", [0, 1, 9, 10, 137])
def test_hashes_beyond_memory_are_counted_as_all_at_once(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "_AT_ONCE", 10)
    drawn = np.random.default_rng(0).integers(-(2**63), 2**63, size=count // 2 + 1).tolist()
    numbers = (drawn * 2)[:count] + [-1] * (count == 137)
    found = hashes.Hashes()
    found.extend(numbers)
    times = Counter(n % 2**64 for n in numbers)
    assert found.distinct() == len(times)
    assert found.repeated() == {n for n, often in times.items() if often > 1}


def test_check_finds_nothing_wrong_in_what_is_right(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "d" / "a.jsonl", ROWS)
    write_parquet(tmp_path / "d" / "b.parquet", ROWS)
    assert check_source(SourceConfig(path=str(tmp_path / "d"))) == []


def test_check_tells_every_problem(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    write_jsonl(folder / "a.jsonl", [{"txet": "a"}])
    (folder / "b.parquet").write_bytes(b"no")
    write_jsonl(folder / "c.jsonl", [{"text": None}])
    write_jsonl(folder / "d.jsonl", ROWS)
    source = SourceConfig(path=(str(tmp_path / "gone.jsonl"), str(folder)))
    problems = check_source(source)
    assert all(isinstance(problem, AlbatError) for problem in problems)
    said = [str(problem) for problem in problems]
    assert len(said) == 3
    for message, words in zip(
        said,
        ["gone.jsonl", "mean 'txet'", "b.parquet: expected Parquet"],
        strict=True,
    ):
        assert words in message
    (null,) = check_source(SourceConfig(path=str(folder / "d.jsonl"), on_null="refuse"))
    assert null.where == f"{folder / 'd.jsonl'}:2"
    blank = write_texts(tmp_path / "t", [])
    (blank / "a.txt").write_text(" ")
    (empty,) = check_source(SourceConfig(path=str(blank)))
    assert "got 1 rows, 1 of them null or blank ('text' in 1)" in str(empty)


def test_check_reads_heads_only_and_no_fingerprints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"text": "a"}\n' * 5000 + "broken\n")
    monkeypatch.setattr(fingerprints, "fingerprint", lambda _uri: pytest.fail("read whole"))
    assert check_source(SourceConfig(path=str(path))) == []


def test_shards_cut_by_a_backbones_own_tokenizer(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<eos>", "<unk>", *string.ascii_lowercase])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path / "model"
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>"
    ).save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    (folder / "model.safetensors").write_bytes(b"")  # weights are not read to cut text
    text = " ".join(string.ascii_lowercase)
    path = write_jsonl(tmp_path / "r.jsonl", [{"text": text}, {"text": "a b"}])
    store = ArtifactStore(str(tmp_path / "root"))
    ref = make_shards(
        only(SourceConfig(path=str(path))),
        BackboneConfig(path=str(folder), max_length=10, dtype="float32"),
        ShardConfig(),
        Runtime(root=store.root),
    )
    examples = table_to_examples(read_table(store.folder(ref) / "part-00000.parquet"))
    assert "".join(e.text for e in examples[:-1]) == text
    assert [e.example_id for e in examples] == [
        "r.jsonl:0#0",
        "r.jsonl:0#1",
        "r.jsonl:0#2",
        "r.jsonl:1",
    ]
    assert all(len(e.text.split()) <= 9 for e in examples)
