"""Denoising losses computed with diffusers alone: run as a program, imports nothing of albat.

Is given noise as safetensors, and as JSON a list of adapters with their pipelines and Parquet files
of pictures and captions. Prints, for each of them, the mean loss of each example over evenly spread
noise levels as JSON.
"""

import io
import json
import sys

import numpy as np
import pyarrow.parquet as pq
import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file


def unet_error(pipeline, latents, noise, u, captions, frames):
    steps = pipeline.scheduler.config.num_train_timesteps
    t = torch.full((len(latents),), int(u * steps))
    training = DDPMScheduler.from_config(pipeline.scheduler.config)
    noisy = training.add_noise(latents, noise, t)
    if hasattr(pipeline, "text_encoder_2"):
        text, _, pooled, _ = pipeline.encode_prompt(captions, do_classifier_free_guidance=False)
        sides = torch.tensor(latents.shape[2:]) * pipeline.vae_scale_factor
        ids = torch.cat([frames, sides.expand(len(latents), 2)], dim=1).float()
        more = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}}
    else:
        text, _ = pipeline.encode_prompt(captions, "cpu", 1, False)
        more = {}
    said = pipeline.unet(noisy, t, encoder_hidden_states=text, **more).sample
    target = noise
    if pipeline.scheduler.config.prediction_type == "v_prediction":
        a = pipeline.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        target = a.sqrt() * noise - (1 - a).sqrt() * latents
    return said - target


def flow_level(pipeline, u):
    shift = pipeline.scheduler.config.shift
    level = torch.sigmoid(torch.special.ndtri(torch.tensor(u, dtype=torch.float64))).float()
    return shift * level / (1 + (shift - 1) * level)


def sd3_error(pipeline, latents, noise, u, captions, frames):
    level = flow_level(pipeline, u)
    text, _, pooled, _ = pipeline.encode_prompt(captions, None, None)
    said = pipeline.transformer(
        hidden_states=(1 - level) * latents + level * noise,
        timestep=1000 * level.expand(len(latents)),
        encoder_hidden_states=text,
        pooled_projections=pooled,
    ).sample
    return said - (noise - latents)


def flux_error(pipeline, latents, noise, u, captions, frames):
    level = flow_level(pipeline, u)
    noisy = (1 - level) * latents + level * noise
    n, c, h, w = latents.shape
    text, pooled, text_ids = pipeline.encode_prompt(captions, None, max_sequence_length=154)
    packed = pipeline._pack_latents(noisy, n, c, h, w)
    said = pipeline.transformer(
        hidden_states=packed,
        timestep=level.expand(n),
        guidance=torch.full((n,), 3.5),
        pooled_projections=pooled,
        encoder_hidden_states=text,
        txt_ids=text_ids,
        img_ids=pipeline._prepare_latent_image_ids(n, h // 2, w // 2, "cpu", torch.float32),
    ).sample
    scale = pipeline.vae_scale_factor
    return pipeline._unpack_latents(said, h * scale, w * scale, scale) - (noise - latents)


@torch.no_grad()
def losses_with(adapter, every_noise):
    pipeline = DiffusionPipeline.from_pretrained(adapter["pipeline"], safety_checker=None)
    pipeline.load_lora_weights(adapter["folder"], weight_name=adapter["weights"])
    rows = pq.read_table(adapter["rows"]).to_pylist()
    pictures = [np.array(Image.open(io.BytesIO(r["image"])).convert("RGB")) for r in rows]
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    vae = pipeline.vae
    latents = vae.encode(pixels).latent_dist.mode()
    latents = (latents - (vae.config.shift_factor or 0.0)) * vae.config.scaling_factor
    frames = torch.tensor([r["frame"] for r in rows])
    captions = [r["text"] for r in rows]
    errors = {"StableDiffusion3Pipeline": sd3_error, "FluxPipeline": flux_error}
    error = errors.get(type(pipeline).__name__, unet_error)
    losses = torch.zeros(len(rows))
    for n, one in enumerate(every_noise):
        u = (n + 0.5) / len(every_noise)
        said = error(pipeline, latents, one.expand_as(latents), u, captions, frames)
        losses += said.square().flatten(1).mean(1) / len(every_noise)
    return losses.tolist()


if __name__ == "__main__":
    noise_file, adapters = sys.argv[1:]
    torch.set_num_threads(1)
    noise = load_file(noise_file)["noise"]
    print(json.dumps([losses_with(adapter, noise) for adapter in json.loads(adapters)]))
