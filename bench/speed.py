"""Speed and size of the demos: `make bench` prints the figures that docs/benchmarks.md quotes.

Ratios are measured side by side, in turns, within one process; medians are quoted.
"""

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

from albat_core.backbones import open_backbone
from albat_core.backbones.batches import length_batches
from albat_core.backbones.language.model import LanguageBackbone
from albat_core.devices import device_name, resolve_device
from albat_core.memory import measured
from albat_core.records.shards import iterate_part, parts_of
from albat_core.runs.config import RunConfig
from albat_core.sources.files import find_files
from albat_core.stages.embed import embed_part
from albat_core.stages.shard import make_shards
from albat_core.store.artifacts import ArtifactStore
from albat_core.store.stage import Runtime
from bench.pictures import scoring_against_forward, training_against_dreambooth
from flows.config import load_config

EXAMPLES = Path(__file__).parent.parent / "examples"
ROUNDS = 5


def embedding_against_forward(config: RunConfig) -> None:
    """Compare the embedding stage with bare forward passes over the same batches."""
    ratios, speeds = [], []
    with tempfile.TemporaryDirectory() as root:
        runtime = Runtime(root=root)
        device = resolve_device(runtime)
        file = next(f for f in find_files(config.corpus[0]) if "NIDDK" in f.uris[0])
        shards = make_shards(file, config.backbone, config.shards, runtime)
        store = ArtifactStore(root)
        part = parts_of(store, [shards])[0]
        with open_backbone(config.backbone, runtime) as backbone:
            assert isinstance(backbone, LanguageBackbone)
            encoded = [e for rows in iterate_part(store, part) for e in backbone.encode(rows)]
            batches = length_batches([e.length for e in encoded], config.embedding.batch_tokens)
            inputs = [backbone._rows([encoded[i] for i in b]).ids for b in batches]
            model = backbone._model.base_model
            for turn in range(ROUNDS + 1):
                with measured(device) as bare, torch.inference_mode(), backbone._precision():
                    for ids in inputs:
                        model(input_ids=ids, use_cache=False)
                with tempfile.TemporaryDirectory() as other:
                    Path(other, "shards").symlink_to(Path(root, "shards"))  # but no embeddings
                    elsewhere, settings = Runtime(root=other), config.embedding
                    with measured(device) as ours:
                        embed_part(part, "bench", None, config.backbone, settings, elsewhere)
                if turn:  # the first round warms up
                    ratios.append(bare.seconds / ours.seconds)
                    speeds.append(part.rows / ours.seconds)
    print(
        f"embedding: {statistics.median(speeds):.0f} examples/s with reading, tokenizing and "
        f"writing; {statistics.median(ratios):.0%} of the bare forward pass "
        f"(median of {ROUNDS}, {min(ratios):.0%} to {max(ratios):.0%}; goal 70%)"
    )


def whole_process(label: str, command: list[str], goal: str, **environment: str) -> None:
    """Time a command as a process of its own, with its peak memory."""
    began = time.perf_counter()
    done = subprocess.run(command, env=os.environ | environment, check=False, capture_output=True)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    state = "" if done.returncode == 0 else f" FAILED with {done.returncode}"
    print(f"{label}: {seconds:.1f} s (goal {goal}), largest process so far {peak:.2f} GB{state}")


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="leave out whole demo and test runs")
    quick = parser.parse_args().quick
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {cores} cores, {cpu_name()}")
    print(f"Python {platform.python_version()}, torch {torch.__version__}")
    print(f"computed on {device_name(Runtime())}")
    embedding_against_forward(load_config(str(EXAMPLES / "text" / "demo.yaml")))
    pictures = load_config(str(EXAMPLES / "image" / "demo.yaml"))
    training_against_dreambooth(pictures)
    scoring_against_forward(pictures)
    if quick:
        return
    albat = str(Path(sys.executable).parent / "albat")
    with tempfile.TemporaryDirectory() as root:
        demo = [albat, "demo", "--root", root]
        whole_process("demo", demo, "480 s, 4 GB")
        whole_process("demo again, all reused", demo, "20 s")
        whole_process("image demo", [*demo, "--image"], "600 s")
    whole_process("tests without installation", [sys.executable, "-m", "pytest"], "600 s")


def cpu_name() -> str:
    """Return the processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "")


if __name__ == "__main__":
    main()
