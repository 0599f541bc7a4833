"""The cost of all targets of an image with a tile of its queries, in Triton.

A program computes (set, image, 64 queries) in steps of eight of the image's targets: it reads a logit per pair (for
softmax the queries' rows twice before), and writes rows of the cost, coalesced along queries. One additional image has
the slots of unused capacity. A logit that is not finite may appear at any target, so the column of its query is written
again at the end. All arithmetic is float32.
"""

# Kernels are in Triton's language: arguments have its types, and functions called within them return values.
# pyright: reportInvalidTypeForm=false, reportGeneralTypeIssues=false

from __future__ import annotations

import triton
import triton.language as tl

NONFINITE_PREDICTION = tl.constexpr(1)
INVALID_TARGET = tl.constexpr(2)
# The numeric arguments except constexprs: neither their values nor their alignment make a variant.
RUNTIME = range(44)


@triton.jit(do_not_specialize=RUNTIME, do_not_specialize_on_alignment=RUNTIME)
def matching_cost(
    logits_0,  # each [sets_per_source, B, Q, C]
    logits_1,
    logits_2,
    logits_3,
    logits_4,
    logits_5,
    logits_6,
    logits_7,
    boxes_0,  # each [sets_per_source, B, Q, 4], or None
    boxes_1,
    boxes_2,
    boxes_3,
    boxes_4,
    boxes_5,
    boxes_6,
    boxes_7,
    labels,  # [N] int64
    target_boxes,  # [N, 4] float32, or None
    offsets,  # [B + 1] int64
    extra_cost,  # [G or 1, N, QUERIES] float32, or None
    cost,  # [G, N, QUERIES] float32
    notes,  # [G, B, tiles] int32
    first_set: tl.int64,  # first of these sources' sets in 0..G
    sets_per_source: tl.int64,
    images: tl.int64,
    queries: tl.int64,  # of these sources
    classes: tl.int64,
    targets: tl.int64,
    all_queries: tl.int64,  # of the result
    tiles: tl.int64,
    logits_set_stride: tl.int64,
    logits_image_stride: tl.int64,
    logits_query_stride: tl.int64,
    boxes_set_stride: tl.int64,
    boxes_image_stride: tl.int64,
    boxes_query_stride: tl.int64,
    extra_set_stride: tl.int64,
    class_weight,
    l1_weight,
    giou_weight,
    alpha,
    gamma,
    class_eps,
    giou_eps,
    SOFTMAX: tl.constexpr,
    TILE_TARGETS: tl.constexpr,
    TILE_QUERIES: tl.constexpr,
    TILE_CLASSES: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    tile = program % tiles
    image = program // tiles % (images + 1)
    set_of_launch = program // tiles // (images + 1)
    source, set_of_source = set_of_launch // sets_per_source, set_of_launch % sets_per_source
    set_of_all = first_set + set_of_launch

    query = tile * TILE_QUERIES + tl.arange(0, TILE_QUERIES)
    is_image = image < images
    # A limit of 0 instead of "and is_image": Triton's interpreter turns a block of bools and a number into integers.
    known = query < tl.where(is_image, queries, 0)
    start = tl.load(offsets + image)
    end = tl.load(offsets + image + 1, mask=is_image, other=0)
    start = tl.minimum(tl.maximum(start, 0), targets)
    end = tl.minimum(tl.where(is_image, end, targets), targets)
    count = tl.maximum(end - start, 0).to(tl.int32)

    logits = tl.where(source == 1, logits_1, logits_0)
    logits = tl.where(source == 2, logits_2, logits)
    logits = tl.where(source == 3, logits_3, logits)
    logits = tl.where(source == 4, logits_4, logits)
    logits = tl.where(source == 5, logits_5, logits)
    logits = tl.where(source == 6, logits_6, logits)
    logits = tl.where(source == 7, logits_7, logits)
    rows = logits + set_of_source * logits_set_stride + image * logits_image_stride + query * logits_query_stride
    needed = query < tl.where(is_image & (count > 0), queries, 0)
    usable = tl.full([TILE_QUERIES], 1, tl.int1)  # for the costs of valid targets
    if boxes_0 is not None:
        boxes = tl.where(source == 1, boxes_1, boxes_0)
        boxes = tl.where(source == 2, boxes_2, boxes)
        boxes = tl.where(source == 3, boxes_3, boxes)
        boxes = tl.where(source == 4, boxes_4, boxes)
        boxes = tl.where(source == 5, boxes_5, boxes)
        boxes = tl.where(source == 6, boxes_6, boxes)
        boxes = tl.where(source == 7, boxes_7, boxes)
        corner = boxes + set_of_source * boxes_set_stride + image * boxes_image_stride + query * boxes_query_stride
        cx = tl.load(corner, mask=needed, other=0.0).to(tl.float32)
        cy = tl.load(corner + 1, mask=needed, other=0.0).to(tl.float32)
        w = tl.load(corner + 2, mask=needed, other=0.0).to(tl.float32)
        h = tl.load(corner + 3, mask=needed, other=0.0).to(tl.float32)
        usable = _finite(cx) & _finite(cy) & _finite(w) & _finite(h)
    if SOFTMAX:
        highest, total, defined = _softmax_sums(rows, needed, classes, TILE_QUERIES, TILE_CLASSES)
        usable = usable & defined

    valid_targets = 0
    invalid_targets = 0
    broken = tl.full([TILE_QUERIES], 0, tl.int32)  # a valid target's logit is not finite
    for first in range(0, count, TILE_TARGETS):
        lane = first + tl.arange(0, TILE_TARGETS)
        target = start + lane
        inside = lane < count
        label = tl.load(labels + target, mask=inside, other=-1)
        valid = inside & (label >= 0) & (label < tl.where(is_image, classes, 0))
        if boxes_0 is not None:
            target_cx = tl.load(target_boxes + target * 4, mask=inside, other=0.0)
            target_cy = tl.load(target_boxes + target * 4 + 1, mask=inside, other=0.0)
            target_w = tl.load(target_boxes + target * 4 + 2, mask=inside, other=0.0)
            target_h = tl.load(target_boxes + target * 4 + 3, mask=inside, other=0.0)
            valid = valid & _finite(target_cx) & _finite(target_cy) & _finite(target_w) & _finite(target_h)
            valid = valid & (target_w >= 0) & (target_h >= 0)
        valid_targets = tl.maximum(valid_targets, tl.max(valid.to(tl.int32), 0))
        invalid_targets = tl.maximum(invalid_targets, tl.max((inside & ~valid).to(tl.int32), 0))
        pair = valid[:, None] & known[None, :]
        logit = tl.load(rows[None, :] + label[:, None], mask=pair, other=0.0).to(tl.float32)
        if SOFTMAX:
            pair_cost = class_weight * -tl.math.div_rn(_exp(logit - highest[None, :]), total[None, :])
        else:
            broken = tl.maximum(broken, tl.max((pair & ~_finite(logit)).to(tl.int32), 0))
            pair_cost = class_weight * _focal_cost(logit, alpha, gamma, class_eps)
        if boxes_0 is not None:
            l1 = tl.abs(cx[None, :] - target_cx[:, None]) + tl.abs(cy[None, :] - target_cy[:, None])
            l1 = l1 + tl.abs(w[None, :] - target_w[:, None]) + tl.abs(h[None, :] - target_h[:, None])
            giou = _generalized_iou(
                cx[None, :],
                cy[None, :],
                w[None, :],
                h[None, :],
                target_cx[:, None],
                target_cy[:, None],
                target_w[:, None],
                target_h[:, None],
                giou_eps,
            )
            pair_cost = pair_cost + l1_weight * l1 - giou_weight * giou
        written = inside[:, None] & (query < all_queries)[None, :]
        at = target[:, None] * all_queries + query[None, :]
        if extra_cost is not None:
            pair_cost = pair_cost + tl.load(extra_cost + set_of_all * extra_set_stride + at, mask=pair, other=0.0)
        pair_cost = tl.where(pair & usable[None, :], pair_cost, float("inf"))
        tl.store(cost + set_of_all * targets * all_queries + at, pair_cost, mask=written)

    if tl.max(broken, 0) > 0:
        tl.debug_barrier()
        for first in range(0, count, TILE_TARGETS):
            lane = first + tl.arange(0, TILE_TARGETS)
            at = (start + lane)[:, None] * all_queries + query[None, :]
            written = (lane < count)[:, None] & (broken > 0)[None, :]
            forbidden = tl.full([TILE_TARGETS, TILE_QUERIES], float("inf"), tl.float32)
            tl.store(cost + set_of_all * targets * all_queries + at, forbidden, mask=written)

    unusable = tl.max((known & ((broken > 0) | (~usable & (valid_targets > 0)))).to(tl.int32), 0)
    note = unusable * NONFINITE_PREDICTION + invalid_targets * INVALID_TARGET
    tl.store(notes + (set_of_all * images + image) * tiles + tile, note, mask=is_image)


@triton.jit
def _finite(x):
    return tl.abs(x) < float("inf")


@triton.jit
def _exp(x):
    """Return e^x for x <= 0, to two roundings. The GPU instruction `tl.exp` exceeds the error of the tolerance rule."""
    clamped = tl.where(x > -87.0, x, -87.0)  # below, results are subnormal; queries with NaN stay unmatched
    halvings = tl.floor(clamped * 1.4426950408889634 + 0.5)
    # ln 2 in two parts, the first with so few bits that its multiples are exact.
    rest = clamped - halvings * 0.693359375
    rest = rest + halvings * 2.12194440054690e-4
    # Taylor's series, for |rest| <= ln 2 / 2.
    series = 1.0 / 720 + rest * (1.0 / 5040)
    series = 1.0 / 120 + rest * series
    series = 1.0 / 24 + rest * series
    series = 1.0 / 6 + rest * series
    series = 0.5 + rest * series
    series = 1.0 + (rest + rest * rest * series)
    power = ((halvings.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    return tl.where(x < -87.0, 0.0, series * power)


@triton.jit
def _softmax_sums(rows, usable_rows, classes, TILE_QUERIES: tl.constexpr, TILE_CLASSES: tl.constexpr):
    """Return each row's greatest logit, its sum of exp(logit - greatest), and whether its softmax is defined."""
    highest = tl.full([TILE_QUERIES], float("-inf"), tl.float32)
    excessive = tl.full([TILE_QUERIES], 0, tl.int32)  # NaN or +inf; -inf is a probability of 0
    for first in range(0, classes, TILE_CLASSES):
        column = first + tl.arange(0, TILE_CLASSES)
        mask = usable_rows[:, None] & (column < classes)[None, :]
        logit = tl.load(rows[:, None] + column[None, :], mask=mask, other=float("-inf")).to(tl.float32)
        excessive = tl.maximum(excessive, tl.max((~(logit < float("inf"))).to(tl.int32), 1))
        highest = tl.maximum(highest, tl.max(logit, 1))
    defined = (excessive == 0) & (highest > float("-inf"))
    highest = tl.where(defined, highest, 0.0)
    total = tl.full([TILE_QUERIES], 0.0, tl.float32)
    for first in range(0, classes, TILE_CLASSES):
        column = first + tl.arange(0, TILE_CLASSES)
        mask = usable_rows[:, None] & (column < classes)[None, :]
        logit = tl.load(rows[:, None] + column[None, :], mask=mask, other=float("-inf")).to(tl.float32)
        total += tl.sum(_exp(logit - highest[:, None]), 1)
    return highest, total, defined


@triton.jit
def _focal_cost(logit, alpha, gamma, class_eps):
    # exp of a number that is not positive does not overflow, and yields both probabilities.
    falling = _exp(-tl.abs(logit))
    larger = tl.math.div_rn(1.0, 1.0 + falling)
    smaller = falling * larger
    probability = tl.where(logit >= 0, larger, smaller)
    opposite = tl.where(logit >= 0, smaller, larger)
    if class_eps > 0:
        positive = -tl.log(probability + class_eps)
        negative = -tl.log(opposite + class_eps)
    else:
        tail = tl.log(1.0 + falling)
        positive = tl.maximum(-logit, 0.0) + tail
        negative = tl.maximum(logit, 0.0) + tail
    return alpha * _power(opposite, gamma) * positive - (1.0 - alpha) * _power(probability, gamma) * negative


@triton.jit
def _power(x, exponent):
    """Return x to the power of the exponent, for x in 0..1."""
    if exponent == 2.0:
        result = x * x
    elif exponent == 0.0:
        result = x * 0.0 + 1.0
    else:
        result = tl.exp(exponent * tl.log(x))
    return result


@triton.jit
def _generalized_iou(cx, cy, w, h, other_cx, other_cy, other_w, other_h, eps):
    # Half a size is exact, so the corners are the same whether or not the compiler fuses multiply and add.
    left, right, top, bottom = cx - w * 0.5, cx + w * 0.5, cy - h * 0.5, cy + h * 0.5
    other_left, other_right = other_cx - other_w * 0.5, other_cx + other_w * 0.5
    other_top, other_bottom = other_cy - other_h * 0.5, other_cy + other_h * 0.5
    shared = _positive(tl.minimum(right, other_right) - tl.maximum(left, other_left))
    shared = shared * _positive(tl.minimum(bottom, other_bottom) - tl.maximum(top, other_top))
    hull = _positive(tl.maximum(right, other_right) - tl.minimum(left, other_left))
    hull = hull * _positive(tl.maximum(bottom, other_bottom) - tl.minimum(top, other_top))
    union = (right - left) * (bottom - top) + (other_right - other_left) * (other_bottom - other_top) - shared
    return tl.math.div_rn(shared, union + eps) - tl.math.div_rn(hull - union, hull + eps)


@triton.jit
def _positive(x):
    # NaN, from corners that overflow, stays NaN.
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
