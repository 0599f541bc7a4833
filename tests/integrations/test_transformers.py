"""Whole `transformers` models give the same outputs, losses and gradients with this package's op swapped in."""

import numpy
import pytest
import torch
from torch import nn

from dino_kernels.integrations import transformers as integration
from dino_kernels.nn import MSDeformAttn

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

VARIANTS = {
    "plain": {},
    "box_refine": {"with_box_refine": True},
    "two_stage": {"with_box_refine": True, "two_stage": True},
}


def tiny_resnet(**options):
    return transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1, 1, 1, 1], layer_type="basic", **options
    )


def lively(model):
    """Random weights that use everything: offsets and logits start at zero weight, so sampling would not vary."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if "sampling_offsets.weight" in name or "attention_weights.weight" in name:
            parameter.data.normal_(std=0.05, generator=generator)
    return model


def deformable_detr(variant="plain", dtype=torch.float64):
    """DeformableDetr with a small ResNet: d_model 256, 8 heads, 4 levels."""
    config = transformers.DeformableDetrConfig(
        backbone_config=tiny_resnet(out_features=["stage2", "stage3", "stage4"]),
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        d_model=256,
        num_feature_levels=4,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        num_queries=30,
        two_stage_num_proposals=30,
        num_labels=5,
        auxiliary_loss=True,
        **VARIANTS[variant],
    )
    torch.manual_seed(0)
    return lively(transformers.DeformableDetrForObjectDetection(config)).to(dtype)


@pytest.fixture(scope="module")
def photographs():
    """Two photographs of different sizes in one padded batch, with boxes drawn on them by hand."""
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn has the photographs")
    image_module = pytest.importorskip("PIL.Image", reason="Pillow resizes the photographs")
    pixels = torch.zeros(2, 3, 160, 240, dtype=torch.float64)
    valid = torch.zeros(2, 160, 240, dtype=torch.long)
    for i, (name, (height, width)) in enumerate({"china.jpg": (160, 240), "flower.jpg": (128, 192)}.items()):
        photo = image_module.fromarray(datasets.load_sample_image(name)).resize((width, height))
        photo = torch.tensor(numpy.asarray(photo)).permute(2, 0, 1) / 255.0
        pixels[i, :, :height, :width] = (photo - 0.45) / 0.225
        valid[i, :height, :width] = 1
    labels = [
        {"class_labels": torch.tensor([1, 3]), "boxes": torch.tensor([[0.5, 0.45, 0.6, 0.5], [0.2, 0.8, 0.2, 0.1]])},
        {"class_labels": torch.tensor([2]), "boxes": torch.tensor([[0.55, 0.5, 0.5, 0.7]])},
    ]
    return cast({"pixel_values": pixels, "pixel_mask": valid, "labels": labels}, torch.float64)


def cast(batch, dtype):
    labels = [{**label, "boxes": label["boxes"].to(dtype)} for label in batch["labels"]]
    return {**batch, "pixel_values": batch["pixel_values"].to(dtype), "labels": labels}


def results(model, batch):
    """Outputs, loss, and the gradient of every parameter, by name."""
    torch.manual_seed(5)  # dropout
    model.zero_grad(set_to_none=True)
    outputs = model(**batch)
    outputs.loss.backward()
    found = {name: outputs[name].detach().clone() for name in ("loss", "logits", "pred_boxes")}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[f"grad of {name}"] = parameter.grad
    return found


def assert_same(ours, theirs, tolerance):
    """Relative to each tensor's largest entry; some gradients are zero but for rounding (the bias of k_proj)."""
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        error = (ours[name] - expected).abs().max().item()
        assert error <= tolerance * expected.abs().max().item() + 1e-13, f"{name}: off by {error}"


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_deformable_detr_on_photographs_gives_the_same_loss_outputs_and_gradients(variant, training, photographs):
    model = deformable_detr(variant).train(training)
    theirs = results(model, photographs)
    assert len(integration.replace(model)) == 4
    ours = results(model, photographs)
    for name, parameter in model.named_parameters():
        if "sampling_offsets" in name or "value_proj" in name:
            assert parameter.grad.abs().max() > 0, name
    # Float64 rounding through the whole model: observed 3e-15 of each tensor's largest entry.
    assert_same(ours, theirs, 1e-11)


def test_float32_error_is_no_larger_than_that_of_transformers(photographs):
    exact = results(deformable_detr("box_refine").eval(), photographs)
    model = deformable_detr("box_refine", torch.float32).eval()
    batch = cast(photographs, torch.float32)
    theirs = results(model, batch)
    integration.replace(model)
    ours = results(model, batch)

    def error(found, names):
        return sum((found[name].double() - exact[name]).square().sum().item() for name in names) ** 0.5

    gradients = [name for name in exact if name.startswith("grad of")]
    for names in (["logits"], ["pred_boxes"], gradients):
        rounding = 6e-8 * sum(exact[name].square().sum().item() for name in names) ** 0.5
        assert error(ours, names) <= 2 * error(theirs, names) + 2 * rounding, names[0]


def test_training_follows_the_same_loss_curve(photographs):
    curves = []
    for swap in (False, True):
        model = deformable_detr("box_refine").train()
        if swap:
            integration.replace(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        torch.manual_seed(7)  # dropout
        curve = []
        for _ in range(3):
            loss = model(**photographs).loss
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            curve.append(loss.item())
        curves.append(curve)
    assert curves[0][-1] < curves[0][0]
    assert curves[1] == pytest.approx(curves[0], rel=1e-8)


def test_attention_weights_are_returned_when_asked_for(photographs):
    model = deformable_detr().eval()
    batch = {**photographs, "labels": None, "output_attentions": True}
    with torch.no_grad():
        theirs = model(**batch)
        integration.replace(model)
        ours = model(**batch)
    for name in ("encoder_attentions", "cross_attentions"):
        assert len(ours[name]) == len(theirs[name]) == 2
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-10, atol=1e-12)


class AsTransformersCallsIt(MSDeformAttn):
    """The drop-in module behind the argument names and the mask convention of transformers."""

    def forward(self, hidden_states, attention_mask=None, position_embeddings=None, **inputs):
        query = hidden_states if position_embeddings is None else hidden_states + position_embeddings
        output = super().forward(
            query,
            inputs["reference_points"],
            inputs["encoder_hidden_states"],
            inputs["spatial_shapes"],
            inputs["level_start_index"],
            None if attention_mask is None else ~attention_mask,
        )
        return output, None


def test_drop_in_module_loads_each_attentions_state_dict_and_gives_the_same_model(photographs):
    model = deformable_detr("box_refine").eval()
    theirs = results(model, photographs)
    for layer in [*model.model.encoder.layers, *model.model.decoder.layers]:
        name = "encoder_attn" if hasattr(layer, "encoder_attn") else "self_attn"
        module = AsTransformersCallsIt(d_model=256, n_levels=4, n_heads=8, n_points=4).double()
        module.load_state_dict(getattr(layer, name).state_dict(), strict=True)
        setattr(layer, name, module)
    assert_same(results(model, photographs), theirs, 1e-11)


def rt_detr_v2(points=4):
    config = transformers.RTDetrV2Config(**hybrid_encoder(), decoder_n_points=points, decoder_n_levels=3)
    return transformers.RTDetrV2ForObjectDetection(config)


def d_fine(points=(3, 6, 3)):
    config = transformers.DFineConfig(**hybrid_encoder(), decoder_n_points=list(points))
    return transformers.DFineForObjectDetection(config)


def hybrid_encoder():
    return {
        "backbone_config": transformers.RTDetrResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic",
            out_features=["stage2", "stage3", "stage4"],
        ),
        "use_pretrained_backbone": False,
        "encoder_in_channels": [16, 24, 32],
        "encoder_hidden_dim": 32,
        "encoder_ffn_dim": 32,
        "encoder_attention_heads": 4,
        "decoder_in_channels": [32, 32, 32],
        "d_model": 32,
        "decoder_ffn_dim": 32,
        "decoder_attention_heads": 4,
        "decoder_layers": 2,
        "num_queries": 12,
        "num_denoising": 0,
        "num_labels": 5,
    }  # fmt: skip


def rt_detr():
    return transformers.RTDetrForObjectDetection(transformers.RTDetrConfig(**hybrid_encoder()))


def mask2former():
    config = transformers.Mask2FormerConfig(
        backbone_config=transformers.SwinConfig(
            embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        use_pretrained_backbone=False,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        encoder_layers=2,
        decoder_layers=2,
        num_attention_heads=4,
        num_queries=6,
        num_labels=5,
    )  # fmt: skip
    return transformers.Mask2FormerForUniversalSegmentation(config)


@pytest.mark.parametrize("build", [rt_detr, rt_detr_v2, d_fine, mask2former])
def test_model_gives_the_same_outputs_and_gradients(build, photographs):
    torch.manual_seed(0)
    model = lively(build()).double().eval()
    for name, buffer in model.named_buffers():
        if name.endswith("points_scale"):
            # 1 / points, which transformers rounds to float32 (1/3 is off by 3e-8); the op divides instead.
            buffer.copy_(1 / (1 / buffer).round())
    pixels = photographs["pixel_values"][:, :, :128, :128]
    names = ("class_queries_logits", "masks_queries_logits") if build is mask2former else ("logits", "pred_boxes")

    def run():
        model.zero_grad(set_to_none=True)
        outputs = model(pixels)
        torch.stack([outputs[name].square().sum() for name in names]).sum().backward()
        found = {name: outputs[name].detach() for name in names}
        found |= {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        return found

    theirs = run()
    assert len(integration.replace(model)) == 2
    ours = run()
    assert any("sampling_offsets" in name and grad.abs().max() > 0 for name, grad in ours.items())
    assert_same(ours, theirs, 1e-11)
