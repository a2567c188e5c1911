"""The one cache rule: a stage looks for its own finished artifact, Prefect caches nothing.

Prefect's records can outlive an artifact and never look at it; the artifact store does. So tasks
run each time, and one whose artifact was found ends in the state *Reused*.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, TypeVar, cast

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed

from albat_core.errors import TransientError

P = ParamSpec("P")


class Result(Protocol):
    """What a stage returns: references, and whether they were found finished."""

    @property
    def reused(self) -> bool:
        """Whether nothing had to be computed."""


R = TypeVar("R", bound=Result)


def stage_task(name: str, run_name: str) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Lift a function of the core to a task.

    Args:
        name: of the task.
        run_name: of each run; may name parameters in braces.
    """

    def lift(function: Callable[P, R]) -> Task[P, R]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> Any:
            result = function(*args, **kwargs)
            if result.reused:
                return Completed(name="Reused", message=str(result), data=result)
            return result

        make_task: Any = task(
            name=name,
            task_run_name=run_name,
            cache_policy=NO_CACHE,
            persist_result=False,
            retries=3,
            retry_delay_seconds=[2, 8, 30],
            retry_condition_fn=_may_pass,
        )
        return cast(Task[P, R], make_task(run))

    return lift


def _may_pass(task_: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Tell whether trying again may help: storage and network only."""
    del task_, run
    return isinstance(state.data, TransientError) or _raises_transient(state)


def _raises_transient(state: State[Any]) -> bool:
    try:
        state.result()
    except TransientError:
        return True
    except Exception:
        return False
    return False
