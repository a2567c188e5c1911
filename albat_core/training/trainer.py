"""The only training loop: an adapter on a weighted mixture, stopped on validation documents."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from albat_core.backbones.base import (
    Backbone,
    DrawnNoise,
    Encoded,
    FixedNoise,
    forward_units,
    join_noise,
)
from albat_core.backbones.batches import Shape, each_batch, each_in_step, encoded_batches, packed
from albat_core.errors import Interrupted, TrainingError
from albat_core.measures.losses import example_losses, is_worse
from albat_core.processes.group import ProcessGroup
from albat_core.progress import track
from albat_core.records.mixtures import Mixture
from albat_core.seeding import derive_seed
from albat_core.trackers.base import Log, log_looks, to_nobody
from albat_core.training.checkpoint import CheckpointFile, Tensors, TrainingState, aside
from albat_core.training.config import FinetuneConfig, learning_rate
from albat_core.training.encoded import EncodedBatches
from albat_core.training.optimizers import (
    adam_moments,
    open_optimizer,
    optimizer_state,
    rate_found,
    restore_optimizer,
)
from albat_core.training.sampler import MixtureSampler
from albat_core.training.variation import Variation

_PAUSE = 20  # times that writing a checkpoint took, at least, until the next: 5% of a training
_REMEDY = (
    "lower this training's learning_rate (surrogate or finetune), or set backbone.dtype to float32"
)


Watch = Callable[[int], None]
Penalties = Sequence[float | None]
"""Weight of each example's penalty; None: it is not compared with the untouched backbone."""


def watched_by_nobody(_step: int) -> None:
    """Let a step go by."""


class Trainer:
    """Trains the adapter attached to a backbone, and leaves it at its best step.

    Processes of a group hold the same state: each takes the gradient of its share of a batch, their
    sum is what all step by, and what the main one measures of validation examples all are told.

    Args:
        backbone: with a new adapter attached.
        mixture: what is trained on.
        validation: examples that decide which step is best.
        config: how.
        penalty: weight of the penalty towards the backbone's outputs on adaptation rows; 0: none.
        seed: of every draw.
        checkpoint: where the state is kept for a run that is interrupted.
        checkpoint_seconds: how often, or less often where writing it takes long.
        until: step that training ends at, without a look at any validation example; None: these
            decide.
        group: of the processes that train together; this one alone, where none is given.
    """

    def __init__(
        self,
        backbone: Backbone,
        mixture: Mixture,
        validation: Sequence[Encoded],
        config: FinetuneConfig,
        penalty: float,
        seed: int,
        checkpoint: CheckpointFile,
        checkpoint_seconds: float,
        until: int | None = None,
        group: ProcessGroup = ProcessGroup(),  # noqa: B008 - it is frozen
    ) -> None:
        self._group = group
        self._backbone = backbone
        self._validation = validation
        self._config = config
        self._penalty = penalty
        self._seed = seed
        self._checkpoint = checkpoint
        self._checkpoint_seconds = checkpoint_seconds
        self._until = until
        self._budget = config.batch_tokens
        sampler = MixtureSampler(
            len(mixture.adaptation), mixture.weights, mixture.alpha, config.batch_size, seed
        )
        self._end = config.steps if until is None else until
        variation = Variation(config.flip, config.caption_dropout, seed)
        self._batches = EncodedBatches(
            backbone, mixture.adaptation, mixture.backbone, sampler, self._end, variation
        )
        self._parameters = backbone.adapter_parameters()
        self._optimizer = open_optimizer(config, self._parameters)

    def train(
        self, label: str, log: Log = to_nobody, watch: Watch = watched_by_nobody
    ) -> TrainingState:
        """Train to the end and return what was measured; the adapter is left at its best step.

        Args:
            label: names the progress line.
            log: takes ``train/loss`` and ``train/learning_rate`` of each step, and what
                ``log_looks`` says of each look, as soon as they are there; losses in nats (or
                squared error) per unit.
            watch: called at each step that samples are wanted of.

        Raises:
            TrainingError: a loss is not finite.
        """
        state = self._restore()
        end = self._end
        if state.step < end:
            state.passes += self.note_untouched(f"{label}, untouched") * (not state.step)
        if self._group.in_step and self._config.packing:  # all try at once whether it may be
            self._pass_along(self._batches.batch(0)[0][:1] * 2, [None] * 2, [2])
        began = saved = time.monotonic()
        before, pause = state.seconds, self._checkpoint_seconds
        with track(label, end, "steps") as advance, self._kept_if_stopped(state):
            advance(state.step)
            while True:
                if self._is_due(state):
                    self._evaluate(state)
                    log_looks(state.history[-1:], log)
                state.seconds = before + time.monotonic() - began
                if state.step == end or self._stalled(state):
                    break
                state.recent.append(self._step(state))
                rate = learning_rate(self._config, state.step) * rate_found(self._optimizer)
                state.step += 1
                log({"train/loss": state.recent[-1], "train/learning_rate": rate}, state.step)
                advance(1)
                if self._config.sample_every and state.step % self._config.sample_every == 0:
                    self._backbone.training(False)
                    watch(state.step)
                if self._group.is_main and (now := time.monotonic()) - saved > pause:
                    self._checkpoint.write(self._snapshot(state))
                    saved = time.monotonic()
                    pause = max(self._checkpoint_seconds, _PAUSE * (saved - now))
        if self._until is None:
            self._set(state.best_parameters)
        return state

    def note_untouched(self, label: str = "") -> int:
        """Compute what the penalty needs of adaptation rows once for all steps, where that pays.

        Each process does so for all rows. The settings' steps decide, so that a training that ends
        before the last computes the same until then.

        Args:
            label: names the progress line; none: no line.

        Returns:
            units that were passed over, by this process.
        """
        if not self._penalty:
            return 0
        times = max(2, self._group.size)
        return self._batches.note_untouched(self._each, self._config.steps, times, label)

    @contextmanager
    def _kept_if_stopped(self, state: TrainingState) -> Iterator[None]:
        """Write a checkpoint when a person stops the run, which happens between two steps."""
        try:
            yield
        except Interrupted:
            if state.step and self._group.is_main:
                self._checkpoint.write(self._snapshot(state))
            raise

    def _step(self, state: TrainingState) -> float:
        """Take one optimizer step; return the batch's mean loss per unit."""
        step = state.step
        adaptation, corpus = self._batches.batch(step)
        batch = adaptation + corpus
        untouched = bool(self._penalty) and any(e.untouched is None for e in adaptation)
        state.passes += 3 * sum(e.length for e in batch)
        state.passes += sum(e.length for e in adaptation) * untouched
        # those who share a backbone pass through it together: then all examples are, or none
        other = 0.0 if untouched and self._group.in_step else None
        held = [self._penalty or None] * len(adaptation) + [other] * len(corpus)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self._config, step) * group["times"]
        self._backbone.training(True)
        self._optimizer.zero_grad(set_to_none=True)
        found: list[float] = []
        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(self._seed, "dropout and noise", step))
            mine, noise = self._share(batch)
            if not self._group.is_main:  # whose masks of dropout would be the main process' else
                names = ("dropout and noise", step, self._group.rank)
                torch.manual_seed(derive_seed(self._seed, *names))
            share, penalties = [batch[n] for n in mine], [held[n] for n in mine]
            lengths = [e.length for e in share]
            alone = [[n] for n in range(len(share))]
            sequences = packed(lengths) if self._config.packing else alone
            learn = partial(self._learn, share, noise, penalties, found, sequences)
            lengths = [sum(lengths[n] for n in one) for one in sequences]
            shapes = [share[first].shape for first, *_ in sequences]
            idle = partial(self._pass_along, batch[:1], [0.0 if untouched else None])
            self._each(lengths, shapes, learn, idle)
        loss = self._group.sum_gradients(list(self._parameters.values()), sum(found))
        if not math.isfinite(loss):
            raise TrainingError(
                f"expected a finite loss, got {loss} at step {step}",
                where="examples " + ", ".join(e.example_id for e in batch[:4]) + ", …",
                remedy=_REMEDY,
            )
        torch.nn.utils.clip_grad_norm_(self._parameters.values(), self._config.max_grad_norm)
        self._optimizer.step()
        return loss

    def _each(
        self,
        lengths: Sequence[int],
        shapes: Sequence[Shape],
        compute: Callable[[list[int]], object],
        idle: Callable[[], object] = lambda: None,
    ) -> None:
        """Compute all batches, as large as there is room for, or in step with other processes."""
        if self._group.in_step:
            each_in_step(lengths, self._budget, compute, shapes, idle, self._group.most)
        else:
            self._budget = each_batch(lengths, self._budget, compute, shapes)

    def _share(self, batch: Sequence[Encoded]) -> tuple[Sequence[int], DrawnNoise | None]:
        """Return positions of this process' examples of a batch, and their noise where it is known.

        It is drawn for all of them, as one process alone would: the same noise for each example,
        however many processes there are. Alone, it is drawn when it is needed.
        """
        if self._group.size == 1:
            return range(len(batch)), None
        batches = encoded_batches(batch, self._config.batch_tokens)
        mine = slice(self._group.rank, None, self._group.size)
        drawn = [self._backbone.draw_noise([batch[i] for i in positions]) for positions in batches]
        noise = join_noise([some for some in drawn if some is not None])
        share = [i for positions in batches for i in positions][mine]
        return share, noise.take(mine) if noise is not None else None

    def _learn(
        self,
        batch: Sequence[Encoded],
        noise: DrawnNoise | None,
        penalties: Penalties,
        found: list[float],
        sequences: Sequence[Sequence[int]],
        chosen: Sequence[int],
    ) -> None:
        """Add the gradient of some sequences of a batch's examples, and their part of its loss."""
        positions = [n for place in chosen for n in sequences[place]]
        joined = [len(sequences[place]) for place in chosen]
        drawn = noise.take(positions) if noise is not None else None
        some, held = [batch[i] for i in positions], [penalties[i] for i in positions]
        losses, objective = self._objective(some, drawn, held, joined)
        parameters, size = list(self._parameters.values()), self._config.batch_size
        # all or nothing: where memory ends on the way, fewer examples are tried
        gradients = torch.autograd.grad(objective.sum() / size, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                there = parameter.grad
                parameter.grad = gradient if there is None else there + gradient
        found.append(float(losses.detach().sum() / size))

    def _pass_along(
        self, batch: Sequence[Encoded], penalties: Penalties, joined: Sequence[int] = (1,)
    ) -> None:
        """Pass through a shared backbone for nothing, while others compute a batch."""
        _, objective = self._objective(batch, None, penalties, joined)
        parameters = list(self._parameters.values())
        torch.autograd.grad(objective.sum(), parameters, allow_unused=True)

    def _objective(
        self,
        batch: Sequence[Encoded],
        noise: DrawnNoise | None,
        penalties: Penalties,
        joined: Sequence[int],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each example's mean loss, and what is minimized: the penalty added; both (n,)."""
        held = [penalty is not None for penalty in penalties]
        if not any(held):
            return (self._backbone.losses(batch, noise, joined).mean,) * 2
        losses, divergence = self._backbone.losses_with_divergence(batch, noise, joined, held)
        weights = torch.tensor([penalty or 0.0 for penalty in penalties]).to(losses.mean)
        return losses.mean, losses.mean + weights * divergence.mean

    def _evaluate(self, state: TrainingState) -> None:
        """Measure the validation loss, and keep the adapter if it is the best yet."""
        self._backbone.training(False)
        noise = FixedNoise(self._config.noise_levels)
        validation, at_once = self._validation, self._config.batch_tokens

        # those who share a backbone must not try smaller batches, each by itself
        each = self._each if self._group.in_step else None

        def measure() -> NDArray[np.float64]:
            found = example_losses(self._backbone, validation, at_once, noise, each=each)
            return np.stack(found)

        totals, units = self._group.from_main(measure, (2, len(validation)))
        state.passes += forward_units(self._backbone, self._validation, noise)
        loss = float(totals.sum() / units.sum())
        if not math.isfinite(loss):
            raise TrainingError(
                f"expected a finite validation loss, got {loss} at step {state.step}",
                where="validation documents",
                remedy=_REMEDY,
            )
        measured = {"step": float(state.step), "validation": loss}
        if state.recent:
            measured["train"] = sum(state.recent) / len(state.recent)
            state.recent = []
        state.history.append(measured)
        if self._config.checkpoints and state.step:
            if self._group.is_main:
                there = {f"parameters/{name}": value for name, value in self._copy().items()}
                there |= adam_moments(self._optimizer, self._parameters)
                self._checkpoint.keep(state.step, there)
            state.waypoints.append(state.step)
        state.worse = bool(state.history[1:]) and is_worse(totals, state.best_totals, units)
        if loss < state.best_loss:
            state.best_step, state.best_loss = state.step, loss
            state.best_totals = totals.tolist()
            state.best_parameters = self._copy()

    def _is_due(self, state: TrainingState) -> bool:
        """Tell whether this step is one to evaluate at, and was not: a run may stop in between."""
        if self._until is not None:
            return False
        wanted = state.step % self._config.evaluate_every == 0 or state.step == self._config.steps
        return wanted and (not state.history or state.history[-1]["step"] != state.step)

    def _stalled(self, state: TrainingState) -> bool:
        """Tell whether training has been without a new best for long, and is worse beyond noise.

        Few documents validate: a loss that wavers about its best says nothing, and the rate is yet
        to fall.
        """
        waited = state.step - state.best_step
        return state.worse and waited >= self._config.patience * self._config.evaluate_every

    def _copy(self) -> Tensors:
        return aside(self._parameters)

    def take_waypoint(self, step: int) -> Tensors:
        """Set the adapter to that of an earlier step, and return Adam's moments there."""
        found = self._checkpoint.kept(step)
        self._set({n.partition("/")[2]: v for n, v in found.items() if n.startswith("parameters/")})
        return {n: v for n, v in found.items() if not n.startswith("parameters/")}

    @torch.no_grad()
    def _set(self, values: Tensors) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])

    def _snapshot(self, state: TrainingState) -> TrainingState:
        """Return the state with the adapter and what the optimizer has learned in it."""
        state.parameters = self._copy()
        state.optimizer, state.optimizer_rest = optimizer_state(self._optimizer)
        return state

    @property
    def rate_found(self) -> float | None:
        """What Prodigy multiplies learning rates by as yet; None of other optimizers."""
        return rate_found(self._optimizer) if self._config.optimizer == "prodigy" else None

    def _restore(self) -> TrainingState:
        """Return the state to start from: the checkpoint's, where there is one that fits."""
        state = self._checkpoint.read()
        if state is None or set(state.parameters) != set(self._parameters):
            state = TrainingState()
        if not self._all_at(state.step) or not state.step:
            return TrainingState()
        self._set(state.parameters)
        restore_optimizer(self._optimizer, state.optimizer, state.optimizer_rest)
        return state

    def _all_at(self, step: int) -> bool:
        """Tell whether all processes read a checkpoint of the same step: storage may fail one."""
        if self._group.size == 1:
            return True
        place = next(iter(self._parameters.values())).device
        total = self._group.sum(torch.tensor(step, device=place))
        return int(total) == step * self._group.size
