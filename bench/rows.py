"""What rows cost on their way: CPU seconds and memory beside the same with pyarrow and a tokenizer.

``python -m bench.rows`` prints a table; what is compared is measured in turns.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # CPU seconds of one core

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import AutoTokenizer

from albat_core.backbones import kind_of, open_splitter
from albat_core.backbones.base import Backbone
from albat_core.backbones.folder import backbone_folder
from albat_core.memory import measured
from albat_core.records.candidates import CANDIDATES, Candidates
from albat_core.records.examples import Example, examples_to_table, table_to_examples
from albat_core.records.mixtures import Mixture, read_mixture
from albat_core.records.selections import SELECTION, SELECTION_SCHEMA
from albat_core.records.tables import read_table, write_table
from albat_core.scorers.matching import Whitened, matching_weights
from albat_core.scorers.ngram import importance
from albat_core.sources.config import SourceConfig
from albat_core.sources.files import find_files
from albat_core.stages.mix import MixtureConfig, write_mixture
from albat_core.stages.retrieve import take_candidates
from albat_core.stages.shard import ShardConfig, make_shards
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime
from albat_core.training.encoded import EncodedBatches
from albat_core.training.sampler import MixtureSampler
from flows.config import load_config

CONFIG = load_config(str(Path(__file__).parent.parent / "examples" / "text" / "demo.yaml"))
ROUNDS, STEPS, BATCH = 3, 100, 16
Work = Callable[[], object]


class Inputs:
    """Texts of the demo's corpus, so many rows of so many words each, as a file."""

    def __init__(self, folder: Path, rows: int, words: int) -> None:
        self.folder, self.rows = folder, rows
        self.runtime = Runtime(root=str(folder / "artifacts"))
        self.store = ArtifactStore(self.runtime.root)
        self.tokenizer = AutoTokenizer.from_pretrained(backbone_folder(CONFIG.backbone))
        texts = [
            text
            for file in find_files(CONFIG.corpus[0])
            for text in pq.read_table(file.uris[0], columns=["text"])["text"].to_pylist()
        ]
        said = " ".join(texts).split()
        starts = (n * words % (len(said) - words) for n in range(rows))
        self.texts = [" ".join(said[start : start + words]) for start in starts]
        names = {"id": [f"row-{n}" for n in range(rows)]}
        names |= {"document": [f"text-{n // 4}" for n in range(rows)], "source": ["demo"] * rows}
        self.path = folder / f"rows-{words}.parquet"
        pq.write_table(pa.table(names | {"text": self.texts}), self.path)

    def kept(self, stage: str, name: str, table: pa.Table) -> ArtifactRef:
        """Keep a table as an artifact's only file."""

        def build(folder: Path) -> Built:
            write_table(table, folder / name)
            return Built(rows=table.num_rows, facts={"parts": [{"name": name, "rows": self.rows}]})

        return self.store.produce(stage, 1, {}, {"rows": str(self.path)}, build)

    def examples(self) -> list[Example]:
        """Return the rows as examples."""
        return [Example(f"row-{n}", f"row-{n}", "demo", t) for n, t in enumerate(self.texts)]


def cut(inputs: Inputs) -> dict[str, Work]:
    """Compare the stage that cuts rows with reading, tokenizing and writing them."""
    source = SourceConfig(
        path=str(inputs.path), id_column="id", document_column="document", source_column="source"
    )
    [file] = find_files(source)
    open_splitter(CONFIG.backbone)

    def plain() -> None:
        with pq.ParquetWriter(inputs.folder / "out.parquet", pq.read_schema(inputs.path)) as writer:
            for batch in pq.ParquetFile(inputs.path).iter_batches(1024):
                inputs.tokenizer(batch["text"].to_pylist())
                writer.write_batch(batch)

    def ours() -> None:
        with tempfile.TemporaryDirectory() as root:
            make_shards(file, CONFIG.backbone, ShardConfig(), Runtime(root=root))

    return {"read, tokenize, write": plain, "cut rows": ours}


def columns(inputs: Inputs) -> dict[str, Work]:
    """Compare examples made to a table and back with lists of the same strings."""
    examples = inputs.examples()

    def plain() -> None:
        pa.table({"id": [e.example_id for e in examples], "text": inputs.texts}).to_pydict()

    return {
        "two columns to Arrow and back": plain,
        "examples to a table and back": lambda: table_to_examples(examples_to_table(examples)),
    }


class Encoding:
    """What encodes rows for a training, without a model."""

    def __init__(self) -> None:
        from albat_core.backbones.language.model import LanguageBackbone

        self.encode = LanguageBackbone.encode.__get__(self)
        self._encoder = kind_of(CONFIG.backbone).splitter(LONG)


LONG = CONFIG.backbone.model_copy(update={"max_length": 2048})


def mixture(inputs: Inputs) -> dict[str, Work]:
    """Compare what a training of some steps reads with a table and the tokens of all its rows."""
    own = inputs.kept("split", "train.parquet", examples_to_table(inputs.examples()[:100]))
    shard = inputs.kept("shards", "0.parquet", examples_to_table(inputs.examples()))
    chosen = {
        "example_id": [f"row-{n}" for n in range(inputs.rows)],
        "source": ["demo"] * inputs.rows,
        "shard": [f"{shard.key}/0.parquet"] * inputs.rows,
        "row": range(inputs.rows),
        "turn": [0] * inputs.rows,
        "weight": [1 / inputs.rows] * inputs.rows,
    }
    arrays = [
        pa.array(chosen[f.name], f.type) if f.name in chosen else pa.nulls(inputs.rows, f.type)
        for f in SELECTION_SCHEMA
    ]
    table = pa.Table.from_arrays(arrays, schema=SELECTION_SCHEMA)
    selection = inputs.kept("selection", SELECTION, table)
    ref = write_mixture(own, selection, 0.5, MixtureConfig(), inputs.runtime)
    encoding = Encoding()

    def plain() -> list[np.ndarray]:
        files = sorted((inputs.store.folder(ref) / "data").glob("*"))
        texts = pa.concat_tables([pq.read_table(f, columns=["text"]) for f in files])["text"]
        found = []
        for start in range(0, len(texts), 1024):
            ids = inputs.tokenizer(texts[start : start + 1024].to_pylist())["input_ids"]
            found += [np.array(one, np.int32) for one in ids]
        return found

    def ours() -> EncodedBatches:
        its: Mixture = read_mixture(inputs.store, ref)
        sampler = MixtureSampler(len(its.adaptation), its.weights, its.alpha, BATCH, 0)
        batches = EncodedBatches(
            cast(Backbone, encoding), its.adaptation, its.backbone, sampler, STEPS
        )
        for step in range(STEPS):
            batches.batch(step)
        return batches

    return {"read all, tokenize all": plain, f"batches of {STEPS} steps of {BATCH}": ours}


def ngrams(inputs: Inputs) -> dict[str, Work]:
    """Compare scores by n-grams with the package of DSIR's authors, where it is installed."""
    shard = inputs.kept("shards", "0.parquet", examples_to_table(inputs.examples()))
    pool = inputs.store.folder(take_candidates([shard], inputs.runtime)) / CANDIDATES
    candidates = Candidates(inputs.store, read_table(pool))
    targets = inputs.examples()[::100]

    def package() -> None:
        from data_selection import HashedNgramDSIR

        for name, texts in (("raw", inputs.texts), ("target", inputs.texts[::100])):
            rows = pa.table({"text": texts}).to_pylist()
            (inputs.folder / f"{name}.jsonl").write_text(
                "\n".join(map(json_line, rows)) + "\n", encoding="utf-8"
            )
        with tempfile.TemporaryDirectory() as cache:
            raw, target = ([str(inputs.folder / f"{n}.jsonl")] for n in ("raw", "target"))
            dsir = HashedNgramDSIR(raw, target, cache, num_proc=1, min_example_length=0)
            dsir.fit_importance_estimator()
            dsir.compute_importance_weights()

    return {"data-selection": package, "n-gram scores": lambda: importance(candidates, targets)}


def json_line(row: dict[str, str]) -> str:
    """Return a row as JSON."""
    import json

    return json.dumps(row)


def matching(rows: int) -> dict[str, Work]:
    """Compare matching of some gradients with that of twice as many."""
    drawn = np.random.default_rng(0).standard_normal((2 * rows, 256), np.float32) + np.float32(0.1)
    target = np.full(256, 0.2)

    def some(count: int) -> Work:
        return lambda: matching_weights(Whitened(drawn[:count]), target)

    return {f"match {n:,} gradients": some(n) for n in (rows, 2 * rows)}


def measure(work: Work) -> tuple[float, float]:
    """Return CPU seconds of work, and by how much memory grew at its peak, MB."""
    before = psutil.Process().memory_info().rss
    try:
        with measured(torch.device("cpu")) as usage:
            began = time.process_time()
            kept = work()  # noqa: F841 - what it gives is in memory
            seconds = time.process_time() - began
    except ImportError:
        return float("nan"), float("nan")
    return seconds, (usage.bytes - before) / 1e6


def show(title: str, works: dict[str, Work], rows: Sequence[int]) -> None:
    """Print the median CPU time and memory of each, and how many times the first's the last is."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    peaks = dict.fromkeys(works, 0.0)
    for _ in range(ROUNDS):
        for name, work in works.items():
            cpu, peak = measure(work)
            seconds[name].append(cpu)
            peaks[name] = max(peaks[name], peak)
    medians = {name: float(np.median(its)) for name, its in seconds.items()}
    first = next(iter(medians.values()))
    for (name, cpu), count in zip(medians.items(), rows, strict=True):
        sys.stdout.write(
            f"| {title} | {name} | {cpu / count * 1e6:.1f} | {cpu / first:.2f} | "
            f"{peaks[name]:,.0f} |\n"
        )
    sys.stdout.flush()


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    rows = parser.parse_args().rows
    sys.stdout.write(
        "| | | CPU, µs a row | times the first | memory, MB |\n|---|---|---:|---:|---:|\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        short = Inputs(Path(folder).resolve(), rows, words=10)
        both = [rows, rows]
        show("records", columns(short), both)
        show("shard", cut(short), both)
        show("ngram", ngrams(short), both)
        long = Inputs(Path(folder).resolve(), rows // 4, words=250)
        show("finetune", mixture(long), [rows // 4, rows // 4])
    show("matching", matching(rows // 4), [rows // 4, rows // 2])


if __name__ == "__main__":
    main()
