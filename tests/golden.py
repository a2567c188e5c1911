"""What each stage makes of a tiny run, kept to see when that changes.

``python -m tests.golden`` writes it anew: after a ``STAGE_VERSION`` was raised, or where a stage is
new.
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.numpy import load_file

from albat_core.runs.chain import Chain
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Settings, given
from flows.config import load_config
from tests.toys import write_run

KEPT = Path(__file__).with_name("golden.json")
Made = dict[str, dict[str, Any]]


def record(folder: Path) -> Made:
    """Run the whole chain on toys below a folder; return what was made, by step of the run."""
    config = load_config(str(write_run(folder, mixture={"alpha": "auto", "fall_back": False})))
    produced: dict[str, tuple[int, Settings, list[str]]] = {}
    real = ArtifactStore.produce

    def noted(
        self: ArtifactStore,
        stage: str,
        version: int,
        settings: Settings | Mapping[str, Any],
        inputs: Mapping[str, Any],
        build: Callable[[Path], Built],
    ) -> ArtifactRef:
        ref = real(self, stage, version, settings, inputs, build)
        known = settings if isinstance(settings, Settings) else given(**settings)
        produced[str(ref)] = (version, known, sorted(inputs))
        return ref

    ArtifactStore.produce = noted  # type: ignore[method-assign]
    try:
        chain = Chain(config)
        assert chain.report
    finally:
        ArtifactStore.produce = real  # type: ignore[method-assign]
    store = ArtifactStore(config.runtime.root)
    made: Made = {}
    for stage in chain.stages:
        ref = stage.refs[0]
        version, settings, inputs = produced[str(ref)]
        made[stage.label] = {
            "stage": ref.stage,
            "version": version,
            "named": settings.named,
            "shown": settings.shown,
            "inputs": inputs,
            "content": content(store.folder(ref)),
        }
    plain: Made = json.loads(json.dumps(made, default=str).replace(str(folder), "<folder>"))
    return plain


def content(folder: Path) -> dict[str, Any]:
    """Return what is in an artifact's tables and arrays: sums of numbers, digests of the rest."""
    found: dict[str, Any] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".parquet":
            table = pq.read_table(path, partitioning=None)
            found |= {f"{name}:{column}": summed(table[column]) for column in table.column_names}
        elif path.suffix == ".npy":
            found[name] = numbers(np.load(path, allow_pickle=False))
        elif path.suffix == ".safetensors" and "checkpoints" not in name:
            found |= {f"{name}:{n}": numbers(a) for n, a in load_file(path).items()}
    return found


def summed(column: pa.ChunkedArray) -> Any:
    """Return a column's numbers summed up, or a digest of its values."""
    kind = column.type
    if pa.types.is_fixed_size_list(kind):
        return numbers(column.combine_chunks().flatten().to_numpy())
    if pa.types.is_floating(kind):
        return numbers(column.drop_null().to_numpy())
    text = json.dumps(column.to_pylist(), default=repr)
    if "shard" in text or "/part-" in text:  # addresses hold keys
        return len(column)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def numbers(values: Any) -> Any:
    """Return shape, mean and root mean square of numbers, which other processors round alike."""
    if values.dtype.kind not in "fiu":
        return list(values.shape)
    wide = values.astype(np.float64)
    mean, size = (wide.mean(), np.sqrt(np.square(wide).mean())) if wide.size else (0.0, 0.0)
    return {"shape": list(values.shape), "mean": float(mean), "size": float(size)}


if __name__ == "__main__":
    torch.set_num_threads(1)  # as in the tests
    with tempfile.TemporaryDirectory() as place:
        KEPT.write_text(json.dumps(record(Path(place).resolve()), indent=1, sort_keys=True) + "\n")
    sys.stdout.write(f"wrote {KEPT}\n")
