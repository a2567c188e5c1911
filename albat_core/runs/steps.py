"""Steps of a run: each a stage with its arguments, submitted once, noted, and waited for."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, NoReturn, ParamSpec, Protocol, TypeVar

from albat_core.errors import DamagedError
from albat_core.progress import announce
from albat_core.records import (
    adapters,
    adopted,
    agreement,
    candidates,
    indexes,
    selections,
    shards,
    splits,
)
from albat_core.records.runs import StageRun
from albat_core.records.vectors import EmbeddedPart
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from albat_core.store.claims import HeldError, passing_by
from albat_core.store.manifests import Manifest

NOTES: dict[str, Callable[[Sequence[Mapping[str, Any]]], tuple[str, ...]]] = {
    shards.STAGE: shards.row_notes,
    splits.STAGE: splits.split_notes,
    candidates.STAGE: candidates.copy_notes,
    selections.STAGE: selections.short_notes,
    adapters.STAGE: adapters.unfinished_notes,
    agreement.STAGE: agreement.agreement_notes,
    indexes.STAGE: indexes.growth_notes,
    adopted.MATCH_STAGE: adopted.match_notes,
}
"""What a stage did that a person would not expect, from the facts of its artifacts."""

_MANY = 32  # calls of one stage

Given = ParamSpec("Given")
Made = TypeVar("Made")
Made_co = TypeVar("Made_co", covariant=True)


class Pending(Protocol[Made_co]):
    """What a call will have made."""

    def result(self) -> Made_co:
        """Wait for it; raise what the call raised."""


class Execute(Protocol):
    """How a stage's function is called: here, or as a task elsewhere."""

    def __call__(
        self, stage: Callable[Given, Made], /, *args: Given.args, **kwargs: Given.kwargs
    ) -> Pending[Made]:
        """Start the call; several may run side by side."""


@dataclass(frozen=True)
class _Done(Generic[Made]):
    made: Made

    def result(self) -> Made:
        return self.made


@dataclass(frozen=True)
class _Failed:
    error: DamagedError

    def result(self) -> NoReturn:
        raise self.error


@dataclass(frozen=True)
class _Later(Generic[Made]):
    call: Callable[[], Made]

    def result(self) -> Made:
        return self.call()


def call_here(
    stage: Callable[Given, Made], /, *args: Given.args, **kwargs: Given.kwargs
) -> Pending[Made]:
    """Call a stage at once, in this thread; damage is told to whoever waits for it.

    What another run makes is left to it, and waited for once it is asked for: the two share what
    both need.
    """
    try:
        with passing_by():
            return _Done(stage(*args, **kwargs))
    except DamagedError as error:
        return _Failed(error)
    except HeldError:
        return _Later(partial(stage, *args, **kwargs))


class Step(Generic[Made]):
    """One call of a stage, started at once unless what it makes is there.

    Args:
        label: of the steps that it is one of.
        start: starts the call.
        replace: makes the artifact of a name again, which the call found damaged.
        found: what it would give, where that is known: nothing is started then.
    """

    def __init__(
        self,
        label: str,
        start: Callable[[], Pending[Made]],
        replace: Callable[[str], None],
        found: Made | None = None,
    ) -> None:
        self.label = label
        self._start = start
        self._replace = replace
        self._done: list[Made] = [] if found is None else [found]
        self._pending = start() if found is None else _Done(found)

    @property
    def done(self) -> bool:
        """Whether it was waited for."""
        return bool(self._done)

    def result(self) -> Made:
        """Wait for it; raise what the stage raised.

        Where the stage met a damaged artifact that a step has made, both are done again, once.
        """
        damaged: set[str] = set()
        while not self._done:
            try:
                self._done.append(self._pending.result())
            except DamagedError as error:
                if error.where in damaged:
                    raise
                damaged.add(error.where)
                self._replace(error.where)
                self._pending = self._start()
        return self._done[0]

    def again(self) -> None:
        """Start it anew."""
        self._done.clear()
        self._pending = self._start()

    @property
    def ref(self) -> ArtifactRef | None:
        """The artifact that it made; None where it gives no reference."""
        made: Any = self.result()
        made = made.embeddings if isinstance(made, EmbeddedPart) else made
        return made if isinstance(made, ArtifactRef) else None


class Steps:
    """Submits stages; the same stage with the same arguments is one step, whoever asks.

    Args:
        execute: how a stage's function is called.
        store: where artifacts are.
    """

    def __init__(self, execute: Execute, store: ArtifactStore) -> None:
        self._execute = execute
        self._store = store
        self._known: dict[Any, Step[Any]] = {}
        self._noted: dict[str, list[Step[Any]]] = {}
        self._began: dict[str, float] = {}
        self._announced: set[str] = set()

    def submit(
        self,
        label: str,
        stage: Callable[Given, Made],
        /,
        *args: Given.args,
        **kwargs: Given.kwargs,
    ) -> Step[Made]:
        """Start a step and note it; steps of one label are told of together.

        Args:
            label: what it is called where a run's steps are listed.
            stage: of the core.
            args: of the stage.
            kwargs: of the stage.
        """
        return self._step(label, partial(stage, *args, **kwargs))

    def each(
        self,
        label: str,
        calls: Sequence[partial[Made]],
        find: Callable[[], Sequence[Made | None]],
    ) -> list[Made]:
        """Start a step for each call, as ``submit`` does, and wait for all.

        Args:
            label: of all of them.
            calls: of a stage of the core.
            find: gives, of each call, what it would find finished. It is asked where there are
                many: what is there needs no step to run, and is looked for at once.
        """
        self._began.setdefault(label, time.perf_counter())
        found = find() if len(calls) > _MANY else [None] * len(calls)
        return self.results(
            [self._step(label, call, its) for call, its in zip(calls, found, strict=True)]
        )

    def _step(self, label: str, call: partial[Made], found: Made | None = None) -> Step[Made]:
        name = (call.func, _hashable(call.args), _hashable(call.keywords))
        if name not in self._known:
            self._began.setdefault(label, time.perf_counter())
            start = partial(self._execute, call.func, *call.args, **call.keywords)
            self._known[name] = step = Step(label, start, self._replace, found)
            self._noted.setdefault(label, []).append(step)
        return self._known[name]

    def results(self, steps: Iterable[Step[Made]]) -> list[Made]:
        """Wait for steps, and tell of each label whose steps are all done."""
        made, waited = [], list(steps)
        last = {step.label: step for step in waited}  # there may be many of a label
        for step in waited:
            made.append(step.result())
            if step is last[step.label] and all(o.done for o in self._noted[step.label]):
                self._announce(step.label)
        return made

    def run(
        self,
        label: str,
        stage: Callable[Given, Made],
        /,
        *args: Given.args,
        **kwargs: Given.kwargs,
    ) -> Made:
        """Start a step and wait for it, see ``submit``."""
        return self.results([self.submit(label, stage, *args, **kwargs)])[0]

    def manifest(self, ref: ArtifactRef) -> Manifest:
        """Return what was made, in what way."""
        return self._store.manifest(ref)

    def call(
        self, stage: Callable[Given, Made], /, *args: Given.args, **kwargs: Given.kwargs
    ) -> Made:
        """Call what makes no artifact, and wait for it; nothing is noted."""
        return Step("", partial(self._execute, stage, *args, **kwargs), self._replace).result()

    @property
    def stages(self) -> list[StageRun]:
        """What was done so far, in the order in which it was asked for."""
        found = []
        for label, steps in self._noted.items():
            refs = _refs([step for step in steps if step.done])
            if refs:
                found.append(StageRun(label=label, refs=refs))
        return found

    def _replace(self, name: str) -> None:
        """Do the step again that made an artifact, unless it is there once more."""
        for step in [step for step in self._known.values() if step.done]:
            if step.ref is not None and str(step.ref) == name and not self._store.find(step.ref):
                step.again()
                step.result()

    def _announce(self, label: str) -> None:
        refs = _refs(self._noted[label])
        if label in self._announced or not refs:
            return
        self._announced.add(label)
        manifests = self._store.manifests(refs)
        seconds = time.perf_counter() - self._began[label]
        if len(refs) == 1:  # it may have waited for a device that others had
            seconds = min(seconds, manifests[0].seconds)
        notes = NOTES[refs[0].stage]([m.facts for m in manifests]) if refs[0].stage in NOTES else ()
        reused = all(ref.reused for ref in refs)
        announce(label, sum(m.rows for m in manifests), seconds, reused, notes)


def _refs(steps: Sequence[Step[Any]]) -> tuple[ArtifactRef, ...]:
    return tuple(ref for step in steps if (ref := step.ref) is not None)


def _hashable(value: Any) -> Any:
    """Return arguments as what a dictionary can look up."""
    if isinstance(value, dict):
        return tuple((name, _hashable(value[name])) for name in sorted(value))
    if isinstance(value, list | tuple):
        return tuple(map(_hashable, value))
    return value
