"""Gathers what a run came to, draws the report, and puts results where they are wanted."""

import os
import platform
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import yaml
from pydantic import BaseModel, ConfigDict

from albat_core import storage
from albat_core.adaptation import ROLES, read_role
from albat_core.artifacts import ArtifactRef, ArtifactStore, Built, Manifest
from albat_core.evaluation import bootstrap_interval, document_losses
from albat_core.mixture import read_selection
from albat_core.records import TRAIN, Example, read_table
from albat_core.report.content import (
    Arm,
    Curve,
    CurvePoint,
    InputCount,
    Interval,
    ReportContent,
    SelectedExample,
    Selection,
    SourceCount,
    StageTime,
)
from albat_core.report.page import render
from albat_core.scoring import SCORES
from albat_core.shards import read_rows
from albat_core.stage import Runtime, StageConfig

STAGE = "report"
STAGE_VERSION = 1
PAGE, RESULTS = "report.html", "results.json"
_BASELINE = "adaptation_only"
_MAIN = "albat"
_SHOWN = 6  # examples at either end of the scores


class ArmRun(BaseModel):
    """One arm's artifacts; no adapter where the backbone is untouched."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    label: str
    adapter: ArtifactRef | None
    evaluation: ArtifactRef


class StageRun(BaseModel):
    """One stage's artifacts, as this run came by them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: str
    refs: tuple[ArtifactRef, ...]

    @property
    def reused(self) -> bool:
        """Whether nothing of the stage had to be computed."""
        return all(ref.reused for ref in self.refs)


class RunArtifacts(BaseModel):
    """References to all that a report tells of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: tuple[ArtifactRef, ...]
    adaptation: ArtifactRef
    index: ArtifactRef
    candidates: ArtifactRef
    scores: ArtifactRef
    selection: ArtifactRef
    mixture: ArtifactRef
    arms: tuple[ArmRun, ...]
    stages: tuple[StageRun, ...]


def write_report(
    run: RunArtifacts, config: StageConfig, seed: int, runtime: Runtime
) -> ArtifactRef:
    """Draw the report of a run: the page, and its content as JSON.

    Args:
        run: what it tells of.
        config: the run's configuration, shown as YAML.
        seed: of the bootstrap.
        runtime: where artifacts are kept.
    """
    store = ArtifactStore(runtime.root)
    shown = config.model_dump(mode="json", exclude={"runtime", "output"})

    def build(folder: Path) -> Built:
        content = gather(store, run, yaml.safe_dump(shown, sort_keys=False), seed)
        (folder / PAGE).write_text(render(content), encoding="utf-8")
        (folder / RESULTS).write_text(content.model_dump_json(indent=1), encoding="utf-8")
        return Built(rows=len(content.arms), facts={"headline": content.headline})

    inputs = {
        "artifacts": sorted({str(ref) for stage in run.stages for ref in stage.refs}),
        "arms": {arm.name: arm.evaluation.key for arm in run.arms},
    }
    return store.produce(STAGE, STAGE_VERSION, {"run": shown, "seed": seed}, inputs, build)


def read_results(store: ArtifactStore, report: ArtifactRef) -> ReportContent:
    """Return what a report shows."""
    return ReportContent.model_validate_json((store.folder(report) / RESULTS).read_bytes())


def export_run(
    run: RunArtifacts, report: ArtifactRef, output: str, runtime: Runtime
) -> dict[str, str]:
    """Copy report, adapter and mixture below ``output``; return their places by name."""
    store = ArtifactStore(runtime.root)
    adapter = next(arm.adapter for arm in run.arms if arm.name == _MAIN)
    assert adapter is not None  # ALBAT's arm is always trained
    places = {"adapter": adapter, "mixture": run.mixture}
    for name, ref in places.items():
        storage.replace_tree(store.folder(ref), storage.join(output, name))
    for name in (PAGE, RESULTS):
        storage.write_bytes(storage.join(output, name), (store.folder(report) / name).read_bytes())
    return {"report": storage.join(output, PAGE)} | {n: storage.join(output, n) for n in places}


def gather(store: ArtifactStore, run: RunArtifacts, config_yaml: str, seed: int) -> ReportContent:
    """Return all that the report shows, read from the artifacts."""
    arms = _arms(store, run, seed)
    mixture = store.manifest(run.mixture)
    index = store.manifest(run.index)
    recall = {k: v for k, v in index.facts.items() if k.startswith("recall")}
    kept = ("kind", "dimension", "cells", "probes")
    return ReportContent(
        title=str(yaml.safe_load(config_yaml)["name"]),
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        headline=headline(arms),
        arms=tuple(arms),
        curves=tuple(_curves(store, run)),
        selection=_selection(store, run),
        alpha=mixture.facts["alpha"],
        splits={r: store.manifest(run.adaptation).facts[r]["documents"] for r in ROLES},
        inputs=tuple(_inputs(store, run)),
        index={"rows": index.rows} | {k: index.facts[k] for k in kept if index.facts[k]} | recall,
        stages=tuple(_stages(store, run)),
        config_yaml=config_yaml,
        versions=mixture.versions,
        machine=f"{platform.system()} {platform.machine()}, {_cores()} cores",
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def headline(arms: Sequence[Arm]) -> str:
    """Return the result in plain sentences."""
    by_name = {arm.name: arm for arm in arms}
    main = by_name[_MAIN]
    loss = f"ALBAT reaches {main.loss.value:.3f} nats per token on the held-out documents"
    if main.gain is None:
        return f"{loss}; no arm with adaptation data only was trained to compare it with."
    gain = main.gain
    interval = f"95% interval {gain.low:.3f} to {gain.high:.3f}"
    if gain.low > 0:
        verdict = f"{gain.value:.3f} lower than with adaptation data only ({interval})"
    elif gain.high < 0:
        verdict = (
            f"{-gain.value:.3f} higher than with adaptation data only ({interval}): "
            "do not mix this corpus in"
        )
    else:
        verdict = f"no clear difference from adaptation data only ({gain.value:+.3f}, {interval})"
    random = by_name.get("random")
    if random is None:
        return f"{loss}, {verdict}."
    same = f"The same number of random corpus rows reaches {random.loss.value:.3f}"
    return f"{loss}, {verdict}. {same}."


def _arms(store: ArtifactStore, run: RunArtifacts, seed: int) -> list[Arm]:
    losses = {arm.name: document_losses(store, arm.evaluation) for arm in run.arms}
    arms = []
    for arm in run.arms:
        totals, units = losses[arm.name]
        value, low, high = bootstrap_interval([totals], units, seed)
        gain = None
        if _BASELINE in losses and arm.name != _BASELINE:
            pair = [losses[_BASELINE][0], totals]
            gain = _interval(bootstrap_interval(pair, units, seed))
        facts = store.manifest(arm.adapter).facts if arm.adapter else {}
        arms.append(
            Arm(
                name=arm.name,
                label=arm.label,
                loss=_interval((value, low, high)),
                gain=gain,
                perplexity=float(np.exp(value)),
                documents=len(units),
                units=int(units.sum()),
                adaptation_rows=facts.get("adaptation_rows", 0),
                backbone_rows=facts.get("backbone_rows", 0),
                best_step=facts.get("best_step"),
                steps=facts.get("steps"),
                seconds=facts.get("training_seconds"),
            )
        )
    return arms


def _interval(values: tuple[float, float, float]) -> Interval:
    value, low, high = values
    return Interval(value=value, low=low, high=high)


def _curves(store: ArtifactStore, run: RunArtifacts) -> list[Curve]:
    curves = []
    for arm in run.arms:
        if arm.adapter is None:
            continue
        facts = store.manifest(arm.adapter).facts
        points = tuple(
            CurvePoint(step=int(p["step"]), train=p.get("train"), validation=p.get("validation"))
            for p in facts["history"]
        )
        curves.append(
            Curve(arm=arm.name, label=arm.label, best_step=facts["best_step"], points=points)
        )
    return curves


def _selection(store: ArtifactStore, run: RunArtifacts) -> Selection:
    scores = read_table(store.folder(run.scores) / SCORES)
    selected = read_selection(store, run.selection)
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
    weight_of = dict(
        zip(selected["example_id"].to_pylist(), selected["weight"].to_pylist(), strict=True)
    )
    nearest = {e.example_id: e for e in read_role(store, run.adaptation, TRAIN)}
    best = selected.sort_by([("score", "descending"), ("example_id", "ascending")])
    worst = ranked.slice(max(ranked.num_rows - _SHOWN, 0))
    return Selection(
        scorer=str(store.manifest(run.scores).config["scorer"]),
        corpus_rows=sum(corpus.values()),
        candidates=scores.num_rows,
        selected=selected.num_rows,
        effective_sample_size=store.manifest(run.selection).facts["effective_sample_size"],
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
        most_useful=_shown(store, best.slice(0, _SHOWN), weight_of, nearest),
        least_useful=_shown(store, worst, weight_of, nearest)[::-1],
    )


def _shown(
    store: ArtifactStore,
    table: pa.Table,
    weight_of: dict[str, float],
    nearest: dict[str, Example],
) -> tuple[SelectedExample, ...]:
    """Return rows in full, each beside its nearest adaptation example."""
    rows = table.to_pylist()
    examples = read_rows(store, [r["shard"] for r in rows], [r["row"] for r in rows])
    return tuple(
        SelectedExample(
            example_id=row["example_id"],
            source=row["source"],
            text=_as_text(example),
            score=row["score"],
            weight=weight_of.get(row["example_id"]),
            similarity=row["similarity"],
            nearest_id=row["nearest_example_id"],
            nearest_text=_as_text(nearest[row["nearest_example_id"]])
            if row["nearest_example_id"] in nearest
            else None,
        )
        for row, example in zip(rows, examples, strict=True)
    )


def _as_text(example: Example) -> str:
    if example.messages is None:
        return example.text or ""
    return "\n\n".join(f"{m['role']}: {m['content']}" for m in example.messages)


def _inputs(store: ArtifactStore, run: RunArtifacts) -> list[InputCount]:
    shards = dict.fromkeys(run.corpus, "corpus")
    for stage in run.stages:
        for ref in stage.refs:
            if ref.stage == "shards":
                shards.setdefault(ref, "adaptation")
    return [_input_count(store.manifest(ref), role) for ref, role in shards.items()]


def _input_count(manifest: Manifest, role: str) -> InputCount:
    facts = manifest.facts
    told = {
        "null_rows": "without text, skipped",
        "split_rows": "longer than the backbone takes, cut into pieces",
        "unfit_rows": "whose prompt leaves no room for an answer, skipped",
    }
    return InputCount(
        name=", ".join(Path(name).name for name in facts["files"][:2]),
        role=role,
        rows=facts["rows"],
        examples=manifest.rows,
        notes=tuple(
            f"{n} row{'s' if n > 1 else ''} {text}"
            for k, text in told.items()
            if (n := facts.get(k, 0))
        ),
    )


def _stages(store: ArtifactStore, run: RunArtifacts) -> list[StageTime]:
    stages = []
    for stage in run.stages:
        manifests = [store.manifest(ref) for ref in stage.refs]
        stages.append(
            StageTime(
                stage=stage.refs[0].stage,
                label=stage.label,
                rows=sum(m.rows for m in manifests),
                seconds=round(sum(m.seconds for m in manifests), 3),
                reused=stage.reused,
                artifact=str(stage.refs[0])[:24]
                + (f" and {len(stage.refs) - 1} more" if len(stage.refs) > 1 else ""),
            )
        )
    return stages
