"""One training over several devices: as many processes, one result."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from albat_core.errors import Interrupted, TrainingError
from albat_core.progress import Advance, Silent, reporting_to
from albat_core.runs.chain import Chain
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from flows.config import load_config
from tests.core.trainings import STEPS, StopsAt, Training
from tests.pictures import write_image_run

pytestmark = pytest.mark.slow

# an odd batch, computed in several parts, with a penalty and adapters kept on the way
CAREFUL = STEPS.model_copy(
    update={"learning_rate": 2e-3, "batch_size": 5, "batch_tokens": 40, "checkpoints": 2}
)


def spread(training: Training, **more: object) -> Training:
    update = {"training_devices": 2} | more
    training.runtime = training.runtime.model_copy(update=update)
    return training


def assert_alike(
    facts: tuple[Mapping[str, Any], Mapping[str, Any]],
    weights: tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]],
) -> None:
    for name in ("steps", "best_step", "passes", "parameters", "alpha", "adaptation_rows"):
        assert facts[0][name] == facts[1][name]
    for at, also in zip(*(its["history"] for its in facts), strict=True):
        assert at == pytest.approx(also, abs=1e-5)
    assert weights[0].keys() == weights[1].keys()
    for name, values in weights[0].items():
        torch.testing.assert_close(values, weights[1][name], rtol=1e-4, atol=1e-5)


class Began(Silent):
    """Notes how many steps are done each time that it is told of some."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    @contextmanager
    def track(self, label: str, total: int, unit: str) -> Iterator[Advance]:
        yield self.steps.append if unit == "steps" else lambda _done: None


def told(training: Training, ref: ArtifactRef) -> Mapping[str, Any]:
    return training.store.manifest(ref).facts


def test_two_processes_train_as_one_does(training: Training, another: Training) -> None:
    one = training.run(CAREFUL)
    two = spread(another, gradient_checkpointing=True).run(CAREFUL)
    assert one == two  # however many processes, it is the same artifact
    assert_alike(
        (told(training, one), told(another, two)), (training.weights(one), another.weights(two))
    )
    files = [
        {path.relative_to(its.store.folder(ref)) for path in its.store.folder(ref).rglob("*")}
        for its, ref in ((training, one), (another, two))
    ]
    assert files[0] == files[1]


def test_each_picture_has_the_noise_that_one_process_gives_it(tmp_path: Path) -> None:
    path = write_image_run(tmp_path / "run")
    run = load_config(str(path))
    # pictures of four positions: two computed at once, of five in a step
    parts = run.surrogate.model_copy(update={"batch_tokens": 8, "batch_size": 5, "penalty": 0.1})
    found, weights = [], []
    for devices in (1, 2):
        root = str(tmp_path / f"artifacts-{devices}")
        runtime = run.runtime.model_copy(update={"root": root, "training_devices": devices})
        chain = Chain(run.model_copy(update={"runtime": runtime, "surrogate": parts}))
        found.append(chain.facts(chain.surrogate))
        folder = ArtifactStore(root).folder(chain.surrogate)
        weights.append(load_file(folder / "pytorch_lora_weights.safetensors"))
    assert_alike((found[0], found[1]), (weights[0], weights[1]))
    assert any(values.abs().max() > 1e-3 for name, values in weights[0].items() if "lora_B" in name)


def test_a_run_that_was_stopped_goes_on_with_another_number_of_devices(
    training: Training, another: Training
) -> None:
    with reporting_to(StopsAt(13)), pytest.raises(Interrupted):
        spread(training).run(CAREFUL)
    assert len(list((Path(training.store.root) / "checkpoints").iterdir())) == 1
    training.runtime = training.runtime.model_copy(update={"training_devices": 1})
    began = Began()
    with reporting_to(began):
        resumed = training.run(CAREFUL)
    assert began.steps[0] == 13
    whole = another.run(CAREFUL)
    assert_alike(
        (told(training, resumed), told(another, whole)),
        (training.weights(resumed), another.weights(whole)),
    )


def test_what_fails_in_a_process_is_told_as_if_it_were_here(training: Training) -> None:
    wild = STEPS.model_copy(update={"learning_rate": 1e30, "max_grad_norm": 1e30})
    with pytest.raises(TrainingError, match="step") as raised:
        spread(training).run(wild)
    assert "learning_rate" in raised.value.remedy
    assert "in process" in raised.value.__notes__[0]
    assert not (Path(training.store.root) / "adapter").exists()
