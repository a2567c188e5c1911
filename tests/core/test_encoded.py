"""Rows of a mixture, read and encoded as batches come to need them."""

import numpy as np
import pytest

from albat_core.backbones import open_backbone
from albat_core.records import tables
from albat_core.records.mixtures import read_mixture
from albat_core.runs.chain import Chain
from albat_core.stages.mix import MixtureConfig, write_mixture
from albat_core.store.artifacts import ArtifactStore
from albat_core.training import encoded
from albat_core.training.encoded import EncodedBatches
from albat_core.training.sampler import MixtureSampler
from tests.core.trainings import STEPS, Training, same


def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look a few steps ahead, and keep almost nothing."""
    monkeypatch.setattr(encoded, "_AHEAD", 12)
    monkeypatch.setattr(encoded, "_KEPT", 50)
    monkeypatch.setattr(encoded, "_AT_ONCE", 3)


def test_batches_are_of_the_rows_that_are_drawn_however_few_are_kept(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow(monkeypatch)
    mixture = read_mixture(training.store, training.mixture)
    sampler = MixtureSampler(len(mixture.adaptation), mixture.weights, mixture.alpha, 4, 0)
    with open_backbone(training.backbone, training.runtime) as backbone:
        rows = [backbone.encode(list(part)) for part in (mixture.adaptation, mixture.backbone)]
        batches = EncodedBatches(backbone, mixture.adaptation, mixture.backbone, sampler, 20)
        for step in (*range(20), 3, 19):
            found, drawn = batches.batch(step), sampler.batch(step)
            for its, part, places in zip(found, rows, drawn, strict=True):
                assert [e.example_id for e in its] == [part[n].example_id for n in places]
                for one, n in zip(its, places, strict=True):
                    for name, values in part[n].inputs.items():
                        np.testing.assert_array_equal(one.inputs[name], values)
        kept = [len(part._kept) for part in batches._parts]
    assert sum(kept) < len(rows[0]) + len(rows[1])


def test_an_adapter_does_not_depend_on_how_many_rows_are_kept(
    training: Training, another: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = training.weights(training.run(STEPS))
    narrow(monkeypatch)
    assert same(usual, another.weights(another.run(STEPS)))


def test_rows_that_no_step_draws_are_not_encoded(training: Training) -> None:
    mixture = read_mixture(training.store, training.mixture)
    sampler = MixtureSampler(len(mixture.adaptation), mixture.weights, mixture.alpha, 4, 0)
    with open_backbone(training.backbone, training.runtime) as backbone:
        batches = EncodedBatches(backbone, mixture.adaptation, mixture.backbone, sampler, 2)
        batches.batch(0)
        steps = [sampler.batch(n) for n in (0, 1)]
        drawn = [{(row, False) for step in steps for row in step[n]} for n in (0, 1)]
        assert [part._kept.keys() for part in batches._parts] == drawn


def test_asked_in_order_each_row_group_is_read_once(
    chain: Chain, store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_GROUP_ROWS", 5)
    ref = write_mixture(
        chain.inputs.adaptation,
        chain.selection,
        0.4,
        MixtureConfig(shard_rows=13),
        chain.config.runtime,
    )
    rows = read_mixture(store, ref).backbone
    assert [e.example_id for e in rows] == [rows[n].example_id for n in range(len(rows))]
    groups = {int(group) for group, _ in rows._places}  # type: ignore[attr-defined]
    once = read_mixture(store, ref).backbone
    assert len(list(once)) == len(rows)
    assert once._group.cache_info().misses == len(groups) > 3  # type: ignore[attr-defined]
