"""Steps: one call for equal arguments, submitted side by side, told of when they are done."""

import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from albat_core.errors import DamagedError
from albat_core.progress import Silent, reporting_to
from albat_core.records.runs import ADAPTATION_ONLY, ALBAT, RANDOM
from albat_core.runs import steps as steps_of_a_run
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.runs.steps import Steps, call_here
from albat_core.stages.evaluate import evaluate
from albat_core.stages.finetune import finetune
from albat_core.store import storage
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built, artifact_ref
from albat_core.store.claims import claimed
from flows.config import load_config
from tests.toys import topic_rows, write_jsonl, write_run


def ref_of(number: int) -> ArtifactRef:
    return ArtifactRef(stage="any", key=f"{number:032d}")


def test_the_same_stage_with_the_same_arguments_is_one_step(tmp_path: Path) -> None:
    calls: list[int] = []

    def stage(numbers: Sequence[int], label: str = "") -> ArtifactRef:
        calls.append(sum(numbers))
        return ref_of(sum(numbers))

    steps = Steps(call_here, ArtifactStore(str(tmp_path)))
    first = steps.submit("add", stage, numbers=[1, 2])
    assert steps.submit("add again", stage, numbers=(1, 2)) is first
    assert steps.submit("add", stage, numbers=[1, 2], label="named") is not first
    assert calls == [3, 3]
    assert not steps.stages  # nothing was waited for yet
    first.result()
    assert [(stage.label, stage.refs) for stage in steps.stages] == [("add", (ref_of(3),))]


def test_what_another_run_makes_is_waited_for_last(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    made: list[int] = []
    released = threading.Event()

    def stage(number: int) -> ArtifactRef:
        def build(_folder: Path) -> Built:
            made.append(number)
            if number == 2:
                released.set()
            return Built(rows=number)

        return store.produce("any", 1, {}, {"number": number}, build)

    def another() -> None:
        with claimed(store.claim(artifact_ref("any", 1, {}, {"number": 1})), "1", lambda: None):
            held.set()
            released.wait(10)

    held = threading.Event()
    thread = threading.Thread(target=another)
    thread.start()
    held.wait(10)
    found = Steps(call_here, store).each("any", [partial(stage, n) for n in range(4)], list)
    thread.join()
    assert made == [0, 2, 3, 1]
    assert [store.manifest(ref).rows for ref in found] == [0, 1, 2, 3]


class Later:
    """Executes nothing until it is waited for, and notes what was under way."""

    def __init__(self) -> None:
        self.waiting: set[str] = set()
        self.most: dict[str, int] = {}

    def __call__(self, stage: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        name = f"{stage.__name__} {len(self.waiting)}"
        self.waiting.add(name)
        now = sum(each.startswith(stage.__name__) for each in self.waiting)
        self.most[stage.__name__] = max(self.most.get(stage.__name__, 0), now)
        return Waited(self, name, lambda: stage(*args, **kwargs))


class Waited:
    def __init__(self, later: Later, name: str, work: Callable[[], Any]) -> None:
        self._later, self._name, self._work = later, name, work

    def result(self) -> Any:
        made = self._work()
        self._later.waiting.discard(self._name)
        return made


def test_arms_folds_and_evaluations_are_under_way_side_by_side(run_config: RunConfig) -> None:
    later = Later()
    auto = run_config.mixture.model_copy(update={"alpha": "auto"})
    more = run_config.estimate.model_copy(update={"folds": 3})
    config = run_config.model_copy(update={"mixture": auto, "estimate": more})
    chain = Chain(config, later)
    assert len(chain.folds) == 3
    assert later.most[finetune.__name__] == 2  # the folds beside the run's own
    runs = chain.arms.runs
    assert [run.name for run in runs] == ["untouched", ADAPTATION_ONLY, RANDOM, ALBAT]
    assert later.most[finetune.__name__] == 3  # the arms that are trained
    assert later.most[evaluate.__name__] == 4
    order = [stage.label for stage in chain.stages]
    assert order.index("fine-tune: ALBAT") < order.index("evaluate: Backbone untouched")


def test_steps_of_one_label_are_told_of_once_when_all_are_done(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []

    class Teller(Silent):
        def announce(
            self, stage: str, rows: int, seconds: float, reused: bool, notes: Sequence[str]
        ) -> None:
            told.append((stage, rows))

    store = ArtifactStore(str(tmp_path))

    def stage(number: int) -> ArtifactRef:
        return store.produce("count", 1, {"n": number}, {}, lambda _: Built(rows=number))

    with reporting_to(Teller()):
        steps = Steps(call_here, store)
        one, two = (steps.submit("count", stage, number=n) for n in (1, 2))
        steps.results([one])
        assert told == []
        steps.results([one, two])
        steps.results([two])
    assert told == [("count", 3)]


def test_what_is_finished_of_many_starts_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps_of_a_run, "_MANY", 3)
    store = ArtifactStore(str(tmp_path))
    started: list[int] = []

    def stage(number: int) -> ArtifactRef:
        started.append(number)
        return store.produce("count", 1, {"n": number}, {}, lambda _: Built(rows=number))

    def find() -> list[ArtifactRef | None]:
        refs = [artifact_ref("count", 1, {"n": number}, {}) for number in range(5)]
        return store.reused(refs)

    calls = [partial(stage, number=number) for number in range(5)]
    few = Steps(call_here, store)
    assert not any(ref.reused for ref in few.each("count", calls[:3], find))
    assert started == [0, 1, 2]  # what is few is asked for one by one
    steps = Steps(call_here, store)
    assert [r.reused for r in steps.each("count", calls, find)] == [True] * 3 + [False] * 2
    assert started == [0, 1, 2, 3, 4]
    assert [str(ref) for ref in steps.stages[0].refs] == [str(ref) for ref in find()]
    assert steps.submit("count", stage, number=0).done

    lost = steps.stages[0].refs[1]

    def use() -> ArtifactRef:
        if store.find(lost) is None:
            raise DamagedError("flipped", where=str(lost))
        return lost

    storage.remove(storage.join(store.root, str(lost)))
    assert steps.run("use", use) == lost
    assert started == [0, 1, 2, 3, 4, 1]  # made again, though no step had made it


def test_a_corpus_that_grows_by_a_file_has_its_own_parts_made_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps_of_a_run, "_MANY", 8)
    monkeypatch.setattr("albat_core.store.artifacts._ASKED_ONE_BY_ONE", 8)
    path = write_run(tmp_path, shards={"rows": 4})

    def run() -> tuple[Chain, Counter[str]]:
        started: Counter[str] = Counter()

        def execute(stage: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            started[stage.__name__] += 1
            return call_here(stage, *args, **kwargs)

        chain = Chain(load_config(str(path)), execute)
        assert chain.inputs.index
        return chain, started

    first, started = run()
    assert started["embed_part"] == 30
    again, started = run()
    assert started["embed_part"] == 0
    assert started["find_embedded"] == 1
    assert again.stages == first.stages
    write_jsonl(tmp_path / "corpus" / "more.jsonl", topic_rows("stars", 8))
    grown, started = run()
    assert started["embed_part"] == 2
    assert [r.reused for r in grown.inputs.corpus] == [False, True, True]  # more, plants, ships
    known = {str(part) for part in first.inputs.embeddings}
    assert len({str(part) for part in grown.inputs.embeddings} - known) == 2


@pytest.mark.slow
def test_a_call_that_does_not_fit_its_stage_is_a_mistake_of_types(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "from albat_core.runs.steps import Steps\n"
        "from albat_core.stages.select import select_all\n"
        "from albat_core.store.stage import Runtime\n"
        "def run(steps: Steps) -> None:\n"
        "    steps.run('take', select_all, candidates='text', runtime=Runtime())\n"
        "    steps.run('take', select_all, candidate=None, runtime=Runtime())\n"
        "    steps.run('take', select_all, runtime=Runtime())\n"
    )
    root = Path(__file__).parents[2]
    said = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--config-file",
            str(root / "pyproject.toml"),
            str(wrong),
        ],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in said.stdout.splitlines() if "wrong.py" in line]
    assert {line.split(":")[1] for line in lines if "error" in line} == {"5", "6", "7"}, said.stdout
