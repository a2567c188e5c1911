"""How an adapter is trained: its settings, and what follows from them."""

import math
from importlib.util import find_spec
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from albat_core.backbones import kind_of
from albat_core.backbones.adapters import AdapterConfig
from albat_core.backbones.config import BackboneConfig
from albat_core.errors import MissingDependencyError
from albat_core.store.stage import StageConfig
from albat_core.training.schedules import ScheduleName, rate_share

_LIBRARIES = {"adamw_8bit": "bitsandbytes", "prodigy": "prodigyopt"}
FOR_PICTURES = ("flip", "caption_dropout", "sample_every")
"""Settings that only a backbone which draws pictures takes."""
_FEWEST, _LOOKS = 16, 4  # steps, and evaluations, of a training that goes on


class FinetuneConfig(StageConfig):
    """How an adapter is trained."""

    adapter: AdapterConfig = AdapterConfig()
    """The adapter's shape."""
    steps: int = Field(600, ge=1)
    """Optimizer steps at most; of a training on a mixture, up to `stretch` times as many."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Times that the adaptation rows are read at most, in place of `steps`; a mixture takes longer
    likewise."""
    stretch: float = Field(2.0, ge=1)
    """How many times as long a training on a mixture may be at most. It is made longer so that
    adaptation rows are read as often as they had been when adaptation data alone was best.
    1: never longer."""
    batch_size: int = Field(16, ge=1)
    """Examples in an optimizer step."""
    batch_tokens: int = Field(8192, ge=1)
    """Tokens computed at once, padding included (of pictures, positions of their latents); larger
    batches accumulate gradients."""
    packing: bool = False
    """Join rows of an optimizer step in sequences no longer than its longest row, in place of
    padding, each attending to itself alone: losses and gradients are the same within rounding, of
    language models that can be told so."""
    optimizer: Literal["adamw", "adamw_8bit", "adafactor", "prodigy"] = "adamw"
    """What takes the steps. `adamw_8bit` (bitsandbytes) keeps AdamW's moments in 8 bits,
    `adafactor` (arXiv 1804.04235) a row and a column of the second alone; `prodigy` (arXiv
    2306.06101) finds its learning rate. The first and the last take `albat[optimizers]`."""
    learning_rate: float = Field(2e-3, gt=0)
    """Highest learning rate. The default suits small models; large diffusion models usually take
    1e-4. Of `prodigy` it is a factor of the rate found: set it to 1."""
    lora_plus: float = Field(1.0, gt=0)
    """How many times the learning rate is that of the factors B, which begin at zero (LoRA+, arXiv
    2402.12354: 16)."""
    warmup: int = Field(20, ge=0)
    """Steps over which the learning rate rises linearly."""
    schedule: ScheduleName = "cosine"
    """How the learning rate falls to a tenth after warm-up, or that it does not (`constant`)."""
    cycles: int = Field(1, ge=1)
    """Times that it falls with the schedule `cosine_with_restarts`."""
    power: float = Field(1.0, gt=0)
    """Exponent of the schedule `polynomial`; 1: a line."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients are scaled down to this norm."""
    flip: bool = False
    """Whether every second picture that is trained on, drawn at random, is mirrored; for diffusion
    models. Not for letters, nor for a face that has two sides."""
    caption_dropout: float = Field(0.0, ge=0, le=1)
    """Share of the pictures that are trained on without their caption, for diffusion models, so
    that guidance has an adapter's answer to no caption too (0.1 is usual)."""
    sample_every: int = Field(0, ge=0)
    """Steps between looks at what a diffusion model draws of the first of `samples.prompts`, each
    time from the same noise; 0: none. Changes no result."""
    evaluate_every: int = Field(25, ge=1)
    """Steps between looks at the validation documents; the best adapter is kept."""
    noise_levels: int = Field(8, ge=1, le=1000)
    """Noise levels of a diffusion model at which validation examples are looked at."""
    patience: int = Field(6, ge=1)
    """Looks without a new best after which training stops, once it is worse than that beyond the
    noise of the validation rows (two standard errors)."""
    penalty: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """Weight of a penalty that holds the adapter's outputs on adaptation rows to the backbone's, so
    that few documents are overfitted less: KL divergence (language; nats per token) or squared
    difference of predictions (diffusion). 0: none. `auto`: 0.3 for a language model, none for
    diffusion."""
    checkpoints: int = Field(0, ge=0)
    """Adapters with Adam's moments kept from the way to the best step, for the scorer
    `gradient`; a second training on all documents (`refit`) keeps none."""

    @field_validator("lora_plus")
    @classmethod
    def _one_rate(cls, value: float, others: ValidationInfo) -> float:
        if value != 1 and others.data.get("optimizer") == "prodigy":
            raise ValueError("prodigy finds one learning rate for all: leave lora_plus out")
        return value

    @field_validator("checkpoints")
    @classmethod
    def _moments_are_kept(cls, value: int, others: ValidationInfo) -> int:
        if value and (said := lacks_moments(others.data.get("optimizer", "adamw"))):
            raise ValueError(f"{said}: set optimizer to adamw, or checkpoints to 0")
        return value


def lacks_moments(optimizer: str) -> str:
    """Return why an optimizer has no moments for the scorer ``gradient``, "" where it has."""
    if optimizer == "adamw":
        return ""
    return f"the optimizer {optimizer} keeps none of Adam's moments as they are"


def check_optimizer(config: FinetuneConfig, section: str) -> None:
    """Look whether the library of a training's optimizer is installed.

    Args:
        config: of the training.
        section: that it is configured in.

    Raises:
        MissingDependencyError: it is not.
    """
    library = _LIBRARIES.get(config.optimizer)
    if library is not None and find_spec(library) is None:
        raise MissingDependencyError(
            f"expected the library {library}, which is not installed",
            where=f"{section}.optimizer: {config.optimizer}",
            remedy="pip install 'albat[optimizers]'",
        )


def in_steps(config: FinetuneConfig, rows: int) -> FinetuneConfig:
    """Return a training's settings with its length in steps.

    Args:
        config: its length in steps or in epochs.
        rows: of the adaptation set that are trained on.
    """
    if config.epochs is None:
        return config
    steps = max(round(config.epochs * rows / config.batch_size), 1)
    return config.model_copy(update={"steps": steps, "epochs": None})


def stretched(config: FinetuneConfig, reached: float, alpha: float) -> FinetuneConfig:
    """Return how long a training on a mixture is.

    Only 1 - alpha of its rows are of the adaptation set. Where these were learned well before the
    end the length is enough; where not, all of them are needed.

    Args:
        config: of a training without a mixture.
        reached: share of that one's steps after which it was best, in [0, 1].
        alpha: mixing weight, in [0, 1).
    """
    factor = min(max(reached / (1 - alpha), 1.0), config.stretch)
    epochs = None if config.epochs is None else config.epochs * factor
    return config.model_copy(update={"steps": round(config.steps * factor), "epochs": epochs})


def penalty_weight(config: FinetuneConfig, backbone: BackboneConfig) -> float:
    """Return the penalty's weight in a training of a backbone's adapter."""
    return kind_of(backbone).usual_penalty if config.penalty == "auto" else config.penalty


def learning_rate(config: FinetuneConfig, step: int) -> float:
    """Return the learning rate of a step, counted from 0."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    after = max(config.steps - config.warmup, 1)
    share = rate_share(
        config.schedule, step - config.warmup, after, cycles=config.cycles, power=config.power
    )
    return config.learning_rate * share


def continued(
    config: FinetuneConfig, reached: int, share: float, found: float = 1.0
) -> FinetuneConfig:
    """Return how an adapter goes on when some of its rows are new.

    It takes steps in proportion to the new rows, twice as many as they would have had among all, at
    the learning rate that the first training had come to, and is looked at as often as that was.
    Prodigy would have to find its rate again, which takes longer: AdamW goes on at the one found.

    Args:
        config: of the first training, its length in steps.
        reached: steps to its best adapter.
        share: of the rows that are new, in [0, 1].
        found: what Prodigy multiplied learning rates by in the end.
    """
    finding = config.optimizer == "prodigy"
    rate = learning_rate(config, min(reached, config.steps)) * (found if finding else 1.0)
    steps = min(max(math.ceil(2 * share * reached), _FEWEST), config.steps)
    looks = min(math.ceil(config.steps / config.evaluate_every), _LOOKS)
    return config.model_copy(
        update={
            "steps": steps,
            "optimizer": "adamw" if finding else config.optimizer,
            "learning_rate": rate,
            "warmup": 0,
            "schedule": "constant",
            "evaluate_every": max(steps // looks, 1),
            "patience": _LOOKS,
        }
    )
