"""Train the autoencoder of the demo's backbone, the first part of its pretraining."""

import argparse
import io
import math
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch.nn.functional import l1_loss

HERE = Path(__file__).parent
SIZE = 64


def read_rows(path):
    """The rows of a file and their glyphs, as a tensor of values from -1 to 1."""
    rows = pq.read_table(path).to_pylist()
    arrays = [np.asarray(Image.open(io.BytesIO(row["image"])).convert("RGB")) for row in rows]
    images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
    return rows, images.float() / 127.5 - 1


def new_vae():
    """An autoencoder of 64x64 glyphs with latents of 8x8x8."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 80),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=SIZE,
        # Pictures this small need no look across the whole of them to be coded.
        mid_block_add_attention=False,
    )


def learning_rate(step, steps, peak, warm_up):
    """Linear warm-up, then a cosine down to a hundredth of the peak."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    done = (step - warm_up) / max(1, steps - warm_up)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def edges(images):
    """Differences between neighbouring pixels, across and down."""
    return images.diff(dim=-1), images.diff(dim=-2)


def fit(parameters, loss_of, steps, arguments, peak, name, after_step=None):
    """Run AdamW for some steps of a loss and log its mean."""
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=0.01, fused=True)
    started = time.monotonic()
    total = 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak, arguments.warm_up)
        loss = loss_of()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        total += loss.item()
        if after_step:
            after_step(step)
        if (step + 1) % arguments.log_every == 0:
            seconds = time.monotonic() - started
            mean = total / arguments.log_every
            print(f"{name} {step + 1}/{steps} loss {mean:.4f} seconds {seconds:.0f}", flush=True)
            total = 0.0


def train_vae(vae, images, generator, arguments):
    """Train the autoencoder in place: absolute error of pixels and edges, and a little KL."""
    # Crops cost a quarter; whole glyphs at the end set the group norms to their statistics.
    crop, cropped_steps = SIZE // 2, round(arguments.steps * 0.8)
    done = 0

    def next_batch():
        nonlocal done
        done += 1
        if done > cropped_steps:
            return images[torch.randint(len(images), (arguments.batch // 4,), generator=generator)]
        picked = torch.randint(len(images), (arguments.batch,), generator=generator)
        corners = torch.randint(crop + 1, (2, arguments.batch), generator=generator)
        parts = [
            images[index, :, top : top + crop, left : left + crop]
            for index, top, left in zip(picked, *corners, strict=True)
        ]
        return torch.stack(parts)

    def loss_of():
        batch = next_batch().contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.bf16):
            posterior = vae.encode(batch).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator)
            restored = vae.decode(posterior.mean + posterior.std * noise).sample
        restored = restored.float()
        loss = l1_loss(restored, batch)
        for made, true in zip(edges(restored), edges(batch), strict=True):
            loss = loss + 0.5 * l1_loss(made, true)
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).float().mean()
        return loss + arguments.kl * kl

    vae.to(memory_format=torch.channels_last).train()
    fit(list(vae.parameters()), loss_of, arguments.steps, arguments, arguments.lr, "vae")
    vae.eval()


@torch.no_grad()
def encode(vae, images):
    """The latent means of some glyphs, in single precision."""
    return torch.cat([vae.encode(part).latent_dist.mean for part in images.split(64)])


@torch.no_grad()
def normalize(vae, latents):
    """Fold the latents' mean and deviation into the autoencoder, so that they are 0 and 1."""
    # Stable Diffusion knows one factor for all channels; the 1x1 convolutions can do each apart.
    mean = latents.mean(dim=(0, 2, 3))
    std = latents.std(dim=(0, 2, 3))
    inward, outward = vae.quant_conv, vae.post_quant_conv
    channels = len(mean)
    outward.bias += outward.weight[:, :, 0, 0] @ mean
    outward.weight *= std[None, :, None, None]
    inward.weight[:channels] /= std[:, None, None, None]
    inward.bias[:channels] = (inward.bias[:channels] - mean) / std
    inward.bias[channels:] -= 2 * std.log()
    vae.register_to_config(scaling_factor=1.0)


def main():
    """Train the autoencoder and save it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=HERE / "data")
    parser.add_argument("--out", type=Path, default=HERE / "backbone")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--warm-up", type=int, default=50, help="steps of warm-up")
    parser.add_argument("--kl", type=float, default=3e-4, help="weight of the KL")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=50, help="steps between log lines")
    arguments = parser.parse_args()

    draws = torch.Generator().manual_seed(arguments.seed)
    # New layers take their weights from torch's own generator.
    torch.manual_seed(arguments.seed)
    _, images = read_rows(arguments.data / "corpus" / "glyphs.parquet")
    vae = new_vae()
    train_vae(vae, images, draws, arguments)
    normalize(vae, encode(vae, images))
    vae.to(torch.bfloat16).save_pretrained(arguments.out / "vae")


if __name__ == "__main__":
    main()
