"""Pretrain the demo's backbone, a tokenizer and a small Llama, on the demo's corpus alone."""

import argparse
import json
import math
import time
from pathlib import Path

import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

HERE = Path(__file__).parent
BOS, EOS, PAD = "<s>", "</s>", "<pad>"
CONTEXT = 256
WINDOW = 128
IGNORED = -100
HEAD_WIDTH = 32


def read_rows(path):
    """The (site, text) of every row of a file, in the form the model is trained on."""
    for row in pq.read_table(path).to_pylist():
        text = row.get("text")
        if text is None:
            text = f"Question: {row['question']}\nAnswer: {row['answer']}"
        yield row["source"], text


def train_tokenizer(texts, vocabulary):
    """A byte-level BPE tokenizer that puts <s> before a text and nothing after it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B",
        special_tokens=[(BOS, tokenizer.token_to_id(BOS))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=CONTEXT,
        # A text must come back as it was, with its spaces before punctuation.
        clean_up_tokenization_spaces=False,
    )


def cut(tokenizer, texts):
    """The training windows of some texts: <s>, at most 126 tokens, and </s> where a text ends."""
    windows = []
    # The backend encodes without the warning about texts longer than the context.
    for encoding in tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False):
        ids = encoding.ids
        for start in range(0, len(ids), WINDOW - 2):
            end = start + WINDOW - 2
            tail = [tokenizer.eos_token_id] if end >= len(ids) else []
            windows.append([tokenizer.bos_token_id, *ids[start:end], *tail])
    return windows


def collate(windows, pad):
    """The token ids and labels of some windows, padded to the longest of them."""
    width = max(map(len, windows))
    ids = torch.full((len(windows), width), pad)
    labels = torch.full((len(windows), width), IGNORED)
    for row, window in enumerate(windows):
        ids[row, : len(window)] = torch.tensor(window)
        # The first token is given, never predicted.
        labels[row, 1 : len(window)] = torch.tensor(window[1:])
    return ids, labels


def group(windows, order, batch_tokens):
    """Batches of windows of like length, each of at most batch_tokens with padding."""
    # Sorting within stretches of the order keeps the draw random and the padding small.
    stretch = 64 * (batch_tokens // WINDOW)
    batches = []
    for start in range(0, len(order), stretch):
        batch, width = [], 0
        for index in sorted(order[start : start + stretch], key=lambda i: len(windows[i])):
            width = max(width, len(windows[index]))
            if batch and width * (len(batch) + 1) > batch_tokens:
                batches.append(batch)
                batch, width = [], len(windows[index])
            batch.append(index)
        batches.append(batch)
    return batches


def new_model(tokenizer, arguments, generator):
    """A small Llama with weights drawn from the generator."""
    heads = arguments.width // HEAD_WIDTH
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=arguments.width,
        intermediate_size=8 * arguments.width // 3,
        num_hidden_layers=arguments.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=CONTEXT,
        # Separate output embeddings would add a third to the size.
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0.0, config.initializer_range, generator=generator)
    return model


def token_losses(model, ids, labels, reduction):
    """The cross-entropy of a batch's labels in nats, over every real token but the first."""
    # Windows are padded on the right, so the causal mask already hides the padding.
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]
    targets = labels[:, 1:]
    real = targets != IGNORED
    logits = model.lm_head(hidden[real])
    return cross_entropy(logits.float(), targets[real], reduction=reduction)


@torch.no_grad()
def evaluate(model, windows, pad):
    """The summed loss and the number of predicted tokens of some windows."""
    model.eval()
    total, count = 0.0, 0
    for batch in group(windows, range(len(windows)), 64 * WINDOW):
        ids, labels = collate([windows[i] for i in batch], pad)
        total += token_losses(model, ids, labels, "sum").item()
        count += int((labels != IGNORED).sum())
    return total, count


def learning_rate(step, steps, peak, warm_up):
    """Linear warm-up, then a cosine down to a hundredth of the peak."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    done = (step - warm_up) / max(1, steps - warm_up)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def train(model, windows, tokenizer, generator, arguments):
    """Train in place and log the loss; the generator draws every epoch's order."""
    plan = []
    for _ in range(arguments.epochs):
        order = torch.randperm(len(windows), generator=generator).tolist()
        batches = group(windows, order, arguments.batch_tokens)
        plan += [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
    steps = len(plan)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    gains = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        fused=True,
    )
    model.train()
    started = time.monotonic()
    since, tokens, total, count = started, 0, 0.0, 0
    for step, batch in enumerate(plan):
        if arguments.max_steps and step >= arguments.max_steps:
            break
        for parameters in optimizer.param_groups:
            parameters["lr"] = learning_rate(step, steps, arguments.lr, arguments.warm_up)
        ids, labels = collate([windows[i] for i in batch], tokenizer.pad_token_id)
        ids, labels = ids.to(arguments.device), labels.to(arguments.device)
        with torch.autocast(arguments.device, torch.bfloat16, enabled=arguments.bf16):
            loss = token_losses(model, ids, labels, "mean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        predicted = int((labels != IGNORED).sum())
        total, count = total + loss.item() * predicted, count + predicted
        tokens += predicted
        if (step + 1) % arguments.log_every == 0 or step + 1 == steps:
            now = time.monotonic()
            speed = count / (now - since)
            print(
                f"step {step + 1}/{steps} loss {total / count:.4f} "
                f"tokens {tokens} tokens/s {speed:.0f} seconds {now - started:.0f}",
                flush=True,
            )
            since, total, count = now, 0.0, 0
    print(f"trained on {tokens} tokens in {time.monotonic() - started:.0f} s", flush=True)


def report_share(tokenizer, path, total):
    """Print how many of the corpus's tokens a file has."""
    windows = cut(tokenizer, [text for _, text in read_rows(path)])
    tokens = sum(map(len, windows))
    print(f"{path.name}: {tokens} tokens, {tokens / total:.1%} of the corpus", flush=True)


def report(model, tokenizer, path):
    """Print a file's loss in nats per token, by site and as a whole."""
    sites = {}
    for site, text in read_rows(path):
        sites.setdefault(site, []).append(text)
    all_total, all_count = 0.0, 0
    for site, texts in sorted(sites.items()):
        total, count = evaluate(model, cut(tokenizer, texts), tokenizer.pad_token_id)
        print(f"{path.name} {site}: {total / count:.4f} nats per token, {count} tokens", flush=True)
        all_total, all_count = all_total + total, all_count + count
    print(f"{path.name} all: {all_total / all_count:.4f} nats per token, {all_count} tokens")


def save_tokenizer(tokenizer, folder):
    """Save the tokenizer under the class name that transformers 4 and 5 both know."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main():
    """Train tokenizer and model, save them and print their losses."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=HERE / "data")
    parser.add_argument("--out", type=Path, default=HERE / "backbone")
    parser.add_argument("--files", nargs="+", type=Path, help="the corpus, instead of --data's")
    parser.add_argument("--held-out", nargs="+", type=Path, help="for the losses, likewise")
    parser.add_argument("--vocabulary", type=int, default=2048, help="entries of the tokenizer")
    parser.add_argument("--width", type=int, default=128, help="of the model, a multiple of 32")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1, help="times that each row is read")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate")
    parser.add_argument("--warm-up", type=int, default=100, help="steps of warm-up")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=50, help="steps between log lines")
    parser.add_argument("--max-steps", type=int, default=0, help="stop early, for a trial")
    arguments = parser.parse_args()

    generator = torch.Generator().manual_seed(arguments.seed)  # on the CPU, whatever computes
    corpus = arguments.files or sorted((arguments.data / "corpus").rglob("*.parquet"))
    texts = [text for path in corpus for _, text in read_rows(path)]
    tokenizer = train_tokenizer(texts, arguments.vocabulary)
    windows = cut(tokenizer, texts)
    for path in corpus:
        report_share(tokenizer, path, sum(map(len, windows)))
    model = new_model(tokenizer, arguments, generator)
    print(
        f"{len(texts)} rows, {len(windows)} windows, {sum(map(len, windows))} tokens, "
        f"{sum(p.numel() for p in model.parameters())} parameters",
        flush=True,
    )
    train(model.to(arguments.device), windows, tokenizer, generator, arguments)

    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model.to("cpu", torch.bfloat16).save_pretrained(arguments.out)
    save_tokenizer(tokenizer, arguments.out)

    # What counts is the saved model: its rounded weights, computed with in full precision.
    saved = AutoModelForCausalLM.from_pretrained(arguments.out, dtype=torch.float32)
    usual = sorted(arguments.data.glob("*.parquet"))
    for path in arguments.held_out or usual:
        report(saved, tokenizer, path)


if __name__ == "__main__":
    main()
