"""The flows that a person starts: the whole chain, or up to one of its stages."""

from collections.abc import Callable
from typing import Any

from prefect import flow
from pydantic import BaseModel, ConfigDict

from albat_core.artifacts import ArtifactRef
from albat_core.chain import ALBAT, Chain
from albat_core.config import RunConfig
from albat_core.report.run import StageRun
from albat_core.selecting import Each
from tasks.stages import TASKS

_RUN_NAME = "{config.name}"


class FlowResult(BaseModel):
    """What a flow came to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    artifact: ArtifactRef
    """What was asked for."""
    stages: tuple[StageRun, ...]
    """What was computed or reused on the way."""
    places: dict[str, str] = {}
    """Where results were put for people, by name."""


def as_tasks(function: Callable[..., Any], each: Each, shared: tuple[Any, ...]) -> list[Any]:
    """Run a stage's task on every item, several at once."""
    futures = [TASKS[function].submit(*item, *shared) for item in each]
    return [future.result() for future in futures]


@flow(flow_run_name=_RUN_NAME, persist_result=False, name="albat")
def albat(config: RunConfig) -> FlowResult:
    """Run the whole chain, from the corpus to the report.

    Args:
        config: all that the run is made of.
    """
    chain = Chain(config, as_tasks)
    report = chain.report
    places = chain.export() | {"name": chain.register(evaluated=True).name}
    return FlowResult(artifact=report, places=places, stages=tuple(chain.stages))


@flow(flow_run_name=_RUN_NAME, persist_result=False, name="embed")
def embed(config: RunConfig) -> FlowResult:
    """Embed corpus and adaptation set.

    Args:
        config: all that the run is made of.
    """
    chain = Chain(config, as_tasks)
    _, queries = chain.embeddings, chain.queries
    return FlowResult(artifact=queries, stages=tuple(chain.stages))


@flow(flow_run_name=_RUN_NAME, persist_result=False, name="index")
def index(config: RunConfig) -> FlowResult:
    """Index the corpus.

    Args:
        config: all that the run is made of.
    """
    chain = Chain(config, as_tasks)
    return FlowResult(artifact=chain.index, stages=tuple(chain.stages))


@flow(flow_run_name=_RUN_NAME, persist_result=False, name="select")
def select(config: RunConfig) -> FlowResult:
    """Select and weigh corpus examples.

    Args:
        config: all that the run is made of.
    """
    chain = Chain(config, as_tasks)
    return FlowResult(artifact=chain.selection, stages=tuple(chain.stages))


@flow(flow_run_name=_RUN_NAME, persist_result=False, name="materialize")
def materialize(config: RunConfig) -> FlowResult:
    """Write the weighted mixture to Parquet.

    Args:
        config: all that the run is made of.
    """
    chain = Chain(config, as_tasks)
    return FlowResult(artifact=chain.mixture(ALBAT), stages=tuple(chain.stages))


@flow(flow_run_name=_RUN_NAME, persist_result=False, name="finetune")
def finetune(config: RunConfig) -> FlowResult:
    """Train the adapter on the mixture.

    Args:
        config: all that the run is made of.
    """
    chain = Chain(config, as_tasks)
    adapter = chain.adapter(ALBAT)
    assert adapter is not None  # only the untouched arm has none
    places = {"name": chain.register(evaluated=False).name}
    return FlowResult(artifact=adapter, places=places, stages=tuple(chain.stages))


@flow(flow_run_name=_RUN_NAME, persist_result=False, name="evaluate")
def evaluate(config: RunConfig) -> FlowResult:
    """Compare all arms on the held-out documents.

    Args:
        config: all that the run is made of.
    """
    chain = Chain(config, as_tasks)
    albat_arm = next(arm for arm in chain.arms if arm.name == ALBAT)
    return FlowResult(artifact=albat_arm.evaluation, stages=tuple(chain.stages))
