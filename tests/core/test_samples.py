"""Samples: in order, from the same noise for every arm, of pictures and of texts alike."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from albat_core.backbones import open_backbone
from albat_core.backbones.adapters import AdapterConfig
from albat_core.backbones.config import BackboneConfig, SamplingConfig
from albat_core.pictures import picture_pixels
from albat_core.records.examples import EXAMPLE_SCHEMA
from albat_core.records.samples import SAMPLES, read_samples
from albat_core.runs.chain import Chain
from albat_core.sources.dreambooth import LIVE_PROMPTS, OBJECT_PROMPTS, evaluation_prompts
from albat_core.stages import sample as samples
from albat_core.stages.sample import SampleConfig, draw_samples
from albat_core.store.artifacts import ArtifactStore, Built
from albat_core.store.stage import Runtime
from tests.pipelines import save_pipeline

PROMPTS = ("a red circle", "a blue box", "a cat on the box")
FEW = SamplingConfig(steps=2, guidance=1.0, max_new_tokens=8)
TWICE = SampleConfig(prompts=PROMPTS, per_prompt=2, sampling=FEW)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> BackboneConfig:
    folder = save_pipeline(tmp_path_factory.mktemp("pipeline") / "sd")
    picture = {"picture": {"resolution": 16}}
    return BackboneConfig(kind="diffusion", path=str(folder), dtype="float32", diffusion=picture)


def test_pictures_come_in_the_order_of_their_prompts(
    pipeline: BackboneConfig, runtime: Runtime
) -> None:
    store = ArtifactStore(runtime.root)
    ref = draw_samples(None, PROMPTS, pipeline, TWICE, 0, runtime)
    table = pq.read_table(store.folder(ref) / SAMPLES)
    assert table.schema.equals(EXAMPLE_SCHEMA) and table.num_rows == store.manifest(ref).rows == 6
    assert table["text"].to_pylist() == [p for p in PROMPTS for _ in range(2)]
    assert len(set(table["example_id"].to_pylist())) == 6
    drawn = read_samples(store, ref)
    assert [prompt for prompt, _ in drawn] == list(PROMPTS)
    pictures = [e.image for _, two in drawn for e in two]
    assert all(image and picture_pixels(image).shape == (16, 16, 3) for image in pictures)
    assert len(set(pictures)) == 6  # two of one prompt have noise of their own


def test_the_noise_is_the_same_for_every_arm_and_another_for_another_seed(
    pipeline: BackboneConfig, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ArtifactStore(runtime.root)

    def untrained(folder: Path) -> Built:
        """An adapter without effect, which must give the untouched backbone's pictures."""
        with open_backbone(pipeline, runtime) as backbone:
            backbone.attach_adapter(AdapterConfig(rank=2), 0)
            backbone.save_adapter(folder)
        return Built()

    adapter = store.produce("adapter", 1, {}, {}, untrained)
    monkeypatch.setattr(samples, "_BLOCK", 2)  # prompts in several blocks

    def pictures(ref: object) -> list[bytes | None]:
        return [e.image for _, made in read_samples(store, ref) for e in made]  # type: ignore[arg-type]

    once = TWICE.model_copy(update={"per_prompt": 1})
    untouched = draw_samples(None, PROMPTS, pipeline, once, 0, runtime)
    adapted = draw_samples(adapter, PROMPTS, pipeline, once, 0, runtime)
    other = draw_samples(None, PROMPTS, pipeline, once, 1, runtime)
    assert len({untouched, adapted, other}) == 3
    assert pictures(untouched) == pictures(adapted)
    assert not set(pictures(untouched)) & set(pictures(other))
    same = draw_samples(None, ["a cat"] * 4, pipeline, once, 0, runtime)
    assert len(set(pictures(same))) == 4  # nor does a block repeat the one before


def test_texts_are_drawn_by_the_same_stage(chain: Chain, store: ArtifactStore) -> None:
    config = SampleConfig(prompts=("leaf root", "sail"), per_prompt=2, sampling=FEW)
    c = chain.config
    ref = draw_samples(
        chain.arms.adapter("adaptation_only"), config.all_prompts, c.backbone, config, 0, c.runtime
    )
    samples = list(read_samples(store, ref))
    assert [prompt for prompt, _ in samples] == ["leaf root", "sail"]
    for prompt, made in samples:
        assert len(made) == 2
        for example in made:
            assert example.text and example.text.startswith(prompt) and example.image is None
            assert len(example.text) > len(prompt)


def test_the_chain_draws_samples_only_of_prompts_and_measures_only_by_encoders(
    chain: Chain,
) -> None:
    assert chain.arms.samples("untouched") is None and chain.arms.fidelity("untouched") is None
    config = chain.config.model_copy(
        update={"samples": SampleConfig(prompts=("leaf",), sampling=FEW)}
    )
    asked = Chain(config)
    drawn = asked.arms.samples("untouched")
    assert drawn is not None and asked.arms.samples("untouched") == drawn
    assert asked.arms.fidelity("untouched") is None
    assert [stage.label for stage in asked.stages] == ["sample: Backbone untouched"]


def test_what_samples_are_measured_with_does_not_draw_them_again(
    pipeline: BackboneConfig, runtime: Runtime
) -> None:
    once = TWICE.model_copy(update={"per_prompt": 1})
    first = draw_samples(None, PROMPTS, pipeline, once, 0, runtime)
    measured = once.model_copy(update={"clip": "openai/clip"})
    assert draw_samples(None, PROMPTS, pipeline, measured, 0, runtime).reused
    assert not first.reused


def test_dreambooth_s_prompts_are_added_with_the_subject() -> None:
    config = SampleConfig(
        prompts=("a cat", "a cat", "a red sks cat"), dreambooth="live", subject="sks cat"
    )
    assert len(OBJECT_PROMPTS) == len(LIVE_PROMPTS) == 25
    assert config.all_prompts[:3] == ("a cat", "a red sks cat", "a sks cat in the jungle")
    assert len(config.all_prompts) == 26  # "a red sks cat" is one of the 25
    assert "a sks cat wearing a red hat" in config.all_prompts
    objects = evaluation_prompts("object", "{0} can")
    assert len(set(objects)) == 25 and all("{0} can" in prompt for prompt in objects)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"dreambooth": "object"}, "dreambooth needs a subject"),
        ({"clip": "some/clip"}, "give prompts or dreambooth"),
        ({"prompts": ["a"], "per_prompt": 0}, "greater than or equal to 1"),
    ],
)
def test_incomplete_settings_are_refused(wrong: dict, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        SampleConfig.model_validate(wrong)
