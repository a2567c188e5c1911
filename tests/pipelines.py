"""Tiny text-to-image pipelines for tests, built from config classes; random weights."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

WORDS = [
    "a photo of red green blue round square circle box stripe dot in on the style cat dog",
    "sks backpack toy plush candle with many more words than fit",
]
LONGEST_CAPTION = 77


@lru_cache
def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return tokens and merges by which each word is one; a trained one differs by process."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{each}</w>" for each in letters)]
    vocabulary = {token: n for n, token in enumerate(tokens)}
    merges: list[tuple[str, str]] = []
    for word in " ".join(WORDS).split():
        while True:
            parts = models.BPE(vocabulary, merges, end_of_word_suffix="</w>").tokenize(word)
            if len(parts) == 1:
                break
            pair = parts[0].value, parts[1].value
            merges.append(pair)
            vocabulary.setdefault("".join(pair), len(vocabulary))
    return vocabulary, merges


def _clip_tokenizer() -> CLIPTokenizer:
    vocabulary, merges = _vocabulary()
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LONGEST_CAPTION)


def _t5_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(
        special_tokens=["<pad>", "</s>", "<unk>"], show_progress=False
    )
    tokenizer.train_from_iterator(WORDS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=2 * LONGEST_CAPTION,
    )


def _clip(width: int, *, projected: bool = False) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(_vocabulary()[0]),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LONGEST_CAPTION,
        projection_dim=width,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config)


def _vae(channels: int = 4, **more: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=16,
        **more,
    )


def _unet(text: int, **more: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=text,
        attention_head_dim=4,
        norm_num_groups=4,
        **more,
    )


def _stable_diffusion(prediction: str) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=_clip(16),
        tokenizer=_clip_tokenizer(),
        unet=_unet(16),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type=prediction,
            clip_sample=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl() -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=_clip(16),
        text_encoder_2=_clip(24, projected=True),
        tokenizer=_clip_tokenizer(),
        tokenizer_2=_clip_tokenizer(),
        unet=_unet(
            40,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 24,
        ),
        scheduler=DPMSolverMultistepScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
        ),
        feature_extractor=None,
        image_encoder=None,
    )


def _t5(width: int) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=64, d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    )


def _sd3() -> StableDiffusion3Pipeline:
    """Of 3.5: queries and keys are normalized, and a block has a second attention."""
    return StableDiffusion3Pipeline(
        vae=_vae(
            shift_factor=0.06,
            scaling_factor=0.4,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        text_encoder=_clip(16, projected=True),
        text_encoder_2=_clip(24, projected=True),
        text_encoder_3=_t5(48),
        tokenizer=_clip_tokenizer(),
        tokenizer_2=_clip_tokenizer(),
        tokenizer_3=_t5_tokenizer(),
        transformer=SD3Transformer2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=48,
            caption_projection_dim=16,
            pooled_projection_dim=16 + 24,
            pos_embed_max_size=16,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def _flux() -> FluxPipeline:
    return FluxPipeline(
        vae=_vae(shift_factor=0.05, scaling_factor=0.4),
        text_encoder=_clip(16),
        text_encoder_2=_t5(24),
        tokenizer=_clip_tokenizer(),
        tokenizer_2=_t5_tokenizer(),
        transformer=FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=24,
            pooled_projection_dim=16,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=True,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


PIPELINES = {
    "sd": lambda: _stable_diffusion("epsilon"),
    "sd-v": lambda: _stable_diffusion("v_prediction"),
    "sdxl": _sdxl,
    "sd3": _sd3,
    "flux": _flux,
}


def save_pipeline(folder: Path, family: str = "sd", seed: int = 0) -> Path:
    """Save a tiny pipeline for 16x16 pictures, as a standard folder."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        pipeline = PIPELINES[family]()
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
