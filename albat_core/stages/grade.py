"""What one metric says of an arm's answers."""

from pathlib import Path

import pyarrow as pa

from albat_core.measures.metrics import grade, metric_identity
from albat_core.records.answers import read_answers
from albat_core.records.grades import GRADE_SCHEMA, GRADES, STAGE
from albat_core.records.tables import write_table
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime

STAGE_VERSION = 2


def grade_answers(
    answers: ArtifactRef, metric: str, runtime: Runtime, label: str = "grade"
) -> ArtifactRef:
    """Score every answer of an arm with one metric; no answer is written anew.

    Args:
        answers: of the arm.
        metric: its name, see ``find_metric``.
        runtime: where artifacts are kept.
        label: names the arm.

    Raises:
        ConfigError: the metric cannot be found, raises, or does not give a number for each.
        InputError: it reads nothing of the references.
        MissingDependencyError: its library is not installed.
    """
    del label
    store = ArtifactStore(runtime.root)

    def build(folder: Path) -> Built:
        table = read_answers(store, answers)
        texts = [table[name].to_pylist() for name in ("answer", "reference", "prompt")]
        scores = grade(metric, *texts)
        names = pa.array([metric] * len(scores), pa.string())
        columns = [table["example_id"], table["document"], names, pa.array(scores)]
        graded = pa.Table.from_arrays(columns, schema=GRADE_SCHEMA)
        write_table(graded, folder / GRADES)
        return Built(rows=len(scores), facts={"metrics": [metric], "means": [float(scores.mean())]})

    inputs = {"answers": answers.key, "metric": metric_identity(metric)}
    return store.produce(STAGE, STAGE_VERSION, {"metric": metric}, inputs, build)
