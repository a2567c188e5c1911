"""Whether mixing costs anything where trainings are short, and whether that is said beforehand.

A run is repeated with trainings of so many epochs of its adaptation rows, the surrogate's too:
``python -m bench.budgets CONFIG --epochs 0.5 1.5 5 20``. ALBAT as it is shipped stands beside the
mixture as it was computed, which is not given up where validation documents prefer none.
"""

import argparse

import numpy as np

from albat_core.benchmark.arms import with_settings
from albat_core.benchmark.table import drawn_interval, shown
from albat_core.records.losses import document_losses
from albat_core.records.runs import ADAPTATION_ONLY, ALBAT, UNTOUCHED
from albat_core.records.splits import TRAIN
from albat_core.report.content import Interval
from albat_core.report.verdict import expected
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.seeding import numpy_generator
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from albat_core.training.config import in_steps
from flows.config import load_config

LOOKS = 8  # at validation documents, in a training
DRAWS = 2000


def of_length(config: RunConfig, epochs: float) -> RunConfig:
    """Return a run whose trainings last so many epochs, with looks and warm-up in proportion."""
    rows = Chain(config).facts(Chain(config).inputs.adaptation)[TRAIN]["rows"]
    changed = {}
    for section in ("finetune", "surrogate"):
        its = getattr(config, section).model_copy(update={"epochs": epochs})
        steps = in_steps(its, rows).steps
        changed[section] = {
            "epochs": epochs,
            "evaluate_every": max(steps // LOOKS, 1),
            "warmup": min(its.warmup, steps // 10),
        }
    return with_settings(config, **changed)


def gain(store: ArtifactStore, before: ArtifactRef, after: ArtifactRef, seed: int) -> Interval:
    """Return how far a loss is below another, paired by held-out document."""
    (without, units), (mixed, _) = (document_losses(store, each) for each in (before, after))
    drawn = numpy_generator(seed, "budgets").integers(len(units), size=(DRAWS, len(units)))
    draws = np.concatenate([np.arange(len(units))[None], drawn])
    return drawn_interval((without - mixed)[draws].sum(axis=1) / units[draws].sum(axis=1))


def line(config: RunConfig, epochs: float) -> str:
    """Return what came of trainings of one length."""
    chain = Chain(of_length(config, epochs))
    store = ArtifactStore(config.runtime.root)
    said = chain.facts(chain.estimate)
    as_computed = Chain(with_settings(chain.config, mixture={"fall_back": False}))
    own, mixed, plain = (
        its.arms.evaluation(arm)
        for its, arm in ((chain, ADAPTATION_ONLY), (chain, ALBAT), (as_computed, ALBAT))
    )
    trained = [its.arms.adapter(arm) for its, arm in ((chain, ADAPTATION_ONLY), (chain, ALBAT))]
    steps, longest = (chain.facts(ref)["steps"] if ref else 0 for ref in trained)
    loss = {
        name: float(chain.facts(ref)["loss"])
        for name, ref in (("untouched", chain.arms.evaluation(UNTOUCHED)), ("own", own))
    }
    shipped = shown(gain(store, own, mixed, config.seed), "+.3f")
    cells = (
        f"{epochs:g}",
        f"{steps}, {longest}",
        f"{loss['untouched']:.3f}",
        f"{loss['own']:.3f}",
        f"{said['alpha']:.2f}",
        expected(said),
        shown(gain(store, own, plain, config.seed), "+.3f"),
        "adaptation data only" if mixed == own else shipped,
    )
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--epochs", type=float, nargs="+", default=[0.5, 1.5, 5, 20])
    asked = parser.parse_args()
    config = load_config(asked.config)
    titles = (
        *("epochs", "steps, with the mixture", "untouched", "adaptation data only", "alpha"),
        *("verdict", "gain of the mixture", "gain of ALBAT"),
    )
    print(f"| {' | '.join(titles)} |\n|{'---|' * len(titles)}")
    for epochs in asked.epochs:
        print(line(config, epochs), flush=True)


if __name__ == "__main__":
    main()
