"""The chain of stages, each computed when asked for: read it as a table of contents."""

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from albat_core.adaptation import split_adaptation
from albat_core.artifacts import ArtifactRef, ArtifactStore
from albat_core.backbones import precomputes
from albat_core.config import RunConfig
from albat_core.corpus import list_parts, make_shards
from albat_core.dataset import write_mixture
from albat_core.embedding import EmbeddedPart, embed_part, embed_queries
from albat_core.encoding import encode_part
from albat_core.evaluation import evaluate
from albat_core.fidelity import measure_fidelity
from albat_core.finetuning.adapter import finetune
from albat_core.finetuning.trainer import FinetuneConfig
from albat_core.generation import generate_rows
from albat_core.index import build_index
from albat_core.input_files import find_files
from albat_core.mixture import select, select_all
from albat_core.progress import announce
from albat_core.report.run import ArmRun, RunArtifacts, StageRun
from albat_core.report.writing import export_run, write_report
from albat_core.retrieval import draw_candidates, retrieve_candidates, take_candidates
from albat_core.samples import draw_samples
from albat_core.scoring import score_candidates
from albat_core.shards import STAGE as SHARDS
from albat_core.shards import Part, parts_of, row_notes
from albat_core.sources import SourceConfig

UNTOUCHED, ADAPTATION_ONLY, RANDOM = "untouched", "adaptation_only", "random"
GENERATED, ALBAT = "generated", "albat"
LABELS = {
    UNTOUCHED: "Backbone untouched",
    ADAPTATION_ONLY: "Adaptation data only",
    RANDOM: "With random corpus rows",
    GENERATED: "With generated rows",
    ALBAT: "ALBAT",
}


Each = Sequence[tuple[Any, ...]]
Execute = Callable[[Callable[..., Any], Each, tuple[Any, ...]], list[Any]]


def call_each(function: Callable[..., Any], each: Each, shared: tuple[Any, ...]) -> list[Any]:
    """Call a stage on every item, one after the other, with what is shared behind it."""
    return [function(*item, *shared) for item in each]


class Chain:
    """A run's stages by name; asking for one computes what it needs, or finds it finished.

    Args:
        config: of the run.
        execute: how a stage's function is called on its items; here, or as tasks elsewhere.
    """

    def __init__(self, config: RunConfig, execute: Execute = call_each) -> None:
        self._config = config
        self._execute = execute
        self._runtime = config.runtime
        self._store = ArtifactStore(config.runtime.root)
        self._backbone = config.backbone
        self.stages: list[StageRun] = []
        self._evaluations: dict[str, ArtifactRef] = {}
        self._adapters: dict[str, ArtifactRef] = {}
        self._samples: dict[str, ArtifactRef] = {}

    @cached_property
    def corpus(self) -> list[ArtifactRef]:
        """Shards of the corpus, by file; where none is named, rows that the backbone made."""
        if not self._config.corpus:
            return [self.generated]
        return self._shards(self._config.corpus, "cut corpus")

    @cached_property
    def generated(self) -> ArtifactRef:
        """Shards of rows that the backbone made."""
        c = self._config
        return self._run(
            "generate rows", generate_rows, self._backbone, c.generated, c.seed, self._runtime
        )

    @cached_property
    def own(self) -> list[ArtifactRef]:
        """Shards of the adaptation set, by file."""
        return self._shards(self._config.adaptation, "cut adaptation set")

    @cached_property
    def heldout(self) -> list[ArtifactRef]:
        """Shards of the held-out documents, by file."""
        return self._shards(self._config.heldout, "cut held-out documents")

    @cached_property
    def adaptation(self) -> ArtifactRef:
        """The adaptation set, split by document."""
        c = self._config
        return self._run(
            "split by document",
            split_adaptation, self.own, self.heldout, c.split, c.seed, self._runtime,
        )  # fmt: skip

    @cached_property
    def parts(self) -> list[Part]:
        """Parts of the corpus."""
        [parts] = self._execute(list_parts, [(self.corpus,)], (self._runtime,))
        return list(parts)

    @cached_property
    def corpus_encodings(self) -> list[ArtifactRef]:
        """Costly inputs of the corpus, by part; none where the backbone has none."""
        return self._encodings("encode corpus", self.parts)

    @cached_property
    def own_encodings(self) -> list[ArtifactRef]:
        """Costly inputs of adaptation set and held-out documents, by part."""
        parts = parts_of(self._store, [*self.own, *self.heldout])
        return self._encodings("encode adaptation set", parts)

    @cached_property
    def embeddings(self) -> list[EmbeddedPart]:
        """Embeddings of the corpus, by part."""
        c, count = self._config, len(self.parts)
        encodings: Sequence[ArtifactRef | None] = self.corpus_encodings or [None] * count
        return self._map(
            "embed corpus",
            embed_part,
            [
                (part, f"shard {n}/{count}", encoded)
                for n, (part, encoded) in enumerate(zip(self.parts, encodings, strict=True), 1)
            ],
            self._backbone, c.embedding, self._runtime,
        )  # fmt: skip

    @cached_property
    def queries(self) -> ArtifactRef:
        """Embeddings of the adaptation examples."""
        c = self._config
        return self._run(
            "embed adaptation set",
            embed_queries,
            self.adaptation, self.own_encodings, self._backbone, c.embedding, self._runtime,
        )  # fmt: skip

    @cached_property
    def index(self) -> ArtifactRef:
        """The index over the corpus."""
        c = self._config
        return self._run("index", build_index, self.embeddings, c.index, c.seed, self._runtime)

    @cached_property
    def candidates(self) -> ArtifactRef:
        """Corpus examples near the adaptation examples."""
        c = self._config
        return self._run(
            "retrieve", retrieve_candidates, self.index, self.queries, c.retrieval, self._runtime
        )

    @cached_property
    def surrogate(self) -> ArtifactRef:
        """An adapter trained on the adaptation set alone."""
        mixture = self.mixture(ADAPTATION_ONLY)
        return self._finetune("surrogate", mixture, self._config.surrogate, [])

    @cached_property
    def scores(self) -> ArtifactRef:
        """Scores of the candidates."""
        c = self._config
        return self._run(
            "score",
            score_candidates,
            self.candidates, self.surrogate, self.corpus_encodings,
            self._backbone, c.scoring, self._runtime,
        )  # fmt: skip

    @cached_property
    def selection(self) -> ArtifactRef:
        """Candidates selected and weighed."""
        c = self._config
        return self._run("select", select, self.candidates, self.scores, c.mixture, self._runtime)

    @cached_property
    def random_selection(self) -> ArtifactRef:
        """As many random corpus examples."""
        drawn = self._run(
            "draw random rows",
            draw_candidates, self.index, self.selection, self._config.seed, self._runtime,
        )  # fmt: skip
        return self._run("take random rows", select_all, drawn, self._runtime)

    @cached_property
    def generated_selection(self) -> ArtifactRef:
        """All rows that the backbone made."""
        taken = self._run("take generated rows", take_candidates, self.generated, self._runtime)
        return self._run("weigh generated rows", select_all, taken, self._runtime)

    def mixture(self, arm: str) -> ArtifactRef:
        """Return what an arm is trained on."""
        selection: ArtifactRef | None = None
        if arm == RANDOM:
            selection = self.random_selection
        elif arm == GENERATED:
            selection = self.generated_selection
        elif arm == ALBAT:
            selection = self.selection
        c = self._config
        return self._run(
            f"write mixture: {LABELS[arm]}",
            write_mixture,
            self.adaptation, selection, c.mixture.alpha, c.dataset, self._runtime, LABELS[arm],
        )  # fmt: skip

    def adapter(self, arm: str) -> ArtifactRef | None:
        """Return the adapter of an arm; none for the untouched backbone."""
        if arm == UNTOUCHED:
            return None
        if arm not in self._adapters:
            self._adapters[arm] = self._finetune(
                LABELS[arm],
                self.mixture(arm),
                self._config.finetune,
                self.generated_encodings if arm == GENERATED else self.corpus_encodings,
            )
        return self._adapters[arm]

    def evaluation(self, arm: str) -> ArtifactRef:
        """Return the held-out losses of an arm."""
        if arm not in self._evaluations:
            c = self._config
            self._evaluations[arm] = self._run(
                f"evaluate: {LABELS[arm]}",
                evaluate,
                self.adapter(arm), self.adaptation, self.own_encodings,
                self._backbone, c.evaluation, self._runtime, LABELS[arm],
            )  # fmt: skip
        return self._evaluations[arm]

    def samples(self, arm: str) -> ArtifactRef | None:
        """Return what an arm made of the prompts; none where no prompts are configured."""
        c = self._config
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
        c, samples = self._config, self.samples(arm)
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
        names = [UNTOUCHED, *self._config.baselines, ALBAT]
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
            adaptation=self.adaptation,
            index=self.index,
            candidates=self.candidates,
            scores=self.scores,
            selection=self.selection,
            mixture=self.mixture(ALBAT),
            arms=arms,
            stages=self.stages,
        )

    @cached_property
    def report(self) -> ArtifactRef:
        """The page about the run."""
        run = self.artifacts
        return self._run(
            "report", write_report, run, self._config, self._config.seed, self._runtime
        )

    def export(self) -> dict[str, str]:
        """Put report, adapter and mixture where the run's output is wanted; return their paths."""
        c = self._config
        output = f"{c.output.rstrip('/')}/{c.name}"
        run = (self.artifacts, self.report, output, self._runtime)
        [places] = self._execute(export_run, [run], ())
        return dict(places)

    def _finetune(
        self,
        label: str,
        mixture: ArtifactRef,
        config: FinetuneConfig,
        encodings: Sequence[ArtifactRef],
    ) -> ArtifactRef:
        return self._run(
            f"fine-tune: {label}",
            finetune,
            mixture, self.adaptation, [*self.own_encodings, *encodings],
            self._backbone, config, self._config.seed, self._runtime, label,
        )  # fmt: skip

    @cached_property
    def generated_encodings(self) -> list[ArtifactRef]:
        """Costly inputs of the rows that the backbone made, by part."""
        return self._encodings("encode generated rows", parts_of(self._store, [self.generated]))

    def _encodings(self, label: str, parts: Sequence[Part]) -> list[ArtifactRef]:
        if not precomputes(self._backbone):
            return []
        return self._map(
            label,
            encode_part,
            [(part, f"shard {n}/{len(parts)}") for n, part in enumerate(parts, 1)],
            self._backbone,
            self._runtime,
        )

    def _shards(self, sources: Sequence[SourceConfig], label: str) -> list[ArtifactRef]:
        found = self._execute(find_files, [(source,) for source in sources], ())
        return self._map(
            label, make_shards, [(file,) for files in found for file in files],
            self._backbone, self._config.shards, self._runtime,
        )  # fmt: skip

    def _run(self, label: str, stage: Callable[..., Any], *args: Any) -> ArtifactRef:
        """Run a stage and note it."""
        ref: ArtifactRef = self._map(label, stage, [()], *args)[0]
        return ref

    def _map(self, label: str, stage: Callable[..., Any], each: Each, *args: Any) -> list[Any]:
        """Run a stage on every item and note it."""
        began = time.perf_counter()
        results = self._execute(stage, each, args)
        refs = [r.embeddings if isinstance(r, EmbeddedPart) else r for r in results]
        if refs and all(noted.label != label for noted in self.stages):
            done = StageRun(label=label, refs=refs)
            self.stages.append(done)
            rows = sum(self._store.manifest(ref).rows for ref in refs)
            cut = [self._store.manifest(ref).facts for ref in refs if ref.stage == SHARDS]
            announce(label, rows, time.perf_counter() - began, done.reused, row_notes(cut))
        return results
