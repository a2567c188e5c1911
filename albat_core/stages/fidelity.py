"""Fidelity of samples: how close pictures are to the subject and to their prompts.

As DreamBooth defines them (arXiv 2208.12242, section 4.1): DINO and CLIP-I are the mean cosine of
the embeddings of all pairs of a generated and a real picture, CLIP-T the mean cosine of the
embeddings of a generated picture and its prompt; all in [-1, 1], higher is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from albat_core.backbones import encoder_identity, open_encoder
from albat_core.errors import InputError
from albat_core.measures.bootstrap import bootstrap_interval
from albat_core.progress import track
from albat_core.records.examples import Example
from albat_core.records.fidelity import FIDELITY, FIDELITY_SCHEMA, MEASURES, STAGE
from albat_core.records.samples import read_samples
from albat_core.records.splits import TRAIN, read_role, role_digest
from albat_core.records.tables import write_table
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime

if TYPE_CHECKING:
    import torch

    from albat_core.backbones.vision import VisionEncoder

STAGE_VERSION = 1
_BATCH = 32  # pictures given to an encoder at once


Floats = NDArray[np.float64]


def measure_fidelity(
    samples: ArtifactRef,
    adaptation: ArtifactRef,
    seed: int,
    runtime: Runtime,
    label: str = "fidelity",
    *,
    dino: str | None = None,
    clip: str | None = None,
) -> ArtifactRef:
    """Measure samples against the adaptation pictures that are trained on, and their prompts.

    Args:
        samples: pictures of one arm.
        adaptation: the adaptation set, split.
        seed: of the bootstrap over prompts.
        runtime: where to compute.
        label: names the progress line.
        dino: folder or hub id of a DINO image encoder; None: subject fidelity is not measured.
        clip: the same of a CLIP model.

    Returns:
        an artifact with means by prompt; means over prompts with 95% intervals are in its facts,
        as ``value``, ``low`` and ``high`` of each measure. Prompts longer than CLIP's text encoder
        takes have no CLIP-T: ``unread_prompts`` counts them.

    Raises:
        InputError: samples or adaptation examples have no pictures.
        BackboneError: an encoder cannot be read, or the one for CLIP reads no text.
    """
    store = ArtifactStore(runtime.root)

    def build(folder: Path) -> Built:
        drawn = read_samples(store, samples)
        made = _pictures([e for _, examples in drawn for e in examples], "samples")
        real = _pictures(read_role(store, adaptation, TRAIN), "adaptation examples")
        each = len(made) // len(drawn)
        columns: dict[str, Floats] = {}
        with track(label, len(made) + len(real), "pictures") as advance:
            if dino is not None:
                with open_encoder(dino, runtime) as encoder:
                    columns["dino"] = _closeness(_embed(encoder, made), _embed(encoder, real))
            if clip is not None:
                with open_encoder(clip, runtime) as encoder:
                    pictures = _embed(encoder, made)
                    columns["clip_i"] = _closeness(pictures, _embed(encoder, real))
                    columns["clip_t"] = _agreement(encoder, pictures, [p for p, _ in drawn])
            advance(len(made) + len(real))
        by_prompt = {n: values.reshape(-1, each).mean(axis=1) for n, values in columns.items()}
        unknown = np.full(len(drawn), np.nan)
        arrays = [
            pa.array([prompt for prompt, _ in drawn], pa.string()),
            pa.array([each] * len(drawn), pa.int64()),
            *(pa.array(by_prompt.get(n, unknown), from_pandas=True) for n in MEASURES),
        ]
        write_table(pa.Table.from_arrays(arrays, schema=FIDELITY_SCHEMA), folder / FIDELITY)
        known = {n: values[np.isfinite(values)] for n, values in by_prompt.items()}
        facts: dict[str, Any] = {n: _interval(v, seed) for n, v in known.items() if v.size}
        unread = int(np.isnan(by_prompt["clip_t"]).sum()) if "clip_t" in by_prompt else 0
        facts["unread_prompts"] = unread
        return Built(rows=len(drawn), facts=facts | {"real": len(real)})

    encoders = {"dino": dino, "clip": clip}
    return store.produce(
        STAGE,
        STAGE_VERSION,
        {"seed": seed},
        {
            "samples": samples.key,
            "real": role_digest(store, adaptation, TRAIN),
            **{n: encoder_identity(path) for n, path in encoders.items() if path},
        },
        build,
    )


def _pictures(examples: Sequence[Example], what: str) -> Sequence[Example]:
    bare = [e.example_id for e in examples if e.image is None]
    if bare or not examples:
        raise InputError(
            f"expected pictures to measure fidelity of, {len(bare)} of {len(examples)} {what} "
            "have none",
            where="samples",
            remedy="leave samples.dino and samples.clip out: they are for pictures",
        )
    return examples


def _embed(encoder: VisionEncoder, examples: Sequence[Example]) -> torch.Tensor:
    """Return unit embeddings of pictures, (n, d) float64, in order."""
    import torch

    blocks = [
        encoder.embed(encoder.encode(examples[start : start + _BATCH]))
        for start in range(0, len(examples), _BATCH)
    ]
    return torch.nn.functional.normalize(torch.cat(blocks).double())


def _closeness(made: torch.Tensor, real: torch.Tensor) -> Floats:
    """Return each made picture's mean cosine with all real ones, (n_made,) in [-1, 1]."""
    mean: Floats = (made @ real.T).mean(dim=1).numpy()
    return mean


def _agreement(encoder: VisionEncoder, made: torch.Tensor, prompts: Sequence[str]) -> Floats:
    """Return each made picture's cosine with its prompt, (n_made,); NaN where that is too long.

    Args:
        encoder: CLIP.
        made: unit embeddings, equally many of each prompt, in order.
        prompts: what they were made of.
    """
    import torch

    read = np.array(encoder.reads(prompts))
    each = len(made) // len(prompts)
    found: Floats = np.full(len(made), np.nan)
    if read.any():
        texts = encoder.embed_prompts([p for p, fits in zip(prompts, read, strict=True) if fits])
        said = torch.nn.functional.normalize(texts.double()).repeat_interleave(each, dim=0)
        places = np.repeat(read, each)
        found[places] = (made[torch.from_numpy(places)] * said).sum(dim=1).numpy()
    return found


def _interval(values: Floats, seed: int) -> dict[str, float]:
    """Return the mean over prompts with its 95% bootstrap interval."""
    value, low, high = bootstrap_interval([values], np.ones(len(values)), seed)
    return {"value": value, "low": low, "high": high}
