"""Held-out losses and their intervals."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from albat_core.measures.bootstrap import bootstrap_interval, interval_over_seeds
from albat_core.records.losses import LOSS_SCHEMA, LOSSES, document_losses
from albat_core.records.tables import read_table, write_table
from albat_core.runs.chain import Chain
from albat_core.seeding import numpy_generator
from albat_core.store.artifacts import ArtifactStore, Built

GENERATOR = np.random.default_rng(5)
UNITS = GENERATOR.integers(50, 500, size=40).astype(float)
FIRST = UNITS * GENERATOR.normal(2.7, 0.3, size=40)
SECOND = FIRST - UNITS * GENERATOR.normal(0.1, 0.05, size=40)


def directly(totals: np.ndarray, seed: int) -> list[float]:
    drawn = numpy_generator(seed, "bootstrap").integers(0, 40, size=(2000, 40))
    samples = [totals[row].sum() / UNITS[row].sum() for row in drawn]
    return [totals.sum() / UNITS.sum(), *np.quantile(samples, [0.025, 0.975])]


def test_interval_is_the_percentile_bootstrap_over_documents() -> None:
    assert bootstrap_interval([FIRST], UNITS, 3) == pytest.approx(directly(FIRST, 3))
    assert bootstrap_interval([FIRST], UNITS, 3) != bootstrap_interval([FIRST], UNITS, 4)


def test_differences_are_paired_by_document() -> None:
    value, low, high = bootstrap_interval([FIRST, SECOND], UNITS, 3)
    assert [value, low, high] == pytest.approx(directly(FIRST - SECOND, 3))
    alone = [bootstrap_interval([t], UNITS, 3) for t in (FIRST, SECOND)]
    assert high - low < (alone[0][2] - alone[0][1]) / 2
    assert bootstrap_interval([FIRST, FIRST], UNITS, 3) == (0.0, 0.0, 0.0)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    covered = 0
    for trial in range(200):
        draw = np.random.default_rng(trial).normal(1.0, 0.5, size=60)
        _, low, high = bootstrap_interval([draw], np.ones(60), trial, draws=400)
        covered += low <= 1.0 <= high
    assert 0.88 <= covered / 200 <= 0.99


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("apart", [0.0, 1.0, 10.0])
def test_three_seeds_cover_the_truth_about_as_often(apart: float, *, same: bool) -> None:
    """Whether seeds differ by nothing, or by ten times as much as documents make them."""
    covered, trials, documents = 0, 300, 40
    for trial in range(trials):
        generator = np.random.default_rng(trial)
        noise = generator.normal(0, 1, (1 if same else 3, documents))
        losses = noise + generator.normal(0, apart / documents**0.5, (3, 1))
        drawn = generator.integers(documents, size=(300, 1 if same else 3, documents))
        means = np.take_along_axis(losses[None], np.repeat(drawn, 3 // drawn.shape[1], 1), 2)
        low, high = interval_over_seeds(
            losses.mean(),
            losses.mean(axis=1),
            means.mean(axis=(1, 2)),
            documents if same else 3 * documents,
            same_documents=same,
        )
        covered += low <= 0 <= high
    assert 0.88 <= covered / trials <= 0.99


def test_one_seed_has_the_interval_of_its_documents() -> None:
    drawn = np.linspace(0, 1, 1001)
    one = interval_over_seeds(0.5, np.array([0.5]), drawn, 40, same_documents=True)
    assert one == pytest.approx((0.025, 0.975))
    seeds = np.array([0.4, 0.5, 0.6])
    alike = interval_over_seeds(0.5, seeds, np.full(9, 0.5), 40, same_documents=True)
    assert alike == pytest.approx(
        (0.5 - 4.303 * 0.1 / 3**0.5, 0.5 + 4.303 * 0.1 / 3**0.5), rel=1e-3
    )


def test_documents_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    rows = [("e1", "b", 3.0, 2), ("e2", "c", 1.0, 1), ("e3", "a", 5.0, 4), ("e4", "b", 0.5, 6)]
    names = LOSS_SCHEMA.names
    table = pa.Table.from_pylist(
        [dict(zip(names, row, strict=True)) for row in rows], schema=LOSS_SCHEMA
    )

    def build(folder: Path) -> Built:
        write_table(table, folder / LOSSES)
        return Built()

    store = ArtifactStore(str(tmp_path))
    totals, units = document_losses(store, store.produce("evaluation", 1, {}, {}, build))
    assert totals.tolist() == [5.0, 3.5, 1.0]
    assert units.tolist() == [4, 8, 1]


def test_losses_are_summed_by_document(chain: Chain, store: ArtifactStore) -> None:
    evaluation = chain.arms.evaluation("untouched")
    rows = read_table(store.folder(evaluation) / LOSSES).to_pylist()
    totals, units = document_losses(store, evaluation)
    names = sorted({row["document"] for row in rows})
    assert len(names) == len(totals) < len(rows)
    for name, total, count in zip(names, totals, units, strict=True):
        of_it = [row for row in rows if row["document"] == name]
        assert total == pytest.approx(sum(row["loss"] for row in of_it))
        assert count == sum(row["units"] for row in of_it)
    loss = store.manifest(evaluation).facts["loss"]
    assert loss == pytest.approx(totals.sum() / units.sum())
