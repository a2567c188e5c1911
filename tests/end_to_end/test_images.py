"""The whole chain on pictures, for each family of pipelines; results read with plain diffusers."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import load_dataset
from safetensors.torch import save_file

from albat_core.measures.discounts import discounted
from albat_core.records.splits import TRAIN, VALIDATION
from albat_core.records.tables import read_table
from albat_core.seeding import torch_generator
from tests.end_to_end.conftest import Run, Start, copy_of
from tests.pictures import picture, write_image_run
from tests.pipelines import PIPELINES, save_pipeline
from tests.toys import rewrite

pytestmark = pytest.mark.end_to_end

LATENTS, LEVELS = (4, 8, 8), 8
ALBAT_FILES = ("pytorch_lora_weights.safetensors", "kohya.safetensors")


@pytest.fixture(scope="module")
def image_run(start: Start, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """Give the finished toy run of a family; run once. Only one family has baselines."""
    done: dict[str, Run] = {}

    def run(family: str) -> Run:
        if family not in done:
            path = write_image_run(tmp_path_factory.mktemp(family), family)
            if family != "sd":  # six steps at the usual rate may be worth nothing
                training = yaml.safe_load(path.read_text())["finetune"] | {"learning_rate": 0.01}
                path = rewrite(path, {"baselines": [], "finetune": training})
            done[family] = start(path)
        return done[family]

    return run


@pytest.fixture
def copied(image_run: Callable[[str], Run], tmp_path: Path) -> Run:
    """A finished run with inputs and artifacts of the test's own; not run again yet."""
    return copy_of(image_run("sd"), tmp_path)


@pytest.fixture(scope="module")
def plain_losses(
    image_run: Callable[[str], Run], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], list[float]]:
    """Held-out losses by family and file of weights, computed by a program without albat."""
    folder = tmp_path_factory.mktemp("plain")
    noise = torch.stack(
        [
            torch.randn(LATENTS, generator=torch_generator(0, "fixed noise", 0, n))
            for n in range(LEVELS)
        ]
    )
    save_file({"noise": noise}, folder / "noise.safetensors")
    found, adapters = [], []
    for family in PIPELINES:
        run = image_run(family)
        heldout = run.store.folder(run.refs("split by document")[0]) / "test.parquet"
        unet = family not in ("flux", "sd3")  # see test_kohya.py
        for weights in ALBAT_FILES if unet else ALBAT_FILES[:1]:
            found.append((family, weights))
            adapters.append(
                {
                    "pipeline": run.config.backbone.path,
                    "rows": str(heldout),
                    "folder": run.result.places["adapter"],
                    "weights": weights,
                }
            )
    program = Path(__file__).parent / "plain_diffusers.py"
    done = subprocess.run(
        [sys.executable, "-P", str(program), "noise.safetensors", json.dumps(adapters)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    losses = json.loads(done.stdout.splitlines()[-1])
    return dict(zip(found, losses, strict=True))


@pytest.mark.parametrize("family", PIPELINES)
def test_plain_diffusers_gets_the_losses_of_our_evaluation(
    image_run: Callable[[str], Run],
    plain_losses: dict[tuple[str, str], list[float]],
    family: str,
) -> None:
    run = image_run(family)
    table = read_table(run.store.folder(run.refs("evaluate: ALBAT")[0]) / "losses.parquet")
    ours = table["loss"].to_numpy() / table["units"].to_numpy()
    assert table["units"].to_pylist() == [LEVELS] * len(ours)
    untouched = run.store.folder(run.refs("evaluate: Backbone untouched")[0])
    assert np.abs(ours - read_table(untouched / "losses.parquet")["loss"].to_numpy() / LEVELS).max()
    plain = {weights: losses for (of, weights), losses in plain_losses.items() if of == family}
    assert ALBAT_FILES[0] in plain
    for weights, losses in plain.items():
        assert losses == pytest.approx(ours.tolist(), rel=1e-4), weights


def test_a_second_run_computes_nothing(image_run: Callable[[str], Run], start: Start) -> None:
    first = image_run("sd")
    before = first.files()
    second = start(first.path)
    assert second.computed == set()
    assert second.files() == before
    assert {"encode corpus", "encode adaptation set"} <= second.labels


def test_only_new_pictures_are_encoded(start: Start, copied: Run) -> None:
    green = copied.path.parent / "corpus" / "green"
    green.mkdir()
    for n in range(3):
        (green / f"{n}.png").write_bytes(picture("green", "circle", n))
        (green / f"{n}.txt").write_text("a photo of a green circle")
    corpus = [{"path": f"corpus/{colour}"} for colour in ("red", "blue", "green")]
    second = start(rewrite(copied.path, {"corpus": corpus}))
    for stage in ("encode corpus", "embed corpus"):
        *before, last = [ref.reused for ref in second.refs(stage)]
        assert all(before)
        assert not last
    assert second.manifest("encode adaptation set") == copied.manifest("encode adaptation set")


def test_the_learning_rate_changes_only_what_follows(start: Start, copied: Run) -> None:
    training = yaml.safe_load(copied.path.read_text())["finetune"] | {"learning_rate": 1e-4}
    second = start(rewrite(copied.path, {"finetune": training}))
    kept = {"encode corpus", "embed corpus", "index", "score", "select", "write mixture: ALBAT"}
    assert not second.computed & kept
    assert {"fine-tune: ALBAT", "evaluate: ALBAT", "report"} <= second.computed


def test_the_mixture_opens_with_datasets(image_run: Callable[[str], Run], tmp_path: Path) -> None:
    run = image_run("sd")
    rows = load_dataset(run.result.places["mixture"], split="train", cache_dir=str(tmp_path))
    assert sum(rows["weight"]) == pytest.approx(1)
    shown = rows[len(rows) - 1]
    assert shown["role"] == "backbone"
    assert shown["image"].size == (16, 16)
    assert shown["text"].startswith("a photo of a ")
    assert shown["score"] is not None
    assert shown["nearest_example_id"].startswith("red-1-")


def test_scores_come_with_their_error_and_the_levels_they_took(start: Start, copied: Run) -> None:
    asked = 0.1  # little: each doubling of the levels takes as long as all before
    run = start(rewrite(copied.path, {"scoring": {"scorer": "advantage", "rank_agreement": asked}}))
    assert "score" in run.computed
    facts = run.manifest("score").facts
    tried = facts["rank_agreement"]
    assert [t["levels"] for t in tried] == [4, 8, 16, 32, 64][: len(tried)]
    assert facts["noise_levels"] == tried[-1]["levels"]
    assert all(t["agreement"] < asked for t in tried[:-1])
    assert tried[-1]["agreement"] >= asked or tried[-1]["levels"] == 64
    table = read_table(run.store.folder(run.refs("score")[0]) / "scores.parquet")
    error, score = (table[name].to_numpy() for name in ("score_error", "score"))
    assert (error > 0).all()
    assert np.isfinite(error).all()
    difference = table["loss_backbone"].to_numpy() - table["loss_surrogate"].to_numpy()
    np.testing.assert_allclose(score, discounted(difference, error, "shrinkage"), atol=1e-6)


def test_rows_that_the_backbone_makes_are_a_baseline_and_a_corpus(
    start: Start, copied: Run, tmp_path: Path
) -> None:
    made = {"prompts": ["a photo of a circle", "a dog"], "rows": 6, "sampling": {"steps": 2}}
    arms = ["adaptation_only", "generated"]
    path = rewrite(copied.path, {"generated": made, "baselines": arms, "name": "beside"})
    first = start(path)
    rows = first.manifest("fine-tune: With generated rows").facts
    split = first.manifest("split by document").facts
    used = sum(split[role]["rows"] for role in (TRAIN, VALIDATION))
    assert (rows["backbone_rows"], rows["adaptation_rows"]) == (6, used)
    written = yaml.safe_load(path.read_text()) | {"baselines": ["adaptation_only"]}
    del written["corpus"]
    path.write_text(yaml.safe_dump(written))
    closed = start(path)
    assert closed.manifest("generate rows") == first.manifest("generate rows")
    mixture = load_dataset(
        closed.result.places["mixture"], split="train", cache_dir=str(tmp_path / "cache")
    )
    captions = {r["text"] for r in mixture if r["role"] == "backbone"}
    assert captions == set(made["prompts"])


def test_a_subject_is_learned_from_photographs(start: Start, tmp_path: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "subject" / "subject.yaml"
    config = yaml.safe_load(example.read_text())
    save_pipeline(tmp_path / "pipeline", "sd")
    for role in ("corpus", "adaptation"):
        config[role]["path"] = str(example.parent / config[role]["path"])
    config["backbone"] |= {"path": str(tmp_path / "pipeline"), "dtype": "float32"}
    config["backbone"]["diffusion"]["picture"]["resolution"] = 32
    short = {"steps": 4, "evaluate_every": 2, "noise_levels": 2, "batch_size": 4}
    for stage in ("finetune", "surrogate"):
        config[stage] |= short
    config["generated"] |= {"rows": 6, "sampling": {"steps": 2}}
    config["samples"] |= {"sampling": {"steps": 2}}
    config["scoring"] = {"noise_levels": 4}
    config["mixture"] = {"alpha": 0.5}
    config["selection"] = {"rows": 20}
    config |= {"output": str(tmp_path / "runs"), "runtime": {"root": str(tmp_path / "artifacts")}}
    path = tmp_path / "subject.yaml"
    path.write_text(yaml.safe_dump(config))
    run = start(path)
    assert run.manifest("cut corpus").facts["rows"] == 153
    assert run.manifest("split by document").facts["test"]["documents"] == 1
    mixture = load_dataset(
        run.result.places["mixture"], split="train", cache_dir=str(tmp_path / "cache")
    )
    own = [row for row in mixture if row["role"] == "adaptation"]
    assert {row["text"] for row in own} == {"a photo of sks dog"}
    others = [row["text"] for row in mixture if row["role"] == "backbone"]
    assert len(others) == 20
    assert all(text.startswith("a photo of a ") for text in others)
    samples = run.manifest("sample: ALBAT")
    assert samples.rows == 25  # DreamBooth's prompts of a live subject
    page = Path(run.result.places["report"]).read_text(encoding="utf-8")
    assert "a sks dog wearing a red hat" in page
    assert page.count("data:image/png;base64,") >= 25 * 5
