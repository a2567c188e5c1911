"""The flows that a person starts: the whole chain, or up to one of its stages."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from prefect import Flow, get_run_logger
from prefect.runtime import deployment

from albat_core.records.selections import Selected
from albat_core.redaction import redacted
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.runs.goals import Goal, Outcome, reach
from albat_core.store.artifacts import ArtifactStore
from flows.checks import refuse_mistakes
from flows.config import load_config
from flows.pages import publish_results, publish_run, publish_selection
from flows.running.lifting import as_flow
from flows.running.runners import tasks_on


@contextmanager
def chain_of(
    config: RunConfig, previous: Selected | None = None, trained: Selected | None = None
) -> Iterator[Chain]:
    """Give a run's chain, whose stages are tasks where the run's configuration has them run.

    Args:
        config: of the run.
        previous: an earlier selection to go on from.
        trained: the selection that an adapter was last trained on, to compare with.

    Raises:
        ConfigError: the run is deployed and would come to no end; it names every mistake.
    """
    # a command has looked before it started this; a cluster's GPUs and libraries are not here
    if deployment.id and previous is None and not config.runtime.cluster:
        logger = get_run_logger()  # Prefect's own, in which no secret is left out for us
        refuse_mistakes(config, lambda note: logger.warning(redacted(note)), lasting=True)
    store = ArtifactStore(config.runtime.root)
    with store.in_use(), tasks_on(config.runtime) as execute:
        yield Chain(config, execute, previous, trained)


@as_flow
def albat(config: RunConfig) -> Outcome:
    """Run the whole chain, from the corpus to the report.

    Args:
        config: all that the run is made of.
    """
    with chain_of(config) as chain:
        outcome = reach("albat", chain)
        publish_run(chain, outcome.places)
        return outcome


@as_flow
def embed(config: RunConfig) -> Outcome:
    """Embed corpus and adaptation set.

    Args:
        config: all that the run is made of.
    """
    with chain_of(config) as chain:
        return reach("embed", chain)


@as_flow
def index(config: RunConfig) -> Outcome:
    """Index the corpus.

    Args:
        config: all that the run is made of.
    """
    with chain_of(config) as chain:
        return reach("index", chain)


@as_flow
def select(config: RunConfig) -> Outcome:
    """Select and weigh corpus examples.

    Args:
        config: all that the run is made of.
    """
    with chain_of(config) as chain:
        outcome = reach("select", chain)
        publish_selection(chain, worth=False)
        return outcome


@as_flow
def mix(config: RunConfig) -> Outcome:
    """Write the weighted mixture to Parquet.

    Args:
        config: all that the run is made of.
    """
    with chain_of(config) as chain:
        outcome = reach("mix", chain)
        publish_selection(chain, worth=True)
        return outcome


@as_flow
def finetune(config: RunConfig) -> Outcome:
    """Train the adapter on the mixture.

    Args:
        config: all that the run is made of.
    """
    with chain_of(config) as chain:
        outcome = reach("finetune", chain)
        publish_selection(chain, worth=True)
        return outcome


@as_flow
def evaluate(config: RunConfig) -> Outcome:
    """Compare all arms on the held-out documents.

    Args:
        config: all that the run is made of.
    """
    with chain_of(config) as chain:
        outcome = reach("evaluate", chain)
        publish_results(chain)
        return outcome


FLOWS: dict[Goal, Flow[[RunConfig], Outcome]] = {
    "albat": albat,
    "embed": embed,
    "index": index,
    "select": select,
    "mix": mix,
    "finetune": finetune,
    "evaluate": evaluate,
}
"""Each goal's flow."""


@partial(as_flow, run_name="{path}")
def from_file(path: str, up_to: Goal = "albat") -> Outcome:
    """Run what a configuration file says.

    Args:
        path: of the YAML file, on the worker's machine or `s3://`; its inputs are relative to it.
        up_to: the whole chain (`albat`), or up to one stage.
    """
    return FLOWS[up_to].fn(load_config(path))
