"""Tells the server in ``PREFECT_API_URL`` the automations and all deployments, as `albat up` does.

What this is given goes to `prefect deploy --all`; without `--prefect-file` it deploys albat's own,
from any folder. What a person has set on the pages stays: Prefect sets it back to what prefect.yaml
says.
"""

import asyncio
import runpy
import sys
from collections.abc import Collection
from typing import Any, NamedTuple
from uuid import UUID

from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
from prefect.client.schemas.filters import DeploymentFilter
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import PrefectHTTPStatusError

from flows.local import deploying


class Kept(NamedTuple):
    """A deployment as it was before all was deployed again."""

    deployment: DeploymentResponse
    disabled: Collection[str]
    """Names of its triggers that were disabled; Prefect makes all of them anew."""


async def before() -> list[Kept]:
    """Make the automation, and return the deployments that are there."""
    ours = DeploymentFilter.model_validate({"tags": {"all_": [deploying.TAG]}})
    async with get_client() as client:
        await deploying.automate(client)
        there = await client.read_deployments(deployment_filter=ours)
        return [Kept(each, await _triggers(client, each, enabled=False)) for each in there]


async def put_back(kept: list[Kept]) -> None:
    """Set what a person can set on the pages as it was before all was deployed."""
    async with get_client() as client:
        for deployment, disabled in kept:
            now = await client.read_deployment(deployment.id)
            if (wanted := _schedules(deployment)) != _schedules(now):
                print(f"{deployment.name}: its schedules stay as they are on the server")
                for schedule in now.schedules:
                    await client.delete_deployment_schedule(now.id, schedule.id)
                if wanted:
                    await client.create_deployment_schedules(now.id, wanted)
            settings, given = _settings(deployment), _settings(now)
            if settings["concurrency_options"] and given["concurrency_options"]:  # some may be new
                settings["concurrency_options"] = (
                    given["concurrency_options"] | settings["concurrency_options"]
                )
            if settings != given:
                await client.update_deployment(now.id, DeploymentUpdate(**settings))
                told = [f"{n}: {v}" for n, v in settings.items() if v != given[n]]
                print(f"{deployment.name}: stays as it is on the server, {', '.join(told)}")
            if more := _more(deployment, now):
                await client.update_deployment(now.id, DeploymentUpdate(**more))
            if deployment.parameters != now.parameters:
                await _put_parameters_back(client, deployment)
            enabled = await _triggers(client, deployment, enabled=True)
            for name in enabled.keys() & disabled:
                await client.pause_automation(enabled[name])


async def _triggers(
    client: PrefectClient, deployment: DeploymentResponse, *, enabled: bool
) -> dict[str, UUID]:
    """Return a deployment's enabled or disabled automations by name."""
    related = await client.read_resource_related_automations(f"prefect.deployment.{deployment.id}")
    return {each.name: each.id for each in related if each.enabled == enabled}


def _schedules(deployment: DeploymentResponse) -> list[DeploymentScheduleCreate]:
    fields = set(DeploymentScheduleCreate.model_fields)
    schedules = [
        DeploymentScheduleCreate.model_validate(schedule.model_dump(include=fields))
        for schedule in deployment.schedules
    ]
    return sorted(schedules, key=repr)  # a server gives them in any order


def _settings(deployment: DeploymentResponse) -> dict[str, Any]:
    limit, options = deployment.global_concurrency_limit, deployment.concurrency_options
    return {
        "paused": deployment.paused,
        "concurrency_limit": limit.limit if limit is not None else None,
        "concurrency_options": options.model_dump(exclude_none=True) if options else None,
    }


def _more(before: DeploymentResponse, now: DeploymentResponse) -> dict[str, Any]:
    """Return tags and job variables with those that only the deployment of before has."""
    more: dict[str, Any] = {}
    if tags := [tag for tag in before.tags if tag not in now.tags]:
        more["tags"] = [*now.tags, *tags]
    was, new = before.job_variables or {}, now.job_variables or {}
    wanted = was | new
    if "env" in was or "env" in new:
        wanted["env"] = (was.get("env") or {}) | (new.get("env") or {})
    if wanted != new:
        more["job_variables"] = wanted
    return more


async def _put_parameters_back(client: PrefectClient, deployment: DeploymentResponse) -> None:
    """Set a form's values as they were, unless it takes them no longer: then say so."""
    try:
        await client.update_deployment(
            deployment.id, DeploymentUpdate(parameters=deployment.parameters)
        )
    except PrefectHTTPStatusError as error:
        if error.response.status_code != 409:
            raise
        print(f"{deployment.name}: the form no longer takes its parameters: {error.response.text}")


if __name__ == "__main__":
    there = asyncio.run(before())
    given = sys.argv[1:]
    named = any(each.startswith("--prefect-file") for each in given)
    file = [] if named else ["--prefect-file", str(deploying.DEPLOYMENTS)]
    sys.argv = ["prefect", "--no-prompt", "deploy", "--all", *file, *given]
    try:
        runpy.run_module("prefect", run_name="__main__", alter_sys=True)
    finally:
        asyncio.run(put_back(there))
