"""Spaces: whether vectors that were computed elsewhere are those that an encoder gives here."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from albat_core.backbones import embedder_identity, open_embedder
from albat_core.backbones.config import BackboneConfig, EmbedderConfig
from albat_core.errors import DimensionMismatchError, InputError
from albat_core.records.shards import locate, read_examples
from albat_core.records.vectors import EmbeddedPart, load_vectors
from albat_core.seeding import numpy_generator
from albat_core.sources.vectors import row_of_piece
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime

STAGE = "spaces"
STAGE_VERSION = 1  # bump when equal inputs would give different output

_DRAWN = 256  # rows, of which those that were cut are not compared
_COMPARED = 32  # rows that are embedded here too
_FARTHEST = 0.3
"""Of given vectors from those computed here, as a share of their length: a cosine of 0.955 where
both are as long. Halves of precision move them by 0.001, bfloat16 by 0.01."""


def compare_spaces(
    parts: Sequence[EmbeddedPart],
    backbone_config: BackboneConfig,
    config: EmbedderConfig,
    seed: int,
    runtime: Runtime,
) -> ArtifactRef:
    """Embed some corpus rows here, to see that given vectors are of the space of the queries.

    The median of |v - e| / |e| over rows, v the vector that was given and e the one computed
    here, is within rounding where encoder, pooling and normalization are the same; the space's
    whitening would forgive none of the three.

    Args:
        parts: of the corpus, with the vectors that were given.
        backbone_config: whose encoders embed.
        config: names the encoder.
        seed: of the sample.
        runtime: where and with what.

    Raises:
        InputError: the vectors are of another space.
        DimensionMismatchError: they have another dimension.
    """
    store = ArtifactStore(runtime.root)

    def build(folder: Path) -> Built:
        del folder  # what was found are facts
        rows = np.cumsum([part.part.rows for part in parts])
        count = min(_DRAWN, int(rows[-1]))
        drawn = numpy_generator(seed, "embedding", "spaces").choice(rows[-1], count, replace=False)
        addresses, places = locate([p.part.address for p in parts], rows, np.sort(drawn).tolist())
        examples = read_examples(store, addresses, places)
        ids = [example.example_id for example in examples]
        # a piece has the vector of its row, of which an encoder may have read more
        whole = [n for n, name in enumerate(ids) if row_of_piece(name) == name][:_COMPARED]
        if not whole:
            return Built()
        by_address = {part.part.address: part.embeddings for part in parts}
        given = [load_vectors(store, by_address[addresses[n]])[places[n]] for n in whole]
        with open_embedder(config, backbone_config, runtime) as embedder:
            encoded = embedder.encode([examples[n] for n in whole])
            here = np.concatenate([embedder.embed([one]).numpy() for one in encoded])
        return Built(rows=len(whole), facts=_distance(np.stack(given), here))

    inputs = {
        "embeddings": [part.embeddings.key for part in parts],
        "encoder": embedder_identity(config, backbone_config, runtime),
    }
    return store.produce(STAGE, STAGE_VERSION, {"seed": seed}, inputs, build)


def _distance(given: NDArray[np.float32], here: NDArray[np.float32]) -> dict[str, float]:
    """Return how far vectors (n, d) are from those computed here; refuse another space."""
    where = "embedding.vectors.corpus"
    if given.shape[1] != here.shape[1]:
        raise DimensionMismatchError(
            f"expected vectors of d={here.shape[1]}, as the encoder gives, got d={given.shape[1]}",
            where=where,
            remedy="name the encoder that they were computed with, or give vectors.adaptation",
        )
    lengths = np.linalg.norm(here, axis=1)
    ratio = float(np.median(np.linalg.norm(given, axis=1) / lengths))
    cosine = np.einsum("nd,nd->n", given, here) / np.linalg.norm(given, axis=1) / lengths
    distance = float(np.median(np.linalg.norm(given - here, axis=1) / lengths))
    if not distance <= _FARTHEST:
        raise InputError(
            f"expected vectors as the encoder named gives them, got others: of {len(here)} rows "
            f"the median cosine is {np.median(cosine):.3f}, and they are {ratio:.3g} times as long",
            where=where,
            remedy="name the encoder that they were computed with; give them as it gives them, "
            "with the same prompt, pooling and normalization; or give vectors.adaptation too",
        )
    return {
        "median_distance": round(distance, 4),
        "median_cosine": round(float(np.median(cosine)), 4),
    }
