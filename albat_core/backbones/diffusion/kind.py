"""What is known of text-to-image pipelines before one is loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from albat_core.backbones.adapters import AdapterConfig
from albat_core.backbones.base import Backbone, Embedder
from albat_core.backbones.config import BackboneConfig, EmbedderConfig
from albat_core.backbones.folder import backbone_folder, refuse_incomplete
from albat_core.backbones.kind import Kind, RowLimit, Splitter
from albat_core.errors import BackboneError
from albat_core.records.examples import Example

if TYPE_CHECKING:
    import torch

    from albat_core.backbones.diffusion.captions import CaptionFitter


class DiffusionKind(Kind):
    """Text-to-image pipelines of diffusers."""

    precomputes: ClassVar[bool] = True
    loss_unit: ClassVar[str] = "squared error per latent value"
    library: ClassVar[str] = "diffusers"
    needs_prompts: ClassVar[bool] = True
    writes_answers: ClassVar[bool] = False
    draws_pictures: ClassVar[bool] = True
    told_by_words: ClassVar[bool] = False
    usual_penalty: ClassVar[float] = 0.0
    highest_alpha: ClassVar[float] = 0.5

    def identity(self, config: BackboneConfig) -> dict[str, Any]:
        """See ``Kind``."""
        return {"settings": config.diffusion.settings().named}

    def reading_identity(self, config: BackboneConfig) -> dict[str, Any]:
        """See ``Kind``: no loss is taken, so what weighs errors and adds noise does not matter."""
        of_losses = {"snr_gamma", "noise_offset"}
        settings = config.diffusion.settings(without=of_losses).named
        return {"settings": settings, "frames": "none"}  # which embeddings had once

    def input_identity(self, config: BackboneConfig) -> dict[str, Any]:
        """See ``Kind``."""
        return {"picture": config.diffusion.picture.settings().named}

    def ill_suited(self, config: BackboneConfig) -> str | None:
        """See ``Kind``: a size of pictures that is far from the one it draws by default."""
        from albat_core.backbones.diffusion.families import find_family, usual_side

        folder = backbone_folder(config)
        usual = usual_side(find_family(folder), folder)
        height, width = config.diffusion.picture.size
        if usual is None or usual / 1.5 < (height * width) ** 0.5 < usual * 1.5:
            return None
        return (
            f"backbone.diffusion.picture.resolution: {height} x {width}, the backbone draws "
            f"{usual} x {usual}: far from that it knows little of how pictures look"
        )

    def loading(self, config: BackboneConfig, name: str) -> str:
        """See ``Kind``; diffusers is told the weights' variant, and what was saved without."""
        from albat_core.backbones.diffusion.families import find_family
        from albat_core.backbones.diffusion.families.base import left_out
        from albat_core.backbones.diffusion.loading import variant_of

        folder = backbone_folder(config)
        absent = "".join(f", {name}=None" for name in left_out(folder, find_family(folder)))
        variant = f", variant={its!r}" if (its := variant_of(folder)) else ""
        return f"""from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained({name}{variant}{absent})
pipeline.load_lora_weights("path/to/this/folder")  # kohya.safetensors is for WebUI and ComfyUI"""

    def splitter(self, config: BackboneConfig) -> Splitter:
        """See ``Kind``: brings pictures to the backbone's size and captions to its length."""
        from albat_core.backbones.diffusion.captions import RowPreparation

        return RowPreparation(_captions(config), config)

    def limit(self, config: BackboneConfig) -> RowLimit:
        """See ``Kind``: what the text encoder reads of a caption."""
        return RowLimit(
            f"{_captions(config).longest} tokens, as much as the text encoder reads of a caption",
            "shorten the caption",
        )

    def trap(self, config: BackboneConfig) -> Callable[[Example], str | None]:
        """See ``Kind``: there is none."""
        del config
        return lambda _: None

    def load(
        self,
        config: BackboneConfig,
        device: torch.device,
        dtype: torch.dtype,
        fingerprint: str,
        share: bool = False,
    ) -> Backbone:
        """See ``Kind``."""
        from albat_core.backbones.diffusion.model import DiffusionBackbone

        self.check(config)
        return DiffusionBackbone(config, device, dtype, fingerprint, share)

    def check(self, config: BackboneConfig) -> None:
        """See ``Kind``: files are whole, the family known, and pictures have a size that fits."""
        from albat_core.backbones.diffusion.families import find_family, refuse_size
        from albat_core.backbones.diffusion.loading import check_schedule

        if config.quantization:
            raise BackboneError(
                f"expected a language model to quantize to {config.quantization}, got a pipeline",
                where=config.path,
                remedy="leave backbone.quantization out",
            )
        if config.attention != "auto":
            raise BackboneError(
                f"expected a language model to compute attention by {config.attention}, got a "
                "pipeline, whose attention diffusers chooses",
                where=config.path,
                remedy="leave backbone.attention out",
            )
        folder = backbone_folder(config)
        refuse_incomplete(folder)
        refuse_size(find_family(folder), folder, config.diffusion.picture, config.path)
        check_schedule(config)
        _captions(config)

    def check_embedder(self, config: BackboneConfig, embedder: EmbedderConfig) -> None:
        """See ``Kind``."""
        from albat_core.backbones.vision import check_encoder

        if embedder.encoder is not None:
            check_encoder(embedder.encoder)
        _refuse_part(embedder)

    def embedder(self, backbone: Backbone, embedder: EmbedderConfig) -> Embedder:
        """See ``Kind``: always the whole."""
        _refuse_part(embedder)
        return backbone

    def load_encoder(self, path: str, device: torch.device, dtype: torch.dtype) -> Embedder:
        """See ``Kind``: of transformers, in float32."""
        from albat_core.backbones.vision import load_vision_encoder

        del dtype
        return load_vision_encoder(path, device)

    def encoder_identity(self, dtype: str) -> dict[str, Any]:
        """See ``Kind``: nothing."""
        del dtype
        return {}

    def check_smaller(
        self, config: BackboneConfig, other: BackboneConfig, rows: Sequence[Example]
    ) -> None:
        """See ``Kind``: none may, pictures have other latents in each."""
        del other, rows
        raise BackboneError(
            "expected a language model, for which a smaller one of its tokenizer can score; this "
            "backbone makes pictures",
            where=config.path,
            remedy="leave scoring.smaller out",
        )

    def check_prompts(self, config: BackboneConfig, prompts: Sequence[str]) -> None:
        """See ``Kind``."""
        _captions(config).refuse_long(prompts)

    def check_chat(self, config: BackboneConfig) -> None:
        """See ``Kind``."""
        raise BackboneError(
            "expected a backbone that writes chats, got one that draws pictures",
            where=config.path,
            remedy="give generated.prompts",
        )

    def check_adapter(self, config: BackboneConfig, adapter: AdapterConfig) -> None:
        """See ``Kind``."""
        from albat_core.backbones.diffusion.adapter import PipelineAdapter
        from albat_core.backbones.diffusion.loading import load_hollow

        # text encoders have the same targets always
        of_denoiser = adapter.model_copy(update={"text_encoder": False})
        PipelineAdapter(load_hollow(config), config.path).attach(of_denoiser, seed=0)

    def check_packing(self, config: BackboneConfig) -> None:
        """See ``Kind``: pictures are of one size."""
        raise BackboneError(
            "expected a language model, whose rows are of many lengths; this backbone makes "
            "pictures, of which none is padded",
            where=config.path,
            remedy="leave packing out",
        )


def _refuse_part(embedder: EmbedderConfig) -> None:
    part = {"layers": embedder.layers, "tokens": embedder.tokens}
    if named := [f"embedding.{n}: {value}" for n, value in part.items() if value is not None]:
        raise BackboneError(
            "expected a language model, of which first layers or tokens can embed alone; this "
            "backbone makes pictures",
            where=", ".join(named),
            remedy="leave it out, or name an image encoder (embedding.encoder)",
        )


def _captions(config: BackboneConfig) -> CaptionFitter:
    from albat_core.backbones.diffusion.captions import CaptionFitter
    from albat_core.backbones.diffusion.families import find_family

    folder = backbone_folder(config)
    return CaptionFitter(folder, find_family(folder))
