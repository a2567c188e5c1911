"""Fidelity equals what plain transformers gives, by DreamBooth's definitions."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from albat_core.backbones.vision import check_encoder
from albat_core.errors import BackboneError, InputError
from albat_core.pictures import png_file
from albat_core.records.examples import Example, examples_to_table
from albat_core.records.fidelity import prompt_fidelity
from albat_core.records.samples import SAMPLES
from albat_core.records.splits import TRAIN
from albat_core.records.tables import write_table
from albat_core.stages.fidelity import measure_fidelity
from albat_core.stages.sample import SampleConfig
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime
from tests.encoders import SIDE, save_clip, save_dino, save_dinov2
from tests.pipelines import LONGEST_CAPTION

PROMPTS = ["a photo of a red circle", "dog on the box", "a cat"]
EACH = 2


def pictures(count: int, seed: int) -> list[Example]:
    draw = np.random.default_rng(seed)
    made = []
    for n in range(count):
        coarse = Image.fromarray(draw.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        image = png_file(np.array(coarse.resize((SIDE, SIDE))))
        made.append(Example(f"{seed}/{n}", f"{seed}/{n}", "s", text="a dog", image=image))
    return made


REAL, MADE = pictures(5, 1), pictures(len(PROMPTS) * EACH, 2)


def artifact(
    store: ArtifactStore,
    stage: str,
    file: str,
    rows: list[Example],
    prompts: list[str] = PROMPTS,
) -> ArtifactRef:
    def build(folder: Path) -> Built:
        write_table(examples_to_table(rows), folder / file)
        return Built(rows=len(rows), facts={"prompts": prompts, "per_prompt": EACH})

    return store.produce(
        stage, 1, {}, {"rows": [r.digest() for r in rows], "prompts": prompts}, build
    )


def embedded(folder: Path, rows: list[Example]) -> torch.Tensor:
    """Unit embeddings by transformers alone."""
    opened = [Image.open(io.BytesIO(r.image or b"")) for r in rows]
    pixels = AutoImageProcessor.from_pretrained(folder)(opened, return_tensors="pt")
    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        if hasattr(model, "get_image_features"):
            return F.normalize(model.get_image_features(**pixels).pooler_output)
        return F.normalize(model(**pixels).last_hidden_state[:, 0])


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    home = tmp_path_factory.mktemp("encoders")
    return {"dino": str(save_dino(home / "dino")), "clip": str(save_clip(home / "clip"))}


def test_encoders_are_looked_at_beforehand(encoders: dict[str, str], tmp_path: Path) -> None:
    for path in encoders.values():
        check_encoder(path)
    check_encoder(encoders["clip"], both=True)
    with pytest.raises(BackboneError, match="this one reads pictures only"):
        check_encoder(encoders["dino"], both=True)
    wordless = Path(shutil.copytree(encoders["clip"], tmp_path / "clip"))
    for path in wordless.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(BackboneError, match="expected the encoder's tokenizer"):
        check_encoder(str(wordless), both=True)


def test_measures_are_those_of_the_paper(encoders: dict[str, str], runtime: Runtime) -> None:
    store = ArtifactStore(runtime.root)
    samples = artifact(store, "samples", SAMPLES, MADE)
    adaptation = artifact(store, "adaptation", f"{TRAIN}.parquet", REAL)
    config = SampleConfig(prompts=tuple(PROMPTS), per_prompt=EACH, **encoders)
    ref = measure_fidelity(samples, adaptation, 0, runtime, dino=config.dino, clip=config.clip)

    dino, clip = Path(encoders["dino"]), Path(encoders["clip"])
    cosines = embedded(dino, MADE) @ embedded(dino, REAL).T
    clip_made = embedded(clip, MADE)
    clip_cosines = clip_made @ embedded(clip, REAL).T
    tokens = AutoTokenizer.from_pretrained(clip)(
        PROMPTS, padding="max_length", max_length=LONGEST_CAPTION, return_tensors="pt"
    )
    with torch.no_grad():
        said = AutoModel.from_pretrained(clip).eval().get_text_features(**tokens).pooler_output
    said = F.normalize(said)
    by_hand = {
        "dino": [[cosines[n, m] for n in (2 * p, 2 * p + 1) for m in range(5)] for p in range(3)],
        "clip_i": [
            [clip_cosines[n, m] for n in (2 * p, 2 * p + 1) for m in range(5)] for p in range(3)
        ],
        "clip_t": [[clip_made[n] @ said[p] for n in (2 * p, 2 * p + 1)] for p in range(3)],
    }
    table = prompt_fidelity(store, ref)
    assert table["prompt"].to_pylist() == PROMPTS and table["pictures"].to_pylist() == [EACH] * 3
    facts = store.manifest(ref).facts
    assert facts["real"] == len(REAL)
    for name, values in by_hand.items():
        expected = [float(np.mean(v)) for v in values]
        np.testing.assert_allclose(table[name].to_numpy(), expected, atol=1e-5)
        assert facts[name]["value"] == pytest.approx(np.mean(expected), abs=1e-5)
        assert min(expected) - 1e-5 <= facts[name]["low"] < facts[name]["value"]
        assert facts[name]["value"] < facts[name]["high"] <= max(expected) + 1e-5


def test_real_pictures_are_nearest_to_themselves(tmp_path: Path, runtime: Runtime) -> None:
    store = ArtifactStore(runtime.root)
    config = SampleConfig(prompts=tuple(PROMPTS), dino=str(save_dinov2(tmp_path / "dinov2")))
    adaptation = artifact(store, "adaptation", f"{TRAIN}.parquet", MADE[:1])
    same = artifact(store, "samples", SAMPLES, MADE[:1] * (len(PROMPTS) * EACH))
    ref = measure_fidelity(same, adaptation, 0, runtime, dino=config.dino, clip=config.clip)
    facts = store.manifest(ref).facts
    assert facts["dino"]["value"] == pytest.approx(1.0, abs=1e-6)
    assert "clip_i" not in facts and "clip_t" not in facts
    assert prompt_fidelity(store, ref)["clip_t"].null_count == len(PROMPTS)


def test_texts_have_no_fidelity(encoders: dict[str, str], runtime: Runtime) -> None:
    store = ArtifactStore(runtime.root)
    bare = [Example(f"t{n}", f"t{n}", "s", text="words") for n in range(len(PROMPTS) * EACH)]
    samples = artifact(store, "samples", SAMPLES, bare)
    adaptation = artifact(store, "adaptation", f"{TRAIN}.parquet", REAL)
    config = SampleConfig(prompts=tuple(PROMPTS), **encoders)
    with pytest.raises(InputError, match="6 of 6 samples have none"):
        measure_fidelity(samples, adaptation, 0, runtime, dino=config.dino, clip=config.clip)


def test_prompts_need_an_encoder_that_reads_them(
    encoders: dict[str, str], runtime: Runtime
) -> None:
    store = ArtifactStore(runtime.root)
    samples = artifact(store, "samples", SAMPLES, MADE)
    adaptation = artifact(store, "adaptation", f"{TRAIN}.parquet", REAL)
    config = SampleConfig(prompts=tuple(PROMPTS), clip=encoders["dino"])
    with pytest.raises(BackboneError, match="reads pictures only"):
        measure_fidelity(samples, adaptation, 0, runtime, dino=config.dino, clip=config.clip)


def test_a_prompt_that_clip_cannot_read_is_left_out_and_counted(
    encoders: dict[str, str], runtime: Runtime
) -> None:
    store = ArtifactStore(runtime.root)
    adaptation = artifact(store, "adaptation", f"{TRAIN}.parquet", REAL)
    config = SampleConfig(prompts=tuple(PROMPTS), clip=encoders["clip"])
    long = [PROMPTS[0], "dog " * LONGEST_CAPTION, PROMPTS[2]]
    whole, ref = (
        measure_fidelity(
            artifact(store, "samples", SAMPLES, MADE, prompts),
            adaptation,
            0,
            runtime,
            dino=config.dino,
            clip=config.clip,
        )
        for prompts in (PROMPTS, long)
    )
    expected = prompt_fidelity(store, whole)["clip_t"].to_pylist()
    found = prompt_fidelity(store, ref)["clip_t"].to_pylist()
    assert found[1] is None
    assert [found[0], found[2]] == pytest.approx([expected[0], expected[2]])
    facts = store.manifest(ref).facts
    assert facts["unread_prompts"] == 1 and store.manifest(whole).facts["unread_prompts"] == 0
    assert facts["clip_t"]["value"] == pytest.approx((expected[0] + expected[2]) / 2)
