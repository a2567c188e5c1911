"""Answers to held-out prompts are those of transformers itself, and which rows are asked."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    RwkvConfig,
    RwkvForCausalLM,
)

from albat_core.backbones import open_backbone
from albat_core.backbones.adapters import AdapterConfig
from albat_core.backbones.base import Answer, Question
from albat_core.backbones.config import BackboneConfig, SamplingConfig
from albat_core.backbones.language import writing
from albat_core.backbones.language.model import LanguageBackbone
from albat_core.backbones.language.tokens import TextEncoder
from albat_core.backbones.language.writing import write_answers
from albat_core.errors import BackboneError, InputError
from albat_core.records.answers import prompt_and_answer, read_answers
from albat_core.records.examples import Example, examples_to_table
from albat_core.records.splits import TEST
from albat_core.records.tables import write_table
from albat_core.stages.answer import answer_prompts, asked_for, drawn_by_document
from albat_core.store.artifacts import ArtifactRef, ArtifactStore, Built
from albat_core.store.stage import Runtime
from tests.pipelines import save_pipeline
from tests.toys import CHAT_TEMPLATE, save_backbone, sentences

GREEDY = SamplingConfig(max_new_tokens=12, temperature=0.0)
PROMPTS = [
    "leaf",
    "Question: leaf root seed stem?\nAnswer: ",
    "sail mast hull wind harbour",
    "orbit comet planet",
    "Question: which planet, which moon, and which far dark galaxy?\nAnswer:",
]
PLAIN_TEMPLATE = CHAT_TEMPLATE.replace("'<s>'", "'# '").replace("'</s>'", "'\n##\n'")
PLAIN_TEMPLATE = PLAIN_TEMPLATE.replace("'<s>assistant", "'# assistant")


def row(number: int, prompt: str | None, answer: str, **more: Any) -> Example:
    text = f"{prompt or ''}{answer}"
    return Example(f"e{number}", f"d{number // 2}", "s", text=text, prompt=prompt, **more)


ROWS = [row(n, prompt, "seed stem.") for n, prompt in enumerate(PROMPTS)]


def chat(*said: str, **last: Any) -> Example:
    """A chat of user and assistant in turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(said)]
    messages[-1] |= last
    return Example("c", "d", "s", messages=tuple(messages))


def save_gpt2(folder: Path) -> Path:
    """Save a tiny GPT-2, which embeds absolute positions, with the tokenizer of the toys."""
    save_backbone(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = {"vocab_size": 400, "n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 4}
        config = GPT2Config(**size, bos_token_id=0, eos_token_id=1, pad_token_id=2)
        GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def sharpened(folder: Path) -> BackboneConfig:
    """Make the model of a folder surer of what it says, as trained ones are."""
    tensors = load_file(folder / "model.safetensors")
    (norm,) = (n for n in tensors if n in ("model.norm.weight", "transformer.ln_f.weight"))
    tensors[norm] *= 12
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return BackboneConfig(path=str(folder), max_length=64, dtype="float32")


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp(request.param)
    return sharpened(save_gpt2(folder) if request.param == "gpt2" else save_backbone(folder))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> BackboneConfig:
    return sharpened(save_backbone(tmp_path_factory.mktemp("toy")))


@pytest.fixture
def spoken(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The tokens of every answer written from now on, in the order of writing."""
    found: list[list[int]] = []
    real = TextEncoder.said

    def said(self: TextEncoder, question: Question, ids: list[int]) -> str:
        found.append(list(ids))
        return real(self, question, ids)

    monkeypatch.setattr(TextEncoder, "said", said)
    return found


def plainly(config: BackboneConfig, adapter: Path | None, starts: list[list[int]]) -> list[Any]:
    """The tokens that transformers alone writes greedily behind each start, one at a time."""
    model = AutoModelForCausalLM.from_pretrained(config.path, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    found = []
    for start in starts:
        ids = torch.tensor([start])
        whole = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=GREEDY.max_new_tokens,
        )[0].tolist()
        written = whole[len(start) :]
        found.append(written[: written.index(1)] if 1 in written else written)  # 1: </s>
    return found


def trained(backbone: LanguageBackbone, folder: Path) -> Path:
    """Attach an adapter that changes what is said, and save it."""
    backbone.attach_adapter(AdapterConfig(rank=4, target_modules="all-linear"), seed=1)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in backbone.adapter_parameters().values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    backbone.save_adapter(folder)
    return folder


def test_answers_are_those_of_transformers_token_by_token(
    config: BackboneConfig, runtime: Runtime, tmp_path: Path, spoken: list[list[int]]
) -> None:
    tokenizer = TextEncoder(config).tokenizer
    with open_backbone(config, runtime) as backbone:
        questions = backbone.questions(ROWS)
        starts = [tokenizer(p.rstrip(" "))["input_ids"] for p in PROMPTS]
        assert [q.ids for q in questions] == starts  # of different lengths: they are padded
        assert len({len(start) for start in starts}) == len(starts)
        said = {}
        for adapter in (None, trained(backbone, tmp_path / "adapter")):
            if adapter is None:
                backbone.detach_adapter()
            else:
                backbone.load_adapter(adapter)
            spoken.clear()
            together = backbone.answer(questions, GREEDY, [0] * len(questions))
            padded = list(spoken)
            spoken.clear()
            alone = [backbone.answer([q], GREEDY, [0])[0] for q in questions]
            expected = plainly(config, adapter, starts)
            assert padded == spoken == expected
            assert together == alone
            assert [a.text for a in together] == [
                tokenizer.decode(ids, skip_special_tokens=True).rstrip("\ufffd").strip()
                for ids in expected
            ]
            assert [a.ended for a in together] == [len(ids) < 12 for ids in expected]
            said[adapter] = [a.text for a in together]
    first, second = said.values()
    assert first != second  # the adapter has a say
    assert len({*first, *second}) > 4


def test_questions_to_a_model_whose_state_takes_padding_in_are_not_padded(
    tmp_path: Path, runtime: Runtime
) -> None:
    save_backbone(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "context_length": 64}
        RwkvForCausalLM(RwkvConfig(**size, bos_token_id=0, eos_token_id=1)).save_pretrained(
            tmp_path
        )
    config = BackboneConfig(path=str(tmp_path), max_length=64, dtype="float32")
    with open_backbone(config, runtime) as backbone:
        questions = backbone.questions(ROWS)
        together = backbone.answer(questions, GREEDY, [0] * len(questions))
        assert together == [backbone.answer([q], GREEDY, [0])[0] for q in questions]
    assert len({answer.text for answer in together}) > 1


def test_an_answer_begins_where_the_loss_begins(llama: BackboneConfig) -> None:
    encoder = TextEncoder(llama)
    for prompt in ("A: ", "A:", "A:\n", "le", "seed st"):
        example = row(0, prompt, "leaf root")
        question = encoder.question(example)
        ids, mask = encoder.tokens(example)
        assert question.ids == ids[: mask.index(True)]
        assert (question.prompt, question.reference) == (prompt, "leaf root")
        trained_on = ids[mask.index(True) : -1]  # what loss falls on, but the end
        assert encoder.said(question, trained_on) == "leaf root"
    across = encoder.question(row(0, "A: le", "af root"))  # " leaf" is one token
    assert (across.lead, across.reference) == (" le", "af root")
    ids = encoder.tokens(row(0, "A: le", "af root"))[0]
    assert encoder.said(across, ids[len(across.ids) : -1]) == "af root"
    spaced = encoder.question(row(0, "A: ", "leaf"))
    assert spaced.lead == " " and spaced.ids == encoder.question(row(0, "A:", " leaf")).ids


def test_answers_end_at_the_room_that_a_row_has(llama: BackboneConfig, runtime: Runtime) -> None:
    long = row(0, " ".join(sentences("plants", 3, 0)), "leaf")
    length = len(TextEncoder(llama).question(long).ids)
    few = llama.model_copy(update={"max_length": length + 3})
    wide = SamplingConfig(max_new_tokens=40, temperature=0.0)
    with open_backbone(few, runtime) as backbone:
        questions = backbone.questions([long, *ROWS[:2]])
        answers = backbone.answer(questions, wide, [0] * 3)
        apart = [backbone.answer([q], wide, [0])[0] for q in questions]
        tokens = TextEncoder(few).tokenizer(answers[0].text, add_special_tokens=False)["input_ids"]
    assert answers == apart
    assert len(tokens) <= 4 and not answers[0].ended


def test_drawn_answers_depend_on_their_seed_alone(llama: BackboneConfig, runtime: Runtime) -> None:
    warm = SamplingConfig(max_new_tokens=12, temperature=1.0)
    with open_backbone(llama, runtime) as backbone:
        questions = backbone.questions(ROWS)
        first = backbone.answer(questions, warm, [7, 8, 9, 10, 11])
        other = backbone.answer(questions[::-1], warm, [11, 10, 9, 8, 7])[::-1]
        new = backbone.answer(questions, warm, [1, 2, 3, 4, 5])
    assert first == other != new


# Chats


def with_template(config: BackboneConfig, folder: Path, template: str) -> BackboneConfig:
    shutil.copytree(config.path, folder)
    (folder / "chat_template.jinja").write_text(template)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return config.model_copy(update={"path": str(folder)})


def test_of_a_chat_the_last_turn_of_the_assistant_is_asked_for(
    llama: BackboneConfig, runtime: Runtime
) -> None:
    example = chat("leaf root?", "seed stem", "and sun?", "water green", "not answered")
    tokenizer = TextEncoder(llama).tokenizer
    asked = tokenizer.apply_chat_template(
        list(example.messages or ())[:3], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    with open_backbone(llama, runtime) as backbone:
        (question,) = backbone.questions([example])
        (answer,) = backbone.answer([question], GREEDY, [0])
    assert question.ids == asked
    assert question.reference == "water green"
    assert question.prompt.endswith("and sun?assistant\n") and "<s>" not in question.prompt
    assert (question.end, question.stop) == (1, "")  # </s>, as the template writes it
    (expected,) = plainly(llama, None, [asked])
    assert answer.text == tokenizer.decode(expected, skip_special_tokens=True).strip()


def test_an_end_that_the_template_has_is_an_end_though_the_model_names_another(
    llama: BackboneConfig, runtime: Runtime, tmp_path: Path
) -> None:
    written = CHAT_TEMPLATE.replace("</s>", "<pad>")
    other = with_template(llama, tmp_path / "padded", written)
    question = TextEncoder(other).question(chat("leaf?", "seed stem"))
    assert question.end == 2 and question.reference == "seed stem"
    model = AutoModelForCausalLM.from_pretrained(other.path)
    with torch.no_grad():  # says <pad> and nothing else
        model.model.norm.weight.zero_()
        model.lm_head = torch.nn.Linear(32, 400, bias=True)
        model.lm_head.weight.zero_()
        model.lm_head.bias.copy_(torch.eye(400)[2])
    (answer,) = write_answers(model, TextEncoder(other), [question], GREEDY, [0])
    assert answer.ended and answer.text == ""


def test_a_template_without_tokens_of_its_own_ends_a_turn_by_its_text(
    llama: BackboneConfig, runtime: Runtime, tmp_path: Path
) -> None:
    plain = with_template(llama, tmp_path / "plain", PLAIN_TEMPLATE)
    encoder = TextEncoder(plain)
    question = encoder.question(chat("leaf?", "seed stem"))
    assert (question.end, question.stop, question.reference) == (None, "##", "seed stem")
    ids = encoder.tokenizer("sun green\n##\n# user\nleaf", add_special_tokens=False)["input_ids"]
    assert encoder.said(question, ids) == "sun green"
    with open_backbone(plain, runtime) as backbone:  # one with and one without a stop, together
        asked = backbone.questions([chat("leaf?", "seed stem"), ROWS[0]])
        both = backbone.answer(asked, GREEDY, [0, 0])
        alone = [backbone.answer([q], GREEDY, [0])[0] for q in asked]
    assert both == alone


# Which rows are asked


def test_rows_without_prompt_and_answer_are_not_asked() -> None:
    assert prompt_and_answer(row(0, "Q: ", "leaf")) == ("Q: ", "leaf")
    assert prompt_and_answer(row(0, None, "leaf")) is None
    assert prompt_and_answer(row(0, "", "leaf")) is None
    assert prompt_and_answer(row(0, "Q: ", "leaf", continues=True)) == ("Q: ", "leaf")
    assert prompt_and_answer(row(0, "Q: ", "leaf", image=b"png")) is None
    told = ("user: leaf?", "seed")
    assert prompt_and_answer(chat("leaf?", "seed")) == told
    assert prompt_and_answer(chat("leaf?", "seed", "more?")) == told
    assert prompt_and_answer(chat("leaf?", "seed", weight=0)) is None
    assert prompt_and_answer(chat("leaf?")) is None
    alone = Example("c", "d", "s", messages=({"role": "assistant", "content": "hello"},))
    assert prompt_and_answer(alone) is None


def test_beginnings_of_answers_are_asked_for_where_they_are_most() -> None:
    bare, whole = row(9, None, "leaf"), row(0, "Q: ", "leaf")
    begun = [row(n, "Q: ", "leaf", continues=True) for n in (1, 2)]
    assert asked_for([whole, bare, begun[0]]) == [whole]
    assert asked_for([bare, begun[0], whole, begun[1]]) == [begun[0], whole, begun[1]]


def test_of_a_beginning_as_many_tokens_are_written_as_it_has(
    llama: BackboneConfig, runtime: Runtime
) -> None:
    store = ArtifactStore(runtime.root)
    begun = [replace(each, continues=True) for each in ROWS]
    ref = written(llama, begun, runtime)
    table, whole = (read_answers(store, each) for each in (ref, written(llama, ROWS, runtime)))
    with open_backbone(llama, runtime) as backbone:
        for question, its in zip(backbone.questions(begun), table.to_pylist(), strict=True):
            assert question.most == 3  # seed, stem and the point
            tight = GREEDY.model_copy(update={"max_new_tokens": 3})
            assert backbone.answer([question], tight, [0])[0].text == its["answer"]
    both = zip(table["answer"].to_pylist(), whole["answer"].to_pylist(), strict=True)
    assert all(long.startswith(short) and long != short for short, long in both)
    facts = store.manifest(ref).facts
    assert (facts["begun"], facts["cut"], facts["answerable"]) == (5, 0, 5)


def test_a_question_without_room_for_an_answer_has_none(
    llama: BackboneConfig, runtime: Runtime
) -> None:
    tight = llama.model_copy(update={"max_length": 12})
    with open_backbone(tight, runtime) as backbone:
        full = Question([0] * 12, "full", "seed")
        asked = [full, *backbone.questions([ROWS[0]])]
        none, some = backbone.answer(asked, GREEDY, [0, 0])
        assert backbone.answer(asked[1:], GREEDY, [0]) == [some]
    assert none == Answer("", ended=False)


def test_what_is_written_begins_with_its_space_whatever_the_decoder() -> None:
    words = {3: " leaf", 4: " root", 5: " seed", 6: " stem"}

    class Encoder:  # as that of a sentencepiece model
        def decoded(self, ids: list[int]) -> str:
            return "".join(words[n] for n in ids).removeprefix(" ")

    encoder: Any = Encoder()
    made = writing._example(encoder, 0, "leaf root", [3, 4], [5, 6, 9, 9], {9})
    assert (made.text, made.prompt, made.continues) == ("leaf root seed stem", "leaf root", False)


def test_rows_are_drawn_by_document_in_turns() -> None:
    rows = [
        Example(f"{d}{n}", d, "s", text="t") for d, n in zip("aaaaaaaabbcd", range(12), strict=1)
    ]
    drawn = drawn_by_document(rows, 6, seed=0)
    assert Counter(r.document for r in drawn) == {"a": 2, "b": 2, "c": 1, "d": 1}
    assert [rows.index(r) for r in drawn] == sorted(rows.index(r) for r in drawn)
    assert drawn_by_document(rows, 6, seed=0) == drawn
    assert len({tuple(drawn_by_document(rows, 6, seed=s)) for s in range(9)}) > 3
    assert {r.document for r in drawn_by_document(rows, 4, seed=3)} == set("abcd")
    assert drawn_by_document(rows, 100, seed=0) == rows


def heldout(store: ArtifactStore, rows: list[Example]) -> ArtifactRef:
    def build(folder: Path) -> Built:
        write_table(examples_to_table(rows), folder / f"{TEST}.parquet")
        return Built(rows=len(rows))

    return store.produce("split", 1, {}, {"rows": [r.digest() for r in rows]}, build)


def written(
    config: BackboneConfig, rows: list[Example], runtime: Runtime, most: int = 100, tokens: int = 99
) -> ArtifactRef:
    split = heldout(ArtifactStore(runtime.root), rows)
    return answer_prompts(None, split, config, GREEDY, most, tokens, 0, runtime)


def test_answers_are_kept_in_the_order_of_the_rows_whatever_the_batches(
    llama: BackboneConfig, runtime: Runtime
) -> None:
    store = ArtifactStore(runtime.root)
    bare = [row(9, None, "leaf root seed"), row(10, "Q: ", "cut", continues=True)]
    ref = written(llama, [*ROWS, *bare], runtime)
    table = read_answers(store, ref)
    assert table["example_id"].to_pylist() == [r.example_id for r in ROWS]
    assert table["document"].to_pylist() == ["d0", "d0", "d1", "d1", "d2"]
    assert table["prompt"].to_pylist() == PROMPTS
    assert table["reference"].to_pylist() == ["seed stem."] * 5
    facts = store.manifest(ref).facts
    assert (facts["documents"], facts["answerable"], facts["bare"]) == (3, 5, 2)
    assert facts["cut"] == table["ended"].to_pylist().count(False)
    with open_backbone(llama, runtime) as backbone:
        questions = backbone.questions(ROWS)
        alone = [backbone.answer([q], GREEDY, [0])[0].text for q in questions]
    assert table["answer"].to_pylist() == alone
    one_batch = written(llama, [*ROWS, *bare], runtime, tokens=4096)
    assert one_batch != ref
    assert read_answers(store, one_batch).equals(table)


def test_the_same_answers_are_written_again_bit_by_bit(
    llama: BackboneConfig, tmp_path: Path
) -> None:
    digests = []
    for name in ("one", "two"):
        runtime = Runtime(root=str(tmp_path / name), device="cpu")
        ref = written(llama, ROWS, runtime, most=3)
        manifest = ArtifactStore(runtime.root).manifest(ref)
        digests.append([file.sha256 for file in manifest.files])
        assert manifest.rows == 3
    assert digests[0] == digests[1]


def test_rows_of_plain_text_alone_are_refused(llama: BackboneConfig, runtime: Runtime) -> None:
    with pytest.raises(InputError, match=r"prompt and answer.* got 1 of plain text") as caught:
        written(llama, [row(0, None, "leaf root")], runtime)
    assert "prompt_template" in caught.value.remedy


def test_a_backbone_that_draws_pictures_writes_no_answers(tmp_path: Path, runtime: Runtime) -> None:
    config = BackboneConfig(kind="diffusion", path=str(save_pipeline(tmp_path / "sd")))
    with open_backbone(config, runtime) as backbone:
        with pytest.raises(BackboneError, match="writes answers, got one that draws pictures"):
            backbone.questions(ROWS)
        with pytest.raises(BackboneError, match=r"draws pictures") as caught:
            backbone.answer([], GREEDY, [])
    assert "evaluation.metrics" in caught.value.remedy
