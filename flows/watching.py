"""Selecting again when adaptation data has changed: the flow that looks, and the one that acts."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.variables import Variable

from albat_core.errors import AlbatError, TransientError
from albat_core.runs.config import RunConfig
from albat_core.runs.reselection import Acted, Watches, basis, data_fingerprint, note_finished
from flows.albat import FlowResult, chain_of
from flows.pages import publish_changes, publish_run, publish_selection
from flows.running.lifting import as_flow

RESELECT = "reselect/reselect"
_ROOTS = "albat_watched_roots"  # of the server's variables
_MOST_ATTEMPTS = 5  # at one state of the data, before a person has to look
_MOST_WAITS = 60  # for the data to settle


@flow(name="watch-adaptation", persist_result=False)
def watch_adaptation(root: str | None = None, config: RunConfig | None = None) -> list[str]:
    """Start a re-selection for every watched run whose adaptation data has changed.

    Args:
        root: where the artifacts of the runs to look at are kept; none: wherever a run was told to
            be watched.
        config: a run to watch from now on; none: only look at those that are watched.
    """
    logger = get_run_logger()
    if config:
        root = config.runtime.root
        Watches(root).add(config)
        _remember(root)
    started: list[str] = []
    failed: list[str] = []
    for place in [root] if root else _remembered():
        with _others_go_on(place, failed):
            watches = Watches(place)
            for name in watches.names():
                with _others_go_on(name, failed):
                    run = watches.config(name)
                    if state := changed_state(run, watches.acted(run.name)):
                        started.append(start_reselection(run, state, watches))
                        logger.info("%s: the data has changed (%s)", run.name, state)
                    else:
                        logger.info("%s: nothing has changed", run.name)
    if failed:
        raise AlbatError("\n".join(failed))
    return started


@contextmanager
def _others_go_on(name: str, failed: list[str]) -> Iterator[None]:
    """Note the trouble of one run, or of one place, so that the others are looked at too."""
    try:
        yield
    except AlbatError as error:
        get_run_logger().error("%s: %s", name, error)
        failed.append(f"{name}: {error}")


def _remembered() -> list[str]:
    """Return the artifact roots that a run was ever watched in."""
    return cast("list[str]", Variable.get(_ROOTS, default=[]))


def _remember(root: str) -> None:
    if root not in (known := _remembered()):
        Variable.set(_ROOTS, [*known, root], overwrite=True)


def changed_state(run: RunConfig, acted: Acted | None) -> str | None:
    """Return the state of a run's data once it has settled, if it was not acted on yet."""
    state = data_fingerprint(run)
    for _ in range(_MOST_WAITS):
        if acted and state == acted.fingerprint:
            return None
        time.sleep(run.reselection.settle_seconds)
        before, state = state, data_fingerprint(run)
        if state == before:
            return state
    raise TransientError(
        f"expected data that settles, it changed {_MOST_WAITS} times",
        where=", ".join(p for source in run.adaptation for p in source.paths),
        remedy="the next look comes on schedule; write new files somewhere else first, or raise "
        "reselection.settle_seconds",
    )


def start_reselection(run: RunConfig, state: str, watches: Watches) -> str:
    """Start the re-selection of a state of the data, unless it was started; return its run's name.

    The server keeps one run for each idempotency key, whoever asks: two watchers get the same run.
    One that failed is tried again, a few times.
    """
    for attempt in range(_MOST_ATTEMPTS):
        try:
            found = run_deployment(
                RESELECT,
                parameters={"config": run.model_dump(mode="json")},
                idempotency_key=f"{run.name}-{state}-{attempt}",
                timeout=0,
                as_subflow=False,
            )
        except ObjectNotFound:  # nothing is deployed: it is done here
            reselect(run)
            return run.name
        started = cast("FlowRun", found)  # the other kind is for callers that are async
        acted = watches.acted(run.name)  # written before its run ends
        done = acted is not None and acted.fingerprint == state
        if done or started.state is None or not started.state.is_final():
            return str(started.name)
    raise AlbatError(
        f"expected a re-selection that ends well, {_MOST_ATTEMPTS} at the same data did not",
        where=RESELECT,
        remedy="see the logs of its last runs; it is tried again when the data changes",
    )


@as_flow
def reselect(config: RunConfig) -> FlowResult:
    """Select again with the adaptation data as it is now; fine-tune where that is worth it.

    Args:
        config: all that the run is made of.
    """
    watches = Watches(config.runtime.root)
    state, acted = data_fingerprint(config), watches.acted(config.name)
    if acted and acted.fingerprint == state:
        return FlowResult(artifact=acted.selected.mixture, stages=())
    goes_on = acted is not None and acted.basis == basis(config)
    previous, trained = (acted.selected, acted.trained) if acted else (None, None)
    with chain_of(config, previous if goes_on else None, trained) as chain:
        selected, worth, places = chain.selected, True, {}
        artifact = selected.mixture
        if changes := chain.changes:
            artifact, places = changes, chain.export_changes(changes)
            worth = bool(chain.facts(changes)["worth"])
            publish_changes(chain, changes, places)
        if worth and config.reselection.finetune:
            artifact, trained = chain.report, selected
            places |= chain.export() | {"name": chain.register(evaluated=True).name}
            publish_run(chain, places)
        else:
            publish_selection(chain, worth=True)
        note_finished(config, state, selected, trained)
    return FlowResult(artifact=artifact, places=places, stages=tuple(chain.stages))
