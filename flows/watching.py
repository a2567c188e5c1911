"""Selecting again when adaptation data has changed: the flow that looks, and the one that acts."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import cast

from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.deployments import run_deployment
from prefect.events.filters import EventFilter, EventResourceFilter
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Crashed
from prefect.variables import Variable

from albat_core.errors import AlbatError, TransientError
from albat_core.records.selections import Selected
from albat_core.redaction import redacted
from albat_core.runs.config import RunConfig
from albat_core.runs.goals import Outcome
from albat_core.runs.reselection import Acted, Watches, basis, data_fingerprint, note_finished
from albat_core.store.artifacts import ArtifactStore
from albat_core.store.stage import canonical_json
from flows.albat import chain_of
from flows.pages import publish_changes, publish_run, publish_selection
from flows.running.lifting import as_flow

RESELECT = "reselect/reselect"
_ROOTS = "albat_watched_roots"  # of the server's variables
_GONE = f"; a root that is gone for good is taken out of the Prefect variable {_ROOTS}"
_MOST_FAILURES = 5  # at one state of the data, before a person has to look
_REST = timedelta(hours=6)  # after so many, between one try and the next
_SILENT = timedelta(minutes=10)  # runs tell every half minute that they are alive
_STARTS = timedelta(minutes=40)  # infra/kubernetes waits for a machine and an image for 30
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
    if root is None and config is None:
        _stand_for_those_due()
    if config:
        root = config.runtime.root
        Watches(root).add(config)
        _remember(root)
    started: list[str] = []
    failed: list[str] = []
    for place in [root] if root else _remembered():
        with _others_go_on(place, failed, _GONE):
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


def _stand_for_those_due() -> None:
    """Cancel the other looks at everything that are due: this one sees what they would see.

    They come together where long trainings leave a pool no place for a look.
    """
    context = FlowRunContext.get()
    own = context.flow_run if context else None
    if own is None or own.deployment_id is None:
        return
    due = FlowRunFilter.model_validate(
        {
            "deployment_id": {"any_": [own.deployment_id]},
            "state": {"type": {"any_": ["SCHEDULED"]}},
            "expected_start_time": {"before_": datetime.now(UTC)},
        }
    )
    message = f"The look {own.name} began after this one was due, and stands for it."
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=due):
            if run.id != own.id and not any(run.parameters.values()):
                client.set_flow_run_state(run.id, Cancelled(message=message))


@contextmanager
def _others_go_on(name: str, failed: list[str], remedy: str = "") -> Iterator[None]:
    """Note the trouble of one run, or of one place, so that the others are looked at too."""
    try:
        yield
    except Exception as error:  # whatever it is, it is this one's
        said = str(error) if isinstance(error, AlbatError) else f"{type(error).__name__}: {error}"
        said = redacted(f"{name}: {said}{remedy}")
        get_run_logger().error("%s", said)
        failed.append(said)


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
    One that has ended without acting on the state is followed by another, however it ended. Only
    failures are held against it: after some of them the next waits.

    Args:
        run: whose data has changed, as it is watched.
        state: of the data, see ``data_fingerprint``.
        watches: where it is noted what was acted on.

    Raises:
        AlbatError: it failed too often, and not long ago.
    """
    settings = run.model_dump(mode="json", exclude_defaults=True)  # the root is one of them
    all_of_it = canonical_json([settings, state]).encode()
    key = f"{run.name}-{hashlib.blake2b(all_of_it, digest_size=16).hexdigest()}"
    failures = 0
    for attempt in count():
        try:
            found = run_deployment(
                RESELECT,
                parameters={"config": run.model_dump(mode="json")},
                idempotency_key=f"{key}-{attempt}",
                timeout=0,
                as_subflow=False,
            )
        except ObjectNotFound:  # nothing is deployed: it is done here
            reselect(run)
            break
        started = cast("FlowRun", found)  # the other kind is for callers that are async
        acted = watches.acted(run.name)  # written before its run ends
        if (acted is not None and acted.fingerprint == state) or _has_yet_to_end(started):
            return str(started.name)
        if started.state is not None and started.state.is_failed():
            failures += 1
            if failures >= _MOST_FAILURES and _ago(started.state.timestamp) < _REST:
                raise AlbatError(
                    f"expected a re-selection that ends well, {failures} at the same data failed",
                    where=RESELECT,
                    remedy="see the logs of its last runs; it is tried again when the data "
                    f"changes, or {_REST.total_seconds() / 3600:.0f} hours after the last",
                )
    return run.name


def _has_yet_to_end(run: FlowRun) -> bool:
    """Tell whether a run will end; one that began and fell silent is told to have crashed."""
    state = run.state
    if state is None or state.is_scheduled() or state.is_paused():
        return True
    if state.is_final():
        return False
    patience = _STARTS if state.is_pending() else _SILENT
    about = EventResourceFilter(id=[f"prefect.flow-run.{run.id}"])
    with get_client(sync_client=True) as client:
        last = client.read_events(EventFilter(resource=about), limit=1).events
        if _ago(max([state.timestamp, *(event.occurred for event in last)])) < patience:
            return True
        message = f"No sign of life for {patience.total_seconds() / 60:.0f} minutes."
        client.set_flow_run_state(run.id, Crashed(message=message))
    return False


def _ago(moment: datetime) -> timedelta:
    return datetime.now(UTC) - moment


@as_flow
def reselect(config: RunConfig) -> Outcome:
    """Select again with the adaptation data as it is now; fine-tune where that is worth it.

    Args:
        config: all that the run is made of.
    """
    watches = Watches(config.runtime.root)
    state, acted = data_fingerprint(config), watches.acted(config.name)
    if acted and acted.fingerprint == state:
        return Outcome(artifact=acted.selected.mixture, stages=())
    goes_on = acted is not None and acted.basis == basis(config)
    before = (acted.selected, acted.trained) if acted else (None, None)
    previous, trained = (_whole(each, config) for each in before)
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
            chain.track()
        else:
            places |= chain.export_mixture() if worth else {}
            publish_selection(chain, worth=True)
        note_finished(config, state, selected, trained)
    return Outcome(artifact=artifact, places=places, stages=tuple(chain.stages))


def _whole(selected: Selected | None, config: RunConfig) -> Selected | None:
    """Return a selection that can be gone on from, None where artifacts of it are lost."""
    if selected is None:
        return None
    found = ArtifactStore(config.runtime.root).find_all(selected.refs)
    lost = [str(ref) for ref in selected.refs if ref not in found]
    if not lost:
        return selected
    get_run_logger().warning("%s: lost is %s: not gone on from", config.name, ", ".join(lost))
    return None
