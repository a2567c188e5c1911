"""Text-to-image checkpoints in one file for tests, with the names of their authors' own code."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusion3Pipeline, StableDiffusionPipeline
from safetensors.torch import save_file

BLOCK = 2  # layers of a block of the toys' UNets, resampling included
RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
AROUND = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}

SD3_NAMES = (
    ("pos_embed.pos_embed", "pos_embed"),
    ("pos_embed.proj", "x_embedder.proj"),
    ("time_text_embed.timestep_embedder.linear_1", "t_embedder.mlp.0"),
    ("time_text_embed.timestep_embedder.linear_2", "t_embedder.mlp.2"),
    ("time_text_embed.text_embedder.linear_1", "y_embedder.mlp.0"),
    ("time_text_embed.text_embedder.linear_2", "y_embedder.mlp.2"),
    ("norm_out.linear", "final_layer.adaLN_modulation.1"),
    ("attn.to_add_out", "context_block.attn.proj"),
    ("attn.add_q_proj", "context_block.attn.qkv"),
    ("attn.norm_added_", "context_block.attn.ln_"),
    ("ff_context.net.0.proj", "context_block.mlp.fc1"),
    ("ff_context.net.2", "context_block.mlp.fc2"),
    ("norm1_context.linear", "context_block.adaLN_modulation.1"),
    ("norm1.linear", "x_block.adaLN_modulation.1"),
    ("ff.net.0.proj", "x_block.mlp.fc1"),
    ("ff.net.2", "x_block.mlp.fc2"),
    (".attn.to_out.0", ".x_block.attn.proj"),
    (".attn2.to_out.0", ".x_block.attn2.proj"),
    (".attn.to_q", ".x_block.attn.qkv"),
    (".attn2.to_q", ".x_block.attn2.qkv"),
    (".attn.norm_", ".x_block.attn.ln_"),
    (".attn2.norm_", ".x_block.attn2.ln_"),
    ("transformer_blocks", "joint_blocks"),
)


def _unet_name(key: str) -> str:
    """The name that a UNet's weight has in Stability's own code."""
    module, _, end = key.rpartition(".")
    if module in AROUND:
        return f"{AROUND[module]}.{end}"
    side, *rest = key.split(".")
    if side == "mid_block":
        place = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}[".".join(rest[:2])]
        kind, inner, prefix = rest[0], rest[2:], f"middle_block.{place}"
    else:
        number, kind, layer, *inner = rest
        down = side == "down_blocks"
        at = int(number) * BLOCK + int(layer) + down
        if kind == "downsamplers":
            return f"input_blocks.{at + 1}.0.op.{end}"
        if kind == "upsamplers":  # the first block of the way up has attention before it
            return f"output_blocks.{at + 1}.2.conv.{end}"
        prefix = f"{'input' if down else 'output'}_blocks.{at}.{int(kind == 'attentions')}"
    if kind == "attentions":
        return f"{prefix}.{'.'.join(inner)}"
    return f"{prefix}.{RESNET['.'.join(inner[:-1])]}.{end}"


def _vae_name(key: str, blocks: int) -> str:
    """The name that an autoencoder's weight has in Stability's own code."""
    if "mid_block.attentions.0" in key:
        before, _, after = key.partition("mid_block.attentions.0.")
        inner, _, end = after.rpartition(".")
        return f"{before}mid.attn_1.{ATTENTION[inner]}.{end}"
    for n in range(blocks):
        key = key.replace(f"down_blocks.{n}.", f"down.{n}.")
        key = key.replace(f"up_blocks.{n}.", f"up.{blocks - 1 - n}.")
    for ours, theirs in (
        ("mid_block.resnets.0", "mid.block_1"),
        ("mid_block.resnets.1", "mid.block_2"),
        ("downsamplers.0", "downsample"),
        ("upsamplers.0", "upsample"),
        ("resnets", "block"),
        ("conv_norm_out", "norm_out"),
        ("conv_shortcut", "nin_shortcut"),
    ):
        key = key.replace(ours, theirs)
    return key


def _autoencoder(vae: AutoencoderKL) -> dict[str, torch.Tensor]:
    """Return an autoencoder's weights; its attention is of convolutions there."""
    found = {}
    for key, value in vae.state_dict().items():
        name = _vae_name(key, len(vae.config.block_out_channels))
        convolved = "attentions" in key and value.ndim == 2
        found[f"first_stage_model.{name}"] = value[..., None, None] if convolved else value
    return found


def _save(weights: dict[str, torch.Tensor], file: Path) -> Path:
    save_file({key: value.contiguous() for key, value in weights.items()}, file)
    return file


def write_stable_diffusion(
    folder: Path, file: Path, parts: tuple[str, ...] = ("vae", "text")
) -> Path:
    """Write a Stable Diffusion 1.x as kohya's scripts and WebUI have it."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    weights = _autoencoder(pipeline.vae) if "vae" in parts else {}
    for key, value in pipeline.unet.state_dict().items():
        weights[f"model.diffusion_model.{_unet_name(key)}"] = value
    for key, value in pipeline.text_encoder.state_dict().items():
        if "text" in parts or "position" in key:
            weights[f"cond_stage_model.transformer.text_model.{key}"] = value
    return _save(weights, file)


def write_stable_diffusion_3(folder: Path, file: Path) -> Path:
    """Write a Stable Diffusion 3.5 as it is published: without text encoders."""
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder)
    theirs = dict(pipeline.transformer.state_dict())
    last = pipeline.transformer.config.num_layers - 1
    for module in ("norm_out.linear", f"transformer_blocks.{last}.norm1_context.linear"):
        for end in ("weight", "bias"):  # scale and shift, there shift and scale
            scale, shift = theirs[f"{module}.{end}"].chunk(2)
            theirs[f"{module}.{end}"] = torch.cat([shift, scale])
    for key in [k for k in theirs if "to_q." in k or "add_q" in k]:  # there one layer
        qkv = [key, key.replace("_q", "_k"), key.replace("_q", "_v")]
        theirs[key] = torch.cat([theirs.pop(each) for each in qkv])
    weights = _autoencoder(pipeline.vae)
    for key, value in theirs.items():
        name = f"final_layer.linear.{key.rpartition('.')[2]}" if key.startswith("proj_out") else key
        for ours, own in SD3_NAMES:
            name = name.replace(ours, own)
        weights[f"model.diffusion_model.{name}"] = value
    return _save(weights, file)
