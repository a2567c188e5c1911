"""Held-out pictures drawn anew: from the same noise by every arm, compared with what they are."""

import numpy as np
import pytest

from albat_core.backbones.config import BackboneConfig, SamplingConfig
from albat_core.errors import InputError
from albat_core.pictures import picture_pixels, png_file
from albat_core.records.examples import Example, examples_to_table
from albat_core.records.losses import document_losses
from albat_core.records.redrawn import read_redrawn
from albat_core.records.splits import ROLES, TEST
from albat_core.records.tables import write_table
from albat_core.stages import redraw
from albat_core.stages.redraw import redraw_heldout
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime
from tests.pipelines import save_pipeline

FEW = SamplingConfig(steps=2, guidance=1.0)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> BackboneConfig:
    folder = save_pipeline(tmp_path_factory.mktemp("pipeline") / "sd")
    picture = {"picture": {"resolution": 16}}
    return BackboneConfig(kind="diffusion", path=str(folder), dtype="float32", diffusion=picture)


def as_split(store: ArtifactStore, heldout: list[Example]) -> ArtifactRef:
    """A split of which the held-out rows are given, and the others are none."""

    def build(folder: object) -> Built:
        for role in ROLES:
            rows = heldout if role == TEST else []
            write_table(examples_to_table(rows), folder / f"{role}.parquet")  # type: ignore[operator]
        return Built()

    return store.produce("split", 1, {}, {"rows": [e.digest() for e in heldout]}, build)


def greys(count: int) -> list[Example]:
    """Pictures of one grey each, the first black."""
    return [
        Example(
            f"grey-{n}",
            f"grey-{n}",
            "greys",
            text=f"a grey {n}",
            image=png_file(np.full((16, 16, 3), 40 * n, np.uint8)),
            frame=(16, 16, 0, 0),
        )
        for n in range(count)
    ]


def test_errors_are_squared_differences_of_pixels_from_0_to_1(
    pipeline: BackboneConfig, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redraw, "_BLOCK", 3)  # captions in several blocks
    store = ArtifactStore(runtime.root)
    split = as_split(store, greys(5))
    ref = redraw_heldout(None, split, pipeline, FEW, 0, runtime, most=9, per_prompt=2)
    drawn = read_redrawn(store, ref)
    assert [true.example_id for true, _ in drawn] == [f"grey-{n}" for n in range(5)]
    totals, units = document_losses(store, ref)
    assert units.tolist() == [2] * 5
    for n, (true, made) in enumerate(drawn):
        assert len(made) == 2 and all(e.text == true.text for e in made)
        assert made[0].image != made[1].image  # noise of its own for each
        pixels = [picture_pixels(e.image or b"") / 255 for e in made]
        assert totals[n] == pytest.approx(sum(np.square(p - 40 * n / 255).mean() for p in pixels))
    assert store.manifest(ref).facts["error"] == pytest.approx(totals.sum() / 10)


def test_of_many_held_out_pictures_some_are_drawn_in_even_steps(
    pipeline: BackboneConfig, runtime: Runtime
) -> None:
    store = ArtifactStore(runtime.root)
    split = as_split(store, greys(6))
    ref = redraw_heldout(None, split, pipeline, FEW, 0, runtime, most=3)
    assert [true.example_id for true, _ in read_redrawn(store, ref)] == [
        "grey-0",
        "grey-2",
        "grey-4",
    ]
    assert redraw_heldout(None, split, pipeline, FEW, 0, runtime, most=3).reused
    assert not redraw_heldout(None, split, pipeline, FEW, 1, runtime, most=3).reused


def test_rows_without_pictures_are_refused(pipeline: BackboneConfig, runtime: Runtime) -> None:
    store = ArtifactStore(runtime.root)
    split = as_split(store, [Example("a", "a", "texts", text="a text")])
    with pytest.raises(InputError, match="1 of 1 rows have none") as caught:
        redraw_heldout(None, split, pipeline, FEW, 0, runtime, most=3)
    assert caught.value.where == "samples.heldout"
