"""Adapters kept from the way to the best step, with Adam's moments."""

import copy
import itertools
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from albat_core.backbones import open_backbone
from albat_core.backbones.adapters import AdapterConfig
from albat_core.backbones.base import adapted
from albat_core.errors import Interrupted, TransientError
from albat_core.progress import reporting_to
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.stages.score import ScoringConfig
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from albat_core.training.checkpoint import (
    CheckpointFile,
    KeptCheckpoint,
    TrainingState,
    read_checkpoints,
    spread_waypoints,
)
from albat_core.training.config import FinetuneConfig, learning_rate
from flows.config import load_config
from tests.core.trainings import STEPS, StopsAt, Training, same
from tests.pictures import write_image_run

KEEPING = STEPS.model_copy(update={"checkpoints": 3})
EVERY_STEP = KEEPING.model_copy(update={"evaluate_every": 1, "steps": 12, "checkpoints": 12})
RESTLESS = KEEPING.model_copy(  # goes on past its best step
    update={"learning_rate": 0.2, "schedule": "constant", "evaluate_every": 2, "steps": 40}
)


def state_with(steps: list[int], best: int) -> TrainingState:
    return TrainingState(best_step=best, waypoints=steps)


@pytest.mark.parametrize(
    ("best", "count", "expected"),
    [
        (30, 3, [10, 20, 30]),
        (30, 1, [30]),
        (30, 2, [15, 30]),
        (30, 6, [5, 10, 15, 20, 25, 30]),
        (30, 9, [5, 10, 15, 20, 25, 30]),
        (5, 3, [5]),
        (0, 3, [5]),  # the start was best: the first there is
    ],
)
def test_waypoints_lie_evenly_on_the_way_to_the_best_step(
    best: int, count: int, expected: list[int]
) -> None:
    assert spread_waypoints(state_with([40, 5, 35, 10, 30, 15, 20, 25], best), count) == expected


def test_waypoints_are_as_many_and_as_even_as_can_be() -> None:
    for reached, count in itertools.product(range(1, 25), range(1, 12)):
        steps = [3 * n for n in range(1, reached + 4)]
        found = spread_waypoints(state_with(steps, 3 * reached), count)
        assert len(found) == min(count, reached)
        assert found[-1] == 3 * reached
        gaps = {after - before for before, after in itertools.pairwise([0, *found])}
        assert max(gaps) - min(gaps) in (0, 3)


def kept(training: Training, ref: ArtifactRef) -> dict[int, KeptCheckpoint]:
    """What was kept, by step."""
    return {int(c.adapter.name): c for c in read_checkpoints(training.store.folder(ref))}


def adapter_of(checkpoint: KeptCheckpoint) -> dict[str, torch.Tensor]:
    return load_file(checkpoint.adapter / "adapter_model.safetensors")


@pytest.mark.parametrize("config", [KEEPING, RESTLESS], ids=["steady", "restless"])
def test_keeping_waypoints_changes_nothing_of_the_result(
    training: Training, another: Training, config: FinetuneConfig
) -> None:
    keeping = training.run(config)
    plain = another.run(config.model_copy(update={"checkpoints": 0}))
    assert same(training.weights(keeping), another.weights(plain))
    facts = [training.store.manifest(keeping).facts, another.store.manifest(plain).facts]
    for name in ("history", "steps", "best_step", "validation_loss"):
        assert facts[0][name] == facts[1][name]
    assert not kept(another, plain)


def test_a_second_training_on_all_documents_keeps_none(training: Training) -> None:
    looked = training.run(KEEPING)
    assert kept(training, looked)
    assert not kept(training, training.run(KEEPING, like=looked))


def test_the_last_waypoint_is_the_adapter_at_its_best_step(training: Training) -> None:
    ref = training.run(RESTLESS)
    facts = training.store.manifest(ref).facts
    assert 0 < facts["best_step"] < facts["steps"]
    found = kept(training, ref)
    assert list(found)[-1] == facts["best_step"]
    evaluated = [int(p["step"]) for p in facts["history"] if 0 < p["step"] <= facts["best_step"]]
    assert len(found) == min(3, len(evaluated))
    adapters = [adapter_of(c) for c in found.values()]
    assert same(adapters[-1], training.weights(ref))
    assert not any(same(*pair) for pair in itertools.combinations(adapters, 2))


def moments_of(state: TrainingState, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """AdamW's moments of a checkpoint, whose optimizer numbers parameters in their order."""
    keys = {"first": "exp_avg", "second": "exp_avg_sq"}
    return {
        f"{moment}/{name}": state.optimizer[f"{place}/{key}"]
        for place, name in enumerate(names)
        for moment, key in keys.items()
    }


def test_a_waypoint_is_what_the_training_had_then(training: Training, another: Training) -> None:
    """The reference: the state of a run that is stopped at that step."""
    ref = training.run(EVERY_STEP)
    found = kept(training, ref)
    best = training.store.manifest(ref).facts["best_step"]
    assert list(found) == list(range(1, best + 1))
    assert best > 2
    for step in (1, best - 1):
        with reporting_to(StopsAt(step)), pytest.raises(Interrupted):
            another.run(EVERY_STEP)
        (file,) = (Path(another.store.root) / "checkpoints").glob("*.safetensors")
        there = CheckpointFile(str(file)).read()
        assert there is not None
        assert there.step == step
        assert found[step].learning_rate == learning_rate(EVERY_STEP, step - 1)
        with (
            open_backbone(training.backbone, training.runtime) as backbone,
            adapted(backbone, found[step].adapter),
        ):
            parameters = {n: p.detach() for n, p in backbone.adapter_parameters().items()}
        assert same(parameters, there.parameters)
        assert same(found[step].moments, moments_of(there, parameters))
        file.unlink()


def files_kept(training: Training, ref: ArtifactRef) -> dict[str, str]:
    """Digests of what was kept, by path."""
    files = training.store.manifest(ref).files
    return {file.path: file.sha256 for file in files if file.path.startswith("checkpoints/")}


DROPPING = KEEPING.model_copy(update={"adapter": AdapterConfig(rank=4, dropout=0.3)})


@pytest.mark.parametrize(
    ("stop", "config"),
    [
        (StopsAt(3), KEEPING),  # before the first waypoint
        (StopsAt(10), KEEPING),  # where one is
        (StopsAt(13), DROPPING),
        (StopsAt(25, of="examples"), KEEPING),  # within an evaluation
        (StopsAt(20), RESTLESS),  # past the best step
    ],
    ids=["early", "at a waypoint", "with dropout", "within an evaluation", "past the best"],
)
def test_a_run_that_was_stopped_keeps_the_same_waypoints(
    training: Training, another: Training, stop: StopsAt, config: FinetuneConfig
) -> None:
    with reporting_to(copy.copy(stop)), pytest.raises(Interrupted):
        training.run(config)
    resumed, whole = training.run(config), another.run(config)
    assert len({Path(path).parent for path in files_kept(another, whole)}) > 1
    assert files_kept(training, resumed) == files_kept(another, whole)
    assert same(training.weights(resumed), another.weights(whole))


def test_waypoints_are_kept_in_files_until_the_training_is_finished(training: Training) -> None:
    with reporting_to(StopsAt(13)), pytest.raises(Interrupted):
        training.run(KEEPING)
    folder = Path(training.store.root) / "checkpoints"
    (file,) = folder.glob("*.safetensors")
    waypoints = sorted((folder / file.stem).iterdir())
    assert [path.name for path in waypoints] == ["00000005.safetensors", "00000010.safetensors"]
    with safe_open(file, "pt") as held:  # the adapter now and at its best, and the moments
        assert held.metadata()["state"]
        assert len(list(held.keys())) <= 5 * len(load_file(waypoints[0])) // 3
    training.run(KEEPING)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("spoilt", [b"", None], ids=["empty", "gone"])
def test_a_training_whose_waypoints_are_spoilt_starts_anew(
    training: Training, another: Training, spoilt: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    with reporting_to(StopsAt(13)), pytest.raises(Interrupted):
        training.run(KEEPING)
    (waypoint,) = Path(training.store.root, "checkpoints").glob("*/00000005.safetensors")
    kept = CheckpointFile(f"{waypoint.parent}.safetensors")
    assert kept.kept(5)
    if spoilt is None:
        waypoint.unlink()
    else:
        waypoint.write_bytes(spoilt)
    with pytest.raises(TransientError, match="step 5"):
        kept.kept(5)
    resumed, whole = training.run(KEEPING), another.run(KEEPING)
    assert "00000005.safetensors cannot be read" in caplog.text
    assert files_kept(training, resumed) == files_kept(another, whole)


def test_adapters_without_waypoints_have_none_to_read(chain: Chain, store: ArtifactStore) -> None:
    assert read_checkpoints(store.folder(chain.surrogate)) == []


def test_layers_that_nothing_flows_through_have_no_moments(tmp_path: Path) -> None:
    # SDXL reads its text encoders' last but one layers, so the last are never trained
    surrogate = FinetuneConfig(
        steps=4,
        batch_size=2,
        evaluate_every=2,
        warmup=1,
        noise_levels=2,
        checkpoints=2,
        adapter=AdapterConfig(rank=2, text_encoder=True),
        learning_rate=1e-3,
    )
    run = load_config(str(write_image_run(tmp_path, "sdxl")))
    chain = Chain(run.model_copy(update={"surrogate": surrogate}))
    with reporting_to(StopsAt(3)), pytest.raises(Interrupted):
        _ = chain.surrogate
    folder = ArtifactStore(run.runtime.root).folder(chain.surrogate)
    for checkpoint in read_checkpoints(folder):
        moved = {name for name, moment in checkpoint.moments.items() if moment.any()}
        still = checkpoint.moments.keys() - moved
        assert moved
        assert still
        assert all("text_encoder" in name for name in still)


def test_the_scorer_of_gradients_has_as_many_as_it_asks_for(
    run_config: RunConfig, store: ArtifactStore
) -> None:
    kept = {}
    for count in (1, 3):
        scoring = ScoringConfig(scorer={"name": "gradient", "checkpoints": count})
        chain = Chain(run_config.model_copy(update={"scoring": scoring}))
        looks = chain.facts(chain.surrogate)["best_step"] // run_config.surrogate.evaluate_every
        kept[count] = len(read_checkpoints(store.folder(chain.surrogate)))
        assert kept[count] == min(count, looks)
    assert kept[3] > kept[1]
