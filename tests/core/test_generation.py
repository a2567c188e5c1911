"""What a language model writes: from the model's own chances, each row by its own seed."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import processors
from transformers import AutoModelForCausalLM

from albat_core.backbones import check_chat, check_prompts, kind_of, open_backbone
from albat_core.backbones.config import BackboneConfig, SamplingConfig
from albat_core.backbones.language.model import LanguageBackbone
from albat_core.backbones.language.tokens import TextEncoder
from albat_core.errors import BackboneError
from albat_core.records.examples import GENERATED, Example
from albat_core.records.shards import parts_of, read_examples
from albat_core.stages.generate import GenerationConfig, generate_rows
from albat_core.store.artifacts import ArtifactStore
from albat_core.store.stage import Runtime
from tests.pipelines import save_pipeline

SHORT = SamplingConfig(max_new_tokens=12)


@pytest.fixture
def copied(backbone_folder: Path, tmp_path: Path) -> BackboneConfig:
    """A copy of the backbone that may be changed."""
    folder = shutil.copytree(backbone_folder, tmp_path / "copy")
    return BackboneConfig(path=str(folder), max_length=64, dtype="float32")


def sharpen(config: BackboneConfig) -> BackboneConfig:
    """Make the model surer of what it says."""
    path = Path(config.path) / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] *= 12
    save_file(tensors, path, {"format": "pt"})
    return config


def rows_of(store: ArtifactStore, shards: Any) -> list[Example]:
    return [
        example
        for part in parts_of(store, [shards])
        for example in read_examples(store, [part.address] * part.rows, range(part.rows))
    ]


def texts_of(examples: list[Example]) -> list[str | None]:
    return [e.text for e in examples]


# What is drawn


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_tokens_are_drawn_with_the_model_s_own_chances(
    copied: BackboneConfig, runtime: Runtime, temperature: float
) -> None:
    count, one = 4000, SamplingConfig(max_new_tokens=1, temperature=temperature)
    with open_backbone(sharpen(copied), runtime) as backbone:
        made = backbone.generate(["leaf root"] * count, one, seed=0)
        tokenizer = TextEncoder(copied).tokenizer
    ids = torch.tensor([tokenizer("leaf root")["input_ids"]])
    plain = AutoModelForCausalLM.from_pretrained(copied.path)
    with torch.no_grad():
        chances = (plain(input_ids=ids).logits[0, -1].double() / temperature).softmax(-1).numpy()
    expected: Counter[str] = Counter()
    for token, chance in enumerate(chances):
        expected[tokenizer.decode([token], skip_special_tokens=True)] += chance
    found = Counter((e.text or "").removeprefix("leaf root") for e in made)
    likely = [said for said, chance in expected.items() if chance > 0.005 and "\ufffd" not in said]
    assert len(likely) > 4
    for said in likely:
        deviation = np.sqrt(expected[said] * (1 - expected[said]) / count)
        assert abs(found[said] / count - expected[said]) < 5 * deviation, said


def test_a_row_is_drawn_by_its_seed_and_place_whatever_is_drawn_beside_it(
    backbone: LanguageBackbone,
) -> None:
    prompts = ["leaf", "leaf root seed stem", "", "mast", "", "leaf root", *["sun"] * 70]
    made = backbone.generate(prompts, SHORT, seed=3)
    assert [e.example_id for e in made] == [f"generated/{n}" for n in range(len(prompts))]
    torch.rand(5)  # what was drawn elsewhere does not matter
    others = ["harbour", *prompts[1:5], "tide port", *["water"] * 30, *prompts[36:]]
    again = backbone.generate(others, SHORT, seed=3)
    for n in (1, 2, 3, 4, 40, 75):
        assert made[n] == again[n]
    assert len(set(texts_of(made))) == len(prompts)
    assert texts_of(backbone.generate(prompts[:6], SHORT, seed=4)) != texts_of(made[:6])


def test_more_room_only_goes_on(backbone: LanguageBackbone) -> None:
    short, long = (
        backbone.generate(["leaf"], SamplingConfig(max_new_tokens=n), seed=1)[0].text or ""
        for n in (5, 30)
    )
    assert long.startswith(short)
    assert len(long) > len(short)


def test_without_temperature_the_likeliest_is_written(
    copied: BackboneConfig, runtime: Runtime
) -> None:
    greedy = SamplingConfig(max_new_tokens=10, temperature=0)
    with open_backbone(sharpen(copied), runtime) as backbone:
        first, again = backbone.generate(["leaf root", "leaf root"], greedy, seed=5)
        tokenizer = TextEncoder(copied).tokenizer
    ids = torch.tensor([tokenizer("leaf root")["input_ids"]])
    plain = AutoModelForCausalLM.from_pretrained(copied.path)
    written = plain.generate(input_ids=ids, max_new_tokens=10, do_sample=False)[0]
    assert first.text == again.text
    assert tokenizer.decode(written, skip_special_tokens=True).startswith(first.text)


def test_settings_for_chats_in_the_folder_change_nothing(
    copied: BackboneConfig, runtime: Runtime
) -> None:
    def written() -> list[str | None]:
        with open_backbone(copied, runtime) as backbone:
            return texts_of(backbone.generate(["leaf", ""], SHORT, seed=0))

    before = written()
    path = Path(copied.path) / "generation_config.json"
    chatty = {"do_sample": True, "temperature": 0.2, "top_p": 0.1, "top_k": 3}
    path.write_text(json.dumps(json.loads(path.read_text()) | chatty | {"repetition_penalty": 9.0}))
    assert written() == before


# Where a text begins and ends


def test_an_empty_prompt_is_written_on_from_the_first_token(
    backbone: LanguageBackbone, backbone_config: BackboneConfig
) -> None:
    [made] = backbone.generate([""], SHORT, seed=0)
    assert made.prompt is None
    assert made.text
    [encoded] = backbone.encode([made])
    assert encoded.inputs["loss_mask"].tolist() == [False] + [True] * (encoded.length - 1)
    assert TextEncoder(backbone_config).beginnings(["", "leaf"])[0] == [0]


def test_a_prompt_carries_no_loss(backbone: LanguageBackbone) -> None:
    [made] = backbone.generate(["leaf root seed"], SHORT, seed=0)
    assert made.prompt == "leaf root seed"
    assert (made.text or "").startswith("leaf root seed")
    [encoded] = backbone.encode([made])
    assert encoded.loss_units < encoded.length - 3


def test_a_text_ends_where_the_model_ends_it_and_else_continues(
    copied: BackboneConfig, runtime: Runtime
) -> None:
    folder = Path(copied.path)
    comma = TextEncoder(copied).tokenizer.convert_tokens_to_ids(",")
    for named in (1, [1, comma]):
        content = json.loads((folder / "generation_config.json").read_text())
        content["eos_token_id"] = named
        (folder / "generation_config.json").write_text(json.dumps(content))
        with open_backbone(copied, runtime) as backbone:
            made = backbone.generate([""] * 60, SamplingConfig(max_new_tokens=60), seed=2)
            ends = [e for e in made if not e.continues]
            assert 2 < len(ends) < 60
            assert all("</s>" not in (e.text or "") for e in made)
            assert any("," in (e.text or "") for e in made) == (named == 1)
        assert len({len(e.text or "") for e in ends}) > 2


def test_a_text_may_take_all_the_room_there_is(backbone: LanguageBackbone) -> None:
    made = backbone.generate(["leaf"] * 20, SamplingConfig(max_new_tokens=500), seed=0)
    pieces = [backbone.pieces(e) for e in made if e.continues]
    assert max(map(len, pieces)) > 1  # halves of characters are written, which take more tokens
    assert all(piece.continues for row in pieces for piece in row)
    assert all(e.length <= 64 for row in pieces for e in backbone.encode(row))


def test_without_a_special_token_a_text_begins_with_its_end_token_or_not_at_all(
    backbone_config: BackboneConfig,
) -> None:
    encoder = TextEncoder(backbone_config)
    nothing = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    encoder.tokenizer.backend_tokenizer.post_processor = nothing
    assert encoder.beginnings([""]) == [[0]]
    encoder.tokenizer.bos_token = None
    assert encoder.beginnings([""]) == [[1]]
    encoder.tokenizer.eos_token = None
    with pytest.raises(BackboneError, match="a token that begins a text") as caught:
        encoder.beginnings(["leaf", ""])
    assert caught.value.remedy == "give generated.prompts"
    assert encoder.beginnings(["leaf"])[0]


def test_an_end_that_the_tokenizer_adds_is_not_written_on_from(
    backbone_config: BackboneConfig,
) -> None:
    encoder = TextEncoder(backbone_config)
    bare = encoder.beginnings(["leaf root", ""])
    ending = processors.TemplateProcessing(
        single="<s> $A </s>", pair="$A $B", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    encoder.tokenizer.backend_tokenizer.post_processor = ending
    assert encoder.beginnings(["leaf root", ""]) == bare


# Rows


def test_rows_are_written_freely_where_no_prompts_are_given(
    backbone_config: BackboneConfig, runtime: Runtime
) -> None:
    store = ArtifactStore(runtime.root)
    config = GenerationConfig(rows=70, sampling=SHORT)
    assert not kind_of(backbone_config).needs_prompts
    check_prompts(backbone_config, [""])
    ref = generate_rows(backbone_config, config, 0, runtime)
    rows = rows_of(store, ref)
    manifest = store.manifest(ref)
    assert len(rows) == manifest.rows == manifest.facts["rows"]
    assert [p["rows"] for p in manifest.facts["parts"]] == [64, 6]
    assert [r.example_id for r in rows] == [f"{GENERATED}/{n}" for n in range(70)]
    assert {r.prompt for r in rows} == {None}
    assert len({r.text for r in rows}) == 70
    assert sum(r.continues for r in rows) > 50  # cut at twelve tokens
    other = generate_rows(backbone_config, config, 1, runtime)
    assert not {r.text for r in rows} & {r.text for r in rows_of(store, other)}


@pytest.fixture
def brief(copied: BackboneConfig) -> BackboneConfig:
    """A backbone that soon comes to an end."""
    path = Path(copied.path) / "generation_config.json"
    ends = {"eos_token_id": list(range(1, 80))}
    path.write_text(json.dumps(json.loads(path.read_text()) | ends))
    return copied


def test_chats_are_begun_by_the_template_where_they_are_wanted(
    brief: BackboneConfig, runtime: Runtime
) -> None:
    store = ArtifactStore(runtime.root)
    sampling = SamplingConfig(max_new_tokens=20)
    config = GenerationConfig(rows=70, freely="chat", sampling=sampling)
    check_chat(brief)
    ref = generate_rows(brief, config, 0, runtime)
    rows = rows_of(store, ref)
    assert 30 < len(rows) < 70  # some say nothing, or do not come to their end
    assert len({r.example_id for r in rows}) == len(rows) == store.manifest(ref).rows
    for row in rows:
        assert [m["role"] for m in row.messages or ()] == ["user", "assistant"]
        assert all(m["content"].strip() for m in row.messages or ())
    assert len({r.digest() for r in rows}) == len(rows)
    again = generate_rows(brief, config, 1, runtime)
    assert not {r.digest() for r in rows} & {r.digest() for r in rows_of(store, again)}
    texts = generate_rows(brief, config.model_copy(update={"freely": True}), 0, runtime)
    assert texts.key != ref.key
    assert all(r.messages is None for r in rows_of(store, texts))
    with open_backbone(brief, runtime) as backbone:
        encoded = backbone.encode(rows)
    assert all(e.loss_units < e.length - 5 for e in encoded)
    one = config.model_copy(update={"sampling": SamplingConfig(max_new_tokens=1)})
    with pytest.raises(BackboneError, match="nothing to learn from"):  # what is cut is left out
        generate_rows(brief, one, 0, runtime)


def test_what_a_chat_says_is_what_follows_the_template_in_transformers(
    copied: BackboneConfig, runtime: Runtime
) -> None:
    weights = load_file(Path(copied.path) / "model.safetensors")
    weights |= {name: 20 * weights[name] for name in weights if "proj" in name}  # else it repeats
    save_file(weights, Path(copied.path) / "model.safetensors", {"format": "pt"})
    tokenizer = TextEncoder(copied).tokenizer
    model = AutoModelForCausalLM.from_pretrained(copied.path)

    def follows(text: str) -> str:
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        written = model.generate(input_ids=ids, max_new_tokens=12, do_sample=False)[0]
        return tokenizer.decode(written[ids.shape[1] :], skip_special_tokens=True).strip()

    greedy = SamplingConfig(max_new_tokens=12, temperature=0)
    with open_backbone(copied, runtime) as backbone:
        [said] = backbone.answer([backbone.opening()], greedy, [0])
        asked = {"role": "user", "content": said.text}
        chat = Example("", "", "s", messages=(asked, {"role": "assistant", "content": "…"}))
        [answer] = backbone.answer(backbone.questions([chat]), greedy, [0])
    assert said.text == follows("<s>user\n") != ""
    prompt = tokenizer.apply_chat_template([asked], add_generation_prompt=True, tokenize=False)
    assert answer.text == follows(prompt) != said.text


def test_no_chat_is_begun_without_a_template(copied: BackboneConfig, runtime: Runtime) -> None:
    tokenizer = TextEncoder(copied).tokenizer
    tokenizer.chat_template = "{{ 'nothing of yours' }}"
    tokenizer.save_pretrained(copied.path)
    with pytest.raises(BackboneError, match="it does not show them"):
        check_chat(copied)
    for file in Path(copied.path).glob("chat_template*"):
        file.unlink()
    with pytest.raises(BackboneError, match="expected a chat template"):
        check_chat(copied)
    generation = GenerationConfig(rows=2, freely="chat")
    with pytest.raises(BackboneError, match="expected a chat template"):
        generate_rows(copied, generation, 0, runtime)
    prompted = GenerationConfig(rows=2, freely="chat", prompts=("leaf",), sampling=SHORT)
    assert generate_rows(copied, prompted, 0, runtime)


def test_rows_without_anything_to_learn_are_left_out(
    copied: BackboneConfig, runtime: Runtime
) -> None:
    # without a first token, a text of one token has nothing to predict
    tokenizer = json.loads((Path(copied.path) / "tokenizer.json").read_text())
    tokenizer["post_processor"] = None
    (Path(copied.path) / "tokenizer.json").write_text(json.dumps(tokenizer))
    some = GenerationConfig(rows=20, prompts=("", "leaf"), sampling={"max_new_tokens": 1})
    store = ArtifactStore(runtime.root)
    ref = generate_rows(copied, some, 0, runtime)
    rows = rows_of(store, ref)
    assert 0 < len(rows) <= 10
    assert store.manifest(ref).facts["documents"] == len(rows) == store.manifest(ref).rows
    assert {r.prompt for r in rows} == {"leaf"}
    with open_backbone(copied, runtime) as backbone:
        backbone.encode(rows)
    with pytest.raises(BackboneError, match="nothing to learn from"):
        generate_rows(copied, GenerationConfig(rows=1, sampling={"max_new_tokens": 1}), 3, runtime)


def test_pictures_are_not_made_of_nothing(tmp_path: Path, runtime: Runtime) -> None:
    config = BackboneConfig(kind="diffusion", path=str(save_pipeline(tmp_path / "sd")))
    assert kind_of(config).needs_prompts
    with pytest.raises(BackboneError, match="expected prompts") as caught:
        generate_rows(config, GenerationConfig(rows=2), 0, runtime)
    assert "generated.prompts" in caught.value.remedy
