"""What a Prefect server is told for albat: work pool, automation, events; and what it is asked."""

import socket
import sys
from collections.abc import AsyncIterator, Container, Iterable
from contextlib import asynccontextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import (
    GlobalConcurrencyLimitUpdate,
    WorkPoolCreate,
    WorkPoolUpdate,
)
from prefect.client.schemas.filters import FlowRunFilter, WorkerFilter, WorkPoolFilter
from prefect.events.schemas.automations import AutomationCore
from prefect.events.schemas.events import Event, Resource
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY
from prefect.states import Cancelled, Crashed
from prefect.workers.process import ProcessWorker

from albat_core.errors import ConfigError
from albat_core.redaction import redacted
from flows.running.own_process import refusal_is_told, was_refused

if TYPE_CHECKING:
    from albat_core.runs.config import RunConfig

WATCH = "watch-adaptation/watch-adaptation"
UPDATED = "albat.adaptation.updated"
"""Tells that adaptation data may have changed; it only makes the next look sooner."""
POOL = "albat"
TAG = "albat"
DEPLOYMENTS = Path(__file__).with_name("prefect.yaml")
CRASHED_RUNS = Path(__file__).with_name("crashed-runs.yaml")
"""The automation, in the form that `prefect automation create --from-file` takes, too."""


@asynccontextmanager
async def client_of(api: str) -> AsyncIterator[PrefectClient]:
    """Give a client of a server, which shows it the password or the key that is set.

    Raises:
        ConfigError: the server takes neither.
    """
    password, key = PREFECT_API_AUTH_STRING.value(), PREFECT_API_KEY.value()
    with refusal_is_told(api):
        async with PrefectClient(api, auth_string=password, api_key=key) as client:
            yield client


async def answers(api: str) -> bool:
    """Tell whether a server answers.

    Raises:
        ConfigError: it wants a password even for that, as a proxy before it may.
    """
    async with client_of(api) as client:
        error = await client.api_healthcheck()
        if error is not None and was_refused(error):
            raise error
        return error is None


async def prepare(api: str, own: bool) -> None:
    """Make the work pool, where it is not there.

    Args:
        api: address.
        own: whether the server is this machine's own: then one that is there is brought up to date.

    Raises:
        ConfigError: the pool is there, and its runs are no processes.
    """
    async with client_of(api) as client:
        try:
            pool = await client.read_work_pool(POOL)
        except ObjectNotFound:
            pool = None
        if pool is not None and pool.type != ProcessWorker.type:
            raise ConfigError(
                f"expected a work pool of type {ProcessWorker.type}, got {pool.type}",
                where=f"work pool {POOL!r}",
                remedy="its runs start elsewhere: deploy by `python -m flows.local.redeploying`",
            )
        if pool is None:
            template = _template({}, own)
            made = WorkPoolCreate(name=POOL, type=ProcessWorker.type, base_job_template=template)
            await client.create_work_pool(made)
        elif own:  # a person may have paused or limited it
            template = _template(pool.base_job_template, own)
            await client.update_work_pool(POOL, WorkPoolUpdate(base_job_template=template))


def _template(before: dict[str, Any], own: bool) -> dict[str, Any]:
    """Return how a run is started: as Prefect does, but see ``flows.local.launching``.

    Args:
        before: the pool's template so far; what a person gave the runs' environment is kept.
        own: whether the pool has workers of this installation alone; else each starts runs with the
            Python that it finds first.
    """
    python = f'"{sys.executable}"' if own else "python"
    template = ProcessWorker.get_default_base_job_template()
    fields = template["variables"]["properties"]
    fields["command"]["default"] = f"{python} -P -m flows.local.launching prefect.engine"
    fields["working_dir"]["default"] = "."
    environment = before.get("variables", {}).get("properties", {}).get("env", {}).get("default")
    if environment:
        fields["env"]["default"] = environment
    return template


async def automate(client: PrefectClient) -> None:
    """Make the automations, or bring those that are there up to date; a person may have paused one.

    One that does not differ is left alone, as it would forget whom it has heard of.
    """
    for wanted in crashed_runs():
        there = await client.read_automations_by_name(wanted.name)
        if not there:
            await client.create_automation(wanted)
            continue
        changed = wanted.model_copy(update={"enabled": there[0].enabled})
        if AutomationCore.model_validate(there[0].model_dump()) != changed:
            await client.update_automation(there[0].id, changed)


def crashed_runs() -> list[AutomationCore]:
    """Return what mends runs whose worker or machine was killed, running and before they began."""
    each = yaml.safe_load_all(CRASHED_RUNS.read_text("utf-8"))
    return [AutomationCore.model_validate(automation) for automation in each]


def worker_name(mark: str) -> str:
    """Return the name of the worker with that mark."""
    return f"{socket.gethostname()}-{mark[:8]}"


async def works(api: str, name: str) -> bool:
    """Tell whether a worker of that name has reported to the server."""
    online = WorkerFilter.model_validate({"status": {"any_": ["ONLINE"]}})
    async with client_of(api) as client:
        workers = await client.read_workers_for_work_pool(POOL, online)
    return any(worker.name == name for worker in workers)


async def watch(api: str, config: "RunConfig") -> str:
    """Let a worker watch a run from now on, beginning with a look; return the look's name.

    Raises:
        ConfigError: nothing is deployed on the server.
    """
    async with client_of(api) as client:
        try:
            deployed = await client.read_deployment_by_name(WATCH)
        except ObjectNotFound as error:
            raise ConfigError(
                f"expected the deployment {WATCH}, got none",
                where=api,
                remedy="run `albat up`, or `python -m flows.local.redeploying` for another server",
            ) from error
        parameters = {"config": config.model_dump(mode="json")}
        try:
            run = await client.create_flow_run_from_deployment(deployed.id, parameters=parameters)
        except PrefectHTTPStatusError as error:
            if error.response.status_code != HTTPStatus.CONFLICT:
                raise
            raise ConfigError(
                f"expected a deployment that takes this configuration: {error.response.text}",
                where=f"{WATCH} on {api}",
                remedy="it may be of another version: `albat down`, then `albat up`, or deploy "
                "again on another server",
            ) from error
    return run.name


async def notify(api: str, uri: str) -> None:
    """Tell the server that adaptation data may have changed.

    Args:
        api: address.
        uri: of the data; events about one are acted on together.
    """
    shown = redacted(uri)
    resource = {"prefect.resource.id": f"albat.adaptation.{shown}", "prefect.resource.name": shown}
    event = Event(event=UPDATED, resource=Resource(resource))
    async with client_of(api) as client:
        told = await client.request("POST", "/events", json=[event.model_dump(mode="json")])
        told.raise_for_status()


async def cancel(api: str, runs: Iterable[str]) -> list[str]:
    """Tell the server that these runs were stopped; return the names of those under way."""
    stopped = []
    async with client_of(api) as client:
        for run_id in runs:
            try:
                run = await client.read_flow_run(run_id)  # type: ignore[arg-type]
            except ObjectNotFound:  # deleted on the page
                continue
            if run.state is None or not run.state.is_final():
                message = "Stopped by `albat down`. Run it again: what was finished is found."
                await client.set_flow_run_state(run.id, Cancelled(message=message), force=True)
                stopped.append(run.name)
    return stopped


async def free_devices(api: str) -> None:
    """Give back what runs held of GPUs when their server ended: it forgets who, not how many.

    Args:
        api: address of a server that has just been started.
    """
    from tasks.stages import GPU

    none = GlobalConcurrencyLimitUpdate(active_slots=0)
    async with client_of(api) as client:
        with suppress(ObjectNotFound):
            await client.update_global_concurrency_limit(f"tag:{GPU}", none)


async def crash_lost(api: str, alive: Container[str]) -> list[str]:
    """Tell a server whose runs are all of this machine which of them are gone; return their names.

    Args:
        api: address.
        alive: ids of the runs that processes compute.
    """
    begun = {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}
    runs = FlowRunFilter.model_validate({"state": begun})
    pool = WorkPoolFilter.model_validate({"name": {"any_": [POOL]}})
    lost = []
    async with client_of(api) as client:
        for run in await client.read_flow_runs(flow_run_filter=runs, work_pool_filter=pool):
            if str(run.id) not in alive:
                message = "Its worker was killed. Run it again: what was finished is found."
                await client.set_flow_run_state(run.id, Crashed(message=message), force=True)
                lost.append(run.name)
    return lost
