"""Scorers of gradients against slow references, on text and on pictures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open

from albat_core.backbones import open_backbone
from albat_core.backbones.base import Backbone, FixedNoise, adapted
from albat_core.measures import theory
from albat_core.measures.gradients import Projection
from albat_core.measures.theory import metric_root, second_moments
from albat_core.records.examples import Example
from albat_core.records.scores import SCORES
from albat_core.records.shards import read_examples
from albat_core.records.splits import VALIDATION, read_role
from albat_core.records.tables import read_table
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.scorers import matching
from albat_core.scorers.gradient import adam_step
from albat_core.scorers.matching import Whitened, matching_weights, simplex_projection
from albat_core.stages.score import ScoringConfig
from albat_core.store.artifacts import ArtifactStore
from albat_core.training.config import FinetuneConfig
from flows.config import load_config
from tests.pictures import write_image_run

Floats = NDArray[np.float64]
Named = dict[str, torch.Tensor]
DIMENSION, DAMPING = 512, 3.0
NOISE = FixedNoise(levels=2)
SURROGATE = FinetuneConfig(
    steps=6,
    batch_size=4,
    evaluate_every=3,
    warmup=4,
    learning_rate=0.01,
    noise_levels=2,
    adapter={"rank": 2},
)


def test_the_step_is_that_of_less_by_hand() -> None:
    # (0.9 m + 0.1 g) / sqrt(0.999 v + 0.001 g^2 + 1e-8), as in obtain_gradients_with_adam of
    # princeton-nlp/LESS: epsilon is below the root, and moments are not corrected for their start
    moments = {
        "first/w": torch.tensor([0.5, -1.0, 0.0, 0.0]),
        "second/w": torch.tensor([0.25, 4.0, 0.0, 0.0]),
        "first/other": torch.tensor([9.0]),
        "second/other": torch.tensor([9.0]),
    }
    gradients = torch.tensor([[2.0, -3.0, 0.0, 1e-4], [0.0, 0.0, 1.0, -1e-4]])
    found = adam_step(moments, torch.device("cpu"))("w", gradients)
    expected = [
        [0.65 / 0.25375**0.5, -1.2 / 4.005**0.5, 0.0, 1e-5 / (1e-11 + 1e-8) ** 0.5],
        [0.45 / 0.24975**0.5, -0.9 / 3.996**0.5, 0.1 / 0.001**0.5, -1e-5 / (1e-11 + 1e-8) ** 0.5],
    ]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-7)


@dataclass(frozen=True)
class Scored:
    """A run whose candidates are scored by gradients, and what it scored them with."""

    run: RunConfig

    def chain(self, scorer: str) -> Chain:
        its = {"gradient": {"checkpoints": 2}, "matching": {"damping": DAMPING}}[scorer]
        scoring = ScoringConfig(
            scorer={"name": scorer, "dimension": DIMENSION} | its,
            batch_tokens=300,
            noise_levels=NOISE.levels,
        )
        changes = {"scoring": scoring, "surrogate": SURROGATE}
        return Chain(self.run.model_copy(update=changes))

    @property
    def store(self) -> ArtifactStore:
        return ArtifactStore(self.run.runtime.root)

    def scores(self, scorer: str) -> Floats:
        return np.asarray(self.table(scorer)["score"].to_numpy(), np.float64)

    def table(self, scorer: str) -> pa.Table:
        return read_table(self.store.folder(self.chain(scorer).scores) / SCORES)

    def rows(self, scorer: str) -> tuple[list[Example], list[Example]]:
        """Return candidates and held-out examples."""
        table = self.table(scorer)
        rows = read_examples(self.store, table["shard"].to_pylist(), table["row"].to_pylist())
        return rows, read_role(self.store, self.chain(scorer).inputs.adaptation, VALIDATION)


@pytest.fixture(scope="module", params=["language", "diffusion"])
def scored(
    request: pytest.FixtureRequest, run_config: RunConfig, tmp_path_factory: pytest.TempPathFactory
) -> Scored:
    if request.param == "language":
        return Scored(run_config)
    return Scored(load_config(str(write_image_run(tmp_path_factory.mktemp("pictures")))))


def gradients_one_by_one(backbone: Backbone, examples: Sequence[Example]) -> Iterator[Named]:
    """Each example's gradients in all of the adapter, from a backward pass of its own."""
    parameters = backbone.adapter_parameters()
    for example in examples:
        loss = backbone.losses(backbone.encode([example]), NOISE).mean.sum()
        given = torch.autograd.grad(loss, list(parameters.values()))
        yield dict(zip(parameters, given, strict=True))


def projected(gradients: Named) -> Floats:
    sketch, projection = torch.zeros(1, DIMENSION), Projection(DIMENSION)
    for name, gradient in gradients.items():
        projection.add(sketch, name, gradient[None])
    return sketch[0].numpy().astype(np.float64)


def less(run: RunConfig, surrogate: Path, rows: list[Example], heldout: list[Example]) -> Floats:
    """LESS as its paper has it (arXiv 2402.04333, section 4), one example at a time."""
    folders = sorted((surrogate / "checkpoints").iterdir())
    assert len(folders) == 2
    rates, cosines = [], []
    for folder in folders:
        with safe_open(folder / "moments.safetensors", "pt") as file:
            rates.append(float(file.metadata()["learning_rate"]))
            moments = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        with (
            open_backbone(run.backbone, run.runtime) as opened,
            adapted(opened, folder) as backbone,
        ):
            target = np.mean(
                [projected(g) for g in gradients_one_by_one(backbone, heldout)], axis=0
            )
            steps = []
            for gradients in gradients_one_by_one(backbone, rows):
                for name, g in gradients.items():
                    first = 0.9 * moments[f"first/{name}"] + 0.1 * g
                    second = 0.999 * moments[f"second/{name}"] + 0.001 * g**2
                    gradients[name] = first / torch.sqrt(second + 1e-8)
                steps.append(projected(gradients))
        norms = [np.linalg.norm(step) * np.linalg.norm(target) for step in steps]
        cosines.append([step @ target / norm for step, norm in zip(steps, norms, strict=True)])
    assert rates[0] == pytest.approx(0.0075)  # step 3 of 4 of warm-up; the other is further on
    assert rates[1] < rates[0]
    return np.asarray(np.average(cosines, axis=0, weights=rates))


def test_less_of_a_batch_is_that_of_single_examples(scored: Scored) -> None:
    found = scored.scores("gradient")
    surrogate = scored.store.folder(scored.chain("gradient").surrogate)
    expected = less(scored.run, surrogate, *scored.rows("gradient"))
    assert np.std(expected) > 1e-3
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.01 * np.std(expected))
    assert np.abs(found).max() <= 1


def test_matching_is_of_the_gradients_at_the_surrogate(scored: Scored) -> None:
    found = scored.scores("matching")
    surrogate = scored.store.folder(scored.chain("matching").surrogate)
    with (
        open_backbone(scored.run.backbone, scored.run.runtime) as opened,
        adapted(opened, surrogate) as backbone,
    ):
        corpus, target = (
            np.stack([projected(g) for g in gradients_one_by_one(backbone, examples)])
            for examples in scored.rows("matching")
        )
    both = np.concatenate([corpus, target])
    root = metric_root(both.T @ both / len(both), DAMPING)
    weights, _ = matching_weights(Whitened(corpus @ root), target.mean(axis=0) @ root)
    np.testing.assert_allclose(found, weights * len(weights), atol=0.02 * found.max())
    assert found.mean() == pytest.approx(1, abs=1e-5)
    assert found.min() >= 0
    assert np.std(found) > 0.1


@pytest.mark.parametrize("count", [1, 2, 7, 200])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_projection_is_the_nearest_point_of_the_simplex(count: int, scale: float) -> None:
    generator = np.random.default_rng(count)
    for values in (scale * generator.normal(size=count), np.full(count, scale)):
        point = simplex_projection(values)
        assert point.min() >= 0
        assert point.sum() == pytest.approx(1)
        # no point of the simplex lies ahead of it towards the values: its corners are enough
        ahead = (np.eye(count) - point) @ (values - point)
        assert ahead.max() <= 1e-9 * max(scale, 1)
        low, high = values.min() - 1, values.max()  # the reference: bisect the threshold
        for _ in range(100):
            middle = (low + high) / 2
            above = np.maximum(values - middle, 0).sum() > 1
            low, high = (middle, high) if above else (low, middle)
        assert point == pytest.approx(np.maximum(values - low, 0), abs=1e-9 * max(scale, 1))


def quadratic(weights: torch.Tensor, gradients: Floats, target: Floats) -> torch.Tensor:
    """Q(w) = |sum_j w_j g_j - t|^2 + sum_j w_j^2 |g_j - mean|^2, term by term."""
    g, t = torch.from_numpy(gradients), torch.from_numpy(target)
    mean = sum(g) / len(g)
    gap = sum(w * row for w, row in zip(weights, g, strict=True)) - t
    spread = [w**2 * ((row - mean) ** 2).sum() for w, row in zip(weights, g, strict=True)]
    return (gap**2).sum() + sum(spread)


@pytest.mark.parametrize("seed", range(6))
def test_no_shift_of_weight_makes_a_better_match(seed: int) -> None:
    """The conditions of Karush, Kuhn and Tucker, with the slope from autograd."""
    generator = np.random.default_rng(seed)
    gradients = generator.normal(size=(60, 10)) * generator.uniform(0.5, 2, size=10) + 0.3
    target = 0.7 * generator.normal(size=10)
    weights, values = matching_weights(Whitened(gradients), target)
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1)
    point = torch.from_numpy(weights).requires_grad_()
    value = quadratic(point, gradients, target)
    (slope,) = torch.autograd.grad(value, point)
    used, close = weights > 1e-9, 5e-3 * float(slope.max() - slope.min())
    assert 5 < used.sum() < 60
    assert slope[used].max() - slope[used].min() < close
    assert slope[~used].min() > slope[used].max() - close
    assert values[-1] == pytest.approx(float(value.detach()))
    assert values[0] == pytest.approx(
        float(quadratic(torch.full((60,), 1 / 60, dtype=torch.float64), gradients, target))
    )
    assert (np.diff(values) <= 0).all()
    assert values[-1] < 0.6 * values[0]
    # what Frank and Wolfe's gap says is left to gain
    assert float(slope @ point.detach() - slope.min()) <= 1e-3 * values[-1]


def test_a_target_that_is_a_mean_of_some_rows_is_matched_by_these() -> None:
    centres = np.random.default_rng(1).normal(size=(4, 6))
    planted = np.array([0.7, 0.3, 0.0, 0.0])
    # so many of each that their variance costs nothing
    weights, values = matching_weights(
        Whitened(np.repeat(centres, 2000, axis=0)), planted @ centres
    )
    groups = weights.reshape(4, 2000)
    assert groups.sum(axis=1) == pytest.approx(planted, abs=2e-3)
    assert np.ptp(groups, axis=1).max() < 1e-9
    assert values[-1] < 1e-3 * values[0]


def test_gradients_are_whitened_in_blocks_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "_AT_ONCE", 7)
    monkeypatch.setattr(theory, "_AT_ONCE", 9)
    generator = np.random.default_rng(3)
    gradients = (generator.normal(size=(60, 10)) + 0.3).astype(np.float32)
    wide = gradients.astype(np.float64)
    np.testing.assert_allclose(second_moments(gradients), wide.T @ wide, rtol=1e-12)
    root = metric_root(second_moments(gradients) / 60, 0.1)
    kept, white = Whitened(gradients, root), wide @ root
    weights, direction = generator.dirichlet(np.ones(60)), generator.normal(size=10)
    np.testing.assert_allclose(kept.mean(weights), weights @ white, rtol=1e-9)
    np.testing.assert_allclose(kept.along(direction), white @ direction, rtol=1e-9)
    apart = np.square(white - white.mean(axis=0)).sum(axis=1)
    np.testing.assert_allclose(kept.spread(), apart, rtol=1e-9)
    largest = np.linalg.eigvalsh(white.T @ white)[-1]
    assert kept.largest_eigenvalue() == pytest.approx(largest, rel=1e-9)


def test_rows_that_vary_more_weigh_less() -> None:
    # by hand: the first is the mean and the target, so that no weight of the others helps
    gradients = np.array([[0.0], [2.0], [-2.0]])
    assert matching_weights(Whitened(gradients), np.zeros(1))[0] == pytest.approx(
        [1, 0, 0], abs=1e-3
    )
    # with w on the second Q = (2 w - 1.5)^2 + (1 - w)^2 + w^2, least where 12 w = 8
    found, _ = matching_weights(Whitened(np.array([[-1.0], [1.0]])), np.array([0.5]))
    assert found == pytest.approx([1 / 3, 2 / 3], abs=1e-4)
