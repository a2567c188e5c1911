"""Embeddings that were computed elsewhere, in the places of those that a run computes."""

from collections.abc import Sequence
from functools import partial
from itertools import accumulate

from albat_core.records.shards import Part
from albat_core.records.vectors import EmbeddedPart
from albat_core.runs.config import RunConfig
from albat_core.runs.steps import Steps
from albat_core.sources.vectors import VectorSource, find_vectors
from albat_core.stages.adopt import (
    adopt_part,
    adopt_queries,
    find_adopted,
    keep_vectors,
    match_vectors,
)
from albat_core.stages.space import compare_spaces
from albat_core.store.artifacts import ArtifactRef


def adopted_parts(
    steps: Steps, run: RunConfig, parts: Sequence[Part], names: Sequence[str]
) -> list[EmbeddedPart]:
    """Return the parts of the corpus with the vectors that were given for their rows.

    Where an encoder embeds the adaptation set, it is compared with what was given.

    Args:
        steps: what they are submitted to.
        run: whose vectors.
        parts: of the corpus.
        names: what each is called.
    """
    vectors = _kept(steps, "read vectors", run, run.embedding.vectors.corpus)
    matches = steps.run(
        "match vectors by id", match_vectors, parts=parts, vectors=vectors, runtime=run.runtime
    )
    drawn_on = steps.manifest(matches).facts["files"]
    files = [{number: vectors[number] for number in numbers} for numbers in drawn_on]
    starts = [0, *accumulate(part.rows for part in parts)][:-1]
    adopted = steps.each(
        "take vectors of the corpus",
        [
            partial(
                adopt_part,
                part=part,
                label=name,
                start=start,
                matches=matches,
                files=its,
                runtime=run.runtime,
            )
            for part, name, start, its in zip(parts, names, starts, files, strict=True)
        ],
        lambda: steps.call(find_adopted, parts=parts, files=files, runtime=run.runtime),
    )
    if run.embedding.encoder is not None:
        steps.run(
            "compare vectors with the encoder's",
            compare_spaces,
            parts=adopted,
            backbone_config=run.backbone,
            config=run.embedding,
            seed=run.seed,
            runtime=run.runtime,
        )
    return adopted


def adopted_queries(
    steps: Steps, label: str, run: RunConfig, adaptation: ArtifactRef, roles: Sequence[str]
) -> ArtifactRef:
    """Return the vectors that were given for adaptation examples of some roles.

    Args:
        steps: what they are submitted to.
        label: of the step.
        run: whose vectors.
        adaptation: set, split by document.
        roles: of the examples.
    """
    vectors = _kept(
        steps, "read vectors of the adaptation set", run, run.embedding.vectors.adaptation
    )
    return steps.run(
        label,
        adopt_queries,
        adaptation=adaptation,
        vectors=vectors,
        runtime=run.runtime,
        roles=roles,
    )


def _kept(steps: Steps, label: str, run: RunConfig, source: VectorSource) -> list[ArtifactRef]:
    files = steps.call(find_vectors, source=source)
    calls = [steps.submit(label, keep_vectors, file=file, runtime=run.runtime) for file in files]
    return steps.results(calls)
