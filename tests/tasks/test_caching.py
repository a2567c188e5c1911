"""The one cache rule, and when a task is tried again."""

import inspect
from typing import Any

import pytest
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, Failed

from albat_core.errors import InputError, TransientError
from albat_core.store.artifacts import ArtifactRef
from tasks.caching import lift
from tasks.stages import TASKS

REF = ArtifactRef(stage="shards", key="ab", reused=False)


def refer(name: str, reused: bool) -> ArtifactRef:
    """Return a reference."""
    return REF.model_copy(update={"key": name, "reused": reused})


def test_what_was_reused_ends_in_a_state_that_says_so() -> None:
    made = lift(refer, "refer")
    assert made.fn("a", False) == refer("a", False)
    state: Any = made.fn("a", True)
    assert (state.name, state.type, state.message) == ("Reused", Completed().type, "shards/a")


def test_a_task_keeps_the_signature_and_caches_nothing() -> None:
    made = lift(refer, "refer", "refer {name}")
    assert inspect.signature(made.fn) == inspect.signature(refer)
    assert made.cache_policy == NO_CACHE
    assert made.persist_result is False
    assert made.task_run_name == "refer {name}"


@pytest.mark.parametrize(
    ("error", "again"),
    [(TransientError("no answer"), True), (InputError("bad row"), False), (OSError("x"), False)],
)
def test_only_what_may_pass_is_tried_again(error: Exception, again: bool) -> None:
    made: Any = lift(refer, "refer")
    assert made.retries > 0
    assert made.retry_condition_fn(made, None, Failed(data=error, message=str(error))) is again


def test_names_of_runs_use_parameters_that_there_are() -> None:
    named = 0
    for function, made in TASKS.items():
        parameters = inspect.signature(function).parameters
        for field in str(made.task_run_name).split("{")[1:]:
            name = field.partition("}")[0].partition(".")[0]
            assert name in parameters, f"{made.name}: {name}"
            named += 1
    assert named > 0
