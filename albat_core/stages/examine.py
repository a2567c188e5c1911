"""What an arm comes to on a task of lm-evaluation-harness: a score of each of its rows."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from albat_core.backbones import backbone_identity, open_backbone
from albat_core.backbones.base import adapted
from albat_core.backbones.config import BackboneConfig
from albat_core.measures.lm_eval import take_task, task_identity, task_title
from albat_core.records.grades import GRADE_SCHEMA, GRADES, STAGE
from albat_core.records.tables import write_table
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime, given

STAGE_VERSION = 1


def examine(
    adapter: ArtifactRef | None,
    task: str,
    backbone_config: BackboneConfig,
    limit: int | None,
    fewshot: int | None,
    batch: int,
    trust_remote_code: bool,
    runtime: Runtime,
    label: str = "examine",
) -> ArtifactRef:
    """Have the backbone take a task with an adapter (None: without).

    Args:
        adapter: of the arm.
        task: its name or file; see ``task_identity`` for what of it is part of the key.
        backbone_config: a language model's.
        limit: rows that are asked at most, see ``take_task``.
        fewshot: examples in front of each row; None: as many as the task says.
        batch: rows read at once.
        trust_remote_code: whether Python code may run that is no part of lm-eval.
        runtime: where to compute.
        label: names the progress line.

    Returns:
        grades: a row of the task is a document, as it is for lm-eval.

    Raises:
        BackboneError: the adapter was made for another backbone, or it writes no answers.
        ConfigError: see ``take_task``.
        MissingDependencyError: lm-eval is not installed.
    """
    store = ArtifactStore(runtime.root)

    def build(folder: Path) -> Built:
        with (
            open_backbone(backbone_config, runtime) as backbone,
            adapted(backbone, store.folder(adapter) if adapter else None),
            backbone.as_transformers() as (model, tokenizer),
        ):
            rows, scores = take_task(
                task,
                model,
                tokenizer,
                limit=limit,
                fewshot=fewshot,
                batch=batch,
                trust_remote_code=trust_remote_code,
                label=label,
            )
        columns = [
            rows * len(scores),
            rows * len(scores),
            [metric for metric in scores for _ in rows],
            np.concatenate(list(scores.values())),
        ]
        arrays = [pa.array(c, f.type) for c, f in zip(columns, GRADE_SCHEMA, strict=True)]
        write_table(pa.Table.from_arrays(arrays, schema=GRADE_SCHEMA), folder / GRADES)
        facts = {
            "task": task_title(task),
            "metrics": list(scores),
            "means": [float(its.mean()) for its in scores.values()],
        }
        return Built(rows=len(rows), facts=facts)

    return store.produce(
        STAGE,
        STAGE_VERSION,
        given(task=task_title(task), limit=limit, fewshot=fewshot, batch=batch),
        {
            "adapter": adapter.key if adapter else None,
            "task": task_identity(task),
            "backbone": backbone_identity(backbone_config, runtime),
        },
        build,
    )
