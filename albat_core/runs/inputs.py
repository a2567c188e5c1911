"""What a run reads: corpus and adaptation set, cut, split, embedded and indexed."""

from collections.abc import Sequence
from functools import cached_property, partial
from itertools import chain, islice

from albat_core.backbones import precomputes
from albat_core.records import indexes
from albat_core.records.runs import ALL_DATA
from albat_core.records.selections import Selected
from albat_core.records.shards import Part, parts_of
from albat_core.records.splits import TEST, TRAIN, VALIDATION
from albat_core.records.vectors import EmbeddedPart
from albat_core.runs.adopting import adopted_parts, adopted_queries
from albat_core.runs.config import RunConfig
from albat_core.runs.parts import code_by_group
from albat_core.runs.steps import Steps
from albat_core.sources.config import SourceConfig
from albat_core.sources.files import find_files
from albat_core.stages.embed import embed_part, embed_queries, find_embedded
from albat_core.stages.encode import encode_part, find_encoded
from albat_core.stages.generate import generate_rows
from albat_core.stages.index import build_index
from albat_core.stages.prefilter import prefilter
from albat_core.stages.retrieve import take_candidates
from albat_core.stages.shard import find_shards, list_parts, make_shards, refuse_barren
from albat_core.stages.split import split_adaptation
from albat_core.store.artifacts import ArtifactRef, ArtifactStore

_TOO_MANY = 2  # times the rows that a prefilter keeps, by selecting again and again


class Inputs:
    """The stages up to the index; asking for one computes what it needs.

    Args:
        config: of the run.
        steps: what stages are submitted to.
        store: where artifacts are.
        earlier: a selection whose documents keep their roles.
    """

    def __init__(
        self, config: RunConfig, steps: Steps, store: ArtifactStore, earlier: Selected | None
    ) -> None:
        self._config = config
        self._steps = steps
        self._store = store
        self._earlier = earlier

    @cached_property
    def corpus(self) -> list[ArtifactRef]:
        """Shards of the corpus, by file; where none is named, rows that the backbone made."""
        if not self._config.corpus:
            return [self.generated]
        return self._shards("cut corpus", self._config.corpus)

    @cached_property
    def generated(self) -> ArtifactRef:
        """Shards of rows that the backbone made."""
        c = self._config
        return self._steps.run(
            "generate rows",
            generate_rows,
            backbone_config=c.backbone,
            config=c.generated,
            seed=c.seed,
            runtime=c.runtime,
        )

    @cached_property
    def own(self) -> list[ArtifactRef]:
        """Shards of the adaptation set, by file."""
        return self._shards("cut adaptation set", self._config.adaptation)

    @cached_property
    def heldout(self) -> list[ArtifactRef]:
        """Shards of the held-out documents, by file."""
        return self._shards("cut held-out documents", self._config.heldout)

    @cached_property
    def adaptation(self) -> ArtifactRef:
        """The adaptation set, split by document."""
        return self.split("split by document")

    def split(self, label: str, fold: int | None = 0, use: float | None = None) -> ArtifactRef:
        """Return the adaptation set split otherwise; documents of an earlier one keep their roles.

        Args:
            label: what the step is called.
            fold: which part of the documents that are not held out validates; None: none.
            use: share of those documents that is used; None: as configured.
        """
        c = self._config
        config = c.split if use is None else c.split.model_copy(update={"use": use})
        return self._steps.run(
            label,
            split_adaptation,
            shards=self.own,
            heldout=self.heldout,
            config=config,
            seed=c.seed,
            runtime=c.runtime,
            fold=fold,
            previous=self._earlier.adaptation if self._earlier else None,
        )

    def looked_at(self, arm: str) -> ArtifactRef:
        """Return the split by whose validation documents an arm's best step is found."""
        if arm == ALL_DATA:
            return self.split("split by document, all in use", use=1.0)
        return self.adaptation

    def trained_on(self, arm: str = "") -> ArtifactRef:
        """Return the split whose training rows an arm has in the end; none is named: ALBAT's."""
        if not self._config.refit:
            return self.looked_at(arm)
        use = 1.0 if arm == ALL_DATA else None
        return self.split("split by document, all to train on", fold=None, use=use)

    @property
    def new_share(self) -> float:
        """Share of the adaptation set's rows that the earlier selection did not have."""
        facts = self._store.manifest(self.adaptation).facts
        return float(facts["new_rows"] / facts["own_rows"]) if "new_rows" in facts else 0.0

    @cached_property
    def kept(self) -> list[ArtifactRef]:
        """Shards of the corpus rows that are looked at: all, or those that the prefilter keeps."""
        c = self._config
        _ = self._whole  # ids that occur twice are refused first
        if not self.prefiltered:
            return self.corpus
        every = self._steps.run(
            "list the corpus", take_candidates, shards=self.corpus, runtime=c.runtime
        )
        earlier = self._kept_before(every)
        more = self._steps.run(
            "prefilter",
            prefilter,
            corpus=every,
            adaptation=self.adaptation,
            config=c.prefilter,
            runtime=c.runtime,
            earlier=earlier,
        )
        return [*earlier, more]

    @property
    def prefiltered(self) -> bool:
        """Whether some corpus rows are passed over by their words."""
        return self._config.prefilter.share < 1

    @cached_property
    def parts(self) -> list[Part]:
        """Parts of the corpus rows that are looked at."""
        return parts_of(self._store, self.kept) if self.prefiltered else self._whole

    @cached_property
    def _whole(self) -> list[Part]:
        """Parts of the corpus."""
        return self._steps.call(list_parts, shards=self.corpus, runtime=self._config.runtime)

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
    def generated_encodings(self) -> list[ArtifactRef]:
        """Costly inputs of the rows that the backbone made, by part."""
        return self._encodings("encode generated rows", parts_of(self._store, [self.generated]))

    @cached_property
    def embeddings(self) -> list[EmbeddedPart]:
        """Embeddings of the corpus, by part."""
        c, parts = self._config, self.parts
        if c.embedding.vectors.corpus.paths:
            return adopted_parts(self._steps, c, parts, self._names(parts))
        encodings: Sequence[ArtifactRef | None] = self.corpus_encodings or [None] * len(parts)
        return self._steps.each(
            "embed corpus",
            [
                partial(
                    embed_part,
                    part=part,
                    label=name,
                    encodings=known,
                    backbone_config=c.backbone,
                    config=c.embedding,
                    runtime=c.runtime,
                )
                for part, name, known in zip(parts, self._names(parts), encodings, strict=True)
            ],
            lambda: self._steps.call(
                find_embedded,
                parts=parts,
                backbone_config=c.backbone,
                config=c.embedding,
                runtime=c.runtime,
            ),
        )

    @cached_property
    def queries(self) -> ArtifactRef:
        """Embeddings of the adaptation examples that are trained on."""
        return self._queries("embed adaptation set", (TRAIN,), "adaptation examples")

    @cached_property
    def heldout_queries(self) -> ArtifactRef:
        """Embeddings of the rows that validate or test, to keep them out of the mixture."""
        return self._queries("embed held-out rows", (TEST, VALIDATION), "held-out rows")

    @cached_property
    def index(self) -> ArtifactRef:
        """The index over the corpus, grown from this run's last one where that is wanted."""
        c = self._config
        earlier = self._store.latest(indexes.STAGE, c.name) if c.index.grow else None
        made = self._steps.run(
            "index",
            build_index,
            parts=self.embeddings,
            config=c.index,
            seed=c.seed,
            runtime=c.runtime,
            earlier=earlier,
            coded=code_by_group(self._steps, c, self.embeddings) if earlier is None else None,
        )
        if c.index.grow and made != earlier:
            self._store.set_latest(c.name, made)
        return made

    def _kept_before(self, every: ArtifactRef) -> tuple[ArtifactRef, ...]:
        """Return what an earlier selection kept of the same rows, unless it has grown too much."""
        before = self._earlier.prefiltered if self._earlier else ()
        share, rows = self._config.prefilter.share, self._store.manifest(every).rows
        its = [self._store.manifest(ref) for ref in before]
        alike = all(
            m.inputs["corpus"] == every.key and m.config["prefilter"]["share"] == share for m in its
        )
        return before if alike and sum(m.rows for m in its) < _TOO_MANY * share * rows else ()

    def _queries(self, step: str, roles: Sequence[str], label: str) -> ArtifactRef:
        c = self._config
        if c.embedding.vectors.adaptation.paths:
            return adopted_queries(self._steps, step, c, self.adaptation, roles)
        return self._steps.run(
            step,
            embed_queries,
            adaptation=self.adaptation,
            encodings=self.own_encodings,
            backbone_config=c.backbone,
            config=c.embedding,
            runtime=c.runtime,
            roles=roles,
            label=label,
        )

    def _names(self, parts: Sequence[Part]) -> list[str]:
        """Return what each part is called: its number and, where all its rows have one, source."""
        names = []
        for number, part in enumerate(parts, start=1):
            sources = [*self._store.manifest(part.shards).facts["sources"]]
            source = f" of {sources[0]}" if len(sources) == 1 else ""
            names.append(f"shard {number}/{len(parts)}{source}")
        return names

    def _encodings(self, step: str, parts: Sequence[Part]) -> list[ArtifactRef]:
        c = self._config
        if not precomputes(c.backbone):
            return []
        return self._steps.each(
            step,
            [
                partial(
                    encode_part,
                    part=part,
                    label=name,
                    backbone_config=c.backbone,
                    runtime=c.runtime,
                )
                for part, name in zip(parts, self._names(parts), strict=True)
            ],
            lambda: self._steps.call(
                find_encoded, parts=parts, backbone_config=c.backbone, runtime=c.runtime
            ),
        )

    def _shards(self, step: str, sources: Sequence[SourceConfig]) -> list[ArtifactRef]:
        c = self._config
        files = [self._steps.call(find_files, source=source) for source in sources]
        every = [*chain.from_iterable(files)]
        shards = self._steps.each(
            step,
            [
                partial(
                    make_shards,
                    file=file,
                    backbone_config=c.backbone,
                    config=c.shards,
                    runtime=c.runtime,
                )
                for file in every
            ],
            lambda: self._steps.call(
                find_shards,
                files=every,
                backbone_config=c.backbone,
                config=c.shards,
                runtime=c.runtime,
            ),
        )
        rest = iter(shards)
        for source, its in zip(sources, files, strict=True):
            refuse_barren(self._store, source, list(islice(rest, len(its))))
        return shards
