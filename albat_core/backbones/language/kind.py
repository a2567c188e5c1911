"""What is known of language models before one is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

from albat_core.backbones.adapters import AdapterConfig
from albat_core.backbones.base import Backbone, Embedder
from albat_core.backbones.config import BackboneConfig, EmbedderConfig
from albat_core.backbones.folder import backbone_folder, refuse_incomplete
from albat_core.backbones.kind import Kind, RowLimit, Splitter
from albat_core.errors import BackboneError
from albat_core.records.examples import Example

if TYPE_CHECKING:
    import torch

    from albat_core.backbones.language.model import LanguageBackbone


class LanguageKind(Kind):
    """Causal language models of transformers."""

    precomputes: ClassVar[bool] = False  # tokens are computed as fast as they are read
    loss_unit: ClassVar[str] = "nats per token"
    library: ClassVar[str] = "peft"
    needs_prompts: ClassVar[bool] = False
    writes_answers: ClassVar[bool] = True
    draws_pictures: ClassVar[bool] = False
    told_by_words: ClassVar[bool] = True
    usual_penalty: ClassVar[float] = 0.3
    highest_alpha: ClassVar[float] = 0.9

    def identity(self, config: BackboneConfig) -> dict[str, Any]:
        """See ``Kind``."""
        quantized = {"quantization": config.quantization} if config.quantization else {}
        attention = {} if config.attention == "auto" else {"attention": config.attention}
        return self.input_identity(config) | quantized | attention

    def input_identity(self, config: BackboneConfig) -> dict[str, Any]:
        """See ``Kind``; the date that templates are told, where it is another than the default."""
        day, usual = config.chat_date, BackboneConfig.model_fields["chat_date"].default
        told = {} if day == usual else {"chat_date": day.isoformat()}
        return {"max_length": config.max_length, **told}

    def loading(self, config: BackboneConfig, name: str) -> str:
        """See ``Kind``."""
        code = ", trust_remote_code=True" if config.trust_remote_code else ""
        return f"""from peft import PeftModel
from transformers import AutoModelForCausalLM

backbone = AutoModelForCausalLM.from_pretrained({name}{code})
model = PeftModel.from_pretrained(backbone, "path/to/this/folder")"""

    def splitter(self, config: BackboneConfig) -> Splitter:
        """See ``Kind``: pieces of at most ``max_length`` tokens."""
        from albat_core.backbones.language.tokens import TextEncoder

        return TextEncoder(config)

    def limit(self, config: BackboneConfig) -> RowLimit:
        """See ``Kind``: ``max_length``."""
        return RowLimit(
            f"{config.max_length} tokens (backbone.max_length)",
            "shorten it, raise backbone.max_length",
        )

    def trap(self, config: BackboneConfig) -> Callable[[Example], str | None]:
        """See ``Kind``: a token may reach from a prompt into its answer."""
        from albat_core.backbones.language.tokens import TextEncoder

        return TextEncoder(config).trap

    def load(
        self,
        config: BackboneConfig,
        device: torch.device,
        dtype: torch.dtype,
        fingerprint: str,
        share: bool = False,
    ) -> Backbone:
        """See ``Kind``."""
        from albat_core.backbones.language.model import LanguageBackbone

        self.check(config)
        return LanguageBackbone(config, device, dtype, fingerprint, share)

    def check(self, config: BackboneConfig) -> None:
        """See ``Kind``: files are whole, tokenizer, model and ``max_length`` fit together.

        Raises:
            BackboneError: they do not.
            MissingDependencyError: what quantizes its weights, or computes its attention, is not
                installed.
        """
        from albat_core.backbones.language.attention import check_attention
        from albat_core.backbones.language.description import described, hollow
        from albat_core.backbones.language.quantization import check_quantization
        from albat_core.backbones.language.tokens import TextEncoder

        check_quantization(config)
        refuse_incomplete(backbone_folder(config))
        encoder = TextEncoder(config)
        text_config = described(config).get_text_config()
        vocabulary = text_config.vocab_size
        added = encoder.tokenizer.added_tokens_decoder  # of pictures for one, which no text has
        tokens = max(set(encoder.tokenizer.get_vocab().values()) - added.keys(), default=-1) + 1
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
        if config.attention != "auto":
            check_attention(config, hollow(config))

    def check_embedder(self, config: BackboneConfig, embedder: EmbedderConfig) -> None:
        """See ``Kind``."""
        from albat_core.backbones.language.description import hollow
        from albat_core.backbones.language.embedding import decoder_layers
        from albat_core.backbones.language.sentences import check_sentence_encoder

        if embedder.encoder is not None:
            check_sentence_encoder(embedder.encoder)
        elif embedder.layers is not None:
            decoder_layers(hollow(config), embedder.layers)

    def embedder(self, backbone: Backbone, embedder: EmbedderConfig) -> Embedder:
        """See ``Kind``."""
        from albat_core.backbones.language.partial import PartialEmbedder

        if embedder.layers is None and embedder.tokens is None:
            return backbone
        language = cast("LanguageBackbone", backbone)
        return PartialEmbedder(language, embedder.layers, embedder.tokens)

    def load_encoder(self, path: str, device: torch.device, dtype: torch.dtype) -> Embedder:
        """See ``Kind``: of sentence-transformers."""
        from albat_core.backbones.language.sentences import load_sentence_encoder

        return load_sentence_encoder(path, device, dtype)

    def encoder_identity(self, dtype: str) -> dict[str, Any]:
        """See ``Kind``: the precision, which is the backbone's."""
        return {"dtype": dtype}

    def check_smaller(
        self, config: BackboneConfig, other: BackboneConfig, rows: Sequence[Example]
    ) -> None:
        """See ``Kind``."""
        from albat_core.backbones.language.vocabulary import refuse_other_tokens

        refuse_other_tokens(config, other, rows)

    def check_prompts(self, config: BackboneConfig, prompts: Sequence[str]) -> None:
        """See ``Kind``; a prompt leaves room to write, and an empty one has a token to begin with.

        Raises:
            InputError: a prompt is too long.
            BackboneError: one is empty, and no token is known to begin with.
        """
        from albat_core.backbones.language.tokens import TextEncoder

        TextEncoder(config).beginnings(prompts)

    def check_chat(self, config: BackboneConfig) -> None:
        """See ``Kind``."""
        from albat_core.backbones.language.tokens import TextEncoder

        TextEncoder(config).opening()

    def check_adapter(self, config: BackboneConfig, adapter: AdapterConfig) -> None:
        """See ``Kind``."""
        from albat_core.backbones.language.adapter import attached
        from albat_core.backbones.language.description import hollow
        from albat_core.backbones.language.quantization import bits_of

        attached(hollow(config), adapter, config.path, bits_of(config))

    def check_packing(self, config: BackboneConfig) -> None:
        """See ``Kind``."""
        from albat_core.backbones.language.description import hollow
        from albat_core.backbones.language.packing import refuse_mixing

        refuse_mixing(hollow(config), config.path)
