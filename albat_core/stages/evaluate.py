"""What an adapter is worth: losses on held-out documents, with intervals."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
from pydantic import Field, field_validator

from albat_core.backbones import backbone_identity, loss_unit, open_backbone
from albat_core.backbones.base import FixedNoise, adapted
from albat_core.backbones.config import BackboneConfig
from albat_core.measures.lm_eval import task_title
from albat_core.measures.losses import example_losses, refuse_not_finite
from albat_core.measures.metrics import METRICS, is_name, metric_title
from albat_core.records.encodings import Encodings
from albat_core.records.losses import LOSS_SCHEMA, LOSSES, STAGE
from albat_core.records.splits import TEST, read_role, role_digest
from albat_core.records.tables import write_table
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime, StageConfig

STAGE_VERSION = 3
_OF_ANSWERS = {"metrics", "answers", "max_new_tokens", "temperature"}
_OF_TASKS = {"tasks", "task_limit", "task_batch", "fewshot", "trust_remote_code"}
"""Settings that change no loss."""


class EvaluationConfig(StageConfig):
    """How adapters are compared on the held-out documents."""

    batch_tokens: int = Field(8192, ge=1)
    """Tokens in a batch, padding included; of pictures, positions of their latents."""
    noise_levels: int = Field(32, ge=1, le=1000)
    """Noise levels of a diffusion model that a held-out example's loss is the mean of."""
    metrics: tuple[str, ...] = ()
    """Metrics of the answers that every arm writes to held-out prompts, higher is better: `rouge_l`
    (install `albat[metrics]`), `exact_match`, or a function of your own as
    `package.module:function`. None: nothing is written."""
    answers: int = Field(200, ge=1)
    """Held-out rows with prompt and answer that are answered at most, drawn by document."""
    max_new_tokens: int = Field(128, ge=1)
    """Tokens that an answer has at most."""
    temperature: float = Field(0.0, ge=0)
    """Temperature at which an answer's tokens are drawn; 0: the likeliest each time."""
    tasks: tuple[str, ...] = ()
    """Tasks of lm-evaluation-harness that every arm takes too (install `albat[lm-eval]`), higher is
    better: names that it has, such as `arc_easy`, or YAML files of yours. None: none is taken."""
    task_limit: int | None = Field(None, ge=1)
    """Rows of each task that are asked at most, the first ones; none: all."""
    task_batch: int = Field(8, ge=1)
    """Rows of a task that are read at once."""
    fewshot: int | None = Field(None, ge=0)
    """Examples in front of each row of a task; none: as many as it says itself, most often 0."""
    trust_remote_code: bool = False
    """Run Python code of tasks that is no part of lm-eval: functions that a YAML file names,
    metrics on the Hub. Off unless you have read that code."""

    @field_validator("metrics")
    @classmethod
    def _named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if strange := [name for name in value if not is_name(name)]:
            raise ValueError(
                f"expected {', '.join(METRICS)} or package.module:function, got {strange[0]!r}"
            )
        titles = [metric_title(name) for name in value]
        if again := sorted({title for title in titles if titles.count(title) > 1}):
            raise ValueError(f"expected metrics of different names, {again[0]} is there twice")
        return value

    @field_validator("tasks")
    @classmethod
    def _told_apart(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        titles = [task_title(name) for name in value]
        if again := sorted({title for title in titles if titles.count(title) > 1}):
            raise ValueError(f"expected tasks of different names, {again[0]} is there twice")
        return value


def evaluate(
    adapter: ArtifactRef | None,
    adaptation: ArtifactRef,
    encodings: Sequence[ArtifactRef],
    backbone_config: BackboneConfig,
    config: EvaluationConfig,
    runtime: Runtime,
    label: str = "evaluate",
    role: str = TEST,
) -> ArtifactRef:
    """Measure the loss of every held-out example with an adapter (None: without).

    Args:
        adapter: of the backbone.
        adaptation: the rows with their roles.
        encodings: of those rows, where they are kept.
        backbone_config: of the backbone.
        config: how it is measured.
        runtime: root and device.
        label: what progress is told as.
        role: of the rows in place of held-out ones.

    Raises:
        BackboneError: the adapter was made for another backbone, or a loss is not finite.
    """
    store = ArtifactStore(runtime.root)

    def build(folder: Path) -> Built:
        examples = read_role(store, adaptation, role)
        with (
            open_backbone(backbone_config, runtime, Encodings(store, encodings)) as backbone,
            adapted(backbone, store.folder(adapter) if adapter else None),
        ):
            encoded = backbone.encode(examples)
            totals, units = example_losses(
                backbone, encoded, config.batch_tokens, FixedNoise(config.noise_levels), label
            )
        names = [e.example_id for e in examples]
        refuse_not_finite(totals, names, "check the adapter and the backbone's weights")
        columns = [
            names,
            [e.document for e in examples],
            totals,
            units,
        ]
        arrays = [pa.array(c, f.type) for c, f in zip(columns, LOSS_SCHEMA, strict=True)]
        write_table(pa.Table.from_arrays(arrays, schema=LOSS_SCHEMA), folder / LOSSES)
        return Built(
            rows=len(examples),
            facts={"loss": float(totals.sum() / units.sum()), "unit": loss_unit(backbone_config)},
        )

    return store.produce(
        STAGE,
        STAGE_VERSION,
        config.settings(without=_OF_ANSWERS | _OF_TASKS),
        {
            "adapter": adapter.key if adapter else None,
            "heldout": role_digest(store, adaptation, role),
            "backbone": backbone_identity(backbone_config, runtime),
        },
        build,
    )
