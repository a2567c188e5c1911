"""The weighted mixture as sharded Parquet with a dataset card, written and read."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from albat_core.adaptation import read_role, role_digest
from albat_core.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.mixture import read_selection
from albat_core.records import (
    ADAPTATION,
    BACKBONE,
    MIXTURE_SCHEMA,
    TRAIN,
    Example,
    examples_to_table,
    read_table,
    table_to_examples,
    write_table,
)
from albat_core.shards import read_rows
from albat_core.stage import Runtime, StageConfig

STAGE = "mixture"
STAGE_VERSION = 1


class DatasetConfig(StageConfig):
    """How the mixture is written."""

    shard_rows: int = Field(50_000, ge=1)
    """Rows in a Parquet file of the mixture."""


@dataclass(frozen=True)
class Mixture:
    """A mixture that was read: L = (1 - alpha) mean l(adaptation) + alpha sum w_j l(backbone_j).

    Args:
        adaptation: training examples of the adaptation set.
        backbone: selected corpus examples.
        weights: (n_backbone,) float64, sums to 1.
        alpha: mixing weight, in [0, 1).
    """

    adaptation: list[Example]
    backbone: list[Example]
    weights: NDArray[np.float64]
    alpha: float


def write_mixture(
    adaptation: ArtifactRef,
    selection: ArtifactRef | None,
    alpha: float,
    config: DatasetConfig,
    runtime: Runtime,
    label: str = "",
) -> ArtifactRef:
    """Write adaptation and selected rows with their weights in the objective.

    A row's weight is its factor in the objective: (1 - alpha) / n for each of n adaptation rows,
    alpha w_j for backbone rows; all of them sum to 1.

    Args:
        adaptation: its training rows are taken.
        selection: weighted corpus rows; None: adaptation rows alone, whatever alpha.
        alpha: mixing weight, in [0, 1).
        config: how it is written.
        runtime: where artifacts are kept.
        label: names the task's run.
    """
    del label
    store = ArtifactStore(runtime.root)
    share = alpha if selection is not None else 0.0

    def build(folder: Path) -> Built:
        own = read_role(store, adaptation, TRAIN)
        tables = [_own_rows(own, (1 - share) / len(own))]
        if selection is not None and share > 0:
            tables.append(_selected_rows(store, selection, share))
        table = pa.concat_tables(tables)
        files = -(-table.num_rows // config.shard_rows)
        for number in range(files):
            rows = table.slice(number * config.shard_rows, config.shard_rows)
            write_table(rows, folder / "data" / f"train-{number:05d}-of-{files:05d}.parquet")
        facts = {
            "alpha": share,
            "adaptation_rows": len(own),
            "backbone_rows": table.num_rows - len(own),
        }
        (folder / "README.md").write_text(_card(table, facts))
        return Built(rows=table.num_rows, facts=facts)

    return store.produce(
        STAGE,
        STAGE_VERSION,
        config.model_dump(mode="json") | {"alpha": share},
        {
            "adaptation": role_digest(store, adaptation, TRAIN),
            "selection": selection.key if selection is not None else None,
        },
        build,
    )


def _own_rows(examples: list[Example], weight: float) -> pa.Table:
    table = examples_to_table(examples)
    table = table.append_column("role", pa.array([ADAPTATION] * len(examples)))
    table = table.append_column("weight", pa.array([weight] * len(examples), pa.float64()))
    for name in ("score", "nearest_example_id", "similarity"):
        field = MIXTURE_SCHEMA.field(name)
        table = table.append_column(field, pa.nulls(len(examples), field.type))
    return table.cast(MIXTURE_SCHEMA)


def _selected_rows(store: ArtifactStore, selection: ArtifactRef, alpha: float) -> pa.Table:
    chosen = read_selection(store, selection)
    examples = read_rows(store, chosen["shard"].to_pylist(), chosen["row"].to_pylist())
    table = examples_to_table(examples)
    table = table.append_column("role", pa.array([BACKBONE] * len(examples)))
    table = table.append_column("weight", pa.array(chosen["weight"].to_numpy() * alpha))
    for name in ("score", "nearest_example_id", "similarity"):
        table = table.append_column(name, chosen[name])
    return table.cast(MIXTURE_SCHEMA)


def read_mixture(store: ArtifactStore, ref: ArtifactRef) -> Mixture:
    """Return a mixture with its weights brought back to those of the objective's two sums."""
    files = sorted((store.folder(ref) / "data").glob("*.parquet"))
    table = pa.concat_tables([read_table(file) for file in files])
    role = table["role"].to_numpy(zero_copy_only=False)
    examples = table_to_examples(table)
    weights = table["weight"].to_numpy()[role == BACKBONE]
    alpha = float(store.manifest(ref).facts["alpha"])
    return Mixture(
        adaptation=[e for e, r in zip(examples, role, strict=True) if r == ADAPTATION],
        backbone=[e for e, r in zip(examples, role, strict=True) if r == BACKBONE],
        weights=weights / weights.sum() if len(weights) else weights,
        alpha=alpha if len(weights) else 0.0,
    )


def _card(table: pa.Table, facts: dict[str, float]) -> str:
    sources = table.group_by(["role", "source"]).aggregate([("weight", "sum"), ("weight", "count")])
    rows = sorted(sources.to_pylist(), key=lambda r: (r["role"], -r["weight_sum"]))
    lines = "\n".join(
        f"| {r['role']} | {r['source']} | {r['weight_count']} | {r['weight_sum']:.4f} |"
        for r in rows
    )
    return f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
---
# Weighted mixture

Made by albat: {facts["adaptation_rows"]} adaptation rows and {facts["backbone_rows"]} rows selected
from the backbone's corpus, alpha = {facts["alpha"]:.3f}.

| role | source | rows | weight |
|---|---|---|---|
{lines}

Columns: `example_id`, `document`, `source`; `text` (the whole training text) with `prompt` (its
beginning, without loss; null: loss on all of it), or `messages` (loss on the assistant's turns);
`continues` (the text goes on in the next row: no end-of-text token); `role` (`adaptation` or
`backbone`); `weight` (factor of the row's mean loss in the objective; sums to 1 over all rows and
to alpha over the backbone's); `score` (higher is better); `nearest_example_id` and `similarity`
(the nearest adaptation example, cosine in the whitened embedding space).

The rows keep the licence of where they come from.
"""
