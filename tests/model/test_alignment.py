"""The rules of the method against their formulas, the published preparation and torchvision's geometry."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torchvision.transforms import v2

from cavmae_sync_hf.model.alignment_cavmae_sync import (
    center_crop_window,
    center_times,
    frame_at,
    reference_frame_times,
    reference_indices,
    reference_window_starts,
    reference_window_times,
    resized_size,
    shown_time,
    step_times,
    view_of,
    window_coverage,
    window_seconds,
    window_starts,
    window_times,
)

FIXTURES = Path(__file__).parents[1] / "fixtures"
SIZES = [(720, 1280), (1280, 720), (480, 480), (241, 333), (333, 241), (97, 1001), (224, 224)]


def test_center_times__are_the_centres_of_equal_spans():
    assert center_times(10.0, 4) == [1.25, 3.75, 6.25, 8.75]
    assert center_times(1.0, 2, start=3.0) == [3.25, 3.75]
    np.testing.assert_array_equal(center_times(9.97, 16), (np.arange(16) + 0.5) * 9.97 / 16)


def test_step_times__continue_each_other_and_equal_the_centres_of_a_whole_clip():
    assert step_times(0.625, 16) == center_times(10.0, 16)
    assert step_times(0.4, 3) + step_times(0.4, 5, first=3) == step_times(0.4, 8)


@pytest.mark.parametrize(("time", "rate", "number"), [(0.0, 25, 0), (0.58, 50, 29), (0.579, 50, 28), (9.96, 25, 249)])
def test_frame_at__is_the_last_frame_that_began(time, rate, number):
    assert frame_at(time, rate) == number
    assert 0.58 * 50 < 29  # floating point alone would lose this frame


def test_shown_time__of_a_frame_held_for_long_is_the_asked_one():
    assert shown_time(2.0, 2.04, 2.03) == 2.0
    assert shown_time(2.0, 9.0, 7.5) == 7.5
    assert shown_time(2.0, 3.0, 2.9) == 2.0  # exactly a second is not long
    assert shown_time(2.0, 9.0, 1.0) == 2.0  # never before it appeared


def test_reference_frames__come_from_the_first_ten_seconds():
    assert reference_indices(250, 25.0, 16) == [int(number * 250 / 16) for number in range(16)]
    assert reference_indices(750, 25.0, 16) == reference_indices(250, 25.0, 16)
    assert reference_indices(75, 25.0, 10) == [0, 7, 15, 22, 30, 37, 45, 52, 60, 67]
    assert reference_frame_times(30.0, 16)[-1] == 9.375
    assert reference_frame_times(3.0, 4) == [0.0, 0.75, 1.5, 2.25]
    indices, times = reference_indices(250, 25.0, 16), reference_frame_times(10.0, 16)
    assert all(0 <= time - index / 25 < 1 / 25 for index, time in zip(indices, times, strict=True))


@pytest.mark.parametrize(("case", "count"), [("preprocess_10s", 16), ("preprocess_3s", 10)])
def test_reference_windows__start_where_the_published_code_starts_them(case, count):
    starts = load_file(FIXTURES / f"{case}.safetensors")["window_starts"].tolist()
    assert reference_window_starts(count, 416, 1024) == starts
    assert window_times(starts, 416)[0] == (0.0, 4.16)


def test_reference_windows__round_half_to_even_and_stay_inside():
    assert reference_window_starts(4, 2, 10) == [0, 1, 4, 7]  # centres 0, 2.5, 5, 7.5: rounded to 0, 2, 5, 8
    assert reference_window_starts(3, 1024, 1024) == [0, 0, 0]
    assert reference_window_times(4, 1024) == [0.0, 2.56, 5.12, 7.68]


def test_window_starts__centre_each_window_on_its_time():
    assert window_starts([0.0, 5.0, 9.6875], 416) == [-208, 292, 761]
    assert window_seconds(416) == 4.16
    for time, (start, end) in zip([0.37, 8.2], window_times(window_starts([0.37, 8.2], 96), 96), strict=True):
        assert (start + end) / 2 == pytest.approx(time, abs=0.005)


def test_window_coverage__is_the_share_inside_the_clip():
    assert window_coverage([-208, 0, 790, 1000, -500], 416, 998) == [0.5, 1.0, 0.5, 0.0, 0.0]
    counts = np.arange(-20, 60)[:, None] + np.arange(16)
    expected = ((counts >= 0) & (counts < 37)).mean(axis=1)
    np.testing.assert_array_equal(window_coverage(list(range(-20, 60)), 16, 37), expected)


@pytest.mark.parametrize("size", SIZES)
def test_view__is_what_torchvision_resizes_and_crops(size):
    """A crop of an image that holds its own coordinates shows which pixels are kept."""
    resized = v2.functional.resize(torch.zeros(1, *size), [96], antialias=True).shape[-2:]
    assert resized_size(*size, 96) == tuple(resized)
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in resized), indexing="ij")
    kept = v2.functional.center_crop(torch.stack([rows, columns]), [64, 64])
    top, left, height, width = center_crop_window(*resized, (64, 64))
    assert (top, left, height, width) == (int(kept[0].min()), int(kept[1].min()), 64, 64)
    assert view_of(size, (64, 64), 96).window == (top, left, 64, 64)


@pytest.mark.parametrize("size", SIZES)
def test_view__what_is_seen_fills_it(size):
    view = view_of(size, (64, 64), 64)
    assert view.boxes([view.seen]) == [pytest.approx([0, 0, 64, 64])]
    x0, y0, x1, y1 = view.seen
    assert 0 <= x0 < x1 <= size[1] and 0 <= y0 < y1 <= size[0]
    inner = [x0 + 0.25 * (x1 - x0), y0 + 0.5 * (y1 - y0), x1, y1]
    assert view.boxes([[0, 0, size[1], size[0]], inner]) == [[0, 0, 64, 64], pytest.approx([16, 32, 64, 64])]


def test_view__boxes_outside_of_it_are_left_out_and_a_larger_crop_reaches_outside():
    view = view_of((100, 200), (100, 100), 100)
    assert view.seen == (50.0, 0.0, 150.0, 100.0)
    assert view.boxes([[0, 0, 50, 100], [40, 10, 60, 20], [150, 0, 200, 100]]) == [[0, 10, 10, 20]]
    assert view_of((40, 40), (64, 64), 48).window == (-8, -8, 64, 64)
    assert view_of((40, 40), (64, 64), 48).seen == (0.0, 0.0, 40, 40)
    assert view_of((40, 40), (64, 64), 48).boxes([[0, 0, 40, 40]]) == [[8, 8, 56, 56]]
