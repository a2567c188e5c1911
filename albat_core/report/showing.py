"""Gathers what a report shows in full: examples beside their nearest, samples, fidelity."""

import base64
from collections import Counter
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from albat_core.pictures import thumbnail
from albat_core.records.answers import read_answers
from albat_core.records.examples import Example, message_text
from albat_core.records.fidelity import MEASURES
from albat_core.records.redrawn import read_redrawn
from albat_core.records.runs import RunArtifacts
from albat_core.records.samples import read_samples
from albat_core.records.scores import read_scores
from albat_core.records.selections import read_selection
from albat_core.records.shards import read_examples
from albat_core.records.splits import TRAIN, read_role
from albat_core.report.content import (
    AnsweredPrompt,
    Answers,
    Changes,
    Fidelity,
    Interval,
    NoiseLevels,
    RankAgreement,
    Sample,
    SampleGrid,
    SampleRow,
    SelectedExample,
    Selection,
    SmallerRanks,
    SourceCount,
)
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from albat_core.store.manifests import Manifest

CHANGES = "changes.json"
"""In the artifact of a comparison of two selections."""

_SHOWN = 6  # examples at either end of the scores
_SIDE, _SMALL_SIDE = 256, 160  # pixels that pictures in the page have at most
_LARGE = 48  # samples that are shown at the larger size; of more, all are smaller
_PROMPTS = 40  # prompts whose samples are in the page
_ANSWERED = 6  # prompts whose answers are in the page
_EACH = 4  # samples of one prompt and arm that are in the page


def selection(store: ArtifactStore, run: RunArtifacts) -> Selection:
    """Return what was selected, with the most and the least useful examples."""
    scores = read_scores(store, run.scores)
    selected = read_selection(store, run.selection)
    facts = store.manifest(run.selection).facts
    corpus: Counter[str] = Counter()
    for ref in run.corpus:
        corpus.update(store.manifest(ref).facts["sources"])
    candidates = Counter(scores["source"].to_pylist())
    chosen = Counter(selected["source"].to_pylist())
    weights: Counter[str] = Counter()
    for source, weight in zip(
        selected["source"].to_pylist(), selected["weight"].to_pylist(), strict=True
    ):
        weights[source] += weight
    ranked = scores.sort_by([("score", "descending"), ("example_id", "ascending")])
    weight_of = _weights(selected)
    nearest = {e.example_id: e for e in read_role(store, run.adaptation, TRAIN)}
    worst = ranked.slice(max(ranked.num_rows - _SHOWN, 0))
    return Selection(
        scorer=_scorer(store.manifest(run.scores)),
        corpus_rows=sum(corpus.values()),
        candidates=scores.num_rows,
        copies=store.manifest(run.candidates).facts.get("excluded"),
        selected=selected.num_rows,
        wanted=facts.get("wanted"),
        effective_sample_size=facts["effective_sample_size"],
        sources=tuple(
            SourceCount(
                source=source,
                corpus=count,
                candidates=candidates[source],
                selected=chosen[source],
                weight=weights[source],
            )
            for source, count in corpus.most_common()
        ),
        candidate_scores=tuple(scores["score"].to_pylist()),
        selected_scores=tuple(selected["score"].to_pylist()),
        selected_weights=tuple(selected["weight"].to_pylist()),
        most_useful=most_useful(store, run.selection, run.adaptation),
        least_useful=_shown(store, worst, weight_of, nearest)[::-1],
        noise=_noise_levels(store.manifest(run.scores)),
        smaller=_smaller_ranks(store.manifest(run.agreement)) if run.agreement else None,
    )


def most_useful(
    store: ArtifactStore, selection: ArtifactRef, adaptation: ArtifactRef
) -> tuple[SelectedExample, ...]:
    """Return the selected examples with the highest scores, best first."""
    return _first(store, read_selection(store, selection), adaptation, ["score"])


def heaviest(
    store: ArtifactStore, selection: ArtifactRef, adaptation: ArtifactRef, among: Sequence[str]
) -> tuple[SelectedExample, ...]:
    """Return those of some selected examples, given by id, with the largest weights, in order."""
    selected = read_selection(store, selection)
    some = selected.filter(pc.is_in(selected["example_id"], pa.array(among, pa.string())))
    return _first(store, some, adaptation, ["weight", "score"])


def _first(
    store: ArtifactStore, selected: pa.Table, adaptation: ArtifactRef, order: Sequence[str]
) -> tuple[SelectedExample, ...]:
    """Return the first few of selected examples in full, the highest in these columns first."""
    nearest = {e.example_id: e for e in read_role(store, adaptation, TRAIN)}
    best = selected.sort_by([*((n, "descending") for n in order), ("example_id", "ascending")])
    return _shown(store, best.slice(0, _SHOWN), _weights(selected), nearest)


def read_changes(store: ArtifactStore, ref: ArtifactRef) -> Changes:
    """Return what a selection changed."""
    return Changes.model_validate_json((store.folder(ref) / CHANGES).read_bytes())


def _weights(selected: pa.Table) -> dict[str, float]:
    """Return the weight of each selected example by its id."""
    ids, weights = selected["example_id"].to_pylist(), selected["weight"].to_pylist()
    return dict(zip(ids, weights, strict=True))


def _scorer(scores: Manifest) -> str:
    """Return the scorer's name; settings of its own stand beside it where it has any."""
    scorer = scores.config["scorer"]
    return str(scorer["name"] if isinstance(scorer, dict) else scorer)


def _smaller_ranks(agreement: Manifest) -> SmallerRanks:
    facts = agreement.facts
    low, high = facts["interval"]
    return SmallerRanks(
        agreement=Interval(value=facts["agreement"], low=low, high=high),
        rows=agreement.rows,
        least=facts["least"],
        trusted=facts["trusted"],
        scored=facts["scored_by_smaller"],
    )


def _noise_levels(scores: Manifest) -> NoiseLevels | None:
    levels = scores.facts.get("noise_levels")
    if levels is None:
        return None
    tried = scores.facts.get("rank_agreement", [])
    return NoiseLevels(
        levels=levels,
        asked=scores.config["rank_agreement"] if tried else None,
        tried=tuple(
            RankAgreement(levels=int(t["levels"]), agreement=t["agreement"]) for t in tried
        ),
    )


def _shown(
    store: ArtifactStore,
    table: pa.Table,
    weight_of: dict[str, float],
    nearest: dict[str, Example],
) -> tuple[SelectedExample, ...]:
    """Return rows in full, each beside its nearest adaptation example."""
    rows = table.to_pylist()
    examples = read_examples(store, [r["shard"] for r in rows], [r["row"] for r in rows])
    shown = []
    for row, example in zip(rows, examples, strict=True):
        near = nearest.get(row["nearest_example_id"])
        shown.append(
            SelectedExample(
                example_id=row["example_id"],
                source=row["source"],
                text=_as_text(example),
                score=row["score"],
                score_error=row["score_error"],
                weight=weight_of.get(row["example_id"]),
                similarity=row["similarity"],
                nearest_id=row["nearest_example_id"],
                nearest_text=None if near is None else _as_text(near),
                image=_picture(example, _SIDE),
                nearest_image=None if near is None else _picture(near, _SIDE),
            )
        )
    return tuple(shown)


def _as_text(example: Example) -> str:
    if example.messages is None:
        return example.text or ""
    return "\n\n".join(f"{m['role']}: {message_text(m)}" for m in example.messages)


def _picture(example: Example, side: int) -> str | None:
    """Return an example's picture as a data URI, None where it has none."""
    if example.image is None:
        return None
    content = thumbnail(example.image, side)
    kind = "png" if content.startswith(b"\x89PNG") else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def sample_grid(store: ArtifactStore, run: RunArtifacts) -> SampleGrid | None:
    """Return what the arms made of the prompts; None where they made nothing."""
    arms = [(arm.label, arm.samples) for arm in run.arms if arm.samples is not None]
    if not arms:
        return None
    drawn = [read_samples(store, samples) for _, samples in arms]
    count, each = len(drawn[0]), len(drawn[0][0][1])
    shown = len(arms) * min(count, _PROMPTS) * min(each, _EACH)
    side = _SIDE if shown <= _LARGE else _SMALL_SIDE
    return SampleGrid(
        labels=tuple(label for label, _ in arms),
        rows=tuple(
            SampleRow(
                prompt=drawn[0][n][0],
                cells=tuple(
                    tuple(_sample(example, side) for example in by_prompt[n][1][:_EACH])
                    for by_prompt in drawn
                ),
            )
            for n in range(min(count, _PROMPTS))
        ),
        prompts=count,
        per_prompt=each,
    )


def redrawn_grid(store: ArtifactStore, run: RunArtifacts) -> SampleGrid | None:
    """Return held-out pictures beside what the arms drew of them; None where none were drawn."""
    arms = [(arm.label, arm.redrawn) for arm in run.arms if arm.redrawn is not None]
    if not arms:
        return None
    drawn = [read_redrawn(store, redrawn) for _, redrawn in arms]
    count, each = len(drawn[0]), len(drawn[0][0][1])
    return SampleGrid(
        labels=("Held out", *(label for label, _ in arms)),
        rows=tuple(
            SampleRow(
                prompt=true.text or "",
                cells=(
                    (_sample(true, _SMALL_SIDE),),
                    *(
                        tuple(_sample(made, _SMALL_SIDE) for made in by_arm[n][1][:_EACH])
                        for by_arm in drawn
                    ),
                ),
            )
            for n, (true, _) in enumerate(drawn[0][:_PROMPTS])
        ),
        prompts=count,
        per_prompt=each,
    )


def _sample(example: Example, side: int) -> Sample:
    if example.image is not None:
        return Sample(image=_picture(example, side))
    return Sample(text=_as_text(example).removeprefix(example.prompt or ""))


def answers(store: ArtifactStore, run: RunArtifacts) -> Answers | None:
    """Return the first answers of the arms, of a document each; None where none were written."""
    arms = [(arm.label, arm.answers) for arm in run.arms if arm.answers is not None]
    if not arms:
        return None
    tables = [read_answers(store, ref) for _, ref in arms]
    facts = [store.manifest(ref).facts for _, ref in arms]
    first: dict[str, int] = {}
    for place, document in enumerate(tables[0]["document"].to_pylist()):
        first.setdefault(document, place)
    shown = []
    for place in list(first.values())[:_ANSWERED]:
        rows = [table.slice(place, 1).to_pylist()[0] for table in tables]
        written = tuple(row["answer"] for row in rows)
        prompt, reference = rows[0]["prompt"], rows[0]["reference"]
        shown.append(AnsweredPrompt(prompt=prompt, reference=reference, answers=written))
    return Answers(
        labels=tuple(label for label, _ in arms),
        shown=tuple(shown),
        rows=tables[0].num_rows,
        begun=facts[0].get("begun", 0),  # runs of before asked for none of these
        cut=tuple(each["cut"] for each in facts),
        **{name: facts[0][name] for name in ("documents", "answerable", "bare")},
    )


def fidelity(store: ArtifactStore, run: RunArtifacts) -> list[Fidelity]:
    """Return how close each arm's pictures are to subject and prompts, where that was measured."""
    found = []
    for arm in run.arms:
        if arm.fidelity is None:
            continue
        manifest = store.manifest(arm.fidelity)
        measured = {
            name: Interval(**manifest.facts[name]) for name in MEASURES if name in manifest.facts
        }
        found.append(
            Fidelity(
                name=arm.name,
                label=arm.label,
                prompts=manifest.rows,
                unread_prompts=manifest.facts["unread_prompts"],
                **measured,
            )
        )
    return found
