"""Per-example gradients in a random projection."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from albat_core.backbones import open_backbone
from albat_core.backbones.adapters import AdapterConfig
from albat_core.backbones.base import Backbone, Encoded, FixedNoise
from albat_core.backbones.config import BackboneConfig
from albat_core.backbones.language.model import LanguageBackbone
from albat_core.errors import BackboneError
from albat_core.measures import gradients
from albat_core.measures.gradients import AdapterGradients, Projection, Transform, example_gradients
from albat_core.records.splits import TRAIN, read_role
from albat_core.runs.chain import Chain
from albat_core.store.artifacts import ArtifactStore
from albat_core.store.stage import Runtime
from tests.core.test_diffusion import CPU, config_of, cut
from tests.pipelines import save_pipeline

PLAIN = AdapterConfig(rank=4)
WITH_TEXT = AdapterConfig(rank=2, text_encoder=True)
CONVOLVED = AdapterConfig(rank=2, target_modules=("to_q", "conv1", "proj_in"))


def perturb(backbone: Backbone, adapter: AdapterConfig = PLAIN) -> None:
    """Move an adapter away from its start, where half of its gradients are zero."""
    backbone.attach_adapter(adapter, seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in backbone.adapter_parameters().values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture
def encoded(chain: Chain, store: ArtifactStore, backbone: LanguageBackbone) -> list[Encoded]:
    return backbone.encode(read_role(store, chain.inputs.adaptation, TRAIN)[:6])


def one_by_one(
    backbone: Backbone, encoded: Sequence[Encoded], noise: FixedNoise | None = None
) -> list[dict[str, torch.Tensor]]:
    """Each example's gradients as autograd gives them, from a backward pass of its own."""
    parameters = backbone.adapter_parameters()
    found = []
    for example in encoded:
        loss = backbone.losses([example], noise).mean.sum()
        given = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
        found.append(dict(zip(parameters, given, strict=True)))
    return found


def projected(gradients: dict[str, torch.Tensor], projection: Projection) -> torch.Tensor:
    sketch = torch.zeros(1, projection.dimension)
    for name, gradient in gradients.items():
        projection.add(sketch, name, gradient[None])
    return sketch[0]


def test_gradients_of_a_batch_are_those_of_single_examples(
    backbone: LanguageBackbone, encoded: list[Encoded]
) -> None:
    perturb(backbone)
    projection = Projection(256)
    found = example_gradients(backbone, encoded, 10_000, FixedNoise(), projection)
    expected = [projected(g, projection).numpy() for g in one_by_one(backbone, encoded)]
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=1e-4)
    assert all(p.grad is None for p in backbone.adapter_parameters().values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_more_is_kept_of_what_layers_read_than_the_pass_keeps(
    backbone_config: BackboneConfig,
    encoded: list[Encoded],
    dtype: str,
    runtime: Runtime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept: list[torch.Tensor] = []
    read: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    def noted(name: str, layer: torch.nn.Module, its: torch.Tensor, *rest: Any) -> torch.Tensor:
        read.append(its.data_ptr())
        return layer_gradients(name, layer, its, *rest)

    layer_gradients = gradients._layer_gradients
    monkeypatch.setattr(gradients, "_layer_gradients", noted)
    config = backbone_config.model_copy(update={"dtype": dtype})
    with open_backbone(config, runtime) as backbone:
        perturb(backbone)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            example_gradients(backbone, encoded, 10_000, FixedNoise(), Projection(64))
        assert len(read) == len(backbone.adapter_parameters())
    assert set(read) <= {tensor.data_ptr() for tensor in kept}


def test_a_transform_is_applied_before_the_projection(
    backbone: LanguageBackbone, encoded: list[Encoded]
) -> None:
    perturb(backbone)
    projection = Projection(64)
    found = example_gradients(
        backbone, encoded, 50, FixedNoise(), projection, transform=lambda _, g: g.square()
    )
    expected = [
        projected({n: g.square() for n, g in each.items()}, projection).numpy()
        for each in one_by_one(backbone, encoded)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-8, rtol=1e-3)


@pytest.mark.parametrize(
    ("family", "adapter"),
    [
        ("sd", WITH_TEXT),
        ("sd", CONVOLVED),
        ("sdxl", WITH_TEXT),
        ("sd3", WITH_TEXT),
        ("flux", WITH_TEXT),
    ],
    ids=["sd", "sd with convolutions", "sdxl", "sd3", "flux"],
)
@pytest.mark.parametrize("transform", [None, lambda _, g: g.square()], ids=["plain", "squared"])
def test_gradients_of_pictures_are_those_of_all_noise_levels_together(
    tmp_path: Path, family: str, adapter: AdapterConfig, transform: Transform | None
) -> None:
    noise, projection = FixedNoise(levels=2), Projection(512)
    with open_backbone(config_of(save_pipeline(tmp_path, family)), CPU) as backbone:
        encoded = backbone.encode(cut(backbone, 4))
        perturb(backbone, adapter)
        convolved = {isinstance(e, torch.nn.Conv2d) for e in backbone.adapter_layers().values()}
        assert (True in convolved) == (adapter == CONVOLVED)
        gradients = one_by_one(backbone, encoded, noise)
        if transform:
            gradients = [{n: transform(n, g) for n, g in each.items()} for each in gradients]
        expected = [projected(each, projection).numpy() for each in gradients]
        for batch_tokens in (10_000, 1):
            found = example_gradients(backbone, encoded, batch_tokens, noise, projection, transform)
            largest = np.abs(expected).max()
            np.testing.assert_allclose(found, expected, atol=1e-5 * largest, rtol=1e-3)
        assert len({row.tobytes() for row in found}) == 4


def test_projection_keeps_inner_products_on_average() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 400, generator=generator)
    x[1] += x[0]
    exact = float(x[0] @ x[1])
    found = []
    for number in range(300):  # each name has a map of its own
        sketch = torch.zeros(2, 50)
        Projection(50).add(sketch, f"layer {number}", x)
        found.append(float(sketch[0] @ sketch[1]))
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - exact) < 4 * error
    size = float(x[0].norm() * x[1].norm())
    assert np.std(found) < 2 * size / np.sqrt(50)


def test_projection_is_the_same_each_time() -> None:
    x = torch.arange(12.0).view(1, 3, 4)
    sketches = [torch.zeros(1, 8) for _ in range(2)]
    for sketch in sketches:
        Projection(8).add(sketch, "layer", x)
    assert torch.equal(*sketches)
    other = torch.zeros(1, 8)
    Projection(8).add(other, "another", x)
    assert not torch.equal(sketches[0], other)


def test_convolutions_have_gradients_too() -> None:
    from albat_core.measures.gradients import _layer_gradients

    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
    read = torch.randn(2, 3, 8, 8, generator=generator)
    out = layer(read)
    upstream = torch.randn(out.shape, generator=generator)
    found = _layer_gradients("conv", layer, read, upstream, 2)
    for n in range(2):
        (expected,) = torch.autograd.grad(layer(read[n : n + 1]), layer.weight, upstream[n : n + 1])
        torch.testing.assert_close(found[n], expected, atol=1e-5, rtol=1e-4)


def test_a_layer_of_another_kind_is_refused() -> None:
    from albat_core.measures.gradients import _layer_gradients

    layer = torch.nn.Embedding(4, 2)
    with pytest.raises(BackboneError, match="Embedding"):
        _layer_gradients("words", layer, torch.zeros(2, 3), torch.zeros(2, 3, 2), 2)


def test_what_gradients_cost_is_counted(
    chain: Chain, store: ArtifactStore, backbone: LanguageBackbone
) -> None:
    perturb(backbone)
    examples = read_role(store, chain.inputs.adaptation, TRAIN)[:6]
    encoded = backbone.encode(examples)
    gradients = AdapterGradients(backbone, 1000, FixedNoise(), 64)
    assert gradients.passes == 0
    found = gradients.of(examples)
    expected = example_gradients(backbone, encoded, 1000, FixedNoise(), Projection(64))
    np.testing.assert_array_equal(found, expected)
    gradients.of(examples)
    # forwards once, backwards for two
    assert gradients.passes == 2 * 3 * sum(e.length for e in encoded)
