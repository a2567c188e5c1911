"""What a run is asked for: the whole chain, or one of its stages with what that needs."""

from collections.abc import Callable
from typing import Literal

from pydantic import BaseModel, ConfigDict

from albat_core.records.runs import ALBAT, StageRun
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.runs.reselection import Watches, data_fingerprint, note_finished
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from albat_core.store.finding import UnfinishedError, only_finding

Goal = Literal["albat", "embed", "index", "select", "mix", "finetune", "evaluate"]


class Outcome(BaseModel):
    """What a run came to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    artifact: ArtifactRef
    """What was asked for."""
    stages: tuple[StageRun, ...]
    """What was computed or reused on the way."""
    places: dict[str, str] = {}
    """Where results were put for people, by name."""


def reach(goal: Goal, chain: Chain) -> Outcome:
    """Compute what is asked for, or find it finished.

    Args:
        goal: the name of a flow.
        chain: of the run.
    """
    return _GOALS[goal](chain)


def find_reached(goal: Goal, config: RunConfig) -> Outcome | None:
    """Return what a run came to where all of it is finished; results are put in place again.

    Args:
        goal: see ``reach``.
        config: of the run.

    Raises:
        AlbatError: an input or an artifact cannot be read.
    """
    if goal == "albat" and Watches(config.runtime.root).acted(config.name) is None:
        return None  # it never came to its end: what there is of it would be looked for twice
    with only_finding(), ArtifactStore(config.runtime.root).in_use():
        try:
            return reach(goal, Chain(config))
        except UnfinishedError:
            return None


def _whole(chain: Chain) -> Outcome:
    state = data_fingerprint(chain.config)  # before rows are read: what comes later is a change
    report = chain.report
    places = chain.export() | {"name": chain.register(evaluated=True).name}
    chain.track()
    note_finished(chain.config, state, chain.selected, chain.selected)
    return _outcome(chain, report, places)


def _embedded(chain: Chain) -> Outcome:
    _ = chain.inputs.embeddings
    return _outcome(chain, chain.inputs.queries)


def _indexed(chain: Chain) -> Outcome:
    return _outcome(chain, chain.inputs.index)


def _selected(chain: Chain) -> Outcome:
    return _outcome(chain, chain.selection)


def _mixed(chain: Chain) -> Outcome:
    return _outcome(chain, chain.arms.mixture(ALBAT))


def _finetuned(chain: Chain) -> Outcome:
    adapter = chain.arms.adapter(ALBAT)
    assert adapter is not None  # only the untouched arm has none
    return _outcome(chain, adapter, {"name": chain.register(evaluated=False).name})


def _evaluated(chain: Chain) -> Outcome:
    its = next(arm for arm in chain.arms.runs if arm.name == ALBAT)
    return _outcome(chain, its.evaluation)


def _outcome(chain: Chain, artifact: ArtifactRef, places: dict[str, str] | None = None) -> Outcome:
    return Outcome(artifact=artifact, stages=tuple(chain.stages), places=places or {})


_GOALS: dict[Goal, Callable[[Chain], Outcome]] = {
    "albat": _whole,
    "embed": _embedded,
    "index": _indexed,
    "select": _selected,
    "mix": _mixed,
    "finetune": _finetuned,
    "evaluate": _evaluated,
}
