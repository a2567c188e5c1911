"""Gradients of single examples in the adapter's parameters, in a random projection."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from albat_core.backbones.base import (
    Backbone,
    Encoded,
    FixedNoise,
    forward_units,
)
from albat_core.backbones.batches import each_encoded
from albat_core.errors import BackboneError
from albat_core.measures.losses import refuse_not_finite
from albat_core.progress import track
from albat_core.records.examples import Example
from albat_core.seeding import torch_generator

Gradients = NDArray[np.float32]
Transform = Callable[[str, torch.Tensor], torch.Tensor]
"""Changes the gradients (n, ...) of the parameter named, before they are projected."""


class Projection:
    """A random map of an adapter's parameters to ``dimension`` coordinates (CountSketch).

    Each parameter is added to one coordinate, with a random sign, both drawn from the parameter's
    name: E <Px, Py> = <x, y>, with a relative deviation of about 1 / sqrt(dimension)
    (Charikar, Chen and Farach-Colton 2004; feature hashing, arXiv 0902.2206). The map is the same
    for every run, so that projections of different adapters of one shape can be compared.

    Args:
        dimension: coordinates k.
    """

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self._drawn: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def add(self, sketch: torch.Tensor, name: str, values: torch.Tensor) -> None:
        """Add the projection of one parameter's values (n, ...) to a sketch (n, k), in place."""
        flat = values.flatten(1)
        if name not in self._drawn:
            generator = torch_generator(0, "projection", self.dimension, name)
            places = torch.randint(self.dimension, (flat.shape[1],), generator=generator)
            signs = torch.randint(2, (flat.shape[1],), generator=generator) * 2.0 - 1.0
            self._drawn[name] = places.to(flat.device), signs.to(flat.device)
        places, signs = self._drawn[name]
        sketch.index_add_(1, places, flat * signs)


def example_gradients(
    backbone: Backbone,
    encoded: Sequence[Encoded],
    batch_tokens: int,
    noise: FixedNoise,
    projection: Projection,
    transform: Transform | None = None,
    label: str = "",
) -> Gradients:
    """Return the projected gradient of each example's mean loss in the adapter, (n, k) float32.

    One backward pass serves a batch: a layer y = W x has for example i the gradient
    sum_t (dL/dy)_it x_it^T, so what the layer read and the gradient of what it gave are enough
    (Goodfellow, arXiv 1510.01799). Nothing is added to the parameters' own gradients.

    Args:
        backbone: with an adapter.
        encoded: the examples.
        batch_tokens: tokens in a batch, padding included.
        noise: what a backbone that adds noise adds.
        projection: to k coordinates.
        transform: what is done to the gradients before projection; none: nothing.
        label: names the progress line; none: no line.

    Raises:
        BackboneError: a layer of the adapter is of a kind whose gradients are not known.
    """
    found = np.zeros((len(encoded), projection.dimension), dtype=np.float32)
    layers, parameters = backbone.adapter_layers(), list(backbone.adapter_parameters().values())
    backbone.training(False)
    with track(label, len(encoded), "examples") as advance:

        def take(positions: list[int]) -> None:
            batch = [encoded[i] for i in positions]
            sketch = torch.zeros(len(batch), projection.dimension, device=backbone.device)
            sums: dict[str, torch.Tensor] = {}  # a layer is used at each noise level

            def add(name: str, gradient: torch.Tensor) -> None:
                if transform is None:
                    projection.add(sketch, name, gradient)
                else:
                    sums[name] = sums[name] + gradient if name in sums else gradient

            with torch.enable_grad(), _given_to(layers, len(batch), add):
                loss = backbone.losses(batch, noise).mean.sum()
                torch.autograd.grad(loss, parameters, allow_unused=True)
            for name, gradient in sums.items():
                projection.add(sketch, name, transform(name, gradient))  # type: ignore[misc]
            found[positions] = sketch.cpu().numpy()
            advance(len(batch))

        each_encoded(encoded, batch_tokens, take)
    return found


class AdapterGradients:
    """Takes gradients of examples at the adapter that a backbone has, and counts what they cost.

    Args:
        backbone: whose adapter, whichever is attached at the time.
        batch_tokens: tokens in a batch.
        noise: the same for every example.
        dimension: of the projection, which all share.
    """

    def __init__(
        self, backbone: Backbone, batch_tokens: int, noise: FixedNoise, dimension: int
    ) -> None:
        self._backbone = backbone
        self._batch_tokens = batch_tokens
        self._noise = noise
        self._projection = Projection(dimension)
        self.passes = 0
        """Units that went through the model so far; a backward pass counts for two."""

    def of(
        self, examples: Sequence[Example], label: str = "", transform: Transform | None = None
    ) -> Gradients:
        """Return the gradients of examples, (n, k) float32, see ``example_gradients``.

        Raises:
            BackboneError: one is not finite, or a layer's are not known.
        """
        return self.of_encoded(self._backbone.encode(examples), label, transform)

    def of_encoded(
        self, encoded: Sequence[Encoded], label: str = "", transform: Transform | None = None
    ) -> Gradients:
        """Return the same of examples as the backbone encodes them."""
        self.passes += 3 * forward_units(self._backbone, encoded, self._noise)
        found = example_gradients(
            self._backbone,
            encoded,
            self._batch_tokens,
            self._noise,
            self._projection,
            transform,
            label,
        )
        names = [one.example_id for one in encoded]
        remedy = "lower surrogate.learning_rate, or set backbone.dtype to float32"
        refuse_not_finite(found.sum(axis=1, dtype=np.float64), names, remedy, "gradients")
        return found


@contextmanager
def _given_to(
    layers: Mapping[str, torch.nn.Module],
    examples: int,
    add: Callable[[str, torch.Tensor], None],
) -> Iterator[None]:
    """Give each example's gradients of these layers to ``add`` as soon as a backward pass has them.

    None is kept for longer: those of all layers would take more memory than the pass.
    """
    handles = []
    for name, layer in layers.items():

        def read(
            its: torch.nn.Module,
            inputs: tuple[torch.Tensor, ...],
            out: torch.Tensor,
            name: str = name,
        ) -> None:
            if not out.requires_grad:
                return
            known = [inputs[0].detach()]  # let go of as the pass goes back

            def written(gradient: torch.Tensor) -> None:
                add(name, _layer_gradients(name, its, known.pop(), gradient, examples))

            out.register_hook(written)  # type: ignore[no-untyped-call]

        handles.append(layer.register_forward_pre_hook(_as_computed))
        handles.append(layer.register_forward_hook(read))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _as_computed(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Cast what a layer reads as mixed precision would in it: so the pass keeps what we read."""
    read, *others = inputs
    if torch.is_autocast_enabled(read.device.type):
        read = read.to(torch.get_autocast_dtype(read.device.type))
    return (read, *others)


def _layer_gradients(
    name: str, layer: torch.nn.Module, read: torch.Tensor, gradient: torch.Tensor, examples: int
) -> torch.Tensor:
    """Return each example's gradient of a layer's weight, (n, *weight) float32."""
    read, gradient = read.float(), gradient.float()
    if isinstance(layer, torch.nn.Conv2d):
        assert not isinstance(layer.padding, str)  # no LoRA layer has a padding by name
        patches = torch.nn.functional.unfold(
            read,
            (layer.kernel_size[0], layer.kernel_size[1]),
            layer.dilation,
            layer.padding,
            layer.stride,
        )
        weight = torch.einsum("nop,nip->noi", gradient.flatten(2), patches)
        return weight.view(examples, *layer.weight.shape)
    if not isinstance(layer, torch.nn.Linear) or read.shape[0] != examples:
        raise BackboneError(
            f"expected a linear or convolutional layer with one row an example, got "
            f"{type(layer).__name__} with {read.shape[0]} rows for {examples} examples",
            where=name,
            remedy="choose other adapter.target_modules, or another scorer and a fixed alpha",
        )
    read, gradient = (
        read.reshape(examples, -1, read.shape[-1]),
        gradient.reshape(examples, -1, gradient.shape[-1]),
    )
    return torch.bmm(gradient.transpose(1, 2), read)
