"""The weighted mixture as sharded Parquet with a dataset card, written and read."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import fill
from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from albat_core.records.examples import GENERATED, Example, examples_to_table, rows_beside
from albat_core.records.mixtures import (
    ADAPTATION,
    BACKBONE,
    CARD,
    CHATS,
    MIXTURE_SCHEMA,
    PROMPTS,
    STAGE,
    TEXTS,
    laid_out,
)
from albat_core.records.selections import read_selection
from albat_core.records.shards import read_examples
from albat_core.records.splits import TRAIN, read_role, role_digest
from albat_core.records.tables import row_group_rows
from albat_core.report.wording import markdown_cell
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime, StageConfig

STAGE_VERSION = 3

_FILE_BYTES = 512 << 20  # of pictures in a file
_PICTURES_AT_ONCE = 64  # selected rows that are in memory together
_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])  # as `datasets` has them
_CAPTIONS = "captions"  # the layout of rows with pictures
_LAYOUTS = {
    TEXTS: "`text` (loss on all of it);",
    PROMPTS: "`prompt` (without loss; empty and not `prompted`: a text) and `completion`;",
    CHATS: "`messages` (loss on the assistant's turns, on none with `weight` 0), and\n"
    "`tools` (JSON) where some have any;",
    _CAPTIONS: "`image` (PNG; `text` is its caption) with `frame` (height and width before\n"
    "resizing, top and left of the cut in the resized picture, in pixels);",
}
_FEATURES = {"info": {"features": {"image": {"_type": "Image"}}}}


class MixtureConfig(StageConfig):
    """How much backbone data is mixed in, and how it is written."""

    alpha: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] = "auto"
    """Mixing weight: share of the backbone data in the objective, in [0, 1); `auto`: computed from
    gradients at the surrogate (`estimate`)."""
    fall_back: bool = True
    """Whether ALBAT's adapter is that of adaptation data alone where validation documents are
    predicted no better with the mixture."""
    shard_rows: int = Field(50_000, ge=1)
    """Rows in a Parquet file of the mixture; fewer where they have large pictures."""


def write_mixture(
    adaptation: ArtifactRef,
    selection: ArtifactRef | None,
    alpha: float,
    config: MixtureConfig,
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
        first = _own_rows(own, (1 - share) / len(own))
        others = _no_rows()
        if selection is not None and share > 0:
            # pictures are too large to have all of them in memory, as texts are had
            at_once = _PICTURES_AT_ONCE if _has_pictures(first) else None
            others = _selected_rows(store, selection, share, at_once)
        files = _Files(folder / "data", config.shard_rows)
        for table in _joined(first, others):
            files.add(table)
        table = files.close()
        facts = {
            "alpha": share,
            "adaptation_rows": len(own),
            "backbone_rows": table.num_rows - len(own),
        }
        (folder / CARD).write_text(_card(table, facts, files.layouts), encoding="utf-8")
        return Built(rows=table.num_rows, facts=facts)

    return store.produce(
        STAGE,
        STAGE_VERSION,
        config.settings(without={"alpha", "fall_back"}, alpha=share),
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


def _selected_rows(
    store: ArtifactStore, selection: ArtifactRef, alpha: float, at_once: int | None
) -> Iterator[pa.Table]:
    """Yield the selected rows, in order, so many at a time (None: all)."""
    selected = read_selection(store, selection)
    for start in range(0, selected.num_rows, at_once or selected.num_rows):
        chosen = selected.slice(start, at_once)
        examples = read_examples(store, chosen["shard"].to_pylist(), chosen["row"].to_pylist())
        table = examples_to_table(examples)
        table = table.append_column("role", pa.array([BACKBONE] * len(examples)))
        table = table.append_column("weight", pa.array(chosen["weight"].to_numpy() * alpha))
        for name in ("score", "nearest_example_id", "similarity"):
            table = table.append_column(name, chosen[name])
        yield table.cast(MIXTURE_SCHEMA)


def _no_rows() -> Iterator[pa.Table]:
    yield from ()


def _joined(first: pa.Table, others: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield all tables; the first two as one, as they decide whether there are pictures."""
    second = next(others, None)
    yield first if second is None else pa.concat_tables([first, second])
    yield from others


def _has_pictures(table: pa.Table) -> bool:
    return bool(table["image"].null_count < table.num_rows)


class _Files:
    """Writes the mixture's files, in a folder for each layout where there are several."""

    def __init__(self, folder: Path, rows: int) -> None:
        self.layouts: list[str] = []
        self._pictures = False
        self._folder = folder
        self._rows = rows
        self._parts: dict[str, _Part] = {}
        self._described: list[pa.Table] = []

    def add(self, table: pa.Table) -> None:
        """Write a table's rows; the first one decides whether there are pictures."""
        if not self._parts:
            self._pictures = _has_pictures(table)
        first = sum(part.num_rows for part in self._described)
        self._described.append(table.select(["role", "source", "weight"]))
        parts = {_CAPTIONS: _published(table)} if self._pictures else laid_out(table, first)
        for name, rows in parts.items():
            if name not in self._parts:
                most = _FILE_BYTES if self._pictures else None
                self._parts[name] = _Part(self._folder / name, self._rows, most)
            self._parts[name].add(rows)

    def close(self) -> pa.Table:
        """Name the files by their number; return role, source and weight of all rows."""
        self.layouts = sorted(self._parts)
        for name, part in self._parts.items():
            part.close(self._folder if len(self._parts) == 1 else self._folder / name)
        return pa.concat_tables(self._described)


class _Part:
    """Writes the files of one layout, each of so many rows and about so many bytes at most."""

    def __init__(self, folder: Path, rows: int, most_bytes: int | None) -> None:
        self._folder = folder
        self._rows = rows
        self._bytes = most_bytes
        self._paths: list[Path] = []
        self._writer: pq.ParquetWriter | None = None
        self._room = [0, 0]  # rows and bytes that the open file still takes
        folder.mkdir(parents=True)

    def add(self, table: pa.Table) -> None:
        """Write a table's rows."""
        group = row_group_rows(table)
        while table.num_rows:
            if self._writer is None:
                path = self._folder / f"{len(self._paths)}.parquet"
                self._writer = pq.ParquetWriter(path, table.schema, compression="zstd")
                self._paths.append(path)
                self._room = [self._rows, self._bytes or 0]
            rows = table.slice(0, self._room[0])
            if self._bytes:
                rows = rows.slice(0, max(self._room[1] * rows.num_rows // rows.nbytes, 1))
            self._writer.write_table(rows, row_group_size=group)
            self._room = [self._room[0] - rows.num_rows, self._room[1] - rows.nbytes]
            if self._room[0] == 0 or (self._bytes and self._room[1] <= 0):
                self._end()
            table = table.slice(rows.num_rows)

    def _end(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def close(self, folder: Path) -> None:
        """Bring the files to where they stay, named by their number."""
        self._end()
        for number, path in enumerate(self._paths):
            path.rename(folder / f"train-{number:05d}-of-{len(self._paths):05d}.parquet")
        if folder != self._folder:
            self._folder.rmdir()


def _published(table: pa.Table) -> pa.Table:
    """Return rows with pictures in the layout that `datasets` and the hub know as such."""
    place = table.column_names.index("image")
    images = table["image"].combine_chunks()
    if isinstance(images, pa.ChunkedArray):  # more than 2 GiB
        images = pa.concat_arrays(images.chunks)
    paths = pa.nulls(len(images), pa.string())
    column = pa.StructArray.from_arrays(
        [images, paths], fields=list(_PICTURE), mask=images.is_null()
    )
    table = table.set_column(place, pa.field("image", _PICTURE), column)
    return table.replace_schema_metadata({"huggingface": json.dumps(_FEATURES)})


def _card(table: pa.Table, facts: dict[str, float], layouts: Sequence[str]) -> str:
    """Return the dataset card.

    Args:
        table: role, source and weight of all rows.
        facts: of the manifest.
        layouts: those that there are rows of.
    """
    sources = table.group_by(["role", "source"]).aggregate([("weight", "sum"), ("weight", "count")])
    rows = sorted(sources.to_pylist(), key=lambda r: (r["role"], -r["weight_sum"]))
    lines = "\n".join(
        f"| {r['role']} | {markdown_cell(r['source'])} | {r['weight_count']} | "
        f"{r['weight_sum']:.4f} |"
        for r in rows
    )
    folders = {name: f"{name}/" for name in layouts} if len(layouts) > 1 else {"default": ""}
    configs = "\n".join(
        f"- config_name: {name}\n  data_files:\n  - split: train\n    path: data/{folder}*.parquet"
        for name, folder in folders.items()
    )
    made = sum(r["weight_count"] for r in rows if r["source"] == GENERATED)
    beside = rows_beside(int(facts["backbone_rows"]), made, "selected from the backbone's corpus")
    said = " and ".join([f"{facts['adaptation_rows']} adaptation rows", *beside])
    said = fill(f"Made by albat: {said}, alpha = {facts['alpha']:.3f}.", 100)
    shown = "\n".join(_LAYOUTS[name] for name in layouts)
    recipe, place = "", ""
    if _CAPTIONS not in layouts:
        recipe, place = _recipe(layouts), "`row` (place in the mixture);\n"
    return f"""---
configs:
{configs}
---
# Weighted mixture

{said}

| role | source | rows | weight |
|---|---|---|---|
{lines}

Columns: `example_id`, `document`, `source`;
{shown}
{place}`continues` (the text goes on in the next row: no end-of-text token); `role` (`adaptation` or
`backbone`); `weight` (factor of the row's mean loss in the objective; sums to 1 over all rows and
to alpha over the backbone's); `score` (higher is better); `nearest_example_id` and `similarity`
(the nearest adaptation example, cosine in the whitened embedding space).
{recipe}
The rows keep the licence of where they come from.
"""


_TRL = "[TRL](https://huggingface.co/docs/trl)"


def _recipe(layouts: Sequence[str]) -> str:
    """Return how TRL trains on the mixture by its weights."""
    learnt = 'rows = rows.filter(lambda row: all(m.get("weight") != 0 for m in row["messages"]))'
    about = left = only = ""
    if CHATS in layouts:
        about = """
Of chats TRL learns what the assistant says where the chat template marks it with
`{% generation %}`, or is one that TRL knows: others it refuses, until `processing_class` is a
tokenizer whose `chat_template` has such marks. Rows with turns of `weight` 0 are left out below,
as TRL would learn those turns.
"""
    if len(layouts) == 1:
        plain = ""
        if CHATS in layouts:
            left, only = f"\n{learnt}", ", assistant_only_loss=True"
            plain = "args=SFTConfig(assistant_only_loss=True), "
        imported = "load_dataset"
        begins = f"""It trains in {_TRL} as it is, without the weights:
`SFTTrainer(model, {plain}train_dataset=load_dataset(folder, split="train"))`. With them, rows"""
        load = f"""rows = load_dataset(folder, split="train"){left}
args = SFTConfig(**settings{only})
rows = SFTTrainer(model, args, train_dataset=rows).train_dataset"""
    else:
        imported = "concatenate_datasets, load_dataset"
        begins = f"""Rows of different columns lie in configurations of their own:
{", ".join(layouts)}. `load_dataset(folder, "{layouts[0]}")` gives those of one. In {_TRL} rows"""
        if CHATS in layouts:
            left = f'\n    if name == "{CHATS}":\n        {learnt}'
        load = f'''parts = []
for name in {json.dumps(layouts)}:  # rows of different columns: tokenized apart, trained together
    rows = load_dataset(folder, name, split="train"){left}
    args = SFTConfig(**settings, assistant_only_loss=name == "{CHATS}")
    parts.append(SFTTrainer(model, args, train_dataset=rows).train_dataset)
rows = concatenate_datasets(
    [part.select_columns(["input_ids", "labels", "weight"]) for part in parts]
)'''
    return f"""
{begins}
are drawn as often as their weight says, and each counts by its mean loss:
{about}
```python
import numpy as np
import torch
from datasets import {imported}
from trl import SFTConfig, SFTTrainer

model, folder = "path/to/backbone", "path/to/this/folder"
steps, batch = 100, 8
settings = {{"max_length": None, "bf16": torch.cuda.is_available()}}

{load}

class MeanOfRows(SFTTrainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        logits = outputs.logits[:, :-1].float().transpose(1, 2)
        each = torch.nn.functional.cross_entropy(logits, labels[:, 1:], reduction="none")
        loss = (each.sum(dim=1) / (labels[:, 1:] != -100).sum(dim=1)).mean()
        return (loss, outputs) if return_outputs else loss

weights = np.array(rows["weight"])
drawn = np.random.default_rng(0).choice(len(rows), steps * batch, p=weights / weights.sum())
args = SFTConfig(max_steps=steps, per_device_train_batch_size=batch, **settings)
trainer = MeanOfRows(model, args, train_dataset=rows.select(drawn))
trainer.train()
```

TRL ends every text, those that continue too.
"""
