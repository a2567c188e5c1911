"""Causal language models (transformers) as backbones, with LoRA adapters (peft)."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from albat_core.backbones.base import AdapterConfig, BackboneConfig, Encoded, Losses
from albat_core.backbones.folder import backbone_folder
from albat_core.errors import BackboneError, InputError
from albat_core.records import Example

ADAPTER_NOTE = "albat.json"  # beside the adapter: which backbone it was made for
_SHORTEST_ANSWER = 4  # tokens of answer that must fit behind a prompt


def load_splitter(config: BackboneConfig) -> Callable[[Example], list[Example]]:
    """Return what cuts a row into examples of at most ``max_length`` tokens."""
    return TextEncoder(config).pieces


def load_backbone(
    config: BackboneConfig, device: torch.device, fingerprint: str
) -> "LanguageBackbone":
    """Load a causal language model.

    Raises:
        BackboneError: the folder holds none, weights are missing, or its tokenizer does not fit.
    """
    return LanguageBackbone(config, device, fingerprint)


def check_backbone(config: BackboneConfig) -> None:
    """Check that tokenizer and model fit together, from the model's description alone.

    Raises:
        BackboneError: they do not, or ``max_length`` is more than the model takes.
    """
    from transformers import AutoConfig

    folder = backbone_folder(config)
    encoder = TextEncoder(config)
    try:
        model_config = AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=config.trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise _unreadable("model", folder, error) from error
    text_config = model_config.get_text_config()
    vocabulary = text_config.vocab_size
    tokens = max(encoder.tokenizer.get_vocab().values()) + 1
    if tokens > vocabulary:
        raise BackboneError(
            f"the tokenizer has {tokens} tokens but the model embeds {vocabulary}",
            where=config.path,
            remedy="use the tokenizer that the model was trained with",
        )
    longest = getattr(text_config, "max_position_embeddings", None)
    if longest is not None and config.max_length > longest:
        raise BackboneError(
            f"max_length is {config.max_length} but the model takes {longest} tokens",
            where=config.path,
            remedy=f"set backbone.max_length to {longest} or less",
        )


class TextEncoder:
    """Turns examples into tokens, with the mask that says which of them carry loss.

    Args:
        config: names the tokenizer's folder and the longest sequence.
    """

    def __init__(self, config: BackboneConfig) -> None:
        from transformers import AutoTokenizer

        folder = backbone_folder(config)
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=config.trust_remote_code
            )
        except (OSError, ValueError, KeyError) as error:
            raise _unreadable("tokenizer", folder, error) from error
        if not self.tokenizer.is_fast:
            raise BackboneError(
                "expected a tokenizer that maps tokens to characters, got a slow one",
                where=str(folder),
                remedy="save the model with a fast tokenizer (tokenizer.json)",
            )
        self.where = str(folder)
        self.max_length = config.max_length
        self._specials = len(self.tokenizer("")["input_ids"]) + 1  # and the end of the text

    def tokens(self, example: Example) -> tuple[list[int], list[bool]]:
        """Return token ids and, for each, whether predicting it is part of the loss.

        A text ends with the end-of-text token unless it ``continues``; loss falls on all tokens
        but the first, or on those behind the prompt, or on the assistant's turns.
        """
        if example.messages is not None:
            return self._chat_tokens(example)
        text = example.text or ""
        encoded = self.tokenizer(text, return_offsets_mapping=example.prompt is not None)
        ids = list(encoded["input_ids"])
        if example.prompt is None:
            mask = [True] * len(ids)
        else:
            starts_at = len(example.prompt)
            mask = [end > starts_at for _, end in encoded["offset_mapping"]]
        end_of_text = self.tokenizer.eos_token_id
        if not example.continues and end_of_text is not None and ids[-1:] != [end_of_text]:
            ids.append(end_of_text)
            mask.append(True)
        mask[:1] = [False] * len(mask[:1])
        return ids, mask

    def _chat_tokens(self, example: Example) -> tuple[list[int], list[bool]]:
        messages = list(example.messages or ())
        if not self.tokenizer.chat_template:
            raise BackboneError(
                "expected a chat template for rows of messages, the tokenizer has none",
                where=self.where,
                remedy="use a chat model, or template / prompt_template columns instead",
            )
        ids: list[int] = []
        mask: list[bool] = []
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            asked = self._render(messages[:turn], generation=True)
            answered = self._render(messages[: turn + 1], generation=False)
            if answered[: len(asked)] != asked or asked[: len(ids)] != ids:
                raise BackboneError(
                    "expected a chat template that only appends as a chat goes on",
                    where=f"{self.where}, example {example.example_id}",
                    remedy="use prompt_template and answer_template instead of messages",
                )
            mask += [False] * (len(asked) - len(ids)) + [True] * (len(answered) - len(asked))
            ids = answered
        mask[:1] = [False] * len(mask[:1])
        return ids, mask

    def _render(self, messages: list[dict[str, str]], *, generation: bool) -> list[int]:
        if not messages:
            return []
        rendered = self.tokenizer.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=generation, return_dict=True
        )
        return list(rendered["input_ids"])

    def pieces(self, example: Example) -> list[Example]:
        """Cut an example into ones of at most ``max_length`` tokens; itself where it fits.

        Text is cut between words. A prompt/answer row keeps its prompt in front of the answer's
        first part; what is left of the answer follows as text. A chat loses its last turns.
        Nothing is returned where a prompt leaves no room for an answer.
        """
        ids, mask = self.tokens(example)
        if not any(mask):
            return []
        if len(ids) <= self.max_length:
            return [example]
        if example.messages is not None:
            return self._shorter_chat(example)
        text = example.text or ""
        spans = self._spans(text)
        if example.prompt is not None:
            first_end = spans[0][1]
            answer_tokens = sum(self.tokens(replace(example, text=text[:first_end]))[1])
            if first_end <= len(example.prompt) or answer_tokens < _SHORTEST_ANSWER:
                return []
        return [
            replace(
                example,
                example_id=f"{example.example_id}#{number}",
                text=text[start:end],
                prompt=example.prompt if number == 0 else None,
                continues=number < len(spans) - 1,
            )
            for number, (start, end) in enumerate(spans)
        ]

    def _spans(self, text: str) -> list[tuple[int, int]]:
        """Return the character spans of consecutive pieces."""
        room = self.max_length - self._specials
        offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)[
            "offset_mapping"
        ]
        spans, first, start = [], 0, 0
        while first < len(offsets):
            last = first + room
            if last >= len(offsets):
                spans.append((start, len(text)))
                break
            # a cut between words gives the same tokens when the piece is encoded alone
            for cut in range(last, max(first + room // 2, first), -1):
                if text[offsets[cut][0] - 1].isspace() or text[offsets[cut][0]].isspace():
                    last = cut
                    break
            end = offsets[last][0]
            if text[end - 1] == " ":
                end -= 1  # the space belongs to the word behind it, as tokenizers have it
            end = max(end, start + 1)
            spans.append((start, end))
            first, start = last, end
        return spans

    def _shorter_chat(self, example: Example) -> list[Example]:
        messages = list(example.messages or ())
        while messages:
            messages.pop()
            if messages and messages[-1]["role"] == "assistant":
                shorter = replace(
                    example, example_id=f"{example.example_id}#0", messages=tuple(messages)
                )
                ids, mask = self.tokens(shorter)
                if len(ids) <= self.max_length and any(mask):
                    return [shorter]
        return []


class LanguageBackbone:
    """A frozen causal language model, see the ``Backbone`` protocol."""

    def __init__(self, config: BackboneConfig, device: torch.device, fingerprint: str) -> None:
        check_backbone(config)
        self.fingerprint = fingerprint
        self.device = device
        self._path = config.path
        self._encoder = TextEncoder(config)
        self._model = self._load(config).to(device).eval()
        self._model.requires_grad_(requires_grad=False)
        self._adapted: Any = None

    def _load(self, config: BackboneConfig) -> Any:
        from transformers import AutoModelForCausalLM

        folder = backbone_folder(config)
        try:
            model, loading = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=getattr(torch, config.dtype),
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=config.trust_remote_code,
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise _unreadable("model", folder, error) from error
        if missing := sorted(loading["missing_keys"]):
            raise BackboneError(
                f"expected weights for every layer, none for {', '.join(missing[:3])}"
                f"{' and more' if len(missing) > 3 else ''}",
                where=str(folder),
                remedy="the folder is incomplete or of another architecture: save it again",
            )
        return model

    def pieces(self, example: Example) -> list[Example]:
        """Cut an example into ones that fit, see ``TextEncoder.pieces``."""
        return self._encoder.pieces(example)

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Return token ids and loss masks.

        Raises:
            InputError: an example is longer than ``max_length`` or carries no loss.
        """
        encoded = []
        for example in examples:
            ids, mask = self._encoder.tokens(example)
            if len(ids) > self._encoder.max_length or not any(mask):
                raise InputError(
                    f"expected at most {self._encoder.max_length} tokens with some of them to "
                    f"learn from, got {len(ids)} with {sum(mask)}",
                    where=f"example {example.example_id}",
                    remedy="cut rows with this backbone's own tokenizer and max_length",
                )
            inputs = {"input_ids": ids, "loss_mask": mask}
            encoded.append(Encoded(example.example_id, inputs, len(ids), sum(mask)))
        return encoded

    def _collate(self, batch: Sequence[Encoded], name: str, fill: int) -> torch.Tensor:
        """Return one input of all examples, (n, longest), padded on the right.

        Right padding needs no attention mask: causal attention never looks to the right.
        """
        longest = max(e.length for e in batch)
        rows = [e.inputs[name] + [fill] * (longest - e.length) for e in batch]
        return torch.tensor(rows, device=self.device)

    @torch.inference_mode()
    def embed(self, batch: Sequence[Encoded]) -> torch.Tensor:
        """Return the position-weighted mean of the last hidden states (RDS+, arXiv 2503.01807).

        e = sum_i i h_i / sum_i i over tokens i = 1..length; (n, d) float32 on the CPU.
        """
        ids = self._collate(batch, "input_ids", 0)
        hidden = self._model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        position = torch.arange(1, ids.shape[1] + 1, device=self.device)
        lengths = torch.tensor([e.length for e in batch], device=self.device)
        weights = (position * (position <= lengths[:, None])).to(torch.float32)
        weights = weights / weights.sum(dim=1, keepdim=True)
        return torch.einsum("nt,ntd->nd", weights, hidden.to(torch.float32)).cpu()

    def losses(self, batch: Sequence[Encoded]) -> Losses:
        """Return each example's negative log-likelihood over the tokens that carry loss."""
        ids = self._collate(batch, "input_ids", 0)
        mask = self._collate(batch, "loss_mask", 0)[:, 1:].to(torch.bool)
        model = self._adapted if self._adapted is not None else self._model
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        each = F.cross_entropy(
            logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none"
        ).view(mask.shape)
        return Losses(total=(each * mask).sum(dim=1), units=mask.sum(dim=1))

    def attach_adapter(self, config: AdapterConfig, seed: int) -> None:
        """Attach a new LoRA adapter; B is zero, A is drawn from ``seed``."""
        from peft import LoraConfig, get_peft_model

        targets = config.target_modules
        lora = LoraConfig(
            task_type="CAUSAL_LM",
            r=config.rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.dropout,
            target_modules=targets if isinstance(targets, str) else list(targets),
            base_model_name_or_path=self._path,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                self._adapted = get_peft_model(self._model, lora)
            except ValueError as error:
                names = sorted(
                    {n.rpartition(".")[2] for n, m in self._model.named_modules() if _is_linear(m)}
                )
                raise BackboneError(
                    f"adapter.target_modules={targets!r} match no layer",
                    where=self._path,
                    remedy=f"choose from {', '.join(names)}, or all-linear",
                ) from error

    def load_adapter(self, folder: Path) -> None:
        """Attach the adapter saved in ``folder``, after checking whose it is."""
        from peft import PeftModel

        note = folder / ADAPTER_NOTE
        made_for = json.loads(note.read_text())["backbone"] if note.is_file() else self.fingerprint
        if made_for != self.fingerprint:
            raise BackboneError(
                f"the adapter was made for backbone {made_for[:8]}, this is {self.fingerprint[:8]}",
                where=str(folder),
                remedy=f"load it on the backbone it was made for, or train one for {self._path}",
            )
        try:
            self._adapted = PeftModel.from_pretrained(self._model, folder)
        except (RuntimeError, ValueError, OSError) as error:
            raise _unreadable("adapter", folder, error) from error
        self._adapted.eval()

    def save_adapter(self, folder: Path) -> None:
        """Save the adapter as ``PeftModel.from_pretrained`` reads it."""
        if self._adapted is None:
            raise BackboneError("expected an adapter to save, none is attached", where=self._path)
        self._adapted.save_pretrained(folder, safe_serialization=True)
        (folder / ADAPTER_NOTE).write_text(json.dumps({"backbone": self.fingerprint}))

    def adapter_parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return the LoRA factors by name; empty where no adapter is attached."""
        if self._adapted is None:
            return {}
        return {n: p for n, p in self._adapted.named_parameters() if p.requires_grad}

    def adapter_disabled(self) -> AbstractContextManager[None]:
        """Compute as the untouched backbone while the context lasts."""
        return _disabled(self._adapted) if self._adapted is not None else nullcontext()

    def detach_adapter(self) -> None:
        """Give the layers back as they were."""
        if self._adapted is not None:
            self._model = self._adapted.unload()
            # peft leaves its mark on the model, and warns of a second adapter where it finds it
            if hasattr(self._model, "peft_config"):
                del self._model.peft_config
            self._adapted = None
            self._model.eval()

    def training(self, on: bool) -> None:
        """Switch dropout on or off."""
        (self._adapted if self._adapted is not None else self._model).train(on)


@contextmanager
def _disabled(model: Any) -> Iterator[None]:
    with model.disable_adapter():
        yield


def _is_linear(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Linear)


def _unreadable(what: str, folder: Path, error: Exception) -> BackboneError:
    reason = str(error).strip().splitlines()
    return BackboneError(
        f"expected a {what} that transformers can load ({type(error).__name__}: "
        f"{reason[0] if reason else 'no reason given'})",
        where=str(folder),
        remedy="check that the folder is complete; code in it runs only with trust_remote_code",
    )
