"""Embeddings: every example as the backbone, a part of it or an encoder represents it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field, model_validator

from albat_core.backbones import embedder_identity, open_embedder
from albat_core.backbones.base import Embedder, Encoded
from albat_core.backbones.batches import each_encoded
from albat_core.backbones.config import BackboneConfig, EmbedderConfig
from albat_core.errors import BackboneError
from albat_core.progress import track
from albat_core.records.encodings import Encodings
from albat_core.records.shards import Part, iterate_part
from albat_core.records.splits import TRAIN, read_role, role_digest
from albat_core.records.tables import read_table, write_table
from albat_core.records.vectors import (
    QUERY_IDS,
    QUERY_STAGE,
    STAGE,
    VECTORS,
    EmbeddedPart,
    load_vectors,
)
from albat_core.sources.vectors import VectorSource
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built, artifact_ref
from albat_core.store.stage import Runtime, Settings, StageConfig, stage_key

STAGE_VERSION = 2


class GivenVectors(StageConfig):
    """Embeddings that were computed elsewhere, found by the ids of rows."""

    corpus: VectorSource = VectorSource()
    """Of the corpus: one for each row that is used; a row that is cut has its vector in each piece.
    With a vector for each adaptation row too, or the `encoder` that they were computed with."""
    adaptation: VectorSource = VectorSource()
    """Of the adaptation set and the held-out documents, by the same encoder."""

    @property
    def given(self) -> dict[str, VectorSource]:
        """Those of which files are named, by role."""
        both = {"corpus": self.corpus, "adaptation": self.adaptation}
        return {role: source for role, source in both.items() if source.paths}


class EmbeddingConfig(EmbedderConfig):
    """How embeddings are computed."""

    batch_tokens: int = Field(8192, ge=1)
    """Tokens in a batch, padding included; of pictures, positions of their latents. More fills a
    GPU; the memory needed grows with it."""
    vectors: GivenVectors = GivenVectors()
    """Embeddings that were computed elsewhere, in place of computing them."""

    @model_validator(mode="after")
    def _of_one_space(self) -> Self:
        corpus, own = self.vectors.corpus.paths, self.vectors.adaptation.paths
        if own and not corpus:
            raise ValueError("vectors.adaptation needs vectors.corpus, of the same encoder")
        if corpus and not own and self.encoder is None:
            raise ValueError(
                "vectors.corpus needs vectors.adaptation, or encoder: the one that they were "
                "computed with, which then embeds the adaptation set"
            )
        if own and (self.encoder or self.layers or self.tokens):
            raise ValueError(
                "with vectors of corpus and adaptation nothing is left to embed: leave encoder, "
                "layers and tokens out"
            )
        return self

    def computing(self) -> Settings:
        """Return what of it decides the vectors that are computed here."""
        return self.settings(without={"vectors"})


def embed_examples(
    embedder: Embedder, encoded: Sequence[Encoded], batch_tokens: int, label: str
) -> NDArray[np.float32]:
    """Return the embeddings of encoded examples, (n, d) float32, in order.

    Raises:
        BackboneError: a value is not finite.
    """
    vectors: NDArray[np.float32] = np.empty((0, 0), dtype=np.float32)
    with track(label, len(encoded), "examples") as advance:

        def embed(batch: list[int]) -> None:
            nonlocal vectors
            found = embedder.embed([encoded[i] for i in batch]).numpy()
            if not vectors.size:
                vectors = np.empty((len(encoded), found.shape[1]), dtype=np.float32)
            vectors[batch] = found
            advance(len(batch))

        each_encoded(encoded, batch_tokens, embed)
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise BackboneError(
            "expected finite embeddings, got NaN or infinity",
            where=f"example {encoded[row].example_id}",
            remedy="check the backbone's weights, or set backbone.dtype to float32",
        )
    return vectors


def embed_part(
    part: Part,
    label: str,
    encodings: ArtifactRef | None,
    backbone_config: BackboneConfig,
    config: EmbeddingConfig,
    runtime: Runtime,
) -> EmbeddedPart:
    """Embed one part of the corpus; keyed by its content, so equal parts are embedded once.

    Args:
        part: what is embedded.
        label: names the progress line.
        encodings: the part's, where the backbone has any.
        backbone_config: what embeds it, unless ``config`` names an encoder.
        config: how.
        runtime: where and with what.
    """
    store = ArtifactStore(runtime.root)

    def build(folder: Path) -> Built:
        known = Encodings(store, [encodings] if encodings else [])
        with open_embedder(config, backbone_config, runtime, known) as embedder:
            encoded = [e for rows in iterate_part(store, part) for e in embedder.encode(rows)]
            vectors = embed_examples(embedder, encoded, config.batch_tokens, f"embed {label}")
        np.save(folder / VECTORS, vectors)
        return Built(
            rows=len(vectors),
            facts={"dimension": vectors.shape[1], "passes": sum(e.length for e in encoded)},
        )

    identity = embedder_identity(config, backbone_config, runtime)
    ref = store.produce(STAGE, STAGE_VERSION, config.computing(), _inputs_of(part, identity), build)
    return EmbeddedPart(part=part, embeddings=ref)


def find_embedded(
    parts: Sequence[Part],
    backbone_config: BackboneConfig,
    config: EmbeddingConfig,
    runtime: Runtime,
) -> list[EmbeddedPart | None]:
    """Return what ``embed_part`` would find finished of each part, else None; all at once."""
    identity = embedder_identity(config, backbone_config, runtime)
    settings = config.computing()
    refs = [artifact_ref(STAGE, STAGE_VERSION, settings, _inputs_of(p, identity)) for p in parts]
    found = zip(parts, ArtifactStore(runtime.root).reused(refs), strict=True)
    return [EmbeddedPart(part=part, embeddings=ref) if ref else None for part, ref in found]


def _inputs_of(part: Part, identity: Mapping[str, Any]) -> dict[str, Any]:
    return {"part": part.sha256, "backbone": identity}


def embed_queries(
    adaptation: ArtifactRef,
    encodings: Sequence[ArtifactRef],
    backbone_config: BackboneConfig,
    config: EmbeddingConfig,
    runtime: Runtime,
    roles: Sequence[str] = (TRAIN,),
    label: str = "adaptation examples",
) -> ArtifactRef:
    """Embed examples of the adaptation set: those that are trained on, unless told otherwise.

    Rows that an earlier set had are not embedded again. Rows trained on are computed one at a
    time, so that a row's embedding does not depend on which rows are beside it, bit for bit.
    """
    store = ArtifactStore(runtime.root)
    identity = embedder_identity(config, backbone_config, runtime)
    settings = config.computing()
    family = stage_key(QUERY_STAGE, STAGE_VERSION, settings.named, identity)
    at_once = 1
    if tuple(roles) != (TRAIN,):  # rows that only say what is a copy need not be so exact
        at_once = config.batch_tokens
        family = f"{family}-{'-'.join(roles)}"

    def build(folder: Path) -> Built:
        examples = [e for role in roles for e in read_role(store, adaptation, role)]
        digests = [e.digest() for e in examples]
        known = _known_rows(store, family)
        fresh = [i for i, name in enumerate(digests) if name not in known]
        if fresh:
            known_inputs = Encodings(store, encodings)
            with open_embedder(config, backbone_config, runtime, known_inputs) as embedder:
                encoded = embedder.encode([examples[i] for i in fresh])
                computed = embed_examples(embedder, encoded, at_once, f"embed {label}")
            known |= {digests[i]: row for i, row in zip(fresh, computed, strict=True)}
        vectors = np.stack([known[name] for name in digests])
        np.save(folder / VECTORS, vectors)
        ids = pa.table({"example_id": [e.example_id for e in examples], "digest": digests})
        write_table(ids, folder / QUERY_IDS)
        reused = len(examples) - len(fresh)
        return Built(
            rows=len(examples),
            facts={
                "dimension": vectors.shape[1],
                "embedded_rows": len(fresh),
                "reused_rows": reused,
            },
        )

    ref = store.produce(
        QUERY_STAGE,
        STAGE_VERSION,
        settings,
        {
            "rows": "/".join(role_digest(store, adaptation, role) for role in roles),
            "backbone": identity,
        },
        build,
    )
    store.set_latest(family, ref)
    return ref


def _known_rows(store: ArtifactStore, family: str) -> dict[str, NDArray[np.float32]]:
    latest = store.latest(QUERY_STAGE, family)
    if latest is None:
        return {}
    digests = read_table(store.folder(latest) / QUERY_IDS)["digest"].to_pylist()
    return dict(zip(digests, load_vectors(store, latest), strict=True))
