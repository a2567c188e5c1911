"""The chain of stages, each computed when asked for: read it as a table of contents."""

from functools import cached_property
from typing import cast

from albat_core.records.runs import ArmRun, RunArtifacts
from albat_core.records.selections import Selected
from albat_core.records.shards import parts_of
from albat_core.runs.config import RunConfig
from albat_core.runs.registry import Entry, register_adapter
from albat_core.runs.selecting import OWN_LABEL, Execute, Selecting, call_each
from albat_core.stages.compare import compare_selections, export_changes
from albat_core.stages.evaluate import evaluate
from albat_core.stages.fidelity import measure_fidelity
from albat_core.stages.proxy import measure_proxy
from albat_core.stages.report import export_run, write_report
from albat_core.stages.retrieve import draw_candidates, take_candidates
from albat_core.stages.sample import draw_samples
from albat_core.stages.score import WITHOUT_SURROGATE
from albat_core.stages.select import select_all
from albat_core.store.artifacts import ArtifactRef

UNTOUCHED, ADAPTATION_ONLY, RANDOM = "untouched", "adaptation_only", "random"
GENERATED, ALBAT = "generated", "albat"
LABELS = {
    UNTOUCHED: "Backbone untouched",
    ADAPTATION_ONLY: OWN_LABEL,
    RANDOM: "With random corpus rows",
    GENERATED: "With generated rows",
    ALBAT: "ALBAT",
}


class Chain(Selecting):
    """A run's stages by name; asking for one computes what it needs, or finds it finished.

    Args:
        config: of the run.
        execute: how a stage's function is called on its items; here, or as tasks elsewhere.
        previous: an earlier selection to go on from.
        trained: the selection that an adapter was last trained on, to compare this one with.
    """

    def __init__(
        self,
        config: RunConfig,
        execute: Execute = call_each,
        previous: Selected | None = None,
        trained: Selected | None = None,
    ) -> None:
        super().__init__(config, execute, previous)
        self._trained = trained
        self._evaluations: dict[str, ArtifactRef] = {}
        self._adapters: dict[str, ArtifactRef] = {}
        self._samples: dict[str, ArtifactRef] = {}

    @cached_property
    def random_selection(self) -> ArtifactRef:
        """As many random corpus examples."""
        drawn = self._run(
            "draw random rows",
            draw_candidates, self.index, self.selection, self.config.seed, self._runtime,
        )  # fmt: skip
        drawn = self._decontaminated(drawn, "leave held-out rows out of random ones")
        return self._run("take random rows", select_all, drawn, self._runtime)

    @cached_property
    def proxy(self) -> ArtifactRef | None:
        """How far the corpus is from what the backbone models, where it stands for its own."""
        c = self.config
        if not c.proxy.enabled:
            return None
        return self._run(
            "measure the proxy",
            measure_proxy,
            self.corpus, self.generated, [*self.corpus_encodings, *self.generated_encodings],
            self._backbone, c.proxy, c.seed, self._runtime,
        )  # fmt: skip

    @cached_property
    def generated_selection(self) -> ArtifactRef:
        """All rows that the backbone made."""
        taken = self._run("take generated rows", take_candidates, self.generated, self._runtime)
        return self._run("weigh generated rows", select_all, taken, self._runtime)

    def mixture(self, arm: str) -> ArtifactRef:
        """Return what an arm is trained on."""
        if arm == ADAPTATION_ONLY:
            return self.own_mixture
        if arm == RANDOM:
            selection = self.random_selection
        elif arm == GENERATED:
            selection = self.generated_selection
        else:
            selection = self.selection
        return self._mixture(self.adaptation, selection, self.alpha, LABELS[arm])

    def adapter(self, arm: str) -> ArtifactRef | None:
        """Return the adapter of an arm; none for the untouched backbone."""
        if arm == UNTOUCHED:
            return None
        if arm not in self._adapters:
            self._adapters[arm] = self._finetune(
                LABELS[arm],
                self.mixture(arm),
                self.adaptation,
                self.config.finetune,
                self.generated_encodings if arm == GENERATED else self.corpus_encodings,
            )
        return self._adapters[arm]

    def evaluation(self, arm: str) -> ArtifactRef:
        """Return the held-out losses of an arm."""
        if arm not in self._evaluations:
            c = self.config
            self._evaluations[arm] = self._run(
                f"evaluate: {LABELS[arm]}",
                evaluate,
                self.adapter(arm), self.adaptation, self.own_encodings,
                self._backbone, c.evaluation, self._runtime, LABELS[arm],
            )  # fmt: skip
        return self._evaluations[arm]

    def samples(self, arm: str) -> ArtifactRef | None:
        """Return what an arm made of the prompts; none where no prompts are configured."""
        c = self.config
        if not c.samples.all_prompts:
            return None
        if arm not in self._samples:
            self._samples[arm] = self._run(
                f"sample: {LABELS[arm]}",
                draw_samples,
                self.adapter(arm), c.samples.all_prompts,
                self._backbone, c.samples, c.seed, self._runtime, LABELS[arm],
            )  # fmt: skip
        return self._samples[arm]

    def fidelity(self, arm: str) -> ArtifactRef | None:
        """Return how close an arm's samples are to subject and prompts, where that is measured."""
        c, samples = self.config, self.samples(arm)
        if samples is None or not c.samples.measured:
            return None
        return self._run(
            f"measure: {LABELS[arm]}",
            measure_fidelity,
            samples, self.adaptation, c.samples, c.seed, self._runtime, LABELS[arm],
        )  # fmt: skip

    @cached_property
    def arms(self) -> list[ArmRun]:
        """Every arm that is compared, trained and evaluated, once all is selected."""
        _ = self.selection
        names = [UNTOUCHED, *self.config.baselines, ALBAT]
        return [
            ArmRun(
                name=name,
                label=LABELS[name],
                evaluation=self.evaluation(name),
                adapter=self.adapter(name),
                samples=self.samples(name),
                fidelity=self.fidelity(name),
            )
            for name in names
        ]

    @cached_property
    def artifacts(self) -> RunArtifacts:
        """References to all that the report tells of."""
        arms = self.arms
        return RunArtifacts(
            corpus=self.corpus,
            proxy=self.proxy,
            adaptation=self.adaptation,
            index=self.index,
            candidates=self.candidates,
            scores=self.scores,
            selection=self.selection,
            mixing=self.mixing if self.config.mixture.alpha == "auto" else None,
            mixture=self.mixture(ALBAT),
            changes=self.changes,
            arms=arms,
            stages=self.stages,
        )

    @cached_property
    def report(self) -> ArtifactRef:
        """The page about the run."""
        run = self.artifacts
        return self._run("report", write_report, run, self.config, self.config.seed, self._runtime)

    def export(self) -> dict[str, str]:
        """Put report, adapter and mixture where the run's output is wanted; return their paths."""
        run = (self.artifacts, self.report, self._output, self._runtime)
        [places] = self._execute(export_run, [run], ())
        return dict(places)

    @property
    def _output(self) -> str:
        return f"{self.config.output.rstrip('/')}/{self.config.name}"

    @property
    def selected(self) -> Selected:
        """What a later selection of this run can go on from."""
        c, auto = self.config, self.config.mixture.alpha == "auto"
        at_surrogates = auto and c.mixing.at == "surrogates"
        trained = at_surrogates or c.scoring.scorer not in WITHOUT_SURROGATE
        return Selected(
            adaptation=self.adaptation,
            surrogate=self.surrogate if trained else None,
            scores=self.scores,
            mixture=self.mixture(ALBAT),
            mixing=self.mixing if auto else None,
            folds=tuple(self.folds) if at_surrogates else (),
        )

    @cached_property
    def changes(self) -> ArtifactRef | None:
        """What differs from the selection last trained on, and whether that is worth training."""
        c = self.config
        if self._trained is None:
            return None
        return self._run(
            "compare selections",
            compare_selections,
            self._trained, self.selected, c.name, c.reselection, self._runtime,
        )  # fmt: skip

    def export_changes(self, changes: ArtifactRef) -> dict[str, str]:
        """Put the page of a comparison beside the run's output; return its path."""
        made = (changes, self._output, self._runtime)
        [places] = self._execute(export_changes, [made], ())
        return dict(places)

    def register(self, *, evaluated: bool) -> Entry:
        """Add ALBAT's adapter to the registry, with its results where it was evaluated."""
        c, report = self.config, self.report if evaluated else None
        made = (c.name, self.adapter(ALBAT), self.mixture(ALBAT), report, c, self._runtime)
        [entry] = self._execute(register_adapter, [made], ())
        return cast("Entry", entry)

    @cached_property
    def generated_encodings(self) -> list[ArtifactRef]:
        """Costly inputs of the rows that the backbone made, by part."""
        return self._encodings("encode generated rows", parts_of(self._store, [self.generated]))
