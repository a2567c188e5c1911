"""Batches that fit: where memory ends, smaller ones; what was computed stays."""

from typing import Any

import numpy as np
import pytest
import torch

from albat_core.backbones import open_backbone
from albat_core.backbones.base import FixedNoise, adapted
from albat_core.backbones.batches import each_batch, length_batches
from albat_core.backbones.language.model import LanguageBackbone
from albat_core.errors import BackboneError
from albat_core.measures.gradients import Projection, example_gradients
from albat_core.measures.losses import advantages, example_losses
from albat_core.records.splits import TRAIN, read_role
from albat_core.stages.embed import embed_examples
from tests.core.trainings import STEPS, Training

FULL = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    MemoryError(),
]


@pytest.mark.parametrize("error", FULL, ids=lambda e: type(e).__name__)
def test_every_example_is_computed_once_in_batches_that_fit(error: Exception) -> None:
    lengths = [5, 50, 7, 30, 31, 8, 60, 12, 9, 40]
    done: list[int] = []
    tried: list[int] = []

    def compute(positions: list[int]) -> None:
        tried.append(len(positions) * max(lengths[n] for n in positions))
        if tried[-1] > 70:
            raise error
        done.extend(positions)

    budget = each_batch(lengths, 240, compute)
    assert sorted(done) == list(range(10))
    assert budget <= 70
    assert len([size for size in tried if size > 70]) <= 3  # it learns what fits
    assert [*map(len, length_batches(lengths, 240))] != [1] * 10


def test_one_example_that_does_not_fit_is_told() -> None:
    def compute(_: list[int]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(BackboneError, match="expected room for one example of 30 units") as raised:
        each_batch([10, 30, 20], 100, compute)
    assert "backbone.max_length" in raised.value.remedy


def test_other_errors_are_raised_as_they_are() -> None:
    def compute(_: list[int]) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        each_batch([10, 30, 20], 100, compute)


@pytest.fixture
def small_device(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A device with room for two examples; the sizes of what was computed on it."""
    sizes: list[int] = []
    for name in ("losses", "losses_with_divergence", "embed"):
        real = getattr(LanguageBackbone, name)

        def bounded(self: LanguageBackbone, batch: list, *more: object, real: Any = real) -> object:
            if len(batch) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            sizes.append(len(batch))
            return real(self, batch, *more)

        monkeypatch.setattr(LanguageBackbone, name, bounded)
    return sizes


def measured(training: Training) -> list[np.ndarray]:
    # few steps: Adam carries on the rounding of gradients that are near zero
    ref = training.run(STEPS.model_copy(update={"penalty": 0.3, "steps": 5}))
    with (
        open_backbone(training.backbone, training.runtime) as backbone,
        adapted(backbone, training.store.folder(ref)),
    ):
        rows = backbone.encode(read_role(training.store, training.adaptation, TRAIN))
        found = advantages(backbone, rows, 8192, FixedNoise(1))
        return [
            *(p.detach().numpy().copy() for p in backbone.adapter_parameters().values()),
            example_losses(backbone, rows, 8192, FixedNoise(1))[0],
            found.adapted - found.untouched,
            example_gradients(backbone, rows, 8192, FixedNoise(1), Projection(64)),
            embed_examples(backbone, rows, 8192, ""),
        ]


def test_all_that_is_computed_is_the_same_on_a_small_device(
    training: Training, another: Training, request: pytest.FixtureRequest
) -> None:
    whole = measured(training)
    sizes = request.getfixturevalue("small_device")
    for there, here in zip(whole, measured(another), strict=True):
        np.testing.assert_allclose(here, there, rtol=1e-3, atol=1e-5)
    assert max(sizes) == 2


def test_batches_have_one_shape_and_keep_to_their_budget() -> None:
    lengths = [12, 12, 16, 12, 12, 16]
    shapes = [(4, 3), (3, 4), (4, 4), (4, 3), (3, 4), (4, 4)]
    assert length_batches(lengths, 24, shapes) == [[2], [5], [1, 4], [0, 3]]
    assert length_batches(lengths, 1000, shapes) == [[2, 5], [1, 4], [0, 3]]
    assert length_batches(lengths, 1000) == [[2, 5, 0, 1, 3, 4]]
