"""The training loop, its checkpoints and what it leaves."""

import copy
import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from albat_core.backbones import open_backbone
from albat_core.backbones.adapters import AdapterConfig
from albat_core.backbones.base import FixedNoise, adapted
from albat_core.backbones.config import BackboneConfig
from albat_core.backbones.language.model import LanguageBackbone
from albat_core.errors import Interrupted, TrainingError
from albat_core.measures.losses import example_losses, is_worse
from albat_core.processes.group import ProcessGroup
from albat_core.progress import reporting_to
from albat_core.records.adapters import unfinished_notes
from albat_core.records.losses import LOSSES
from albat_core.records.mixtures import read_mixture
from albat_core.records.runs import ADAPTATION_ONLY, ALBAT, UNTOUCHED
from albat_core.records.splits import TEST, TRAIN, VALIDATION, read_role
from albat_core.records.tables import read_table
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.seeding import derive_seed
from albat_core.stages.finetune import finetune
from albat_core.store.artifacts import ArtifactRef, ArtifactStore
from albat_core.training import encoded as encoded_rows
from albat_core.training import trainer
from albat_core.training.checkpoint import CheckpointFile, TrainingState
from albat_core.training.config import FinetuneConfig, continued, learning_rate, penalty_weight
from albat_core.training.sampler import MixtureSampler
from albat_core.training.trainer import Trainer
from tests.core.trainings import STEPS, StopsAt, Training, same


def test_two_runs_are_equal_bit_for_bit_and_another_seed_is_not(
    training: Training, another: Training
) -> None:
    first, second = training.run(), another.run()
    assert same(training.weights(first), another.weights(second))
    assert not same(training.weights(first), another.weights(another.run(seed=1)))


def assert_ends_as_if_never_stopped(
    training: Training, another: Training, config: FinetuneConfig
) -> None:
    resumed, whole = training.run(config), another.run(config)
    assert resumed == whole
    assert same(training.weights(resumed), another.weights(whole))
    facts = [training.store.manifest(resumed).facts, another.store.manifest(whole).facts]
    for name in ("history", "steps", "best_step", "validation_loss"):
        assert facts[0][name] == facts[1][name]
    assert not list((Path(training.store.root) / "checkpoints").iterdir())


DROPPING = STEPS.model_copy(update={"adapter": AdapterConfig(rank=4, dropout=0.3)})


@pytest.mark.parametrize(
    ("stop", "config"),
    [
        (StopsAt(3), STEPS),
        (StopsAt(5), STEPS),  # before the evaluation at this step
        (StopsAt(20), STEPS),  # before the last
        (StopsAt(13), DROPPING),
        (StopsAt(25, of="examples"), STEPS),  # within an evaluation
    ],
    ids=["early", "before an evaluation", "at the end", "with dropout", "within an evaluation"],
)
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(
    training: Training, another: Training, stop: StopsAt, config: FinetuneConfig
) -> None:
    with reporting_to(copy.copy(stop)), pytest.raises(Interrupted):
        training.run(config)
    assert not list(training.store.all_refs()) or all(
        ref.stage != "adapter" for ref in training.store.all_refs()
    )
    checkpoints = Path(training.store.root) / "checkpoints"
    assert len(list(checkpoints.iterdir())) == 1
    assert_ends_as_if_never_stopped(training, another, config)


def test_a_run_that_crashed_goes_on_from_its_last_checkpoint(
    training: Training, another: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    training.runtime = training.runtime.model_copy(update={"checkpoint_seconds": 1e-9})
    monkeypatch.setattr(trainer, "_PAUSE", 0)
    with reporting_to(StopsAt(13, error=RuntimeError)), pytest.raises(RuntimeError):
        training.run()
    began: list[int] = []
    step = Trainer._step
    monkeypatch.setattr(Trainer, "_step", lambda self, at: began.append(at.step) or step(self, at))
    assert_ends_as_if_never_stopped(training, another, STEPS)
    assert began[0] == 12  # written after each step, the crash came before the thirteenth's
    assert began[8:] == list(range(20))  # the other run's


@pytest.mark.parametrize(("took", "steps"), [(0.0, 2), (0.125, 3), (0.475, 10)])
def test_writing_checkpoints_takes_a_small_share_of_the_time(
    training: Training, monkeypatch: pytest.MonkeyPatch, took: float, steps: int
) -> None:
    now, written = 0.0, []
    step, write = Trainer._step, CheckpointFile.write

    def stepped(self: Trainer, state: TrainingState) -> float:
        nonlocal now
        now += 1
        return step(self, state)

    def wrote(self: CheckpointFile, state: TrainingState) -> None:
        nonlocal now
        now += took
        written.append(state.step)
        write(self, state)

    monkeypatch.setattr(trainer.time, "monotonic", lambda: now)
    monkeypatch.setattr(Trainer, "_step", stepped)
    monkeypatch.setattr(CheckpointFile, "write", wrote)
    training.runtime = training.runtime.model_copy(update={"checkpoint_seconds": 1.5})
    training.run(STEPS.model_copy(update={"patience": 100}))
    assert written[0] == 2
    assert np.diff(written).tolist() == [steps] * ((20 - 2) // steps)


def test_what_is_put_aside_leaves_the_device(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple] = []
    to = torch.Tensor.to
    states: list[TrainingState] = []
    train = Trainer.train
    monkeypatch.setattr(Trainer, "train", lambda *a: states.append(train(*a)) or states[-1])
    monkeypatch.setattr(torch.Tensor, "to", lambda t, *a, **k: asked.append(a) or to(t, *a, **k))
    training.run()
    [state] = states
    each = list(state.best_parameters.values())
    assert len({t.data_ptr() for t in each}) == len(each)
    assert asked.count(("cpu",)) >= len(each)


def test_a_checkpoint_that_cannot_be_read_is_passed_over(
    training: Training, another: Training
) -> None:
    with reporting_to(StopsAt(13)), pytest.raises(Interrupted):
        training.run()
    (checkpoint,) = (Path(training.store.root) / "checkpoints").iterdir()
    content = checkpoint.read_bytes()
    for spoilt in (b"", content[:100], content[:-100], b"\0" * len(content)):
        checkpoint.write_bytes(spoilt)
        assert CheckpointFile(str(checkpoint)).read() is None
    for at in (9, *range(100, len(content), len(content) // 40), len(content) - 1):
        flipped = bytearray(content)
        flipped[at] ^= 4
        checkpoint.write_bytes(flipped)
        assert CheckpointFile(str(checkpoint)).read() is None, at
    assert_ends_as_if_never_stopped(training, another, STEPS)


def test_the_best_step_is_kept(training: Training) -> None:
    # a rate that stays high goes on past the best step
    restless = {"learning_rate": 0.5, "schedule": "constant", "evaluate_every": 1}
    ref = training.run(STEPS.model_copy(update=restless | {"steps": 40, "patience": 40}))
    facts = training.store.manifest(ref).facts
    losses = {point["step"]: point["validation"] for point in facts["history"]}
    assert losses[facts["best_step"]] == min(losses.values()) == facts["validation_loss"]
    assert facts["best_step"] < facts["steps"] == 40
    with (
        open_backbone(training.backbone, training.runtime) as backbone,
        adapted(backbone, training.store.folder(ref)),
    ):
        validation = backbone.encode(read_role(training.store, training.adaptation, VALIDATION))
        totals, units = example_losses(backbone, validation, 8192, FixedNoise())
    assert totals.sum() / units.sum() == pytest.approx(facts["validation_loss"], abs=1e-5)


def test_training_learns_and_stops_when_it_no_longer_does(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = training.store.manifest(training.run()).facts
    assert facts["history"][0]["step"] == 0
    assert facts["validation_loss"] < facts["history"][0]["validation"] - 0.1
    stubborn = STEPS.model_copy(update={"learning_rate": 0.5, "steps": 200, "patience": 2})
    # how far it wavers is this machine's: any loss above the best is beyond the noise here
    monkeypatch.setattr(trainer, "is_worse", lambda its, best, _: sum(its) > sum(best))
    facts = training.store.manifest(training.run(stubborn)).facts
    assert facts["best_step"] + 2 * STEPS.evaluate_every <= facts["steps"] < 200


@pytest.mark.parametrize(
    ("each", "worse"),
    [
        ([1.0, 1.0, 1.0, 1.0], True),  # alike for all: no noise
        ([-1.0, -1.0, -1.0, -1.0], False),
        ([5.0, -4.0, 5.0, -4.0], False),  # 0.5 on average, with an error of 2.25
        ([5.0, 1.0, 5.0, 1.0], True),  # 3, with an error of 1
        ([3.0, 0.0, 3.0, -2.0], False),  # 1, with an error of 1.1
    ],
)
def test_worse_is_worse_beyond_two_standard_errors(each: list[float], worse: bool) -> None:
    best = [20.0, 30.0, 40.0, 50.0]
    assert is_worse(np.add(best, each).tolist(), best, [10, 10, 10, 10]) == worse
    assert not is_worse(best, best, [10, 10, 10, 10])


def test_a_loss_that_only_wavers_does_not_stop_training(training: Training) -> None:
    still = STEPS.model_copy(update={"learning_rate": 1e-9, "steps": 40, "patience": 1})
    facts = training.store.manifest(training.run(still)).facts
    assert facts["steps"] == 40 > facts["best_step"] + still.evaluate_every


def test_small_batches_of_tokens_add_up_to_the_whole(training: Training, another: Training) -> None:
    careful = STEPS.model_copy(update={"learning_rate": 1e-3, "evaluate_every": 1})
    whole = training.store.manifest(training.run(careful)).facts["history"]
    tiny = careful.model_copy(update={"batch_tokens": 1})
    parts = another.store.manifest(another.run(tiny)).facts["history"]
    assert len(whole) > 2
    for one, other in zip(whole, parts, strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_a_loss_that_is_not_finite_ends_the_run_and_leaves_nothing(training: Training) -> None:
    wild = STEPS.model_copy(update={"learning_rate": 1e30, "max_grad_norm": 1e30})
    with pytest.raises(TrainingError, match="step") as raised:
        training.run(wild)
    assert "learning_rate" in raised.value.remedy
    assert not (Path(training.store.root) / "adapter").exists()
    assert not any((Path(training.store.root) / "drafts").iterdir())


def test_the_surrogate_is_trained_on_adaptation_rows_alone(
    chain: Chain, store: ArtifactStore
) -> None:
    facts = store.manifest(chain.surrogate).facts
    assert facts["backbone_rows"] == 0
    assert facts["alpha"] == 0
    split = store.manifest(chain.inputs.adaptation).facts
    assert facts["adaptation_rows"] == split[TRAIN]["rows"]


def test_a_refit_ends_where_another_training_was_best(training: Training) -> None:
    restless = {"learning_rate": 0.5, "schedule": "constant", "evaluate_every": 1}
    config = STEPS.model_copy(update=restless | {"steps": 40, "patience": 40})
    looked = training.run(config)
    again = training.run(config, like=looked)
    before, after = (training.store.manifest(ref).facts for ref in (looked, again))
    assert 0 < before["best_step"] < before["steps"]
    assert looked.key != again.key
    # on the same rows it is the same adapter, and what was measured on the way is told of it too
    assert same(training.weights(looked), training.weights(again))
    for name in ("best_step", "steps", "validation_loss", "history"):
        assert before[name] == after[name]


def test_a_refit_that_was_interrupted_goes_on(training: Training, another: Training) -> None:
    looked = training.run()
    with reporting_to(StopsAt(13)), pytest.raises(Interrupted):
        training.run(like=looked)
    whole = another.run(like=another.run())
    assert same(training.weights(training.run(like=looked)), another.weights(whole))


def test_arms_are_refitted_on_all_documents_that_are_used(
    chain: Chain, store: ArtifactStore, run_config: RunConfig
) -> None:
    split = store.manifest(chain.inputs.adaptation).facts
    both = split[TRAIN]["rows"] + split[VALIDATION]["rows"]
    once = Chain(run_config.model_copy(update={"refit": False}))
    for arm in (ADAPTATION_ONLY, ALBAT):
        final = store.manifest(chain.arms.adapter(arm)).facts
        looked = store.manifest(once.arms.adapter(arm)).facts
        assert final["adaptation_rows"] == both > looked["adaptation_rows"] == split[TRAIN]["rows"]
        assert final["best_step"] == looked["best_step"]
        mixed = read_mixture(store, chain.arms.mixture(arm)).adaptation
        wanted = [
            e.example_id
            for role in (TRAIN, VALIDATION)
            for e in read_role(store, chain.inputs.adaptation, role)
        ]
        assert sorted(e.example_id for e in mixed) == sorted(wanted)
    assert chain.surrogate.key == once.surrogate.key


def test_the_adapter_is_one_that_peft_loads_with_the_loss_that_was_evaluated(
    chain: Chain, store: ArtifactStore, run_config: RunConfig
) -> None:
    untouched = AutoModelForCausalLM.from_pretrained(run_config.backbone.path)
    model = PeftModel.from_pretrained(untouched, store.folder(chain.arms.adapter(ALBAT))).eval()
    with open_backbone(run_config.backbone, run_config.runtime) as backbone:
        encoded = backbone.encode(read_role(store, chain.inputs.adaptation, TEST))
    evaluated = read_table(store.folder(chain.arms.evaluation(ALBAT)) / LOSSES).to_pylist()
    for one, row in zip(encoded, evaluated, strict=True):
        ids = torch.tensor(one.inputs["input_ids"][None], dtype=torch.long)
        labels = ids.masked_fill(~torch.tensor(one.inputs["loss_mask"][None]), -100)
        with torch.no_grad():
            expected = float(model(input_ids=ids, labels=labels).loss)
        assert (row["example_id"], row["units"]) == (one.example_id, one.loss_units)
        assert row["loss"] / row["units"] == pytest.approx(expected, abs=1e-5)
    losses = [store.manifest(chain.arms.evaluation(a)).facts["loss"] for a in (ALBAT, UNTOUCHED)]
    assert losses[0] < losses[1] - 0.01


def distance_from_backbone(training: Training, ref: ArtifactRef) -> float:
    """Mean KL(backbone || adapted) of a token that was trained on."""
    with (
        open_backbone(training.backbone, training.runtime) as backbone,
        adapted(backbone, training.store.folder(ref)),
        torch.inference_mode(),
    ):
        encoded = backbone.encode(read_role(training.store, training.adaptation, TRAIN))
        _, divergence = backbone.losses_with_divergence(encoded)
        return float(divergence.total.sum() / divergence.units.sum())


def test_a_penalty_holds_what_is_said_of_adaptation_rows_to_the_backbone(
    training: Training,
) -> None:
    careful = STEPS.model_copy(update={"learning_rate": 0.005})
    free, light, heavy = (
        training.run(careful.model_copy(update={"penalty": penalty})) for penalty in (0, 30, 300)
    )
    distances = [distance_from_backbone(training, ref) for ref in (free, light, heavy)]
    assert distances[0] > 1.3 * distances[1]
    assert distances[1] > 2 * distances[2] > 0
    losses = [training.store.manifest(ref).facts["validation_loss"] for ref in (free, light, heavy)]
    assert max(losses[:2]) < losses[2]  # what it costs


@pytest.mark.parametrize("kept", [True, False], ids=["noted", "anew"])
def test_a_step_of_a_mixture_passes_once_and_holds_its_adaptation_rows_alone(
    training: Training, tmp_path: Path, kept: bool
) -> None:
    mixture = read_mixture(training.store, training.mixture)
    config = STEPS.model_copy(update={"batch_size": 8, "max_grad_norm": 1e9})
    state = TrainingState()
    with open_backbone(training.backbone, training.runtime) as backbone:
        backbone.attach_adapter(config.adapter, 0)
        its = Trainer(backbone, mixture, [], config, 0.7, 0, CheckpointFile(str(tmp_path / "c")), 9)
        parameters = its._parameters
        with torch.no_grad():
            for n, parameter in enumerate(parameters.values()):
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(n))
        own, other = its._batches.batch(0)
        assert own
        assert other
        plain, held = backbone.losses(own + other), backbone.losses_with_divergence(own)[1]
        objective = (plain.mean.sum() + 0.7 * held.mean.sum()) / config.batch_size
        expected = torch.autograd.grad(objective, list(parameters.values()))
        if kept:
            assert its.note_untouched() > 0
        passes: list[int] = []
        backbone._model.get_input_embeddings().register_forward_pre_hook(
            lambda *_: passes.append(1)
        )
        loss = its._step(state)
        assert len(passes) == (1 if kept else 2)
        assert loss == pytest.approx(float(plain.mean.detach().mean()), rel=1e-5)
        read = [sum(row.length for row in rows) for rows in (own, other)]
        assert state.passes == 3 * sum(read) + (0 if kept else read[0])
        for parameter, gradient in zip(parameters.values(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)


def test_for_the_penalty_rows_are_read_once_without_the_adapter(
    training: Training, another: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = STEPS.model_copy(update={"steps": 40, "patience": 40, "learning_rate": 0.001})
    kept = training.run(config)
    monkeypatch.setattr(encoded_rows, "_UNTOUCHED", 0)
    anew = another.run(config)
    facts, others = training.store.manifest(kept).facts, another.store.manifest(anew).facts
    for mine, its in zip(facts["history"], others["history"], strict=True):
        assert mine == pytest.approx(its, rel=1e-5)
    mixture = read_mixture(training.store, training.mixture)
    size, seed = STEPS.batch_size, derive_seed(0, "training")
    n = len(mixture.adaptation)
    sampler = MixtureSampler(n, mixture.weights, mixture.alpha, size, seed)
    with open_backbone(training.backbone, training.runtime) as backbone:
        lengths = [row.length for row in backbone.encode(mixture.adaptation)]
    read = sum(lengths[row] for step in range(facts["steps"]) for row in sampler.batch(step)[0])
    assert others["passes"] - facts["passes"] == read - sum(lengths) > 0


def test_rows_that_are_read_once_are_not_read_before(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(LanguageBackbone, "with_untouched", refuse)
    mixture = read_mixture(training.store, training.mixture)
    rows = len(mixture.adaptation)

    def read(size: int) -> int:
        own, _ = MixtureSampler(rows, mixture.weights, mixture.alpha, size, 0).drawn(1)
        return own

    once, twice = (
        STEPS.model_copy(update={"steps": 1, "batch_size": size})
        for size in (
            max(n for n in range(1, 9 * rows) if read(n) < 2 * rows),
            min(n for n in range(1, 9 * rows) if read(n) == 2 * rows),
        )
    )
    training.run(once)
    with pytest.raises(AssertionError):
        training.run(twice)


def test_who_shares_a_backbone_looks_at_validation_rows_in_step_with_others(
    training: Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []

    def in_step(lengths: list[int], _: int, compute: Callable[..., None], *rest: object) -> None:
        computed.extend(lengths)
        compute(list(range(len(lengths))))

    monkeypatch.setattr(trainer, "each_in_step", in_step)
    mixture = read_mixture(training.store, training.mixture)
    kept = CheckpointFile(str(Path(training.store.root, "none")))
    with open_backbone(training.backbone, training.runtime) as backbone:
        backbone.attach_adapter(STEPS.adapter, 0)
        rows = backbone.encode(read_role(training.store, training.adaptation, VALIDATION))
        for group in (ProcessGroup(), ProcessGroup(in_step=True)):
            state = TrainingState()
            Trainer(backbone, mixture, rows, STEPS, 0.0, 0, kept, 1e3, group=group)._evaluate(state)
            assert state.best_loss == pytest.approx(math.log(400), abs=0.2)
            assert len(computed) == len(rows) * group.in_step


def test_language_models_have_a_penalty_by_default_and_diffusion_models_none(
    training: Training,
) -> None:
    pictures = BackboneConfig(kind="diffusion", path="somewhere")
    assert penalty_weight(STEPS, pictures) == 0
    assert training.run(STEPS) == training.run(STEPS.model_copy(update={"penalty": 0.3}))


def test_what_is_reported_of_training_is_the_loss_without_the_penalty(training: Training) -> None:
    ref = training.run(STEPS.model_copy(update={"penalty": 1000.0}))
    assert 1000 * distance_from_backbone(training, ref) > 1
    history = training.store.manifest(ref).facts["history"]
    assert all(point["train"] < math.log(400) + 0.1 for point in history[1:])


def test_the_penalty_computes_adaptation_rows_twice_and_no_others(training: Training) -> None:
    rows: list[int] = []
    with open_backbone(training.backbone, training.runtime) as backbone:
        model = backbone._model
    seen = model.register_forward_pre_hook(
        lambda _, __, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    counts = []
    for penalty in (0.0, 1.0):
        rows.clear()
        ref = training.run(STEPS.model_copy(update={"penalty": penalty, "patience": 100}))
        counts.append(sum(rows))
        assert training.store.manifest(ref).config["penalty"] == penalty
    seen.remove()
    alpha = read_mixture(training.store, training.mixture).alpha
    drawn = STEPS.steps * STEPS.batch_size
    assert counts[1] - counts[0] == drawn - round(alpha * drawn)


def test_a_training_that_was_best_at_its_last_step_says_so(training: Training) -> None:
    short = STEPS.model_copy(update={"steps": 10, "learning_rate": 0.001})
    facts = training.store.manifest(training.run(short)).facts
    (note,) = unfinished_notes([facts])
    assert note == "best at its last step, 10: more steps would likely better it"
    refitted = training.run(short, like=training.run(short))
    others = [facts | {"best_step": 5}, training.store.manifest(refitted).facts]
    assert unfinished_notes(others) == ()


def test_an_adapter_goes_on_from_another(training: Training) -> None:
    first = training.run()
    whole = finetune(
        training.mixture,
        training.adaptation,
        [],
        training.backbone,
        continued(STEPS, 20, 0.1),
        0,
        training.runtime,
        start=first,
    )
    begun, gone_on = (training.store.manifest(ref).facts for ref in (first, whole))
    # the first look is at the adapter that it starts from
    assert gone_on["history"][0]["validation"] == pytest.approx(begun["validation_loss"], rel=1e-5)
    assert gone_on["validation_loss"] <= begun["validation_loss"] * (1 + 1e-5)
    assert gone_on["best_step_in_all"] == begun["best_step"] + gone_on["best_step"]
    assert whole != first


@pytest.mark.parametrize(
    ("reached", "share", "steps"), [(200, 0.1, 40), (200, 0.01, 16), (400, 1.0, 400)]
)
def test_what_goes_on_takes_steps_for_what_is_new(reached: int, share: float, steps: int) -> None:
    config = FinetuneConfig(steps=400, evaluate_every=25)
    later = continued(config, reached, share)
    assert later.steps == steps
    assert learning_rate(later, 0) == learning_rate(config, reached)
    assert learning_rate(later, steps - 1) == learning_rate(config, reached)
    assert steps / later.evaluate_every == pytest.approx(4, abs=0.5)


def test_a_fold_s_surrogate_is_looked_at_once_when_it_goes_on() -> None:
    whole = FinetuneConfig(steps=100, evaluate_every=100)
    assert continued(whole, 100, 0.2).evaluate_every == continued(whole, 100, 0.2).steps == 40


def test_learning_rate_rises_then_falls_to_a_tenth() -> None:
    config = FinetuneConfig(steps=100, warmup=10, learning_rate=1.0)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert rates[55] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 45 / 90)))
    assert all(a >= b for a, b in itertools.pairwise(rates[9:]))
    assert 0.1 < rates[-1] < 0.102
    flat = config.model_copy(update={"schedule": "constant"})
    assert learning_rate(flat, 99) == 1.0
