import pytest
import torch
from torch.nn.functional import normalize

from cavmae_sync_hf.model.losses_cavmae_sync import contrastive_loss, patchify, reconstruction_loss, unpatchify


def embeds(pairs: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return [normalize(torch.randn(pairs, 8, generator=generator), dim=-1) for _ in range(2)]


def test_contrastive_loss__softmax_runs_over_the_audio_of_each_frame():
    audio, video = embeds(5)
    scores = audio @ video.T / 0.05
    expected = torch.stack([scores[:, j].logsumexp(0) - scores[j, j] for j in range(5)]).mean()
    loss, accuracy = contrastive_loss(audio, video, 0.05)
    torch.testing.assert_close(loss, expected)
    assert accuracy == (scores.argmax(dim=0) == torch.arange(5)).float().mean()


def test_contrastive_loss__bidirectional_is_the_mean_of_both():
    audio, video = embeds(6)
    both = contrastive_loss(audio, video, 0.1, bidirectional=True).loss
    one, other = contrastive_loss(audio, video, 0.1).loss, contrastive_loss(video, audio, 0.1).loss
    torch.testing.assert_close(both, (one + other) / 2)


def test_contrastive_loss__invalid_pairs_change_nothing():
    audio, video = embeds(6)
    valid = torch.tensor([True, False, True, True, False, True])
    with_mask = contrastive_loss(audio, video, 0.05, bidirectional=True, valid=valid)
    without = contrastive_loss(audio[valid], video[valid], 0.05, bidirectional=True)
    torch.testing.assert_close(with_mask, without)


def test_contrastive_loss__nothing_valid_is_zero_with_a_gradient():
    audio, video = (e.requires_grad_() for e in embeds(3))
    loss = contrastive_loss(audio, video, 0.05, bidirectional=True, valid=torch.zeros(3, dtype=torch.bool)).loss
    loss.backward()
    assert loss == 0 and torch.equal(audio.grad, torch.zeros_like(audio))


def test_contrastive_loss__other_moments_of_a_clip_are_no_negatives():
    audio, video = embeds(4)
    clip_ids = torch.tensor([0, 0, 1, 1])
    scores = audio @ video.T / 0.05
    rivals = {0: [0, 2, 3], 1: [1, 2, 3], 2: [2, 0, 1], 3: [3, 0, 1]}
    expected = torch.stack([scores[r, j].logsumexp(0) - scores[j, j] for j, r in rivals.items()]).mean()
    torch.testing.assert_close(contrastive_loss(audio, video, 0.05, clip_ids=clip_ids).loss, expected)


def test_contrastive_loss__half_precision_is_computed_in_float32():
    audio, video = embeds(4)
    assert contrastive_loss(audio.bfloat16(), video.bfloat16(), 0.05).loss.dtype == torch.float32


def test_reconstruction_loss__counts_removed_patches_of_valid_samples():
    prediction, target = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    mask = torch.tensor([[1.0, 0, 0], [1, 1, 0]])
    valid = torch.tensor([True, False])
    expected = (prediction[0, 0] - target[0, 0]).square().mean()
    torch.testing.assert_close(
        reconstruction_loss(prediction, target, mask, norm_pix_loss=False, valid=valid), expected
    )


def test_reconstruction_loss__normalised_targets_ignore_brightness_and_contrast():
    target = torch.randn(2, 3, 64)
    perfect = (target - target.mean(-1, keepdim=True)) / target.std(-1, keepdim=True)
    loss = reconstruction_loss(perfect, target * 7 + 3, torch.ones(2, 3))
    assert loss < 1e-6  # only the 1e-6 inside the root is left


def test_patchify__is_row_major_and_undone_by_unpatchify():
    images = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).reshape(2, 3, 4, 6)
    patches = patchify(images, 2)
    assert patches.shape == (2, 6, 12)
    assert torch.equal(patches[0, 1].reshape(2, 2, 3), images[0, :, 0:2, 2:4].permute(1, 2, 0))
    assert torch.equal(unpatchify(patches, (2, 3), 2), images)


def test_unpatchify__refuses_a_grid_that_does_not_fit():
    with pytest.raises(ValueError, match="6 patches for a grid of 2 x 2"):
        unpatchify(torch.zeros(1, 6, 12), (2, 2), 2)
