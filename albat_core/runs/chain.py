"""The chain of stages, each computed when asked for: read it as a table of contents."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from albat_core.records.adapters import steps_in_all
from albat_core.records.runs import (
    ADAPTATION_ONLY,
    ALBAT,
    ALL_DATA,
    GENERATED,
    RANDOM,
    RunArtifacts,
    StageRun,
)
from albat_core.records.selections import Selected
from albat_core.records.splits import TRAIN, VALIDATION
from albat_core.runs.arms import Arms, mix, train
from albat_core.runs.config import RunConfig
from albat_core.runs.inputs import Inputs
from albat_core.runs.parts import gradients_by_fold
from albat_core.runs.registry import Entry, register_adapter
from albat_core.runs.scoring import MOSTLY_NEW, Scoring
from albat_core.runs.steps import Execute, Step, Steps, call_here
from albat_core.stages.compare import compare_selections, export_changes
from albat_core.stages.decontaminate import decontaminate
from albat_core.stages.estimate import estimate_worth
from albat_core.stages.proxy import measure_proxy
from albat_core.stages.report import export_mixture, export_run, track_run, write_report
from albat_core.stages.retrieve import draw_candidates, retrieve_candidates, take_candidates
from albat_core.stages.select import select, select_all
from albat_core.store.artifacts import ArtifactRef, ArtifactStore


class Chain:
    """A run's stages by name; asking for one computes what it needs, or finds it finished.

    ``inputs`` go up to the index, ``scoring`` has surrogates and scores, ``arms`` are what is
    trained on mixtures; between them stands how rows are selected, and behind them the report.

    Args:
        config: of the run.
        execute: how a stage's function is called; here, or as tasks elsewhere.
        previous: an earlier selection with the same configuration, before the data changed:
            documents keep their roles, the surrogate goes on from its own, and alpha is computed at
            the same folds.
        trained: the selection that an adapter was last trained on, to compare this one with.
    """

    def __init__(
        self,
        config: RunConfig,
        execute: Execute = call_here,
        previous: Selected | None = None,
        trained: Selected | None = None,
    ) -> None:
        self.config = config
        self._earlier = previous
        self._trained = trained
        self._runtime = config.runtime
        self._store = ArtifactStore(config.runtime.root)
        self._steps = Steps(execute, self._store)
        self.inputs = Inputs(config, self._steps, self._store, previous)
        self.scoring = Scoring(
            config, self._steps, self._store, self.inputs, lambda: self.candidates, previous
        )
        self.arms = Arms(config, self._steps, self.inputs, self._added)

    @property
    def stages(self) -> list[StageRun]:
        """What was computed or reused so far, in the order in which it was asked for."""
        return self._steps.stages

    def facts(self, ref: ArtifactRef) -> Mapping[str, Any]:
        """Return what the manifest of an artifact says."""
        return self._steps.manifest(ref).facts

    @cached_property
    def retrieved(self) -> ArtifactRef:
        """Corpus examples near the adaptation examples, or all that are looked at."""
        if self.config.retrieval.pool == "corpus":
            return self._steps.run(
                "retrieve", take_candidates, shards=self.inputs.kept, runtime=self._runtime
            )
        return self._steps.run(
            "retrieve",
            retrieve_candidates,
            index_ref=self.inputs.index,
            queries_ref=self.inputs.queries,
            config=self.config.retrieval,
            runtime=self._runtime,
        )

    @cached_property
    def candidates(self) -> ArtifactRef:
        """Those of them that are no copies of adaptation rows, or of one another."""
        return self._decontaminated("leave out held-out rows", self.retrieved, self.index)

    @property
    def index(self) -> ArtifactRef | None:
        """The index of the corpus rows that are looked at; None where none are embedded."""
        return self.inputs.index if self.config.embeds_corpus else None

    @property
    def surrogate(self) -> ArtifactRef:
        """An adapter trained on the adaptation set alone."""
        return self.scoring.surrogate

    @property
    def scores(self) -> ArtifactRef:
        """Scores of the candidates."""
        return self.scoring.scores

    @cached_property
    def selection(self) -> ArtifactRef:
        """Candidates selected and weighed."""
        return self._steps.run(
            "select",
            select,
            candidates=self.candidates,
            scores=self.scores,
            config=self.config.selection,
            seed=self.config.seed,
            runtime=self._runtime,
        )

    @cached_property
    def folds(self) -> list[tuple[ArtifactRef, ArtifactRef]]:
        """Splits of the adaptation set, each with a surrogate that was trained on it.

        The first is the run's own; the others' surrogates stop where its own was best. An earlier
        selection's are taken as they are: what is new since then is held out from all of them.
        """
        c, earlier = self.config, self._earlier
        enough = earlier is not None and len(earlier.folds) > (self._chose is not None)
        if earlier and enough and not self._has_outgrown(earlier.folds):
            return list(earlier.folds)
        best = max(steps_in_all(self._store, self.surrogate), 1)
        length = {"steps": best, "epochs": None, "evaluate_every": best}
        short = c.surrogate.model_copy(update=length)
        splits: list[ArtifactRef] = []
        training: list[Step[ArtifactRef]] = []
        for fold in range(1, min(c.estimate.folds, c.split.folds)):
            name = f"fold {fold + 1}"
            split = self.inputs.split(f"split by document, {name}", fold)
            label = f"surrogate of {name}"
            mixture = mix(self._steps, c, label, split)
            splits.append(split)
            training.append(
                train(self._steps, c, self.inputs, label, short, mixture=mixture, split=split)
            )
        trained = self._steps.results(training)
        own = (self.inputs.adaptation, self.surrogate)
        return [own, *zip(splits, trained, strict=True)]

    @cached_property
    def estimate(self) -> ArtifactRef:
        """The mixing weight and what the selection is worth, computed before it is trained on."""
        c, earlier, inputs = self.config, self._earlier, self.inputs
        folds = self.folds if c.estimate.at == "surrogates" else []
        known = earlier.estimate if earlier and folds and folds == list(earlier.folds) else None
        chose = self._chose
        looked_at = [surrogate for _, surrogate in folds[:1]] if chose else []
        folds = folds[1:] if chose else folds  # what the run's own surrogate has not seen chose
        rows = (self.selection, inputs.trained_on())
        encodings = [*inputs.own_encodings, *inputs.corpus_encodings]
        return self._steps.run(
            "estimate what it is worth",
            estimate_worth,
            selection=rows[0],
            adaptation=rows[1],
            folds=folds,
            encodings=encodings,
            backbone_config=c.backbone,
            adapter=c.surrogate.adapter,
            config=c.estimate,
            seed=c.seed,
            runtime=self._runtime,
            earlier=known,
            gradients=gradients_by_fold(self._steps, c, *rows, folds, encodings, known, chose),
            chose=chose,
            looked_at=looked_at,
        )

    @property
    def alpha(self) -> float:
        """The mixing weight: configured, or computed."""
        configured = self.config.mixture.alpha
        if configured != "auto":
            return configured
        return float(self.facts(self.estimate)["alpha"])

    @cached_property
    def random_selection(self) -> ArtifactRef:
        """As many random corpus examples, of all."""
        whole = None if self.inputs.prefiltered else self.index
        drawn = self._steps.run(
            "draw random rows",
            draw_candidates,
            shards=self.inputs.corpus,
            index_ref=whole,
            selection_ref=self.selection,
            seed=self.config.seed,
            runtime=self._runtime,
        )
        kept = self._decontaminated("leave held-out rows out of random ones", drawn, whole)
        like = self.selection
        return self._steps.run(
            "take random rows", select_all, candidates=kept, like=like, runtime=self._runtime
        )

    @cached_property
    def generated_selection(self) -> ArtifactRef:
        """All rows that the backbone made."""
        taken = self._steps.run(
            "take generated rows",
            take_candidates,
            shards=[self.inputs.generated],
            runtime=self._runtime,
        )
        return self._steps.run(
            "weigh generated rows", select_all, candidates=taken, runtime=self._runtime
        )

    def _added(self, arm: str) -> tuple[ArtifactRef, float] | None:
        """Return the weighted rows that an arm adds and their mixing weight; None: it adds none."""
        if arm in (ADAPTATION_ONLY, ALL_DATA):
            return None
        if arm == RANDOM:
            return self.random_selection, self.alpha
        if arm == GENERATED:
            return self.generated_selection, self.alpha
        return self.selection, self.alpha

    @cached_property
    def proxy(self) -> ArtifactRef | None:
        """How far the corpus is from what the backbone models, where it stands for its own."""
        c, inputs = self.config, self.inputs
        if not c.proxy.enabled:
            return None
        return self._steps.run(
            "measure the proxy",
            measure_proxy,
            corpus=inputs.corpus,
            generated=inputs.generated,
            encodings=[*inputs.corpus_encodings, *inputs.generated_encodings],
            backbone_config=c.backbone,
            config=c.proxy,
            seed=c.seed,
            runtime=self._runtime,
        )

    @cached_property
    def artifacts(self) -> RunArtifacts:
        """References to all that the report tells of."""
        _ = self.selection  # what is selected is told of before the arms
        arms = self.arms.runs
        return RunArtifacts(
            corpus=self.inputs.corpus,
            proxy=self.proxy,
            adaptation=self.inputs.adaptation,
            index=self.index,
            candidates=self.candidates,
            agreement=self.scoring.agreement,
            scores=self.scores,
            selection=self.selection,
            estimate=self.estimate if self.config.mixture.alpha == "auto" else None,
            mixture=self.arms.mixture(ALBAT),
            changes=self.changes,
            arms=arms,
            stages=self.stages,
        )

    @cached_property
    def report(self) -> ArtifactRef:
        """The page about the run."""
        return self._steps.run(
            "report",
            write_report,
            run=self.artifacts,
            config=self.config,
            seed=self.config.seed,
            runtime=self._runtime,
        )

    def export(self) -> dict[str, str]:
        """Put report, adapter and mixture where the run's output is wanted; return their paths."""
        run, report = self.artifacts, self.report
        return self._steps.call(
            export_run, run=run, report=report, output=self._output, runtime=self._runtime
        )

    def export_mixture(self) -> dict[str, str]:
        """Put the mixture alone where the run's output is wanted; return its path."""
        mixture = self.arms.mixture(ALBAT)
        return self._steps.call(
            export_mixture, mixture=mixture, output=self._output, runtime=self._runtime
        )

    def track(self) -> None:
        """Show what the run came to where it is tracked."""
        if self.config.tracking:
            run, report, tracking = self.artifacts, self.report, self.config.tracked
            self._steps.call(
                track_run, run=run, report=report, tracking=tracking, runtime=self._runtime
            )

    @property
    def selected(self) -> Selected:
        """What a later selection of this run can go on from."""
        c, auto = self.config, self.config.mixture.alpha == "auto"
        at_surrogates = auto and c.estimate.at == "surrogates"
        trained = at_surrogates or c.scoring.scorer.needs_surrogate
        return Selected(
            adaptation=self.inputs.adaptation,
            prefiltered=tuple(self.inputs.kept) if self.inputs.prefiltered else (),
            surrogate=self.surrogate if trained else None,
            smaller=self.scoring.smaller_surrogate,
            scores=self.scores,
            mixture=self.arms.mixture(ALBAT),
            estimate=self.estimate if auto else None,
            folds=tuple(self.folds) if at_surrogates else (),
        )

    @cached_property
    def changes(self) -> ArtifactRef | None:
        """What differs from the selection last trained on, and whether that is worth training."""
        if self._trained is None:
            return None
        return self._steps.run(
            "compare selections",
            compare_selections,
            before=self._trained,
            after=self.selected,
            name=self.config.name,
            threshold=self.config.reselection.threshold,
            runtime=self._runtime,
        )

    def export_changes(self, changes: ArtifactRef) -> dict[str, str]:
        """Put the page of a comparison beside the run's output; return its path."""
        return self._steps.call(
            export_changes, changes=changes, output=self._output, runtime=self._runtime
        )

    def register(self, *, evaluated: bool) -> Entry:
        """Add ALBAT's adapter to the registry, with its results where it was evaluated."""
        adapter = self.arms.adapter(ALBAT)
        assert adapter is not None  # only the untouched arm has none
        return self._steps.call(
            register_adapter,
            run=self.config.name,
            adapter=adapter,
            mixture=self.arms.trained_mixture(ALBAT),
            report=self.report if evaluated else None,
            config=self.config,
            runtime=self._runtime,
        )

    @property
    def _output(self) -> str:
        return f"{self.config.output.rstrip('/')}/{self.config.name}"

    @property
    def _chose(self) -> ArtifactRef | None:
        """The split whose validation documents rows are selected by; None: by none."""
        by_them = VALIDATION in self.config.scoring.scorer.reads
        return self.inputs.adaptation if by_them else None

    def _has_outgrown(self, folds: Sequence[tuple[ArtifactRef, ArtifactRef]]) -> bool:
        """Tell whether most of what is trained on has come since surrogates were trained."""
        then, now = (self.facts(s)[TRAIN]["rows"] for s in (folds[0][0], self.inputs.adaptation))
        return bool(max(self.inputs.new_share, 1 - then / now) >= MOSTLY_NEW)

    def _decontaminated(
        self, label: str, candidates: ArtifactRef, index: ArtifactRef | None
    ) -> ArtifactRef:
        """Return the candidates that copy nothing, by embeddings too where an index has them."""
        c = self.config
        if not c.decontamination.enabled:
            return candidates
        compared = index is not None and c.decontamination.similarity is not None
        return self._steps.run(
            label,
            decontaminate,
            candidates=candidates,
            heldout_queries=self.inputs.heldout_queries if compared else None,
            queries=self.inputs.queries if compared else None,
            index=index,
            adaptation=self.inputs.adaptation,
            config=c.decontamination,
            runtime=self._runtime,
        )
