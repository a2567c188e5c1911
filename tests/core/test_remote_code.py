"""Code that comes with a model: it runs where the configuration says so, and nowhere else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType

from albat_core.backbones import open_backbone
from albat_core.backbones.config import BackboneConfig
from albat_core.backbones.diffusion.captions import CaptionFitter
from albat_core.backbones.diffusion.families.stable_diffusion import StableDiffusion
from albat_core.backbones.language.gguf import convert_gguf
from albat_core.backbones.vision import VisionEncoder
from albat_core.errors import BackboneError
from albat_core.store.stage import Runtime
from tests.core.test_gguf import write_gguf
from tests.encoders import save_clip
from tests.toys import save_backbone

CODE = """
from pathlib import Path

import transformers

Path({ran!r}).touch()


class OwnConfig(transformers.{kind}Config):
    model_type = "own"


class OwnModel(transformers.{model}):
    config_class = OwnConfig


class OwnTokenizer(transformers.PreTrainedTokenizerFast):
    pass
"""
LLAMA = ("Llama", "LlamaForCausalLM", "AutoModelForCausalLM")
CLIP = ("CLIP", "CLIPModel", "AutoModel")


@pytest.fixture(autouse=True)
def person(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Stands for somebody who answers yes to all that is asked."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    kept = str(tmp_path / "modules")  # where transformers copies code to
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", kept)


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """A file that is there once the code was run."""
    return tmp_path / "ran"


def say(file: Path, **more: object) -> None:
    """Add to a description."""
    file.write_text(
        json.dumps(json.loads(file.read_text(encoding="utf-8")) | more), encoding="utf-8"
    )


def bring_model(folder: Path, ran: Path, kind: str, model: str, auto: str) -> None:
    """Let the classes of a folder's model lie in it."""
    (folder / "own.py").write_text(CODE.format(ran=str(ran), kind=kind, model=model))
    classes = {"AutoConfig": "own.OwnConfig", auto: "own.OwnModel"}
    say(folder / "config.json", model_type="own", auto_map=classes)


def bring_tokenizer(folder: Path, ran: Path) -> None:
    """Let the class of a folder's tokenizer lie in it."""
    (folder / "own.py").write_text(CODE.format(ran=str(ran), kind="CLIP", model="CLIPModel"))
    classes = {"AutoTokenizer": [None, "own.OwnTokenizer"]}
    say(folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=classes)


@pytest.fixture
def coded(backbone_folder: Path, tmp_path: Path, ran: Path) -> BackboneConfig:
    """A language model that comes with code."""
    folder = shutil.copytree(backbone_folder, tmp_path / "coded")
    bring_model(folder, ran, *LLAMA)
    return BackboneConfig(path=str(folder), max_length=64, dtype="float32")


def test_a_language_model_s_code_runs_where_it_is_trusted(
    coded: BackboneConfig, runtime: Runtime, ran: Path
) -> None:
    trusted = coded.model_copy(update={"trust_remote_code": True})
    with open_backbone(trusted, runtime):
        assert ran.exists()


def test_a_language_model_s_code_does_not_run_by_default(
    coded: BackboneConfig, runtime: Runtime, ran: Path
) -> None:
    with (
        pytest.raises(BackboneError, match="only with trust_remote_code"),
        open_backbone(coded, runtime),
    ):
        pass
    assert not ran.exists()


def encoder(folder: Path, ran: Path) -> Callable[[], object]:
    """A CLIP with code of its own."""
    bring_model(save_clip(folder), ran, *CLIP)
    return lambda: VisionEncoder(str(folder), torch.device("cpu"))


def captions(folder: Path, ran: Path) -> Callable[[], object]:
    """A pipeline whose tokenizer has code of its own."""
    own = save_clip(folder / "tokenizer")
    (own / "config.json").unlink()  # no model lies beside a pipeline's tokenizer
    bring_tokenizer(own, ran)
    return lambda: CaptionFitter(folder, StableDiffusion)


def gguf(folder: Path, ran: Path) -> Callable[[], object]:
    """A GGUF file beside which code lies."""
    write_gguf(save_backbone(folder), folder / "model.gguf", GGMLQuantizationType.F32)
    bring_model(folder, ran, *LLAMA)
    bring_tokenizer(folder, ran)
    return lambda: convert_gguf(folder / "model.gguf", folder.parent / "converted")


@pytest.mark.parametrize("made", [encoder, captions, gguf])
def test_nothing_else_runs_code(
    made: Callable[[Path, Path], Callable[[], object]], tmp_path: Path, ran: Path
) -> None:
    use = made(tmp_path / "model", ran)
    try:
        use()
    except BackboneError as refused:
        assert "custom code" in str(refused)
    assert not ran.exists()
