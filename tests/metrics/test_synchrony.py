# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Synchrony metrics on matrices whose answer is known."""

import itertools

import numpy as np
import pytest
import torch

from cavmae_sync_hf.metrics.synchrony import (
    alignment_test,
    bootstrap_interval,
    loud_moments,
    other_clips,
    shift_discrimination,
    sync_detection,
    sync_scores,
    temporal_pair_discrimination,
    win_rate,
)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_sync_scores__summarise_the_diagonal():
    matrix = noise(5, 5)
    matrix.diagonal().copy_(torch.tensor([0.1, 0.2, 0.3, 0.4, 0.9], dtype=torch.float64))
    scores = sync_scores(matrix)
    assert scores.per_frame.tolist() == [0.1, 0.2, 0.3, 0.4, 0.9]
    assert (scores.mean, scores.maximum, scores.minimum) == (pytest.approx(0.38), 0.9, 0.1)
    assert scores.quantiles[0.5] == 0.3 and scores.quantiles[0.25] == 0.2
    assert scores.quantiles[0.9] == pytest.approx(np.quantile([0.1, 0.2, 0.3, 0.4, 0.9], 0.9))


def test_sync_scores__leave_out_absent_moments():
    matrix = torch.diag(torch.tensor([0.5, torch.nan, 0.7, 0.1]))
    scores = sync_scores(matrix, window_mask=[True, False, True, True], frame_mask=[True, True, True, False])
    assert scores.times_present.tolist() == [True, False, True, False]
    assert scores.mean == pytest.approx(0.6) and scores.per_frame.isnan().tolist() == [False, True, False, True]


def test_alignment_test__matches_all_permutations():
    matrix = noise(5, 5) + 0.8 * torch.eye(5)
    result = alignment_test(matrix, permutations=50_000)
    means = np.array([np.mean([matrix[i, j] for j, i in enumerate(p)]) for p in itertools.permutations(range(5))])
    assert result.diagonal_mean == pytest.approx(float(matrix.trace()) / 5)
    assert result.z_score == pytest.approx((result.diagonal_mean - means.mean()) / means.std(), abs=1e-9)
    # 50,000 draws: a standard error of 0.002 at most.
    assert result.p_value == pytest.approx(np.mean(means >= result.diagonal_mean - 1e-12), abs=0.01)
    off = matrix[~torch.eye(5, dtype=torch.bool)].numpy()
    assert result.off_diagonal_mean == pytest.approx(off.mean())
    assert result.effect == pytest.approx((result.diagonal_mean - off.mean()) / off.std())


def test_alignment_test__tells_aligned_from_not():
    aligned = alignment_test(0.3 * noise(16, 16) + torch.eye(16))
    assert aligned.z_score > 5 and aligned.p_value == pytest.approx(1e-4)
    assert alignment_test(0.3 * noise(16, 16) - torch.eye(16)).p_value == 1.0
    # Under chance the p-values are level.
    chance = [alignment_test(noise(8, 8, seed=seed), permutations=199).p_value for seed in range(200)]
    assert 0.4 < np.mean(chance) < 0.6 and 0.02 < np.mean(np.array(chance) <= 0.1) < 0.2


def test_alignment_test__ignores_frames_and_windows_that_fit_everything():
    matrix = noise(8, 8)
    shifted = matrix + 5 * noise(8, 1, seed=1) + 5 * noise(1, 8, seed=2)
    assert alignment_test(shifted).z_score == pytest.approx(alignment_test(matrix).z_score)
    assert alignment_test(shifted).p_value == alignment_test(matrix).p_value


def test_alignment_test__masks_exclusion_and_flat_matrices():
    matrix = noise(6, 6)
    matrix[2] = torch.nan
    kept = [0, 1, 3, 4, 5]
    masked = alignment_test(matrix, window_mask=[k in kept for k in range(6)], exclude=2)
    assert masked.diagonal_mean == pytest.approx(float(matrix[kept][:, kept].trace()) / 5)
    far = [float(matrix[i, j]) for i in kept for j in kept if abs(i - j) >= 2]
    assert masked.off_diagonal_mean == pytest.approx(np.mean(far))
    flat = alignment_test(torch.full((5, 5), 0.3))
    assert (flat.effect, flat.z_score, flat.p_value) == (0.0, 0.0, 1.0)


def test_win_rate_and_sync_detection__by_hand():
    assert win_rate([3.0, 1.0, 2.0, 0.0], [1.0, 3.0, 2.0, 0.0]) == 0.5
    assert win_rate(torch.tensor([[2.0], [0.0]]), torch.tensor([1.0, -1.0, 0.0])) == pytest.approx((3 + 1.5) / 6)
    assert sync_detection([3.0, 2.0], [1.0, 0.0]) == {"auc": 1.0, "equal_error_rate": 0.0}
    assert sync_detection([3.0, 1.0], [2.0, 0.0]) == {"auc": 0.75, "equal_error_rate": 0.5}


def test_shift_discrimination__by_hand():
    # Frame j fits window j by 1 in clip 0; in clip 1 it fits window j + 2 by 2.
    clips = torch.stack([torch.eye(4), torch.eye(4) + 2 * torch.eye(4).roll(2, 0).tril()])
    result = shift_discrimination(clips, step=1.0, min_shift=2.0)
    # Shifts of 2 and 3 both ways; the second clip loses one of four.
    assert result["comparisons"] == 8 and result["clips"] == 2
    assert result["accuracy"] == pytest.approx((1 + 0.75) / 2)
    assert result["all_shifts_accuracy"] == 0.5
    # Scores at 1 and 1 against seven of 0 and one of 2.
    assert result["auc"] == pytest.approx(7 / 8)


def test_shift_discrimination__direction_of_the_shift():
    late = torch.zeros(6, 6)
    late[torch.arange(2, 6), torch.arange(4)] = 1.0  # window j + 2 belongs to frame j: the audio comes late
    assert shift_discrimination(late, step=1.0, min_shift=2.0, max_shift=2.0)["accuracy"] == pytest.approx(0.25)


def test_shift_discrimination__limits_of_the_shift():
    def comparisons(**options):
        return shift_discrimination(noise(16, 16), step=10 / 16, **options)["comparisons"]

    # 2 s are 4 moments of 0.625 s (2.5 s); a quarter of 16 frames must be left: shifts of 4 to 12, both ways.
    assert comparisons() == 18
    assert comparisons(min_shift=2.5) == 18  # exactly on the limit
    assert comparisons(max_shift=2.5) == 2
    assert comparisons(min_overlap=1) == 24


def test_shift_discrimination__masks():
    clips = noise(3, 8, 8) * 0.1 + torch.eye(8)
    windows, frames = torch.ones(3, 8, dtype=torch.bool), torch.ones(3, 8, dtype=torch.bool)
    windows[1, 3:] = False
    clips[1, 3:] = torch.nan
    frames[2] = False
    masks = {"window_mask": windows, "frame_mask": frames}
    # The third clip has no frame. The second keeps windows 0 to 2: shifted by 2, one frame still has a window.
    result = shift_discrimination(clips, step=1.0, min_overlap=1, **masks)
    assert result["accuracy"] == 1.0 and result["clips"] == 2
    assert result["comparisons"] == 2 * 6 + 2
    assert shift_discrimination(clips, step=1.0, min_overlap=2, **masks)["clips"] == 1
    assert shift_discrimination(clips[0], step=1.0)["clips"] == 1


def test_shift_discrimination__chance_is_a_half():
    result = shift_discrimination(noise(400, 16, 16), step=0.625)
    assert result["accuracy"] == pytest.approx(0.5, abs=0.06)  # three standard errors over 400 clips
    assert result["auc"] == pytest.approx(0.5, abs=0.06)
    assert shift_discrimination(torch.zeros(3, 16, 16), step=0.625)["accuracy"] == 0.5


def test_shift_discrimination__control_exposes_what_all_clips_share():
    # Every clip sounds in its middle, and the model knows no more than that.
    course = torch.tensor([0.0, 0, 1, 2, 1, 0, 0, 0, 0, 0])
    shared = (course[:, None] * course).expand(6, -1, -1) + 0.001 * noise(6, 10, 10)
    # Of the second kind each window also fits its own frame.
    own = shared + 5 * torch.eye(10)

    prior = shift_discrimination(shared, step=1.0, other_similarity=shared.roll(1, 0))
    both = shift_discrimination(own, step=1.0, other_similarity=shared.roll(1, 0))

    assert prior["accuracy"] > 0.8
    assert prior["other_audio_accuracy"] == pytest.approx(prior["accuracy"], abs=0.05)
    assert prior["beyond_other_audio_low"] <= prior["beyond_other_audio"] <= prior["beyond_other_audio_high"]
    assert abs(prior["beyond_other_audio"]) < 0.05
    chance = shift_discrimination(own, step=1.0, other_similarity=noise(6, 10, 10))
    assert both["accuracy"] == chance["accuracy"] == 1.0 and chance["beyond_other_audio_low"] > 0.2
    # A clip whose other has no audio stays out of the difference, but not out of the accuracy.
    there = torch.ones(6, 10, dtype=torch.bool)
    there[0] = False
    partly = shift_discrimination(own, step=1.0, other_similarity=shared.roll(1, 0), other_window_mask=there)
    assert partly["clips"] == 6
    assert partly["beyond_other_audio"] == pytest.approx(1 - partly["other_audio_accuracy"])


def test_bootstrap_interval__covers_and_narrows():
    assert bootstrap_interval([0.25] * 5) == (0.25, 0.25)
    values = noise(100) + 2
    low, high = bootstrap_interval(values)
    error = float(values.std()) / 10
    assert low == pytest.approx(float(values.mean()) - 1.96 * error, abs=0.3 * error)
    assert high == pytest.approx(float(values.mean()) + 1.96 * error, abs=0.3 * error)
    assert bootstrap_interval(values) == (low, high)


def test_loud_moments__leave_out_the_ends():
    levels = torch.tensor([[-90.0, -50, -85, -30, -59, -61, -90], [torch.nan] * 7, [-200.0] * 6 + [-10]])
    assert loud_moments(levels).int().tolist() == [[0, 1, 1, 1, 1, 0, 0], [0] * 7, [0] * 6 + [1]]


def test_other_clips__are_neither_the_clip_nor_its_twin():
    assert other_clips(3).tolist() == [1, 2, 0]
    assert other_clips(4, [1, 0, 3, 2]).tolist() == [2, 3, 0, 1]
    assert other_clips(4, [2, 3, 0, 1]).tolist() == [1, 2, 3, 0]
    with pytest.raises(ValueError, match="hold no other clip"):
        other_clips(2, [1, 0])


def test_temporal_pair_discrimination__by_hand():
    eye = torch.eye(4)
    video = torch.stack([eye[[0, 1]], eye[[1, 0]], eye[[2, 3]], eye[[3, 2]], eye[[0, 2]]])
    audio = video.clone()
    audio[[2, 3]] = audio[[3, 2]]  # the audio of the second pair is exchanged
    partners = [1, 0, 3, 2, None]
    result = temporal_pair_discrimination(audio, video, partners)
    assert result == {"audio_to_video": 0.5, "video_to_audio": 0.5, "accuracy": 0.5, "clips": 4}
    assert temporal_pair_discrimination(audio[:2], video[:2], [1, 0])["accuracy"] == 1.0
    # The order within a clip is lost to the mean of all pairs: a draw.
    assert temporal_pair_discrimination(audio[:2], video[:2], [1, 0], "mean")["accuracy"] == 0.5
    arrays = temporal_pair_discrimination(audio.numpy(), video.numpy(), np.array([1, 0, 3, 2, -1]))
    assert arrays == result


def test_temporal_pair_discrimination__masks():
    eye = torch.eye(4)
    video = torch.stack([eye[[0, 1]], eye[[1, 0]]])
    audio = torch.stack([eye[[0, 0]], eye[[1, 1]]])
    mask = torch.tensor([[True, False], [True, False]])
    assert temporal_pair_discrimination(audio, video, [1, 0])["accuracy"] == 0.5
    assert temporal_pair_discrimination(audio, video, [1, 0], audio_mask=mask)["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sync_scores(torch.zeros(3, 4)), r"\(3, 4\); it must be \(windows, frames\), as many"),
        (lambda: sync_scores(torch.eye(3), window_mask=[True]), r"`window_mask` has shape \(1,\)"),
        (lambda: sync_scores(torch.eye(2), frame_mask=[False, False]), "None of the 2 moments"),
        (lambda: sync_scores(torch.tensor([[torch.nan]])), r"not finite at \(0,\)"),
        (lambda: alignment_test(torch.eye(2)), "Only 2 moments"),
        (lambda: alignment_test(torch.eye(4), exclude=9), "`exclude` is 9"),
        (lambda: win_rate([], []), "no scores"),
        (lambda: win_rate([1.0], [float("nan")]), "NaN"),
        (lambda: sync_detection([], [1.0]), "0 aligned and 1 shifted"),
        (lambda: shift_discrimination(torch.eye(4), step=0.0), "`step` is 0.0"),
        (lambda: shift_discrimination(torch.eye(4), step=0.2, min_shift=2.0), "No shift from 2.0 s"),
        (lambda: shift_discrimination(torch.eye(9), step=1.0, other_similarity=torch.eye(8)), "must be that of"),
        (lambda: other_clips(1), "hold no other clip for each"),
        (lambda: bootstrap_interval([0.1, torch.nan]), "one number per clip"),
        (lambda: shift_discrimination(torch.eye(4), step=1.0, min_overlap=0), "`min_overlap` is 0"),
        (lambda: shift_discrimination(torch.eye(4) * torch.nan, step=1.0), "not finite"),
        (lambda: temporal_pair_discrimination(torch.ones(2, 1, 3), torch.ones(2, 1, 3), [0, 1]), "Clip 0 has partner"),
        (lambda: temporal_pair_discrimination(torch.ones(2, 1, 3), torch.ones(2, 1, 3), [5, 0]), "Clip 0 has part"),
        (lambda: temporal_pair_discrimination(torch.ones(2, 1, 3), torch.ones(2, 1, 3), [1]), "1 partners for 2"),
        (lambda: temporal_pair_discrimination(torch.ones(1, 1, 3), torch.ones(1, 1, 3), [None]), "No clip has a par"),
    ],
)
def test_synchrony__names_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
