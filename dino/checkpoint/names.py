"""Translate parameter names between this package and the official code.

Each table is a list of pairs of names and is read in both directions: a name is matched against one column, and the
other column is filled in. `{i}` and `{j}` stand for a number, `{rest}` for anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache

import torch

from dino.common.text import shorten

Table = tuple[tuple[str, str], ...]

_PLACES = {
    "i": r"\d+",
    "j": r"\d+",
    "rest": r".+",
    "tensor": r"weight|bias",
    "mlp": r"layers\..+",
    "head": r"class|bbox",
    "table": r"relative_position_bias_table",
    "resnet": r"(?:conv1|bn1|layer\d)\..+",
}

OURS_OFFICIAL: Table = (
    ("backbone.{resnet}", "backbone.0.body.{resnet}"),
    ("backbone.{rest}", "backbone.0.{rest}"),
    ("neck.projections.{i}.conv.{rest}", "input_proj.{i}.0.{rest}"),
    ("neck.projections.{i}.norm.{rest}", "input_proj.{i}.1.{rest}"),
    ("encoder.level_embed", "transformer.level_embed"),
    ("encoder.layers.{i}.self_attn.{rest}", "transformer.encoder.layers.{i}.self_attn.{rest}"),
    ("encoder.layers.{i}.attention_norm.{rest}", "transformer.encoder.layers.{i}.norm1.{rest}"),
    ("encoder.layers.{i}.ffn.linear{j}.{rest}", "transformer.encoder.layers.{i}.linear{j}.{rest}"),
    ("encoder.layers.{i}.ffn.norm.{rest}", "transformer.encoder.layers.{i}.norm2.{rest}"),
    ("query_selection.project.{rest}", "transformer.enc_output.{rest}"),
    ("query_selection.norm.{rest}", "transformer.enc_output_norm.{rest}"),
    ("query_selection.class_head.{rest}", "transformer.enc_out_class_embed.{rest}"),
    ("query_selection.box_head.{rest}", "transformer.enc_out_bbox_embed.{rest}"),
    ("query_selection.content.weight", "transformer.tgt_embed.weight"),
    ("query_selection.anchors.weight", "transformer.refpoint_embed.weight"),
    ("denoising.label_embed.weight", "label_enc.weight"),
    ("decoder.layers.{i}.self_attn.{rest}", "transformer.decoder.layers.{i}.self_attn.{rest}"),
    ("decoder.layers.{i}.self_attn_norm.{rest}", "transformer.decoder.layers.{i}.norm2.{rest}"),
    ("decoder.layers.{i}.cross_attn.{rest}", "transformer.decoder.layers.{i}.cross_attn.{rest}"),
    ("decoder.layers.{i}.cross_attn_norm.{rest}", "transformer.decoder.layers.{i}.norm1.{rest}"),
    ("decoder.layers.{i}.ffn.linear{j}.{rest}", "transformer.decoder.layers.{i}.linear{j}.{rest}"),
    ("decoder.layers.{i}.ffn.norm.{rest}", "transformer.decoder.layers.{i}.norm3.{rest}"),
    ("decoder.query_position.{rest}", "transformer.decoder.ref_point_head.{rest}"),
    ("decoder.norm.{rest}", "transformer.decoder.norm.{rest}"),
    # One head for all layers, then heads of their own.
    ("decoder.class_head.{tensor}", "transformer.decoder.class_embed.0.{tensor}"),
    ("decoder.box_head.{mlp}", "transformer.decoder.bbox_embed.0.{mlp}"),
    ("decoder.class_head.{i}.{tensor}", "transformer.decoder.class_embed.{i}.{tensor}"),
    ("decoder.box_head.{i}.{mlp}", "transformer.decoder.bbox_embed.{i}.{mlp}"),
)

HEAD_COPY = re.compile(r"(?:transformer\.decoder\.)?(?P<head>class|bbox)_embed\.(?P<layer>\d+)\.")


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\{(\w+)\\}", lambda m: f"(?P<{m[1]}>{_PLACES[m[1]]})", re.escape(template)))


def rename(name: str, table: Table, *, back: bool = False) -> str | None:
    """Translate a name from the left column to the right, or with `back` from right to left; None if no line fits."""
    for left, right in table:
        source, target = (right, left) if back else (left, right)
        if match := _pattern(source).fullmatch(name):
            return target.format(**match.groupdict())
    return None


def to_official(
    tensors: Mapping[str, torch.Tensor], *, aliases: bool = False, num_decoder_layers: int | None = None
) -> dict[str, torch.Tensor]:
    """Return the same tensors, not copied, under the names of the official code.

    Args:
        tensors: a state dict or gradients, whole or in part, under our names.
        aliases: also add the names that the official code's strict loading requires: the heads once per decoder layer,
            and the norms of unused ConvNeXt stages.
        num_decoder_layers: number of layers for the aliases; by default counted in `tensors`.

    Raises:
        ValueError: a name is not one of ours, or a value is None.
    """
    empty = [name for name, tensor in tensors.items() if tensor is None]
    if empty:
        raise ValueError(f"to_official: every entry must be a tensor, got None for {shorten(empty)}. Leave these out.")
    official = {}
    unknown = []
    for ours, tensor in tensors.items():
        name = rename(ours, OURS_OFFICIAL)
        if name is None:
            unknown.append(ours)
        else:
            official[name] = tensor
    if unknown:
        raise ValueError(f"to_official: not names of this package's models: {shorten(unknown)}")
    if aliases:
        layers = num_decoder_layers or count_layers(official, r"transformer\.decoder\.layers")
        if layers == 0:
            raise ValueError("to_official: no decoder layer among the tensors to count. Pass num_decoder_layers.")
        official.update(_aliases(official, layers))
    return official


def _aliases(official: Mapping[str, torch.Tensor], num_decoder_layers: int) -> dict[str, torch.Tensor]:
    added = {}
    shared = not any(match["layer"] != "0" for match in map(HEAD_COPY.match, official) if match)
    for name, tensor in official.items():
        if match := HEAD_COPY.match(name):
            for layer in range(num_decoder_layers) if shared else [int(match["layer"])]:
                alias = f"{match['head']}_embed.{layer}.{name[match.end() :]}"
                added[alias] = added[f"transformer.decoder.{alias}"] = tensor
    for stage in range(4):
        last = official.get(f"backbone.0.stages.{stage}.0.gamma")
        if last is not None and f"backbone.0.norm{stage}.weight" not in official:
            added[f"backbone.0.norm{stage}.weight"] = torch.ones_like(last)
            added[f"backbone.0.norm{stage}.bias"] = torch.zeros_like(last)
    return added


def canonical(official: str) -> str:
    """Return the name that the tables have for a head with several official names; other names as they are."""
    return HEAD_COPY.sub(r"transformer.decoder.\g<head>_embed.0.", official)


def count_layers(names: Iterable[str], prefix: str) -> int:
    """Return 1 + the highest number after `prefix`, or 0."""
    matches = (re.match(rf"(?:.*\.)?{prefix}\.(\d+)\.", name) for name in names)
    return max((1 + int(match[1]) for match in matches if match), default=0)
