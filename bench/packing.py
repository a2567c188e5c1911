"""How much of a step's tokens is padding, what joining rows leaves of it, and its time.

    python -m bench.packing

Rows are questions with answers of the text demo's corpus and adaptation set, cut as
`backbone.max_length` says, 16 in a step. Times are of losses and gradients with the demo's backbone
and an adapter, by turns with and without; medians.
"""

import statistics
import time
from collections.abc import Sequence
from itertools import chain, islice
from tempfile import TemporaryDirectory

import torch

from albat_core.backbones import open_backbone
from albat_core.backbones.adapters import AdapterConfig
from albat_core.backbones.base import Backbone, Encoded
from albat_core.backbones.batches import packed
from albat_core.backbones.config import BackboneConfig
from albat_core.records.examples import Example
from albat_core.records.shards import iterate_part, parts_of
from albat_core.runs.config import RunConfig
from albat_core.seeding import numpy_generator
from albat_core.sources.files import find_files
from albat_core.stages.shard import make_shards
from albat_core.store.artifacts import ArtifactStore
from albat_core.store.stage import Runtime
from bench.speed import EXAMPLES
from flows.config import load_config

ROWS, IN_STEP, STEPS, ROUNDS = 600, 16, 3, 5
LENGTHS = (64, 256)


def questions(config: RunConfig, backbone: BackboneConfig, root: str) -> list[Example]:
    """Return rows of the corpus's questions and of the adaptation set, cut for a backbone."""
    runtime, store = Runtime(root=root, device="cpu"), ArtifactStore(root)
    sources = [config.corpus[-1], *config.adaptation]
    rows: list[Example] = []
    for source in sources:
        shards = [make_shards(f, backbone, config.shards, runtime) for f in find_files(source)]
        blocks = (b for part in parts_of(store, shards) for b in iterate_part(store, part))
        rows += islice(chain.from_iterable(blocks), ROWS // len(sources))
    return rows


def drawn(encoded: Sequence[Encoded]) -> list[list[Encoded]]:
    """Return all rows in batches of a step, at random."""
    order = numpy_generator(0, "packing").permutation(len(encoded)).tolist()
    whole = range(0, len(order) - IN_STEP + 1, IN_STEP)
    return [[encoded[i] for i in order[start : start + IN_STEP]] for start in whole]


def seconds(backbone: Backbone, batch: Sequence[Encoded], sequences: Sequence[list[int]]) -> float:
    """Return the CPU seconds of losses and gradients of a batch, in some sequences."""
    rows = [batch[n] for one in sequences for n in one]
    parameters = list(backbone.adapter_parameters().values())
    began = time.process_time()
    losses = backbone.losses(rows, None, [len(one) for one in sequences]).mean
    torch.autograd.grad(losses.sum(), parameters, allow_unused=True)
    return time.process_time() - began


def shares(batches: Sequence[Sequence[int]]) -> str:
    """Return what of padded batches is padding, and what is computed of them where rows are joined.

    Args:
        batches: lengths of their rows.
    """
    padded = sum(len(lengths) * max(lengths) for lengths in batches)
    joined = sum(len(packed(lengths)) * max(lengths) for lengths in batches)
    return f"{1 - sum(map(sum, batches)) / padded:.0%} | {joined / padded:.0%}"


def as_chats() -> list[list[int]]:
    """Return lengths spread as those of chats are: log-normal, sigma 0.8."""
    lengths = numpy_generator(0, "chats").lognormal(5, 0.8, (ROWS // IN_STEP, IN_STEP))
    return [[max(int(n), 1) for n in batch] for batch in lengths]


def line(config: RunConfig, length: int) -> str:
    """Return what is padding where rows are cut to a length."""
    backbone_config = config.backbone.model_copy(update={"max_length": length})
    with (
        TemporaryDirectory() as root,
        open_backbone(backbone_config, Runtime(device="cpu")) as backbone,
    ):
        backbone.attach_adapter(AdapterConfig(), 0)
        backbone.training(True)
        batches = drawn(backbone.encode(questions(config, backbone_config, root)))
        ratios = []
        for _ in range(ROUNDS):
            alone, together = 0.0, 0.0
            for batch in batches[:STEPS]:
                alone += seconds(backbone, batch, [[n] for n in range(len(batch))])
                together += seconds(backbone, batch, packed([e.length for e in batch]))
            ratios.append(together / alone)
    lengths = [[e.length for e in batch] for batch in batches]
    return f"| cut to {length} | {shares(lengths)} | {statistics.median(ratios):.2f} |"


def main() -> None:
    """Print the table."""
    config = load_config(str(EXAMPLES / "text" / "demo.yaml"))
    print(f"| rows | padding of {IN_STEP} rows | tokens computed with packing | its CPU time |")
    print("|---|---:|---:|---:|")
    for length in LENGTHS:
        print(line(config, length), flush=True)
    print(f"| lengths as of chats, drawn | {shares(as_chats())} | |")


if __name__ == "__main__":
    main()
