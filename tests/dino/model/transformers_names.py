"""Names of transformers' Swin and ConvNeXt, whose models are a third implementation to compare with."""

from __future__ import annotations

import torch
from torch import Tensor

from dino.checkpoint.names import Table, rename

# Names of the official backbones, which are ours, beside those of transformers 5.
OFFICIAL_TRANSFORMERS: Table = (
    ("patch_embed.proj.{rest}", "embeddings.patch_embeddings.projection.{rest}"),
    ("patch_embed.norm.{rest}", "embeddings.norm.{rest}"),
    ("layers.{i}.blocks.{j}.norm1.{rest}", "encoder.layers.{i}.blocks.{j}.layernorm_before.{rest}"),
    ("layers.{i}.blocks.{j}.norm2.{rest}", "encoder.layers.{i}.blocks.{j}.layernorm_after.{rest}"),
    ("layers.{i}.blocks.{j}.attn.query.{rest}", "encoder.layers.{i}.blocks.{j}.attention.q_proj.{rest}"),
    ("layers.{i}.blocks.{j}.attn.key.{rest}", "encoder.layers.{i}.blocks.{j}.attention.k_proj.{rest}"),
    ("layers.{i}.blocks.{j}.attn.value.{rest}", "encoder.layers.{i}.blocks.{j}.attention.v_proj.{rest}"),
    ("layers.{i}.blocks.{j}.attn.proj.{rest}", "encoder.layers.{i}.blocks.{j}.attention.o_proj.{rest}"),
    ("layers.{i}.blocks.{j}.mlp.{rest}", "encoder.layers.{i}.blocks.{j}.mlp.{rest}"),
    ("layers.{i}.blocks.{j}.attn.{table}", "encoder.layers.{i}.blocks.{j}.attention.relative_position_bias.{table}"),
    ("layers.{i}.downsample.{rest}", "encoder.layers.{i}.downsample.{rest}"),
    ("downsample_layers.0.0.{rest}", "embeddings.patch_embeddings.{rest}"),
    ("downsample_layers.0.1.{rest}", "embeddings.layernorm.{rest}"),
    ("downsample_layers.{i}.{j}.{rest}", "encoder.stages.{i}.downsampling_layer.{j}.{rest}"),
    ("stages.{i}.{j}.norm.{rest}", "encoder.stages.{i}.layers.{j}.layernorm.{rest}"),
    ("stages.{i}.{j}.gamma", "encoder.stages.{i}.layers.{j}.layer_scale_parameter"),
    ("stages.{i}.{j}.{rest}", "encoder.stages.{i}.layers.{j}.{rest}"),
    ("norm.{rest}", "layernorm.{rest}"),
    *((f"norm{stage}.{{rest}}", f"hidden_states_norms.stage{stage + 1}.{{rest}}") for stage in range(4)),
)  # fmt: skip


def official_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a transformers backbone under official names, with query, key and value in one tensor."""
    tensors = {name.removeprefix("swin.").removeprefix("convnext."): tensor for name, tensor in tensors.items()}
    ours = {rename(name, OFFICIAL_TRANSFORMERS, back=True) or name: tensor for name, tensor in tensors.items()}
    for query in [name for name in ours if ".attn.query." in name]:
        parts = [query.replace("query", part) for part in ("query", "key", "value")]
        ours[query.replace("query", "qkv")] = torch.cat([ours.pop(part) for part in parts])
    return ours
