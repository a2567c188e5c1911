"""The flows that a person starts: the whole chain, or up to one of its stages."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal

from prefect import Flow
from pydantic import BaseModel, ConfigDict

from albat_core.records.runs import ALBAT, StageRun
from albat_core.records.selections import Selected
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.runs.reselection import data_fingerprint, note_finished
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from flows.config import load_config
from flows.pages import publish_results, publish_run, publish_selection
from flows.running.lifting import as_flow
from flows.running.runners import tasks_on


class FlowResult(BaseModel):
    """What a flow came to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    artifact: ArtifactRef
    """What was asked for."""
    stages: tuple[StageRun, ...]
    """What was computed or reused on the way."""
    places: dict[str, str] = {}
    """Where results were put for people, by name."""


@contextmanager
def chain_of(
    config: RunConfig, previous: Selected | None = None, trained: Selected | None = None
) -> Iterator[Chain]:
    """Give a run's chain, whose stages are tasks where the run's configuration has them run.

    Args:
        config: of the run.
        previous: an earlier selection to go on from.
        trained: the selection that an adapter was last trained on, to compare with.
    """
    store = ArtifactStore(config.runtime.root)
    with store.in_use(), tasks_on(config.runtime) as execute:
        yield Chain(config, execute, previous, trained)


@as_flow
def albat(config: RunConfig) -> FlowResult:
    """Run the whole chain, from the corpus to the report.

    Args:
        config: all that the run is made of.
    """
    with chain_of(config) as chain:
        state = data_fingerprint(config)  # before rows are read: what comes later is a change
        report = chain.report
        places = chain.export() | {"name": chain.register(evaluated=True).name}
        publish_run(chain, places)
        chain.track()
        note_finished(config, state, chain.selected, chain.selected)
        return FlowResult(artifact=report, places=places, stages=tuple(chain.stages))


@as_flow
def embed(config: RunConfig) -> FlowResult:
    """Embed corpus and adaptation set.

    Args:
        config: all that the run is made of.
    """
    with chain_of(config) as chain:
        _, queries = chain.inputs.embeddings, chain.inputs.queries
        return FlowResult(artifact=queries, stages=tuple(chain.stages))


@as_flow
def index(config: RunConfig) -> FlowResult:
    """Index the corpus.

    Args:
        config: all that the run is made of.
    """
    with chain_of(config) as chain:
        return FlowResult(artifact=chain.inputs.index, stages=tuple(chain.stages))


@as_flow
def select(config: RunConfig) -> FlowResult:
    """Select and weigh corpus examples.

    Args:
        config: all that the run is made of.
    """
    with chain_of(config) as chain:
        selection = chain.selection
        publish_selection(chain, worth=False)
        return FlowResult(artifact=selection, stages=tuple(chain.stages))


@as_flow
def mix(config: RunConfig) -> FlowResult:
    """Write the weighted mixture to Parquet.

    Args:
        config: all that the run is made of.
    """
    with chain_of(config) as chain:
        mixture = chain.arms.mixture(ALBAT)
        publish_selection(chain, worth=True)
        return FlowResult(artifact=mixture, stages=tuple(chain.stages))


@as_flow
def finetune(config: RunConfig) -> FlowResult:
    """Train the adapter on the mixture.

    Args:
        config: all that the run is made of.
    """
    with chain_of(config) as chain:
        adapter = chain.arms.adapter(ALBAT)
        assert adapter is not None  # only the untouched arm has none
        places = {"name": chain.register(evaluated=False).name}
        publish_selection(chain, worth=True)
        return FlowResult(artifact=adapter, places=places, stages=tuple(chain.stages))


@as_flow
def evaluate(config: RunConfig) -> FlowResult:
    """Compare all arms on the held-out documents.

    Args:
        config: all that the run is made of.
    """
    with chain_of(config) as chain:
        albat_arm = next(arm for arm in chain.arms.runs if arm.name == ALBAT)
        publish_results(chain)
        return FlowResult(artifact=albat_arm.evaluation, stages=tuple(chain.stages))


UpTo = Literal["albat", "embed", "index", "select", "mix", "finetune", "evaluate"]
_FLOWS: dict[UpTo, Flow[[RunConfig], FlowResult]] = {
    "albat": albat,
    "embed": embed,
    "index": index,
    "select": select,
    "mix": mix,
    "finetune": finetune,
    "evaluate": evaluate,
}


@partial(as_flow, run_name="{path}")
def from_file(path: str, up_to: UpTo = "albat") -> FlowResult:
    """Run what a configuration file says.

    Args:
        path: of the YAML file, on the worker's machine or `s3://`; its inputs are relative to it.
        up_to: the whole chain (`albat`), or up to one stage.
    """
    return _FLOWS[up_to].fn(load_config(path))
