"""Filters on the corpus: what is left out is what datatrove itself leaves out of the same texts."""

import ast
import inspect
import pickle
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from datatrove.data import Document
from datatrove.pipeline import filters as library
from datatrove.pipeline.filters.base_filter import get_filter_result
from pydantic import ValidationError

from albat_core.errors import MissingDependencyError
from albat_core.records.filtered import meaning
from albat_core.records.shards import row_notes
from albat_core.sources import checks
from albat_core.sources import filters as rules
from albat_core.sources.checks import look_at
from albat_core.sources.config import SourceConfig
from albat_core.sources.filters import FILTERS, judge
from albat_core.stages import shard as corpus
from albat_core.stages.shard import refuse_barren
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from albat_core.store.manifests import Manifest
from tests.core.row_files import only, refused, write_jsonl
from tests.core.test_corpus import MAX_WORDS, OneByOne, Sharder, split_words

ROOT = Path(__file__).parents[2]
ANSWERS = pq.read_table(ROOT / "examples/text/data/cancergov.parquet")["answer"].to_pylist()


def theirs(choice: Any, text: str) -> tuple[bool, str | None]:
    """Return whether datatrove keeps a text, and why not."""
    settings = {"name": choice} if isinstance(choice, str) else dict(choice)
    made = getattr(library, FILTERS[settings.pop("name")])
    if "stop_chars" in settings:
        settings["stop_chars"] = tuple(settings["stop_chars"])
    return get_filter_result(made(**settings).filter(Document(text=text, id="")))


PAGE = next(text for text in ANSWERS if all(theirs(name, text)[0] for name in FILTERS))
SCRAP = "ingestion."
LINES = "All of the rights to this page are reserved by the owner.\n" * 40
DIGITS = "31 41 59 26\n53 58 97 93 " * 40
PLANTED = {
    "scrap": SCRAP,
    "lines": LINES,
    "digits": DIGITS,
    "ellipses": "\n".join(f"{sentence}..." for sentence in PAGE.split(". ")),
    "bullets": "\n".join(f"- {sentence}." for sentence in PAGE.split(". ")),
    "list": "\n".join(PAGE.split()),
    "code": PAGE + "\nint main() { return 0; }.",
    "filler": PAGE + "\nLorem ipsum dolor sit amet.",
    "stutter": " ".join([*PAGE.split()[:30]] * 20),
    "symbols": "## ".join(PAGE.split()),
}
TEXTS = [*ANSWERS[:60], *PLANTED.values()]
CHOICES: list[Any] = [
    *FILTERS,
    {"name": "gopher_quality", "min_doc_words": 3, "min_stop_words": 0, "stop_words": ["cancer"]},
    {"name": "gopher_repetition", "dup_line_frac": 0.05, "top_n_grams": [[2, 0.9]]},
    {"name": "c4", "min_num_sentences": 1, "filter_curly_bracket": False},
    {"name": "fineweb", "stop_chars": ["."], "short_line_length": 5},
]


def chosen(*choices: Any, **fields: Any) -> SourceConfig:
    return SourceConfig(**({"path": "corpus"} | fields), filters=choices)


@pytest.fixture
def shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Sharder]:
    monkeypatch.setattr(corpus, "open_splitter", lambda _config: OneByOne(split_words))
    monkeypatch.setattr(corpus, "input_fingerprint", lambda config: f"words-{config.path}")
    return Sharder(tmp_path / "root")


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_a_filter_says_what_datatrove_says(choice: Any) -> None:
    reason = judge(chosen(choice).filters)
    found = [reason(text) for text in TEXTS]
    assert found == [why for _, why in (theirs(choice, text) for text in TEXTS)]
    assert None in found and len({*found}) > 1


def test_a_row_is_kept_when_every_filter_keeps_it() -> None:
    reason = judge(chosen(*CHOICES).filters)
    for text in TEXTS:  # each filter is given the text anew, though C4's takes lines out of it
        verdicts = [theirs(choice, text) for choice in CHOICES]
        assert (reason(text) is None) == all(kept for kept, _ in verdicts)
        assert reason(text) == next((why for kept, why in verdicts if not kept), None)


def test_no_filter_keeps_all() -> None:
    reason = judge(())
    assert {reason(text) for text in ("", SCRAP, LINES)} == {None}


def test_line_ends_of_windows_are_line_ends() -> None:
    reason = judge(chosen("fineweb", "gopher_repetition").filters)
    text = "\n".join(f"{sentence}." for sentence in PAGE.split(". "))
    assert theirs("fineweb", text.replace("\n", "\r\n"))[1] == "line_punct_ratio"
    assert reason(text.replace("\n", "\r\n")) == reason(text) is None
    assert reason(LINES.replace("\n", "\r\n")) == reason(LINES) is not None


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of what the library does then
def test_a_text_without_words_is_left_out() -> None:
    lax = {"name": "gopher_quality", "min_doc_words": None}
    with pytest.raises(ZeroDivisionError):
        theirs(lax, " \n")
    assert judge(chosen(lax).filters)(" \n") == "empty" == theirs("fineweb", " \n")[1]


def test_threads_judge_as_one_does() -> None:
    filters = chosen("gopher_quality", "gopher_repetition", "c4").filters
    texts = TEXTS[-30:]
    alone = [*map(judge(filters), texts)]

    def together(_thread: int) -> list[str | None]:
        return [*map(judge(filters), texts)]

    with ThreadPoolExecutor(4) as pool:
        assert [*pool.map(together, range(4))] == [alone] * 4


def test_shards_have_what_filters_keep_and_count_the_rest(tmp_path: Path, shard: Sharder) -> None:
    rows = [{"i": f"a{n}", "text": text} for n, text in enumerate(ANSWERS[:40])]
    rows += [{"i": name, "text": text} for name, text in PLANTED.items()]
    path = write_jsonl(tmp_path / "r.jsonl", [*rows, {"i": "none", "text": None}])
    filters = ["gopher_quality", "gopher_repetition", "c4"]
    manifest, examples = shard(path, id_column="i", filters=filters)
    verdicts = {
        row["i"]: [why for kept, why in (theirs(f, row["text"]) for f in filters) if not kept]
        for row in rows
    }
    kept = [name for name, reasons in verdicts.items() if not reasons]
    expected = Counter(reasons[0] for reasons in verdicts.values() if reasons)
    facts = manifest.facts
    assert [*dict.fromkeys(e.document for e in examples)] == kept
    assert facts["filtered_reasons"] == expected
    assert facts["filtered_rows"] == sum(expected.values()) == len(rows) - len(kept)
    assert facts["filtered_ids"] == [name for name, reasons in verdicts.items() if reasons][:5]
    assert (facts["rows"], facts["null_rows"], facts["documents"]) == (len(rows) + 1, 1, len(kept))
    assert verdicts["scrap"][0] == "gopher_short_doc"
    assert verdicts["lines"][0] == "dup_line_frac"
    assert verdicts["digits"][0] == "gopher_below_avg_threshold"
    (note,) = (each for each in row_notes([facts]) if "left out" in each)
    assert note.startswith(f"{facts['filtered_rows']} rows left out: ")
    assert all(f"{n} for {meaning(reason)}" in note for reason, n in expected.items())


def test_filters_look_at_whole_rows_before_they_are_cut(tmp_path: Path, shard: Sharder) -> None:
    path = write_jsonl(tmp_path / "r.jsonl", [{"text": PAGE}])
    assert theirs("gopher_quality", PAGE)[0]
    assert not theirs("gopher_quality", " ".join(PAGE.split()[:MAX_WORDS]))[0]
    manifest, examples = shard(path, filters=["gopher_quality"])
    assert manifest.facts["split_rows"] == 1
    assert [e.text for e in examples] == [e.text for e in shard(path)[1]]


def test_what_is_looked_at_is_all_that_a_row_says(tmp_path: Path, shard: Sharder) -> None:
    half = PAGE.index(" ", len(PAGE) // 2)
    words = len(PAGE.split())
    both = {"name": "gopher_quality", "min_doc_words": 3 * words // 4}
    pairs = write_jsonl(
        tmp_path / "p.jsonl", [{"q": "Why?", "a": PAGE[half:]}, {"q": PAGE, "a": "."}]
    )
    fields = {"prompt_template": "{q}\n", "answer_template": "{a}"}
    facts = shard(pairs, filters=[both], **fields)[0].facts
    assert facts["filtered_ids"] == ["p.jsonl:0"]
    turns = [
        {"role": "user", "content": PAGE[:half]},
        {"role": "assistant", "content": PAGE[half:]},
    ]
    chats = write_jsonl(tmp_path / "c.jsonl", [{"m": turns[:1]}, {"m": turns}])
    facts = shard(chats, messages_column="m", filters=[both])[0].facts
    assert (facts["filtered_ids"], facts["filtered_reasons"]) == (
        ["c.jsonl:0"],
        {"gopher_short_doc": 1},
    )


def test_a_source_of_which_nothing_is_left_is_refused(tmp_path: Path, shard: Sharder) -> None:
    scraps = write_jsonl(tmp_path / "s" / "a.jsonl", [{"text": f"{n} {SCRAP}"} for n in range(300)])
    pages = write_jsonl(tmp_path / "s" / "b.jsonl", [{"text": PAGE}])

    def barren(*paths: Path, **fields: Any) -> None:
        source = chosen("gopher_quality", path=str(tmp_path / "s"), **fields)
        files = (only(source.model_copy(update={"path": str(path)})) for path in paths)
        refuse_barren(shard.store, source, [shard.make(file) for file in files])

    barren(scraps, pages)
    said = refused(lambda: barren(scraps))
    assert "expected rows that its filters keep, got 300 rows, 300 of them left out by" in said
    assert "300 for too few words (gopher_short_doc)" in said
    assert "take filters out, or give them parameters" in said
    said = refused(lambda: barren(scraps, share=0.5))  # of the rest nothing is left
    assert "not in its share" in said and "left out by filters" in said


def test_shards_of_before_there_were_filters_are_taken(
    tmp_path: Path, shard: Sharder, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SourceConfig(path=str(write_jsonl(tmp_path / "r.jsonl", [{"text": "a"}])))
    ref, known = shard.make(only(source)), ArtifactStore.manifest

    def older(store: ArtifactStore, ref: ArtifactRef) -> Manifest:
        manifest = known(store, ref)
        facts = {n: v for n, v in manifest.facts.items() if not n.startswith("filtered")}
        return manifest.model_copy(update={"facts": facts})

    monkeypatch.setattr(ArtifactStore, "manifest", older)
    refuse_barren(shard.store, source, [ref])
    assert row_notes([shard.store.manifest(ref).facts]) == ()


def test_keys_follow_filters_and_the_versions_of_their_rules(
    tmp_path: Path, shard: Sharder, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(write_jsonl(tmp_path / "r.jsonl", [{"text": PAGE}]))

    def key(*choices: Any) -> str:
        return shard.make(only(chosen(*choices, path=path))).key

    plain = shard.make(only(SourceConfig(path=path))).key
    written_out = {"name": "gopher_quality", "min_doc_words": 50, "language": "eng"}
    assert key() == plain
    assert key("gopher_quality") == key(written_out)
    others = [key("gopher_quality"), key("c4"), key("c4", "gopher_quality")]
    others.append(key({"name": "gopher_quality", "min_doc_words": 49}))
    assert len({plain, *others}) == 5
    monkeypatch.setattr(corpus, "library_versions", lambda: {"datatrove": "99"})
    assert key("c4") != others[1]
    assert key() == plain


def test_a_look_tells_what_filters_would_leave_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [PAGE, SCRAP, PAGE, LINES, SCRAP]
    path = write_jsonl(tmp_path / "r.jsonl", [{"text": text} for text in texts])
    source = chosen("gopher_quality", "gopher_repetition", path=str(path))
    look = look_at(source)
    assert look.problems == []
    assert [row.example.text for row in look.rows] == [PAGE, PAGE]
    (note,) = (note for note in look.notes() if "filters" in note)
    assert note == (
        "of 5 rows that filters looked at, 3 left out: 2 for too few words (gopher_short_doc), "
        "1 for repeated lines (dup_line_frac)"
    )
    monkeypatch.setattr(checks, "_LETTERS_JUDGED", len(PAGE))  # those behind are not waited for
    assert "of 1 rows" not in " ".join(look_at(source).notes())
    assert len(look_at(source).rows) == len(texts)
    write_jsonl(path, [{"text": SCRAP}] * 3)
    monkeypatch.undo()
    (problem,) = look_at(source).problems
    assert "3 of them left out by filters: 3 for too few words" in str(problem)


def test_settings_are_written_as_they_are_read() -> None:
    written = ["c4", {"name": "gopher_repetition", "dup_line_frac": 0.2, "top_n_grams": [[2, 0.3]]}]
    source = chosen(*written)
    assert source.model_dump(mode="json")["filters"] == written
    assert SourceConfig.model_validate(source.model_dump(mode="json")) == source
    assert chosen(*source.filters) == source
    assert pickle.loads(pickle.dumps(source)) == source  # to processes of a cluster
    assert len({source, chosen(*written), chosen("c4")}) == 2  # steps of a run are looked up by it
    assert SourceConfig(path="a", filters=None) == SourceConfig(path="a")


@pytest.mark.parametrize("name", FILTERS)
def test_every_parameter_of_the_library_is_taken_with_its_default(name: str) -> None:
    asked = inspect.signature(getattr(library, FILTERS[name])).parameters.values()
    defaults = {each.name: each.default for each in asked if each.name != "exclusion_writer"}
    assert chosen({"name": name} | defaults) == chosen(name)


@pytest.mark.parametrize(
    ("filters", "said"),
    [
        (["gofer"], "expected a filter's name (gopher_quality, gopher_repetition, c4, fineweb)"),
        ([3], "expected a filter's name"),
        ([{"dup_line_frac": 0.2}], "got None"),
        ([{"name": "fineweb", "min_doc_words": 3}], "expected a parameter of fineweb (line_punct_"),
        ([{"name": "fineweb", "min_doc_words": 3}], "got 'min_doc_words'"),
        ([{"name": "c4", "exclusion_writer": None}], "got 'exclusion_writer'"),
        ([{"name": "c4", "min_num_sentences": "few"}], "min_num_sentences: input should be"),
        ([{"name": "gopher_quality", "min_doc_words": 2.5}], "min_doc_words: input should be"),
        ([{"name": "gopher_repetition", "top_n_grams": [2]}], "top_n_grams.0: input should be"),
        ([{"name": "c4", "language": "klingon"}], "finds words, got 'klingon'"),
        ([{"name": "c4", "language": "khm"}], "name another, such as eng or deu"),
        ("c4", "Input should be a valid tuple"),
    ],
    ids=str,
)
def test_what_no_filter_takes_is_refused(filters: Any, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        SourceConfig(path="a", filters=filters)
    assert said in str(caught.value)


@pytest.mark.parametrize("fields", [{"image_column": "image"}, {"format": "webdataset"}], ids=str)
def test_pictures_have_no_filters(tmp_path: Path, fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="filters are for texts"):
        chosen("c4", **fields)
    (tmp_path / "a.png").write_bytes(b"")  # which the files alone say
    (problem,) = look_at(chosen("c4", path=str(tmp_path))).problems
    assert "filters are for texts" in problem.message


def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    filters = chosen("c4").filters

    def missing(_name: str) -> str:
        raise PackageNotFoundError

    monkeypatch.setattr(rules, "version", missing)
    with pytest.raises(ValidationError, match=r"install albat\[filters\], or take filters out"):
        chosen("c4")
    assert SourceConfig(path="a").filters == ()
    with pytest.raises(MissingDependencyError) as caught:  # on a cluster's machine
        judge(filters)
    assert caught.value.remedy.startswith("install albat[filters]")


def test_every_reason_of_the_library_is_said_in_words() -> None:
    found: set[str] = set()
    for name in FILTERS.values():
        source = Path(inspect.getfile(getattr(library, name))).read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.ClassDef) or node.name != name:
                continue
            for value in (n.value for n in ast.walk(node) if isinstance(n, ast.Return)):
                if isinstance(value, ast.Tuple) and len(value.elts) == 2:
                    why = value.elts[1]
                    found.add(why.value if isinstance(why, ast.Constant) else eval_name(why))
    assert len(found) > 20
    for reason in found:
        assert meaning(reason) != reason
        assert meaning(reason).endswith(f"({reason})")
    assert meaning("of_tomorrow") == "of_tomorrow"


def eval_name(template: ast.expr) -> str:
    """Return a reason that has a number in it."""
    assert isinstance(template, ast.JoinedStr)
    return "".join(p.value if isinstance(p, ast.Constant) else "7" for p in template.values)
