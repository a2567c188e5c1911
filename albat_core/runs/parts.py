"""Work on the device in parts, which several devices take side by side."""

from collections.abc import Sequence

from albat_core.backbones.config import BackboneConfig
from albat_core.records.candidates import block_count
from albat_core.records.indexes import Coded
from albat_core.records.vectors import EmbeddedPart
from albat_core.runs.config import RunConfig
from albat_core.runs.steps import Step, Steps
from albat_core.stages.estimate import take_gradients
from albat_core.stages.index import code_rows, find_index, groups, learn_cells
from albat_core.stages.score import score_part
from albat_core.store.artifacts import ArtifactRef


def score_by_block(
    steps: Steps,
    run: RunConfig,
    backbone: BackboneConfig,
    candidates: ArtifactRef,
    surrogate: ArtifactRef,
    adaptation: ArtifactRef,
    encodings: Sequence[ArtifactRef],
) -> list[ArtifactRef]:
    """Return what was measured of each block of candidates; none where there is but one.

    Args:
        steps: what they are submitted to.
        run: whose scorer, which looks at each row alone.
        backbone: that scores: the run's, or a smaller one.
        candidates: what is scored.
        surrogate: see ``score_candidates``.
        adaptation: see ``score_candidates``.
        encodings: see ``score_candidates``.
    """
    count = block_count(steps.manifest(candidates).rows)
    if count < 2:
        return []

    def scoring(label: str, number: int, first: ArtifactRef | None) -> Step[ArtifactRef]:
        return steps.submit(
            label,
            score_part,
            candidates=candidates,
            number=number,
            surrogate=surrogate,
            adaptation=adaptation,
            encodings=encodings,
            backbone_config=backbone,
            config=run.scoring,
            seed=run.seed,
            runtime=run.runtime,
            label=f"block {number + 1}/{count}",
            first=first,
        )

    first = steps.results([scoring("score the first rows", 0, None)])[0]
    rest = [scoring("score the other rows", number, first) for number in range(1, count)]
    return [first, *steps.results(rest)]


def gradients_by_fold(
    steps: Steps,
    run: RunConfig,
    selection: ArtifactRef,
    adaptation: ArtifactRef,
    folds: Sequence[tuple[ArtifactRef, ArtifactRef]],
    encodings: Sequence[ArtifactRef],
    earlier: ArtifactRef | None,
    chose: ArtifactRef | None,
) -> list[ArtifactRef]:
    """Return the gradients at each fold.

    Args:
        steps: what they are submitted to.
        run: whose estimate.
        selection: see ``estimate_worth``.
        adaptation: see ``estimate_worth``.
        folds: see ``estimate_worth``.
        encodings: see ``estimate_worth``.
        earlier: see ``estimate_worth``.
        chose: see ``estimate_worth``.
    """
    taking = [
        steps.submit(
            "take gradients",
            take_gradients,
            selection=selection,
            adaptation=adaptation,
            fold=fold,
            encodings=encodings,
            backbone_config=run.backbone,
            config=run.estimate,
            seed=run.seed,
            runtime=run.runtime,
            label=f"fold {number}",
            earlier=earlier,
            chose=chose,
        )
        for number, fold in enumerate(folds, start=1)
    ]
    return steps.results(taking)


def code_by_group(steps: Steps, run: RunConfig, parts: Sequence[EmbeddedPart]) -> Coded | None:
    """Return rows of the corpus in cells of its index; None where one process does, or has done.

    Args:
        steps: what they are submitted to.
        run: whose index.
        parts: of the corpus, in order.
    """
    grouped = groups(parts, run.index, run.runtime)
    if not grouped or steps.call(find_index, parts, run.index, run.seed, run.runtime):
        return None
    cells = steps.run("learn cells", learn_cells, parts, run.index, run.seed, run.runtime)
    coding = [
        steps.submit(
            "code rows",
            code_rows,
            cells=cells,
            parts=group,
            config=run.index,
            runtime=run.runtime,
            label=f"group {number}/{len(grouped)}",
        )
        for number, group in enumerate(grouped, start=1)
    ]
    return Coded(cells=cells, groups=tuple(steps.results(coding)))
