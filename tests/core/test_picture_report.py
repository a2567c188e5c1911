"""A run on pictures to its report: what is selected, sampled and measured stands in the page."""

import base64
import re
from pathlib import Path

import numpy as np
import pytest

from albat_core.pictures import picture_pixels, png_file, thumbnail
from albat_core.records.examples import Example, examples_to_table
from albat_core.records.redrawn import read_redrawn
from albat_core.records.samples import read_samples
from albat_core.records.scores import SCORES
from albat_core.records.shards import STAGE
from albat_core.records.splits import TEST, TRAIN, read_role
from albat_core.records.tables import read_table, write_table
from albat_core.report.content import ReportContent
from albat_core.runs.chain import Chain
from albat_core.runs.config import RunConfig
from albat_core.stages.report import PAGE, read_results
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from tests.encoders import save_clip, save_dino
from tests.pipelines import save_pipeline

pytestmark = pytest.mark.slow
COLOURS = {"red": (220, 40, 30), "green": (40, 170, 60), "blue": (30, 60, 210)}
PROMPTS = ["a red circle", "a blue box"]


def squares(colours: list[str], count: int, seed: int, side: int = 16) -> list[Example]:
    """Pictures of a square of one colour each."""
    draw = np.random.default_rng(seed)
    made = []
    for n in range(count):
        colour = colours[n % len(colours)]
        pixels = np.full((side, side, 3), 255, dtype=np.uint8)
        top, left = draw.integers(0, side // 2, 2)
        pixels[top : top + side // 2, left : left + side // 2] = COLOURS[colour]
        name = f"{colour}-{seed}-{n}"
        made.append(
            Example(
                name,
                name,
                colour,
                text=f"a {colour} square <{n}>",
                image=png_file(pixels),
                frame=(side, side, 0, 0),
            )
        )
    return made


def as_shards(store: ArtifactStore, examples: list[Example]) -> ArtifactRef:
    """Shards of pictures that are cut already, as the reader of pictures leaves them."""

    def build(folder: Path) -> Built:
        write_table(examples_to_table(examples), folder / "00000.parquet")
        sources = [e.source for e in examples]
        facts = {
            "files": ["pictures.parquet"],
            "rows": len(examples),
            "null_rows": 0,
            "split_rows": 0,
            "unfit_rows": 0,
            "parts": [{"name": "00000.parquet", "rows": len(examples)}],
            "sources": {s: sources.count(s) for s in set(sources)},
        }
        return Built(rows=len(examples), facts=facts)

    return store.produce(STAGE, 1, {}, {"rows": [e.digest() for e in examples]}, build)


def picture_chain(config: RunConfig, corpus: list[Example], own: list[Example]) -> Chain:
    """A chain whose corpus and adaptation set are given as examples."""
    store, chain = ArtifactStore(config.runtime.root), Chain(config)
    chain.inputs.__dict__["corpus"] = [as_shards(store, corpus)]
    chain.inputs.__dict__["own"] = [as_shards(store, own)]
    return chain


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Red squares are adapted to; the corpus has squares of three colours."""
    home = tmp_path_factory.mktemp("pictures")
    training = {"steps": 12, "batch_size": 4, "evaluate_every": 4, "learning_rate": 0.01}
    source = {"path": "unused.parquet"}
    config = RunConfig.model_validate(
        {
            "name": "squares",
            "backbone": {
                "kind": "diffusion",
                "path": str(save_pipeline(home / "sd")),
                "dtype": "float32",
                "diffusion": {"picture": {"resolution": 16}},
            },
            "corpus": source,
            "adaptation": source,
            "split": {"folds": 3},
            "retrieval": {"neighbours": 4},
            "selection": {"rows": 6},
            "estimate": {"folds": 2, "rows": 16, "dimension": 64},
            "scoring": {"scorer": "advantage", "rank_agreement": 0.2},
            "surrogate": training,
            "finetune": training,
            "evaluation": {"noise_levels": 2},
            "samples": {
                "prompts": PROMPTS,
                "per_prompt": 2,
                "heldout": 2,
                "sampling": {"steps": 2, "guidance": 1.0},
                "dino": str(save_dino(home / "dino")),
                "clip": str(save_clip(home / "clip")),
            },
            "runtime": {"root": str(home / "artifacts"), "device": "cpu"},
        }
    )
    return picture_chain(config, squares(list(COLOURS), 30, 1), squares(["red"], 12, 2))


@pytest.fixture(scope="module")
def store(chain: Chain) -> ArtifactStore:
    return ArtifactStore(chain.config.runtime.root)


@pytest.fixture(scope="module")
def content(chain: Chain, store: ArtifactStore) -> ReportContent:
    return read_results(store, chain.report)


def decoded(uri: str | None) -> np.ndarray:
    assert uri and uri.startswith("data:image/png;base64,")
    return picture_pixels(base64.b64decode(uri.split(",")[1]))


def test_selected_pictures_stand_beside_the_nearest(
    chain: Chain, store: ArtifactStore, content: ReportContent
) -> None:
    shown = content.selection.most_useful + content.selection.least_useful
    assert len(shown) == 12
    scores = {
        r["example_id"]: r for r in read_table(store.folder(chain.scores) / SCORES).to_pylist()
    }
    given = {e.example_id: e for e in squares(list(COLOURS), 30, 1) + squares(["red"], 12, 2)}
    for example in shown:
        row = scores[example.example_id]
        assert example.score == pytest.approx(row["score"])
        assert example.score_error == pytest.approx(row["score_error"]) and example.score_error > 0
        original = given[example.example_id]
        assert example.text == original.text and original.image
        np.testing.assert_array_equal(decoded(example.image), picture_pixels(original.image))
        nearest = given[str(row["nearest_example_id"])]
        assert example.nearest_id == nearest.example_id and nearest.image
        np.testing.assert_array_equal(decoded(example.nearest_image), picture_pixels(nearest.image))
        assert example.nearest_text == nearest.text
    assert all(e.weight for e in content.selection.most_useful)


def test_losses_are_told_in_their_unit(chain: Chain, store: ArtifactStore) -> None:
    content = read_results(store, chain.report)
    assert content.unit == "squared error per latent value"
    assert "(squared error per latent value) on the held-out documents" in content.headline
    assert all(arm.perplexity is None for arm in content.arms)
    page = (store.folder(chain.report) / PAGE).read_text()
    visible = re.sub(r'<pre.*?</pre>|data:image[^"]+', "", page, flags=re.DOTALL)
    assert not re.findall(r"\bnats\b|[Pp]erplexity|\btokens?\b", visible)
    assert "validation loss, squared error per latent value" in page


def test_the_grid_has_a_row_a_prompt_and_a_column_an_arm(
    chain: Chain, store: ArtifactStore, content: ReportContent
) -> None:
    grid = content.samples
    assert grid is not None and grid.prompts == 2 and grid.per_prompt == 2
    assert grid.labels == tuple(arm.label for arm in content.arms) and len(grid.labels) == 4
    for column, arm in enumerate(content.arms):
        ref = chain.arms.samples(arm.name)
        assert ref is not None
        for row, (prompt, made) in zip(grid.rows, read_samples(store, ref), strict=True):
            assert row.prompt == prompt
            for sample, example in zip(row.cells[column], made, strict=True):
                assert example.image and sample.text is None
                np.testing.assert_array_equal(decoded(sample.image), picture_pixels(example.image))
    page = (store.folder(chain.report) / PAGE).read_text()
    redrawn = 2 * (1 + 2 * 4)  # each beside two of every arm
    assert page.count('src="data:image/png;base64,') == 2 * 12 + 2 * 2 * 4 + redrawn
    assert "Of each prompt 2 were made." in page


def test_held_out_pictures_stand_beside_what_every_arm_drew_of_them(
    chain: Chain, store: ArtifactStore, content: ReportContent
) -> None:
    grid = content.redrawn
    assert grid is not None and grid.prompts == 2 and grid.per_prompt == 2
    assert grid.labels == ("Held out", *(arm.label for arm in content.arms))
    heldout = {e.text: e for e in read_role(store, chain.inputs.adaptation, TEST)}
    for row in grid.rows:
        true = heldout[row.prompt].image
        assert true and len(row.cells[0]) == 1 and [len(cell) for cell in row.cells[1:]] == [2] * 4
        np.testing.assert_array_equal(decoded(row.cells[0][0].image), picture_pixels(true))


def test_errors_of_pixels_are_those_of_the_drawn_pictures(
    chain: Chain, store: ArtifactStore, content: ReportContent
) -> None:
    assert [arm.name for arm in content.pixel_errors] == [arm.name for arm in content.arms]
    by_hand = {}
    for arm in content.pixel_errors:
        ref = chain.arms.redrawn(arm.name)
        assert ref is not None and arm.pictures == 2
        errors = [
            np.square(picture_pixels(made.image) / 255 - picture_pixels(true.image) / 255).mean()
            for true, drawn in read_redrawn(store, ref)
            for made in drawn
            if made.image and true.image
        ]
        assert len(errors) == 4
        by_hand[arm.name] = np.mean(errors)
        assert arm.error.value == pytest.approx(by_hand[arm.name])
        assert store.manifest(ref).facts["error"] == pytest.approx(by_hand[arm.name])
        assert arm.error.low <= arm.error.value <= arm.error.high
    main = content.pixel_errors[-1]
    assert main.gain and main.over_random
    assert main.gain.value == pytest.approx(by_hand["adaptation_only"] - by_hand["albat"])
    assert main.over_random.value == pytest.approx(by_hand["random"] - by_hand["albat"])
    page = (store.folder(chain.report) / PAGE).read_text()
    table = re.search(r'aria-label="Error of pixels">(.*?)</table>', page, re.DOTALL)
    assert table and table[1].count("<tr") == 5 and f"{main.error.value:.4f}" in table[1]


def test_fidelity_is_that_of_each_arm_s_artifact(
    chain: Chain, store: ArtifactStore, content: ReportContent
) -> None:
    assert [arm.name for arm in content.fidelity] == [arm.name for arm in content.arms]
    for arm in content.fidelity:
        ref = chain.arms.fidelity(arm.name)
        assert ref is not None and arm.prompts == 2
        facts = store.manifest(ref).facts
        assert facts["real"] == store.manifest(chain.inputs.adaptation).facts[TRAIN]["rows"]
        for name in ("dino", "clip_i", "clip_t"):
            assert getattr(arm, name).model_dump() == facts[name]
    page = (store.folder(chain.report) / PAGE).read_text()
    table = re.search(r'aria-label="Fidelity">(.*?)</table>', page, re.DOTALL)
    assert table and "DINO: subject" in table[1] and table[1].count("<tr") == 5
    assert f"{content.fidelity[3].clip_t.value:.3f}".replace("-", "−") in table[1]  # type: ignore[union-attr]


def test_how_many_noise_levels_and_why(
    chain: Chain, store: ArtifactStore, content: ReportContent
) -> None:
    facts = store.manifest(chain.scores).facts
    noise = content.selection.noise
    assert noise is not None and noise.levels == facts["noise_levels"] and noise.asked == 0.2
    assert [t.model_dump() for t in noise.tried] == facts["rank_agreement"]


def test_samples_and_their_measures_are_stages_of_the_run(chain: Chain) -> None:
    assert chain.report
    labels = [stage.label for stage in chain.stages]
    for said in ("Backbone untouched", "ALBAT"):
        assert {f"{verb}: {said}" for verb in ("sample", "measure", "redraw")} <= set(labels)


def test_large_pictures_become_small_ones_small_ones_stay() -> None:
    small, large = (squares(["red"], 1, 3, side)[0].image for side in (64, 600))
    assert small and large
    assert thumbnail(small, 256) is small
    made = thumbnail(large, 256)
    assert made[:4] == b"RIFF" and made[8:12] == b"WEBP" and len(made) < len(large) + 2000
