"""Stable Diffusion 3: losses and layers are those of diffusers' training script, T5 may lack."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.training_utils import compute_loss_weighting_for_sd3

from albat_core.backbones import check_backbone, kind_of, open_backbone, row_limit
from albat_core.backbones.adapters import AdapterConfig
from albat_core.backbones.base import DrawnNoise, FixedNoise
from albat_core.backbones.config import BackboneConfig, SamplingConfig
from albat_core.errors import BackboneError
from albat_core.pictures import picture_pixels
from albat_core.records.examples import Example
from albat_core.seeding import torch_generator
from albat_core.store.stage import Runtime
from tests.pictures import picture
from tests.pipelines import LONGEST_CAPTION, save_pipeline

CPU = Runtime(device="cpu")
T5 = ("text_encoder_3", "tokenizer_3")
CAPTIONS = ("a red circle", "a photo of a blue square in the style", "a dog")
STEPS = (20, 400, 900)
"""Places in the scheduler's 1000 steps, from the noisiest on."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_pipeline(tmp_path / "pipeline", "sd3")


def config_of(folder: Path, dtype: str = "float32") -> BackboneConfig:
    picture_size = {"picture": {"resolution": 16}}
    return BackboneConfig(kind="diffusion", path=str(folder), dtype=dtype, diffusion=picture_size)


def leave_out(folder: Path) -> None:
    """Take the T5 out of a folder, as one that was saved without it."""
    index = folder / "model_index.json"
    absent = {name: [None, None] for name in T5}
    index.write_text(json.dumps(json.loads(index.read_text()) | absent))
    for name in T5:
        shutil.rmtree(folder / name)


def rows() -> list[Example]:
    return [
        Example(f"r{n}", f"r{n}", "toy", text, image=picture("red", "circle", n, 16))
        for n, text in enumerate(CAPTIONS)
    ]


def losses_of_the_script(pipeline: Any, pixels: np.ndarray, noise: torch.Tensor) -> torch.Tensor:
    """Return losses (n,) as train_dreambooth_lora_sd3.py has them, logit-normal as it is.

    Predictions are compared as they are (``--precondition_outputs 0``), as for Flux.
    """
    vae, scheduler = pipeline.vae, pipeline.scheduler
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    latents = vae.encode(batch).latent_dist.mode()
    latents = (latents - vae.config.shift_factor) * vae.config.scaling_factor
    timesteps = scheduler.timesteps[list(STEPS)]
    sigmas = scheduler.sigmas[list(STEPS)]
    text, _, pooled, _ = pipeline.encode_prompt(list(CAPTIONS), None, None)
    said = pipeline.transformer(
        hidden_states=scheduler.scale_noise(latents, timesteps, noise),
        timestep=timesteps,
        encoder_hidden_states=text,
        pooled_projections=pooled,
    ).sample
    weighting = compute_loss_weighting_for_sd3("logit_normal", sigmas)
    return weighting * (said - (noise - latents)).square().flatten(1).mean(1)


@torch.no_grad()
@pytest.mark.parametrize("t5", [True, False])
def test_losses_are_those_of_diffusers_training_script(folder: Path, t5: bool) -> None:
    if not t5:
        leave_out(folder)
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    share = 1 - torch.tensor(STEPS, dtype=torch.float64) / 1000  # of noise, before the shift
    levels = torch.special.ndtr(torch.logit(share)).float()
    with open_backbone(config_of(folder), CPU) as backbone:
        cut = [piece for row in rows() for piece in backbone.pieces(row)]
        ours = backbone.losses(backbone.encode(cut), DrawnNoise(levels, noise.unbind()))
    absent = {} if t5 else dict.fromkeys(T5)
    plain = StableDiffusion3Pipeline.from_pretrained(folder, **absent)
    pixels = np.stack([picture_pixels(e.image or b"") for e in cut])
    expected = losses_of_the_script(plain, pixels, noise)
    torch.testing.assert_close(ours.each[:, 0], expected, rtol=1e-4, atol=1e-6)


def test_layers_adapted_are_those_of_diffusers_training_script(folder: Path) -> None:
    with open_backbone(config_of(folder), CPU) as backbone:
        backbone.attach_adapter(AdapterConfig(rank=2, text_encoder=True), 0)
        adapted = {name.partition(".lora_")[0] for name in backbone.adapter_parameters()}
    first = ("to_k", "to_q", "to_v", "to_out.0", "add_k_proj", "add_q_proj", "add_v_proj")
    expected = {f"transformer.transformer_blocks.{n}.attn.{m}" for n in (0, 1) for m in first}
    expected.add("transformer.transformer_blocks.0.attn.to_add_out")  # the last writes no text
    assert {name for name in adapted if name.startswith("transformer.")} == expected
    texts = {name for name in adapted if name.startswith("text_encoder")}
    assert len(texts) == 2 * 2 * 4  # encoders, layers, projections
    assert not any("text_encoder_3" in name for name in texts)


@torch.no_grad()
def test_without_t5_captions_are_clip_s_and_pictures_those_of_diffusers(folder: Path) -> None:
    assert row_limit(config_of(folder)).amount.startswith(f"{2 * LONGEST_CAPTION} tokens")
    leave_out(folder)
    config = config_of(folder)
    check_backbone(config, CPU)
    assert row_limit(config).amount.startswith(f"{LONGEST_CAPTION} tokens")
    with open_backbone(config, CPU) as backbone:
        made = backbone.generate(["a cat"], SamplingConfig(steps=2, guidance=2.0), seed=0)
    as_the_card_says: dict[str, Any] = {}
    lines = kind_of(config).loading(config, repr(str(folder))).splitlines()
    exec("\n".join(lines[:-1]), as_the_card_says)  # but for the adapter
    drawn = as_the_card_says["pipeline"](
        "a cat",
        height=16,
        width=16,
        num_inference_steps=2,
        guidance_scale=2.0,
        generator=[torch_generator(0, "generated", 0)],
        output_type="np",
    ).images[0]
    found = picture_pixels(made[0].image or b"")
    np.testing.assert_array_equal(found, (drawn * 255).round().astype(np.uint8))


def test_bfloat16_computes_nearly_the_same(folder: Path) -> None:
    found = []
    for dtype in ("float32", "bfloat16"):
        with open_backbone(config_of(folder, dtype), CPU) as backbone, torch.inference_mode():
            cut = [piece for row in rows() for piece in backbone.pieces(row)]
            found.append(backbone.losses(backbone.encode(cut), FixedNoise(levels=4)).mean)
    assert torch.allclose(*found, rtol=0.02)
    assert not torch.equal(*found)


def test_pictures_have_sides_that_there_are_positions_for(folder: Path) -> None:
    def check(**settings: object) -> None:
        sized = {"diffusion": {"picture": settings}}
        check_backbone(BackboneConfig(kind="diffusion", path=str(folder), **sized), CPU)

    check(resolution=64)  # 16 positions of 2 latents of 2 pixels
    check(resolution=32, buckets=8)
    for larger, longest in (({"resolution": 68}, 68), ({"resolution": 48, "buckets": 8}, 96)):
        with pytest.raises(BackboneError, match=f"sides of at most 64 pixels, got {longest}"):
            check(**larger)


@pytest.mark.parametrize(
    ("component", "setting", "said"),
    [
        ("text_encoder_2", {"projection_dim": 8}, "reads pooled text of width 40, CLIPs write 24"),
        ("text_encoder_3", {"d_model": 8}, "reads text of width 48, the text encoder writes 8"),
        ("vae", {"latent_channels": 16}, "reads 4 channels, not 16"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    folder: Path, component: str, setting: dict[str, int], said: str
) -> None:
    path = folder / component / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | setting))
    with pytest.raises(BackboneError, match=said):
        check_backbone(config_of(folder), CPU)
