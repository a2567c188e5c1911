"""Gathers what a run came to, for its report."""

import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from albat_core.measures.bootstrap import Floats, bootstrap_interval
from albat_core.measures.metrics import metric_title
from albat_core.records.grades import document_grades, metrics_of
from albat_core.records.losses import document_losses
from albat_core.records.runs import ADAPTATION_ONLY, ALBAT, ALL_DATA, RANDOM, ArmRun, RunArtifacts
from albat_core.records.shards import row_notes
from albat_core.records.splits import ROLES
from albat_core.report import wording
from albat_core.report.content import (
    NATS,
    Arm,
    Curve,
    CurvePoint,
    InputCount,
    Interval,
    Metric,
    PixelError,
    ReportContent,
    StageTime,
)
from albat_core.report.showing import (
    answers,
    fidelity,
    read_changes,
    redrawn_grid,
    sample_grid,
    selection,
)
from albat_core.report.verdict import Outlook, expected, verdict
from albat_core.store.artifacts import ArtifactStore
from albat_core.store.manifests import Manifest

_WRONG = "The verdict, which called mixing likely to pay, was wrong here."


def gather(store: ArtifactStore, run: RunArtifacts, config_yaml: str, seed: int) -> ReportContent:
    """Return all that the report shows, read from the artifacts."""
    unit = loss_unit(store, run.arms)
    arms = compare_arms(store, run.arms, seed)
    mixture = store.manifest(run.mixture)
    mixing = store.manifest(run.estimate).facts if run.estimate else None
    return ReportContent(
        title=str(yaml.safe_load(config_yaml)["name"]),
        created=made_now(),
        headline=headline(arms, unit, mixture.facts["alpha"], expected(mixing) if mixing else None),
        unit=unit,
        arms=tuple(arms),
        curves=tuple(_curves(store, run)),
        selection=selection(store, run),
        changes=read_changes(store, run.changes) if run.changes else None,
        samples=sample_grid(store, run),
        fidelity=tuple(fidelity(store, run)),
        answers=answers(store, run),
        refit=any(store.manifest(a.adapter).facts.get("refit") for a in run.arms if a.adapter),
        redrawn=redrawn_grid(store, run),
        pixel_errors=tuple(pixel_errors(store, run.arms, seed)),
        alpha=mixture.facts["alpha"],
        proxy=_proxy(store, run),
        verdict=verdict(mixing) if mixing else None,
        multiplier=_multiplier(mixing) if mixing else None,
        splits={r: store.manifest(run.adaptation).facts[r]["documents"] for r in ROLES},
        inputs=tuple(_inputs(store, run)),
        index=_index(store.manifest(run.index)) if run.index else {},
        stages=tuple(_stages(store, run)),
        config_yaml=config_yaml,
        versions=mixture.versions,
        machine=machine(),
    )


def made_now() -> str:
    """Return the time as a page tells it."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def machine() -> str:
    """Return system, processor and cores."""
    return f"{platform.system()} {platform.machine()}, {_cores()} cores"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def headline(
    arms: Sequence[Arm], unit: str, alpha: float = 0.0, outlook: Outlook | None = None
) -> str:
    """Return the result in plain sentences: against adaptation data only and against chance.

    Args:
        arms: what they came to.
        unit: of their losses.
        alpha: of the mixture that was tried; ALBAT's adapter may yet be without one.
        outlook: of mixing, before anything was trained on a mixture; where it was wrong, that is
            said.
    """
    by_name = {arm.name: arm for arm in arms}
    main, random = by_name[ALBAT], by_name.get(RANDOM)
    digits = wording.arm_decimals(arms)
    reached = f"{wording.in_unit(main.loss.value, unit, digits)} on the held-out documents"
    if not main.backbone_rows:
        why = "Nothing was mixed in"
        if alpha:
            why = f"Validation documents prefer adaptation data alone to alpha {alpha:.2f}"
        said = f"{why}: ALBAT is adaptation data only here, and reaches {reached}."
        return f"{said} {_WRONG}" if alpha and outlook == "likely" else said
    others = (
        ("adaptation data only", main.gain),
        ("as many random corpus rows", main.over_random),
        ("all of the adaptation data", main.over_all_data),
    )
    compared = [_against(other, gain, digits) for other, gain in others if gain is not None]
    *some, last = compared or [""]
    listed = " and ".join(filter(None, [", ".join(some), last]))
    said = f"ALBAT reaches {', '.join(filter(None, [reached, listed]))}"
    if main.gain is None:
        said += "; no arm with adaptation data only was trained to compare it with"
    if main.over_random is not None and main.over_random.high < 0:
        said = f"Random rows did better than selected ones: {said}"
    helps = random is not None and random.gain is not None and random.gain.low > 0
    lost = main.gain is not None and main.gain.high < 0
    if lost and not helps:
        said += ": do not mix this corpus in"
    return f"{said}. {_WRONG}" if lost and outlook == "likely" else f"{said}."


def _against(other: str, gain: Interval, digits: int) -> str:
    """Return how a loss compares with another arm's, by its paired gain."""
    if gain.low <= 0 <= gain.high:
        change = wording.signed(gain.value, digits)
        interval = wording.between(gain, digits)
        return f"no clear difference from {other} ({change}, 95% interval {interval})"
    if gain.low > 0:
        size, word = gain, "lower"
    else:
        size, word = Interval(value=-gain.value, low=-gain.high, high=-gain.low), "higher"
    interval = wording.between(size, digits)
    return f"{wording.fixed(size.value, digits)} {word} than with {other} (95% interval {interval})"


def loss_unit(store: ArtifactStore, runs: Sequence[ArmRun]) -> str:
    """Return what the arms' losses are measured in."""
    return str(store.manifest(runs[0].evaluation).facts["unit"])


def compare_arms(store: ArtifactStore, runs: Sequence[ArmRun], seed: int) -> list[Arm]:
    """Return what each arm came to, with intervals.

    Args:
        store: where their artifacts are.
        runs: the arms.
        seed: of the bootstrap.
    """
    unit = loss_unit(store, runs)
    losses = {arm.name: document_losses(store, arm.evaluation) for arm in runs}
    metrics = _metrics(store, runs, seed)
    arms = []
    for arm in runs:
        totals, units = losses[arm.name]
        value, low, high = bootstrap_interval([totals], units, seed)
        gains = _gains(arm.name, losses, seed)
        facts = store.manifest(arm.adapter).facts if arm.adapter else {}
        arms.append(
            Arm(
                name=arm.name,
                label=arm.label,
                loss=_interval((value, low, high)),
                gain=gains.get(ADAPTATION_ONLY),
                over_random=gains.get(RANDOM),
                over_all_data=gains.get(ALL_DATA),
                metrics=metrics[arm.name],
                perplexity=float(np.exp(value)) if unit == NATS else None,
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


def _metrics(
    store: ArtifactStore, runs: Sequence[ArmRun], seed: int
) -> dict[str, tuple[Metric, ...]]:
    """Return what each metric says of each arm, its gain the other way round than a loss's."""
    found: dict[str, list[Metric]] = {arm.name: [] for arm in runs}
    for place, name, task in metrics_of(store, runs[0].grades):
        sums = {arm.name: document_grades(store, arm.grades[place], name) for arm in runs}
        for arm, (totals, answered) in sums.items():
            value = _interval(bootstrap_interval([totals], answered, seed))
            gain = None
            if arm != ADAPTATION_ONLY in sums:
                pair = [totals, sums[ADAPTATION_ONLY][0]]
                gain = _interval(bootstrap_interval(pair, answered, seed))
            title = metric_title(name)
            found[arm].append(
                Metric(
                    name=name,
                    title=title,
                    value=value,
                    gain=gain,
                    task=task,
                    documents=int((answered > 0).sum()),
                )
            )
    return {arm: tuple(its) for arm, its in found.items()}


def pixel_errors(store: ArtifactStore, runs: Sequence[ArmRun], seed: int) -> list[PixelError]:
    """Return how far each arm's drawings are from held-out pictures, where any were drawn.

    Args:
        store: where their artifacts are.
        runs: the arms.
        seed: of the bootstrap.
    """
    drawn = {arm.name: arm.redrawn for arm in runs if arm.redrawn is not None}
    errors = {name: document_losses(store, ref) for name, ref in drawn.items()}
    found = []
    for arm in runs:
        if arm.name not in errors:
            continue
        totals, units = errors[arm.name]
        gains = _gains(arm.name, errors, seed)
        found.append(
            PixelError(
                name=arm.name,
                label=arm.label,
                error=_interval(bootstrap_interval([totals], units, seed)),
                gain=gains.get(ADAPTATION_ONLY),
                over_random=gains.get(RANDOM),
                pictures=store.manifest(drawn[arm.name]).rows,
                documents=len(units),
            )
        )
    return found


def _gains(arm: str, losses: Mapping[str, tuple[Floats, Floats]], seed: int) -> dict[str, Interval]:
    """Return what an arm gains over the arms that others are compared with, paired by document.

    Args:
        arm: its name.
        losses: total and units of each document, by arm.
        seed: of the bootstrap.
    """
    totals, units = losses[arm]
    return {
        base: _interval(bootstrap_interval([losses[base][0], totals], units, seed))
        for base in (ADAPTATION_ONLY, RANDOM, ALL_DATA)
        if base in losses and base != arm
    }


def _proxy(store: ArtifactStore, run: RunArtifacts) -> Interval | None:
    if run.proxy is None:
        return None
    facts = store.manifest(run.proxy).facts
    return Interval(value=facts["distance"], low=facts["low"], high=facts["high"])


def _multiplier(mixing: Mapping[str, Any]) -> Interval:
    low, high = mixing["multiplier_interval"]
    return Interval(value=mixing["multiplier"], low=low, high=high)


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


def _inputs(store: ArtifactStore, run: RunArtifacts) -> list[InputCount]:
    shards = dict.fromkeys(run.corpus, "corpus")
    for stage in run.stages:
        for ref in stage.refs:
            if ref.stage == "shards":
                config = store.manifest(ref).config
                made = (role for role in ("generated", "prefilter") if role in config)
                shards.setdefault(ref, next(made, "adaptation"))
    return [_input_count(store.manifest(ref), role) for ref, role in shards.items()]


def _input_count(manifest: Manifest, role: str) -> InputCount:
    facts = manifest.facts
    return InputCount(
        name=", ".join(Path(name).name for name in facts["files"][:2]),
        role=role,
        rows=facts["rows"],
        examples=manifest.rows,
        notes=row_notes([facts]),
    )


def _index(manifest: Manifest) -> dict[str, str | int | float]:
    """Return what is told of the index."""
    facts = manifest.facts
    recall = {k: v for k, v in facts.items() if k.startswith("recall")}
    kept = ("kind", "dimension", "cells", "probes")
    return {"rows": manifest.rows} | {k: facts[k] for k in kept if facts[k]} | recall


def _stages(store: ArtifactStore, run: RunArtifacts) -> list[StageTime]:
    stages = []
    for stage in run.stages:
        manifests = store.manifests(stage.refs)
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
