"""Every arm of the efficacy benchmark on development documents, which choose between methods.

Those are the documents of a task that ``split.use`` leaves unused: arms trained on them are left
out, and none of them is held out. ``python -m bench.development CONFIG [TASK:SEED...]``, of all
tasks with the first seed by default, finds the benchmark's arms finished, or trains them.
"""

import sys

import numpy as np
from numpy.typing import NDArray

from albat_core.benchmark.arms import LABELS, ArmResult, measure_situation
from albat_core.benchmark.config import EfficacyConfig, Situation
from albat_core.benchmark.table import drawn_interval, shown
from albat_core.records.adapters import STAGE
from albat_core.records.losses import document_losses
from albat_core.records.runs import ALBAT
from albat_core.records.splits import UNUSED
from albat_core.runs.chain import Chain
from albat_core.seeding import numpy_generator
from albat_core.stages.evaluate import evaluate
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from flows.config import load_efficacy

DRAWS = 2000

Floats = NDArray[np.float64]


def losses(arm: ArmResult, situation: Situation) -> tuple[Floats, Floats]:
    """Return an arm's loss in nats and the units of each development document."""
    run = situation.run.model_copy(update={"seed": arm.seed})
    store = ArtifactStore(run.runtime.root)
    key = store.manifest(arm.evaluation).inputs["adapter"]
    measured = evaluate(
        ArtifactRef(stage=STAGE, key=key) if key else None,
        Chain(run).inputs.adaptation,
        [],
        run.backbone,
        run.evaluation,
        run.runtime,
        role=UNUSED,
    )
    return document_losses(store, measured)


def lines(situation: Situation, config: EfficacyConfig, seed: int) -> list[str]:
    """Return a line for each arm: its loss, and how far ALBAT's is below it."""
    first = measure_situation(situation, config, config.seeds[0])
    again = seed != config.seeds[0]
    arms = measure_situation(situation, config, seed, first) if again else first
    use = situation.run.split.use
    found = {arm.arm: losses(arm, situation) for arm in arms if arm.share <= use}
    ours, units = found[ALBAT]
    drawn = numpy_generator(seed, "development").integers(len(units), size=(DRAWS, len(units)))
    draws = np.concatenate([np.arange(len(units))[None], drawn])
    told = []
    for name, (its, _) in found.items():
        below = drawn_interval((its - ours)[draws].sum(axis=1) / units[draws].sum(axis=1))
        loss = its.sum() / units.sum()
        cells = (situation.name, f"{seed}", LABELS.get(name, name), f"{loss:.4f}")
        told.append(f"| {' | '.join(cells)} | {shown(below, '+.4f')} |")
    return told


def main() -> None:
    """Print the table."""
    path, *wanted = sys.argv[1:]
    config = load_efficacy(path, {})
    cases = [
        (situation, int(its.rpartition(":")[2]))
        for situation in config.situations
        for its in wanted or [f"{situation.name}:{config.seeds[0]}"]
        if its.rpartition(":")[0] == situation.name
    ]
    print("| task | seed | arm | loss | ALBAT below it |")
    print("|---|---:|---|---:|---|")
    for situation, seed in cases:
        print(*lines(situation, config, seed), sep="\n", flush=True)


if __name__ == "__main__":
    main()
