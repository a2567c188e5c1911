"""Language models as backbones: what carries loss, how texts are cut, what adapters leave behind.

Losses are checked against transformers' own, embeddings against the formula in NumPy.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, processors
from transformers import AutoModelForCausalLM, AutoTokenizer

from albat_core.backbones import (
    backbone_identity,
    check_adapter,
    check_backbone,
    check_prompts,
    input_fingerprint,
    open_backbone,
)
from albat_core.backbones.adapters import AdapterConfig
from albat_core.backbones.batches import length_batches
from albat_core.backbones.config import BackboneConfig
from albat_core.backbones.language.model import LanguageBackbone
from albat_core.backbones.language.tokens import TextEncoder
from albat_core.errors import BackboneError, InputError
from albat_core.records.examples import Example
from albat_core.store.stage import Runtime
from tests.toys import TOPICS, save_backbone, sentences

ADAPTER = AdapterConfig(rank=4)
USER, ANSWER = {"role": "user", "content": "leaf root"}, {"role": "assistant", "content": "seed."}
CHAT = (USER, ANSWER, {"role": "user", "content": "and?"}, {"role": "assistant", "content": "sun"})


@pytest.fixture(scope="module")
def plain(backbone_folder: Path) -> Any:
    """The backbone as transformers itself loads it."""
    return AutoModelForCausalLM.from_pretrained(backbone_folder).eval()


@pytest.fixture(scope="module")
def tokenizer(backbone_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(backbone_folder)


@pytest.fixture(scope="module")
def encoder(backbone_config: BackboneConfig) -> TextEncoder:
    return TextEncoder(backbone_config)


def example(text: str | None = None, **fields: Any) -> Example:
    return Example("e", "d", "s", text=text, **fields)


def texts(count: int = 6) -> list[Example]:
    """Texts of different lengths."""
    return [
        Example(f"t{n}", f"d{n}", "s", text=text)
        for n, text in enumerate(sentences("ships", count, seed=3))
    ]


# What carries loss


def test_a_text_learns_every_token_and_its_end(encoder: TextEncoder, tokenizer: Any) -> None:
    ids, mask = encoder.tokens(example("leaf root"))
    expected = [0, *tokenizer("leaf root", add_special_tokens=False)["input_ids"], 1]
    assert ids == expected
    assert mask == [False] + [True] * (len(expected) - 1)


@pytest.mark.parametrize("change", ["padded by its end", "cut and padded by its file", "endless"])
def test_what_a_tokenizer_pads_and_cuts_by_decides_no_row(tmp_path: Path, change: str) -> None:
    folder = save_backbone(tmp_path / "changed")
    config = BackboneConfig(path=str(folder), max_length=64)
    rows = [example("leaf root seed"), example("Q: leaf? A: root.", prompt="Q: leaf? A:")]
    expected = [TextEncoder(config).tokens(row) for row in rows]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if change == "padded by its end":
        tokenizer.pad_token = tokenizer.eos_token
    elif change == "endless":
        tokenizer.eos_token = None
        expected = [(ids[:-1], mask[:-1]) for ids, mask in expected]
    tokenizer.save_pretrained(folder)
    if change == "cut and padded by its file":
        inner = Tokenizer.from_file(str(folder / "tokenizer.json"))
        inner.enable_truncation(2)
        inner.enable_padding(length=20, pad_id=2, pad_token="<pad>")
        inner.save(str(folder / "tokenizer.json"))
    assert [TextEncoder(config).tokens(row) for row in rows] == expected


def test_a_text_that_continues_has_no_end(encoder: TextEncoder) -> None:
    whole, part = example("leaf root"), example("leaf root", continues=True)
    assert encoder.tokens(part)[0] == encoder.tokens(whole)[0][:-1]


def test_a_prompt_carries_no_loss(encoder: TextEncoder, tokenizer: Any) -> None:
    ids, mask = encoder.tokens(example("Q: leaf? A: root seed.", prompt="Q: leaf? A:"))
    learnt = [token for token, learn in zip(ids, mask, strict=True) if learn]
    assert tokenizer.decode(learnt) == " root seed.</s>"
    assert ids == encoder.tokens(example("Q: leaf? A: root seed."))[0]


def test_a_token_across_the_end_of_the_prompt_is_learnt(
    encoder: TextEncoder, tokenizer: Any
) -> None:
    (token,) = tokenizer(" leaf", add_special_tokens=False)["input_ids"]
    ids, mask = encoder.tokens(example(" leaf", prompt=" le"))
    assert mask[ids.index(token)]


def test_only_the_assistant_s_turns_carry_loss(encoder: TextEncoder, tokenizer: Any) -> None:
    ids, mask = encoder.tokens(example(messages=CHAT))
    assert tokenizer.decode(ids) == (
        "<s>user\nleaf root</s><s>assistant\nseed.</s><s>user\nand?</s><s>assistant\nsun</s>"
    )
    learnt = [token for token, learn in zip(ids, mask, strict=True) if learn]
    assert tokenizer.decode(learnt) == "seed.</s>sun</s>"


def test_what_follows_the_last_answer_is_left_out(encoder: TextEncoder) -> None:
    assert encoder.tokens(example(messages=(*CHAT, USER))) == encoder.tokens(example(messages=CHAT))


@pytest.mark.parametrize(
    "row",
    [
        example("leaf root seed stem bloom."),
        example("leaf root seed", continues=True),
        example("Q: leaf? A: root seed.", prompt="Q: leaf? A:"),
        example(messages=CHAT),
    ],
    ids=["text", "piece", "prompt and answer", "chat"],
)
def test_losses_are_those_of_transformers(
    backbone: LanguageBackbone, plain: Any, row: Example
) -> None:
    (encoded,) = backbone.encode([row])
    losses = backbone.losses([encoded])
    ids = torch.tensor(encoded.inputs["input_ids"][None], dtype=torch.long)
    labels = ids.masked_fill(~torch.tensor(encoded.inputs["loss_mask"][None]), -100)
    expected = plain(input_ids=ids, labels=labels).loss.item()
    assert losses.units.tolist() == [encoded.loss_units] == [int((labels != -100).sum())]
    assert losses.mean.item() == pytest.approx(expected, rel=1e-5)
    assert losses.total.item() == pytest.approx(expected * encoded.loss_units, rel=1e-5)


def test_bfloat16_is_near_and_adapters_stay_in_float32(
    backbone_config: BackboneConfig, runtime: Runtime
) -> None:
    found = {}
    for dtype in ("float32", "bfloat16"):
        config = backbone_config.model_copy(update={"dtype": dtype})
        with open_backbone(config, runtime) as opened:
            encoded = opened.encode(texts())
            embedded = opened.embed(encoded)
            assert embedded.dtype == torch.float32
            opened.attach_adapter(ADAPTER, seed=0)
            losses = opened.losses(encoded)
            losses.mean.sum().backward()
            parameters = opened.adapter_parameters().values()
            assert {p.dtype for p in parameters} == {p.grad.dtype for p in parameters}
            assert {p.dtype for p in parameters} == {torch.float32}
            found[dtype] = (losses.total.detach().numpy(), embedded.numpy())
    for exact, near in zip(found["float32"], found["bfloat16"], strict=True):
        assert not np.array_equal(exact, near)
        np.testing.assert_allclose(near, exact, rtol=0.05, atol=0.05)


def test_a_row_that_does_not_fit_or_teaches_nothing_is_refused(backbone: LanguageBackbone) -> None:
    for row in (example("leaf " * 100), example("", continues=True)):
        with pytest.raises(InputError, match="at most 64 tokens"):
            backbone.encode([row])


# Batches


def test_a_batch_gives_what_its_rows_give_alone(backbone: LanguageBackbone) -> None:
    rows = [*texts(), example("leaf"), example("Q: leaf? A: root", prompt="Q: leaf? A:")]
    encoded = backbone.encode(rows)
    assert len({e.length for e in encoded}) > 3
    together, embedded = backbone.losses(encoded), backbone.embed(encoded)
    for n, one in enumerate(encoded):
        alone = backbone.losses([one])
        assert together.total[n].item() == pytest.approx(alone.total.item(), abs=1e-5, rel=1e-6)
        assert together.units[n] == alone.units[0]
        np.testing.assert_allclose(embedded[n], backbone.embed([one])[0], atol=1e-5)


def test_an_embedding_is_the_position_weighted_mean_of_the_last_states(
    backbone: LanguageBackbone, plain: Any
) -> None:
    encoded = backbone.encode(texts(3))
    found = backbone.embed(encoded).numpy()
    for row, one in zip(found, encoded, strict=True):
        ids = torch.tensor(one.inputs["input_ids"][None], dtype=torch.long)
        with torch.no_grad():
            states = plain(input_ids=ids, output_hidden_states=True).hidden_states[-1][0].numpy()
        weights = np.arange(1, one.length + 1)
        np.testing.assert_allclose(row, weights @ states / weights.sum(), rtol=1e-4, atol=1e-5)


def test_batches_hold_every_position_once_within_the_budget() -> None:
    lengths = np.random.default_rng(0).integers(1, 50, 200).tolist()
    batches = length_batches(lengths, budget=100)
    assert sorted(chain.from_iterable(batches)) == list(range(200))
    assert all(len(b) * max(lengths[i] for i in b) <= 100 for b in batches)
    assert len(batches) < 100
    assert length_batches([500, 3], budget=100) == [[0], [1]]
    assert length_batches([], budget=100) == []


# Pieces

MIXED = "leaf  root\n\nseed\tstem " + "ab" * 40 + " ünïcödé 日本語のテキスト 🌱🌿 end "
LONG: dict[str, str] = {
    "one space": " ".join(TOPICS["plants"] * 20),
    "lines": "\n".join(sentences("ships", 12, 0)),
    "no spaces": "leafrootseedstem" * 20,
    "spaces only between long words": ("x" * 70 + " ") * 4,
    "many spaces": "leaf" + " " * 200 + "root",
    "mixed": MIXED * 4,
    "emoji": "🌱" * 60,
    "lines at the ends": "\n\n" + "leaf\n" * 60,
}


def encoder_of(config: BackboneConfig, max_length: int) -> TextEncoder:
    return TextEncoder(config.model_copy(update={"max_length": max_length}))


@pytest.mark.parametrize("max_length", [8, 13, 64])
@pytest.mark.parametrize("text", LONG.values(), ids=LONG.keys())
def test_pieces_join_to_the_text_and_each_fits(
    backbone_config: BackboneConfig, text: str, max_length: int
) -> None:
    small = encoder_of(backbone_config, max_length)
    row = Example("id", "doc", "src", text=text)
    pieces = small.pieces(row)
    assert "".join(p.text or "" for p in pieces) == text
    assert max(len(small.tokens(p)[0]) for p in pieces) <= max_length
    assert [p.example_id for p in pieces] == [f"id#{n}" for n in range(len(pieces))]
    assert {(p.document, p.source, p.prompt) for p in pieces} == {("doc", "src", None)}
    assert [p.continues for p in pieces] == [True] * (len(pieces) - 1) + [False]


def random_texts(count: int) -> list[str]:
    generator = np.random.default_rng(0)
    letters = list("ab c\n\tleaf root é日🌱'’.")
    sizes = generator.integers(20, 80, count)
    return ["".join(generator.choice(letters, size=size)) for size in sizes]


def test_random_texts_are_cut_without_loss(backbone_config: BackboneConfig) -> None:
    small = encoder_of(backbone_config, 9)
    for text in random_texts(300):
        pieces = small.pieces(example(text))
        assert "".join(p.text or "" for p in pieces) == text
        assert max(len(small.tokens(p)[0]) for p in pieces) <= 9


def test_without_a_first_token_every_piece_still_teaches(backbone_config: BackboneConfig) -> None:
    small = encoder_of(backbone_config, 8)
    nothing = processors.TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    small.tokenizer.backend_tokenizer.post_processor = nothing
    small._specials = 1
    left_out = 0
    for text in random_texts(300):
        pieces = small.pieces(example(text))
        assert all(any(mask) and len(ids) <= 8 for ids, mask in map(small.tokens, pieces))
        left_out += len(text) - len("".join(p.text or "" for p in pieces))
    assert 0 < left_out < 0.01 * sum(map(len, random_texts(300)))


def test_pieces_cut_at_spaces_have_the_tokens_of_the_whole(
    encoder: TextEncoder, tokenizer: Any
) -> None:
    text = LONG["one space"]
    pieces = encoder.pieces(example(text))
    assert len(pieces) > 3
    tokens = [
        token
        for piece in pieces
        for token in tokenizer(piece.text, add_special_tokens=False)["input_ids"]
    ]
    assert tokens == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert min(len(encoder.tokens(p)[0]) for p in pieces[:-1]) > 64 / 2


@pytest.mark.parametrize("max_length", [16, 64])
def test_the_last_piece_is_no_scrap(backbone_config: BackboneConfig, max_length: int) -> None:
    small = encoder_of(backbone_config, max_length)
    room = max_length - small._specials
    prompt = " ".join(TOPICS["stars"][:2])
    for words in range(room + 1, 3 * room):  # a remainder of every size
        text = " ".join(["leaf"] * words)
        answered = example(f"{prompt} {text}", prompt=prompt)
        for row in (example(text), answered):
            pieces = small.pieces(row)
            assert "".join(p.text or "" for p in pieces) == row.text
            sizes = [len(small._offsets(p.text or "")) for p in pieces]
            assert len(pieces) > 1
            assert room / 4 <= min(sizes) <= max(sizes) <= room
        assert pieces[0].prompt == prompt
        assert sum(small.tokens(pieces[0])[1]) >= 4


def test_a_short_rest_leaves_the_prompt_with_the_first_of_its_answer(
    backbone_config: BackboneConfig,
) -> None:
    small = encoder_of(backbone_config, 16)
    for words in range(1, 14):
        prompt = " ".join(["seed"] * words)
        row = example(f"{prompt} {' '.join(['leaf'] * 14)}", prompt=prompt)
        pieces = small.pieces(row)
        if not pieces:
            continue
        assert "".join(p.text or "" for p in pieces) == row.text
        assert (pieces[0].text or "").startswith(f"{prompt} leaf leaf leaf")
        assert max(len(small.tokens(p)[0]) for p in pieces) <= 16


def test_what_fits_is_left_as_it_is(encoder: TextEncoder, backbone_config: BackboneConfig) -> None:
    row = example("leaf root")
    assert encoder.pieces(row) == [row]
    # to the token: 8 with the special ones fit in 8
    row = example(" ".join(["leaf"] * 20))
    exact = encoder_of(backbone_config, len(encoder.tokens(row)[0]))
    assert exact.pieces(row) == [row]
    assert len(encoder_of(backbone_config, exact.max_length - 1).pieces(row)) == 2


def test_rows_looked_at_together_fit_as_each_alone(backbone_config: BackboneConfig) -> None:
    small = encoder_of(backbone_config, 40)
    rows = [example(text) for text in ["", "l", "</s>", "leaf</s>", *random_texts(200)]]
    rows += [replace(row, prompt=(row.text or "")[:cut]) for row in rows for cut in (0, 5, 99)]
    rows += [replace(rows[-1], continues=True), example(messages=(USER, ANSWER))]
    rows += [example("leaf root", prompt="leaf root"), example("a dog", image=b"PNG")]
    sure = [row for row, fits in zip(rows, small.fitting(rows), strict=True) if fits]
    assert [small.pieces(row) for row in sure] == [[row] for row in sure]
    fit = [row for row in rows if row.image is None and small.pieces(row) == [row]]
    assert 0.6 * len(fit) < len(sure) < len(fit) < len(rows) / 2


def test_a_picture_is_refused(encoder: TextEncoder) -> None:
    with pytest.raises(InputError, match="the row has a picture"):
        encoder.pieces(example("a dog", image=b"PNG"))


def test_a_row_without_loss_has_no_pieces(encoder: TextEncoder) -> None:
    assert encoder.pieces(example("leaf", continues=True, prompt="leaf")) == []
    assert encoder.pieces(example(messages=(USER,))) == []


def test_an_answer_too_long_goes_on_as_text(encoder: TextEncoder) -> None:
    prompt = "Q: " + " ".join(TOPICS["stars"]) + " A:"
    row = example(prompt + " " + LONG["one space"], prompt=prompt)
    first, *others = encoder.pieces(row)
    assert "".join(p.text or "" for p in (first, *others)) == row.text
    assert first.prompt == prompt
    assert len(others) > 2
    assert {p.prompt for p in others} == {None}
    assert max(len(encoder.tokens(p)[0]) for p in (first, *others)) <= 64
    # every token of the answer is learnt once, but the first of each further piece
    learnt = sum(sum(encoder.tokens(p)[1]) for p in (first, *others))
    whole = sum(encoder.tokens(row)[1])
    assert learnt == whole


@pytest.mark.parametrize("words", [60, 70])
def test_a_prompt_that_leaves_no_room_has_no_pieces(encoder: TextEncoder, words: int) -> None:
    prompt = " ".join(["anchor"] * words)
    assert encoder.pieces(example(f"{prompt} leaf root seed", prompt=prompt)) == []


def test_a_chat_loses_its_last_turns(encoder: TextEncoder) -> None:
    long = {"role": "user", "content": "leaf " * 60}
    (shorter,) = encoder.pieces(example(messages=(USER, ANSWER, long, ANSWER)))
    assert shorter == replace(example(messages=(USER, ANSWER)), example_id="e#0")
    assert encoder.pieces(example(messages=(long, ANSWER))) == []


# Adapters


def weights_of(backbone: LanguageBackbone) -> dict[str, torch.Tensor]:
    return {name: w.clone() for name, w in backbone._model.state_dict().items()}


@torch.no_grad()
def disturb(backbone: LanguageBackbone) -> None:
    """Give every factor of the adapter values that matter."""
    for n, parameter in enumerate(backbone.adapter_parameters().values()):
        generator = torch.Generator().manual_seed(n)
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def test_adapters_come_and_go_without_a_trace(backbone: LanguageBackbone) -> None:
    encoded = backbone.encode(texts())
    names, before = weights_of(backbone), backbone.losses(encoded).total
    for _ in range(2):
        backbone.attach_adapter(ADAPTER, seed=0)
        assert torch.equal(backbone.losses(encoded).total, before)  # nil until it is trained
        disturb(backbone)
        assert not torch.allclose(backbone.losses(encoded).total, before)
        with backbone.adapter_disabled():
            assert torch.equal(backbone.losses(encoded).total, before)
        assert torch.equal(backbone.embed(encoded), backbone.embed(encoded))
        backbone.detach_adapter()
    after = weights_of(backbone)
    assert after.keys() == names.keys()
    assert all(torch.equal(after[name], names[name]) for name in names)
    assert torch.equal(backbone.losses(encoded).total, before)
    assert backbone.adapter_parameters() == {}


def test_only_the_adapter_learns(backbone: LanguageBackbone) -> None:
    encoded = backbone.encode(texts())
    backbone.attach_adapter(ADAPTER, seed=0)
    backbone.losses(encoded).mean.sum().backward()
    learning = {n for n, p in backbone._adapted.named_parameters() if p.grad is not None}
    assert learning == set(backbone.adapter_parameters())
    # seven linear layers in each of two blocks, two factors each
    assert len(learning) == 2 * 7 * 2
    assert {p.dtype for p in backbone.adapter_parameters().values()} == {torch.float32}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_computed_twice_give_the_same_gradients(
    copied: BackboneConfig, runtime: Runtime, dtype: str
) -> None:
    config = copied.model_copy(update={"dtype": dtype})

    def gradients(runtime: Runtime) -> torch.Tensor:
        with open_backbone(config, runtime) as backbone:
            backbone.attach_adapter(AdapterConfig(rank=2), 0)
            backbone.training(True)
            backbone.losses(backbone.encode(texts())).mean.sum().backward()
            found = [p.grad.flatten() for p in backbone.adapter_parameters().values()]
        return torch.cat(found)

    plain = gradients(runtime)
    twice = gradients(runtime.model_copy(update={"gradient_checkpointing": True}))
    least = 1e-5 if dtype == "float32" else 3e-2
    assert float((plain - twice).norm()) < least * float(plain.norm())


def test_an_adapter_is_drawn_from_its_seed(backbone: LanguageBackbone) -> None:
    def drawn(seed: int) -> torch.Tensor:
        torch.rand(3)  # what was drawn elsewhere does not matter
        backbone.attach_adapter(ADAPTER, seed)
        values = torch.cat([p.detach().flatten() for p in backbone.adapter_parameters().values()])
        backbone.detach_adapter()
        return values

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_a_saved_adapter_is_the_same_when_loaded(
    backbone: LanguageBackbone, tmp_path: Path
) -> None:
    encoded = backbone.encode(texts())
    backbone.attach_adapter(ADAPTER, seed=0)
    disturb(backbone)
    expected = backbone.losses(encoded).total.detach()
    backbone.save_adapter(tmp_path)
    backbone.detach_adapter()
    backbone.load_adapter(tmp_path)
    assert torch.equal(backbone.losses(encoded).total, expected)
    backbone.detach_adapter()


def test_an_adapter_of_another_backbone_is_refused(
    backbone: LanguageBackbone, tmp_path: Path, runtime: Runtime
) -> None:
    backbone.attach_adapter(ADAPTER, seed=0)
    backbone.save_adapter(tmp_path / "adapter")
    other = BackboneConfig(
        path=str(save_backbone(tmp_path / "other", seed=1)), max_length=64, dtype="float32"
    )
    with (
        open_backbone(other, runtime) as stranger,
        pytest.raises(BackboneError, match="was made for backbone") as caught,
    ):
        stranger.load_adapter(tmp_path / "adapter")
    assert backbone.fingerprint[:8] in str(caught.value)


def test_an_adapter_of_another_shape_is_refused(
    backbone: LanguageBackbone, tmp_path: Path, runtime: Runtime
) -> None:
    backbone.attach_adapter(ADAPTER, seed=0)
    backbone.save_adapter(tmp_path / "adapter")
    (tmp_path / "adapter" / "albat.json").unlink()  # as one from elsewhere
    other = BackboneConfig(
        path=str(save_backbone(tmp_path / "other", width=16)), max_length=64, dtype="float32"
    )
    with (
        open_backbone(other, runtime) as stranger,
        pytest.raises(BackboneError, match="expected a LoRA adapter"),
    ):
        stranger.load_adapter(tmp_path / "adapter")


def test_modules_that_are_not_there_are_refused_with_those_that_are(
    backbone: LanguageBackbone,
) -> None:
    with pytest.raises(BackboneError, match="match no layer") as caught:
        backbone.attach_adapter(AdapterConfig(target_modules=("c_attn",)), seed=0)
    assert "q_proj" in caught.value.remedy
    with pytest.raises(BackboneError, match="'v_prj', 'proj' match no layer, others do") as caught:
        backbone.attach_adapter(AdapterConfig(target_modules=("q_proj", "v_prj", "proj")), seed=0)
    assert "v_proj" in caught.value.remedy
    backbone.attach_adapter(AdapterConfig(target_modules=("q_proj",)), seed=0)
    assert len(backbone.adapter_parameters()) == 4


def test_layers_are_looked_for_without_weights(tmp_path: Path) -> None:
    folder = save_backbone(tmp_path / "copy")
    for file in folder.glob("*.safetensors"):
        file.write_bytes(b"read by nobody")
    config = BackboneConfig(path=str(folder), max_length=64)
    check_adapter(config, AdapterConfig(target_modules=("q_proj",)))
    with pytest.raises(BackboneError, match="match no layer") as caught:
        check_adapter(config, AdapterConfig(target_modules=("c_attn",)))
    assert "q_proj" in caught.value.remedy


def test_a_prompt_leaves_room_for_a_token(encoder: TextEncoder, copied: BackboneConfig) -> None:
    prompt = " ".join(sentences(next(iter(TOPICS)), 2, 0))
    length = len(encoder.tokenizer(prompt)["input_ids"])
    room = copied.model_copy(update={"max_length": length + 1})
    check_prompts(room, [prompt])
    with pytest.raises(InputError, match=f"less than {length} tokens .* got {length}"):
        check_prompts(room.model_copy(update={"max_length": length}), [prompt])


# Folders that cannot be used


@pytest.fixture
def copied(backbone_folder: Path, tmp_path: Path) -> BackboneConfig:
    """A copy of the backbone that may be spoilt."""
    folder = shutil.copytree(backbone_folder, tmp_path / "copy")
    return BackboneConfig(path=str(folder), max_length=64, dtype="float32")


def refusal(config: BackboneConfig, runtime: Runtime) -> str:
    with pytest.raises(BackboneError) as caught, open_backbone(config, runtime):
        pass
    assert caught.value.remedy
    return str(caught.value)


def pickle_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def lose_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def reshape_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def cut_the_weights_short(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def change_config(**changes: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(content | changes))

    return change


SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "pickled weights": (pickle_weights, "found pytorch_model.bin"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "found none"),
    "a tensor missing": (lose_a_tensor, "none for model.layers.1.mlp.up_proj.weight"),
    "a tensor of another shape": (reshape_a_tensor, "expected a model"),
    "weights cut short": (cut_the_weights_short, "expected whole weights"),
    "no config": (lambda f: (f / "config.json").unlink(), "found neither config.json"),
    "config that is no JSON": (lambda f: (f / "config.json").write_text("{"), "expected a"),
    "unknown architecture": (change_config(model_type="unknown"), "expected a"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "expected a tokenizer"),
    "tokenizer that is no JSON": (
        lambda f: (f / "tokenizer.json").write_text("{"),
        "expected a tokenizer",
    ),
    "more layers than weights": (change_config(num_hidden_layers=3), "none for model.layers.2"),
}


@pytest.mark.parametrize(("spoil", "said"), SPOILT.values(), ids=SPOILT.keys())
def test_a_folder_that_cannot_be_used_is_refused(
    copied: BackboneConfig, runtime: Runtime, spoil: Callable[[Path], None], said: str
) -> None:
    spoil(Path(copied.path))
    message = refusal(copied, runtime)
    assert said in message
    assert copied.path in message


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path, runtime: Runtime) -> None:
    folder = save_backbone(tmp_path / "small", vocabulary=300)
    config = BackboneConfig(path=str(folder), max_length=64, dtype="float32")
    assert "the tokenizer has 400 tokens but the model embeds 300" in refusal(config, runtime)


def test_added_tokens_that_no_text_has_need_no_embedding(tmp_path: Path, runtime: Runtime) -> None:
    folder = save_backbone(tmp_path / "pictures too")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(folder)
    config = BackboneConfig(path=str(folder), max_length=64, dtype="float32")
    with open_backbone(config, runtime) as backbone:
        example = Example("e", "d", "s", text="leaf root")
        assert backbone.losses(backbone.encode([example])).each.isfinite().all()
        with pytest.raises(InputError, match="400"):
            backbone.encode([Example("e", "d", "s", text="leaf <image>")])


def test_a_length_beyond_the_model_s_is_refused(copied: BackboneConfig, runtime: Runtime) -> None:
    longer = copied.model_copy(update={"max_length": 129})
    assert "the model takes 128 tokens" in refusal(longer, runtime)
    check_backbone(copied.model_copy(update={"max_length": 128}), runtime)


@pytest.mark.parametrize(
    ("path", "said"),
    [("/nowhere/model", "found none"), ("./nowhere", "found none"), ("nowhere", "found none")],
)
def test_a_folder_that_is_not_there_is_refused(path: str, said: str, runtime: Runtime) -> None:
    assert said in refusal(BackboneConfig(path=path, max_length=64, dtype="float32"), runtime)


# Fingerprints


def test_identity_follows_weights_and_tokenizer_but_not_the_place(
    copied: BackboneConfig, backbone_config: BackboneConfig
) -> None:
    identity = backbone_identity(backbone_config, Runtime(device="cpu"))
    assert backbone_identity(copied, Runtime(device="cpu")) == identity
    reads = input_fingerprint(copied)
    weights = Path(copied.path) / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"] += 1
    save_file(tensors, weights, {"format": "pt"})
    assert backbone_identity(copied, Runtime(device="cpu")) != identity
    assert input_fingerprint(copied) == reads  # rows are cut as before
    tokenizer = Path(copied.path) / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + "\n")
    assert input_fingerprint(copied) != reads


@pytest.mark.parametrize("change", [{"max_length": 32}, {"dtype": "bfloat16"}])
def test_identity_follows_what_changes_the_numbers(
    backbone_config: BackboneConfig, change: dict[str, object]
) -> None:
    changed = backbone_config.model_copy(update=change)
    assert backbone_identity(changed, Runtime(device="cpu")) != backbone_identity(
        backbone_config, Runtime(device="cpu")
    )


def test_weights_changed_in_place_are_loaded_anew(copied: BackboneConfig, runtime: Runtime) -> None:
    def loss() -> float:
        with open_backbone(copied, runtime) as opened:
            return float(opened.losses(opened.encode(texts())).total.sum())

    before = loss()
    weights = Path(copied.path) / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"] += 1
    save_file(tensors, weights, {"format": "pt"})
    assert loss() != before


# Divergence from the backbone

PROMPTED = example("Q: leaf? A: root seed.", prompt="Q: leaf? A:")


def log_chances(model: Any, ids: list[int]) -> torch.Tensor:
    """Log-probabilities of each token but the first, (t - 1, v)."""
    return model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(dim=-1)


def test_an_adapter_without_effect_has_no_divergence(backbone: LanguageBackbone) -> None:
    encoded = backbone.encode([*texts(), PROMPTED])
    backbone.attach_adapter(AdapterConfig(rank=4, dropout=0.5), seed=0)
    backbone.training(True)
    losses, divergence = backbone.losses_with_divergence(encoded)
    assert float(divergence.each.detach().abs().max()) < 1e-5  # of logarithms of some 6 nats
    assert torch.equal(divergence.mask, losses.mask)
    assert torch.equal(losses.each, backbone.losses(encoded).each)


def test_divergence_is_the_kl_of_each_token_that_carries_loss(
    backbone: LanguageBackbone, plain: Any
) -> None:
    rows = [*texts(3), PROMPTED]
    encoded = backbone.encode(rows)
    backbone.attach_adapter(ADAPTER, seed=0)
    disturb(backbone)
    losses, divergence = backbone.losses_with_divergence(encoded)
    assert torch.equal(losses.each, backbone.losses(encoded).each)
    for n, one in enumerate(encoded):
        learnt = torch.tensor(one.inputs["loss_mask"][1:])
        with torch.no_grad():
            before = log_chances(plain, one.inputs["input_ids"].tolist())[learnt]
            after = log_chances(backbone._adapted, one.inputs["input_ids"].tolist())[learnt]
        expected = torch.nn.functional.kl_div(after, before, reduction="sum", log_target=True)
        assert float(expected) > 0.01
        assert divergence.total[n].item() == pytest.approx(float(expected), rel=1e-4)
        assert divergence.mean[n].item() == pytest.approx(
            float(expected) / one.loss_units, rel=1e-4
        )
        other_way = torch.nn.functional.kl_div(before, after, reduction="sum", log_target=True)
        assert float(other_way) != pytest.approx(float(expected), rel=1e-3)


def test_divergence_teaches_the_adapter_alone_and_leaves_the_mode_as_it_was(
    backbone: LanguageBackbone, plain: Any
) -> None:
    (encoded,) = backbone.encode([example("leaf root seed stem bloom.")])
    backbone.attach_adapter(ADAPTER, seed=0)
    disturb(backbone)
    backbone.training(True)
    _, divergence = backbone.losses_with_divergence([encoded])
    assert backbone._adapted.training
    assert backbone._model.training
    divergence.total.sum().backward()
    names = set(backbone.adapter_parameters())
    assert {n for n, p in backbone._adapted.named_parameters() if p.grad is not None} == names
    found = [p.grad.clone() for p in backbone.adapter_parameters().values()]
    assert any(gradient.any() for gradient in found)
    for parameter in backbone.adapter_parameters().values():
        parameter.grad = None
    with torch.no_grad():
        before = log_chances(plain, encoded.inputs["input_ids"].tolist())
    after = log_chances(backbone._adapted, encoded.inputs["input_ids"].tolist())
    (before.exp() * (before - after)).sum().backward()
    for one, parameter in zip(found, backbone.adapter_parameters().values(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-3, atol=1e-5)
    backbone.training(False)
    backbone.losses_with_divergence([encoded])
    assert not backbone._model.training


def test_whether_the_head_stands_alone_is_tried_without_dropout(backbone: LanguageBackbone) -> None:
    backbone.attach_adapter(AdapterConfig(rank=4, dropout=0.9), seed=0)
    disturb(backbone)
    backbone.training(True)
    assert backbone._head.stands_alone
    assert backbone._adapted.training
    assert all(module.training for module in backbone._model.modules())


@pytest.mark.parametrize("joined", [None, [2, 1, 1]], ids=["padded", "joined"])
def test_what_was_made_of_examples_untouched_need_not_be_made_again(
    backbone: LanguageBackbone, joined: list[int] | None
) -> None:
    encoded = backbone.encode([*texts(3), PROMPTED])
    expected = backbone.losses(encoded)
    backbone.attach_adapter(AdapterConfig(rank=4, dropout=0.5), seed=0)
    disturb(backbone)
    backbone.training(True)
    noted = [one for n in (2, 1, 0, 3) for one in backbone.with_untouched(encoded[n : n + 1])]
    assert backbone._adapted.training
    assert [len(one.untouched) for one in noted] == [encoded[n].loss_units for n in (2, 1, 0, 3)]
    backbone.training(False)
    backbone.losses(encoded, joined=joined)  # the first time it tries whether rows stay apart
    passes: list[int] = []
    backbone._model.get_input_embeddings().register_forward_pre_hook(lambda *_: passes.append(1))
    losses, divergence = backbone.losses_with_divergence(encoded, joined=joined)
    assert len(passes) == 2
    order = [noted[2], noted[1], noted[0], noted[3]]
    passes.clear()
    found = backbone.losses_with_divergence(order, joined=joined)
    assert len(passes) == 1
    assert not torch.allclose(losses.each, expected.each)
    for mine, its in zip(found, (losses, divergence), strict=True):
        torch.testing.assert_close(mine.each, its.each, rtol=1e-4, atol=1e-5)
        assert float(its.total.detach().min()) > 0.01


@pytest.mark.parametrize("joined", [None, [2, 1, 1]], ids=["padded", "joined"])
@pytest.mark.parametrize("noted", [False, True], ids=["anew", "noted"])
def test_some_examples_are_compared_with_the_backbone_and_all_have_their_losses(
    backbone: LanguageBackbone, joined: list[int] | None, noted: bool
) -> None:
    encoded = backbone.encode([*texts(3), PROMPTED])
    backbone.attach_adapter(ADAPTER, seed=0)
    disturb(backbone)
    losses, all_moved = backbone.losses_with_divergence(encoded)
    held = [False, True, False, True]
    if noted:
        touched = backbone.with_untouched(encoded)
        encoded = [encoded[0], touched[1], encoded[2], touched[3]]
    its, moved = backbone.losses_with_divergence(encoded, None, joined, held)
    torch.testing.assert_close(its.total, losses.total, rtol=1e-4, atol=1e-5)
    expected = all_moved.total * torch.tensor(held)
    assert float(expected.detach()[1]) > 0.01
    assert float(expected.detach()[3]) > 0.01
    torch.testing.assert_close(moved.total, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(moved.mask, its.mask)
    parameters = list(backbone.adapter_parameters().values())
    mine = torch.autograd.grad(moved.mean.sum(), parameters)
    for one, other in zip(
        mine, torch.autograd.grad(all_moved.mean[[1, 3]].sum(), parameters), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_a_long_text_is_cut_by_stretches_as_it_is_whole(tmp_path: Path) -> None:
    config = BackboneConfig(path=str(save_backbone(tmp_path / "b")), max_length=16)
    encoder, whole = TextEncoder(config), TextEncoder(config)
    text = " ".join([*sentences("plants", 300, 3), "x" * 4000, *sentences("ships", 100, 4)])
    read: list[int] = []
    offsets = encoder._offsets
    encoder._offsets = lambda part: read.append(len(part)) or offsets(part)  # type: ignore[method-assign]
    whole._stretch = len(text)
    example = Example("a", "a", "s", text=text)
    pieces = encoder.pieces(example)
    assert pieces == whole.pieces(example)
    assert max(read) <= 4 * encoder._stretch < len(text) / 4
    spaces = replace(example, text="leaf" + " " * 5000)
    assert all(len(encoder.tokens(piece)[0]) <= 16 for piece in encoder.pieces(spaces))
    answered = replace(example, prompt=text[:20])
    assert encoder.pieces(answered) == whole.pieces(answered)
