"""Tiny encoders of pictures and texts for tests, built from config classes."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
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
from tests.toys import TOPICS, _tokenizer

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


def save_sentence_encoder(folder: Path, *, prompt: str = "", dense: bool = False) -> Path:
    """Save a tiny BERT of sentence-transformers that reads 24 tokens: mean of 16 dimensions."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer

    words = sorted({w for each in TOPICS.values() for w in each} | {".", "query", ":"})
    vocabulary = {
        w: n for n, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])
    }
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=24, **_TINY)
    bert = folder.with_name(f"{folder.name}-bert")
    _seeded(lambda: BertModel(config)).save_pretrained(bert)
    BertTokenizer(vocab=vocabulary, model_max_length=24).save_pretrained(bert)
    modules = [Transformer(str(bert)), Pooling(_TINY["hidden_size"], pooling_mode="mean")]
    if dense:
        modules.append(_seeded(lambda: Dense(_TINY["hidden_size"], 8)))
    prompts = {"default_prompt_name": "query", "prompts": {"query": prompt}} if prompt else {}
    SentenceTransformer(modules=modules, device="cpu", **prompts).save(str(folder))
    return folder


def save_static_encoder(folder: Path) -> Path:
    """Save an encoder of sentence-transformers that is a table of vectors: no layers, no mask."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    table = _seeded(lambda: StaticEmbedding(_tokenizer(), embedding_dim=16))
    SentenceTransformer(modules=[table], device="cpu").save(str(folder))
    return folder


ENCODERS = {
    "clip": save_clip,
    "siglip": save_siglip,
    "dino": save_dino,
    "dinov2": save_dinov2,
}
