"""What a person has set on Prefect's pages outlives that all is deployed again."""

import asyncio
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import (
    DeploymentScheduleCreate,
    DeploymentUpdate,
    GlobalConcurrencyLimitUpdate,
    WorkPoolUpdate,
)
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.events import DeploymentEventTrigger
from prefect.schedules import Interval

from flows.local import deploying, redeploying
from tasks.stages import GPU

pytestmark = pytest.mark.end_to_end

TRIGGER = "a leaf has grown"


@flow
def form(rows: int = 1) -> int:
    """Has one field."""
    return rows


async def deploy() -> DeploymentResponse:
    """Deploy as `prefect deploy` does; return what is there."""
    made = await form.to_deployment(  # type: ignore[misc]
        "kept",
        tags=[deploying.TAG],
        schedules=[Interval(timedelta(minutes=10), slug="looks")],
        concurrency_limit=ConcurrencyLimitConfig(limit=1),
        work_pool_name=deploying.POOL,
        job_variables={"env": {"OURS": "1"}},
        triggers=[DeploymentEventTrigger(name=TRIGGER, expect={"leaf.grown"})],
    )
    made._path = str(Path(__file__).parent)
    await made.apply()
    async with get_client() as client:
        return await client.read_deployment_by_name("form/kept")


async def told(deployment: DeploymentResponse) -> dict[str, Any]:
    """Return what a person can set of a deployment."""
    async with get_client() as client:
        [trigger] = await client.read_automations_by_name(TRIGGER)
    limit = deployment.global_concurrency_limit
    schedules = deployment.schedules
    return {
        "paused": deployment.paused,
        "trigger": trigger.enabled,
        "tags": set(deployment.tags),
        "job_variables": deployment.job_variables,
        "parameters": deployment.parameters,
        "limit": limit and limit.limit,
        "schedules": {(str(each.schedule), each.active, each.slug) for each in schedules},
    }


async def set_on_the_pages() -> DeploymentResponse:
    """Set all that a person can set; return what is there."""
    async with get_client() as client:
        there = await client.read_deployment_by_name("form/kept")
        for schedule in there.schedules:
            rarely = IntervalSchedule(interval=timedelta(days=1))
            await client.update_deployment_schedule(there.id, schedule.id, False, rarely)
        nightly = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 2 * * *"))
        await client.create_deployment_schedules(there.id, [nightly])
        [trigger] = await client.read_automations_by_name(TRIGGER)
        await client.pause_automation(trigger.id)
        chosen = DeploymentUpdate(
            paused=True,
            parameters={"rows": 5},
            concurrency_limit=3,
            tags=[deploying.TAG, "mine"],
            job_variables={"env": {"OURS": "1", "MINE": "2"}, "working_dir": "/data"},
        )
        await client.update_deployment(there.id, chosen)
        return await client.read_deployment(there.id)


def test_what_a_person_has_set_is_kept_when_all_is_deployed_again(
    prefect_server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def tried() -> None:
        await deploying.prepare(prefect_server, own=True)
        first = await told(await deploy())
        chosen = await told(await set_on_the_pages())
        assert all(first[name] != value for name, value in chosen.items())
        alone = await told(await deploy())
        assert all(alone[name] != value for name, value in chosen.items())
        chosen = await told(await set_on_the_pages())
        for _ in range(2):
            kept = await redeploying.before()
            await deploy()
            await redeploying.put_back(kept)
            async with get_client() as client:
                assert await told(await client.read_deployment_by_name("form/kept")) == chosen
        [form_of] = [each.deployment for each in kept if each.deployment.name == "kept"]
        form_of.parameters = {"rows": "of an older version"}
        await redeploying.put_back(kept)
        assert "kept: the form no longer takes its parameters" in capsys.readouterr().out
        async with get_client() as client:
            assert await told(await client.read_deployment_by_name("form/kept")) == chosen

    asyncio.run(tried())


def test_a_pool_that_is_there_keeps_its_limit_and_its_pause(prefect_server: str) -> None:
    async def tried() -> None:
        await deploying.prepare(prefect_server, own=True)
        async with get_client() as client:
            limited = WorkPoolUpdate(concurrency_limit=1, is_paused=True, description="mine")
            await client.update_work_pool(deploying.POOL, limited)
            await deploying.prepare(prefect_server, own=True)
            pool = await client.read_work_pool(deploying.POOL)
            await client.delete_work_pool(deploying.POOL)
        assert (pool.concurrency_limit, pool.is_paused, pool.description) == (1, True, "mine")

    asyncio.run(tried())


def test_a_pool_of_a_shared_server_names_no_machine_s_python(prefect_server: str) -> None:
    async def command(own: bool) -> str:
        await deploying.prepare(prefect_server, own=own)
        async with get_client() as client:
            pool = await client.read_work_pool(deploying.POOL)
            await client.delete_work_pool(deploying.POOL)
        return str(pool.base_job_template["variables"]["properties"]["command"]["default"])

    assert asyncio.run(command(own=True)).startswith(f'"{sys.executable}" -P')
    assert asyncio.run(command(own=False)).startswith("python -P -m flows.local.launching")


def test_what_runs_held_of_gpus_when_their_server_ended_is_given_back(prefect_server: str) -> None:
    async def tried() -> None:
        await deploying.free_devices(prefect_server)  # where there is no limit
        async with get_client() as client:
            await client.create_concurrency_limit(GPU, 2)
            named = f"tag:{GPU}"
            held = GlobalConcurrencyLimitUpdate(active_slots=2)
            await client.update_global_concurrency_limit(named, held)
            await deploying.free_devices(prefect_server)
            limit = await client.read_global_concurrency_limit_by_name(named)
            await client.delete_concurrency_limit_by_tag(GPU)
        assert (limit.active_slots, limit.limit) == (0, 2)

    asyncio.run(tried())
