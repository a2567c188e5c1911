"""Pictures that are mirrored or lose their caption, in training alone; samples drawn on the way."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from albat_core.backbones import open_backbone
from albat_core.backbones.base import Backbone, Encoded
from albat_core.backbones.language.model import LanguageBackbone
from albat_core.errors import BackboneError, Interrupted
from albat_core.pictures import picture_pixels, picture_size
from albat_core.progress import Drawn, Silent, reporting_to
from albat_core.records.examples import Example
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.store.artifacts import ArtifactStore
from albat_core.training.encoded import EncodedBatches
from albat_core.training.sampler import MixtureSampler
from albat_core.training.variation import Variation
from flows.config import load_config
from tests.core.trainings import StopsAt, same
from tests.pictures import write_image_run


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    return load_config(str(write_image_run(tmp_path, samples={"sampling": {"steps": 2}})))


def surrogate(run: RunConfig, root: Path, **changes: object) -> tuple[ArtifactStore, Chain]:
    """A chain of its own root, whose surrogate is trained with some settings."""
    sampled = run.samples.model_copy(update={"prompts": ("a red dot", "a blue square")})
    training = run.surrogate.model_copy(update={"learning_rate": 0.01, **changes})
    runtime = run.runtime.model_copy(update={"root": str(root)})
    update = {"surrogate": training, "runtime": runtime, "samples": sampled}
    return ArtifactStore(str(root)), Chain(run.model_copy(update=update))


def weights(store: ArtifactStore, chain: Chain) -> dict[str, torch.Tensor]:
    return load_file(store.folder(chain.surrogate) / "pytorch_lora_weights.safetensors")


def test_draws_are_of_seed_and_step_alone_and_as_many_as_wanted() -> None:
    variation = Variation(flip=True, caption_dropout=0.25, seed=7)
    mirrored = [variation.mirrored(step, 8) for step in range(400)]
    bare = [variation.uncaptioned(step, 8) for step in range(400)]
    assert mirrored[3] == Variation(flip=True, seed=7).mirrored(3, 8) != mirrored[4]
    assert mirrored != [Variation(flip=True, seed=8).mirrored(step, 8) for step in range(400)]
    assert np.mean(mirrored) == pytest.approx(0.5, abs=0.03)
    assert np.mean(bare) == pytest.approx(0.25, abs=0.03)
    both = np.mean(np.logical_and(mirrored, bare))
    assert both == pytest.approx(0.125, abs=0.03)  # one says nothing of the other
    assert not any(Variation(seed=7).mirrored(0, 100) + Variation(seed=7).uncaptioned(0, 100))
    assert all(Variation(caption_dropout=1.0).uncaptioned(0, 100))


def test_batches_hold_mirrored_pictures_and_ones_without_caption(
    run: RunConfig, tmp_path: Path
) -> None:
    sampler = MixtureSampler(4, np.full(3, 1 / 3), 0.5, 8, 0)
    variation = Variation(flip=True, caption_dropout=0.4, seed=1)
    with open_backbone(run.backbone, run.runtime) as backbone:
        own = cut(backbone, tmp_path / "adaptation", 4)
        other = cut(backbone, tmp_path / "corpus" / "blue", 3)
        batches = EncodedBatches(backbone, own, other, sampler, 6, variation)
        plain = EncodedBatches(backbone, own, other, sampler, 6)
        seen: set[tuple[bool, bool]] = set()
        for step in (*range(6), 2):
            flags = list(
                zip(variation.mirrored(step, 8), variation.uncaptioned(step, 8), strict=True)
            )
            varied, usual = ([*chain(*its.batch(step))] for its in (batches, plain))
            assert [e.example_id for e in varied] == [e.example_id for e in usual]
            for (mirrored, bare), one, before in zip(flags, varied, usual, strict=True):
                assert (one.inputs["caption"] == "") == bare
                assert before.inputs["caption"]
                assert one.inputs["frame"] == before.inputs["frame"]
                alike = np.allclose(one.inputs["latents"], before.inputs["latents"], atol=1e-5)
                assert alike == (not mirrored)
            seen |= set(flags)
        assert len(seen) == 4
        [example] = own[:1]
        flipped = batches._parts[0]._row((0, True))
        np.testing.assert_array_equal(
            picture_pixels(flipped.image or b""), picture_pixels(example.image or b"")[:, ::-1]
        )


def cut(backbone: Backbone, folder: Path, count: int) -> list[Example]:
    """Pictures of a folder of the run, at the backbone's size."""
    return [
        piece
        for file in sorted(folder.glob("*.png"))[:count]
        for piece in backbone.pieces(
            Example(file.stem, file.stem, "toy", f"a {file.stem}", image=file.read_bytes())
        )
    ]


def test_training_alone_sees_pictures_otherwise(
    run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, plain = surrogate(run, tmp_path / "plain")
    other, varied = surrogate(run, tmp_path / "varied", flip=True, caption_dropout=0.3)
    before, after = (s.manifest(c.surrogate).facts for s, c in ((store, plain), (other, varied)))
    # the first look is at an adapter without effect: of the same validation pictures
    assert before["history"][0] == after["history"][0]
    assert before["history"][1:] != after["history"][1:]
    again, same_again = surrogate(run, tmp_path / "again", flip=True, caption_dropout=0.3)
    with reporting_to(StopsAt(4)), pytest.raises(Interrupted):
        _ = same_again.surrogate
    assert same(weights(again, same_again), weights(other, varied))
    assert again.manifest(same_again.surrogate).facts["history"] == after["history"]


class Gallery(Silent):
    """Keeps what it is shown."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, int, list[Drawn]]] = []

    def show(self, label: str, step: int, drawn: Sequence[Drawn]) -> None:
        self.shown.append((label, step, list(drawn)))


def test_samples_are_drawn_on_the_way_and_change_nothing(run: RunConfig, tmp_path: Path) -> None:
    store, plain = surrogate(run, tmp_path / "plain")
    usual = weights(store, plain)
    other, sampled = surrogate(run, tmp_path / "sampled", sample_every=2)
    gallery = Gallery()
    with reporting_to(gallery):
        assert same(weights(other, sampled), usual)
    assert plain.surrogate.key == sampled.surrogate.key
    assert [step for _, step, _ in gallery.shown] == [2, 4, 6]
    assert {prompt for *_, drawn in gallery.shown for prompt, _ in drawn} == {
        "a red dot",
        "a blue square",
    }
    first, _, last = (drawn[0][1] for *_, drawn in gallery.shown)
    assert picture_size(first) == (16, 16)
    assert first != last  # the adapter has moved on, the noise has not
    again, twice = surrogate(run, tmp_path / "again", sample_every=2)
    repeated = Gallery()
    with reporting_to(repeated):
        assert same(weights(again, twice), usual)
    assert repeated.shown == gallery.shown


@pytest.mark.parametrize(
    ("setting", "value"), [("flip", True), ("caption_dropout", 0.1), ("sample_every", 5)]
)
def test_language_models_have_no_pictures_to_vary(
    run_config: RunConfig, setting: str, value: object
) -> None:
    for section in ("surrogate", "finetune"):
        wanted = run_config.model_dump() | {"samples": {"prompts": ["a leaf"]}}
        wanted[section][setting] = value
        with pytest.raises(ValidationError, match=f"{setting}: for backbones that draw pictures"):
            RunConfig.model_validate(wanted)
    encoded = Encoded("r", {}, 1, 1)
    with (
        open_backbone(run_config.backbone, run_config.runtime) as backbone,
        pytest.raises(BackboneError, match="a picture with a caption"),
    ):
        assert isinstance(backbone, LanguageBackbone)
        backbone.without_caption(encoded)


def test_samples_on_the_way_need_prompts(run: RunConfig) -> None:
    wanted = run.model_dump()
    wanted["finetune"]["sample_every"] = 5
    with pytest.raises(ValidationError, match=r"finetune\.sample_every draws the first"):
        RunConfig.model_validate(wanted)
