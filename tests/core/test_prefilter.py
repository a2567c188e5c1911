"""A prefilter: corpus rows kept by their words, before any is embedded."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from albat_core.errors import InputError
from albat_core.records.candidates import Candidates, read_candidates
from albat_core.records.examples import Example, example_text
from albat_core.records.selections import read_selection
from albat_core.records.shards import iterate_part, parts_of
from albat_core.records.splits import TRAIN, read_role
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.runs.steps import call_here
from albat_core.scorers.ngram import importance
from albat_core.stages.embed import embed_part
from albat_core.stages.prefilter import PrefilterConfig, prefilter
from albat_core.stages.report import read_results
from albat_core.stages.retrieve import RetrievalConfig, take_candidates
from albat_core.stages.score import ScoringConfig
from albat_core.stages.select import SelectionConfig
from albat_core.stages.split import SplitConfig, split_adaptation
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from albat_core.store.stage import Runtime
from flows.config import load_config
from tests.core.test_ngram import shards_of, texts
from tests.pictures import picture
from tests.toys import sentences, topic_rows, write_jsonl, write_run

QUARTER = PrefilterConfig(share=0.25)
WHOLE = RetrievalConfig(pool="corpus")


def rows_in(store: ArtifactStore, refs: list[ArtifactRef]) -> list[Example]:
    parts = parts_of(store, refs)
    return [row for part in parts for rows in iterate_part(store, part) for row in rows]


class Filtering:
    """A corpus of plants and ships, split targets, and what is kept for them."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime, self.store = runtime, ArtifactStore(runtime.root)
        self.pool = texts(*sentences("ships", 50, 3), *sentences("plants", 50, 2))
        self.corpus = take_candidates([shards_of(self.pool, runtime)], runtime)

    def targets(self, *topics: str) -> ArtifactRef:
        rows = texts(*(line for topic in topics for line in sentences(topic, 12, 9)))
        rows = [replace(row, example_id=f"own-{row.example_id}", source="own") for row in rows]
        return split_adaptation(
            [shards_of(rows, self.runtime)], [], SplitConfig(folds=2), 0, self.runtime
        )

    def keep(
        self,
        adaptation: ArtifactRef,
        config: PrefilterConfig = QUARTER,
        earlier: tuple[ArtifactRef, ...] = (),
    ) -> ArtifactRef:
        return prefilter(self.corpus, adaptation, config, self.runtime, earlier)

    def best(self, adaptation: ArtifactRef, share: float) -> set[str]:
        table = read_candidates(self.store, self.corpus)
        own = read_role(self.store, adaptation, TRAIN)
        totals = importance(Candidates(self.store, table), own)
        lengths = [len(re.findall(r"\w+|\.", example_text(row))) for row in self.pool]
        scores = totals / np.array(lengths)
        order = np.argsort(-scores, kind="stable")[: math.ceil(share * len(scores))]
        return {self.pool[row].example_id for row in order}


@pytest.fixture
def filtering(runtime: Runtime) -> Filtering:
    return Filtering(runtime)


@pytest.mark.parametrize("share", [0.001, 0.125, 0.5])
def test_the_rows_of_the_highest_weights_are_kept_as_they_are(
    filtering: Filtering, share: float
) -> None:
    plants = filtering.targets("plants")
    ref = filtering.keep(plants, PrefilterConfig(share=share))
    kept = rows_in(filtering.store, [ref])
    names = [row.example_id for row in kept]
    assert set(names) == filtering.best(plants, share)
    whole = [row for row in filtering.pool if row.example_id in set(names)]
    assert kept == whole  # in the corpus's order
    assert all("leaf" not in example_text(row) or row in filtering.pool[50:] for row in kept)
    manifest = filtering.store.manifest(ref)
    assert manifest.rows == len(kept) == math.ceil(share * 100)
    assert manifest.facts["prefiltered_rows"] == 100 - len(kept)
    assert manifest.facts["sources"] == {"s": len(kept)}


def test_what_was_kept_for_earlier_data_stays_and_only_new_rows_are_written(
    filtering: Filtering,
) -> None:
    plants, both = filtering.targets("plants"), filtering.targets("plants", "ships")
    first = filtering.keep(plants)
    second = filtering.keep(both, earlier=(first,))
    then, more = (
        {row.example_id for row in rows_in(filtering.store, [ref])} for ref in (first, second)
    )
    assert more
    assert not then & more
    assert then | more == filtering.best(plants, 0.25) | filtering.best(both, 0.25)
    facts = filtering.store.manifest(second).facts
    assert facts["prefiltered_rows"] == 100 - len(then) - len(more)
    assert filtering.keep(both) != second  # without the earlier ones all are written
    assert filtering.store.manifest(filtering.keep(plants, earlier=(first,))).rows == 0


def test_parts_hold_no_more_rows_than_are_in_memory_at_once(
    filtering: Filtering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("albat_core.records.candidates._BLOCK", 10)
    parts = parts_of(filtering.store, [filtering.keep(filtering.targets("plants"))])
    assert [part.rows for part in parts] == [10, 10, 5]


def test_targets_without_words_are_refused_with_the_setting(filtering: Filtering) -> None:
    drawn = [picture("red", shape, n) for shape in ("circle", "square") for n in range(3)]
    pictures = [Example(f"p{n}", f"p{n}", "s", image=png) for n, png in enumerate(drawn)]
    shards = shards_of(pictures, filtering.runtime)
    bare = split_adaptation([shards], [], SplitConfig(folds=2), 0, filtering.runtime)
    with pytest.raises(InputError, match="words in the adaptation examples") as raised:
        filtering.keep(bare)
    assert raised.value.where == "prefilter.share"


def few(run: RunConfig, root: Path, **changes: object) -> Chain:
    """The toy run with a quarter of its corpus kept, below a root of its own."""
    own = {"prefilter": QUARTER, "runtime": run.runtime.model_copy(update={"root": str(root)})}
    return Chain(run.model_copy(update=own | changes))


def test_only_kept_rows_are_embedded_and_searched_and_random_ones_are_of_all(
    run_config: RunConfig, tmp_path: Path
) -> None:
    embedded: list[int] = []

    def execute(stage, /, *args, **kwargs):  # type: ignore[no-untyped-def]
        if stage is embed_part:
            embedded.append(kwargs["part"].rows)
        return call_here(stage, *args, **kwargs)

    plain = few(run_config, tmp_path)
    chain = Chain(plain.config, execute)
    store = ArtifactStore(str(tmp_path))
    assert chain.report
    assert sum(embedded) == store.manifest(chain.inputs.index).rows == 30
    told = [each for each in read_results(store, chain.report).inputs if each.role == "prefilter"]
    assert [(each.rows, each.examples) for each in told] == [(120, 30)]
    assert told[0].notes == (
        "90 rows whose words are less like the adaptation data's, passed over",
    )
    kept = {row.example_id for row in rows_in(store, chain.inputs.kept)}
    names = set(read_candidates(store, chain.retrieved)["example_id"].to_pylist())
    assert names
    assert names <= kept
    drawn = read_selection(store, chain.random_selection)["example_id"].to_pylist()
    assert len(set(drawn)) == 20
    assert not set(drawn) <= kept


def test_the_whole_pool_is_what_is_kept(run_config: RunConfig, tmp_path: Path) -> None:
    chain = few(
        run_config,
        tmp_path,
        retrieval=WHOLE,
        scoring=ScoringConfig(scorer="ngram"),
        selection=SelectionConfig(rows=20, select="top"),
    )
    assert ArtifactStore(str(tmp_path)).manifest(chain.retrieved).rows == 30


def test_new_adaptation_rows_embed_what_is_newly_kept_alone(tmp_path: Path) -> None:
    run = load_config(str(write_run(tmp_path, prefilter={"share": 0.25})))
    first = Chain(run)
    assert first.inputs.embeddings
    selected = first.selected
    assert selected.prefiltered == tuple(first.inputs.kept)
    rows = topic_rows("plants", 40, seed=1) + topic_rows("ships", 30, seed=7)
    write_jsonl(Path(run.adaptation[0].paths[0]), rows)
    second = Chain(run, previous=selected)
    before, new = second.inputs.embeddings
    assert before.embeddings == first.inputs.embeddings[0].embeddings
    assert before.reused
    assert not new.reused
    assert new.part.rows < before.part.rows == 30
    less = run.model_copy(update={"prefilter": PrefilterConfig(share=0.2)})
    fewer = run.model_copy(update={"corpus": (run.corpus[0].model_copy(update={"share": 0.5}),)})
    for other in (less, fewer):
        assert len(Chain(other, previous=selected).inputs.kept) == 1


def test_a_prefilter_that_has_grown_too_much_begins_anew(
    run_config: RunConfig, tmp_path: Path
) -> None:
    chain = few(run_config, tmp_path)
    kept = chain.inputs.kept
    grown = chain.selected.model_copy(update={"prefiltered": tuple(kept * 2)})
    assert len(Chain(chain.config, previous=grown).inputs.kept) == 1


@pytest.mark.parametrize("changes", [{"prefilter": QUARTER}, {"retrieval": WHOLE}])
def test_ids_that_occur_twice_are_refused_where_nothing_is_embedded_yet(
    tmp_path: Path, changes: dict[str, object]
) -> None:
    run = load_config(str(write_run(tmp_path)))
    write_jsonl(tmp_path / "corpus" / "again.jsonl", topic_rows("plants", 2))
    with pytest.raises(InputError, match="expected each id once"):
        _ = Chain(run.model_copy(update=changes)).retrieved
