"""A demo's table over several seeds, with an arm that has all of the adaptation data.

    python -m bench.table examples/image/demo.yaml --more examples/image/data/hungary-more.parquet

Losses of a held-out document are averaged over the seeds; intervals are bootstraps over documents.
Where held-out pictures are drawn anew, a second table has the errors of their pixels.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence

import numpy as np

from albat_core.measures.bootstrap import Floats, bootstrap_interval
from albat_core.records.losses import losses_by_document
from albat_core.records.runs import ADAPTATION_ONLY, ALBAT, LABELS, RANDOM, UNTOUCHED
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from flows.config import load_config

ARMS = (UNTOUCHED, ADAPTATION_ONLY, RANDOM, ALBAT)
ALL_DATA = "All of the adaptation data"

Losses = dict[str, tuple[float, float]]
"""Total loss and units by document."""


def document_losses(store: ArtifactStore, evaluation: ArtifactRef) -> Losses:
    """Return what each held-out document lost."""
    columns = losses_by_document(store, evaluation).to_pydict()
    pairs = zip(columns["loss_sum"], columns["units_sum"], strict=True)
    return dict(zip(columns["document"], pairs, strict=True))


def with_all_data(config: RunConfig, more: str | None, steps: int) -> RunConfig:
    """Return a run that trains on the whole adaptation set, and on another file of the same."""
    sources = list(config.adaptation)
    if more:
        sources.append(sources[0].model_copy(update={"path": more}))
    return config.model_copy(
        update={
            "adaptation": sources,
            # Enough documents validate when one in twenty does, and looks at them cost less.
            "split": config.split.model_copy(update={"use": 1.0, "folds": 20}),
            "finetune": config.finetune.model_copy(
                update={"steps": steps, "evaluate_every": max(steps // 10, 1)}
            ),
        }
    )


def measured(config: RunConfig, more: str | None, steps: int) -> list[dict[str, Losses]]:
    """Return each arm's losses with one seed, and its errors of pixels where there are any."""
    store = ArtifactStore(config.runtime.root)
    chain, whole = Chain(config), Chain(with_all_data(config, more, steps))
    arms = {LABELS[arm]: (chain, arm) for arm in ARMS} | {ALL_DATA: (whole, ADAPTATION_ONLY)}
    losses: dict[str, Losses] = {}
    errors: dict[str, Losses] = {}
    for label, (its, arm) in arms.items():
        losses[label] = document_losses(store, its.arms.evaluation(arm))
        if redrawn := its.arms.redrawn(arm):
            errors[label] = document_losses(store, redrawn)
        if adapter := its.arms.adapter(arm):
            step = store.manifest(adapter).facts["best_step"]
            print(f"seed {config.seed}, {label}: best at step {step}", flush=True)
    return [losses, errors] if errors else [losses]


def averaged(losses: list[Losses], documents: list[str]) -> tuple[Floats, Floats]:
    """Return total loss and units of each document, means over the seeds that held it out."""
    means = [
        np.mean([seed[document] for seed in losses if document in seed], axis=0)
        for document in documents
    ]
    totals, units = np.array(means).T
    return totals, units


def shown(value: tuple[float, float, float], form: Callable[[float], str]) -> str:
    """Return a figure with its interval."""
    return f"{form(value[0])} ({form(value[1])} to {form(value[2])})"


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="of the demo")
    parser.add_argument("--more", help="file with the rest of the adaptation data")
    parser.add_argument("--steps", type=int, default=0, help="steps with all data; 0: as the demo")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--root", default=".albat", help="artifact store")
    arguments = parser.parse_args()
    config = load_config(arguments.config, {"root": arguments.root})
    steps = arguments.steps or config.finetune.steps
    seeds = [
        measured(config.model_copy(update={"seed": seed}), arguments.more, steps)
        for seed in arguments.seeds
    ]
    for measure, its in zip(
        ("loss", "squared error of pixels"), range(len(seeds[0])), strict=False
    ):
        print_table(measure, [seed[its] for seed in seeds])


def print_table(measure: str, seeds: Sequence[dict[str, Losses]]) -> None:
    """Print what the arms came to.

    Args:
        measure: what it is measured in.
        seeds: losses of each seed, by arm.
    """
    documents = sorted({document for seed in seeds for document in seed[LABELS[UNTOUCHED]]})
    arms = {arm: averaged([seed[arm] for seed in seeds], documents) for arm in seeds[0]}
    base, units = arms[LABELS[ADAPTATION_ONLY]]
    print(f"\n{len(seeds)} seeds, {len(documents)} held-out documents\n")
    print(f"| arm | {measure} | by seed | gain over adaptation only |\n|---|---|---|---|")
    for arm, (totals, _) in arms.items():
        loss = shown(bootstrap_interval([totals], units, 0), "{:.4f}".format)
        gain = shown(bootstrap_interval([base, totals], units, 0), "{:+.4f}".format)
        single = [
            sum(t for t, _ in s[arm].values()) / sum(u for _, u in s[arm].values()) for s in seeds
        ]
        spread = f", deviation {statistics.stdev(single):.4f}" if len(single) > 1 else ""
        print(f"| {arm} | {loss} | {', '.join(f'{v:.4f}' for v in single)}{spread} | {gain} |")
    albat = arms[LABELS[ALBAT]][0]
    for other in (LABELS[RANDOM], ALL_DATA):
        gain = shown(bootstrap_interval([arms[other][0], albat], units, 0), "{:+.4f}".format)
        print(f"\nALBAT against: {other.lower()}, paired: {gain}")


if __name__ == "__main__":
    main()
