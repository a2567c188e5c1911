"""Pictures of several shapes: batches of one, what SDXL is told of each, and a run on them."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from albat_core.backbones import check_backbone, open_backbone
from albat_core.backbones.base import DrawnNoise, FixedNoise, join_noise
from albat_core.backbones.batches import encoded_batches
from albat_core.backbones.config import BackboneConfig, SamplingConfig
from albat_core.backbones.diffusion.model import DiffusionBackbone
from albat_core.errors import BackboneError
from albat_core.measures.losses import example_losses
from albat_core.pictures import picture_pixels, picture_size
from albat_core.records.examples import Example
from albat_core.records.redrawn import read_redrawn
from albat_core.runs.chain import Chain
from albat_core.store.artifacts import ArtifactStore
from albat_core.store.stage import Runtime
from flows.config import load_config
from tests.pictures import write_image_run
from tests.pipelines import PIPELINES, save_pipeline

CPU = Runtime(device="cpu")
BUCKETS = {"picture": {"resolution": 16, "buckets": 8}}
SHAPES = ((40, 20), (20, 40), (24, 24), (60, 30), (20, 60))
"""Heights and widths; in buckets 24 x 8, 8 x 24, 16 x 16, 24 x 8, 8 x 24 or 8 x 32."""


def file_of(height: int, width: int) -> bytes:
    """Return a PNG whose brightness grows to the right and whose red grows downwards."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, height, dtype=np.uint8)[:, None]
    pixels[..., 1] = np.linspace(0, 255, width, dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def rows() -> list[Example]:
    return [
        Example(f"r{n}", f"r{n}", "toy", f"a red dot {n}", image=file_of(*shape))
        for n, shape in enumerate(SHAPES)
    ]


@pytest.fixture(scope="module", params=PIPELINES)
def backbone(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DiffusionBackbone]:
    folder = save_pipeline(tmp_path_factory.mktemp("pipeline") / "one", request.param)
    config = BackboneConfig(kind="diffusion", path=str(folder), dtype="float32", diffusion=BUCKETS)
    with open_backbone(config, CPU) as opened:
        yield opened


def test_noise_of_several_shapes_is_put_together() -> None:
    one = DrawnNoise(torch.tensor([0.1, 0.2]), torch.zeros(2, 1, 2, 3).unbind())
    other = DrawnNoise(torch.tensor([0.3]), torch.ones(1, 1, 3, 2).unbind())
    both = join_noise([one, other])
    assert both is not None
    every = both.take(slice(0, None, 2))
    assert torch.equal(every.levels, torch.tensor([0.1, 0.3]))
    assert [tuple(noise.shape) for noise in every.noise] == [(1, 2, 3), (1, 3, 2)]


def test_pictures_of_several_shapes_are_computed_together_as_alone(
    backbone: DiffusionBackbone,
) -> None:
    cut = [piece for row in rows() for piece in backbone.pieces(row)]
    encoded = backbone.encode(cut)
    sizes = [picture_size(e.image or b"") for e in cut]
    assert len(set(sizes)) >= 3
    for one, example, (tall, wide) in zip(encoded, cut, sizes, strict=True):
        (alone,) = backbone.encode([example])
        np.testing.assert_allclose(one.inputs["latents"], alone.inputs["latents"], atol=1e-5)
        assert one.shape[1:] == (tall // 2, wide // 2)
        assert one.length == tall * wide // 4
        assert one.inputs["frame"] == (*(example.frame or ()), tall, wide)
    batches = encoded_batches(encoded, 1000)
    assert sorted(n for batch in batches for n in batch) == list(range(len(cut)))
    assert [len({encoded[n].shape for n in batch}) for batch in batches] == [1] * len(batches)
    with torch.inference_mode():
        together, _ = example_losses(backbone, encoded, 1000, FixedNoise(2))
        apart, _ = example_losses(backbone, encoded, 1, FixedNoise(2))
    np.testing.assert_allclose(together, apart, atol=1e-4)


def test_sdxl_is_told_the_size_before_the_cut_and_after(tmp_path: Path) -> None:
    folder = save_pipeline(tmp_path / "sdxl", "sdxl")
    config = BackboneConfig(kind="diffusion", path=str(folder), dtype="float32", diffusion=BUCKETS)
    told: list[torch.Tensor] = []
    with open_backbone(config, CPU) as opened:
        assert isinstance(opened, DiffusionBackbone)
        [piece] = opened.pieces(Example("r", "r", "toy", "a cat", image=file_of(40, 20)))
        hook = opened._family.denoiser.register_forward_pre_hook(
            lambda _, __, given: told.append(given["added_cond_kwargs"]["time_ids"]),
            with_kwargs=True,
        )
        with torch.inference_mode():
            opened.losses(opened.encode([piece]), FixedNoise(1))
        hook.remove()
    tall, wide = picture_size(piece.image or b"")
    assert tall > wide
    _, _, top, left = piece.frame or ()
    assert told[0].tolist() == [[40.0, 20.0, top, left, tall, wide]]


def test_pictures_are_drawn_at_the_size_that_is_asked_for(backbone: DiffusionBackbone) -> None:
    sampling = SamplingConfig(steps=2, guidance=1.0)
    sizes = [(16, 16), (8, 24), (16, 16)]
    made = backbone.generate(["a cat", "a dog", "a box"], sampling, 3, sizes)
    assert [picture_size(e.image or b"") for e in made] == sizes
    assert [e.text for e in made] == ["a cat", "a dog", "a box"]
    usual = backbone.generate(["a cat", "a dog", "a box"], sampling, 3)
    assert picture_size(usual[1].image or b"") == (16, 16)
    one, other = (picture_pixels(e.image or b"").astype(int) for e in (made[2], usual[2]))
    assert abs(one - other).max() <= 1  # the same noise, whatever stands beside it


@pytest.mark.parametrize("family", PIPELINES)
def test_a_resolution_that_is_no_size_is_drawn_at_the_nearest_bucket(
    tmp_path: Path, family: str
) -> None:
    folder = save_pipeline(tmp_path / "one", family)
    pictures = {"picture": {"resolution": [18, 26], "buckets": 8}}
    config = BackboneConfig(kind="diffusion", path=str(folder), dtype="float32", diffusion=pictures)
    check_backbone(config, CPU)
    with open_backbone(config, CPU) as backbone:
        [made] = backbone.generate(["a cat"], SamplingConfig(steps=1), 3)
    assert picture_size(made.image or b"") == (16, 24)
    assert (made.frame or ())[:2] == (16, 24)


def test_buckets_that_cannot_be_encoded_are_refused(tmp_path: Path) -> None:
    folder = save_pipeline(tmp_path / "sd")
    pictures = {"picture": {"resolution": 64, "buckets": 9}}
    config = BackboneConfig(kind="diffusion", path=str(folder), diffusion=pictures)
    with pytest.raises(BackboneError, match="expected buckets divisible by 2, got 9"):
        check_backbone(config, CPU)


def test_a_run_on_pictures_of_several_shapes(tmp_path: Path) -> None:
    path = write_image_run(tmp_path, samples={"heldout": 2, "sampling": {"steps": 2}})
    for n, file in enumerate(sorted((tmp_path / "adaptation").glob("*.png"))):
        with Image.open(file) as picture:
            picture.resize((40, 20) if n % 2 else (18, 36)).save(file)
    config = load_config(str(path))
    backbone = config.backbone.model_copy(
        update={"diffusion": config.backbone.diffusion.model_validate(BUCKETS)}
    )
    chain = Chain(config.model_copy(update={"backbone": backbone}))
    store = ArtifactStore(config.runtime.root)
    assert store.manifest(chain.surrogate).facts["steps"] == 6
    assert store.manifest(chain.selection).rows == 12
    redrawn = chain.arms.redrawn("untouched")
    assert redrawn is not None
    for true, made in read_redrawn(store, redrawn):
        size = picture_size(true.image or b"")
        assert size in {(8, 24), (24, 8)}
        assert [picture_size(one.image or b"") for one in made] == [size]
