"""Tiny real models and data for tests, built from config classes; no download."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TOPICS = {
    topic: words.split()
    for topic, words in {
        "plants": "leaf root seed stem bloom petal soil sun water green grow branch",
        "ships": "sail mast hull wind harbour anchor wave deck rope captain tide port",
        "stars": "orbit comet planet moon light dust galaxy nova sky dark red far",
    }.items()
}
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m['role'] + '\n' + m['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)


def sentences(topic: str, count: int, seed: int) -> list[str]:
    """Sentences of one topic's words."""
    generator = np.random.default_rng([seed, sum(map(ord, topic))])
    return [
        " ".join(generator.choice(TOPICS[topic], size=generator.integers(6, 14))) + "."
        for _ in range(count)
    ]


@lru_cache
def _tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [s for topic in TOPICS for s in sentences(topic, 50, 0)]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def save_backbone(folder: Path, *, width: int = 32, seed: int = 0, vocabulary: int = 400) -> Path:
    """Save a tiny Llama with its tokenizer; random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocabulary,
                hidden_size=width,
                intermediate_size=2 * width,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=128,
                tie_word_embeddings=True,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=2,
            )
        )
    model.save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows, one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def topic_rows(
    topic: str, count: int, seed: int = 0, per_document: int = 2
) -> list[dict[str, Any]]:
    """Rows of one topic, several to a document."""
    return [
        {"id": f"{topic}-{seed}-{n}", "doc": f"{topic}-{seed}-{n // per_document}", "text": text}
        for n, text in enumerate(sentences(topic, count, seed))
    ]


def write_run(folder: Path, **changes: object) -> Path:
    """Write backbone, corpus (two files), adaptation set and config of a run that takes seconds."""
    save_backbone(folder / "backbone")
    write_jsonl(folder / "corpus" / "plants.jsonl", topic_rows("plants", 60))
    write_jsonl(folder / "corpus" / "ships.jsonl", topic_rows("ships", 60))
    write_jsonl(folder / "adaptation.jsonl", topic_rows("plants", 40, seed=1))
    columns = {"id_column": "id", "document_column": "doc"}
    training: dict[str, Any] = {"steps": 12, "batch_size": 4, "evaluate_every": 4, "warmup": 2}
    training |= {"stretch": 1, "adapter": {"rank": 4}}
    config: dict[str, Any] = {
        "name": "toy",
        "output": str(folder / "runs"),
        "backbone": {"path": "backbone", "max_length": 64, "dtype": "float32"},
        "corpus": [{"path": "corpus/*.jsonl", **columns}],
        "adaptation": {"path": "adaptation.jsonl", **columns},
        "split": {"folds": 3},
        "retrieval": {"neighbours": 8},
        "scoring": {"scorer": "advantage"},  # asks more of a run than the default
        "selection": {"rows": 20},
        "mixture": {"alpha": 0.5, "fall_back": False},  # so short a training shows little
        "estimate": {"folds": 2, "rows": 16, "dimension": 64},
        "surrogate": training,
        "finetune": training,
        "runtime": {"root": str(folder / "artifacts"), "device": "cpu", "workers": 2},
    }
    config |= changes
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def rewrite(path: Path, changes: dict[str, object]) -> Path:
    """Replace sections of a configuration."""
    config = yaml.safe_load(path.read_text(encoding="utf-8")) | changes
    path.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return path
