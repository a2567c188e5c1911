"""Text encoders (sentence-transformers) that represent rows in place of a language model."""

import json
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors import SafetensorError

from albat_core.backbones.base import Encoded
from albat_core.backbones.folder import (
    SENTENCE_MODULES,
    model_folder,
    refuse_incomplete,
    unreadable,
)
from albat_core.errors import BackboneError, MissingDependencyError
from albat_core.records.examples import Example, example_text

_LIBRARY = "sentence-transformers"
_OWN_MODULES = "sentence_transformers."


class SentenceEncoder:
    """A model of sentence-transformers, see the ``Embedder`` protocol.

    Texts are what is written in a row, a chat's turns among them; of one that is longer than the
    encoder takes, its beginning is read. The model's default prompt goes before each.

    Args:
        path: folder or hub id.
        device: to compute on.
        dtype: to compute in.

    Raises:
        BackboneError: there is none, or it cannot be read.
        MissingDependencyError: sentence-transformers is not installed.
    """

    def __init__(self, path: str, device: torch.device, dtype: torch.dtype) -> None:
        check_sentence_encoder(path)
        from sentence_transformers import SentenceTransformer

        folder = model_folder(path)
        # a CPU multiplies in bfloat16 fast, and is slow at all else in it
        self._autocast = dtype == torch.bfloat16 and device.type == "cpu"
        weights = torch.float32 if self._autocast else dtype
        try:
            self._model = SentenceTransformer(
                str(folder),
                device=str(device),
                local_files_only=True,
                model_kwargs={"dtype": weights, "use_safetensors": True},
            )
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise unreadable("text encoder", folder, error, library=_LIBRARY) from error
        self._model.to(weights).eval().requires_grad_(requires_grad=False)

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Return the texts, each as long as the tokens that are read of it."""
        texts = [example_text(example) for example in examples]
        if not texts:
            return []
        return [
            Encoded(example.example_id, {"text": text}, length, length)
            for example, text, length in zip(examples, texts, self._lengths(texts), strict=True)
        ]

    def _lengths(self, texts: list[str]) -> list[int]:
        """Return how many tokens are read of each text, at least 1."""
        prompt = self._model.prompts.get(self._model.default_prompt_name or "")
        read = self._model.preprocess(texts, prompt=prompt)
        if "attention_mask" in read:
            return [max(count, 1) for count in read["attention_mask"].sum(1).tolist()]
        each = (self._model.preprocess([text], prompt=prompt) for text in texts)  # static vectors
        return [max(one["input_ids"].numel(), 1) for one in each]

    def embed(self, batch: Sequence[Encoded]) -> torch.Tensor:
        """Return what the library's own ``encode`` gives, (n, d) float32 on the CPU."""
        texts = [encoded.inputs["text"] for encoded in batch]
        with torch.autocast("cpu", torch.bfloat16, enabled=self._autocast):
            found: torch.Tensor = self._model.encode(
                texts, batch_size=len(texts), show_progress_bar=False, convert_to_tensor=True
            )
        return found.to("cpu", torch.float32)


@lru_cache(maxsize=1)
def load_sentence_encoder(path: str, device: torch.device, dtype: torch.dtype) -> SentenceEncoder:
    """Return a text encoder; the last one is kept in memory."""
    return SentenceEncoder(path, device, dtype)


def check_sentence_encoder(path: str) -> None:
    """Look at a text encoder without loading its weights.

    Raises:
        BackboneError: it is none of sentence-transformers, brings code or pickled weights.
        MissingDependencyError: sentence-transformers is not installed.
    """
    if find_spec("sentence_transformers") is None:
        raise MissingDependencyError(
            f"an encoder of texts needs {_LIBRARY}, which is not installed",
            where=path,
            remedy="install albat[encoders], or leave embedding.encoder out: the backbone embeds",
        )
    folder = model_folder(path)
    try:
        types = [
            str(module["type"])
            for module in json.loads(_modules(folder).read_text(encoding="utf-8"))
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise unreadable("text encoder", folder, error, library=_LIBRARY) from error
    if foreign := [name for name in types if not name.startswith(_OWN_MODULES)]:
        raise BackboneError(
            f"expected modules of {_LIBRARY}, got {foreign[0]}, which is code of its own",
            where=str(folder),
            remedy="name an encoder that needs no trust_remote_code",
        )
    refuse_incomplete(folder)
    for pickled in sorted(folder.rglob("pytorch_model*.bin")):
        if not any(pickled.parent.glob("*.safetensors")):
            raise BackboneError(
                f"expected weights as *.safetensors, found {pickled.relative_to(folder)}",
                where=str(folder),
                remedy=f"save it anew by {_LIBRARY}: pickled weights are never read",
            )


def _modules(folder: Path) -> Path:
    """Return the file that lists an encoder's modules."""
    file = folder / SENTENCE_MODULES
    if not file.is_file():
        raise BackboneError(
            f"expected a text encoder of {_LIBRARY}, found no {SENTENCE_MODULES}",
            where=str(folder),
            remedy=f"name a model that {_LIBRARY} saved; encoders of pictures read no texts",
        )
    return file
