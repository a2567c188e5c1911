"""Which surrogate scores the candidates: the run's own, or one of a smaller backbone."""

from collections.abc import Callable
from functools import cached_property

from albat_core.backbones import backbone_identity
from albat_core.backbones.config import BackboneConfig
from albat_core.records.adapters import rate_found, steps_in_all
from albat_core.records.runs import ADAPTATION_ONLY, LABELS
from albat_core.records.selections import Selected
from albat_core.records.splits import TRAIN
from albat_core.runs.arms import mix, train
from albat_core.runs.config import RunConfig
from albat_core.runs.inputs import Inputs
from albat_core.runs.parts import score_by_block
from albat_core.runs.steps import Steps
from albat_core.stages.agree import draw_sample, measure_agreement
from albat_core.stages.score import score_candidates
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from albat_core.training.config import continued, in_steps

MOSTLY_NEW = 0.5
"""Share of new rows from which on surrogates are trained anew."""


class Scoring:
    """Surrogates, and the scores of the candidates by one of them.

    Args:
        config: of the run.
        steps: what stages are submitted to.
        store: where artifacts are.
        inputs: of the run.
        candidates: gives the run's.
        earlier: a selection to go on from.
    """

    def __init__(
        self,
        config: RunConfig,
        steps: Steps,
        store: ArtifactStore,
        inputs: Inputs,
        candidates: Callable[[], ArtifactRef],
        earlier: Selected | None,
    ) -> None:
        self._config = config
        self._steps = steps
        self._store = store
        self._inputs = inputs
        self._candidates = candidates
        self._earlier = earlier

    @cached_property
    def surrogate(self) -> ArtifactRef:
        """An adapter of the backbone, trained on the adaptation set alone."""
        start = self._earlier.surrogate if self._earlier else None
        return self._trained("surrogate", self._config.backbone, start)

    @cached_property
    def smaller_surrogate(self) -> ArtifactRef | None:
        """One of the smaller backbone, trained the same way; None where none is to score."""
        if self._smaller is None:
            return None
        start = self._earlier.smaller if self._earlier else None
        identity = backbone_identity(self._smaller, self._config.runtime)
        if start is not None and self._store.manifest(start).inputs["backbone"] != identity:
            start = None
        return self._trained("smaller surrogate", self._smaller, start)

    @cached_property
    def agreement(self) -> ArtifactRef | None:
        """How far both rank a sample alike; None where no smaller backbone is to score."""
        c, smaller = self._config, self._smaller
        if smaller is None:
            return None
        sample = self._sample
        own = self._scored("score a sample", sample, c.backbone, self.surrogate)
        other = self._scored(
            "score a sample by the smaller backbone", sample, smaller, self.smaller_surrogate
        )
        return self._steps.run(
            "compare with the smaller backbone",
            measure_agreement,
            scores=own,
            smaller_scores=other,
            smaller=c.scoring.smaller,
            seed=c.seed,
            runtime=c.runtime,
        )

    @cached_property
    def scores(self) -> ArtifactRef:
        """Scores of the candidates; earlier ones where the surrogate ranks as its own did."""
        c, earlier = self._config, self._earlier.scores if self._earlier else None
        agreement, smaller = self.agreement, self._smaller  # tokens are compared before trainings
        backbone, surrogate = c.backbone, None
        if agreement and smaller and self._steps.manifest(agreement).facts["scored_by_smaller"]:
            backbone, surrogate = smaller, self.smaller_surrogate
        elif c.scoring.scorer.needs_surrogate:
            surrogate = self.surrogate
        return self._scored("score", self._candidates(), backbone, surrogate, earlier)

    @property
    def _smaller(self) -> BackboneConfig | None:
        """The smaller backbone that is to score; None: there is none."""
        scoring = self._config.scoring
        return scoring.smaller.of(self._config.backbone) if scoring.by_smaller else None

    @property
    def _sample(self) -> ArtifactRef:
        """Candidates on which both are compared."""
        c = self._config
        return self._steps.run(
            "draw a sample",
            draw_sample,
            candidates=self._candidates(),
            backbone_config=c.backbone,
            smaller=c.scoring.smaller,
            seed=c.seed,
            runtime=c.runtime,
        )

    def _trained(
        self, label: str, backbone: BackboneConfig, start: ArtifactRef | None
    ) -> ArtifactRef:
        """Return a surrogate, which goes on from an earlier one unless most rows are new."""
        c, inputs = self._config, self._inputs
        config = c.surrogate
        if kept := c.scoring.scorer.surrogate_checkpoints:
            config = config.model_copy(update={"checkpoints": kept})
        if inputs.new_share >= MOSTLY_NEW:
            start = None
        if start is not None:
            reached, found = steps_in_all(self._store, start), rate_found(self._store, start)
            rows = self._steps.manifest(inputs.adaptation).facts[TRAIN]["rows"]
            whole = in_steps(config, rows)
            config = continued(whole, reached, inputs.new_share, found or 1.0)
        training = train(
            self._steps,
            c,
            inputs,
            label,
            config,
            mixture=mix(self._steps, c, LABELS[ADAPTATION_ONLY], inputs.adaptation),
            split=inputs.adaptation,
            start=start,
            backbone=backbone,
        )
        return self._steps.results([training])[0]

    def _scored(
        self,
        label: str,
        candidates: ArtifactRef,
        backbone: BackboneConfig,
        surrogate: ArtifactRef | None,
        earlier: ArtifactRef | None = None,
    ) -> ArtifactRef:
        c, inputs = self._config, self._inputs
        encodings = [*inputs.own_encodings, *inputs.corpus_encodings]
        parts: list[ArtifactRef] = []
        # of an earlier selection the losses are taken over, one by one
        if surrogate and c.scoring.scorer.by_row and not (earlier and c.scoring.scorer.by_losses):
            given = (candidates, surrogate, inputs.adaptation, encodings)
            parts = score_by_block(self._steps, c, backbone, *given)
        return self._steps.run(
            label,
            score_candidates,
            candidates=candidates,
            surrogate=surrogate,
            adaptation=inputs.adaptation,
            encodings=encodings,
            backbone_config=backbone,
            config=c.scoring,
            seed=c.seed,
            runtime=c.runtime,
            earlier=earlier,
            parts=parts,
        )
