"""The stage that gives candidates their scores; the scorers are in ``scorers/``."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field

from albat_core.backbones import backbone_identity, open_backbone
from albat_core.backbones.base import Backbone, FixedNoise, adapted
from albat_core.backbones.config import BackboneConfig, SmallerBackbone
from albat_core.measures.discounts import Discount, discounted
from albat_core.measures.losses import refuse_not_finite
from albat_core.records.candidates import Candidates, read_candidates
from albat_core.records.encodings import Encodings
from albat_core.records.scores import (
    PART_STAGE,
    SCORE_SCHEMA,
    SCORES,
    STAGE,
    read_score_parts,
    read_scores,
    write_score_part,
)
from albat_core.records.shards import read_examples
from albat_core.records.splits import role_digest
from albat_core.records.tables import write_table
from albat_core.scorers import AnyScorer, scorer_meanings
from albat_core.scorers.advantage import Advantage, choose_noise_levels
from albat_core.scorers.base import Given, Scores
from albat_core.scorers.known import score_what_is_new
from albat_core.seeding import numpy_generator
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime, StageConfig

STAGE_VERSION = 4
_SAMPLE = 128  # candidates on which the number of noise levels is chosen


class ScoringConfig(StageConfig):
    """How candidates are scored."""

    scorer: AnyScorer = Field(Advantage(), description=scorer_meanings())
    discount: Discount = "shrinkage"
    """How a score allows for its standard error, so that rows of a few tokens do not rank first by
    chance: `shrinkage`: it is drawn to the mean as far as its error is large beside what rows
    differ by; `bound`: less the error; `none`. Scores without an error are as they are."""
    batch_tokens: int = Field(8192, ge=1)
    """Tokens in a batch, padding included; of pictures, positions of their latents."""
    noise_levels: Annotated[int, Field(ge=1, le=1000)] | Literal["auto"] = "auto"
    """Noise levels of a diffusion model at which a row is looked at; `auto`: as few as give the
    rows of a sample the same ranks when other noise is drawn (`rank_agreement`)."""
    rank_agreement: float = Field(0.9, gt=0, lt=1)
    """Spearman correlation that counts as the same ranks, in (0, 1). When adaptation data has
    changed, rows keep the scores of the last selection where a sample of them is ranked alike."""
    smaller: SmallerBackbone = SmallerBackbone()
    """A smaller backbone of the same family that scores in place of a large one, once it was seen
    to rank a sample of the candidates alike."""

    @property
    def by_smaller(self) -> bool:
        """Whether a smaller backbone is to score: a row at a time, by its own surrogate."""
        return self.smaller.path is not None and self.scorer.by_row


def score_candidates(
    candidates: ArtifactRef,
    surrogate: ArtifactRef | None,
    adaptation: ArtifactRef,
    encodings: Sequence[ArtifactRef],
    backbone_config: BackboneConfig,
    config: ScoringConfig,
    seed: int,
    runtime: Runtime,
    earlier: ArtifactRef | None = None,
    parts: Sequence[ArtifactRef] = (),
) -> ArtifactRef:
    """Score all candidates.

    Args:
        candidates: what is scored.
        surrogate: trained on the adaptation set's training rows; None for a scorer that reads none.
        adaptation: whose validation rows the surrogate was not trained on.
        encodings: costly inputs of the rows, where the backbone has any.
        backbone_config: what is adapted.
        config: by which scorer.
        seed: of a scorer that draws at random.
        runtime: where and with what.
        earlier: scores of an earlier surrogate, kept where the new one ranks alike, by a scorer
            that compares losses.
        parts: what ``score_part`` measured of each block; none: all is measured here.

    Raises:
        BackboneError: a score is not finite.
        ConfigError: a scorer of similarity is given candidates that are near to nothing.
        InputError: a scorer of words finds none.
    """
    store, scorer = ArtifactStore(runtime.root), config.scorer
    beside = {"seed": seed} if scorer.draws else {}
    settings = config.settings(without={"smaller"}, **beside)
    identity = backbone_identity(backbone_config, runtime)
    known_before = None
    if earlier is not None and scorer.by_losses:
        before = store.manifest(earlier)
        if (before.config, before.inputs["backbone"]) == (settings.shown, identity):
            known_before = earlier

    def build(folder: Path) -> Built:
        table = read_candidates(store, candidates)
        pool = Candidates(store, table)
        given = Given(store, adaptation, seed, config.batch_tokens)
        facts: dict[str, Any] = {}
        if parts:
            columns = scorer.conclude(read_score_parts(store, parts))
            each = [store.manifest(part).facts for part in parts]
            given.passes = sum(its["passes"] for its in each)
            facts = {name: value for name, value in each[0].items() if name != "passes"}
        elif not scorer.needs_surrogate:
            columns = scorer.score(pool, given)
        else:
            assert surrogate is not None  # whoever calls gives one to a scorer that reads it
            given.surrogate = store.folder(surrogate)
            known = Encodings(store, encodings)
            with (
                open_backbone(backbone_config, runtime, known) as backbone,
                adapted(backbone, given.surrogate),
            ):
                given.attached = backbone
                given.noise, facts = _noise(backbone, config, store, table, known_before)
                if known_before is None:
                    columns = scorer.score(pool, given)
                else:
                    columns, facts["earlier"] = score_what_is_new(
                        lambda some: scorer.score(some, given),
                        pool,
                        read_scores(store, known_before),
                        config.rank_agreement,
                    )
        remedy = "lower surrogate.learning_rate, or set backbone.dtype to float32"
        refuse_not_finite(columns["score"], table["example_id"].to_pylist(), remedy, "scores")
        if "score_error" in columns:
            errors = columns["score_error"]
            columns["score"] = discounted(columns["score"], errors, config.discount)
        write_table(_with_scores(table, columns), folder / SCORES)
        score = columns["score"]
        return Built(
            rows=table.num_rows,
            facts={
                "mean": float(score.mean()),
                "deviation": float(score.std()),
                "positive": float((score > 0).mean()),
                "passes": given.passes,
                **facts,
            },
        )

    return store.produce(
        STAGE,
        STAGE_VERSION,
        settings,
        {
            "candidates": candidates.key,
            "surrogate": surrogate.key if surrogate else None,
            **{role: role_digest(store, adaptation, role) for role in scorer.reads},
            "backbone": identity,
        }
        | ({"earlier": known_before.key} if known_before else {}),
        build,
    )


def score_part(
    candidates: ArtifactRef,
    number: int,
    surrogate: ArtifactRef,
    adaptation: ArtifactRef,
    encodings: Sequence[ArtifactRef],
    backbone_config: BackboneConfig,
    config: ScoringConfig,
    seed: int,
    runtime: Runtime,
    label: str,
    first: ArtifactRef | None = None,
) -> ArtifactRef:
    """Measure what one block of the candidates is scored by, of each row alone.

    Args:
        candidates: of which a block is scored.
        number: of the block, counted from 0.
        surrogate: see ``score_candidates``.
        adaptation: see ``score_candidates``.
        encodings: see ``score_candidates``.
        backbone_config: see ``score_candidates``.
        config: see ``score_candidates``.
        seed: see ``score_candidates``.
        runtime: see ``score_candidates``.
        label: names the block.
        first: the first block's, whose number of noise levels all have; None: this is it.
    """
    del label
    store, scorer = ArtifactStore(runtime.root), config.scorer
    settings = config.settings(without={"discount", "smaller"}, seed=seed, number=number)

    def build(folder: Path) -> Built:
        table = read_candidates(store, candidates)
        given = Given(store, adaptation, seed, config.batch_tokens)
        given.surrogate = store.folder(surrogate)
        with (
            open_backbone(backbone_config, runtime, Encodings(store, encodings)) as backbone,
            adapted(backbone, given.surrogate),
        ):
            given.attached = backbone
            given.noise, facts = _noise(backbone, config, store, table, first)
            block = Candidates(store, table).block(number)
            write_score_part(folder, scorer.measure(block, given))
        return Built(rows=len(block), facts={"passes": given.passes, **facts})

    return store.produce(
        PART_STAGE,
        STAGE_VERSION,
        settings,
        {
            "candidates": candidates.key,
            "surrogate": surrogate.key,
            **{role: role_digest(store, adaptation, role) for role in scorer.reads},
            "backbone": backbone_identity(backbone_config, runtime),
        }
        | ({"first": first.key} if first else {}),
        build,
    )


def _noise(
    backbone: Backbone,
    config: ScoringConfig,
    store: ArtifactStore,
    candidates: pa.Table,
    earlier: ArtifactRef | None,
) -> tuple[FixedNoise, dict[str, Any]]:
    """Return the noise that candidates are scored with, and what the manifest says of it."""
    if not backbone.noisy:
        return FixedNoise(), {}
    if earlier is not None:  # scores are compared with those, so they share their noise
        then = store.manifest(earlier).facts
        kept = ("noise_levels", "rank_agreement")
        facts: dict[str, Any] = {name: then[name] for name in kept if name in then}
        return FixedNoise(facts["noise_levels"]), facts
    if config.noise_levels != "auto":
        return FixedNoise(config.noise_levels), {"noise_levels": config.noise_levels}
    drawn = numpy_generator(0, "sample for noise levels").permutation(candidates.num_rows)
    sample = candidates.take(pa.array(np.sort(drawn[:_SAMPLE])))
    examples = read_examples(store, sample["shard"].to_pylist(), sample["row"].to_pylist())
    levels, tried = choose_noise_levels(
        backbone, examples, config.batch_tokens, config.rank_agreement
    )
    return FixedNoise(levels), {"noise_levels": levels, "rank_agreement": tried}


def _with_scores(candidates: pa.Table, columns: dict[str, Scores]) -> pa.Table:
    """Return the candidates with score columns; null where a scorer has none."""
    for field in list(SCORE_SCHEMA)[candidates.num_columns :]:
        values = columns.get(field.name)
        column = (
            pa.nulls(candidates.num_rows, field.type)
            if values is None
            else pa.array(values, pa.float64()).cast(field.type)
        )
        candidates = candidates.append_column(field, column)
    return candidates.cast(SCORE_SCHEMA)
