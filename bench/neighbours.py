"""Embedding beside sentence-transformers, and training beside TRL, with the demo's backbone.

    python -m bench.neighbours

Same rows, tokens a batch, LoRA layers and precision, in turns within one process; CPU seconds, the
reading and tokenizing of rows included on both sides.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_DISABLED": "true"}

import datasets
import numpy as np
import peft
import sentence_transformers
import torch
import transformers
import trl
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from albat_core.backbones import open_backbone
from albat_core.backbones.adapters import AdapterConfig
from albat_core.devices import device_name
from albat_core.records.examples import Example
from albat_core.records.mixtures import Mixture
from albat_core.records.shards import iterate_part, parts_of
from albat_core.runs.config import RunConfig
from albat_core.sources.files import find_files
from albat_core.stages.embed import embed_part
from albat_core.stages.shard import make_shards
from albat_core.store.artifacts import ArtifactStore
from albat_core.store.stage import Runtime
from albat_core.training.checkpoint import CheckpointFile, TrainingState
from albat_core.training.config import FinetuneConfig
from albat_core.training.trainer import Trainer
from bench.language import read
from bench.speed import EXAMPLES
from flows.config import load_config

ROUNDS, STEPS, BATCH = 5, 30, 16
ADAPTER = AdapterConfig(rank=16, lora_alpha=32)


def compare(name: str, pairs: list[tuple[float, float]], units: int, unit: str) -> None:
    """Print a line: ours, and how many times as long the neighbour takes; the first warms up."""
    ratios = [theirs / ours for ours, theirs in pairs[1:]]
    speed = statistics.median(units / ours for ours, _ in pairs[1:])
    print(
        f"| {name} | {speed:,.0f} {unit} a CPU second | {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}) |",
        flush=True,
    )


def timed(work: Callable[[], object]) -> float:
    """Return the CPU seconds of some work."""
    began = time.process_time()
    work()
    return time.process_time() - began


def embedding(config: RunConfig) -> None:
    """Compare a part that is embedded with sentence-transformers' ``encode``."""
    length = config.backbone.max_length
    read = Transformer(str(config.backbone.path), max_seq_length=length)
    pool = Pooling(read.get_embedding_dimension(), pooling_mode="mean")
    model = SentenceTransformer(modules=[read, pool], device="cpu")
    with TemporaryDirectory() as root:
        runtime, store = Runtime(root=root), ArtifactStore(root)
        file = next(f for f in find_files(config.corpus[0]) if "wikitext" in f.uris[0])
        part = parts_of(store, [make_shards(file, config.backbone, config.shards, runtime)])[0]
        texts = [e.text or "" for rows in iterate_part(store, part) for e in rows]
        batch = config.embedding.batch_tokens // (length or 1)
        pairs = []
        for _ in range(ROUNDS + 1):
            with TemporaryDirectory() as other:
                Path(other, "shards").symlink_to(Path(root, "shards"))  # but no embeddings
                elsewhere = Runtime(root=other)
                given = (part, "bench", None, config.backbone, config.embedding, elsewhere)
                ours = timed(lambda: embed_part(*given))  # noqa: B023
            pairs.append((ours, timed(lambda: model.encode(texts, batch_size=batch))))
    compare(
        f"embedding, sentence-transformers {sentence_transformers.__version__}",
        pairs,
        part.rows,
        "rows",
    )


def training(config: RunConfig, rows: list[Example]) -> None:
    """Compare steps without penalty with those of TRL's SFTTrainer."""
    settings = FinetuneConfig(
        adapter=ADAPTER, batch_size=BATCH, learning_rate=1e-4, steps=STEPS, batch_tokens=1 << 16
    )
    mixture = Mixture(adaptation=rows, backbone=[], weights=np.zeros(0), alpha=0.0)
    lora = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", lora_dropout=0.0)
    data = datasets.Dataset.from_dict({"text": [row.text for row in rows]})
    pairs = []
    with TemporaryDirectory() as folder:
        for turn in range(ROUNDS + 1):
            with open_backbone(config.backbone, config.runtime) as backbone:
                backbone.attach_adapter(ADAPTER, 0)

                def ours() -> None:
                    keeping = CheckpointFile(f"{folder}/none")
                    trainer = Trainer(backbone, mixture, [], settings, 0.0, 0, keeping, 1e9)
                    state = TrainingState()
                    for step in range(STEPS):
                        state.step = step
                        trainer._step(state)

                own = timed(ours)
            model = transformers.AutoModelForCausalLM.from_pretrained(
                config.backbone.path, dtype=torch.float32
            )
            arguments = trl.SFTConfig(
                output_dir=f"{folder}/{turn}",
                max_steps=STEPS,
                per_device_train_batch_size=BATCH,
                max_length=config.backbone.max_length,
                learning_rate=1e-4,
                bf16=False,
                gradient_checkpointing=False,
                use_cpu=True,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            )

            def theirs() -> None:
                trl.SFTTrainer(model, arguments, train_dataset=data, peft_config=lora).train()  # noqa: B023

            pairs.append((own, timed(theirs)))
    compare(f"training without penalty, TRL {trl.__version__}", pairs, STEPS * BATCH, "rows")


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    config = load_config(str(EXAMPLES / "text" / "demo.yaml"), {"device": "cpu"})
    print(f"{datetime.now(UTC):%Y-%m-%d}, {device_name(config.runtime)}, torch {torch.__version__}")
    print("\n| | ours | the neighbour takes, times |\n|---|---:|---:|")
    embedding(config)
    training(config, read(config.backbone, STEPS * BATCH))


if __name__ == "__main__":
    main()
