"""An adapter trained on a mixture, as an artifact."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from albat_core.backbones import (
    adapter_card,
    backbone_identity,
    check_sharing,
    open_backbone,
    release_backbones,
)
from albat_core.backbones.base import Backbone
from albat_core.backbones.config import BackboneConfig, SamplingConfig
from albat_core.devices import lent_devices
from albat_core.pictures import picture_pixels
from albat_core.processes.group import ProcessGroup
from albat_core.processes.launching import run_together
from albat_core.progress import show
from albat_core.records.adapters import STAGE, rate_found, steps_in_all
from albat_core.records.encodings import Encodings
from albat_core.records.mixtures import generated_rows, read_mixture
from albat_core.records.samples import STAGE as SAMPLES
from albat_core.records.splits import VALIDATION, read_role, role_digest
from albat_core.seeding import derive_seed
from albat_core.store import storage
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.manifests import Manifest
from albat_core.store.stage import Runtime, stage_key
from albat_core.trackers import UNTRACKED, Tracking, followed_by
from albat_core.trackers.base import Log, Picture, log_looks, to_nobody
from albat_core.training.config import FinetuneConfig, learning_rate, penalty_weight

STAGE_VERSION = 10


def finetune(
    mixture: ArtifactRef,
    adaptation: ArtifactRef,
    encodings: Sequence[ArtifactRef],
    backbone_config: BackboneConfig,
    config: FinetuneConfig,
    seed: int,
    runtime: Runtime,
    label: str = "fine-tune",
    start: ArtifactRef | None = None,
    like: ArtifactRef | None = None,
    tracking: Tracking = UNTRACKED,
    prompts: Sequence[str] = (),
    sampling: SamplingConfig = SamplingConfig(),  # noqa: B008 - it is frozen
) -> ArtifactRef:
    """Train an adapter on a mixture and keep it at its best step on the validation documents.

    A run that was interrupted goes on from its last checkpoint, with the same result.

    Args:
        mixture: what is trained on; the surrogate is trained on adaptation rows alone.
        adaptation: whose validation rows decide the best step.
        encodings: costly inputs of the rows, where the backbone has any.
        backbone_config: what is adapted.
        config: how.
        seed: of every draw.
        runtime: where and with what.
        label: names the progress line.
        start: a trained adapter to go on from; None: a new one, whose effect is nil.
        like: an adapter of the same settings, trained on fewer rows, at whose best step this one
            ends (in proportion, where lengths differ); what was measured on the way to it is told
            of this one too. None: validation rows decide.
        tracking: where the curves are shown; of an adapter that is there, a point a look.
        prompts: what is drawn on the way, where the settings say how often; by one process alone.
        sampling: how.

    Raises:
        TrainingError: the loss is not finite.
        ProcessError: one of the processes that it is spread over is gone.
        BackboneError: they are to share a backbone that cannot be shared.
    """
    from albat_core.training.checkpoint import CheckpointFile

    check_sharing(backbone_config, config.adapter, runtime)
    store = ArtifactStore(runtime.root)
    inputs = {
        "mixture": mixture.key,
        **(
            {"like": like.key}
            if like
            else {"validation": role_digest(store, adaptation, VALIDATION)}
        ),
        "backbone": backbone_identity(backbone_config, runtime),
    } | ({"start": start.key} if start else {})
    penalty = penalty_weight(config, backbone_config)
    settings = config.settings(
        without={"penalty", "epochs", "stretch", "sample_every"}, penalty=penalty, seed=seed
    )
    key = stage_key(STAGE, STAGE_VERSION, settings.named, inputs)
    checkpoint = storage.join(store.root, "checkpoints", f"{key}.safetensors")

    def build(folder: Path) -> Built:
        train = partial(
            train_adapter,
            folder=folder,
            mixture=mixture,
            adaptation=adaptation,
            encodings=encodings,
            backbone_config=backbone_config,
            config=config,
            penalty=penalty,
            seed=seed,
            runtime=runtime,
            label=label,
            start=start,
            like=like,
            checkpoint=checkpoint,
        )
        if runtime.training_devices == 1:
            return train(ProcessGroup(), log=followed.log, watch=watch)
        with lent_devices(runtime) as devices:
            release_backbones()
            return Built.model_validate(run_together(train, devices))

    def watch(backbone: Backbone, step: int) -> None:
        # the noise of the first samples in the report
        made = backbone.generate(prompts, sampling, derive_seed(seed, SAMPLES, 0))
        drawn = [(its.text or "", its.image or b"") for its in made]
        show(label, step, drawn)
        pictures = [
            Picture(f"samples/{n}", prompt, picture_pixels(png))
            for n, (prompt, png) in enumerate(drawn, 1)
        ]
        followed.show(pictures, step)

    with followed_by(tracking, label, key) as followed:
        ref = store.produce(STAGE, STAGE_VERSION, settings, inputs, build)
        looked = runtime.training_devices == 1 and not ref.reused
        if not looked and not (facts := store.manifest(ref).facts)["refit"]:
            log_looks(facts["history"], followed.log)
    CheckpointFile(checkpoint).remove()
    return ref


def watched_by_nobody(_backbone: Backbone, _step: int) -> None:
    """Let a step go by."""


def train_adapter(
    group: ProcessGroup,
    folder: Path,
    mixture: ArtifactRef,
    adaptation: ArtifactRef,
    encodings: Sequence[ArtifactRef],
    backbone_config: BackboneConfig,
    config: FinetuneConfig,
    penalty: float,
    seed: int,
    runtime: Runtime,
    label: str,
    start: ArtifactRef | None,
    like: ArtifactRef | None,
    checkpoint: str,
    log: Log = to_nobody,
    watch: Callable[[Backbone, int], None] = watched_by_nobody,
) -> Built:
    """Train as ``finetune`` does, in one process or in each of a group.

    Args:
        group: of the processes that train together.
        folder: where the main process writes the adapter.
        mixture: see ``finetune``.
        adaptation: see ``finetune``.
        encodings: see ``finetune``.
        backbone_config: see ``finetune``.
        config: see ``finetune``.
        penalty: weight of the penalty towards the backbone's outputs.
        seed: see ``finetune``.
        runtime: see ``finetune``.
        label: see ``finetune``.
        start: see ``finetune``.
        like: see ``finetune``.
        checkpoint: file that the main process keeps the state in.
        log: see ``Trainer.train``; in processes of their own nobody is told.
        watch: see ``Trainer.train``, given the backbone too.
    """
    from albat_core.training.checkpoint import (
        CheckpointFile,
        spread_waypoints,
        write_checkpoint,
    )
    from albat_core.training.trainer import Trainer

    store = ArtifactStore(runtime.root)
    rows = read_mixture(store, mixture)
    known = Encodings(store, encodings)
    group = replace(group, in_step=runtime.shard_backbone)
    with open_backbone(backbone_config, runtime, known, group.in_step) as backbone:
        if start:
            backbone.load_adapter(store.folder(start))
        else:
            backbone.attach_adapter(config.adapter, derive_seed(seed, "adapter"))
        looked_at = [] if like else read_role(store, adaptation, VALIDATION)
        trainer = Trainer(
            backbone,
            rows,
            backbone.encode(looked_at),
            config,
            penalty,
            derive_seed(seed, "training"),
            CheckpointFile(checkpoint),
            runtime.checkpoint_seconds,
            _end(store.manifest(like), config) if like else None,
            group,
        )
        state = trainer.train(label, log, partial(watch, backbone))
        if not group.is_main:
            return Built()
        parameters = sum(p.numel() for p in backbone.adapter_parameters().values())
        backbone.save_adapter(folder)
        for step in spread_waypoints(state, config.checkpoints):
            moments = trainer.take_waypoint(step)
            write_checkpoint(folder, step, backbone, moments, learning_rate(config, step - 1))
    facts = {
        "steps": state.step,
        "best_step": state.best_step,
        "best_step_in_all": state.best_step + (steps_in_all(store, start) if start else 0),
        "validation_loss": state.best_loss,
        "history": state.history,
    }
    if (found := trainer.rate_found or (rate_found(store, start) if start else None)) is not None:
        facts["rate_found"] = found
    if like:
        facts = {name: store.manifest(like).facts[name] for name in facts}
    facts |= {
        "refit": like is not None,
        "parameters": parameters,
        "adaptation_rows": len(rows.adaptation),
        "backbone_rows": len(rows.backbone),
        "generated_rows": generated_rows(store, mixture),
        "alpha": rows.alpha,
        "passes": state.passes,
        "training_seconds": round(state.seconds, 3),
    }
    (folder / "README.md").write_text(adapter_card(backbone_config, facts), encoding="utf-8")
    return Built(rows=len(rows.adaptation) + len(rows.backbone), facts=facts)


def _end(like: Manifest, config: FinetuneConfig) -> int:
    """Return the step at which a training ends that is as long as another until its best."""
    return round(int(like.facts["best_step"]) * config.steps / int(like.config["steps"]))
