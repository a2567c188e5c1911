"""Image encoders give what plain transformers gives; preprocessing and mistakes."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPProcessor,
    CLIPTokenizerFast,
    CLIPVisionConfig,
    CLIPVisionModel,
)

from albat_core.backbones import encoder_identity, open_encoder
from albat_core.backbones.vision import Preprocessing, VisionEncoder
from albat_core.errors import BackboneError, InputError
from albat_core.pictures import png_file
from albat_core.records.examples import Example
from albat_core.store.stage import Runtime
from tests.encoders import ENCODERS, SIDE, save_clip, save_dino, save_siglip
from tests.pipelines import LONGEST_CAPTION

CPU = torch.device("cpu")
PROMPTS = ["a photo of a red circle", "dog on the box"]


def picture(seed: int, height: int = SIDE, width: int = SIDE) -> Example:
    """A smooth picture: what is resized then depends little on rounding."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return Example(f"p{seed}", f"p{seed}", "s", text="a dog", image=png_file(np.array(smooth)))


def opened(example: Example) -> Image.Image:
    assert example.image is not None
    return Image.open(io.BytesIO(example.image))


def plainly(folder: Path, name: str, examples: list[Example]) -> torch.Tensor:
    """The embeddings by transformers alone."""
    processor = AutoImageProcessor.from_pretrained(folder)
    pixels = processor([opened(e) for e in examples], return_tensors="pt")["pixel_values"]
    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        if name in ("clip", "siglip"):
            return model.get_image_features(pixel_values=pixels).pooler_output
        return model(pixel_values=pixels).last_hidden_state[:, 0]


@pytest.fixture(params=sorted(ENCODERS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def folder(name: str, tmp_path: Path) -> Path:
    return ENCODERS[name](tmp_path / name)


@pytest.mark.parametrize("size", [(SIDE, SIDE), (64, 64), (48, 72), (20, 20)])
def test_pictures_are_embedded_as_transformers_does(
    folder: Path, name: str, size: tuple[int, int]
) -> None:
    examples = [picture(seed, *size) for seed in range(3)]
    encoder = VisionEncoder(str(folder), CPU)
    found = encoder.embed(encoder.encode(examples))
    expected = plainly(folder, name, examples)
    # Pillow rounds between the two passes of resizing
    exact = size == (SIDE, SIDE) and name != "dinov2"
    torch.testing.assert_close(found, expected, atol=1e-5 if exact else 0.05, rtol=0)
    assert (found[0] - found[1]).abs().max() > 0.1  # else any picture would do


def test_pixels_are_those_of_the_image_processor(folder: Path) -> None:
    example = picture(5, 56, 80)
    processor = AutoImageProcessor.from_pretrained(folder)
    expected = processor(opened(example), return_tensors="pt")["pixel_values"][0]
    assert example.image is not None
    found = Preprocessing.read(folder)(example.image)
    step = 1 / 255 / min(processor.image_std)
    torch.testing.assert_close(found, expected, atol=2.01 * step, rtol=0)


def test_a_class_token_is_read_before_any_pooling_layer(tmp_path: Path) -> None:
    """DINO has none, so transformers makes one up at random."""
    folder = save_dino(tmp_path / "dino")
    encoders = [VisionEncoder(str(folder), CPU) for _ in range(2)]
    first, second = (e.embed(e.encode([picture(1)])) for e in encoders)
    torch.testing.assert_close(first, second)


def test_an_encoder_of_pictures_alone_gives_what_it_pools(tmp_path: Path) -> None:
    clip = save_clip(tmp_path / "clip")
    folder = tmp_path / "vision"
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=8,
    )
    model = CLIPVisionModel(config).eval()
    model.save_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(clip)
    processor.save_pretrained(folder)
    encoder = VisionEncoder(str(folder), CPU)
    pixels = processor(opened(picture(1)), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        expected = model(pixel_values=pixels).pooler_output
    torch.testing.assert_close(encoder.embed(encoder.encode([picture(1)])), expected)


@pytest.mark.parametrize("save", [save_clip, save_siglip])
def test_prompts_are_embedded_as_transformers_does(tmp_path: Path, save: Any) -> None:
    folder = save(tmp_path / "both")
    tokens = AutoTokenizer.from_pretrained(folder)(
        PROMPTS, padding="max_length", max_length=LONGEST_CAPTION, return_tensors="pt"
    )
    with torch.no_grad():
        expected = AutoModel.from_pretrained(folder).eval().get_text_features(**tokens)
    found = VisionEncoder(str(folder), CPU).embed_prompts(PROMPTS)
    torch.testing.assert_close(found, expected.pooler_output)
    assert found.shape == (2, 8 if save is save_clip else 16)


def test_a_prompt_that_is_too_long_is_refused_not_cut(tmp_path: Path) -> None:
    encoder = VisionEncoder(str(save_clip(tmp_path / "clip")), CPU)
    with pytest.raises(InputError, match=f"at most {LONGEST_CAPTION} tokens"):
        encoder.embed_prompts(["dog", "dog " * LONGEST_CAPTION])
    assert encoder.reads(["dog", "dog " * LONGEST_CAPTION]) == [True, False]


def test_an_encoder_that_reads_no_text_says_so(tmp_path: Path) -> None:
    encoder = VisionEncoder(str(save_dino(tmp_path / "dino")), CPU)
    with pytest.raises(BackboneError, match="reads pictures only"):
        encoder.embed_prompts(PROMPTS)


def test_an_example_without_a_picture_is_named(tmp_path: Path) -> None:
    encoder = VisionEncoder(str(save_dino(tmp_path / "dino")), CPU)
    with pytest.raises(InputError, match="example t1"):
        encoder.encode([Example("t1", "t1", "s", text="a dog")])


def test_missing_or_poor_preprocessing_is_refused(tmp_path: Path) -> None:
    folder = save_clip(tmp_path / "clip")
    file = folder / "preprocessor_config.json"
    said = json.loads(file.read_text())
    for change in ({"size": {}}, {"size": None}, {"image_mean": None}, {"size": {"longest": 3}}):
        file.write_text(json.dumps(said | change))
        with pytest.raises(BackboneError, match=r"expected preprocessor_config\.json"):
            VisionEncoder(str(folder), CPU)
    file.unlink()
    with pytest.raises(BackboneError, match="save the encoder's image processor beside it"):
        VisionEncoder(str(folder), CPU)


def test_preprocessing_is_read_from_a_processor_of_pictures_and_texts(tmp_path: Path) -> None:
    folder = save_clip(tmp_path / "clip")
    apart = Preprocessing.read(folder)
    images = CLIPImageProcessor.from_pretrained(folder)
    tokenizer = CLIPTokenizerFast.from_pretrained(folder)
    (folder / "preprocessor_config.json").unlink()
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    assert not (folder / "preprocessor_config.json").exists()
    assert Preprocessing.read(folder) == apart
    old = json.dumps({"size": 8, "image_mean": [0] * 3, "image_std": [1] * 3})
    (folder / "preprocessor_config.json").write_text(old)
    assert Preprocessing.read(folder) == apart  # transformers passes over it too
    assert AutoImageProcessor.from_pretrained(folder).crop_size["height"] == apart.size[0]
    (folder / "processor_config.json").write_text('{"processor_class": "CLIPProcessor"}')
    assert Preprocessing.read(folder).size == (8, 8)
    (folder / "preprocessor_config.json").unlink()
    (folder / "processor_config.json").write_text("{}")
    with pytest.raises(BackboneError, match=r"or image_processor in processor_config\.json"):
        Preprocessing.read(folder)


def test_sizes_of_old_files_are_understood(tmp_path: Path) -> None:
    normal = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(normal | {"size": 40, "crop_size": 32, "do_center_crop": True}))
    cut = Preprocessing.read(tmp_path)
    assert (cut.shortest, cut.size) == (40, (32, 32))
    file.write_text(json.dumps(normal | {"size": 40, "do_normalize": False, "do_rescale": False}))
    whole = Preprocessing.read(tmp_path)
    assert (whole.shortest, whole.size) == (None, (40, 40))
    white = png_file(np.full((10, 20, 3), 255, dtype=np.uint8))
    assert whole(white).shape == (3, 40, 40) and whole(white).eq(255).all()
    assert cut(white).shape == (3, 32, 32) and cut(white).eq(2).all()


def test_weights_that_are_missing_are_refused(tmp_path: Path) -> None:
    folder = save_dino(tmp_path / "dino")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(BackboneError, match="expected weights for every layer"):
        VisionEncoder(str(folder), CPU)


def test_an_encoder_is_known_by_its_weights(tmp_path: Path) -> None:
    runtime = Runtime(device="cpu")
    first = save_clip(tmp_path / "a")
    same = save_clip(tmp_path / "b")
    other = save_siglip(tmp_path / "c")
    identities = [encoder_identity(str(path)) for path in (first, same, other)]
    assert identities[0] == identities[1] != identities[2]
    with open_encoder(str(first), runtime) as one, open_encoder(str(first), runtime) as two:
        assert one is two
