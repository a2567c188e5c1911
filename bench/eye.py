"""What cheaper eyes (`embedding.layers`, `tokens`, `encoder`) cost and see, beside the backbone.

    python -m bench.eye CONFIG.yaml [--encoder FOLDER]
    python -m bench.eye CONFIG.yaml --prefilter

Embeds a run's corpus and the adaptation rows it trains on by each of them: the seconds, tokenizing
included (of CPU where that computes, which other work on a machine changes little), and the share
of each row's nearest neighbours by the whole backbone that are among its nearest by the cheaper
eye. Neighbours are searched exactly, `retrieval.neighbours` of them.

With `--prefilter` it is what a prefilter by words costs and keeps (`prefilter.share`): the seconds
of reading and comparing all words, those of embedding what is kept (the whole's, by tokens), the
share of the whole search's neighbours that are kept, of all and of the first ten, and the share
that is found among what is kept, whose own mean and covariance centre and whiten it.
"""

import argparse
import math
import time

import numpy as np
from numpy.typing import NDArray

from albat_core.backbones import open_embedder
from albat_core.backbones.language.description import hollow
from albat_core.backbones.language.embedding import decoder_layers
from albat_core.devices import device_name, resolve_device
from albat_core.records.candidates import Candidates, read_candidates
from albat_core.records.examples import Example
from albat_core.records.shards import iterate_part
from albat_core.records.splits import TRAIN, read_role
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.search.index import VectorIndex, recall
from albat_core.search.space import EmbeddingSpace, Vectors
from albat_core.stages.embed import EmbeddingConfig, embed_examples
from albat_core.stages.prefilter import likeness
from albat_core.stages.retrieve import distinct_neighbours, take_candidates
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from flows.config import load_config

SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4)
"""Of the layers, and of `backbone.max_length`."""
KEPT = (0.05, 0.1, 0.25, 0.5)
"""Shares of the corpus rows that a prefilter keeps."""
FIRST = 10
"""Nearest neighbours that are counted on their own."""


def eyes(config: RunConfig, encoder: str | None) -> dict[str, EmbeddingConfig]:
    """Return what is compared by its name, the whole backbone first."""
    depth, longest = len(decoder_layers(hollow(config.backbone))), config.backbone.max_length
    layers, tokens = (
        sorted({max(round(share * whole), 1) for share in SHARES} - {whole})
        for whole in (depth, longest)
    )
    half: dict[str, int | str] = {"layers": max(depth // 2, 1), "tokens": longest // 2}
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
) -> tuple[Vectors, Vectors, float, list[int]]:
    """Return the embeddings of both, the seconds that they took, and the tokens of corpus rows."""
    on_cpu = resolve_device(config.runtime).type == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    with open_embedder(eye, config.backbone, config.runtime) as embedder:
        embedder.embed(embedder.encode(own[:1]))  # the first finds what the device has to prepare
        began = clock()
        both = embedder.encode([*corpus, *own])
        vectors = embed_examples(embedder, both, eye.batch_tokens, "embed")
        seconds, tokens = clock() - began, [row.length for row in both[: len(corpus)]]
        return vectors[: len(corpus)], vectors[len(corpus) :], seconds, tokens


def nearest(corpus: Vectors, own: Vectors, k: int, config: RunConfig) -> NDArray[np.int64]:
    """Return the places of each own row's k nearest corpus rows, as a run finds them."""
    space = EmbeddingSpace.fit(iter([corpus]), config.index.shrinkage)
    index = VectorIndex.new(corpus.shape[1], "Flat", config.runtime)
    index.add(space.project(corpus))
    return distinct_neighbours(index, space.project(own), k, len(corpus))[1]


def print_prefilters(
    config: RunConfig, every: ArtifactRef, corpus: list[Example], own: list[Example], k: int
) -> None:
    """Print what a prefilter keeps and costs.

    Args:
        config: of the run.
        every: all corpus rows, as candidates.
        corpus: the same.
        own: adaptation rows that are trained on.
        k: neighbours.
    """
    store = ArtifactStore(config.runtime.root)
    began = time.process_time()
    scores = likeness(Candidates(store, read_candidates(store, every)), own)
    by_words = time.process_time() - began
    vectors, asked, seconds, tokens = embedded(config.embedding, config, corpus, own)
    exact = nearest(vectors, asked, k, config)
    print(f"all words compared in {by_words:.1f} s, all rows embedded in {seconds:.1f} s\n")
    print(f"| rows kept | seconds | of the whole | of {k} neighbours kept | of the first {FIRST} |"
          f" recall@{k} |\n|---:|---:|---:|---:|---:|---:|", flush=True)  # fmt: skip
    for share in KEPT:
        rows = np.sort(np.argsort(-scores, kind="stable")[: math.ceil(share * len(scores))])
        part = by_words + seconds * sum(tokens[row] for row in rows) / sum(tokens)
        kept = [float(np.isin(e[e >= 0], rows).mean()) for e in (exact, exact[:, :FIRST])]
        near = nearest(vectors[rows], asked, min(k, len(rows)), config)
        found = recall(np.where(near >= 0, rows[near], -1), exact)
        cells = f"{part:.1f} | {part / seconds:.0%} | {kept[0]:.3f} | {kept[1]:.3f} | {found:.3f}"
        print(f"| {share:.0%} | {cells} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--encoder", help="folder of a sentence-transformers model")
    parser.add_argument("--prefilter", action="store_true", help="compare prefilters by words")
    given = parser.parse_args()
    config = load_config(given.config)
    inputs, store = Chain(config).inputs, ArtifactStore(config.runtime.root)
    corpus = [row for part in inputs.parts for rows in iterate_part(store, part) for row in rows]
    own = read_role(store, inputs.adaptation, TRAIN)
    k = min(config.retrieval.neighbours, len(corpus))
    print(f"{len(corpus):,} corpus rows, {len(own)} adaptation rows, {device_name(config.runtime)}")
    if given.prefilter:
        every = take_candidates(inputs.corpus, config.runtime)
        print_prefilters(config, every, corpus, own, k)
        return
    print(
        f"\n| what embeds | seconds | of the whole | recall@{k} |\n|---|---:|---:|---:|", flush=True
    )
    whole, exact = 0.0, np.empty((0, 0), np.int64)
    for name, eye in eyes(config, given.encoder).items():
        vectors, asked, seconds, _ = embedded(eye, config, corpus, own)
        found = nearest(vectors, asked, k, config)
        if not whole:
            whole, exact = seconds, found
        cells = f"{seconds:.1f} | {seconds / whole:.0%} | {recall(found, exact):.3f}"
        print(f"| {name} | {cells} |", flush=True)
    print(f"| by chance | | | {k / len(corpus):.3f} |")


if __name__ == "__main__":
    main()
