"""What the images show is what the model does."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from dino.data import pad_images
from dino.visualize.caption import Key, add_caption
from dino.visualize.sampling import draw_encoder_sampling_points, draw_sampling_points
from dino.visualize.stages import NEGATIVE, POSITIVE, draw_denoising, draw_query_selection, draw_refinement
from dino.visualize.view import View, display_size
from dino.visualize.watch import attention_of, watch
from dino_kernels import ms_deform_attn
from dino_kernels.nn import MSDeformAttn
from tests.dino.tools_toys import TINY, noise_picture, tiny_detector

CROSS = "decoder.layers.1.cross_attn"
SELF = "encoder.layers.0.self_attn"


def pixels(image):
    return np.asarray(image).astype(int)


def changed(drawn, picture):
    """The part of a drawing above its caption, and where it differs from the faded image."""
    size = display_size(picture.size)
    ground = pixels(View(picture).image)
    shown = pixels(drawn)[: size[1], : size[0]]
    return shown, (shown != ground).any(-1)


@pytest.mark.parametrize("coordinates", [2, 4])
@pytest.mark.parametrize("points", [4, [1, 2, 3]])
def test_samples_are_those_of_the_kernel(coordinates, points):
    torch.manual_seed(0)
    shapes = [(6, 8), (3, 4), (2, 2)]
    module = MSDeformAttn(32, 3, 4, points)
    for layer in (module.sampling_offsets, module.attention_weights):
        torch.nn.init.normal_(layer.weight)
    query, memory = torch.randn(1, 5, 32), torch.randn(1, sum(h * w for h, w in shapes), 32)
    reference = torch.rand(1, 5, 3, coordinates)
    seen = attention_of(module, query, reference, shapes)
    value = module.value_proj(memory).unflatten(-1, (4, -1))
    counts = points if isinstance(points, list) else [points] * 3
    sampled = ms_deform_attn(value, shapes, None, seen.locations[None], seen.weights[None], num_points=counts)
    with torch.no_grad():
        torch.testing.assert_close(module.output_proj(sampled), module(query, reference, memory, shapes))
    assert torch.equal(seen.levels, torch.repeat_interleave(torch.arange(3), torch.tensor(counts)))


def test_watching_does_not_change_what_the_model_returns(detector, picture):
    seen = watch(detector, picture, [CROSS, SELF])
    image, _, _ = detector.transform(picture, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    images, mask = pad_images([image])
    with torch.no_grad():
        alone = detector.model(images, mask)
    torch.testing.assert_close(seen.outputs.logits, alone.logits)
    assert seen.level_shapes == [(12, 16), (6, 8), (3, 4)] and seen.strides == [8, 16, 32]
    torch.testing.assert_close(seen.anchors_cxcywh, alone.encoder_boxes_cxcywh[0])
    assert seen.attentions[CROSS].locations.shape == (20, 4, 12, 2)
    assert seen.attentions[SELF].weights.shape == (12 * 16 + 6 * 8 + 3 * 4, 4, 12)
    torch.testing.assert_close(seen.attentions[SELF].weights.sum(-1), torch.ones(252, 4))
    assert not any(module._forward_pre_hooks for module in detector.model.modules())


def test_an_encoder_token_looks_from_its_own_place(detector, picture):
    references = watch(detector, picture, [SELF]).attentions[SELF].references
    torch.testing.assert_close(references[0], torch.tensor([0.5 / 16, 0.5 / 12]))
    torch.testing.assert_close(references[12 * 16 + 8], torch.tensor([0.5 / 8, 1.5 / 6]))


def test_hooks_go_also_after_an_error(detector, picture):
    with pytest.raises(ValueError, match=r"must be among .*decoder\.layers\.0\.cross_attn"):
        watch(detector, picture, ["decoder"])
    broken = tiny_detector()
    broken.model.decoder.forward = lambda *arguments: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        watch(broken, picture, [CROSS])
    assert not any(module._forward_pre_hooks for module in broken.model.modules())


def test_denoising_shows_truth_positive_and_negative(detector, picture):
    boxes, labels = torch.tensor([[40.0, 30, 100, 90]]), torch.tensor([1])
    drawn = draw_denoising(detector, picture, boxes, labels, seed=3)
    shown, _ = changed(drawn, picture)
    for colour in (POSITIVE, NEGATIVE, (255, 255, 255)):
        assert (shown == colour).all(-1).sum() > 100, colour
    again = draw_denoising(detector, picture, boxes, labels, seed=3)
    assert np.array_equal(pixels(drawn), pixels(again))
    assert not np.array_equal(pixels(drawn), pixels(draw_denoising(detector, picture, boxes, labels, seed=4)))


def test_the_positive_keeps_near_its_box(detector, picture):
    boxes = torch.tensor([[64.0, 48, 96, 72]])  # its sides move by at most half its size
    for seed in range(5):
        shown, _ = changed(draw_denoising(detector, picture, boxes, torch.tensor([0]), seed=seed), picture)
        scale = shown.shape[1] / 160
        rows, columns = np.nonzero((shown == POSITIVE).all(-1))
        slack = 40  # the line and the tag
        assert columns.min() >= 48 * scale - slack and columns.max() <= 112 * scale + slack
        assert rows.min() >= 36 * scale - slack and rows.max() <= 84 * scale + slack


def test_the_negative_is_another_box_than_the_positive(detector, picture):
    boxes = torch.tensor([[64.0, 48, 96, 72]])
    differ = []
    for seed in range(5):
        shown, _ = changed(draw_denoising(detector, picture, boxes, torch.tensor([0]), seed=seed), picture)
        places = [np.nonzero((shown == colour).all(-1)) for colour in (POSITIVE, NEGATIVE)]
        bounds = [(rows.min(), rows.max(), columns.min(), columns.max()) for rows, columns in places]
        differ.append(np.abs(np.array(bounds[0]) - np.array(bounds[1])).max())
    assert min(differ) > 40  # each of its sides is at least half a size, 96 pixels, from the true one


def test_denoising_does_not_touch_the_random_numbers_of_others(detector, picture):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    draw_denoising(detector, picture, torch.tensor([[40.0, 30, 100, 90]]), torch.tensor([1]))
    assert torch.equal(torch.rand(3), expected)


def test_plain_denoising_has_no_negatives(picture):
    plain = tiny_detector(dataclasses.replace(TINY, denoising="plain"))
    drawn = draw_denoising(plain, picture, torch.tensor([[40.0, 30, 100, 90]]), torch.tensor([1]))
    assert not (changed(drawn, picture)[0] == NEGATIVE).all(-1).any()


def test_more_boxes_than_can_be_shown_are_counted(detector, picture):
    boxes = torch.tensor([[10.0 * i, 5.0 * i, 10.0 * i + 30, 5.0 * i + 30 + i] for i in range(11)])
    assert draw_denoising(detector, picture, boxes, torch.zeros(11, dtype=torch.int64), most=2).width == 960


def test_selection_shows_a_box_for_each_of_the_best(detector, picture):
    _, few = changed(draw_query_selection(detector, picture, most=2), picture)
    _, many = changed(draw_query_selection(detector, picture, most=20), picture)
    assert 0 < few.sum() < many.sum()


def test_every_image_has_its_caption_below(detector, picture):
    drawings = [
        draw_refinement(detector, picture),
        draw_query_selection(detector, picture),
        draw_sampling_points(detector, picture, query=3, layer=0),
        draw_encoder_sampling_points(detector, picture, position=(0.2, 0.9), level=0),
    ]
    for drawn in drawings:
        assert drawn.mode == "RGB" and drawn.width == 960 and 720 + 80 < drawn.height < 720 + 300
        assert len(np.unique(pixels(drawn)[725:], axis=0)) > 1


def test_what_a_variant_does_not_have_is_an_error(picture):
    static = tiny_detector(dataclasses.replace(TINY, query_selection="static", denoising="off"))
    with pytest.raises(ValueError, match='query_selection="static"'):
        draw_query_selection(static, picture)
    with pytest.raises(ValueError, match='denoising="off"'):
        draw_denoising(static, picture, torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64))
    assert draw_refinement(static, picture).width == 960
    assert draw_sampling_points(static, picture).width == 960


def test_wrong_places_are_named(detector, picture):
    with pytest.raises(ValueError, match=r"layer must be in -2\.\.1, got 2"):
        draw_sampling_points(detector, picture, layer=2)
    with pytest.raises(ValueError, match=r"query must be in -20\.\.19, got 20"):
        draw_sampling_points(detector, picture, query=20)
    with pytest.raises(ValueError, match=r"level must be in -3\.\.2, got 3"):
        draw_encoder_sampling_points(detector, picture, level=3)
    with pytest.raises(ValueError, match=r"position must be x, y in 0\.\.1"):
        draw_encoder_sampling_points(detector, picture, position=(1.2, 0))
    with pytest.raises(ValueError, match="no box"):
        draw_denoising(detector, picture, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))


def test_a_caption_holds_all_its_words_within_the_width():
    picture = noise_picture(100, 50)
    short = add_caption(picture, "Title", "word " * 5)
    long = add_caption(picture, "Title", "word " * 200, [Key(f"entry {i}", (0, 0, 0), "dot") for i in range(20)])
    assert short.width == long.width == 560 and short.height < long.height
    assert (pixels(long)[:, -5:] == pixels(long)[-1, -1]).all()  # nothing reaches the right margin
    left = (560 - 100) // 2
    assert np.array_equal(pixels(short)[:50, left : left + 100], pixels(picture))


def test_a_view_holds_what_it_is_around_and_keeps_the_shape(picture):
    for points in ([[0.2, 0.3], [0.25, 0.9]], [[0.5, 0.5]], [[-1.0, 0.1], [2.0, 0.2]], [[0.99, 0.01]]):
        view = View(picture, around=torch.tensor(points))
        assert view.size == (960, 720) and 0.3 <= view.share <= 1
        pixel = view.points(torch.tensor(points).clamp(0, 1))
        assert (pixel >= -0.01).all() and (pixel <= torch.tensor([960.01, 720.01])).all()
    # A point far outside does not make what is inside small.
    assert View(picture, around=torch.tensor([[-3.0, 0.1], [0.1, 0.2]])).share == pytest.approx(0.3)
    whole = View(picture)
    assert whole.points(torch.tensor([0.25, 0.5])).tolist() == [240, 360]
    assert whole.box(torch.tensor([0.25, 0.5, 2.0, 0.75])) == (240, 360, 959, 540)
    assert whole.box(torch.tensor([1.25, 0.5, 2.0, 0.75])) is None


def test_a_part_shows_that_part_of_the_image():
    picture = noise_picture(100, 100)
    picture.paste((255, 0, 0), (50, 50, 100, 100))
    part = pixels(View(picture, around=torch.tensor([[0.6, 0.6], [0.9, 0.9]])).image)
    assert (part[..., 0] > part[..., 1]).mean() > 0.95


def test_small_images_are_enlarged_and_large_ones_reduced():
    assert display_size((160, 80)) == (960, 480)
    assert display_size((1000, 500)) == (1000, 500)
    assert display_size((5000, 2500)) == (1280, 640)
