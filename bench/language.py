"""Time and memory of a language backbone's passes against plain loops over the same batches.

    python -m bench.language .albat/smollm2 --length 512
    python -m bench.language --llama8b /tmp/llama8b     # makes it first, of random weights: a GPU

Embedding against the bare forward pass, scoring against the two that it needs, training against a
loop of transformers, peft and AdamW, a step with the penalty against one without (of adaptation
rows, and of a mixture with alpha 0.9), gradients of rows against that of their sum: same rows, LoRA
layers and precision, in turns within one process. Memory is of the peak, the weights included; of a
GPU what tensors take there.
"""

import argparse
import statistics
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
import transformers

from albat_core.backbones import open_backbone
from albat_core.backbones.adapters import AdapterConfig
from albat_core.backbones.base import FixedNoise
from albat_core.backbones.batches import length_batches
from albat_core.backbones.config import BackboneConfig
from albat_core.backbones.language.model import LanguageBackbone
from albat_core.devices import device_name, resolve_device
from albat_core.measures.gradients import Projection, example_gradients
from albat_core.measures.losses import advantages
from albat_core.memory import Usage, measured
from albat_core.records.examples import Example
from albat_core.records.mixtures import Mixture
from albat_core.records.shards import iterate_part, parts_of
from albat_core.sources.files import find_files
from albat_core.stages.shard import make_shards
from albat_core.store.artifacts import ArtifactStore
from albat_core.store.stage import Runtime
from albat_core.training.checkpoint import CheckpointFile, TrainingState
from albat_core.training.config import FinetuneConfig
from albat_core.training.trainer import Trainer
from bench.speed import EXAMPLES
from flows.config import load_config

ROWS, BATCH, STEPS = 128, 8, 4
ADAPTER = AdapterConfig(rank=16, lora_alpha=32)


def make_llama(folder: Path) -> None:
    """Save a Llama of 8 billion random weights, with the demo's tokenizer."""
    config = transformers.LlamaConfig(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
    )
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = transformers.LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(EXAMPLES / "text" / "backbone")
    tokenizer.save_pretrained(folder)
    del model
    torch.cuda.empty_cache()


def read(backbone: BackboneConfig, count: int) -> list[Example]:
    """Return rows of the demo's corpus as they come, cut for a backbone."""
    config = load_config(str(EXAMPLES / "text" / "demo.yaml"))
    with TemporaryDirectory() as root:
        runtime, store = Runtime(root=root), ArtifactStore(root)
        files = [f for f in find_files(config.corpus[0]) if "wikitext" in f.uris[0]]
        shards = [make_shards(file, backbone, config.shards, runtime) for file in files]
        blocks = (b for part in parts_of(store, shards) for b in iterate_part(store, part))
        return list(islice(chain.from_iterable(blocks), count))


def compare(
    name: str, units: int, rounds: int, ours: Callable[[], None], theirs: Callable[[], None]
) -> None:
    """Print a line of the table.

    Args:
        name: of what is compared.
        units: tokens that it takes.
        rounds: how often, after a first time.
        ours: does it.
        theirs: does it by a plain loop.
    """
    device = resolve_device(Runtime())
    turns: list[tuple[Usage, Usage]] = []
    for _ in range(rounds + 1):
        with measured(device) as own:
            ours()
        with measured(device) as other:
            theirs()
        turns.append((own, other))
    turns = turns[1:]  # the first warms up
    ratios = [other.seconds / own.seconds for own, other in turns]
    speed = statistics.median(units / own.seconds for own, _ in turns)
    peaks = [max(its.bytes for its in side) / 1e9 for side in zip(*turns, strict=True)]
    print(
        f"| {name} | {speed:,.0f} | {statistics.median(ratios):.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}) | {peaks[0]:.2f} | {peaks[1]:.2f} |",
        flush=True,
    )


def table(config: BackboneConfig, batch_tokens: int, rounds: int) -> None:
    """Print how embedding, scoring and training compare."""
    rows = read(config, ROWS)
    with open_backbone(config, Runtime()) as backbone, TemporaryDirectory() as folder:
        assert isinstance(backbone, LanguageBackbone)
        encoded = backbone.encode(rows)
        units = sum(e.length for e in encoded)
        batches = length_batches([e.length for e in encoded], batch_tokens)
        given = [backbone._rows([encoded[i] for i in positions]) for positions in batches]
        model = backbone._model

        def bare() -> None:
            with torch.inference_mode(), backbone._precision():
                for its in given:
                    model.base_model(input_ids=its.ids, use_cache=False)

        def embed() -> None:
            with torch.inference_mode():
                for positions in batches:
                    backbone.embed([encoded[i] for i in positions])

        compare("embed", units, rounds, embed, bare)
        backbone.attach_adapter(ADAPTER, 0)
        parameters = list(backbone.adapter_parameters().values())

        def losses() -> None:
            with torch.inference_mode(), backbone._precision():
                for off in (True, False):
                    with backbone.adapter_disabled() if off else torch.no_grad():
                        for its in given:
                            said = backbone._model(input_ids=its.ids, use_cache=False).logits
                            F.cross_entropy(said[:, :-1].flatten(0, 1), its.ids[:, 1:].flatten())

        def score() -> None:
            advantages(backbone, encoded, batch_tokens, FixedNoise(1))

        compare("score", units, rounds, score, losses)
        settings = FinetuneConfig(
            adapter=ADAPTER, batch_size=BATCH, learning_rate=1e-4, batch_tokens=batch_tokens
        )
        mixture = Mixture(adaptation=rows, backbone=[], weights=np.zeros(0), alpha=0.0)
        keeping = CheckpointFile(f"{folder}/none")
        trainer = Trainer(backbone, mixture, [], settings, 0.0, 0, keeping, 1e9)
        taken = [e.length for step in range(STEPS) for e in trainer._batches.batch(step)[0]]
        optimizer = torch.optim.AdamW(parameters, lr=1e-4)
        drawn = [trainer._batches.batch(step)[0] for step in range(STEPS)]

        def train(its: Trainer = trainer) -> None:
            state = TrainingState()
            for step in range(STEPS):
                state.step = step
                its._step(state)

        def plain() -> None:
            backbone.training(True)
            for batch in drawn:
                ids = backbone._rows(batch).ids
                with backbone._precision():
                    said = backbone._model(input_ids=ids, use_cache=False).logits
                    loss = F.cross_entropy(said[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
                torch.autograd.backward(loss)
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                optimizer.zero_grad()
                loss.item()

        compare("train", sum(taken), rounds, train, plain)
        for name, noted in (("train with penalty", True), ("passed untouched each step", False)):
            careful = Trainer(backbone, mixture, [], settings, 0.3, 0, keeping, 1e9)
            if noted:
                careful.note_untouched()
            compare(name, sum(taken), rounds, partial(train, careful), train)
        some, weights = rows[BATCH:], np.ones(len(rows) - BATCH)
        mixture = Mixture(adaptation=rows[:BATCH], backbone=some, weights=weights, alpha=0.9)
        free, careful = (
            Trainer(backbone, mixture, [], settings, penalty, 0, keeping, 1e9)
            for penalty in (0.0, 0.3)
        )
        careful.note_untouched()
        steps = chain.from_iterable(free._batches.batch(step) for step in range(STEPS))
        mixed = sum(e.length for part in steps for e in part)
        ways = partial(train, careful), partial(train, free)
        compare("a mixture with penalty", mixed, rounds, *ways)
        few, projection, noise = encoded[:BATCH], Projection(512), FixedNoise(1)

        def apart() -> None:
            example_gradients(backbone, few, batch_tokens, noise, projection)

        def together() -> None:
            backbone.training(False)
            loss = backbone.losses(few).mean.sum()
            torch.autograd.grad(loss, parameters)

        compare("gradients", sum(e.length for e in few), rounds, apart, together)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("backbone", nargs="?", type=Path)
    parser.add_argument("--llama8b", type=Path, help="make such a backbone there, and take it")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row at most")
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    if given.llama8b and not given.llama8b.exists():
        make_llama(given.llama8b)
    config = BackboneConfig(path=str(given.backbone or given.llama8b), max_length=given.length)
    print(f"{datetime.now(UTC):%Y-%m-%d}, {device_name(Runtime())}, torch {torch.__version__}")
    print(f"{config.path}, {ROWS} rows of up to {given.length} tokens\n")
    print("| | tokens/s | speed of a plain loop's | GB | its GB |")
    print("|---|---:|---:|---:|---:|")
    table(config, given.batch_tokens, given.rounds)


if __name__ == "__main__":
    main()
