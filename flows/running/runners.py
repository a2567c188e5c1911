"""Where the tasks of a flow run: in threads or processes here, or on a Dask or Ray cluster."""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import Pipe, active_children
from multiprocessing.connection import Connection
from typing import Any

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_API_URL
from prefect.settings.context import temporary_settings
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner, ThreadPoolTaskRunner
from prefect.utilities.callables import get_call_parameters

from albat_core.devices import gpu_count
from albat_core.errors import AlbatError, ConfigError, Interrupted, ProcessError
from albat_core.progress import track
from albat_core.runs.steps import Execute, Given, Made, Pending
from albat_core.store.stage import Runtime
from flows.running import own_process
from tasks.progress import report_to_run
from tasks.stages import GPU, TASKS, task_for

OnGpu = Callable[[], AbstractContextManager[Any]]
"""Entered where a task that takes a GPU is submitted."""

_LOOK = 0.5  # seconds between looks whether a person asked to stop
_PATIENCE = 3.0  # seconds for a process to come to its next step and keep where it is
_RAY_STORE = 100 * 2**20  # bytes of memory for what Ray's tasks exchange: references, no arrays


def check_runner(runtime: Runtime) -> None:
    """Look whether the configured runner can be started, without starting it.

    Raises:
        ConfigError: it is not installed, or its cluster could not reach Prefect's server.
    """
    if runtime.runner == "threads":
        if runtime.cluster:
            raise ConfigError(
                f"expected no cluster for threads, got {runtime.cluster!r}",
                where="runtime.cluster",
                remedy="set runtime.runner to dask or ray, or take the cluster out",
            )
        return
    if runtime.devices > 1:
        raise ConfigError(
            f"expected no number of devices for {runtime.runner}, whose processes each take one, "
            f"got {runtime.devices}",
            where="runtime.devices",
            remedy="say with runtime.workers how many processes there are on this machine, "
            "or set runtime.runner to threads",
        )
    if find_spec(f"prefect_{runtime.runner}") is None:
        raise ConfigError(
            f"runtime.runner is {runtime.runner!r}, and prefect-{runtime.runner} is not installed",
            where="runtime.runner",
            remedy=f"install albat[{runtime.runner}], or set runtime.runner to threads",
        )
    if runtime.runner == "ray" and runtime.training_devices > 1:
        raise ConfigError(
            f"expected one device a training, as Ray shows a task one GPU, got "
            f"{runtime.training_devices}",
            where="runtime.training_devices",
            remedy="set it to 1, or runtime.runner to threads or dask",
        )
    if runtime.cluster and not PREFECT_API_URL.value():
        raise ConfigError(
            "expected a Prefect server that the cluster's machines reach, got none",
            where="runtime.cluster",
            remedy="set PREFECT_API_URL to a server's address, on those machines too; "
            "without runtime.cluster the tasks run in processes of this machine",
        )


@contextmanager
def tasks_on(runtime: Runtime) -> Iterator[Execute]:
    """Start what runs a flow's tasks; gives how a stage is called on its items.

    Raises:
        ConfigError: the runner is not installed, or its cluster does not answer.
    """
    check_runner(runtime)
    if runtime.devices > 1:
        with tasks_in_processes(runtime.devices) as execute:
            yield execute
        return
    if runtime.runner == "threads":
        limited = own_process.named_server() is not None
        with _executing(ThreadPoolTaskRunner(max_workers=runtime.workers), limited) as execute:
            yield execute
        return
    runner, on_gpu = {"dask": _dask, "ray": _ray}[runtime.runner](runtime)
    with _server_named() as limited, ExitStack() as stack:
        with _answering(runtime):
            execute = stack.enter_context(_executing(runner, limited, on_gpu))
            getattr(runner, "client", None)  # Dask connects when it is first asked for
        yield execute


@contextmanager
def tasks_in_processes(count: int) -> Iterator[Execute]:
    """Run tasks in so many processes of this machine, each with its share of the cores.

    They end with this one, however it ends.
    """
    with _server_named() as limited, _executing(_Processes(count), limited) as execute:
        yield execute


class _Processes(ProcessPoolTaskRunner):
    """Processes that end when a pipe does, of which this process has the only other end.

    So they end when a person asks to stop, and when this process is gone.

    Args:
        count: of them.
    """

    def __init__(self, count: int) -> None:
        self._told, self._open = Pipe(duplex=False)
        super().__init__(
            count, initializer=_prepare_process, initargs=(_share_of_cores(count), self._told)
        )

    def submit(self, *args: Any, **kwargs: Any) -> Any:
        """Run a task; its process may be started for it, and this thread alone hears signals."""
        with own_process.signals_held():
            return super().submit(*args, **kwargs)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """Wait for what is computed, or end it where a person asked to stop."""
        if kind is None or (issubclass(kind, AlbatError) and not issubclass(kind, Interrupted)):
            super().__exit__(kind, error, trace)
        else:
            self._open.close()
            stubborn = threading.Timer(_PATIENCE + 1, _kill_children)
            stubborn.start()
            super().__exit__(kind, error, trace)
            stubborn.cancel()
        self._told.close()
        self._open.close()


def _kill_children() -> None:
    """End those that could not end themselves, as their own threads were not let run."""
    for process in active_children():
        process.kill()


@contextmanager
def _executing(
    runner: TaskRunner[Any], limited: bool, on_gpu: OnGpu = nullcontext
) -> Iterator[Execute]:
    """Start a task runner; gives how a stage is called on its items.

    Args:
        runner: of Prefect's.
        limited: whether tasks on GPUs are held to one a device by their server, which has others
            beside this run. On a server for this run alone locks of the machine do.
        on_gpu: context of their submission.
    """
    report_to_run()
    hold_to_one_a_device = cache(_hold_to_one_a_device)

    def execute(
        stage: Callable[Given, Made], /, *args: Given.args, **kwargs: Given.kwargs
    ) -> Pending[Made]:
        parameters = get_call_parameters(stage, args, kwargs)
        task = task_for(stage, parameters)
        if GPU not in task.tags:
            return _Submitted(runner.submit(task, parameters))
        if limited:
            hold_to_one_a_device()
        else:
            task = TASKS[stage]
        with on_gpu():
            return _Submitted(runner.submit(task, parameters))

    with runner:
        yield execute


def _hold_to_one_a_device() -> None:
    """Limit tasks on GPUs to one for each that this machine has, unless a person has set it."""
    with get_client(sync_client=True) as client:
        try:
            client.read_concurrency_limit_by_tag(GPU)
        except ObjectNotFound:
            client.create_concurrency_limit(GPU, max(gpu_count(), 1))


class _Submitted:
    """A task that was submitted.

    Args:
        future: of its run.
    """

    def __init__(self, future: PrefectFuture[Any]) -> None:
        self._future = future

    def result(self) -> Any:
        """Wait for it; a person who asks to stop is heard, wherever the task runs."""
        missed = False
        with track("", 1, "") as advance:
            while True:
                try:
                    found: Any = self._future.result(timeout=_LOOK, raise_on_failure=False)
                except BaseException as error:
                    advance(0)  # what a stop broke is no failure of its own
                    if isinstance(error, BrokenExecutor):
                        raise ProcessError(
                            "expected a process to end its task, it is gone",
                            where="runtime.devices, or a benchmark's parallel",
                            remedy="run the same command again: what was finished is found; where "
                            "memory was short, take fewer of them",
                        ) from error
                    if isinstance(error, UnboundLocalError) and not missed:
                        missed = True  # in Dask, where the end of a task meets that of the wait
                    elif not isinstance(error, TimeoutError):
                        raise
                else:
                    break
        if isinstance(found, BaseException):  # as it is, so no task's TimeoutError is waited for
            raise found
        return found


@contextmanager
def _server_named() -> Iterator[bool]:
    """Tell other processes which Prefect server is used; gives whether it was configured.

    Else it is one that this command started.
    """
    configured = own_process.named_server() is not None
    url = str(get_client(sync_client=True).api_url).rstrip("/")
    with temporary_settings({PREFECT_API_URL: url}):
        yield configured


def _dask(runtime: Runtime) -> tuple[TaskRunner[Any], OnGpu]:
    from prefect_dask import DaskTaskRunner

    if runtime.cluster:
        return DaskTaskRunner(address=runtime.cluster), nullcontext
    _quieten("distributed")
    here = {
        "n_workers": runtime.workers,
        "threads_per_worker": 1,
        "memory_limit": 0,  # Dask would kill a process whose model is large
        "dashboard_address": None,
        "env": _environment(runtime.workers),
        "preload": [own_process.__name__],
    }
    return DaskTaskRunner(cluster_kwargs=here), nullcontext


def _ray(runtime: Runtime) -> tuple[TaskRunner[Any], OnGpu]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers
    from prefect_ray import RayTaskRunner
    from prefect_ray.context import remote_options

    settings: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if not runtime.cluster:
        _quieten("ray")
        settings |= {
            "num_cpus": runtime.workers,
            "include_dashboard": False,
            "object_store_memory": _RAY_STORE,
            "runtime_env": {"env_vars": _environment(runtime.workers)},
        }
    # without an address Ray would join any cluster that this machine is noted to be of
    runner = RayTaskRunner(address=runtime.cluster or "local", init_kwargs=settings)
    return runner, partial(remote_options, num_gpus=1)  # Ray hides GPUs from all other tasks


@contextmanager
def _answering(runtime: Runtime) -> Iterator[None]:
    """Name the cluster where it does not answer."""
    try:
        yield
    except (OSError, TimeoutError, ValueError) as error:
        if not runtime.cluster:
            raise
        raise ConfigError(
            f"expected a {runtime.runner} cluster at {runtime.cluster}, got no answer ({error})",
            where="runtime.cluster",
            remedy="start it, or mend its address (Ray may want its token too: RAY_AUTH_TOKEN); "
            "without an address the tasks run on this machine",
        ) from error


def _quieten(library: str) -> None:
    """Let a library tell only of errors: nobody looks after a cluster that lives for one run."""
    import_module(library)  # sets its own level
    logging.getLogger(library).setLevel(logging.ERROR)


def _environment(processes: int) -> dict[str, str]:
    """Return what a cluster's processes on this machine find in their environment."""
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(_share_of_cores(processes)))}


def _share_of_cores(processes: int) -> int:
    return max((os.cpu_count() or 1) // processes, 1)


def _prepare_process(cores: int, told: Connection) -> None:
    """Give a process its share of the cores, let it print what it has finished, and end in time."""
    from albat_core.devices import use_cores
    from albat_core.progress import report_to
    from flows.console import LineReporter

    own_process.leave_signals_to_parent()
    own_process.ignore_warnings()
    use_cores(cores)
    reporter = LineReporter()
    report_to(reporter)
    own_process.end_with(told, reporter, _PATIENCE)
