"""What cheaper eyes (`embedding.layers`, `tokens`, `encoder`) cost and see, beside the backbone.

    python -m bench.eye CONFIG.yaml [--encoder FOLDER]

Embeds a run's corpus and the adaptation rows it trains on by each of them: the seconds, tokenizing
included (of CPU where that computes, which other work on a machine changes little), and the share
of each row's nearest neighbours by the whole backbone that are among its nearest by the cheaper
eye. Neighbours are searched exactly, `retrieval.neighbours` of them.
"""

import argparse
import time

import numpy as np
from numpy.typing import NDArray

from albat_core.backbones import open_embedder
from albat_core.backbones.language.embedding import decoder_layers
from albat_core.backbones.language.model import hollow
from albat_core.devices import device_name, resolve_device
from albat_core.records.examples import Example
from albat_core.records.shards import iterate_part
from albat_core.records.splits import TRAIN, read_role
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.search import EmbeddingSpace, VectorIndex, Vectors, recall
from albat_core.stages.embed import EmbeddingConfig, embed_examples
from albat_core.stages.retrieve import distinct_neighbours
from albat_core.store.artifacts import ArtifactStore
from flows.config import load_config

SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4)
"""Of the layers, and of `backbone.max_length`."""


def eyes(config: RunConfig, encoder: str | None) -> dict[str, EmbeddingConfig]:
    """Return what is compared by its name, the whole backbone first."""
    depth, longest = len(decoder_layers(hollow(config.backbone))), config.backbone.max_length
    layers, tokens = (
        sorted({max(round(share * whole), 1) for share in SHARES} - {whole})
        for whole in (depth, longest)
    )
    half = {"layers": max(depth // 2, 1), "tokens": longest // 2}
    settings: dict[str, dict[str, int | str]] = {
        f"all {depth} layers, all tokens": {},
        **{f"{n} of {depth} layers": {"layers": n} for n in layers},
        **{f"first {n} of up to {longest} tokens": {"tokens": n} for n in tokens},
        "half of the layers, first half": half,
    }
    if encoder is not None:
        settings["text encoder"] = {"encoder": encoder}
    batch = config.embedding.batch_tokens
    return {n: EmbeddingConfig(batch_tokens=batch, **each) for n, each in settings.items()}


def embedded(
    eye: EmbeddingConfig, config: RunConfig, corpus: list[Example], own: list[Example]
) -> tuple[Vectors, Vectors, float]:
    """Return the embeddings of both, and the seconds that they took."""
    on_cpu = resolve_device(config.runtime).type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    with open_embedder(eye, config.backbone, config.runtime) as embedder:
        embedder.embed(embedder.encode(own[:1]))  # the first finds what the device has to prepare
        began = clock()
        both = embedder.encode([*corpus, *own])
        vectors = embed_examples(embedder, both, eye.batch_tokens, "embed")
        return vectors[: len(corpus)], vectors[len(corpus) :], clock() - began


def nearest(corpus: Vectors, own: Vectors, k: int, config: RunConfig) -> NDArray[np.int64]:
    """Return the places of each own row's k nearest corpus rows, as a run finds them."""
    space = EmbeddingSpace.fit(iter([corpus]), config.index.shrinkage)
    index = VectorIndex.new(corpus.shape[1], "Flat", config.runtime)
    index.add(space.project(corpus))
    return distinct_neighbours(index, space.project(own), k, len(corpus))[1]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--encoder", help="folder of a sentence-transformers model")
    given = parser.parse_args()
    config = load_config(given.config)
    inputs, store = Chain(config).inputs, ArtifactStore(config.runtime.root)
    corpus = [row for part in inputs.parts for rows in iterate_part(store, part) for row in rows]
    own = read_role(store, inputs.adaptation, TRAIN)
    k = min(config.retrieval.neighbours, len(corpus))
    print(f"{len(corpus):,} corpus rows, {len(own)} adaptation rows, {device_name(config.runtime)}")
    print(
        f"\n| what embeds | seconds | of the whole | recall@{k} |\n|---|---:|---:|---:|", flush=True
    )
    whole, exact = 0.0, np.empty((0, 0), np.int64)
    for name, eye in eyes(config, given.encoder).items():
        *vectors, seconds = embedded(eye, config, corpus, own)
        found = nearest(*vectors, k, config)
        if not whole:
            whole, exact = seconds, found
        cells = f"{seconds:.1f} | {seconds / whole:.0%} | {recall(found, exact):.3f}"
        print(f"| {name} | {cells} |", flush=True)
    print(f"| by chance | | | {k / len(corpus):.3f} |")


if __name__ == "__main__":
    main()
