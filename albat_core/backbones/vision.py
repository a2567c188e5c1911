"""Image encoders (transformers) that represent pictures, and prompts where they read text too."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError

from albat_core.backbones.base import Encoded
from albat_core.backbones.folder import MODEL_CONFIG, model_folder, unreadable
from albat_core.errors import BackboneError, InputError
from albat_core.pictures import picture_pixels
from albat_core.records.examples import Example

_PREPROCESSING = "preprocessor_config.json"
_PROCESSOR = "processor_config.json"  # of pictures and texts: newer versions write it alone
_BILINEAR = 2  # Pillow's number for it; for the others bicubic stands in


def check_encoder(path: str, *, both: bool = False) -> None:
    """Check that an image encoder's pictures can be prepared for it.

    Args:
        path: folder or hub id.
        both: whether it has to read texts too.

    Raises:
        BackboneError: they cannot, or it reads none.
    """
    folder = model_folder(path)
    Preprocessing.read(folder)
    if both:
        _refuse_wordless(folder)


def _refuse_wordless(folder: Path) -> None:
    """Raise where an encoder reads no texts, by its description.

    Raises:
        BackboneError: it does not, or has no tokenizer.
    """
    try:
        described = json.loads((folder / MODEL_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise unreadable("image encoder", folder, error) from error
    if "text_config" not in described:
        raise _wordless(str(folder))
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        raise BackboneError(
            "expected the encoder's tokenizer, found none",
            where=str(folder),
            remedy="save it beside the weights: processor.save_pretrained",
        )


def _wordless(where: str) -> BackboneError:
    return BackboneError(
        "expected an encoder of pictures and texts, this one reads pictures only",
        where=where,
        remedy="name a CLIP or SigLIP model",
    )


@dataclass(frozen=True)
class Preprocessing:
    """What an encoder's image processor does to a picture before the encoder sees it.

    Args:
        shortest: pixels that the shorter side is resized to; None: both sides are as in ``size``.
        size: height and width that the encoder takes: cut out of the middle, or stretched to.
        resize: whether pictures are resized at all.
        bilinear: whether by bilinear interpolation; else bicubic.
        scale: factor that 8-bit values are multiplied by.
        mean: subtracted from each channel, (3,).
        deviation: each channel is divided by, (3,).
    """

    shortest: int | None
    size: tuple[int, int]
    resize: bool
    bilinear: bool
    scale: float
    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def read(cls, folder: Path) -> "Preprocessing":
        """Read it from the file beside the encoder.

        Raises:
            BackboneError: there is none, or it does not say enough.
        """
        try:
            said = _saved(folder)
            size, cut = said["size"], said.get("crop_size")
            if not said.get("do_center_crop", cut is not None):
                cut = None
            if isinstance(size, int):  # of old: one side, of a square unless it is cut after
                size = {"height": size, "width": size} if cut is None else {"shortest_edge": size}
            shortest = size.get("shortest_edge")
            if shortest is None and cut is not None:
                raise ValueError("a crop of a picture that was stretched")
            final = cut if cut is not None else size if shortest is None else shortest
            if isinstance(final, dict):
                final = final["height"], final["width"]
            normal = said.get("do_normalize", True)
            return cls(
                shortest=shortest,
                size=final if isinstance(final, tuple) else (final, final),
                resize=said.get("do_resize", True),
                bilinear=said.get("resample", _BILINEAR) == _BILINEAR,
                scale=said.get("rescale_factor", 1 / 255) if said.get("do_rescale", True) else 1.0,
                mean=tuple(said["image_mean"]) if normal else (0.0,) * 3,
                deviation=tuple(said["image_std"]) if normal else (1.0,) * 3,
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BackboneError(
                f"expected {_PREPROCESSING}, or image_processor in {_PROCESSOR}, with size, "
                f"image_mean and image_std ({type(error).__name__}: {error})",
                where=str(folder),
                remedy="save the encoder's image processor beside it",
            ) from error

    def __call__(self, png: bytes) -> torch.Tensor:
        """Return a prepared picture as the encoder takes it, (3, height, width) float32."""
        pixels = torch.from_numpy(picture_pixels(png)).permute(2, 0, 1).float()
        target = self._target(*pixels.shape[1:])
        if self.resize and pixels.shape[1:] != target:
            pixels = F.interpolate(
                pixels[None],
                size=target,
                mode="bilinear" if self.bilinear else "bicubic",
                antialias=True,
            )[0]
            pixels = pixels.round().clamp(0, 255)  # as 8-bit pictures are
        top, left = ((pixels.shape[i + 1] - self.size[i]) // 2 for i in (0, 1))
        pixels = pixels[:, max(top, 0) :, max(left, 0) :][:, : self.size[0], : self.size[1]]
        mean, deviation = (torch.tensor(v).view(3, 1, 1) for v in (self.mean, self.deviation))
        return (pixels * self.scale - mean) / deviation

    def _target(self, height: int, width: int) -> tuple[int, int]:
        if self.shortest is None:
            return self.size
        short = min(height, width)
        return height * self.shortest // short, width * self.shortest // short


def _saved(folder: Path) -> Any:
    """Return what an image processor was saved as, at the place that transformers takes first."""
    if (within := folder / _PROCESSOR).exists():
        whole = json.loads(within.read_text(encoding="utf-8"))
        if "image_processor" in whole:
            return whole["image_processor"]
    return json.loads((folder / _PREPROCESSING).read_text(encoding="utf-8"))


class VisionEncoder:
    """CLIP, SigLIP, DINO or another image encoder, see the ``Embedder`` protocol.

    Pictures are resized, cut and normalised as the image processor beside it says.

    Args:
        path: folder or hub id.
        device: to compute on.

    Raises:
        BackboneError: there is none, or it says nothing of its preprocessing.
    """

    def __init__(self, path: str, device: torch.device) -> None:
        from transformers import AutoModel

        folder = model_folder(path)
        self._path = path
        self._folder = folder
        self._device = device
        self._prepare = Preprocessing.read(folder)
        try:
            self._model, loading = AutoModel.from_pretrained(
                folder,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,  # or transformers asks at the terminal
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise unreadable("image encoder", folder, error) from error
        # DINO has no pooling layer, and the class token is read without one
        missing = sorted(n for n in loading["missing_keys"] if not n.startswith("pooler."))
        if missing:
            raise BackboneError(
                f"expected weights for every layer, none for {missing[0]}",
                where=str(folder),
                remedy="the folder is incomplete or of another architecture: save it again",
            )
        self._model.eval().requires_grad_(requires_grad=False).to(device)
        self._tokenizer: Any = None

    @property
    def _reads_both(self) -> bool:
        return hasattr(self._model, "get_image_features")

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Return the pixels as the encoder takes them.

        Raises:
            InputError: an example has no picture.
        """
        return [self._encoded(example) for example in examples]

    def _encoded(self, example: Example) -> Encoded:
        if example.image is None:
            raise InputError(
                "expected a picture, the example has none",
                where=f"example {example.example_id}",
                remedy="drop embedding.encoder: the backbone represents texts itself",
            )
        pixels = self._prepare(example.image)
        return Encoded(example.example_id, {"pixels": pixels}, pixels.shape[1], 1)

    @torch.inference_mode()
    def embed(self, batch: Sequence[Encoded]) -> torch.Tensor:
        """Return each picture's representation, (n, d) float32 on the CPU.

        The projected features of an encoder that reads text too (CLIP, SigLIP); else the class
        token after the last normalisation (DINO, ViT), or what the encoder pools.
        """
        pixels = torch.stack([e.inputs["pixels"] for e in batch]).to(self._device)
        if self._reads_both:
            found = _vectors(self._model.get_image_features(pixel_values=pixels))
        else:
            output = self._model(pixel_values=pixels)
            # ViT's pooler is a further layer, which DINO was trained without
            token = hasattr(getattr(self._model, "embeddings", None), "cls_token")
            found = output.last_hidden_state[:, 0] if token else _vectors(output)
        return found.to("cpu", torch.float32)

    def reads(self, prompts: Sequence[str]) -> list[bool]:
        """Tell of each prompt whether the encoder takes all of it.

        Raises:
            BackboneError: the encoder reads no text.
        """
        from transformers import AutoTokenizer

        if not hasattr(self._model, "get_text_features"):
            raise _wordless(self._path)
        if self._tokenizer is None:
            try:
                self._tokenizer = AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
            except (OSError, ValueError, KeyError) as error:
                raise unreadable("tokenizer", self._folder, error) from error
        return [len(self._tokenizer(p)["input_ids"]) <= self._longest for p in prompts]

    @property
    def _longest(self) -> int:
        """Tokens that a prompt may have, special tokens included."""
        return int(self._model.config.text_config.max_position_embeddings)

    @torch.inference_mode()
    def embed_prompts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Return the projected features of prompts, (n, d) float32 on the CPU.

        Raises:
            BackboneError: the encoder reads no text.
            InputError: a prompt is longer than it takes.
        """
        for prompt, fits in zip(prompts, self.reads(prompts), strict=True):
            if not fits:
                raise InputError(
                    f"expected a prompt of at most {self._longest} tokens",
                    where=f"prompt {prompt!r}, read by {self._path}",
                    remedy="shorten it, or leave the encoder out",
                )
        tokens = self._tokenizer(
            list(prompts), padding="max_length", max_length=self._longest, return_tensors="pt"
        ).to(self._device)
        found = self._model.get_text_features(
            input_ids=tokens["input_ids"], attention_mask=tokens.get("attention_mask")
        )
        return _vectors(found).to("cpu", torch.float32)


@lru_cache(maxsize=2)
def load_vision_encoder(path: str, device: torch.device) -> VisionEncoder:
    """Return an image encoder; the last two are kept in memory."""
    return VisionEncoder(path, device)


def _vectors(output: Any) -> torch.Tensor:
    """Return one vector a picture or prompt from what a model gave."""
    if isinstance(output, torch.Tensor):
        return output
    pooled: torch.Tensor | None = getattr(output, "pooler_output", None)
    if pooled is not None:
        return pooled.flatten(1)
    states: torch.Tensor = output.last_hidden_state
    return states.mean(dim=1)
