"""What embeds in place of a whole backbone: its first layers, first tokens, a text encoder."""

import json
from collections.abc import Callable
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from pydantic import ValidationError
from sentence_transformers import SentenceTransformer
from torch.nn import ModuleList

from albat_core.backbones import check_embedder, embedder_identity, open_embedder
from albat_core.backbones.config import BackboneConfig
from albat_core.backbones.language.embedding import decoder_layers, hidden_states
from albat_core.backbones.language.model import LanguageBackbone
from albat_core.backbones.language.sentences import SentenceEncoder
from albat_core.errors import BackboneError, MissingDependencyError
from albat_core.records.examples import Example
from albat_core.records.shards import parts_of
from albat_core.records.vectors import load_vectors
from albat_core.runs.chain import Chain
from albat_core.stages.embed import EmbeddingConfig, embed_examples, embed_part
from albat_core.store.artifacts import ArtifactStore
from albat_core.store.stage import Runtime
from flows.checks import find_mistakes
from flows.config import load_config
from tests.conftest import Cut
from tests.encoders import save_dino, save_sentence_encoder, save_static_encoder
from tests.pictures import write_image_run
from tests.toys import save_backbone, sentences, topic_rows, write_run

CPU = torch.device("cpu")
DEPTH = 4
WIDTH = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": DEPTH}
HEADS = {"num_attention_heads": 2, "intermediate_size": 32}
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**WIDTH, **HEADS),
    "gpt2": lambda: transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=DEPTH, n_head=2),
    "neox": lambda: transformers.GPTNeoXConfig(**WIDTH, **HEADS),
    "opt": lambda: transformers.OPTConfig(
        **WIDTH, num_attention_heads=2, ffn_dim=32, word_embed_proj_dim=16
    ),
    "mixtral": lambda: transformers.MixtralConfig(
        **WIDTH, **HEADS, num_key_value_heads=2, num_local_experts=3
    ),
    "llama4": lambda: transformers.Llama4TextConfig(
        **WIDTH,
        **HEADS,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size_mlp=32,
        num_local_experts=2,
    ),
    "mamba": lambda: transformers.MambaConfig(**WIDTH),
    "modernbert": lambda: transformers.ModernBertDecoderConfig(
        **WIDTH, **HEADS, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1
    ),
}
TEXTS = ["leaf root seed.", "moon", "sail mast hull wind harbour anchor.", "unheard words"]


def rows(*texts: str) -> list[Example]:
    return [Example(f"e{n}", "d", "s", text=text) for n, text in enumerate(texts)]


@pytest.mark.parametrize("family", FAMILIES)
def test_first_layers_are_transformers_own_and_no_later_one_is_computed(family: str) -> None:
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(FAMILIES[family]()).eval()
    ids = torch.randint(3, 50, (3, 11))
    with torch.inference_mode():
        expected = model(input_ids=ids, output_hidden_states=True).hidden_states
    layers = decoder_layers(model)
    assert len(layers) == DEPTH == len(expected) - 1
    if family == "mamba":  # which counts from the first layer, not from the token embeddings
        expected = (None, *expected[: DEPTH - 1], expected[-1])
    computed: list[int] = []
    for number, layer in enumerate(layers, start=1):
        layer.register_forward_pre_hook(lambda *_, number=number: computed.append(number))
    for depth in range(1, DEPTH + 1):
        computed.clear()
        with torch.inference_mode():
            found = hidden_states(model, ids, depth)
        torch.testing.assert_close(found, expected[depth])
        assert computed == list(range(1, depth + 1))
    with torch.inference_mode():  # nothing is left behind
        torch.testing.assert_close(hidden_states(model, ids), expected[-1])


def test_layers_that_do_not_follow_one_another_are_refused() -> None:
    class Turned(torch.nn.Module):
        """Layers that have time first, and one that is never computed."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = ModuleList([torch.nn.Linear(4, 4) for _ in range(3)])

        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> torch.Tensor:
            assert not use_cache
            return self.layers[0](torch.zeros(input_ids.shape[1], len(input_ids), 4))

        @property
        def base_model(self) -> torch.nn.Module:
            return self

        model = base_model

    for layers in (1, 2):
        with pytest.raises(BackboneError, match="computed one after another"):
            hidden_states(Turned(), torch.zeros(2, 5, dtype=torch.long), layers)


def by_hand(backbone: LanguageBackbone, text: str, layer: int, tokens: int | None) -> torch.Tensor:
    """The position-weighted mean by transformers alone."""
    ids = backbone._encoder.tokenizer(text)["input_ids"]
    ids = [*ids, backbone._encoder.tokenizer.eos_token_id][:tokens]
    with torch.inference_mode():
        output = backbone._model(input_ids=torch.tensor([ids]), output_hidden_states=True)
    weights = torch.arange(1, len(ids) + 1, dtype=torch.float32)
    return (weights @ output.hidden_states[layer][0]) / weights.sum()


@pytest.mark.parametrize(("layers", "tokens"), [(1, None), (2, None), (None, 5), (1, 5)])
def test_a_part_of_the_backbone_embeds_as_the_whole_would(
    backbone_config: BackboneConfig,
    runtime: Runtime,
    backbone: LanguageBackbone,
    layers: int | None,
    tokens: int | None,
) -> None:
    config = EmbeddingConfig(layers=layers, tokens=tokens)
    with open_embedder(config, backbone_config, runtime) as embedder:
        encoded = embedder.encode(rows(*TEXTS))
        found = embedder.embed(encoded)
    whole = [e.length for e in backbone.encode(rows(*TEXTS))]
    assert max(whole) > 5 > min(whole)  # else some tokens of none are left out, or of all
    assert [e.length for e in encoded] == [min(n, tokens or n) for n in whole]
    expected = [by_hand(backbone, text, layers or 2, tokens) for text in TEXTS]
    torch.testing.assert_close(found, torch.stack(expected))


def test_only_the_first_tokens_are_paid_for(
    cut: Cut, backbone_config: BackboneConfig, runtime: Runtime, backbone: LanguageBackbone
) -> None:
    store = ArtifactStore(runtime.root)
    (part,) = parts_of(store, [cut("corpus", topic_rows("plants", 6))])
    found = embed_part(part, "", None, backbone_config, EmbeddingConfig(tokens=4), runtime)
    texts = sentences("plants", 6, 0)
    facts = store.manifest(found.embeddings).facts
    assert facts["passes"] == 6 * 4 < sum(e.length for e in backbone.encode(rows(*texts)))
    expected = [by_hand(backbone, text, 2, 4) for text in texts]
    np.testing.assert_allclose(load_vectors(store, found.embeddings), expected, atol=1e-5)


def test_every_setting_has_a_key_of_its_own(
    cut: Cut, backbone_config: BackboneConfig, runtime: Runtime, tmp_path: Path
) -> None:
    encoder = str(save_sentence_encoder(tmp_path / "encoder"))
    (part,) = parts_of(ArtifactStore(runtime.root), [cut("corpus", topic_rows("plants", 4))])
    settings: list[dict[str, Any]] = [
        {},
        {"layers": 1},
        {"layers": 2},
        {"tokens": 3},
        {"tokens": 4},
        {"layers": 1, "tokens": 3},
        {"encoder": encoder},
    ]
    keys = [
        embed_part(part, "", None, backbone_config, EmbeddingConfig(**each), runtime).embeddings.key
        for each in settings
    ]
    assert len(set(keys)) == len(keys)
    assert EmbeddingConfig().settings().named == {}


def test_precision_and_files_are_part_of_an_encoder_s_identity(
    backbone_config: BackboneConfig, runtime: Runtime, tmp_path: Path
) -> None:
    folder = save_sentence_encoder(tmp_path / "encoder", dense=True)
    embedder = EmbeddingConfig(encoder=str(folder))

    def identity(**changes: object) -> dict[str, Any]:
        return embedder_identity(embedder, backbone_config.model_copy(update=changes), runtime)

    first = identity()
    assert identity(max_length=32) == first  # the encoder has its own
    assert identity(dtype="bfloat16") != first
    file = folder / "2_Dense" / "config.json"
    file.write_text(file.read_text().replace("Tanh", "ReLU"))
    assert identity() != first


@pytest.mark.parametrize("given", [{}, {"prompt": "query: "}, {"dense": True}], ids=str)
def test_texts_are_embedded_as_sentence_transformers_does(
    tmp_path: Path, given: dict[str, Any]
) -> None:
    folder = save_sentence_encoder(tmp_path / "encoder", **given)
    theirs = SentenceTransformer(str(folder), device="cpu")
    long = " ".join(sentences("ships", 5, 0))
    ours = SentenceEncoder(str(folder), CPU, torch.float32)
    encoded = ours.encode(rows(*TEXTS, long))
    found = ours.embed(encoded)
    torch.testing.assert_close(found, torch.tensor(theirs.encode([*TEXTS, long])))
    assert found.dtype == torch.float32
    assert found.shape == (5, 8 if given.get("dense") else 16)
    prompt = given.get("prompt", "")
    tokens = theirs.tokenizer([prompt + t for t in (*TEXTS, long)], truncation=True)["input_ids"]
    assert [e.length for e in encoded] == [len(ids) for ids in tokens]
    assert encoded[-1].length == 24  # the most that it reads
    assert [e.example_id for e in encoded] == [f"e{n}" for n in range(5)]
    assert ours.encode([]) == []


def test_vectors_of_words_alone_are_an_encoder_too(tmp_path: Path) -> None:
    folder = save_static_encoder(tmp_path / "static")
    theirs = SentenceTransformer(str(folder), device="cpu")
    with open_embedder(
        EmbeddingConfig(encoder=str(folder)), BackboneConfig(path="none"), Runtime(device="cpu")
    ) as ours:
        encoded = ours.encode(rows(*TEXTS))
        vectors = embed_examples(ours, encoded, 20, "")
    np.testing.assert_allclose(vectors, theirs.encode(TEXTS), atol=2e-2)
    assert [e.length for e in encoded] == [
        len(theirs.tokenizer.encode(text, add_special_tokens=False).ids) for text in TEXTS
    ]


def test_a_chat_is_embedded_by_what_its_turns_say(tmp_path: Path) -> None:
    encoder = SentenceEncoder(str(save_sentence_encoder(tmp_path / "e")), CPU, torch.float32)
    turns = ({"role": "user", "content": "leaf root"}, {"role": "assistant", "content": "moon."})
    chat = Example("c", "d", "s", messages=turns)
    found = encoder.embed(encoder.encode([chat, *rows("leaf root\nmoon.", "leaf root")]))
    torch.testing.assert_close(found[0], found[1])
    assert (found[0] - found[2]).abs().max() > 1e-3


def test_an_encoder_computes_in_the_backbone_s_precision(tmp_path: Path) -> None:
    folder = str(save_sentence_encoder(tmp_path / "encoder"))
    exact, short = (
        encoder.embed(encoder.encode(rows(*TEXTS)))
        for encoder in (SentenceEncoder(folder, CPU, t) for t in (torch.float32, torch.bfloat16))
    )
    assert short.dtype == torch.float32
    assert not torch.equal(exact, short)
    torch.testing.assert_close(exact, short, atol=0.05, rtol=0.05)


def test_layers_and_tokens_are_not_an_encoder_s() -> None:
    for part in ({"layers": 1}, {"tokens": 8}):
        with pytest.raises(ValidationError, match="leave them out, or encoder"):
            EmbeddingConfig(encoder="owner/name", **part)


def mistakes(path: Path, **embedding: object) -> str:
    """What ``albat check`` says of a run with such a section."""
    config = load_config(str(path))
    config = config.model_copy(update={"embedding": EmbeddingConfig(**embedding)})
    return "\n".join(map(str, find_mistakes(config)))


def test_check_refuses_more_layers_than_there_are(tmp_path: Path) -> None:
    path = write_run(tmp_path)
    assert mistakes(path, layers=2, tokens=9) == ""
    assert mistakes(path, layers=3) == (
        "embedding.layers: 3: expected a model of at least 3 layers, this one has 2\n"
        "  -> set embedding.layers to 2 or less, or leave it out for all"
    )
    (tmp_path / "backbone" / "model.safetensors").unlink()
    assert mistakes(path, layers=3).count("expected") == 1  # of a broken backbone nothing more


def test_more_layers_than_there_are_are_refused_without_a_check_too(tmp_path: Path) -> None:
    config = BackboneConfig(path=str(save_backbone(tmp_path / "b")), max_length=64)
    with open_embedder(EmbeddingConfig(layers=3), config, Runtime(device="cpu")) as embedder:
        encoded = embedder.encode(rows("moon"))
        with pytest.raises(BackboneError, match="this one has 2"):
            embedder.embed(encoded)


@pytest.mark.parametrize("part", [{"layers": 1}, {"tokens": 8}], ids=str)
def test_check_refuses_parts_of_a_picture_backbone(tmp_path: Path, part: dict[str, int]) -> None:
    path = write_image_run(tmp_path)
    (name,) = part
    assert mistakes(path, **part).startswith(f"embedding.{name}: {part[name]}: expected a language")
    config = load_config(str(path))
    with (
        pytest.raises(BackboneError, match="expected a language model"),
        open_embedder(EmbeddingConfig(**part), config.backbone, config.runtime),
    ):
        pass


def test_check_tells_which_encoder_reads_which_rows(tmp_path: Path) -> None:
    texts, pictures = write_run(tmp_path / "t"), write_image_run(tmp_path / "p")
    sentence = str(save_sentence_encoder(tmp_path / "sentence"))
    dino = str(save_dino(tmp_path / "dino"))
    assert mistakes(texts, encoder=sentence) == mistakes(pictures, encoder=dino) == ""
    assert f"embedding.encoder: {dino}: expected a text encoder" in mistakes(texts, encoder=dino)
    told = mistakes(pictures, encoder=sentence)
    assert f"embedding.encoder: {sentence}: expected preprocessor_config.json" in told
    assert "embedding.encoder" in mistakes(texts, encoder=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("broken", "match"),
    [
        ("code", "expected modules of sentence-transformers, got own.Module"),
        ("list", "expected a text encoder that sentence-transformers can load"),
        ("pickled", "expected weights as .*safetensors, found 2_Dense/pytorch_model.bin"),
        ("damaged", "damaged, truncated"),
    ],
)
def test_an_encoder_that_cannot_be_trusted_or_read_is_refused(
    backbone_config: BackboneConfig, tmp_path: Path, broken: str, match: str
) -> None:
    folder = save_sentence_encoder(tmp_path / "encoder", dense=True)
    listed = folder / "modules.json"
    if broken == "code":
        said = json.loads(listed.read_text())
        listed.write_text(json.dumps([*said, said[1] | {"name": "3", "type": "own.Module"}]))
    elif broken == "list":
        listed.write_text("[{}]")
    elif broken == "pickled":
        weights = folder / "2_Dense" / "model.safetensors"
        weights.rename(weights.with_name("pytorch_model.bin"))
    else:
        (folder / "2_Dense" / "model.safetensors").write_bytes(b"1234")
    for look in (
        lambda: check_embedder(backbone_config, EmbeddingConfig(encoder=str(folder))),
        lambda: SentenceEncoder(str(folder), CPU, torch.float32),
    ):
        with pytest.raises(BackboneError, match=match):
            look()


def test_the_missing_library_is_named_with_its_extra(
    backbone_config: BackboneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(save_sentence_encoder(tmp_path / "encoder"))
    real = util.find_spec
    monkeypatch.setattr(
        "albat_core.backbones.language.sentences.find_spec",
        lambda name: None if name == "sentence_transformers" else real(name),
    )
    for look in (
        lambda: check_embedder(backbone_config, EmbeddingConfig(encoder=folder)),
        lambda: SentenceEncoder(folder, CPU, torch.float32),
    ):
        with pytest.raises(MissingDependencyError) as caught:
            look()
        assert caught.value.remedy.startswith("install albat[encoders]")


@pytest.mark.slow
@pytest.mark.parametrize("eye", ["layers", "tokens", "encoder"])
def test_a_whole_run_sees_with_it(tmp_path: Path, eye: str) -> None:
    save_sentence_encoder(tmp_path / "encoder")
    setting = {"layers": 1, "tokens": 6, "encoder": "encoder"}[eye]
    chain = Chain(load_config(str(write_run(tmp_path, embedding={eye: setting}, baselines=[]))))
    assert chain.report
    store = ArtifactStore(chain.config.runtime.root)
    dimension = 16 if eye == "encoder" else 32
    for ref in (chain.inputs.queries, chain.inputs.heldout_queries, chain.inputs.index):
        assert store.manifest(ref).facts["dimension"] == dimension
