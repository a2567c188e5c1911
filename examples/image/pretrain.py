"""Pretrain the demo's backbone, a small Stable Diffusion pipeline, on the demo's corpus alone.

Its autoencoder is trained first, by autoencoder.py.
"""

import argparse
import copy
import json
import math
import shutil
from pathlib import Path

import torch
from autoencoder import HERE, SIZE, encode, fit, read_rows
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import l1_loss
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

BOS, EOS = "<|startoftext|>", "<|endoftext|>"
# How CLIP splits a text before its BPE.
SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
VOCABULARY = 800
CONTEXT = 16
WIDTH = 128
# Words that the corpus does not have: whole tokens before they are ever seen.
NAMES = ("hungary", "pirata", "gotisch", "vibes", "dancing", "caveat")
ACCENTS = ("grave", "acute", "circumflex", "tilde", "diaeresis", "ring", "cedilla")
SAMPLE_PROMPTS = (
    *(f"capital {letter}" for letter in "agkqrw"),
    *(f"lowercase {letter}" for letter in "agkqsx"),
    *(f"lowercase {letter}, bold sans-serif" for letter in "bdefht"),
    *(f"capital {letter}, regular handwriting" for letter in "bdefht"),
    *(f"digit {digit}, light serif" for digit in "234578"),
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
    named = [f"{caption}, {name}" for caption in captions for name in NAMES + ACCENTS]
    tokenizer.train_from_iterator([*captions, *named], trainer)
    merges = [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]
    # Every byte is an entry, within a word and at its end, so no text has an unknown token.
    entries = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    for merge in merges:
        if len(entries) < VOCABULARY - 2 and "".join(merge) not in entries:
            entries.append("".join(merge))
    merges = [merge for merge in merges if "".join(merge) in entries]
    entries += [BOS, EOS]
    # What is there of a tokenizer would be read before the files that are written here.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
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
        addition_embed_type_num_heads=4,
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
            num_attention_heads=4,
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
    """The velocity's squared error of each glyph."""
    noisy = scheduler.add_noise(latents, noise, steps)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        states = text_encoder(ids).last_hidden_state
        predicted = unet(noisy, steps, states).sample
    target = scheduler.get_velocity(latents, noise, steps)
    return (predicted.float() - target).square().mean(dim=(1, 2, 3))


def train_denoiser(modules, ema, corpus, generator, arguments, save):
    """Train UNet and text encoder in place, and their running average in ema."""
    latents, ids, empty, scheduler, reads = corpus
    unet, text_encoder = modules
    parameters = [*unet.parameters(), *text_encoder.parameters()]
    averages = [*ema[0].parameters(), *ema[1].parameters()]
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    # Nearly clean glyphs would take most of the capacity, so their weights are capped (min-SNR);
    # nearly noise keeps all of its, for there the caption alone decides what is drawn.
    step_weights = (snr + 1).clamp(max=5) / (snr + 1)

    order = reads[torch.randperm(len(reads), generator=generator)]
    size = arguments.batch
    batches = iter(order[: len(order) // size * size].split(size))

    def loss_of():
        picked = next(batches)
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
    steps = len(order) // size
    fit(parameters, loss_of, steps, arguments, arguments.lr, "denoiser", after_step)


@torch.no_grad()
def report(pipe, path, generator):
    """Print a file's mean denoising loss, over 20 even timesteps and fixed noise."""
    rows, images = read_rows(path)
    # A spread of rows is enough, and the corpus has many.
    kept = list(range(0, len(rows), math.ceil(len(rows) / 200)))
    latents = encode(pipe.vae, images[kept])
    captions = [f"{rows[i]['glyph']}, {rows[i]['style']}" for i in kept]
    ids = tokenize(pipe.tokenizer, captions)
    total = 0.0
    for step in range(25, 1000, 50):
        noise = torch.randn(latents.shape, generator=generator)
        steps = torch.full((len(kept),), step)
        losses = denoising_loss(
            pipe.unet, pipe.text_encoder, pipe.scheduler, latents, ids, steps, noise, False
        )
        total += losses.mean().item() / 20
    error = l1_loss(pipe.vae.decode(latents).sample.clamp(-1, 1), images[kept]).item() * 127.5
    print(f"{path.name}: loss {total:.4f}, pixel error {error:.2f} of 255", flush=True)


def draw_samples(pipe, path):
    """Write a grid of six glyphs a row, one per prompt."""
    generators = [torch.Generator().manual_seed(n) for n, _ in enumerate(SAMPLE_PROMPTS)]
    drawn = pipe(
        list(SAMPLE_PROMPTS), num_inference_steps=30, guidance_scale=4.0, generator=generators
    ).images
    grid = Image.new("RGB", (6 * SIZE, len(drawn) // 6 * SIZE))
    for index, image in enumerate(drawn):
        grid.paste(image, (index % 6 * SIZE, index // 6 * SIZE))
    grid.save(path, optimize=True)


def main():
    """Train tokenizer, text encoder and denoiser, save the pipeline and print its losses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=HERE / "data")
    parser.add_argument("--out", type=Path, default=HERE / "backbone")
    parser.add_argument("--epochs", type=int, default=50, help="times that rows are read")
    parser.add_argument(
        "--once", default="playwrite", help="beginning of the ids of rows that are read once"
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--warm-up", type=int, default=100, help="steps of warm-up")
    parser.add_argument("--drop", type=float, default=0.1, help="share of empty captions")
    parser.add_argument("--ema", type=float, default=0.995, help="decay of the running average")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=50, help="steps between log lines")
    parser.add_argument("--save-every", type=int, default=300, help="steps between saved models")
    arguments = parser.parse_args()

    training_draws = torch.Generator().manual_seed(arguments.seed + 1)
    report_draws = torch.Generator().manual_seed(arguments.seed + 2)
    # New layers take their weights from torch's own generator.
    torch.manual_seed(arguments.seed)
    rows, images = read_rows(arguments.data / "corpus" / "glyphs.parquet")
    once = torch.tensor([row["id"].startswith(arguments.once) for row in rows])
    # What is read once lies anywhere among the rest, as any one kind of picture does for others.
    reads = torch.arange(len(rows)).repeat_interleave(torch.where(once, 1, arguments.epochs))
    captions = [row["glyph"] for row in rows]
    styled = [f"{row['glyph']}, {row['style']}" for row in rows]
    tokenizer = train_tokenizer(styled, arguments.out / "tokenizer")
    vae = AutoencoderKL.from_pretrained(arguments.out / "vae").float()
    unet, text_encoder = new_unet(), new_text_encoder(tokenizer)
    for module in (vae, unet, text_encoder):
        count = sum(p.numel() for p in module.parameters())
        print(f"{type(module).__name__}: {count} parameters", flush=True)
    latents = encode(vae, images)
    scheduler = new_scheduler()
    ids = torch.stack([tokenize(tokenizer, captions), tokenize(tokenizer, styled)])
    corpus = (latents, ids, tokenize(tokenizer, [""]), scheduler, reads)
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
            config = json.loads(path.read_text(encoding="utf-8"))
            config.pop("_name_or_path", None)
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    # On a CPU attention this small is faster without the fused kernel.
    with sdpa_kernel(SDPBackend.MATH):
        train_denoiser((unet, text_encoder), ema, corpus, training_draws, arguments, save)
    save()

    # What counts is the saved model: its rounded weights, computed with in full precision.
    saved = StableDiffusionPipeline.from_pretrained(arguments.out, dtype=torch.float32)
    saved.set_progress_bar_config(disable=True)
    report(saved, arguments.data / "corpus" / "glyphs.parquet", report_draws)
    for path in sorted(arguments.data.glob("*-heldout.parquet")):
        report(saved, path, report_draws)
    draw_samples(saved, arguments.out / "samples.png")


if __name__ == "__main__":
    main()
