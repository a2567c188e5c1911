"""Tiny image encoders for tests, built from config classes with their image processors."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

from tests.pipelines import LONGEST_CAPTION, _clip_tokenizer

SIDE = 32
_TINY = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_VISION = _TINY | {"image_size": SIDE, "patch_size": 8}


def _text(tokenizer: Any) -> dict[str, Any]:
    return _TINY | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": LONGEST_CAPTION,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "projection_size": 16,
    }


def save_clip(folder: Path) -> Path:
    """Save a tiny CLIP: pictures cut to 32x32, projected to 8 dimensions."""
    tokenizer = _clip_tokenizer()
    model = _seeded(
        lambda: CLIPModel(
            CLIPConfig(
                text_config=_text(tokenizer) | {"projection_dim": 8},
                vision_config=_VISION | {"projection_dim": 8},
                projection_dim=8,
            )
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    cut = {"height": SIDE, "width": SIDE}
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=cut).save_pretrained(folder)
    return folder


def save_siglip(folder: Path) -> Path:
    """Save a tiny SigLIP: pictures stretched to 32x32."""
    tokenizer = _clip_tokenizer()
    model = _seeded(
        lambda: SiglipModel(SiglipConfig(text_config=_text(tokenizer), vision_config=_VISION))
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    SiglipImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def save_dino(folder: Path) -> Path:
    """Save a tiny DINO: a ViT without a pooling layer, as its authors publish it."""
    model = _seeded(lambda: ViTModel(ViTConfig(**_VISION), add_pooling_layer=False))
    model.save_pretrained(folder)
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def save_dinov2(folder: Path) -> Path:
    """Save a tiny DINOv2: pictures resized to 40 pixels, of which the middle 32 are cut out."""
    model = _seeded(lambda: Dinov2Model(Dinov2Config(**_TINY, image_size=SIDE, patch_size=8)))
    model.save_pretrained(folder)
    cut = {"height": SIDE, "width": SIDE}
    CLIPImageProcessor(size={"shortest_edge": SIDE + 8}, crop_size=cut).save_pretrained(folder)
    return folder


def _seeded(make: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return make()


ENCODERS = {
    "clip": save_clip,
    "siglip": save_siglip,
    "dino": save_dino,
    "dinov2": save_dinov2,
}
