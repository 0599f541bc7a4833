"""Recognise the parameter names of a state dict (official, detrex, mmdetection) and translate them to ours."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from dino.checkpoint.names import HEAD_COPY, OURS_OFFICIAL, Table, canonical, count_layers, rename

# A name with this beginning identifies a layout; the first match counts.
SIGNATURES = {
    "mmdet": r"(bbox_head|memory_trans_fc|dn_query_generator)\.",
    "detrex": r"(transformer\.level_embeds$|neck\.convs\.|backbone\.(stem|res\d)\.)",
    "dino": r"(neck\.projections|query_selection|decoder\.(class|box)_head|denoising)\.",
    "official": r"(transformer|input_proj|label_enc|backbone\.0)\.",
}
# Fields of `ModelConfig` in which the models of a layout differ from the official code's, in all their configurations.
VARIANTS: dict[str, dict[str, Any]] = {
    "detrex": {"shared_heads": False, "position_temperature": 10000.0, "position_offset": -0.5},
    "mmdet": {"shared_heads": False},
}
# Counters, and buffers that follow from the configuration: neither loaded nor missed.
IGNORED = re.compile(r"(.*\.)?(num_batches_tracked|relative_position_index|attn_mask)")

# Merging of 2x2 patches after a stage of Swin.
MERGING = re.compile(r"backbone\.layers\.\d+\.downsample\.")


def layout_of(names: Iterable[str]) -> str | None:
    """Return the key of `SIGNATURES` that fits the names of a state dict, or None."""
    names = list(names)
    for layout, signature in SIGNATURES.items():
        if any(re.match(signature, name) for name in names):
            return layout
    return None


def to_ours(layout: str, names: Iterable[str], *, shared_heads: bool = True) -> tuple[dict[str, list[str]], list[str]]:
    """Translate the names of a state dict to ours.

    Args:
        layout: one of `SIGNATURES`.
        names: the names of a state dict in that layout.
        shared_heads: whether our model has one head for all decoder layers.

    Returns:
        The given names for each of ours, and the given names without a counterpart. A head has several given names if
        it is stored under two names or once per decoder layer; the last layer's comes last.
    """
    names = list(names)
    table = None
    if layout in ("detrex", "mmdet"):
        table = official_table(layout, count_layers(names, r"decoder\.layers"), count_layers(names, r"neck\.convs"))
    found: dict[str, list[tuple[int, str]]] = {}
    unknown = []
    for name in names:
        official = name if table is None else rename(name, table, back=True)
        ours = name
        layer = 0
        if layout != "dino":
            copy = HEAD_COPY.match(official or "")
            layer = int(copy["layer"]) if copy else 0
            ours = rename(canonical(official), OURS_OFFICIAL, back=True) if official else None
            if copy and ours and not shared_heads:
                ours = re.sub(r"(decoder\.\w+_head)\.", rf"\1.{layer}.", ours)
        if ours is None:
            unknown.append(name)
        else:
            found.setdefault(ours, []).append((layer, name))
    return {ours: [name for _, name in sorted(copies)] for ours, copies in found.items()}, unknown


def official_table(layout: str, num_decoder_layers: int, num_backbone_levels: int) -> Table:
    """Return the table of official names and those of "detrex" or "mmdet".

    Args:
        layout: one of the two.
        num_decoder_layers: the number of the encoder's head, which both store as that of one more decoder layer.
        num_backbone_levels: the number of the first extra level of the neck, which both count from 0.
    """
    encoder_head = num_decoder_layers
    if layout == "detrex":
        stem, norm, ffn, attention = "transformer.", "norm", "ffns.0", ("attentions.0", "attentions.0", "attentions.1")
        backbone = (
            ("backbone.0.body.bn1.{rest}", "backbone.stem.conv1.norm.{rest}"),
            ("backbone.0.body.conv1.{rest}", "backbone.stem.conv1.{rest}"),
            *(line for stage in (1, 2, 3, 4) for line in _detectron_stage(stage)),
            ("backbone.0.{rest}", "backbone.{rest}"),
        )
        heads = (
            ("transformer.enc_out_{head}_embed.{rest}", f"transformer.decoder.{{head}}_embed.{encoder_head}.{{rest}}"),
            ("transformer.enc_out_{head}_embed.{rest}", f"{{head}}_embed.{encoder_head}.{{rest}}"),
            ("transformer.decoder.{head}_embed.{i}.{rest}", "transformer.decoder.{head}_embed.{i}.{rest}"),
            ("{head}_embed.{i}.{rest}", "{head}_embed.{i}.{rest}"),
            ("label_enc.weight", "label_enc.weight"),
            ("transformer.tgt_embed.weight", "transformer.tgt_embed.weight"),
            ("transformer.enc_output.{rest}", "transformer.enc_output.{rest}"),
            ("transformer.enc_output_norm.{rest}", "transformer.enc_output_norm.{rest}"),
            ("transformer.level_embed", "transformer.level_embeds"),
        )
    else:
        stem, norm, ffn, attention = "", "gn", "ffn", ("self_attn", "self_attn", "cross_attn")
        block, theirs = "backbone.0.layers.{i}.blocks.{j}", "backbone.stages.{i}.blocks.{j}"
        backbone = (
            ("backbone.0.body.{resnet}", "backbone.{resnet}"),
            ("backbone.0.patch_embed.proj.{rest}", "backbone.patch_embed.projection.{rest}"),
            (f"{block}.attn.{{rest}}", f"{theirs}.attn.w_msa.{{rest}}"),
            (f"{block}.mlp.fc1.{{rest}}", f"{theirs}.ffn.layers.0.0.{{rest}}"),
            (f"{block}.mlp.fc2.{{rest}}", f"{theirs}.ffn.layers.1.{{rest}}"),
            ("backbone.0.layers.{i}.{rest}", "backbone.stages.{i}.{rest}"),
            ("backbone.0.{rest}", "backbone.{rest}"),
        )
        heads = (
            ("transformer.enc_out_class_embed.{rest}", f"bbox_head.cls_branches.{encoder_head}.{{rest}}"),
            ("transformer.decoder.class_embed.{i}.{rest}", "bbox_head.cls_branches.{i}.{rest}"),
            *(
                line
                for layer in (0, 1, 2)  # a ReLU between any two
                for line in (
                    (f"transformer.enc_out_bbox_embed.layers.{layer}.{{rest}}",
                     f"bbox_head.reg_branches.{encoder_head}.{2 * layer}.{{rest}}"),
                    (f"transformer.decoder.bbox_embed.{{i}}.layers.{layer}.{{rest}}",
                     f"bbox_head.reg_branches.{{i}}.{2 * layer}.{{rest}}"),
                )
            ),
            ("label_enc.weight", "dn_query_generator.label_embedding.weight"),
            ("transformer.tgt_embed.weight", "query_embedding.weight"),
            ("transformer.enc_output.{rest}", "memory_trans_fc.{rest}"),
            ("transformer.enc_output_norm.{rest}", "memory_trans_norm.{rest}"),
            ("transformer.level_embed", "level_embed"),
        )  # fmt: skip
    encoder, decoder = f"{stem}encoder.layers.{{i}}", f"{stem}decoder.layers.{{i}}"
    return (
        *heads,
        *(
            line
            for extra in range(4)
            for line in (
                (f"input_proj.{num_backbone_levels + extra}.0.{{rest}}", f"neck.extra_convs.{extra}.conv.{{rest}}"),
                (f"input_proj.{num_backbone_levels + extra}.1.{{rest}}", f"neck.extra_convs.{extra}.{norm}.{{rest}}"),
            )
        ),
        ("input_proj.{i}.0.{rest}", "neck.convs.{i}.conv.{rest}"),
        ("input_proj.{i}.1.{rest}", f"neck.convs.{{i}}.{norm}.{{rest}}"),
        ("transformer.encoder.layers.{i}.self_attn.{rest}", f"{encoder}.{attention[0]}.{{rest}}"),
        ("transformer.decoder.layers.{i}.self_attn.{rest}", f"{decoder}.{attention[1]}.attn.{{rest}}"),
        ("transformer.decoder.layers.{i}.cross_attn.{rest}", f"{decoder}.{attention[2]}.{{rest}}"),
        ("transformer.encoder.layers.{i}.norm1.{rest}", f"{encoder}.norms.0.{{rest}}"),
        ("transformer.encoder.layers.{i}.norm2.{rest}", f"{encoder}.norms.1.{{rest}}"),
        # In the official code norm2, not norm1, follows self-attention.
        ("transformer.decoder.layers.{i}.norm2.{rest}", f"{decoder}.norms.0.{{rest}}"),
        ("transformer.decoder.layers.{i}.norm1.{rest}", f"{decoder}.norms.1.{{rest}}"),
        ("transformer.decoder.layers.{i}.norm3.{rest}", f"{decoder}.norms.2.{{rest}}"),
        ("transformer.encoder.layers.{i}.linear1.{rest}", f"{encoder}.{ffn}.layers.0.0.{{rest}}"),
        ("transformer.encoder.layers.{i}.linear2.{rest}", f"{encoder}.{ffn}.layers.1.{{rest}}"),
        ("transformer.decoder.layers.{i}.linear1.{rest}", f"{decoder}.{ffn}.layers.0.0.{{rest}}"),
        ("transformer.decoder.layers.{i}.linear2.{rest}", f"{decoder}.{ffn}.layers.1.{{rest}}"),
        ("transformer.decoder.ref_point_head.{rest}", f"{stem}decoder.ref_point_head.{{rest}}"),
        ("transformer.decoder.norm.{rest}", f"{stem}decoder.norm.{{rest}}"),
        *backbone,
    )


def _detectron_stage(stage: int) -> Table:
    ours, theirs = f"backbone.0.body.layer{stage}.{{i}}", f"backbone.res{stage + 1}.{{i}}"
    return (
        (f"{ours}.bn{{j}}.{{rest}}", f"{theirs}.conv{{j}}.norm.{{rest}}"),
        (f"{ours}.conv{{j}}.{{rest}}", f"{theirs}.conv{{j}}.{{rest}}"),
        (f"{ours}.downsample.1.{{rest}}", f"{theirs}.shortcut.norm.{{rest}}"),
        (f"{ours}.downsample.0.{{rest}}", f"{theirs}.shortcut.{{rest}}"),
    )


def official_merging(tensor: Tensor) -> Tensor:
    """Return a tensor of mmdetection's `MERGING`, [..., C * 4], in the official order of inputs, [..., 4 * C].

    mmdetection has the 2x2 patches innermost and row by row; officially they are outermost and column by column.
    """
    patches = tensor.unflatten(-1, (-1, 2, 2))
    return patches.movedim(-3, -1).transpose(-3, -2).flatten(-3)
