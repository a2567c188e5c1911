"""What a run is asked for: reached once, and then found where nothing has to be made."""

from pathlib import Path

import pytest

from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.runs.goals import Outcome, find_reached, reach
from albat_core.store import storage
from albat_core.store.artifacts import ArtifactStore, Built
from albat_core.store.finding import UnfinishedError, only_finding
from flows.config import load_config
from tests.toys import write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return load_config(str(write_run(tmp_path_factory.mktemp("run"))))


@pytest.fixture(scope="module")
def reached(run: RunConfig) -> Outcome:
    return reach("albat", Chain(run))


def names(run: RunConfig) -> list[str]:
    return list(map(str, ArtifactStore(run.runtime.root).all_refs()))


def test_only_what_is_there_is_found(tmp_path: Path) -> None:
    store = ArtifactStore(str(tmp_path))
    with only_finding(), pytest.raises(UnfinishedError, match="expected a finished artifact"):
        store.produce("words", 1, {}, {}, lambda _: Built(rows=1))
    assert list(store.all_refs()) == []
    made = store.produce("words", 1, {}, {}, lambda _: Built(rows=1))
    with only_finding():
        assert store.produce("words", 1, {}, {}, lambda _: Built(rows=2)) == made


def test_a_finished_run_is_found_and_its_results_are_put_in_place(
    run: RunConfig, reached: Outcome
) -> None:
    before = names(run)
    storage.remove(reached.places["adapter"])
    found = find_reached("albat", run)
    assert found is not None
    assert found.artifact == reached.artifact
    assert found.places == reached.places
    assert [stage.label for stage in found.stages] == [stage.label for stage in reached.stages]
    assert all(stage.reused for stage in found.stages)
    assert Path(reached.places["adapter"], "adapter_model.safetensors").is_file()
    assert names(run) == before


@pytest.mark.usefixtures("reached")
@pytest.mark.parametrize("goal", ["embed", "index", "select", "mix", "finetune", "evaluate"])
def test_each_goal_is_found_on_the_way(run: RunConfig, goal: str) -> None:
    assert find_reached(goal, run) == reach(goal, Chain(run))


@pytest.mark.usefixtures("reached")
def test_nothing_is_made_where_something_is_missing(run: RunConfig) -> None:
    before = names(run)
    longer = run.model_copy(update={"finetune": run.finetune.model_copy(update={"steps": 13})})
    assert find_reached("albat", longer) is None
    assert find_reached("select", longer) is not None
    assert names(run) == before


def test_a_damaged_artifact_is_not_found(run: RunConfig, reached: Outcome) -> None:
    store = ArtifactStore(run.runtime.root)
    (evaluated,) = next(s.refs for s in reached.stages if s.label == "evaluate: ALBAT")
    file = next(p for p in Path(store.place(evaluated)).iterdir() if p.suffix == ".parquet")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    (report,) = next(s.refs for s in reached.stages if s.label == "report")
    storage.remove(f"{run.runtime.root}/{report}")  # so that the evaluation is read
    file.write_bytes(content)
    assert find_reached("albat", run) is None
    assert reach("albat", Chain(run)).artifact == reached.artifact  # both are made again
