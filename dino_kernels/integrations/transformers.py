"""The deformable attention of Hugging Face `transformers` models, replaced in one model:

>>> from dino_kernels.integrations import transformers as fast
>>> names = fast.replace(model)  # doctest: +SKIP
>>> fast.restore(model)  # doctest: +SKIP

The class of each attention module becomes a subclass of its class with another forward; parameters, their names, hooks
and position in the model are unchanged. So checkpoints, optimisers, `isinstance` checks and `output_attentions=True`
work as before, and the model can be pickled and deep-copied. Nothing global changes: other models of the process are
unaffected.

Raw offsets and logits are passed to `fused_ms_deform_attn`, which does not store sampling locations. The attention
weights, which these modules always return, cost one additional softmax, and have a gradient if they are still in use
when it is computed. Positions are float32 in 16-bit models too,
where transformers rounds them to 16 bits.

Supported are the classes in `CONVENTIONS`, two of which are in the packages rfdetr and detrex. A module with
`method="discrete"` (RT-DETRv2, D-FINE) samples the nearest pixel, which is another operation, and is not replaced.
"""

from __future__ import annotations

import functools
from typing import Any, cast

from torch import Tensor, nn

from dino_kernels.integrations.returned_weights import ReturnedWeights
from dino_kernels.ops._core.dispatch import ops
from dino_kernels.ops.fused_ms_deform_attn import fused_ms_deform_attn


class _Fused(nn.Module):
    """The forward of DeformableDetr's attention module; `attention_mask` is True where a row is valid."""

    replaced_class: type  # set on the class
    dino_kernels_backend: str
    # Attributes of transformers' modules.
    n_heads: int
    n_levels: int
    n_points: int
    sampling_offsets: nn.Module
    attention_weights: nn.Module
    value_proj: nn.Module
    output_proj: nn.Module

    def forward(
        self,
        hidden_states: Tensor,  # [B, Q, C]
        attention_mask: Tensor | None = None,  # [B, S]
        *,
        encoder_hidden_states: Tensor,  # [B, S, C]
        reference_points: Tensor,  # [B, Q, L or 1, 2 or 4]
        position_embeddings: Tensor | None = None,  # [B, Q, C]
        spatial_shapes: Any = None,  # [L, 2] (H, W)
        spatial_shapes_list: Any = None,  # as a list, which needs no copy from the device
        **unused: Any,
    ) -> tuple[Tensor, Tensor]:
        """Return the output [B, Q, C] and the attention weights, like the replaced module."""
        if position_embeddings is not None:
            hidden_states = hidden_states + position_embeddings
        value = self._project_value(encoder_hidden_states).unflatten(-1, (self.n_heads, -1))
        offsets = self.sampling_offsets(hidden_states).unflatten(-1, (self.n_heads, -1, 2))
        logits = self.attention_weights(hidden_states).unflatten(-1, (self.n_heads, -1))
        weights = self._shape_weights(logits.softmax(-1))
        returned = ReturnedWeights(weights, logits)
        output = fused_ms_deform_attn(
            value,
            spatial_shapes if spatial_shapes_list is None else list(spatial_shapes_list),
            None,
            reference_points,
            self._scale_offsets(offsets, reference_points),
            returned.logits,
            None if attention_mask is None else self._padding(attention_mask),
            num_points=self._num_points(),
            backend=self.dino_kernels_backend,
        )
        return self._project_output(returned.output(output)), weights

    def _project_value(self, features: Tensor) -> Tensor:
        return self.value_proj(features)

    def _project_output(self, output: Tensor) -> Tensor:
        return self.output_proj(output)

    def _padding(self, attention_mask: Tensor) -> Tensor:
        return ~attention_mask.bool()

    def _num_points(self) -> list[int]:
        return [self.n_points] * self.n_levels

    def _scale_offsets(self, offsets: Tensor, reference_points: Tensor) -> Tensor:
        return offsets

    def _shape_weights(self, weights: Tensor) -> Tensor:
        return weights.unflatten(-1, (self.n_levels, self.n_points))

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # For pickle and deepcopy: the class is made at run time, so store the class that it was made from.
        _, _, state, *_ = super().__reduce_ex__(max(int(protocol), 2))
        return _rebuild, (type(self).replaced_class,), state


class _FusedPaddingMask(_Fused):
    """Mask2Former, OneFormer: `attention_mask` is True where a row is padding."""

    def _padding(self, attention_mask: Tensor) -> Tensor:
        return attention_mask.bool()


class _FusedPointLists(_Fused):
    """RT-DETRv2: points per level, a configurable offset scale, and weights with one sample dimension."""

    offset_scale: float
    points_attribute = "n_points_list"

    def _num_points(self) -> list[int]:
        return list(getattr(self, self.points_attribute))

    def _scale_offsets(self, offsets: Tensor, reference_points: Tensor) -> Tensor:
        # The op scales offsets by 0.5 of the box; offset_scale is this factor in transformers.
        boxes = reference_points.shape[-1] == 4
        return offsets * (2.0 * self.offset_scale) if boxes and self.offset_scale != 0.5 else offsets

    def _shape_weights(self, weights: Tensor) -> Tensor:
        return weights


class _FusedNoProjections(_FusedPointLists):
    """D-FINE, DEIMv2: like RT-DETRv2, without projections of value and output."""

    points_attribute = "num_points_list"

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **inputs: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the result of `_Fused.forward`; the enclosing layer has already added the position embeddings."""
        inputs.pop("position_embeddings", None)
        return super().forward(hidden_states, attention_mask, **inputs)

    def _project_value(self, features: Tensor) -> Tensor:
        return features

    def _project_output(self, output: Tensor) -> Tensor:
        return output


class _FusedOriginal(_Fused):
    """RF-DETR's own package: the original module's arguments, and no returned weights."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        query: Tensor,  # [B, Q, C]
        reference_points: Tensor,  # [B, Q, L, 2 or 4]
        input_flatten: Tensor,  # [B, S, C]
        input_spatial_shapes: Any,  # [L, 2] (H, W)
        input_level_start_index: Any = None,
        input_padding_mask: Tensor | None = None,  # [B, S], True = padding
        **unused: Any,
    ) -> Tensor:
        """Return the output, [B, Q, C]."""
        return self._attend(
            query,
            reference_points,
            input_flatten,
            input_spatial_shapes,
            input_padding_mask,
            self.n_heads,
            self.n_points,
        )

    def _attend(
        self,
        query: Tensor,
        reference_points: Tensor,
        features: Tensor,
        shapes: Any,
        padding: Tensor | None,
        heads: int,
        points: int,
    ) -> Tensor:
        output = fused_ms_deform_attn(
            self.value_proj(features).unflatten(-1, (heads, -1)),
            shapes,
            None,
            reference_points,
            self.sampling_offsets(query).unflatten(-1, (heads, -1, 2)),
            self.attention_weights(query).unflatten(-1, (heads, -1)),
            None if padding is None else padding.bool(),
            num_points=[points] * len(shapes),
            backend=self.dino_kernels_backend,
        )
        return self.output_proj(output)


class _FusedDetrex(_FusedOriginal):
    """detrex: adds the query, as mmcv's module does; sequences come first unless `batch_first`."""

    batch_first: bool
    num_heads: int
    num_points: int
    dropout: nn.Module

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        query: Tensor,  # [Q, B, C], or [B, Q, C]
        key: Tensor | None = None,
        value: Tensor | None = None,  # [S, B, C], or [B, S, C]
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,  # [B, S], True = padding
        reference_points: Tensor | None = None,  # [B, Q, L, 2 or 4]
        spatial_shapes: Any = None,  # [L, 2] (H, W)
        level_start_index: Any = None,
        **unused: Any,
    ) -> Tensor:
        """Return the output added to `identity`, by default the query."""
        assert reference_points is not None
        value = query if value is None else value
        identity = query if identity is None else identity
        query = query if query_pos is None else query + query_pos
        if not self.batch_first:
            query, value = query.transpose(0, 1), value.transpose(0, 1)
        heads, points = self.num_heads, self.num_points
        output = self._attend(query, reference_points, value, spatial_shapes, key_padding_mask, heads, points)
        return self.dropout(output if self.batch_first else output.transpose(0, 1)) + identity


# Class name in transformers.models.* -> its computation. The tests compare each class with its original.
CONVENTIONS: dict[str, type[_Fused]] = {
    "DeformableDetrMultiscaleDeformableAttention": _Fused,
    "GroundingDinoMultiscaleDeformableAttention": _Fused,
    "MMGroundingDinoMultiscaleDeformableAttention": _Fused,
    "OmDetTurboMultiscaleDeformableAttention": _Fused,
    "LwDetrMultiscaleDeformableAttention": _Fused,
    "RfDetrMultiscaleDeformableAttention": _Fused,
    "RTDetrMultiscaleDeformableAttention": _Fused,
    "PPDocLayoutV2MultiscaleDeformableAttention": _Fused,
    "PPDocLayoutV3MultiscaleDeformableAttention": _Fused,
    "PPDocLayoutV4MultiscaleDeformableAttention": _Fused,
    "Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention": _FusedPaddingMask,
    "OneFormerPixelDecoderEncoderMultiscaleDeformableAttention": _FusedPaddingMask,
    "RTDetrV2MultiscaleDeformableAttention": _FusedPointLists,
    "DFineMultiscaleDeformableAttention": _FusedNoProjections,
    "Deimv2MultiscaleDeformableAttention": _FusedNoProjections,
    "MSDeformAttn": _FusedOriginal,
    "MultiScaleDeformableAttention": _FusedDetrex,
}
# The packages of class names that are not in transformers.
_PACKAGES = {"MSDeformAttn": "rfdetr.", "MultiScaleDeformableAttention": "detrex."}


def replace(model: nn.Module, backend: str = "auto") -> list[str]:
    """Run the deformable attention of `model` on this package's op, in place.

    Call it before wrapping the model (accelerate's hooks, `fully_shard`, `torch.compile`). Calling it again changes the
    backend.

    Args:
        model: any module that contains attention modules listed in `CONVENTIONS`.
        backend: as in `dino_kernels.fused_ms_deform_attn`.

    Returns:
        The names of the replaced modules, as in `model.named_modules()`.

    Raises:
        TypeError: `model` is no module.
        ValueError: there is no such backend; the model contains no such module, or the forward of one is overridden on
            the instance, so that replacing its class would have no effect.
    """
    _check_model("replace", model)
    backends = ("auto", *ops()["fused_ms_deform_attn"].modules)
    if backend not in backends:
        raise ValueError(f"replace: backend must be one of {', '.join(map(repr, backends))}, got {backend!r}")
    replaced, left = [], []
    for name, module in model.named_modules():
        if not isinstance(module, _Fused):
            if not _is_known(type(module)):
                continue
            method = getattr(module, "method", getattr(module, "decoder_method", "default"))
            if method != "default":
                left.append(f"{name} has method={method!r}, which is not bilinear sampling")
                continue
            if "forward" in module.__dict__:
                raise ValueError(
                    f"replace: forward of {name!r} ({type(module).__name__}) is overridden on the instance, as by "
                    "accelerate's hooks. Call replace before adding them"
                )
            module.__class__ = _fused_class(type(module))
        cast(_Fused, module).dino_kernels_backend = backend
        replaced.append(name)
    if not replaced:
        found = "; ".join(left) or f"{type(model).__name__} contains none of " + ", ".join(CONVENTIONS)
        raise ValueError(f"replace: no deformable attention to replace: {found}")
    return replaced


def restore(model: nn.Module) -> list[str]:
    """Undo `replace`.

    Returns:
        The names of the restored modules.

    Raises:
        TypeError: `model` is no module.
    """
    _check_model("restore", model)
    restored = []
    for name, module in model.named_modules():
        if isinstance(module, _Fused):
            del module.dino_kernels_backend
            module.__class__ = type(module).replaced_class
            restored.append(name)
    return restored


def _check_model(function: str, model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        hint = " Load it first: AutoModelForObjectDetection.from_pretrained(...)." if isinstance(model, str) else ""
        raise TypeError(f"{function}: model must be a torch.nn.Module, got {model!r}.{hint}")


def _is_known(cls: type) -> bool:
    # Exact class only: a subclass may compute something else.
    return cls.__name__ in CONVENTIONS and cls.__module__.startswith(
        _PACKAGES.get(cls.__name__, "transformers.models.")
    )


@functools.cache
def _fused_class(original: type) -> type:
    computation = CONVENTIONS[original.__name__]
    body = {"replaced_class": original, "__module__": __name__, "__doc__": computation.__doc__}
    return type(f"Fused{original.__name__}", (computation, original), body)


def _rebuild(original: type) -> Any:
    cls: Any = _fused_class(original)
    return cls.__new__(cls)
