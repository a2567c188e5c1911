"""One training over several devices: as many processes, one result."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from albat_core.backbones import check_sharing, open_backbone
from albat_core.backbones.adapters import AdapterConfig
from albat_core.backbones.batches import each_in_step
from albat_core.backbones.config import BackboneConfig
from albat_core.errors import BackboneError, ConfigError, Interrupted, TrainingError
from albat_core.processes.group import ProcessGroup
from albat_core.processes.launching import run_together
from albat_core.progress import Advance, Silent, reporting_to
from albat_core.records.examples import Example
from albat_core.runs.chain import Chain
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from albat_core.store.stage import Runtime
from flows.checks import check_file
from flows.config import load_config
from tests.core.trainings import STEPS, StopsAt, Training
from tests.pictures import write_image_run
from tests.toys import rewrite, write_run

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


@pytest.mark.parametrize(
    ("how", "packing"),
    [
        ({"gradient_checkpointing": True}, False),
        ({"shard_backbone": True}, True),
        ({"shard_backbone": True, "gradient_checkpointing": True}, False),
    ],
)
def test_two_processes_train_as_one_does(
    training: Training, another: Training, how: dict[str, bool], packing: bool
) -> None:
    config = CAREFUL.model_copy(update={"packing": packing})
    one = training.run(config)
    two = spread(another, **how).run(config)
    assert one == two  # however many processes, it is the same artifact
    assert_alike(
        (told(training, one), told(another, two)), (training.weights(one), another.weights(two))
    )
    files = [
        {path.relative_to(its.store.folder(ref)) for path in its.store.folder(ref).rglob("*")}
        for its, ref in ((training, one), (another, two))
    ]
    assert files[0] == files[1]


@pytest.mark.parametrize("share", [False, True])
def test_each_picture_has_the_noise_that_one_process_gives_it(tmp_path: Path, share: bool) -> None:
    path = write_image_run(tmp_path / "run")
    run = load_config(str(path))
    # pictures of four positions: two computed at once, of five in a step
    parts = run.surrogate.model_copy(update={"batch_tokens": 8, "batch_size": 5, "penalty": 0.1})
    found, weights = [], []
    for devices in (1, 2):
        root = str(tmp_path / f"artifacts-{devices}")
        how = {"training_devices": devices, "shard_backbone": share and devices > 1}
        runtime = run.runtime.model_copy(update={"root": root} | how)
        chain = Chain(run.model_copy(update={"runtime": runtime, "surrogate": parts}))
        found.append(chain.facts(chain.surrogate))
        folder = ArtifactStore(root).folder(chain.surrogate)
        weights.append(load_file(folder / "pytorch_lora_weights.safetensors"))
    assert_alike((found[0], found[1]), (weights[0], weights[1]))
    assert any(values.abs().max() > 1e-3 for name, values in weights[0].items() if "lora_B" in name)


def weights_held(_group: ProcessGroup, backbone: BackboneConfig) -> list[int]:
    """Count this process' own values of the blocks and of all; a block is whole while it computes.

    Also the number that a block has while it does.
    """
    from torch.distributed.tensor import DTensor

    whole: list[int] = []

    def held(module: torch.nn.Module) -> int:
        its = (p.to_local() if isinstance(p, DTensor) else p for p in module.parameters())
        return sum(p.numel() for p in its)

    with open_backbone(backbone, Runtime(device="cpu"), share=True) as shared:
        model = shared._model  # type: ignore[attr-defined]
        block = model.get_decoder().layers[0]
        block.mlp.register_forward_hook(lambda *_: whole.append(held(block)))
        before = held(block), held(model)
        shared.losses(shared.encode([Example("one", "a leaf and a root", "d", "s")]))
        assert (held(block), held(model)) == before
    return [*before, *whole]


def test_each_process_holds_its_part_of_a_shared_backbone(training: Training) -> None:
    with open_backbone(training.backbone, Runtime(device="cpu")) as backbone:
        model = backbone._model  # type: ignore[attr-defined]
        block = sum(p.numel() for p in model.get_decoder().layers[0].parameters())
        blocks = sum(p.numel() for p in model.get_decoder().layers.parameters())
        rest = sum(p.numel() for p in model.parameters()) - blocks
    held = run_together(partial(weights_held, backbone=training.backbone), ["cpu", "cpu"])
    assert held[:2] == [block // 2, blocks // 2 + rest]
    assert held[2:] == [block] * 3  # of the head being tried out, twice, and of the losses


def test_a_backbone_is_shared_where_it_can_be(training: Training) -> None:
    alone = Runtime(shard_backbone=True)
    together = alone.model_copy(update={"training_devices": 2})
    lora, dora = AdapterConfig(), AdapterConfig(kind="dora")
    quantized = training.backbone.model_copy(update={"quantization": "4bit"})
    check_sharing(training.backbone, lora, together)
    check_sharing(quantized, dora, Runtime())
    with pytest.raises(ConfigError, match="training_devices 1"):
        check_sharing(training.backbone, lora, alone)
    with pytest.raises(BackboneError, match="4bit"):
        check_sharing(quantized, lora, together)
    with pytest.raises(BackboneError, match="dora"):
        spread(training, shard_backbone=True).run(STEPS.model_copy(update={"adapter": dora}))


def test_check_says_where_it_cannot_be_shared(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    rewrite(path, {"runtime": {"shard_backbone": True}})
    found = check_file(str(path))
    assert {error.where.split(": ")[-1] for error in found} == {"runtime.shard_backbone"}


def test_where_memory_ends_devices_that_share_a_backbone_say_so() -> None:
    def full(positions: list[int]) -> None:
        raise MemoryError

    with pytest.raises(BackboneError, match="2 examples of 5 units") as raised:
        each_in_step([5, 5, 1], 10, full, [], lambda: None, lambda count: count)
    assert "batch_tokens" in raised.value.remedy


def test_who_has_fewer_batches_passes_as_often() -> None:
    passes: list[object] = []

    def most(count: int) -> int:
        passes.append(count)
        return 4

    each_in_step([5, 1], 5, passes.append, [], lambda: passes.append("idle"), most)
    assert passes == [2, [0], [1], "idle", "idle"]


def test_a_run_that_was_stopped_goes_on_with_another_number_of_devices(
    training: Training, another: Training
) -> None:
    with reporting_to(StopsAt(13)), pytest.raises(Interrupted):
        spread(training).run(CAREFUL)
    assert len(list((Path(training.store.root) / "checkpoints").glob("*.safetensors"))) == 1
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
