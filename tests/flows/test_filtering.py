"""Filters in a run: what they leave out is told by check, run and report, and goes no further."""

from pathlib import Path
from typing import Any

import pytest

from albat_core.errors import ConfigError
from albat_core.progress import Silent, reporting_to
from albat_core.records.shards import read_examples
from albat_core.runs.chain import Chain
from albat_core.sources.filters import judge
from albat_core.stages.report import PAGE, read_results
from albat_core.store.artifacts import ArtifactStore
from flows.checks import find_mistakes
from flows.config import load_config
from tests.toys import rewrite, topic_rows, write_jsonl, write_run

LAX = {"name": "gopher_quality", "min_doc_words": 5, "min_stop_words": 0}
FILTERS: list[Any] = [LAX, {"name": "gopher_repetition", "dup_n_grams": [], "top_n_grams": []}]
COLUMNS = {"id_column": "id", "document_column": "doc"}
PLANTED = {
    "scrap": "leaf.",
    "lines": "leaf root seed stem bloom.\n" * 9,
    "digits": "31 41 59 26 53 58 97 93 " * 4,
}
NOTE = (
    "left out: 1 for repeated lines (dup_line_frac), 1 for words too short on average "
    "(gopher_below_avg_threshold), 1 for too few words (gopher_short_doc)"
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose corpus of plants has rows that filters leave out."""
    path = write_run(tmp_path)
    planted = [{"id": n, "doc": n, "text": text} for n, text in PLANTED.items()]
    write_jsonl(tmp_path / "corpus" / "plants.jsonl", topic_rows("plants", 60) + planted)
    return rewrite(path, {"corpus": {"path": "corpus/*.jsonl", "filters": FILTERS, **COLUMNS}})


class Told(Silent):
    """Keeps what a run announces."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def announce(self, stage: str, rows: int, seconds: float, reused: bool, notes: Any) -> None:
        self.notes += notes


def test_a_run_leaves_out_what_filters_find_and_tells_it(run: Path) -> None:
    config, told = load_config(str(run)), Told()
    with reporting_to(told):
        chain = Chain(config)
        assert chain.report
    store = ArtifactStore(config.runtime.root)
    plants, ships = (store.manifest(ref) for ref in chain.inputs.corpus)
    assert plants.facts["filtered_ids"] == [*PLANTED]
    assert (plants.rows, ships.rows, ships.facts["filtered_rows"]) == (60, 60, 0)
    assert f"3 rows {NOTE}" in told.notes
    reason = judge(config.corpus[0].filters)
    for part in chain.inputs.parts:
        there = read_examples(store, [part.address] * part.rows, range(part.rows))
        assert {reason(example.text or "") for example in there} == {None}
    (shown,) = (i for i in read_results(store, chain.report).inputs if i.name == "plants.jsonl")
    assert (shown.rows, shown.examples, shown.notes) == (63, 60, (f"3 rows {NOTE}",))
    assert "gopher_short_doc" in (store.folder(chain.report) / PAGE).read_text()


def test_a_check_tells_what_a_run_would_leave_out(run: Path) -> None:
    told: list[str] = []
    assert find_mistakes(load_config(str(run)), tell=told.append) == []
    (note,) = (note for note in told if "filters" in note)
    assert note.endswith(f"of 123 rows that filters looked at, 3 {NOTE}")


def test_filters_that_keep_nothing_are_found_before_the_run(run: Path) -> None:
    corpus = {"path": "corpus/*.jsonl", "filters": ["gopher_quality"], **COLUMNS}
    config = load_config(str(rewrite(run, {"corpus": corpus})))
    (early,) = find_mistakes(config)
    with pytest.raises(type(early)) as late:
        assert Chain(config).inputs.corpus
    for error in (early, late.value):
        assert "got 123 rows, 123 of them left out by filters: 12" in error.message
        assert "as in `{name: gopher_quality, min_doc_words: 5}`" in error.remedy


@pytest.mark.parametrize("section", ["adaptation", "heldout"])
def test_your_own_rows_are_not_filtered(run: Path, section: str) -> None:
    source = {"path": "adaptation.jsonl", "filters": ["fineweb"]}
    with pytest.raises(ConfigError, match=f"'{section}': filters are for the corpus; no rule"):
        load_config(str(rewrite(run, {section: source})))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("gofer", "'corpus.filters.1': expected a filter's name (gopher_quality, gopher_rep"),
        ({"name": "c4", "sentences": 3}, "'corpus.filters.1': expected a parameter of c4 (split_"),
    ],
    ids=str,
)
def test_mistakes_in_filters_have_their_line(run: Path, wrong: Any, said: str) -> None:
    corpus = {"path": "corpus/*.jsonl", "filters": ["c4", wrong]}
    rewrite(run, {"corpus": corpus})
    lines = run.read_text(encoding="utf-8").splitlines()
    line = 1 + next(n for n, text in enumerate(lines) if "gofer" in text or "name: c4" in text)
    with pytest.raises(ConfigError) as caught:
        load_config(str(run))
    line -= "sentences" in lines[line - 2]
    assert f"line {line}: {said}" in caught.value.message
    assert caught.value.message.count("got 'gofer'") == (wrong == "gofer")
