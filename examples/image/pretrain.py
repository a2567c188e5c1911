"""Pretrain the demo's backbone, a small Stable Diffusion pipeline, on the demo's corpus alone.

Its autoencoder is trained first, by autoencoder.py.
"""

import argparse
import copy
import json
import math
from pathlib import Path

import torch
from autoencoder import HERE, SIZE, drawing_weights, encode, fit, read_rows
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import l1_loss
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
# How CLIP splits a text before its BPE.
SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
VOCABULARY = 1500
CONTEXT = 32
WIDTH = 192
SAMPLE_PROMPTS = (
    *("grinning face", "smiling face with sunglasses", "pouting face", "thumbs up sign"),
    *("raised hand", "dog face", "pig face", "tiger face"),
    *("penguin", "whale", "tulip", "evergreen tree"),
    *("red apple", "watermelon", "slice of pizza", "birthday cake"),
    *("automobile", "rocket", "house building", "umbrella with rain drops"),
    *("soccer ball", "red heart", "full moon symbol", "wrapped present"),
)


def train_tokenizer(captions, folder):
    """CLIP's tokenizer, with a small byte-level BPE of the captions."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, end_of_word_suffix="</w>", show_progress=False
    )
    # The second style is named so that its words are whole tokens before it is ever seen.
    styled = [f"{caption} in {style} style" for caption in captions for style in ("noto", "duo")]
    tokenizer.train_from_iterator(styled, trainer)
    merges = [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    # Every byte is an entry, within a word and at its end, so no text has an unknown token.
    entries = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    for merge in merges:
        if len(entries) < VOCABULARY - 2 and "".join(merge) not in entries:
            entries.append("".join(merge))
    merges = [merge for merge in merges if "".join(merge) in entries]
    entries += [BOS, EOS]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False))
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")
    made = CLIPTokenizer.from_pretrained(
        folder, bos_token=BOS, eos_token=EOS, unk_token=EOS, pad_token=EOS, model_max_length=CONTEXT
    )
    made.save_pretrained(folder)
    return made


def tokenize(tokenizer, captions):
    """Token ids as the pipeline makes them: padded to the whole context."""
    return tokenizer(
        captions, padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt"
    ).input_ids


def new_unet():
    """A denoiser of 8x8 latents with cross-attention at 8x8 and 4x4."""
    return UNet2DConditionModel(
        sample_size=SIZE // 8,
        in_channels=8,
        out_channels=8,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(80, 128, 144),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
        # The caption also goes along with the timestep, to every block: it is learned far sooner.
        addition_embed_type="text",
        addition_embed_type_num_heads=6,
    )


def new_text_encoder(tokenizer):
    """A small CLIP text model."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=6,
            max_position_embeddings=CONTEXT,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def new_scheduler():
    """The noise schedule of Stable Diffusion, predicting velocity."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def denoising_loss(unet, text_encoder, scheduler, latents, ids, steps, noise, bf16):
    """The velocity's squared error of each drawing."""
    noisy = scheduler.add_noise(latents, noise, steps)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        states = text_encoder(ids).last_hidden_state
        predicted = unet(noisy, steps, states).sample
    target = scheduler.get_velocity(latents, noise, steps)
    return (predicted.float() - target).square().mean(dim=(1, 2, 3))


def train_denoiser(modules, ema, corpus, generator, arguments, save):
    """Train UNet and text encoder in place, and their running average in ema."""
    latents, ids, weights, empty, scheduler = corpus
    unet, text_encoder = modules
    parameters = [*unet.parameters(), *text_encoder.parameters()]
    averages = [*ema[0].parameters(), *ema[1].parameters()]
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    # Nearly clean drawings would take most of the capacity, so their weights are capped (min-SNR);
    # nearly noise keeps all of its, for there the caption alone decides what is drawn.
    step_weights = (snr + 1).clamp(max=5) / (snr + 1)

    def loss_of():
        size = arguments.batch
        picked = torch.multinomial(weights, size, True, generator=generator)
        styled = torch.randint(2, (size,), generator=generator)
        tokens = ids[styled, picked]
        dropped = torch.rand(size, generator=generator) < arguments.drop
        tokens = torch.where(dropped[:, None], empty, tokens)
        steps = torch.randint(len(snr), (size,), generator=generator)
        noise = torch.randn(latents[picked].shape, generator=generator)
        losses = denoising_loss(
            unet, text_encoder, scheduler, latents[picked], tokens, steps, noise, arguments.bf16
        )
        return (losses * step_weights[steps]).mean()

    @torch.no_grad()
    def after_step(step):
        rate = max(1 - arguments.ema, 9 / (10 + step))
        torch._foreach_lerp_(averages, parameters, rate)
        if (step + 1) % arguments.save_every == 0:
            save()

    unet.train()
    text_encoder.train()
    fit(parameters, loss_of, arguments.steps, arguments, arguments.lr, "denoiser", after_step)


@torch.no_grad()
def report(pipe, path, style, generator):
    """Print a file's mean denoising loss, over 20 even timesteps and fixed noise."""
    rows, images = read_rows(path)
    # A spread of rows is enough, and the corpus has many.
    kept = list(range(0, len(rows), math.ceil(len(rows) / 200)))
    latents = encode(pipe.vae, images[kept])
    ids = tokenize(pipe.tokenizer, [f"{rows[i]['caption']}{style}" for i in kept])
    total = 0.0
    for step in range(25, 1000, 50):
        noise = torch.randn(latents.shape, generator=generator)
        steps = torch.full((len(kept),), step)
        losses = denoising_loss(
            pipe.unet, pipe.text_encoder, pipe.scheduler, latents, ids, steps, noise, False
        )
        total += losses.mean().item() / 20
    error = l1_loss(pipe.vae.decode(latents).sample.clamp(-1, 1), images[kept]).item() * 127.5
    print(f"{path.name}{style}: loss {total:.4f}, pixel error {error:.2f} of 255", flush=True)


def draw_samples(pipe, path, arguments):
    """Write a grid of six by four drawings, one per prompt."""
    generators = [torch.Generator().manual_seed(arguments.seed) for _ in SAMPLE_PROMPTS]
    drawn = pipe(
        list(SAMPLE_PROMPTS), num_inference_steps=30, guidance_scale=4.0, generator=generators
    ).images
    grid = Image.new("RGB", (6 * SIZE, 4 * SIZE))
    for index, image in enumerate(drawn):
        grid.paste(image, (index % 6 * SIZE, index // 6 * SIZE))
    grid.save(path, optimize=True)


def main():
    """Train tokenizer, text encoder and denoiser, save the pipeline and print its losses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=HERE / "data")
    parser.add_argument("--out", type=Path, default=HERE / "backbone")
    parser.add_argument("--start", type=Path, help="folder of a pipeline to train on")
    parser.add_argument("--steps", type=int, default=2300)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--warm-up", type=int, default=100, help="steps of warm-up")
    parser.add_argument("--drop", type=float, default=0.1, help="share of empty captions")
    parser.add_argument("--ema", type=float, default=0.998, help="decay of the running average")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=50, help="steps between log lines")
    parser.add_argument("--save-every", type=int, default=1000, help="steps between saved models")
    arguments = parser.parse_args()

    training_draws = torch.Generator().manual_seed(arguments.seed + 1)
    report_draws = torch.Generator().manual_seed(arguments.seed + 2)
    # New layers take their weights from torch's own generator.
    torch.manual_seed(arguments.seed)
    rows, images = read_rows(arguments.data / "corpus" / "noto.parquet")
    weights = drawing_weights(rows)
    captions = [row["caption"] for row in rows]
    if arguments.start:
        tokenizer = CLIPTokenizer.from_pretrained(arguments.start / "tokenizer")
        tokenizer.save_pretrained(arguments.out / "tokenizer")
    else:
        tokenizer = train_tokenizer(captions, arguments.out / "tokenizer")
    vae = AutoencoderKL.from_pretrained(arguments.out / "vae").float()
    unet, text_encoder = new_unet(), new_text_encoder(tokenizer)
    if start := arguments.start:
        unet = UNet2DConditionModel.from_pretrained(start, subfolder="unet").float()
        text_encoder = CLIPTextModel.from_pretrained(start, subfolder="text_encoder").float()
    for module in (vae, unet, text_encoder):
        count = sum(p.numel() for p in module.parameters())
        print(f"{type(module).__name__}: {count} parameters", flush=True)
    latents = encode(vae, images)
    scheduler = new_scheduler()
    styled = [f"{caption} in noto style" for caption in captions]
    ids = torch.stack([tokenize(tokenizer, captions), tokenize(tokenizer, styled)])
    corpus = (latents, ids, weights, tokenize(tokenizer, [""]), scheduler)
    ema = copy.deepcopy(unet), copy.deepcopy(text_encoder)

    def save():
        parts = [copy.deepcopy(m).to(torch.bfloat16) for m in (vae, *ema)]
        pipe = StableDiffusionPipeline(
            vae=parts[0],
            unet=parts[1],
            text_encoder=parts[2],
            tokenizer=tokenizer,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipe.save_pretrained(arguments.out, safe_serialization=True)
        # Diffusers notes where a model was loaded from, a folder of this machine.
        for path in arguments.out.glob("*/config.json"):
            config = json.loads(path.read_text())
            config.pop("_name_or_path", None)
            path.write_text(json.dumps(config, indent=2) + "\n")

    # On a CPU attention this small is faster without the fused kernel.
    with sdpa_kernel(SDPBackend.MATH):
        train_denoiser((unet, text_encoder), ema, corpus, training_draws, arguments, save)
    save()

    # What counts is the saved model: its rounded weights, computed with in full precision.
    saved = StableDiffusionPipeline.from_pretrained(arguments.out, dtype=torch.float32)
    saved.set_progress_bar_config(disable=True)
    report(saved, arguments.data / "corpus" / "noto.parquet", " in noto style", report_draws)
    for name in ("adaptation.parquet", "heldout.parquet"):
        report(saved, arguments.data / name, " in duo style", report_draws)
    draw_samples(saved, arguments.out / "samples.png", arguments)


if __name__ == "__main__":
    main()
