"""Causal language models (transformers) as backbones, with LoRA adapters (peft)."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch.nn.attention import SDPBackend, sdpa_kernel

from albat_core.backbones.adapters import AdapterConfig, check_note, refuse_pickled, write_note
from albat_core.backbones.base import (
    Answer,
    DrawnNoise,
    Encoded,
    FixedNoise,
    Losses,
    Precomputed,
    Question,
    as_untouched,
    trained_layers,
)
from albat_core.backbones.config import BackboneConfig, SamplingConfig
from albat_core.backbones.folder import backbone_folder, hub_id, unreadable
from albat_core.backbones.language.adapter import attached, disabled, released
from albat_core.backbones.language.attention import how_to_attend
from albat_core.backbones.language.embedding import hidden_states, position_weighted_mean
from albat_core.backbones.language.head import Head, TokenRows
from albat_core.backbones.language.likelihood import divergence, tangents, token_losses
from albat_core.backbones.language.packing import joined_values, refuse_leaking
from albat_core.backbones.language.quantization import bits_of, how_to_load, prepare
from albat_core.backbones.language.tokens import TextEncoder
from albat_core.backbones.language.writing import write_answers, write_texts
from albat_core.errors import BackboneError, InputError
from albat_core.processes.sharding import sharded
from albat_core.records.examples import Example

_SHORT = 128
"""Tokens up to which a CPU's flash attention is slower backwards, in bfloat16, than plain one."""


class LanguageBackbone:
    """A frozen causal language model, see the ``Backbone`` protocol."""

    noisy = False

    def __init__(
        self,
        config: BackboneConfig,
        device: torch.device,
        dtype: torch.dtype,
        fingerprint: str,
        share: bool = False,
    ) -> None:
        self.fingerprint = fingerprint
        self.device = device
        self.known: Precomputed | None = None
        self._computes_twice = False
        self._holds_apart = False  # known once examples are joined
        # a CPU multiplies in bfloat16 fast only forwards: there the weights stay in float32
        self._autocast = dtype == torch.bfloat16 and device.type == "cpu"
        self._weights_dtype = torch.float32 if self._autocast else dtype
        self._dtype = dtype
        self._path, self._revision = config.path, config.revision
        self._encoder = TextEncoder(config)
        self._bits = bits_of(config)
        self._model = self._load(config, share).eval()
        self._model.requires_grad_(requires_grad=False)
        self._adapted: Any = None
        # flash attention looks for joined rows where there is one sequence, and nowhere else
        self._in_one_row = "flash" in str(self._model.config._attn_implementation)
        self._head = Head(self._model, self._precision)

    def _load(self, config: BackboneConfig, share: bool) -> Any:
        from transformers import AutoModelForCausalLM

        folder, how = backbone_folder(config), how_to_load(config, self.device)
        try:
            model, loading = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=self._weights_dtype,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=config.trust_remote_code,
                output_loading_info=True,
                **how_to_attend(config),
                **how,
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise unreadable("model", folder, error) from error
        if missing := sorted(loading["missing_keys"]):
            raise BackboneError(
                f"expected weights for every layer, none for {', '.join(missing[:3])}"
                f"{' and more' if len(missing) > 3 else ''}",
                where=str(folder),
                remedy="the folder is incomplete or of another architecture: save it again",
            )
        model.name_or_path = hub_id(self._path)  # peft notes it where it has no other name
        prepare(model, self._dtype)
        if share:
            return sharded(model, self.device, str(folder))
        return model if how else model.to(self.device)

    def pieces(self, example: Example) -> list[Example]:
        """Cut an example into ones that fit, see ``TextEncoder.pieces``."""
        return self._encoder.pieces(example)

    def precompute(self, examples: Sequence[Example]) -> dict[str, NDArray[Any]]:
        """Return nothing: tokens need not be kept."""
        del examples
        return {}

    def encode(self, examples: Sequence[Example]) -> list[Encoded]:
        """Return token ids ``input_ids``, (t,) int32, and ``loss_mask``, (t,) bool.

        Raises:
            InputError: an example is longer than ``max_length``, carries no loss, or has a token
                that the model does not embed.
        """
        encoded, embedded = [], self._model.get_input_embeddings().weight.shape[0]
        for example in examples:
            ids, mask = self._encoder.tokens(example)
            if len(ids) > self._encoder.max_length or not any(mask):
                raise InputError(
                    f"expected at most {self._encoder.max_length} tokens with some of them to "
                    f"learn from, got {len(ids)} with {sum(mask)}",
                    where=f"example {example.example_id}",
                    remedy="cut rows with this backbone's own tokenizer and max_length",
                )
            if max(ids) >= embedded:
                raise InputError(
                    f"expected tokens below {embedded:,}, which the model embeds, got {max(ids):,}",
                    where=f"example {example.example_id}",
                    remedy="leave this token out of the text, or train with the model that has it",
                )
            inputs = {"input_ids": np.array(ids, np.int32), "loss_mask": np.array(mask)}
            encoded.append(Encoded(example.example_id, inputs, len(ids), sum(mask)))
        return encoded

    def _padded(self, values: Sequence[NDArray[Any]]) -> torch.Tensor:
        """Return rows of values as (n, longest) int64, padded with zeros on the right.

        Right padding needs no attention mask: causal attention never looks to the right.
        """
        rows = np.zeros((len(values), max(map(len, values))), np.int64)
        for row, its in zip(rows, values, strict=True):
            row[: len(its)] = its
        return torch.from_numpy(rows).to(self.device)

    @contextmanager
    def _precision(self) -> Iterator[None]:
        with ExitStack() as ways:  # which activations that are computed again come to without
            ways.enter_context(torch.autocast("cpu", torch.bfloat16, enabled=self._autocast))
            short = self._encoder.max_length <= _SHORT and not self._computes_twice
            if self._autocast and short and torch.is_grad_enabled():
                ways.enter_context(sdpa_kernel(SDPBackend.MATH))
            yield

    @torch.inference_mode()
    def embed(self, batch: Sequence[Encoded], layers: int | None = None) -> torch.Tensor:
        """Return the position-weighted mean of the hidden states after some layers, or all.

        (n, d) float32 on the CPU, see ``position_weighted_mean`` and ``hidden_states``.
        """
        ids = self._padded([e.inputs["input_ids"] for e in batch])
        with self._precision():
            hidden = hidden_states(self._model, ids, layers)
        return position_weighted_mean(hidden, [e.length for e in batch]).cpu()

    def without_caption(self, encoded: Encoded) -> Encoded:
        """Raise: texts have none."""
        raise BackboneError(
            "expected a picture with a caption, got a text",
            where=f"example {encoded.example_id}",
            remedy="leave finetune.caption_dropout and surrogate.caption_dropout out",
        )

    def draw_noise(self, batch: Sequence[Encoded]) -> None:
        """Return None: there is no noise."""
        del batch

    def losses(
        self,
        batch: Sequence[Encoded],
        fixed: FixedNoise | DrawnNoise | None = None,
        joined: Sequence[int] | None = None,
    ) -> Losses:
        """Return the negative log-likelihood of each token; there is no noise to be fixed.

        Raises:
            BackboneError: examples are joined, and the model does not hold them apart.
        """
        del fixed
        rows = self._rows(batch, joined)
        read = self._head.read(self._whole, rows)
        with self._precision():
            each = token_losses(self._head.logits, read, rows.targets)
        return _placed(each, self._mask(rows, batch))

    def with_untouched(self, batch: Sequence[Encoded]) -> list[Encoded]:
        """Return examples with their ``tangents``, (loss units, d + 1); see ``Backbone``.

        Without them where logits are not the head's alone: they would be a vocabulary wide.
        """
        if not self._head.stands_alone:
            return list(batch)
        found = torch.split(self._before(self._rows(batch)).cpu(), [e.loss_units for e in batch])
        return [replace(e, untouched=its) for e, its in zip(batch, found, strict=True)]

    def _before(self, rows: TokenRows) -> torch.Tensor:
        """Return the tangents of where hidden states are if there is no adapter."""
        with as_untouched(self, self._model):
            read = self._head.read(self._whole, rows)
        with self._precision():
            return tangents(self._head.logits, read)

    def losses_with_divergence(
        self,
        batch: Sequence[Encoded],
        fixed: FixedNoise | DrawnNoise | None = None,
        joined: Sequence[int] | None = None,
        held: Sequence[bool] | None = None,
    ) -> tuple[Losses, Losses]:
        """Return the losses, and KL(backbone || adapted) of each token in nats.

        Raises:
            BackboneError: examples are joined, and the model does not hold them apart.
        """
        del fixed
        rows = self._rows(batch, joined)
        some = list(compress(batch, held)) if held is not None else batch
        known = [e.untouched for e in some if e.untouched is not None]
        if len(known) == len(some):
            before = torch.cat(known).to(self.device)
        else:
            before = self._before(rows if len(some) == len(batch) else self._rows(some))
        after = self._head.read(self._whole, rows)
        at = np.repeat([True] * len(batch) if held is None else held, [e.loss_units for e in batch])
        compared = torch.from_numpy(at).to(self.device)
        with self._precision():
            each = token_losses(self._head.logits, after, rows.targets)
            read, targets = after[compared], rows.targets[compared]
            log_partition = each[compared] + self._head.logit(read, targets)
            moved = divergence(before, read, log_partition)
        mask = self._mask(rows, batch)
        return _placed(each, mask), _placed(moved, mask, compared)

    def _rows(self, batch: Sequence[Encoded], joined: Sequence[int] | None = None) -> TokenRows:
        """Return examples as the model reads them: each in a row, or several joined in one."""
        ids, mask = ([e.inputs[name] for e in batch] for name in ("input_ids", "loss_mask"))
        if joined is None or max(joined) == 1:
            return TokenRows(self._padded(ids), self._padded(mask))
        if not self._holds_apart:
            with as_untouched(self, self._model), self._precision():
                refuse_leaking(self._model, self._path)
            self._holds_apart = True
        places = [np.arange(e.length) for e in batch]
        rows = (self._padded(joined_values(values, joined)) for values in (ids, mask, places))
        if self._in_one_row:
            rows = (values.view(1, -1) for values in rows)
        return TokenRows(*rows)

    def _mask(self, rows: TokenRows, batch: Sequence[Encoded]) -> torch.Tensor:
        """Return which tokens but the first carry loss, (n, t - 1), an example in a row."""
        if rows.positions is None:
            return rows.mask
        return self._padded([e.inputs["loss_mask"] for e in batch])[:, 1:].to(torch.bool)

    @property
    def _whole(self) -> Any:
        """The model, with its adapter if it has one."""
        return self._adapted if self._adapted is not None else self._model

    def generate(
        self,
        prompts: Sequence[str],
        config: SamplingConfig,
        seed: int,
        sizes: Sequence[tuple[int, int]] = (),
    ) -> list[Example]:
        """Return a text for each prompt, see ``Backbone`` and ``write_texts``; none has a size."""
        del sizes
        with self._precision():
            return write_texts(self._whole, self._encoder, prompts, config, seed)

    def opening(self) -> Question:
        """Return what a chat begins with, see ``TextEncoder.opening``."""
        return self._encoder.opening()

    def questions(self, examples: Sequence[Example]) -> list[Question]:
        """Return rows as what is asked and what was expected, see ``TextEncoder.question``."""
        return [self._encoder.question(example) for example in examples]

    def answer(
        self, questions: Sequence[Question], config: SamplingConfig, seeds: Sequence[int]
    ) -> list[Answer]:
        """Return what is written to each question, see ``Backbone`` and ``write_answers``."""
        with self._precision():
            return write_answers(self._whole, self._encoder, questions, config, seeds)

    @contextmanager
    def as_transformers(self) -> Iterator[tuple[Any, Any]]:
        """Give the model with its adapter and the tokenizer, see ``Backbone``."""
        with self._precision():
            yield self._whole, self._encoder.tokenizer

    def attach_adapter(self, config: AdapterConfig, seed: int) -> None:
        """Attach a new LoRA adapter; B is zero, A is drawn from ``seed``."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._adapted = attached(self._model, config, self._path, self._bits)

    def load_adapter(self, folder: Path) -> None:
        """Attach the adapter saved in ``folder``, after checking whose it is."""
        from peft import PeftModel

        check_note(folder, self.fingerprint, self._path)
        refuse_pickled(folder)
        try:
            self._adapted = PeftModel.from_pretrained(self._model, folder, is_trainable=True)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise unreadable("LoRA adapter", folder, error) from error
        self._adapted.eval()

    def save_adapter(self, folder: Path) -> None:
        """Save the adapter as ``PeftModel.from_pretrained`` reads it, and the tokenizer with it."""
        if self._adapted is None:
            raise BackboneError("expected an adapter to save, none is attached", where=self._path)
        for config in self._adapted.peft_config.values():
            # a folder of this machine would be none elsewhere
            config.base_model_name_or_path = hub_id(self._path)
            config.revision = self._revision
            if isinstance(config.target_modules, set):  # else each process has another order
                config.target_modules = sorted(config.target_modules)
        # no embedding is trained, and to find out peft would look for the backbone on the hub
        self._adapted.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
        (folder / "README.md").unlink(
            missing_ok=True
        )  # peft's form to fill in, which names the folder loaded
        self._encoder.tokenizer.save_pretrained(folder)
        write_note(folder, self.fingerprint)

    def adapter_parameters(self) -> dict[str, torch.nn.Parameter]:
        """Return the LoRA factors by name; empty where no adapter is attached."""
        if self._adapted is None:
            return {}
        return {n: p for n, p in self._adapted.named_parameters() if p.requires_grad}

    def adapter_layers(self) -> dict[str, torch.nn.Module]:
        """Return the layers that hold the LoRA factors, by the factors' names."""
        return trained_layers(self._adapted) if self._adapted is not None else {}

    def adapter_disabled(self) -> AbstractContextManager[None]:
        """Compute as the untouched backbone while the context lasts."""
        return disabled(self._adapted) if self._adapted is not None else nullcontext()

    def detach_adapter(self) -> None:
        """Give the layers back as they were."""
        if self._adapted is not None:
            self._model = released(self._adapted).eval()
            self._adapted = None

    def training(self, on: bool) -> None:
        """Switch dropout on or off."""
        self._whole.train(on)

    def checkpoint_gradients(self) -> None:
        """Compute activations again in the backward pass rather than keep them."""
        self._computes_twice = True
        self._model.gradient_checkpointing_enable({"use_reentrant": False})


def _placed(each: torch.Tensor, mask: torch.Tensor, which: torch.Tensor | None = None) -> Losses:
    """Return numbers of the m tokens that carry loss, or of some (m,), as losses of a batch."""
    place = mask if which is None else mask.masked_scatter(mask, which)
    whole = torch.zeros_like(mask, dtype=torch.float32)
    return Losses(each=whole.masked_scatter(place, each), mask=mask)
