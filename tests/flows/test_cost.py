"""What a run is said to take beforehand, against what is there and what runs."""

import json
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

from albat_core.backbones.base import Encoded
from albat_core.backbones.language.model import LanguageBackbone
from albat_core.memory import measured
from albat_core.runs import cost, probe
from albat_core.runs.chain import Chain
from albat_core.sources.config import SourceConfig
from albat_core.sources.counting import extent_of, spread
from albat_core.store.artifacts import ArtifactStore
from flows.config import load_config
from tests.encoders import save_sentence_encoder
from tests.flows.conftest import Albat
from tests.pictures import write_image_run
from tests.toys import rewrite, save_backbone, topic_rows, write_jsonl, write_run


def whole(row: object) -> list:
    """Leave a row as it is."""
    return [row]


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "jsonl.gz"])
def test_rows_are_counted_from_the_heads_of_files(tmp_path: Path, ending: str) -> None:
    rows = topic_rows("plants", 6000)
    path = tmp_path / f"rows.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        pa.output_stream(path, compression="detect").write(
            "".join(json.dumps(row) + "\n" for row in rows).encode()
        )
    found = extent_of([SourceConfig(path=str(path), id_column="id")], whole)
    assert len(found.sample) < 3000
    if ending.endswith("gz"):  # how far packed text unfolds is guessed
        assert 2000 < found.count < 18000
    else:
        assert found.count == pytest.approx(6000, rel=0.05)


def test_small_files_are_counted_to_the_row(tmp_path: Path) -> None:
    for number in range(3):
        write_jsonl(tmp_path / f"{number}.jsonl", topic_rows("plants", 40, seed=number))
    source = SourceConfig(path=str(tmp_path / "*.jsonl"), id_column="id")
    assert extent_of([source], whole).count == 120
    half = source.model_copy(update={"share": 0.5})
    assert extent_of([half], lambda row: [row, row]).count == 120


def test_rows_are_spread_over_all() -> None:
    assert spread("abcdef", 3) == list("ace")
    assert spread("ab", 5) == list("ababa")


def test_the_peak_of_work_is_measured_and_not_of_what_was_freed() -> None:
    device = torch.device("cpu")
    np.ones(50_000_000)  # 400 MB, freed
    with measured(device) as before:
        pass
    with measured(device) as peak:
        np.ones(25_000_000)
    assert 150e6 < peak.bytes - before.bytes < 350e6


@pytest.mark.parametrize("kind", ["texts", "pictures"])
def test_the_stages_of_a_run_are_counted_as_they_will_be(tmp_path: Path, kind: str) -> None:
    path = write_run(tmp_path) if kind == "texts" else write_image_run(tmp_path)
    config = load_config(str(rewrite(path, {"mixture": {"alpha": "auto"}})))
    costs = {each.name: each for each in cost.expected_costs(config)}
    chain = Chain(config)
    store = ArtifactStore(config.runtime.root)
    corpus = sum(store.manifest(ref).rows for ref in chain.inputs.corpus)
    own = store.manifest(chain.inputs.adaptation).facts
    every = corpus + sum(own[role]["rows"] for role in ("train", "validation", "test"))
    assert costs["embed"].of == f"{every} rows"
    folds = min(config.estimate.folds, config.split.folds)
    assert costs["train surrogates"].of == f"{folds} times {config.surrogate.steps} steps"
    assert ("compute inputs" in costs) == (kind == "pictures")
    assert ("score" in costs) == config.scoring.scorer.by_losses
    assert costs["score"].of.endswith("8 noise levels" if kind == "pictures" else "candidates")
    *others, total = costs.values()
    assert total.name == "in all"
    assert total.seconds == pytest.approx(sum(each.seconds or 0 for each in others))
    assert all(each.seconds > 0 for each in others if each.name != "search")
    computed = [each for each in others if each.name not in ("read and cut", "search")]
    assert all(100e6 < each.bytes < 10e9 for each in computed)
    assert total.bytes == max(each.bytes for each in others)


@pytest.mark.parametrize("eye", ["layers", "tokens", "encoder"])
def test_embedding_costs_what_the_cheaper_eye_does(
    tmp_path: Path, eye: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seconds of toys say nothing: a unit is made to take one, so that units are told."""
    save_sentence_encoder(tmp_path / "encoder")
    setting = {"layers": 1, "tokens": 6, "encoder": "encoder"}[eye]
    embedded: list[int] = []
    real = probe.Probe._batch

    def measured(self: object, batch: list, budget: int, compute: object) -> probe.Rate:
        embedded.extend(row.length for row in batch)
        return probe.Rate(1.0, real(self, batch, budget, compute).bytes)

    monkeypatch.setattr(probe.Probe, "_batch", measured)

    def told(**embedding: object) -> dict[str, cost.StageCost]:
        embedded.clear()
        config = load_config(str(rewrite(path, {"embedding": embedding})))
        return {each.name: each for each in cost.expected_costs(config)}

    path = write_run(tmp_path, baselines=[])
    before, first = told()["embed"], embedded[:64]
    after = told(**{eye: setting})
    if eye == "layers":
        assert embedded[:64] == first  # the same tokens, in less time each
    elif eye == "tokens":
        assert set(embedded[:64]) == {6}
        assert after["embed"].seconds == pytest.approx(160 * 6)
    else:
        assert max(embedded[:64]) < max(first)  # BERT's tokens, whole words, not the backbone's
        assert after["embed"].seconds < before.seconds
    assert after["search"].of.startswith("16 " if eye == "encoder" else "32 ")


def test_vectors_from_elsewhere_leave_less_to_embed(tmp_path: Path) -> None:
    save_sentence_encoder(tmp_path / "encoder")
    path = write_run(tmp_path, baselines=[])

    def counted(**embedding: object) -> dict[str, str]:
        config = load_config(str(rewrite(path, {"embedding": embedding})))
        return {each.name: each.of for each in cost.expected_costs(config)}

    assert counted(encoder="encoder")["embed"] == "160 rows"
    given = {"corpus": "vectors.parquet"}
    assert counted(encoder="encoder", vectors=given)["embed"] == "40 rows"
    assert "embed" not in counted(vectors=given | {"adaptation": "own.parquet"})


def test_more_rows_and_steps_cost_more(tmp_path: Path) -> None:
    path = write_run(tmp_path)

    def counted() -> dict[str, str]:
        return {each.name: each.of for each in cost.expected_costs(load_config(str(path)))}

    before = counted()
    training = yaml.safe_load(path.read_text())["finetune"] | {"steps": 120}
    rewrite(path, {"finetune": training, "baselines": [], "refit": False})
    after = counted()
    assert before["fine-tune"] == "6 trainings, 72 steps"
    assert after["fine-tune"] == "1 trainings, 120 steps"
    assert after["embed"] == before["embed"]


class Second:
    """A probe that finds that all takes a second: a step, and a loss of a row."""

    def attach(self, _training: object) -> None:
        pass

    def forward(self, _budget: int) -> probe.Rate:
        return probe.Rate(1.0, 1)

    def step(self, _training: object, **_mixture: float) -> probe.Rate:
        return probe.Rate(1.0, 1)

    def levels(self, _noise: object) -> int:
        return 1


def test_longer_arms_their_looks_and_the_penalty_are_counted(tmp_path: Path) -> None:
    training = {"steps": 40, "evaluate_every": 10, "stretch": 3, "penalty": 0.1}
    path = write_run(
        tmp_path, finetune=training, baselines=["all_data"], split={"folds": 5, "use": 0.5}
    )
    rows = cost._Rows(0, own=100, all_own=1000, heldout=10, corpus_units=1, own_units=1)
    told, *_ = cost._arms(load_config(str(path)), rows, Second())  # type: ignore[arg-type]
    looks, noted = 100 / 5, 100  # of a look, and of the untouched backbone
    alone = 2 * 40 + (4 + 1) * looks + 2 * noted
    mixed = 2 * 120 + (12 + 1) * looks + 2 * noted
    everything = 2 * 40 + (4 + 1) * 10 * looks + 2 * 10 * noted
    assert told.seconds == pytest.approx(alone + mixed + everything)
    surrogate = {"steps": 30, "evaluate_every": 10, "penalty": 0.1}
    config = load_config(str(rewrite(path, {"surrogate": surrogate})))
    second: Any = Second()
    told = cost._surrogates("train", 3, config, rows, second, second.forward(1))
    assert told.seconds == pytest.approx(3 * 30 + (3 + 1) * looks + 3 * noted)


def test_noise_levels_are_counted_as_configured(tmp_path: Path) -> None:
    def seconds(name: str, **changes: object) -> float:
        config = load_config(str(rewrite(path, changes)))
        return next(
            each.seconds or 0.0 for each in cost.expected_costs(config) if each.name == name
        )

    path = write_image_run(tmp_path)
    few, many = (seconds("score", scoring={"noise_levels": levels}) for levels in (1, 64))
    assert many > 20 * few


def test_what_is_passed_over_by_its_words_is_not_embedded(tmp_path: Path) -> None:
    path = write_run(tmp_path, baselines=[])

    def counted(**changes: object) -> dict[str, str]:
        config = load_config(str(rewrite(path, changes)))
        return {each.name: each.of for each in cost.expected_costs(config)}

    assert "prefilter" not in counted()
    few = counted(prefilter={"share": 0.25}, scoring={"scorer": "advantage"})
    assert (few["prefilter"], few["embed"]) == ("120 corpus rows", "70 rows")
    assert few["score"] == "30 candidates"
    words = {"retrieval": {"pool": "corpus"}, "scoring": {"scorer": "ngram"}}
    every = counted(selection={"rows": 20, "select": "top"}, **words)
    assert not {"embed", "search"} & every.keys()


def test_a_smaller_backbone_that_scores_leaves_a_sample_to_the_backbone(tmp_path: Path) -> None:
    save_backbone(tmp_path / "smaller", width=16)
    scoring = {"scorer": "advantage", "smaller": {"path": "smaller", "sample": 32}}
    path = write_run(tmp_path, baselines=[], scoring=scoring)
    costs = {each.name: each for each in cost.expected_costs(load_config(str(path)))}
    assert costs["score a sample"].of == "32 candidates"
    assert costs["score"].of == "120 candidates"
    assert costs["train a smaller surrogate"].of == "1 times 12 steps"
    *others, total = costs.values()
    assert total.seconds == pytest.approx(sum(each.seconds or 0 for each in others))


@pytest.mark.parametrize("epochs", [1.0, 8.0])
def test_a_step_is_measured_as_it_will_be_with_the_penalty(
    tmp_path: Path, epochs: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are read often are passed through the untouched backbone before the steps."""
    passed: list[bool] = []
    losses = LanguageBackbone.losses_with_divergence

    def noted(
        self: LanguageBackbone,
        batch: list[Encoded],
        noise: None,
        joined: list[int],
        held: list[bool],
    ) -> object:
        passed.extend(each.untouched is None for each in compress(batch, held))
        return losses(self, batch, noise, joined, held)

    monkeypatch.setattr(LanguageBackbone, "losses_with_divergence", noted)
    length = {"epochs": epochs, "penalty": 0.3}
    path = write_run(tmp_path, baselines=[], surrogate=length, finetune=length)
    cost.expected_costs(load_config(str(path)))
    assert set(passed) == {epochs == 1.0}


def test_check_tells_what_a_run_will_take(albat: Albat, tmp_path: Path) -> None:
    said = albat("check", write_run(tmp_path), "--cost")
    assert said.code == 0
    assert "time, up to" in said.out
    assert "in all" in said.out
    assert "measured on the CPU with" in said.out
