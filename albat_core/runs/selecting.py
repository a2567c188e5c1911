"""The chain of stages up to the selection and what it is worth, each computed when asked for."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

from albat_core.backbones import precomputes
from albat_core.progress import announce
from albat_core.records.adapters import steps_in_all
from albat_core.records.runs import StageRun
from albat_core.records.selections import Selected
from albat_core.records.shards import STAGE as SHARDS
from albat_core.records.shards import Part, parts_of, row_notes
from albat_core.records.splits import TEST, TRAIN, VALIDATION
from albat_core.records.vectors import EmbeddedPart
from albat_core.runs.config import RunConfig
from albat_core.sources.config import SourceConfig
from albat_core.sources.files import find_files
from albat_core.stages.decontaminate import decontaminate
from albat_core.stages.embed import embed_part, embed_queries
from albat_core.stages.encode import encode_part
from albat_core.stages.estimate import estimate_mixing
from albat_core.stages.finetune import finetune
from albat_core.stages.generate import generate_rows
from albat_core.stages.index import build_index
from albat_core.stages.mix import write_mixture
from albat_core.stages.retrieve import retrieve_candidates
from albat_core.stages.score import WITHOUT_SURROGATE, score_candidates
from albat_core.stages.select import select
from albat_core.stages.shard import list_parts, make_shards
from albat_core.stages.split import split_adaptation
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from albat_core.training.config import FinetuneConfig, continued

OWN_LABEL = "Adaptation data only"
_MOSTLY_NEW = 0.5
"""Share of new rows from which on surrogates are trained anew."""

Each = Sequence[tuple[Any, ...]]
Execute = Callable[[Callable[..., Any], Each, tuple[Any, ...]], list[Any]]


def call_each(function: Callable[..., Any], each: Each, shared: tuple[Any, ...]) -> list[Any]:
    """Call a stage on every item, one after the other, with what is shared behind it."""
    return [function(*item, *shared) for item in each]


class Selecting:
    """Stages from the corpus to the mixing weight; asking for one computes what it needs.

    Args:
        config: of the run.
        execute: how a stage's function is called on its items; here, or as tasks elsewhere.
        previous: an earlier selection with the same configuration, before the data changed:
            documents keep their roles, the surrogate goes on from its own, and alpha is computed at
            the same folds.
    """

    def __init__(
        self,
        config: RunConfig,
        execute: Execute = call_each,
        previous: Selected | None = None,
    ) -> None:
        self.config = config
        self._earlier = previous
        self._execute = execute
        self._runtime = config.runtime
        self._store = ArtifactStore(config.runtime.root)
        self._backbone = config.backbone
        self.stages: list[StageRun] = []

    @cached_property
    def corpus(self) -> list[ArtifactRef]:
        """Shards of the corpus, by file; where none is named, rows that the backbone made."""
        if not self.config.corpus:
            return [self.generated]
        return self._shards(self.config.corpus, "cut corpus")

    @cached_property
    def generated(self) -> ArtifactRef:
        """Shards of rows that the backbone made."""
        c = self.config
        return self._run(
            "generate rows", generate_rows, self._backbone, c.generated, c.seed, self._runtime
        )

    @cached_property
    def own(self) -> list[ArtifactRef]:
        """Shards of the adaptation set, by file."""
        return self._shards(self.config.adaptation, "cut adaptation set")

    @cached_property
    def heldout(self) -> list[ArtifactRef]:
        """Shards of the held-out documents, by file."""
        return self._shards(self.config.heldout, "cut held-out documents")

    @cached_property
    def adaptation(self) -> ArtifactRef:
        """The adaptation set, split by document."""
        return self._split("split by document")

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
        c, count = self.config, len(self.parts)
        encodings: Sequence[ArtifactRef | None] = self.corpus_encodings or [None] * count
        return self._map(
            "embed corpus",
            embed_part,
            [*zip(self.parts, self._names(self.parts), encodings, strict=True)],
            self._backbone, c.embedding, self._runtime,
        )  # fmt: skip

    @cached_property
    def queries(self) -> ArtifactRef:
        """Embeddings of the adaptation examples."""
        c = self.config
        return self._run(
            "embed adaptation set",
            embed_queries,
            self.adaptation, self.own_encodings, self._backbone, c.embedding, self._runtime,
        )  # fmt: skip

    @cached_property
    def index(self) -> ArtifactRef:
        """The index over the corpus."""
        c = self.config
        return self._run("index", build_index, self.embeddings, c.index, c.seed, self._runtime)

    @cached_property
    def heldout_queries(self) -> ArtifactRef:
        """Embeddings of the rows that validate or test, to keep them out of the mixture."""
        c = self.config
        return self._run(
            "embed held-out rows",
            embed_queries,
            self.adaptation, self.own_encodings, self._backbone, c.embedding, self._runtime,
            (TEST, VALIDATION), "held-out rows",
        )  # fmt: skip

    @cached_property
    def retrieved(self) -> ArtifactRef:
        """Corpus examples near the adaptation examples."""
        c = self.config
        return self._run(
            "retrieve", retrieve_candidates, self.index, self.queries, c.retrieval, self._runtime
        )

    @cached_property
    def candidates(self) -> ArtifactRef:
        """Those of them that are no copies of held-out examples."""
        return self._decontaminated(self.retrieved, "leave out held-out rows")

    @cached_property
    def own_mixture(self) -> ArtifactRef:
        """The adaptation rows alone."""
        return self._mixture(self.adaptation, None, 0.0, OWN_LABEL)

    @cached_property
    def surrogate(self) -> ArtifactRef:
        """An adapter trained on the adaptation set alone."""
        config = self.config.surrogate
        if self.config.scoring.scorer == "gradient":
            config = config.model_copy(update={"checkpoints": self.config.scoring.checkpoints})
        split, start = self.adaptation, self._earlier.surrogate if self._earlier else None
        if start is None or self._new_share >= _MOSTLY_NEW:
            return self._finetune("surrogate", self.own_mixture, split, config, [])
        short = continued(config, steps_in_all(self._store, start), self._new_share)
        return self._finetune("surrogate", self.own_mixture, split, short, [], start)

    @cached_property
    def scores(self) -> ArtifactRef:
        """Scores of the candidates; earlier ones where the surrogate ranks as its own did."""
        c, earlier = self.config, self._earlier.scores if self._earlier else None
        return self._run(
            "score",
            score_candidates,
            self.candidates, None if c.scoring.scorer in WITHOUT_SURROGATE else self.surrogate,
            self.adaptation,
            [*self.own_encodings, *self.corpus_encodings],
            self._backbone, c.scoring, c.seed, self._runtime, *([earlier] if earlier else []),
        )  # fmt: skip

    @cached_property
    def selection(self) -> ArtifactRef:
        """Candidates selected and weighed."""
        c = self.config
        return self._run(
            "select", select, self.candidates, self.scores, c.mixture, c.seed, self._runtime
        )

    @cached_property
    def folds(self) -> list[tuple[ArtifactRef, ArtifactRef]]:
        """Splits of the adaptation set, each with a surrogate that was trained on it.

        The first is the run's own; the others' surrogates stop where its own was best. An earlier
        selection's are taken as they are: what is new since then is held out from all of them.
        """
        c = self.config
        if self._earlier and self._earlier.folds and not self._has_outgrown(self._earlier.folds):
            return list(self._earlier.folds)
        found = [(self.adaptation, self.surrogate)]
        best = max(steps_in_all(self._store, self.surrogate), 1)
        short = c.surrogate.model_copy(update={"steps": best, "evaluate_every": best})
        for fold in range(1, min(c.mixing.folds, c.split.folds)):
            label = f"fold {fold + 1}"
            split = self._split(f"split by document, {label}", fold)
            name = f"surrogate of {label}"
            mixture = self._mixture(split, None, 0.0, name)
            found.append((split, self._finetune(name, mixture, split, short, [])))
        return found

    @cached_property
    def mixing(self) -> ArtifactRef:
        """The mixing weight and what the selection is worth, computed before it is trained on."""
        c, earlier = self.config, self._earlier
        folds = self.folds if c.mixing.at == "surrogates" else []
        known = earlier.mixing if earlier and folds and folds == list(earlier.folds) else None
        return self._run(
            "estimate what it is worth",
            estimate_mixing,
            self.selection, self.adaptation, folds,
            [*self.own_encodings, *self.corpus_encodings],
            self._backbone, c.surrogate.adapter, c.mixing, c.seed, self._runtime,
            *([known] if known else []),
        )  # fmt: skip

    def _split(self, label: str, fold: int = 0) -> ArtifactRef:
        """Divide the adaptation set; documents of an earlier selection keep their roles."""
        c = self.config
        earlier = [self._earlier.adaptation] if self._earlier else []
        return self._run(
            label,
            split_adaptation,
            self.own, self.heldout, c.split, c.seed, self._runtime, fold, *earlier,
        )  # fmt: skip

    @property
    def _new_share(self) -> float:
        """Share of the adaptation set's rows that the earlier selection did not have."""
        split = self._store.manifest(self.adaptation)
        return float(split.facts.get("new_rows", 0) / max(split.rows, 1))

    def _has_outgrown(self, folds: Sequence[tuple[ArtifactRef, ArtifactRef]]) -> bool:
        """Tell whether most of what is trained on has come since surrogates were trained."""
        then, now = (self.facts(split)[TRAIN]["rows"] for split in (folds[0][0], self.adaptation))
        return bool(max(self._new_share, 1 - then / now) >= _MOSTLY_NEW)

    @property
    def alpha(self) -> float:
        """The mixing weight: configured, or computed."""
        configured = self.config.mixture.alpha
        if configured != "auto":
            return configured
        return float(self.facts(self.mixing)["alpha"])

    def facts(self, ref: ArtifactRef) -> Mapping[str, Any]:
        """Return what the manifest of an artifact says."""
        return self._store.manifest(ref).facts

    def _mixture(
        self, adaptation: ArtifactRef, selection: ArtifactRef | None, alpha: float, label: str
    ) -> ArtifactRef:
        return self._run(
            f"write mixture: {label}",
            write_mixture,
            adaptation, selection, alpha, self.config.dataset, self._runtime, label,
        )  # fmt: skip

    def _decontaminated(self, candidates: ArtifactRef, label: str) -> ArtifactRef:
        c = self.config
        if not c.decontamination.enabled:
            return candidates
        return self._run(
            label,
            decontaminate,
            candidates, self.heldout_queries, self.index, self.adaptation,
            c.decontamination, self._runtime,
        )  # fmt: skip

    def _finetune(
        self,
        label: str,
        mixture: ArtifactRef,
        adaptation: ArtifactRef,
        config: FinetuneConfig,
        encodings: Sequence[ArtifactRef],
        *start: ArtifactRef,
    ) -> ArtifactRef:
        return self._run(
            f"fine-tune: {label}",
            finetune,
            mixture, adaptation, [*self.own_encodings, *encodings],
            self._backbone, config, self.config.seed, self._runtime, label, *start,
        )  # fmt: skip

    def _names(self, parts: Sequence[Part]) -> list[str]:
        """Return what each part is called: its number and, where all its rows have one, source."""
        names = []
        for number, part in enumerate(parts, start=1):
            sources = [*self._store.manifest(part.shards).facts["sources"]]
            source = f" of {sources[0]}" if len(sources) == 1 else ""
            names.append(f"shard {number}/{len(parts)}{source}")
        return names

    def _encodings(self, label: str, parts: Sequence[Part]) -> list[ArtifactRef]:
        if not precomputes(self._backbone):
            return []
        return self._map(
            label,
            encode_part,
            [*zip(parts, self._names(parts), strict=True)],
            self._backbone,
            self._runtime,
        )

    def _shards(self, sources: Sequence[SourceConfig], label: str) -> list[ArtifactRef]:
        found = self._execute(find_files, [(source,) for source in sources], ())
        return self._map(
            label, make_shards, [(file,) for files in found for file in files],
            self._backbone, self.config.shards, self._runtime,
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
