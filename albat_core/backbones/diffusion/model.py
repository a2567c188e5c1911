"""Text-to-image pipelines (diffusers) as backbones, with LoRA adapters in diffusers' format."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from albat_core.backbones.adapters import AdapterConfig, check_note, write_note
from albat_core.backbones.base import (
    Answer,
    DrawnNoise,
    Encoded,
    FixedNoise,
    Losses,
    Precomputed,
    Question,
    as_untouched,
)
from albat_core.backbones.batches import each_of_one_size
from albat_core.backbones.config import BackboneConfig, SamplingConfig
from albat_core.backbones.diffusion.adapter import PipelineAdapter
from albat_core.backbones.diffusion.captions import CaptionFitter, RowPreparation
from albat_core.backbones.diffusion.families.base import Condition
from albat_core.backbones.diffusion.hooks import output_of
from albat_core.backbones.diffusion.loading import load_pipeline
from albat_core.backbones.diffusion.noise import (
    Noised,
    by_level,
    drawn_levels,
    open_schedule,
    stratified_levels,
)
from albat_core.backbones.folder import backbone_folder
from albat_core.errors import BackboneError, InputError
from albat_core.pictures import picture_pixels, picture_size, png_file
from albat_core.records.examples import Example
from albat_core.seeding import torch_generator

_EMBEDDING_LEVEL = 0.1  # nearly clean: the middle of the denoiser then describes the picture
_ENCODED_AT_ONCE = 8
_TEXT_KEPT = 256 << 20  # bytes of text encodings kept
_SAMPLED_AT_ONCE = 16
_DRAWN_STEP = 8  # pipelines refuse other sides, whatever their autoencoder takes

Text = tuple[torch.Tensor, ...]


class DiffusionBackbone:
    """A frozen text-to-image pipeline, see the ``Backbone`` protocol."""

    noisy = True

    def __init__(
        self,
        config: BackboneConfig,
        device: torch.device,
        dtype: torch.dtype,
        fingerprint: str,
        share: bool = False,
    ) -> None:
        self.fingerprint = fingerprint
        self.device = device
        self.known: Precomputed | None = None
        self._config = config.diffusion
        self._path = config.path
        # a CPU multiplies in bfloat16 fast only forwards: there the weights stay in float32
        self._autocast = dtype == torch.bfloat16
        self._kept_dtype = np.float16 if self._autocast else np.float32
        weights = torch.float32 if device.type == "cpu" else dtype
        self._family = load_pipeline(config, device, weights, share)
        folder = backbone_folder(config)
        self._scale: int = self._family.pipeline.vae_scale_factor
        self._captions = CaptionFitter(folder, type(self._family))
        self._rows = RowPreparation(self._captions, config)
        self._schedule = open_schedule(
            self._family.pipeline.scheduler, self._config.snr_gamma, config.path
        )
        self._adapter = PipelineAdapter(self._family, config.path)
        self._texts: dict[str, Text] = {}
        self._encoded_at_once, self._sampled_at_once = _ENCODED_AT_ONCE, _SAMPLED_AT_ONCE

    def pieces(self, example: Example) -> list[Example]:
        """Bring an example to the backbone's size."""
        return self._rows.pieces(example)

    @torch.inference_mode()
    def precompute(self, examples: Sequence[Example]) -> dict[str, NDArray[Any]]:
        """Return the latents of the pictures: the mode of the VAE's posterior.

        Returns:
            ``latents``: (n, c, h, w); with buckets (n, m), in each row its c h w values first, and
            ``shape``: (n, 3), c, h and w.
        """
        sizes = [picture_size(self._png(e)) for e in examples]
        found: list[NDArray[Any]] = [np.empty(0)] * len(examples)

        def encode(places: list[int]) -> None:
            pixels = [picture_pixels(self._png(examples[n])) for n in places]
            for n, one in zip(places, self._encode_pixels(pixels), strict=True):
                found[n] = one

        self._encoded_at_once = each_of_one_size(sizes, self._encoded_at_once, encode)
        if self._config.picture.buckets is None:
            return {"latents": np.stack(found)}
        rows = np.zeros((len(found), self._most_values(found[0].shape[0])), self._kept_dtype)
        for row, one in zip(rows, found, strict=True):
            row[: one.size] = one.reshape(-1)
        return {"latents": rows, "shape": np.array([one.shape for one in found])}

    def _encode_pixels(self, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[Any]:
        """Return the latents of pictures of one size, (n, c, h, w)."""
        vae = self._family.pipeline.vae
        batch = torch.from_numpy(np.stack(pictures)).to(self.device).permute(0, 3, 1, 2)
        latents = vae.encode(batch.float() / 127.5 - 1).latent_dist.mode()
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        scaled = ((latents - shift) * vae.config.scaling_factor).cpu().numpy()
        its: NDArray[Any] = scaled.astype(self._kept_dtype)
        return its

    def _most_values(self, channels: int) -> int:
        """Return the values that latents of the largest pictures have."""
        sizes, scale = self._config.picture.sizes, self._scale
        return int(max(channels * (h // scale) * (w // scale) for h, w in sizes))

    def _png(self, example: Example) -> bytes:
        if example.image is None:
            raise InputError(
                "expected a picture, the example has none",
                where=f"example {example.example_id}",
                remedy="cut rows with this backbone",
            )
        return example.image

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Return latents, captions and frames; latents that are known are not computed again."""
        rows = [self.known.find(e) if self.known is not None else None for e in examples]
        missing = [i for i, row in enumerate(rows) if row is None]
        if missing:
            computed = self.precompute([examples[i] for i in missing])
            for n, i in enumerate(missing):
                rows[i] = {name: values[n] for name, values in computed.items()}
        return [self._encoded(e, row) for e, row in zip(examples, rows, strict=True) if row]

    def _encoded(self, example: Example, row: dict[str, NDArray[Any]]) -> Encoded:
        latents = row["latents"]  # as they are mapped: read when a batch needs them
        if "shape" in row:
            channels, tall, wide = map(int, row["shape"])
            latents = latents[: channels * tall * wide].reshape(channels, tall, wide)
        size = (latents.shape[1] * self._scale, latents.shape[2] * self._scale)
        frame = (*(example.frame or (*size, 0, 0)), *size)
        inputs = {"latents": latents, "caption": example.text or "", "frame": frame}
        length = latents.shape[1] * latents.shape[2]
        return Encoded(example.example_id, inputs, length, 1, latents.shape)

    def without_caption(self, encoded: Encoded) -> Encoded:
        """Return the picture as one that has no caption."""
        return replace(encoded, inputs=encoded.inputs | {"caption": ""})

    def _latents(self, batch: Sequence[Encoded]) -> torch.Tensor:
        # rows that a VAE left channels last would stay so, and be computed with otherwise
        latents = np.ascontiguousarray(np.stack([e.inputs["latents"] for e in batch]))
        return torch.from_numpy(latents).to(self.device, torch.float32)

    def _precision(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast)

    def _condition(self, batch: Sequence[Encoded], *, told: bool = True) -> Condition:
        captions = [e.inputs["caption"] if told else "" for e in batch]
        sizes = [e.inputs["frame"] for e in batch]  # or as of files of what is shown
        sizes = sizes if told else [(*its[4:], 0, 0, *its[4:]) for its in sizes]
        frames = torch.tensor(sizes, dtype=torch.float32)
        return Condition(self._encode_texts(captions), frames.to(self.device))

    def _encode_texts(self, captions: Sequence[str]) -> Text:
        """Return text encodings, each (n, ...); kept as long as no adapter changes them."""
        if self._adapter.changes_texts:
            with self._precision():
                return self._family.encode_text(list(captions), self.device)
        fresh = [c for c in dict.fromkeys(captions) if c not in self._texts]
        if fresh:
            # kept beyond this call, so not as inference tensors, which training could not read
            with torch.inference_mode(False), torch.no_grad(), self._precision():
                found = self._family.encode_text(fresh, self.device)
            size = sum(t[0].nbytes for t in found)
            if (len(self._texts) + len(fresh)) * size > _TEXT_KEPT:
                self._texts = {c: t for c, t in self._texts.items() if c in captions}
            self._texts |= {c: tuple(t[i] for t in found) for i, c in enumerate(fresh)}
        rows = [self._texts[c] for c in captions]
        return tuple(torch.stack(part) for part in zip(*rows, strict=True))

    @torch.inference_mode()
    def embed(self, batch: Sequence[Encoded]) -> torch.Tensor:
        """Return the mean over positions of the denoiser's middle, without caption and frame.

        SDXL would find files of one size alike. Its noise is fixed; (n, d) float32 on the CPU.
        """
        latents = self._latents(batch)
        level = torch.full((len(batch),), _EMBEDDING_LEVEL)
        noised = self._schedule.noise(latents, self._fixed(latents, 0, 0), level)
        condition = self._condition(batch, told=False)
        # what comes behind the middle need not be computed
        with output_of(self._family.pooled_module) as found, self._precision():
            self._family.predict(noised.latents, noised.timestep, condition)
        return self._family.pooled(found[0]).to("cpu", torch.float32)

    def draw_noise(self, batch: Sequence[Encoded]) -> DrawnNoise:
        """Draw one level an example from each equal part of (0, 1), and its noise."""
        return self._drawn((len(batch), *batch[0].inputs["latents"].shape))

    def losses(
        self,
        batch: Sequence[Encoded],
        fixed: FixedNoise | DrawnNoise | None = None,
        joined: Sequence[int] | None = None,
    ) -> Losses:
        """Return each example's weighted squared error, one column a noise level.

        Without ``fixed`` noise is drawn, see ``draw_noise``. Pictures are of one size: joining has
        no padding to save.
        """
        del joined
        latents, condition = self._latents(batch), self._condition(batch)
        said = self._predictions(self._noised(latents, fixed), condition)
        return by_level([n.difference(n.target, p) for n, p in said])

    def with_untouched(self, batch: Sequence[Encoded]) -> list[Encoded]:
        """Return the examples: their noise is different each time."""
        return list(batch)

    def losses_with_divergence(
        self,
        batch: Sequence[Encoded],
        fixed: FixedNoise | DrawnNoise | None = None,
        joined: Sequence[int] | None = None,
        held: Sequence[bool] | None = None,
    ) -> tuple[Losses, Losses]:
        """Return the losses, and the squared differences of both predictions, weighted alike."""
        del joined
        noised = self._noised(self._latents(batch), fixed)
        which = torch.tensor(held or [True] * len(batch), device=self.device)
        some = [*compress(batch, which.tolist())]
        with as_untouched(self, self._family.denoiser):
            before = self._predictions([n.take(which) for n in noised], self._condition(some))
        after = self._predictions(noised, self._condition(batch))
        pairs = zip(before, after, strict=True)
        moved = by_level([n.difference(b, a[which]) for (n, b), (_, a) in pairs], which)
        return by_level([n.difference(n.target, p) for n, p in after]), moved

    def _noised(self, latents: torch.Tensor, fixed: FixedNoise | DrawnNoise | None) -> list[Noised]:
        """Return the latents with noise, one for each level."""
        if isinstance(fixed, FixedNoise):
            return [
                self._schedule.noise(
                    latents, self._fixed(latents, fixed.replicate, n), u.expand(len(latents))
                )
                for n, u in enumerate(stratified_levels(fixed.levels))
            ]
        drawn = fixed or self._drawn(latents.shape)
        noise = torch.stack(list(drawn.noise)).to(self.device)
        return [self._schedule.noise(latents, noise, drawn.levels)]

    def _drawn(self, shape: Sequence[int]) -> DrawnNoise:
        """Draw levels and noise for latents of this shape, (n, c, h, w)."""
        levels, noise = drawn_levels(shape[0]), torch.randn(*shape)
        if self._config.noise_offset:
            noise += self._config.noise_offset * torch.randn(*shape[:2], 1, 1)
        return DrawnNoise(levels, noise.unbind())

    def _predictions(
        self, noised: Sequence[Noised], condition: Condition
    ) -> list[tuple[Noised, torch.Tensor]]:
        """Return each with what the denoiser says of it, (n, c, h, w) float32."""
        with self._precision():
            said = [self._family.predict(n.latents, n.timestep, condition) for n in noised]
        return [(n, one.float()) for n, one in zip(noised, said, strict=True)]

    def _fixed(self, latents: torch.Tensor, replicate: int, level: int) -> torch.Tensor:
        """Return the noise of a level, the same for every example."""
        generator = torch_generator(0, "fixed noise", replicate, level)
        noise = torch.randn(latents.shape[1:], generator=generator)
        return noise.to(self.device).expand_as(latents)

    def generate(
        self,
        prompts: Sequence[str],
        config: SamplingConfig,
        seed: int,
        sizes: Sequence[tuple[int, int]] = (),
    ) -> list[Example]:
        """Return a picture for each prompt, see ``Backbone``."""
        wanted = sizes or [self._usual_size] * len(prompts)
        self._captions.refuse_long(prompts)
        made: dict[int, Example] = {}

        def draw(places: list[int]) -> None:
            size = wanted[places[0]]
            pictures = self._sampled([prompts[n] for n in places], size, config, seed, places)
            for n, image in zip(places, pictures, strict=True):
                name, frame = f"generated/{n}", (*size, 0, 0)
                made[n] = Example(name, name, "generated", prompts[n], image=image, frame=frame)

        self._sampled_at_once = each_of_one_size(wanted, self._sampled_at_once, draw)
        return [made[n] for n in range(len(prompts))]

    @property
    def _usual_size(self) -> tuple[int, int]:
        """Height and width that are drawn: of the nearest bucket where no picture has those set."""
        step = max(self._scale * self._family.patch, _DRAWN_STEP)
        size = self._config.picture.size
        return self._config.picture.size_of(*size) if any(side % step for side in size) else size

    def _sampled(
        self,
        prompts: list[str],
        size: tuple[int, int],
        config: SamplingConfig,
        seed: int,
        places: Sequence[int],
    ) -> list[bytes]:
        """Return pictures of one size as PNG; the noise of each is its place's."""
        with torch.no_grad(), self._precision():
            images = self._family.pipeline(
                prompts,
                height=size[0],
                width=size[1],
                num_inference_steps=config.steps,
                guidance_scale=config.guidance,
                generator=[torch_generator(seed, "generated", n) for n in places],
                output_type="np",
            ).images
        return [png_file((np.nan_to_num(one) * 255).round().astype(np.uint8)) for one in images]

    def opening(self) -> Question:
        """Raise: no chat is written."""
        raise self._writes_nothing()

    def questions(self, examples: Sequence[Example]) -> list[Question]:
        """Raise: pictures are not asked for texts."""
        raise self._writes_nothing()

    def answer(
        self, questions: Sequence[Question], config: SamplingConfig, seeds: Sequence[int]
    ) -> list[Answer]:
        """Raise: no text is written."""
        raise self._writes_nothing()

    def as_transformers(self) -> AbstractContextManager[tuple[Any, Any]]:
        """Raise: no model of transformers draws the pictures."""
        raise self._writes_nothing()

    def _writes_nothing(self) -> BackboneError:
        return BackboneError(
            "expected a backbone that writes answers, got one that draws pictures",
            where=self._path,
            remedy="leave evaluation.metrics and evaluation.tasks out: they are of texts",
        )

    def attach_adapter(self, config: AdapterConfig, seed: int) -> None:
        """Attach a new LoRA adapter to the denoiser, and to text encoders if configured."""
        self._adapter.attach(config, seed)

    def load_adapter(self, folder: Path) -> None:
        """Attach the adapter saved in ``folder``, after checking whose it is."""
        check_note(folder, self.fingerprint, self._path)
        self._adapter.load(folder)

    def save_adapter(self, folder: Path) -> None:
        """Save the adapter as ``pipe.load_lora_weights`` reads it, and in kohya's format."""
        self._adapter.save(folder)
        write_note(folder, self.fingerprint)

    def adapter_parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return the LoRA factors by name; empty where no adapter is attached."""
        return self._adapter.parameters()

    def adapter_layers(self) -> dict[str, torch.nn.Module]:
        """Return the layers that hold the LoRA factors, by the factors' names."""
        return self._adapter.layers()

    def adapter_disabled(self) -> AbstractContextManager[None]:
        """Compute as the untouched backbone while the context lasts."""
        return self._adapter.disabled()

    def detach_adapter(self) -> None:
        """Give the layers back as they were."""
        self._adapter.detach()

    def training(self, on: bool) -> None:
        """Switch dropout on or off."""
        self._adapter.train(on)

    def checkpoint_gradients(self) -> None:
        """Compute activations again in the backward pass rather than keep them."""
        self._family.denoiser.enable_gradient_checkpointing()
