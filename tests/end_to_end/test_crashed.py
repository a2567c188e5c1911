"""Runs whose process is gone are found; those that only seem so go on."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import PrefectClient, get_client
from prefect.context import FlowRunContext
from prefect.events.related import tags_as_related_resources
from prefect.events.schemas.automations import AutomationCore
from prefect.server.database import provide_database_interface
from prefect.server.events import triggers
from prefect.server.events.schemas.automations import Automation, EventTrigger
from prefect.server.events.schemas.events import ReceivedEvent
from prefect.settings import PREFECT_SERVER_DATABASE_CONNECTION_URL
from prefect.settings.context import temporary_settings
from prefect.states import Cancelling, Crashed, Pending, Running, State

from flows.local import deploying
from flows.running.lifting import as_flow
from tasks.caching import lift

pytestmark = pytest.mark.end_to_end

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
BEAT = "heartbeat"
SILENT, LOST = deploying.crashed_runs()
WITHIN = SILENT.model_dump(mode="json")["trigger"]["within"]


@asynccontextmanager
async def watching(
    home: Path, monkeypatch: pytest.MonkeyPatch, wanted: AutomationCore = SILENT
) -> AsyncIterator[tuple[EventTrigger, list[str]]]:
    """Load an automation in this process, with a database of its own; gives what it acts on."""
    acted_on: list[str] = []

    async def fire(_: object, firing: Any) -> None:
        acted_on.append(firing.triggering_labels["prefect.resource.id"].rpartition(".")[2])

    async def on_time() -> float:
        return 0.0

    monkeypatch.setattr(triggers, "fire", fire)
    monkeypatch.setattr(triggers, "get_events_clock_offset", on_time)
    url = f"sqlite+aiosqlite:///{home / 'prefect.db'}"
    with temporary_settings({PREFECT_SERVER_DATABASE_CONNECTION_URL: url}):
        db = provide_database_interface()
        automation = Automation.model_validate(wanted.model_dump(mode="json"))
        async with db.session_context(begin_transaction=True) as session:
            session.add(db.Automation(**automation.model_dump()))
        triggers.load_automation(automation)
        try:
            [trigger] = automation.triggers_of_type(EventTrigger)
            yield trigger, acted_on
        finally:
            triggers.forget_automation(automation.id)


async def tell(run: str, event: str, second: float, tag: str = "albat") -> None:
    """Let the automation hear of a run."""
    when = BEGAN + timedelta(seconds=second)
    heard = {"event": f"prefect.flow-run.{event}", "id": uuid4(), "occurred": when}
    resource = {"prefect.resource.id": f"prefect.flow-run.{run}"}
    related = [each.model_dump() for each in tags_as_related_resources([tag])]
    about = {"resource": resource, "related": related}
    told = ReceivedEvent.model_validate({**heard, **about, "received": when})
    await triggers.reactive_evaluation(told)


def test_only_a_run_that_fell_silent_has_crashed(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def follow() -> None:
        async with watching(home, monkeypatch) as (trigger, acted_on):

            async def look(second: float) -> None:
                await triggers.proactive_evaluation(trigger, BEGAN + timedelta(seconds=second))

            for run in ("silent", "busy", "back", "done"):
                await tell(run, BEAT, 0)
            await tell("another's", BEAT, 0, tag="backup")  # Prefect's heartbeat is as slow
            await tell("back", "Scheduled", 30)  # put into the queue again
            await tell("done", "Completed", 30)
            await tell("busy", BEAT, WITHIN - 1)  # five that should have come before did not
            await look(WITHIN - 0.5)
            assert acted_on == []
            await look(WITHIN + 0.5)
            assert acted_on == ["silent"]
            await look(2 * WITHIN - 1.5)
            assert acted_on == ["silent"]
            await look(2 * WITHIN)
            assert acted_on == ["silent", "busy"]

    asyncio.run(follow())


def test_a_run_that_never_began_has_crashed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    within = LOST.model_dump(mode="json")["trigger"]["within"]

    async def follow() -> None:
        async with watching(home, monkeypatch, LOST) as (trigger, acted_on):
            for run in ("lost", "begun", "back"):
                await tell(run, "Pending", 0)
            await tell("another's", "Pending", 0, tag="backup")
            await tell("begun", "Running", 30)
            await tell("back", "Scheduled", 30)
            await tell("begun", BEAT, 60)
            for second in (within - 1, within + 1):
                await triggers.proactive_evaluation(trigger, BEGAN + timedelta(seconds=second))
                assert acted_on == (["lost"] if second > within else [])

    asyncio.run(follow())


def test_an_automation_is_written_only_where_it_differs(prefect_server: str) -> None:
    wanted = SILENT

    async def automate() -> None:
        async with get_client() as client:
            await deploying.automate(client)

    def there() -> dict[str, Any]:
        named = {"automations": {"name": {"any_": [wanted.name]}}}
        [found] = httpx.post(f"{prefect_server}/automations/filter", json=named).json()
        return dict(found)

    async def make_older() -> None:
        trigger = wanted.trigger.model_copy(update={"within": timedelta(seconds=99)})
        async with PrefectClient(prefect_server) as client:
            [found] = await client.read_automations_by_name(wanted.name)
            older = wanted.model_copy(update={"trigger": trigger, "enabled": False})
            await client.update_automation(found.id, older)

    asyncio.run(automate())
    first = there()
    asyncio.run(automate())
    assert there() == first  # the trigger's id, too: what it has heard is kept by that
    asyncio.run(make_older())
    assert there()["trigger"]["within"] == 99
    asyncio.run(automate())
    assert there()["trigger"]["within"] == first["trigger"]["within"]
    assert there()["enabled"] is False  # as a person wanted it


@flow
def nothing() -> None:
    """Has runs that are only told of."""


def test_runs_without_a_process_have_crashed(prefect_server: str) -> None:
    states = {
        "running": [Running()],
        "pending": [Pending()],
        "cancelling": [Running(), Cancelling()],
        "alive": [Running()],
    }

    async def tried() -> tuple[list[str], dict[str, State | None]]:
        await deploying.prepare(prefect_server, own=True)
        async with PrefectClient(prefect_server) as client:
            of = await client.create_flow(nothing)
            deployed = await client.create_deployment(of, "d", work_pool_name=deploying.POOL)
            runs = {}
            for name, its in states.items():
                made = await client.create_flow_run_from_deployment(deployed, name=name)
                for state in its:
                    await client.set_flow_run_state(made.id, state, force=True)
                runs[name] = made.id
            waits = await client.create_flow_run_from_deployment(deployed, name="waits")
            own = await client.create_flow_run(nothing, name="of a command", state=Running())
            runs |= {"waits": waits.id, "of a command": own.id}
            lost = await deploying.crash_lost(prefect_server, {str(runs["alive"])})
            read = {name: (await client.read_flow_run(id_)).state for name, id_ in runs.items()}
            return lost, read

    lost, read = asyncio.run(tried())
    assert sorted(lost) == ["cancelling", "pending", "running"]
    assert {name for name, state in read.items() if state and state.is_crashed()} == set(lost)


def test_a_run_that_is_told_dead_goes_on(prefect_server: str) -> None:
    stage = lift(lambda: "done", "a stage")

    def told_dead() -> str:
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(context.flow_run.id, Crashed())
            state = client.read_flow_run(context.flow_run.id).state
            assert state is not None
            assert state.is_crashed()
        ids.append(context.flow_run.id)
        return str(stage.submit().result())

    ids: list[Any] = []
    assert as_flow(told_dead, "told-dead")() == "done"
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(ids[0]).state
    assert state is not None
    assert state.is_completed()
