"""The one cache rule: a stage looks for its own finished artifact, Prefect caches nothing.

Prefect's records can outlive an artifact and never look at it; the artifact store does. So tasks
run each time, and one whose artifact was found ends in the state *Reused*.
"""

import functools
from collections.abc import Callable
from typing import Any

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Completed

from albat_core.errors import AlbatError, TransientError
from tasks.failing import failed
from tasks.progress import report_to_run


def lift(function: Callable[..., Any], name: str, run_name: str | None = None) -> Task[..., Any]:
    """Make a function of the core a task; it keeps its signature.

    Args:
        function: takes and gives references and configuration, never arrays or models.
        name: of the task.
        run_name: of each run; may name parameters in braces. Default: the task's name.
    """

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        report_to_run()  # here, because in a cluster this may be all that runs in a process
        try:
            result = function(*args, **kwargs)
        except AlbatError as error:
            return failed(error)
        if getattr(result, "reused", False):
            return Completed(name="Reused", message=str(result), data=result)
        return result

    made: Task[..., Any] = task(
        name=name,
        task_run_name=run_name or name,
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=3,
        retry_delay_seconds=[2, 8, 30],
        retry_condition_fn=_may_pass,
    )(run)
    return made


def _may_pass(task_: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Tell whether trying again may help: with storage and network only."""
    del task_, run
    try:
        state.result()
    except TransientError:
        return True
    except Exception:
        return False
    return False
