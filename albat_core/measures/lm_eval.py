"""Tasks of lm-evaluation-harness, by its own names or as YAML files: a score a row, by metric."""

import difflib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from copy import deepcopy
from functools import lru_cache
from importlib.metadata import version
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from albat_core.errors import AlbatError, BackboneError, ConfigError, MissingDependencyError
from albat_core.measures.task_files import is_file, read_task_file
from albat_core.progress import Advance, track

Floats = NDArray[np.float64]

_NEAR = 3  # names that are offered in place of an unknown one
_TOLD: ContextVar[tuple[str, ExitStack] | None] = ContextVar("told", default=None)
"""What the requests under way are told as, and what ends that."""


def task_title(name: str) -> str:
    """Return what a task is called in tables: by lm-eval's own name, or by its file's."""
    return PurePath(name).stem if is_file(name) else name


def task_identity(name: str) -> dict[str, Any]:
    """Return what a task's rows, prompts and metrics depend on beside its name.

    That is lm-eval's version, and of a file its content and what ``TaskFile.digests`` names. A data
    set on the Hub may change unseen.

    Raises:
        ConfigError: a file cannot be read, or its data is not there.
        MissingDependencyError: lm-eval is not installed.
    """
    check_library()
    files = {"files": read_task_file(name).digests()} if is_file(name) else {}
    return {"lm-eval": version("lm-eval")} | files


def check_library() -> None:
    """Look whether lm-eval is installed.

    Raises:
        MissingDependencyError: it is not.
    """
    _library()


def check_task(name: str, trust_remote_code: bool) -> None:
    """Make a task ready as a run will, its data included: what is on the Hub is fetched.

    Args:
        name: lm-eval's own of a task, a group or a tag, or a file.
        trust_remote_code: whether Python code may run that is no part of lm-eval.

    Raises:
        ConfigError: there is none of the name, it cannot be made ready, it needs such code, has the
            model write code that is run or look at pictures, or no metric of it is told.
        MissingDependencyError: lm-eval is not installed.
    """
    task_identity(name)
    _Tasks(name, trust_remote_code).load([name])


def take_task(
    name: str,
    model: Any,
    tokenizer: Any,
    *,
    limit: int | None,
    fewshot: int | None,
    batch: int,
    trust_remote_code: bool,
    label: str = "examine",
) -> tuple[list[str], dict[str, Floats]]:
    """Have a model take a task, as lm-eval's ``simple_evaluate`` does, by its own fixed seeds.

    Args:
        name: lm-eval's own of a task, a group or a tag, or a file.
        model: of transformers, with an adapter or without.
        tokenizer: of the model; left as it is.
        limit: rows of each task that are asked at most, the first ones; None: all.
        fewshot: examples in front of each row; None: as many as the task says.
        batch: rows read at once.
        trust_remote_code: whether Python code may run that is no part of lm-eval.
        label: names the progress line.

    Returns:
        names of the n rows; by metric, named with the task, their scores, (n,) and finite, higher
        for better, whose mean is what lm-eval tells. Of a group: the rows of all its tasks, and the
        metrics that all of them have.

    Raises:
        BackboneError: there is no room for so many rows at once.
        ConfigError: see ``check_task``; or the task fails at a row.
        MissingDependencyError: lm-eval is not installed.
    """
    import torch

    lm_eval = _library()
    from lm_eval.models.huggingface import HFLM

    tasks = _Tasks(name, trust_remote_code)
    with _held(name, trust_remote_code), _counted(label), torch.random.fork_rng():
        try:
            found = lm_eval.simple_evaluate(
                HFLM(pretrained=model, tokenizer=deepcopy(tokenizer), batch_size=batch),
                tasks=[name],
                num_fewshot=fewshot,
                limit=limit,
                bootstrap_iters=0,
                log_samples=True,
                task_manager=tasks,
            )
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise BackboneError(
                f"expected room for {batch} rows at once, the memory is full",
                where=_where(name),
                remedy="lower evaluation.task_batch, or free the device",
            ) from error
    return _scores(name, tasks.told, found["samples"])


def _scores(
    name: str, told: Mapping[str, Sequence[str]], samples: Mapping[str, Sequence[Mapping[str, Any]]]
) -> tuple[list[str], dict[str, Floats]]:
    """Return the rows, and what lm-eval logged of them.

    Args:
        name: of the task or group.
        told: metrics, by task.
        samples: what was logged of each row by each filter of answers, by task.
    """
    rows: dict[str, None] = {}
    by_metric: dict[str, dict[str, float]] = {}
    for task, logged in samples.items():
        for sample in logged:
            row = f"{task}/{sample['doc_id']}"
            rows[row] = None
            filtered = "" if sample["filter"] == "none" else f" {sample['filter']}"
            for metric in told[task]:
                if metric in sample:
                    title = f"{task_title(name)} {metric}{filtered}"
                    by_metric.setdefault(title, {})[row] = float(sample[metric])
    whole = {
        metric: np.array(list(scores.values()))
        for metric, scores in by_metric.items()
        if scores.keys() == rows.keys()
    }
    if not whole or not all(np.isfinite(scores).all() for scores in whole.values()):
        raise ConfigError(
            f"expected a finite score for each of {len(rows)} rows, and a metric that all have",
            where=_where(name),
            remedy="look at the task with lm-eval's own command, or leave it out",
        )
    return list(rows), whole


class _Tasks:
    """Loads tasks for ``simple_evaluate`` as lm-eval's manager does, and refuses those unfit.

    Args:
        name: of the task, group or tag.
        trust_remote_code: see ``check_task``.
    """

    def __init__(self, name: str, trust_remote_code: bool) -> None:
        self._name = name
        self._trusts = trust_remote_code
        self.told: dict[str, list[str]] = {}
        self.task_index: dict[str, Any] = {}  # where lm-eval looks for what it logs alone

    def load(self, names: list[str]) -> Any:
        """Return tasks and groups of the names, and note which metrics are told of each task."""
        own = is_file(self._name)
        if not own:
            _refuse_unknown(self._name)
        elif (code := read_task_file(self._name).code) and not self._trusts:
            raise _untrusted(self._name, code[0])
        with _held(self._name, self._trusts):
            found = _manager(own=own).load(names)
        tasks = found["tasks"]
        for name, task in tasks.items():
            if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
                raise ConfigError(
                    "expected a task that reads and writes texts alone, got one of pictures or "
                    f"sound, or whose answers are run as code ({name})",
                    where=_where(self._name),
                    remedy="leave it out, or run it with lm-eval's own command",
                )
        self.told = {name: _told(task) for name, task in tasks.items()}
        if not any(self.told.values()):
            others = sorted({metric for task in tasks.values() for metric in task.aggregation()})
            raise ConfigError(
                "expected a metric that is a mean over rows, higher for better, got "
                f"{', '.join(others) or 'none'}",
                where=_where(self._name),
                remedy="leave it out, or run it with lm-eval's own command",
            )
        return found


def _told(task: Any) -> list[str]:
    """Return the metrics of a task that are means over rows, higher for better."""
    from lm_eval.api.metrics import mean

    better = task.higher_is_better()
    return [name for name, how in task.aggregation().items() if how is mean and better.get(name)]


class _Bar:
    """Tells how many requests a model has answered, where lm-eval would draw a bar of them.

    Args:
        total: requests of one kind.
    """

    def __init__(self, total: int) -> None:
        self._advance: Advance = lambda _: None
        if told := _TOLD.get():
            label, lines = told
            lines.close()  # of the kind before
            self._advance = lines.enter_context(track(label, total, "requests"))

    def update(self, count: int) -> None:
        """Count requests that are answered."""
        self._advance(count)

    def close(self) -> None:
        """Leave the line to who asks."""


def _bar(over: Sequence[Any] | None = None, *, total: int = 0, **_: Any) -> Any:
    """Return what is gone over as it is, or what counts requests: as `tqdm` is called."""
    return _Bar(total) if over is None else over


@contextmanager
def _counted(label: str) -> Iterator[None]:
    """Tell of requests by this label while the context lasts."""
    with ExitStack() as lines:
        before = _TOLD.set((label, lines))
        try:
            yield
        finally:
            _TOLD.reset(before)


@lru_cache(maxsize=1)
def _library() -> Any:
    """Return lm-eval, which from here on says nothing and runs no Python in templates."""
    try:
        import datasets
        import lm_eval
        from lm_eval import evaluator, utils
        from lm_eval.api import model, task
        from lm_eval.models import huggingface
    except ImportError as error:
        raise MissingDependencyError(
            f"tasks need lm-eval, which is not installed ({error})",
            where="evaluation.tasks",
            remedy="install albat[lm-eval], or take tasks out",
        ) from error
    from jinja2.sandbox import SandboxedEnvironment

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    datasets.disable_progress_bars()
    for module in (model, task, huggingface):
        module.tqdm = _bar
    evaluator.add_env_info = lambda _: None  # asks for compilers and drivers, for seconds
    evaluator.get_git_commit_hash = lambda: None  # of the folder that albat is run in
    # in the environment that it has, a template of a file reaches Python by any value's class
    sandbox = SandboxedEnvironment(undefined=utils.env.undefined, keep_trailing_newline=True)
    sandbox.filters.update(utils.env.filters)
    utils.env = sandbox
    return lm_eval


@lru_cache(maxsize=2)
def _manager(*, own: bool) -> Any:
    """Return lm-eval's manager of tasks; a file of one's own needs no index of others."""
    _library()
    from lm_eval.tasks import TaskManager

    return TaskManager(include_defaults=not own)


def _refuse_unknown(name: str) -> None:
    """Raise a ConfigError where lm-eval has no task, group or tag of the name."""
    names = _manager(own=False).all_tasks
    if name not in names:
        near = difflib.get_close_matches(name, names, n=_NEAR)
        raise ConfigError(
            f"expected the name of a task of lm-eval, or a YAML file, got {name!r}",
            where="evaluation.tasks",
            remedy=f"did you mean {', '.join(near)}?" if near else "`lm_eval ls tasks` lists names",
        )


@contextmanager
def _held(name: str, trust_remote_code: bool) -> Iterator[None]:
    """Let no code of metrics come from the Hub unless it is trusted, and tell what goes wrong."""
    _library()
    import evaluate

    load, asked = evaluate.load, list[str]()

    def refuse(path: str, *_: Any, **__: Any) -> None:
        asked.append(path)
        raise ImportError(path)  # which lm-eval may swallow

    if not trust_remote_code:
        evaluate.load = refuse
    failed: Exception | None = None
    try:
        yield
    except AlbatError:
        raise
    except Exception as error:  # lm-eval's, of its libraries, of templates and code of a file
        failed = error
    finally:
        evaluate.load = load
    if asked:
        raise _untrusted(name, f"{asked[0]}, of the library evaluate") from failed
    if failed is not None:
        raise _failing(name, failed) from failed


def _untrusted(name: str, code: str) -> ConfigError:
    return ConfigError(
        f"expected a task without Python code beside lm-eval's own, got {code}",
        where=_where(name),
        remedy="read that code, then set evaluation.trust_remote_code to true",
    )


def _failing(name: str, error: Exception) -> ConfigError:
    said = f"{type(error).__name__}: {error}".splitlines()[0]
    if isinstance(error, OSError):  # of datasets: no such data, or no network
        return ConfigError(
            f"expected the task's data, which cannot be had ({said})",
            where=_where(name),
            remedy="check its name and the network; what was fetched from the Hub once is kept in "
            "HF_HOME",
        )
    remedy = "mend the file" if is_file(name) else "install what it names, or leave the task out"
    return ConfigError(
        f"expected a task that lm-eval can take, got {said}", where=_where(name), remedy=remedy
    )


def _where(name: str) -> str:
    return f"evaluation.tasks: {name}"
