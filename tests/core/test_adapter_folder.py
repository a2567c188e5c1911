"""An adapter's folder goes to other machines: what is in it, read as others read it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.file_download import repo_folder_name
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from albat_core.backbones import adapter_card, check_adapter, open_backbone
from albat_core.backbones.adapters import AdapterConfig
from albat_core.backbones.config import BackboneConfig
from albat_core.backbones.folder import hub_id
from albat_core.errors import BackboneError
from albat_core.runs.chain import Chain
from albat_core.store.artifacts import ArtifactStore
from albat_core.store.stage import Runtime
from tests.pipelines import save_pipeline
from tests.toys import save_backbone

CHAT = [{"role": "user", "content": "leaf root"}, {"role": "assistant", "content": "seed."}]
TIED = [("lm_head",), ("embed_tokens",), ("embed_tokens", "q_proj"), ("lm_head", "embed_tokens")]
FACTS = {
    "adaptation_rows": 1,
    "backbone_rows": 1,
    "generated_rows": 0,
    "alpha": 0.5,
    "best_step": 1,
    "steps": 2,
    "validation_loss": 1.0,
    "refit": True,
}


def config_of(folder: Path | str) -> BackboneConfig:
    return BackboneConfig(path=str(folder), max_length=64, dtype="float32")


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    return Runtime(root=str(tmp_path / "artifacts"), device="cpu")


def moved(backbone: Any) -> None:
    """Give the adapter an effect."""
    generator = torch.Generator().manual_seed(0)
    for parameter in backbone.adapter_parameters().values():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)


def saved(config: BackboneConfig, folder: Path, runtime: Runtime, **adapter: Any) -> Path:
    with open_backbone(config, runtime) as backbone:
        backbone.attach_adapter(AdapterConfig(rank=4, **adapter), 0)
        moved(backbone)
        backbone.save_adapter(folder)
    return folder


def test_a_finished_adapter_names_no_folder_of_this_machine(
    chain: Chain, store: ArtifactStore, backbone_folder: Path
) -> None:
    folder = store.folder(chain.arms.adapter("albat"))
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"README.md", "tokenizer.json", "adapter_config.json"} <= {p.name for p in files}
    for file in files:
        text = file.read_bytes()
        for path in (str(backbone_folder.parent), str(store.root)):
            assert path.encode() not in text, file
    described = json.loads((folder / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] is None
    card = (folder / "README.md").read_text()
    assert f"path/to/{backbone_folder.name}" in card
    assert "base_model" not in card


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the folder that the hub's cache has for a model."""
    name = repo_folder_name(repo_id="owner/tiny-llama", repo_type="model")
    yield save_backbone(tmp_path / name / "snapshots" / "abc123")


def test_a_backbone_of_the_hub_is_named_by_its_id(
    cached: Path, tmp_path: Path, runtime: Runtime
) -> None:
    assert hub_id(str(cached)) == "owner/tiny-llama"
    assert hub_id("owner/tiny-llama") == "owner/tiny-llama"
    assert hub_id("s3://bucket/owner/tiny-llama") is None
    folder = saved(config_of(cached), tmp_path / "adapter", runtime)
    described = json.loads((folder / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == "owner/tiny-llama"
    card = adapter_card(config_of(cached), FACTS)
    assert "base_model: owner/tiny-llama\n" in card
    assert "from_pretrained('owner/tiny-llama')" in card
    assert str(tmp_path) not in card


@pytest.mark.parametrize(
    ("rows", "made", "said"),
    [
        (3, 0, "1 adaptation rows, 3 rows of the backbone's own corpus (alpha = 0.500)"),
        (3, 3, "1 adaptation rows, 3 rows that the backbone generated (alpha = 0.500)"),
        (0, 0, "1 adaptation rows alone;"),
    ],
)
def test_the_card_says_which_rows_were_trained_on(rows: int, made: int, said: str) -> None:
    facts = FACTS | {"backbone_rows": rows, "generated_rows": made}
    assert said in adapter_card(config_of("somewhere/model"), facts)


def test_the_card_loads_the_backbone_that_was_trained_on() -> None:
    its = BackboneConfig(path="owner/name", revision="v2", trust_remote_code=True)
    named = "from_pretrained('owner/name', revision='v2', trust_remote_code=True)"
    assert named in adapter_card(its, FACTS)
    assert "from_pretrained('owner/name')" in adapter_card(config_of("owner/name"), FACTS)


def test_an_adapter_of_pictures_says_no_path_either(tmp_path: Path) -> None:
    pipeline = save_pipeline(tmp_path / "my-pipeline")
    card = adapter_card(BackboneConfig(kind="diffusion", path=str(pipeline)), FACTS)
    assert str(tmp_path) not in card
    assert "from_pretrained('path/to/my-pipeline')" in card


def test_peft_and_transformers_read_the_folder_elsewhere(
    backbone_folder: Path, tmp_path: Path, runtime: Runtime
) -> None:
    folder = saved(config_of(backbone_folder), tmp_path / "adapter", runtime)
    backbone = AutoModelForCausalLM.from_pretrained(backbone_folder)
    ids = torch.arange(20)[None]
    before = backbone(ids).logits
    adapted = PeftModel.from_pretrained(backbone, folder)
    assert (adapted(ids).logits - before).abs().max() > 1e-3
    ours, theirs = (AutoTokenizer.from_pretrained(f) for f in (folder, backbone_folder))
    assert ours.get_vocab() == theirs.get_vocab()
    said = [t.apply_chat_template(CHAT, return_dict=True) for t in (ours, theirs)]
    assert said[0] == said[1]
    assert ours("leaf root") == theirs("leaf root")
    described = json.loads((folder / "adapter_config.json").read_text())
    described["base_model_name_or_path"] = str(backbone_folder)  # as one of the hub has it
    (folder / "adapter_config.json").write_text(json.dumps(described))
    loaded = AutoPeftModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(loaded(ids).logits, adapted(ids).logits)


@pytest.mark.parametrize("targets", TIED)
def test_tied_weights_are_no_targets(
    backbone_folder: Path, runtime: Runtime, targets: tuple[str, ...]
) -> None:
    adapter = AdapterConfig(rank=4, target_modules=targets)
    config = config_of(backbone_folder)
    with pytest.raises(BackboneError, match="are tied") as raised:
        check_adapter(config, adapter)
    assert next(t for t in targets if t != "q_proj") in str(raised.value)
    with open_backbone(config, runtime) as backbone:
        before = set(backbone._model.state_dict())
        with pytest.raises(BackboneError, match="are tied"):
            backbone.attach_adapter(adapter, 0)
        assert set(backbone._model.state_dict()) == before
        backbone.attach_adapter(AdapterConfig(rank=4), 0)
        assert backbone.adapter_parameters()


@pytest.mark.parametrize("targets", [("lm_head",), ("embed_tokens",), "all-linear"])
@pytest.mark.parametrize("tied", [True, False])
def test_what_is_not_refused_computes_the_same_when_merged(
    tmp_path: Path, runtime: Runtime, targets: Any, tied: bool
) -> None:
    folder = save_backbone(tmp_path / "backbone")
    if not tied:
        config = AutoConfig.from_pretrained(folder, tie_word_embeddings=False)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    try:
        check_adapter(config_of(folder), AdapterConfig(target_modules=targets))
    except BackboneError:
        assert tied
        assert targets != "all-linear"
        return
    adapter = saved(config_of(folder), tmp_path / "adapter", runtime, target_modules=targets)
    ids = torch.arange(20)[None]
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), adapter)
    expected = adapted(ids, labels=ids).loss
    torch.testing.assert_close(adapted.merge_and_unload()(ids, labels=ids).loss, expected)


def test_pickled_weights_are_never_read(tmp_path: Path, runtime: Runtime) -> None:
    config = config_of(save_backbone(tmp_path / "backbone"))
    folder = saved(config, tmp_path / "adapter", runtime)
    weights = folder / "adapter_model.safetensors"
    torch.save({"a": torch.zeros(1)}, folder / "adapter_model.bin")
    weights.unlink()
    with (
        open_backbone(config, runtime) as backbone,
        pytest.raises(BackboneError, match=r"expected adapter_model.safetensors, found .*\.bin"),
    ):
        backbone.load_adapter(folder)
