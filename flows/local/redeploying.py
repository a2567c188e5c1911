"""Tells the server in ``PREFECT_API_URL`` the automation and all deployments.

What this is given goes to `prefect deploy --all`.
"""

import asyncio
import runpy
import sys

from prefect.client.orchestration import get_client

from flows.local import deploying


async def _automate() -> None:
    async with get_client() as client:
        await deploying.automate(client)


if __name__ == "__main__":
    asyncio.run(_automate())
    sys.argv = ["prefect", "--no-prompt", "deploy", "--all", *sys.argv[1:]]
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)
