# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Maps, pointing and overlap metrics on layouts whose answer is known."""

import math

import numpy as np
import pytest
import torch

from cavmae_sync_hf import CavMaeSyncVideoProcessor
from cavmae_sync_hf.metrics.localization import (
    box_iou,
    boxes_in_view,
    class_segmentation_metrics,
    consensus_iou,
    localization_metrics,
    map_boxes,
    patch_maps,
    peak_positions,
    pointing_accuracy,
    segmentation_metrics,
    time_pointing_accuracy,
    upsample_maps,
)


def spot(row, column, rows=4, columns=4):
    grid = torch.zeros(rows, columns)
    grid[row, column] = 1.0
    return grid


def test_patch_maps__are_cosines_on_the_grid():
    embeds, patches = torch.randn(2, 3, 8), torch.randn(2, 3, 6, 8)
    maps = patch_maps(embeds, patches, (2, 3))
    assert maps.shape == (2, 3, 2, 3)
    expected = torch.nn.functional.cosine_similarity(embeds[1, 2], patches[1, 2, 4], dim=0)
    assert maps[1, 2, 1, 1] == pytest.approx(float(expected), abs=1e-6)
    # One audio embedding against several frames, in half precision and with an absent window.
    assert patch_maps(embeds[:, :1], patches, (2, 3)).shape == (2, 3, 2, 3)
    half = patch_maps(embeds.bfloat16(), patches.bfloat16(), (2, 3))
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, maps, atol=0.02, rtol=0)  # eight bits of the inputs
    assert torch.equal(patch_maps(torch.zeros(8), patches[0, 0], (3, 2)), torch.zeros(3, 2))


def test_upsample_maps__keeps_levels_and_places():
    maps = upsample_maps(spot(1, 2)[None, None], (64, 32))
    assert maps.shape == (1, 1, 64, 32)
    assert maps[0, 0].argmax() // 32 in (23, 24) and maps[0, 0].argmax() % 32 in (19, 20)
    assert torch.equal(upsample_maps(torch.full((2, 4, 4), 0.3), (8, 8)), torch.full((2, 8, 8), 0.3))


def test_peak_positions__are_centres_of_patches():
    positions = peak_positions(torch.stack([spot(0, 3), spot(2, 1)]), (64, 128))
    assert positions.tolist() == [[112.0, 8.0], [48.0, 40.0]]


@pytest.mark.parametrize(("height", "width"), [(96, 96), (90, 120), (200, 150), (97, 61), (128, 96)])
def test_boxes_in_view__follow_the_video_processor(height, width):
    y0, x0, y1, x1 = height // 3, width // 3, height // 3 + height // 5, width // 3 + width // 4
    frame = np.zeros((1, height, width, 3), dtype=np.uint8)
    frame[:, y0:y1, x0:x1] = 255
    processor = CavMaeSyncVideoProcessor(
        size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}, do_normalize=False
    )
    seen = processor([frame], return_tensors="pt", do_sample_frames=False)["pixel_values_videos"][0, 0, 0] > 0.5
    rows, columns = seen.any(dim=1).nonzero()[:, 0], seen.any(dim=0).nonzero()[:, 0]
    (box,) = boxes_in_view([[x0, y0, x1, y1]], (height, width), 64)
    found = [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]
    # An edge between pixels falls on one side of it, one pixel at most.
    assert box.tolist() == pytest.approx(found, abs=1.0)


def test_boxes_in_view__cut_and_drop():
    boxes = boxes_in_view([[0, 0, 40, 100], [90, 10, 110, 20], [0, 0, 10, 10]], (100, 200), 100)
    # The crop starts at x = 50: the first and the last box are outside.
    assert boxes.tolist() == [[40.0, 10.0, 60.0, 20.0]]
    assert boxes_in_view([[40, 0, 60, 50]], (100, 200), 100).tolist() == [[0.0, 0.0, 10.0, 50.0]]
    assert boxes_in_view([[0, 0, 100, 100]], (100, 100), 56, shortest_edge=64).tolist() == [[0, 0, 56, 56]]
    assert boxes_in_view([], (100, 200), 100).shape == (0, 4)


def test_pointing_accuracy__by_hand():
    maps = torch.stack([spot(0, 0), spot(1, 2), spot(3, 3), spot(0, 1)])
    boxes = [[[0, 0, 10, 10]], [[0, 0, 8, 8], [32, 16, 48, 32]], [[0, 0, 16, 16]], []]
    result = pointing_accuracy(maps, boxes, (64, 64))
    assert result["accuracy"] == pytest.approx(2 / 3) and result["maps"] == 3
    # Centres inside: the first box one of 16; the small box none (half-open) and its neighbour one; then one.
    assert result["chance"] == pytest.approx((1 / 16 + 1 / 16 + 1 / 16) / 3)


def test_pointing_accuracy__boxes_are_half_open():
    for box, hit in [([0, 0, 8, 16], 0), ([0, 0, 16, 8], 0), ([8, 0, 16, 16], 1), ([0, 8, 16, 16], 1)]:
        assert pointing_accuracy(spot(0, 0)[None], [[box]], (64, 64))["accuracy"] == hit  # the centre is (8, 8)


def test_pointing_accuracy__flat_maps_score_chance():
    boxes = [[[0, 0, 32, 32]]]
    flat = pointing_accuracy(torch.zeros(1, 4, 4), boxes, (64, 64))
    assert flat["accuracy"] == flat["chance"] == pytest.approx(0.25)


def test_pointing_accuracy__tolerance_is_in_pixels():
    maps, boxes = spot(0, 1)[None], [[[0, 0, 16, 16]]]  # the centre is 8 pixels beyond the edge
    assert pointing_accuracy(maps, boxes, (64, 64), tolerance=7.9)["accuracy"] == 0.0
    assert pointing_accuracy(maps, boxes, (64, 64), tolerance=8.0)["accuracy"] == 1.0
    corner = spot(1, 1)[None]  # 8 down and 8 across
    assert pointing_accuracy(corner, boxes, (64, 64), tolerance=11.0)["accuracy"] == 0.0
    assert pointing_accuracy(corner, boxes, (64, 64), tolerance=11.4)["accuracy"] == 1.0


def test_pointing_accuracy__rows_are_heights():
    maps, boxes = spot(0, 5, rows=2, columns=6)[None], [[[100, 0, 120, 20]]]
    assert pointing_accuracy(maps, boxes, (40, 120))["accuracy"] == 1.0
    assert pointing_accuracy(maps, [[[0, 20, 20, 40]]], (40, 120))["accuracy"] == 0.0


def test_time_pointing_accuracy__by_hand():
    maps = torch.stack([spot(2, 0), spot(0, 3), spot(1, 1), spot(1, 1)])
    times = [[0.0, 4.0], [0.0, 4.0], [10.0, 14.0], [0.0, 4.0]]
    spans = [[[0.0, 1.0]], [[0.0, 1.0], [2.0, 2.4]], [[11.4, 11.6]], [[8.0, 9.0]]]
    result = time_pointing_accuracy(maps, spans, times)
    # The last span lies outside its window and the second of the second map between two columns' centres.
    assert result == {"accuracy": pytest.approx(2 / 3), "chance": pytest.approx(0.25), "maps": 3}
    assert time_pointing_accuracy(torch.zeros(1, 2, 4), [[[0.0, 2.0]]], [[0.0, 4.0]])["accuracy"] == 0.5


def test_map_boxes__take_what_hangs_together():
    heat = torch.zeros(1, 6, 8)
    heat[0, 1, 1], heat[0, 2, 2], heat[0, 2, 3] = 1.0, 0.6, 0.7
    heat[0, 5, 7] = 0.9  # apart
    assert map_boxes(heat, (60, 160)).tolist() == [[20.0, 10.0, 80.0, 30.0]]
    assert map_boxes(heat, (60, 160), threshold=0.95).tolist() == [[20.0, 10.0, 40.0, 20.0]]
    # Two maps at once; one ending at the far corner; one flat.
    more = torch.cat([heat, heat.flip(1, 2), torch.zeros(1, 6, 8)])
    assert map_boxes(more, (60, 160)).tolist()[1:] == [[80.0, 30.0, 140.0, 50.0], [0.0, 0.0, 160.0, 60.0]]


def test_map_boxes__follow_long_paths():
    heat = torch.zeros(1, 5, 5)
    for row, column in [
        (0, 0),
        (0, 1),
        (0, 2),
        (0, 3),
        (0, 4),
        (1, 4),
        (2, 4),
        (2, 3),
        (2, 2),
        (2, 1),
        (2, 0),
        (4, 2),
    ]:
        heat[0, row, column] = 1.0
    assert map_boxes(heat, (5, 5)).tolist() == [[0.0, 0.0, 5.0, 3.0]]


def test_box_iou__by_hand():
    ious = box_iou([[0, 0, 2, 2], [5, 5, 6, 6]], [[1, 1, 3, 3], [0, 0, 2, 2], [0, 0, 4, 1]])
    assert ious.tolist() == [pytest.approx([1 / 7, 1.0, 2 / 6]), [0.0, 0.0, 0.0]]


def test_consensus_iou__by_hand():
    maps = torch.tensor([[[1.0, 0.8], [0.4, 0.0]]] * 3)
    truths = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.5, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    ious = consensus_iou(maps, truths)
    # Above half: the upper row. One right, one missed, one wrong; then all of the weight and nothing else.
    assert ious[:2].tolist() == pytest.approx([1 / 3, 1.0]) and math.isnan(ious[2])
    assert consensus_iou(maps, truths, threshold=0.9)[:2].tolist() == pytest.approx([0.5, 0.5 / 1.5])


def test_localization_metrics__perfect_and_wrong_maps():
    heat = torch.zeros(3, 8, 8)
    heat[0, 2:6, 2:6] = 1.0
    heat[1, 2:6, 2:6] = 1.0
    boxes = [[[16, 16, 48, 48]], [[48, 48, 64, 64]], []]
    result = localization_metrics(heat, boxes, (64, 64))
    assert result["maps"] == 2 and result["pointing_accuracy"] == 0.5
    assert result["box_iou"] == 0.5 and result["box_accuracy"] == 0.5 and result["ciou_success"] == 0.5
    # The stretched map is right to within its soft edge; the wrong one passes only the limit 0, half a step of 20.
    assert 0.5 * 0.85 < result["ciou_auc"] <= 0.5 * 1.0 + 0.5 * 0.025
    assert result["pointing_chance"] == pytest.approx((16 / 64 + 4 / 64) / 2)
    best = localization_metrics(heat[:1], boxes[:1], (64, 64))
    assert best["box_iou"] == best["ciou_success"] == 1.0


def test_localization_metrics__do_not_depend_on_order_or_scale():
    maps = torch.rand(20, 6, 6, generator=torch.Generator().manual_seed(0))
    boxes = [[[4 * k, 8, 4 * k + 30, 50]] if k % 5 else [] for k in range(20)]
    expected = localization_metrics(maps, boxes, (96, 96))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1)).tolist()
    shuffled = localization_metrics(2 * maps[order] - 1, [boxes[k] for k in order], (96, 96))
    assert shuffled == pytest.approx(expected) and expected["maps"] == 16


def test_segmentation_metrics__by_hand():
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[0, :2], masks[1, 3, 3] = True, True
    result = segmentation_metrics(masks.float(), masks)
    assert result["mean_average_precision"] == result["mean_iou"] == 1.0 and result["maps"] == 2
    flat = segmentation_metrics(torch.zeros(3, 4, 4), masks)
    assert flat["mean_average_precision"] == flat["mean_iou"] == pytest.approx((8 / 16 + 1 / 16) / 2)
    # One threshold for all: a second map on another scale cannot have its own.
    scaled = segmentation_metrics(masks[:2].float() * torch.tensor([1.0, 0.2])[:, None, None], masks[:2])
    assert scaled["mean_iou"] == pytest.approx(1.0) and scaled["threshold"] <= 0.2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: patch_maps(torch.zeros(8), torch.zeros(5, 8), (2, 3)), r"\(5, 8\); a grid of 2 x 3 needs"),
        (lambda: patch_maps(torch.zeros(7), torch.zeros(6, 8), (2, 3)), "7 dimensions, the patches 8"),
        (lambda: pointing_accuracy(torch.zeros(2, 4, 4), [[]], (9, 9)), "2 maps and 1 lists of boxes"),
        (lambda: pointing_accuracy(torch.zeros(4, 4), [[]], (9, 9)), r"they must be \(maps, rows, columns\)"),
        (lambda: pointing_accuracy(torch.zeros(1, 4, 4), [[]], (9, 9)), "No map has a box"),
        (lambda: pointing_accuracy(torch.zeros(1, 4, 4) / 0, [[]], (9, 9)), "Map 0 is not finite"),
        (lambda: pointing_accuracy(torch.zeros(1, 4, 4), [[[3, 0, 3, 9]]], (9, 9)), "has no area"),
        (lambda: pointing_accuracy(torch.zeros(1, 4, 4), [[[3, 0, 3]]], (9, 9)), r"must be \(boxes, 4\)"),
        (lambda: pointing_accuracy(torch.zeros(1, 4, 4), [[]], (9, 9), tolerance=-1), "`tolerance` is -1"),
        (lambda: time_pointing_accuracy(torch.zeros(1, 4, 4), [[]], [[0.0, 1.0, 2.0]]), r"must be \(1, 2\)"),
        (lambda: time_pointing_accuracy(torch.zeros(1, 4, 4), [[[7, 8]]], [[0.0, 1.0]]), "No map has a span"),
        (lambda: consensus_iou(torch.zeros(1, 4, 4), torch.zeros(1, 2, 2)), "must be"),
        (lambda: consensus_iou(torch.zeros(1, 4, 4), torch.full((1, 4, 4), 2.0)), "from 2 to 2"),
        (lambda: segmentation_metrics(torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)), "All masks are empty"),
        (lambda: segmentation_metrics(torch.zeros(1, 4, 4), torch.zeros(1, 2, 2)), "the same shape"),
    ],
)
def test_localization__names_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_class_segmentation_metrics__pool_the_pixels_of_a_class():
    maps = torch.tensor([[[0.9, 0.1], [0.2, 0.3]], [[0.8, 0.7], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]])
    masks = torch.tensor([[[1, 0], [0, 0]], [[1, 0], [0, 0]], [[0, 1], [0, 0]]]).bool()

    metrics = class_segmentation_metrics(maps, masks, ["a", "a", "b"], thresholds=10)

    # Class a: the two object pixels are the two highest of eight; class b: the object is the highest.
    assert metrics["mean_average_precision"] == 1.0 and metrics["mean_iou"] == 1.0
    assert metrics["classes"] == 2 and metrics["maps"] == 3
    assert metrics["chance_average_precision"] == pytest.approx(0.25)
    # Pooled, the second map's 0.7 outranks nothing; raised above the first object it does.
    maps[1, 0, 1] = 0.95
    assert class_segmentation_metrics(maps, masks, ["a", "a", "b"])["mean_average_precision"] == pytest.approx(
        ((1 / 2 + 2 / 3) / 2 + 1) / 2
    )
    with pytest.raises(ValueError, match="No mask is in view"):
        class_segmentation_metrics(maps, torch.zeros_like(masks), ["a", "a", "b"])
