"""Speed of training and scoring on pictures, against diffusers' own loop and bare forward passes.

The peer is the loop of diffusers' DreamBooth-LoRA example (examples/dreambooth): each step encodes
pictures and captions, adds noise, predicts, and takes an AdamW step through accelerate. Both sides
have the same pipeline, LoRA layers, batch and precision, and take turns within one process.
"""

import itertools
import statistics
import tempfile
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig

from albat_core.backbones import open_backbone, resolve_dtype
from albat_core.backbones.adapters import AdapterConfig
from albat_core.backbones.base import FixedNoise
from albat_core.backbones.batches import length_batches
from albat_core.backbones.diffusion.model import DiffusionBackbone
from albat_core.backbones.diffusion.noise import stratified_levels
from albat_core.devices import resolve_device
from albat_core.measures.losses import advantages
from albat_core.memory import measured
from albat_core.pictures import picture_pixels
from albat_core.records.examples import Example
from albat_core.records.mixtures import Mixture
from albat_core.records.shards import iterate_part, parts_of
from albat_core.runs.config import RunConfig
from albat_core.sources.files import find_files
from albat_core.stages.shard import make_shards
from albat_core.store.artifacts import ArtifactStore
from albat_core.store.stage import Runtime
from albat_core.training.checkpoint import CheckpointFile, TrainingState
from albat_core.training.config import FinetuneConfig
from albat_core.training.trainer import Trainer

ROWS, BATCH, STEPS, ROUNDS = 64, 16, 10, 5
LEVELS = 4
ADAPTER = AdapterConfig(rank=16, lora_alpha=16)


def _rows(config: RunConfig) -> list[Example]:
    with tempfile.TemporaryDirectory() as root:
        file = find_files(config.corpus[0])[0]
        shards = make_shards(file, config.backbone, config.shards, Runtime(root=root))
        store = ArtifactStore(root)
        return next(iterate_part(store, parts_of(store, [shards])[0], ROWS))


def _seconds(work: Callable[[], None]) -> float:
    with measured(resolve_device(Runtime())) as usage:
        work()
    return usage.seconds


def dreambooth_steps(config: RunConfig, rows: list[Example]) -> Callable[[], None]:
    """Return what takes ``STEPS`` steps as diffusers' example does."""
    runtime = config.runtime
    half = resolve_dtype(config.backbone, resolve_device(runtime)) == torch.bfloat16
    accelerator = Accelerator(mixed_precision="bf16" if half else "no", cpu=runtime.device == "cpu")
    pipeline = StableDiffusionPipeline.from_pretrained(config.backbone.path, safety_checker=None)
    vae: AutoencoderKL = pipeline.vae
    unet: UNet2DConditionModel = pipeline.unet
    for module in (vae, unet, pipeline.text_encoder):
        module.requires_grad_(False)
    unet.add_adapter(
        LoraConfig(
            r=ADAPTER.rank,
            lora_alpha=ADAPTER.lora_alpha,
            init_lora_weights="gaussian",
            target_modules=["to_k", "to_q", "to_v", "to_out.0"],
        )
    )
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    parameters = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    pixels = torch.from_numpy(np.stack([picture_pixels(r.image or b"") for r in rows]))
    tokens = pipeline.tokenizer(
        [r.text or "" for r in rows],
        padding="max_length",
        truncation=True,
        return_tensors="pt",
        max_length=pipeline.tokenizer.model_max_length,
    )["input_ids"]
    data = torch.utils.data.TensorDataset(pixels.permute(0, 3, 1, 2).float() / 127.5 - 1, tokens)
    loader = torch.utils.data.DataLoader(data, batch_size=BATCH, shuffle=True)
    unet, optimizer, loader = accelerator.prepare(unet, optimizer, loader)
    vae.to(accelerator.device)
    text_encoder = pipeline.text_encoder.to(accelerator.device)

    def steps() -> None:
        unet.train()
        batches = itertools.islice(itertools.cycle(loader), STEPS)
        for pictures, captions in batches:
            with torch.no_grad():
                latents = vae.encode(pictures).latent_dist.sample() * vae.config.scaling_factor
                text = text_encoder(captions)[0]
            noise = torch.randn_like(latents)
            t = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents),))
            t = t.to(latents.device)
            said = unet(scheduler.add_noise(latents, noise, t), t, text).sample
            velocity = scheduler.config.prediction_type == "v_prediction"
            target = scheduler.get_velocity(latents, noise, t) if velocity else noise
            loss = F.mse_loss(said.float(), target.float())
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return steps


def training_against_dreambooth(config: RunConfig) -> None:
    """Compare steps of our trainer with steps of diffusers' loop."""
    rows = _rows(config)
    theirs = dreambooth_steps(config, rows)
    mixture = Mixture(adaptation=rows, backbone=[], weights=np.zeros(0), alpha=0.0)
    settings = FinetuneConfig(
        adapter=ADAPTER, batch_size=BATCH, learning_rate=1e-4, batch_tokens=1 << 20
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        open_backbone(config.backbone, config.runtime) as b,
    ):
        b.attach_adapter(ADAPTER, 0)
        trainer = Trainer(b, mixture, [], settings, 0.0, 0, CheckpointFile(f"{folder}/none"), 1e9)

        def ours() -> None:
            state = TrainingState()
            for step in range(STEPS):
                state.step = step
                trainer._step(state)

        pairs = [(_seconds(ours), _seconds(theirs)) for _ in range(ROUNDS + 1)][1:]
    ratios = [other / own for own, other in pairs]
    speed = statistics.median(STEPS * BATCH / own for own, _ in pairs)
    print(
        f"training on pictures: {speed:.1f} images/s, {statistics.median(ratios):.2f} times "
        f"diffusers' DreamBooth-LoRA loop (median of {ROUNDS}, {min(ratios):.2f} to "
        f"{max(ratios):.2f}; goal 1)"
    )


def scoring_against_forward(config: RunConfig) -> None:
    """Compare scoring with the bare forward passes that it needs."""
    rows = _rows(config)
    with open_backbone(config.backbone, config.runtime) as backbone:
        assert isinstance(backbone, DiffusionBackbone)
        encoded = backbone.encode(rows)
        backbone.attach_adapter(ADAPTER, 0)
        family = backbone._family
        batches = length_batches([e.length for e in encoded], config.scoring.batch_tokens)
        inputs = []
        for positions in batches:
            batch = [encoded[i] for i in positions]
            latents = backbone._latents(batch)
            condition = backbone._condition(batch)
            for level in stratified_levels(LEVELS):
                noised = backbone._schedule.noise(
                    latents, torch.randn_like(latents), level.expand(len(batch))
                )
                inputs.append((noised.latents, noised.timestep, condition))

        def bare() -> None:
            with torch.inference_mode(), backbone._precision():
                for off in (True, False):
                    with backbone.adapter_disabled() if off else torch.no_grad():
                        for one in inputs:
                            family.predict(*one)

        def ours() -> None:
            advantages(backbone, encoded, config.scoring.batch_tokens, FixedNoise(LEVELS))

        pairs = [(_seconds(bare), _seconds(ours)) for _ in range(ROUNDS + 1)][1:]
    ratios = [least / own for least, own in pairs]
    speed = statistics.median(len(rows) / own for _, own in pairs)
    print(
        f"scoring pictures: {speed:.1f} images/s at {LEVELS} noise levels, "
        f"{statistics.median(ratios):.0%} of the bare forward passes (median of {ROUNDS}, "
        f"{min(ratios):.0%} to {max(ratios):.0%}; goal 80%)"
    )
