"""Settings of a backbone, of what embeds rows, and of what a backbone makes."""

from datetime import date
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from albat_core.pictures import PictureConfig
from albat_core.store.stage import StageConfig


class DiffusionConfig(StageConfig):
    """How a text-to-image backbone is trained and sampled from."""

    picture: PictureConfig = PictureConfig()
    """How pictures are brought to the backbone's size."""
    snr_gamma: float | None = Field(None, gt=0)
    """Min-SNR weighting of noise levels (5 is usual); none: all levels alike."""
    noise_offset: float = Field(0.0, ge=0, le=1)
    """Deviation of the noise that is added to whole channels in training (0.05 to 0.1 is usual)."""
    guidance: float = Field(3.5, ge=1)
    """Guidance that a guidance-distilled backbone (Flux dev) is given in training and scoring."""


class BackboneConfig(StageConfig):
    """The pretrained model that is adapted."""

    kind: Literal["language", "diffusion"] = "language"
    """What it models: `language` for a causal language model, `diffusion` for text to image."""
    path: str = Field(min_length=1)
    """Local folder or hub id of a transformers causal language model or a diffusers pipeline,
    safetensors only."""
    revision: str | None = None
    """Branch, tag or commit on the hub; none for a local folder."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of computing; adapters are kept in float32. `auto`: bfloat16 where the device has
    instructions for it (a GPU, a CPU with AVX-512 BF16 or AMX), else float32."""
    quantization: Literal["4bit", "8bit"] | None = None
    """Weights of a language model that is loaded in 4 bits (NF4, with double quantization: QLoRA,
    arXiv 2305.14314) or 8 (LLM.int8, arXiv 2208.07339), which takes `albat[quantization]`; none: as
    they are saved. Adapters stay in float32, and fit the model in full precision too."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"] = "auto"
    """How a language model's attention is computed, as transformers names it: `eager`, plain
    products; `sdpa`, torch's own; `flash_attention_2`, the package flash-attn, in bfloat16;
    `flex_attention`, compiled by torch. The last two take a GPU. `auto`: what transformers takes,
    which is `sdpa` for most models."""
    max_length: int = Field(512, ge=8, le=131072)
    """Tokens that an example may have, special tokens included; longer rows are cut up. Captions
    are held to the text encoder's own limit instead."""
    chat_date: date = date(2024, 7, 26)
    """What chat templates that write today's date are told it is, so that a row has the same tokens
    on every day. The default is what Llama's templates fall back to."""
    diffusion: DiffusionConfig = DiffusionConfig()
    """For text-to-image backbones only."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless you have read that code."""


class SmallerBackbone(StageConfig):
    """A smaller backbone of the same family, whose surrogate scores in place of the backbone's."""

    path: str | None = Field(None, min_length=1)
    """Local folder or hub id of a language model with the backbone's tokenizer. A surrogate is
    trained on it too, as `surrogate` says; none: the backbone scores all candidates itself."""
    revision: str | None = None
    """Branch, tag or commit on the hub; none for a local folder."""
    quantization: Literal["4bit", "8bit"] | None = None
    """Weights that it is loaded in, see `backbone.quantization`."""
    trust_remote_code: bool = False
    """Run Python code that comes with it. Off unless you have read that code."""
    sample: int = Field(512, ge=32)
    """Candidates, drawn at random, that both score before it is trusted."""
    least_agreement: float = Field(0.8, gt=0, lt=1)
    """Spearman correlation of both's scores from which on it is trusted, in (0, 1): the 95%
    interval has to lie above."""
    fall_back: bool = True
    """Whether the backbone scores all candidates itself where the smaller one is not trusted;
    false: it scores all the same, and the run says that it ranks otherwise."""

    def of(self, backbone: BackboneConfig) -> BackboneConfig:
        """Return its settings as a backbone: those of the run's in all else."""
        names = ("path", "revision", "quantization", "trust_remote_code")
        return backbone.model_copy(update={name: getattr(self, name) for name in names})


class EmbedderConfig(StageConfig):
    """What represents rows as vectors: the backbone, a part of it, or an encoder beside it."""

    layers: int | None = Field(None, ge=1)
    """First layers of a language model that embed alone: half of them take half the time; none:
    all."""
    tokens: int | None = Field(None, ge=1)
    """First tokens of each row that a language model embeds; none: all."""
    encoder: str | None = Field(None, min_length=1)
    """Folder or hub id of an encoder that represents rows in place of the backbone: of pictures one
    of transformers (CLIP, SigLIP, DINO), of texts one of sentence-transformers (install
    `albat[encoders]`)."""

    @field_validator("encoder")
    @classmethod
    def _whole(cls, value: str | None, others: ValidationInfo) -> str | None:
        if value is not None and (others.data.get("layers") or others.data.get("tokens")):
            raise ValueError(
                "an encoder embeds in place of the backbone, of which layers and tokens are a "
                "part: leave them out, or encoder"
            )
        return value


class SamplingConfig(StageConfig):
    """How a backbone makes examples of its own."""

    steps: int = Field(30, ge=1, le=1000)
    """Denoising steps of a diffusion model."""
    guidance: float = Field(5.0, ge=1)
    """Classifier-free guidance of a diffusion model; 1: none."""
    max_new_tokens: int = Field(128, ge=1)
    """Tokens that a language model writes at most."""
    temperature: float = Field(1.0, ge=0)
    """Temperature at which a language model's tokens are drawn; 0: the likeliest each time."""
