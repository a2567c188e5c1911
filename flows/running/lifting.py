"""Makes a function a flow: how its runs are named, and how they end."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import Flow, flow
from prefect.events import emit_event
from prefect.events.related import tags_as_related_resources
from prefect.exceptions import Pause
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from albat_core.errors import AlbatError
from flows.running.own_process import own_answer_to_sigterm
from tasks.failing import failed

Given = ParamSpec("Given")
Result = TypeVar("Result")


def as_flow(
    function: Callable[Given, Result], run_name: str = "{config.name}"
) -> Flow[Given, Result]:
    """Make a function a flow of its name; it keeps its signature.

    Args:
        function: what its runs do.
        run_name: what they are called, by the function's parameters.
    """

    @functools.wraps(function)
    def run(*args: Given.args, **kwargs: Given.kwargs) -> Any:
        try:
            with own_answer_to_sigterm():
                return function(*args, **kwargs)
        except AlbatError as error:
            get_run_logger().error(str(error))
            return failed(error)
        except Pause:
            _say_last_word()
            raise

    name = function.__name__
    made: Flow[Given, Result] = flow(name=name, flow_run_name=run_name, persist_result=False)(run)
    return made


def _say_last_word() -> None:
    """Tell the server that a paused run's process ends: unsaid, its silence would be a crash."""
    resource = {"prefect.resource.id": f"prefect.flow-run.{flow_run.id}"}
    emit_event("prefect.flow-run.left", resource, related=tags_as_related_resources(flow_run.tags))
