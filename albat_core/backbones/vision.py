"""Image encoders (transformers) that represent pictures, and prompts where they read text too."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from albat_core.backbones.base import Encoded
from albat_core.backbones.folder import model_folder, unreadable
from albat_core.errors import BackboneError, InputError
from albat_core.pictures import PictureConfig, picture_pixels, prepare_picture
from albat_core.records import Example

_PREPROCESSING = "preprocessor_config.json"


class VisionEncoder:
    """CLIP, SigLIP, DINO or another image encoder, see the ``Embedder`` protocol.

    Pictures are resized to cover its input and cut in the middle, then normalised as its
    preprocessing says.

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
        try:
            described = json.loads((folder / _PREPROCESSING).read_text())
            size = described.get("crop_size") or described["size"]
            side = size if isinstance(size, int) else size.get("height") or size["shortest_edge"]
            self._picture = PictureConfig(resolution=int(side))
            self._mean = torch.tensor(described["image_mean"]).view(3, 1, 1)
            self._deviation = torch.tensor(described["image_std"]).view(3, 1, 1)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BackboneError(
                f"expected {_PREPROCESSING} with size, image_mean and image_std "
                f"({type(error).__name__})",
                where=str(folder),
                remedy="save the encoder's image processor beside it",
            ) from error
        try:
            self._model = AutoModel.from_pretrained(
                folder, use_safetensors=True, local_files_only=True
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise unreadable("image encoder", folder, error) from error
        self._model.eval().requires_grad_(requires_grad=False).to(device)
        self._tokenizer: Any = None

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Return the pixels as the encoder takes them.

        Raises:
            InputError: an example has no picture.
        """
        return [self._encoded(example) for example in examples]

    def _encoded(self, example: Example) -> Encoded:
        where = f"example {example.example_id}"
        if example.image is None:
            raise InputError(
                "expected a picture, the example has none",
                where=where,
                remedy="drop embedding.encoder: the backbone represents texts itself",
            )
        fitted, _ = prepare_picture(example.image, self._picture, where)
        pixels = torch.from_numpy(picture_pixels(fitted).astype(np.float32) / 255)
        normal = (pixels.permute(2, 0, 1) - self._mean) / self._deviation
        return Encoded(example.example_id, {"pixels": normal}, normal.shape[1], 1)

    @torch.inference_mode()
    def embed(self, batch: Sequence[Encoded]) -> torch.Tensor:
        """Return the projected features (CLIP, SigLIP) or the class token, (n, d) on the CPU."""
        pixels = torch.stack([e.inputs["pixels"] for e in batch]).to(self._device)
        if hasattr(self._model, "get_image_features"):
            found = self._model.get_image_features(pixel_values=pixels)
        else:
            found = self._model(pixel_values=pixels)
        return _vectors(found).to("cpu", torch.float32)

    @torch.inference_mode()
    def embed_prompts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Return the projected features of prompts, (n, d) float32 on the CPU.

        Raises:
            BackboneError: the encoder reads no text.
        """
        from transformers import AutoTokenizer

        if not hasattr(self._model, "get_text_features"):
            raise BackboneError(
                "expected an encoder of pictures and texts, this one reads pictures only",
                where=self._path,
                remedy="name a CLIP or SigLIP model",
            )
        if self._tokenizer is None:
            try:
                self._tokenizer = AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
            except (OSError, ValueError, KeyError) as error:
                raise unreadable("tokenizer", self._folder, error) from error
        longest = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(
            list(prompts), padding="max_length", max_length=longest, truncation=True,
            return_tensors="pt",
        ).to(self._device)  # fmt: skip
        found = self._model.get_text_features(
            input_ids=tokens["input_ids"], attention_mask=tokens.get("attention_mask")
        )
        return _vectors(found).to("cpu", torch.float32)

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self._folder


def _vectors(output: Any) -> torch.Tensor:
    """Return one vector a picture or prompt from what a model gave."""
    if isinstance(output, torch.Tensor):
        return output
    pooled: torch.Tensor | None = getattr(output, "pooler_output", None)
    if pooled is not None:
        return pooled
    states: torch.Tensor = output.last_hidden_state
    return states[:, 0]
