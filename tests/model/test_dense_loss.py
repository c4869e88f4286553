"""The contrast of patches with patches: its value and regularisers by hand, and models that have it or not."""

import math

import pytest
import torch

from cavmae_sync_hf import (
    CavMaeSyncForPreTraining,
    CavMaeSyncModel,
    CavMaeSyncProcessor,
    InferenceError,
    TrainingError,
)
from cavmae_sync_hf.inference.local import dense_maps, require_dense_projections
from cavmae_sync_hf.inference.localize import localize
from cavmae_sync_hf.model.losses_cavmae_sync import (
    dense_contrastive_loss,
    dense_regularization,
    dense_similarities,
)
from cavmae_sync_hf.training import CavMaeSyncTrainer, PretrainingArguments
from helpers.clips import write_clip
from helpers.tiny import tiny_config, tiny_inputs

X, Y = [1.0, 0.0], [0.0, 1.0]
# Two pairs of two audio patches and two frame patches.
AUDIO = torch.tensor([[X, Y], [X, [-1.0, 0.0]]])
VIDEO = torch.tensor([[X, Y], [Y, [0.0, -1.0]]])


def test_similarities__are_means_over_audio_of_the_best_patch_of_the_frame():
    """Of the first window both patches are in the first frame; the second has none of its own frame's."""
    assert dense_similarities(AUDIO, VIDEO).tolist() == [[1.0, 0.5], [0.5, 0.0]]


def test_loss__is_the_contrast_of_these():
    loss = dense_contrastive_loss(AUDIO, VIDEO, 0.5)
    # Each frame must find its window: rows are frames, (1, 0.5) and (0.5, 0), over the temperature.
    expected = (math.log(1 + math.exp(-1.0)) + math.log(1 + math.exp(1.0))) / 2
    assert loss.item() == pytest.approx(expected)
    assert dense_contrastive_loss(AUDIO, VIDEO, 0.5, valid=torch.tensor([True, False])) == 0


def test_regularisers__are_means_over_what_each_is_about():
    """The grid has one row of three columns; the first pair's patches lie side by side, the second's do not."""
    places = torch.tensor([[1, 0], [0, 2]])
    silent = torch.tensor([[False, False], [True, False]])

    def value(*weights: float, **options):
        given = {"places": places, "grid": (1, 3), "silent": silent, "weights": weights} | options
        return dense_regularization(AUDIO, VIDEO, **given).item()

    # Cosines of the pairs: [[1, 0], [0, 1]] and [[0, 0], [0, 0]].
    assert value(1, 0, 0) == 0 and value(0, 1, 0) == 0 and value(0, 0, 1) == pytest.approx(1.0)
    assert value(0, 3, 0, silent=~silent) == pytest.approx(3 * (0.5 + 0.5 + 0) / 3)
    assert value(2, 0, 0.5, valid=torch.tensor([False, True])) == 0
    assert dense_regularization(
        AUDIO, -VIDEO, places=places, grid=(1, 3), silent=None, weights=(1, 1, 0)
    ).item() == pytest.approx((0.5 + 0.5) / 4)


def test_pretraining__learns_by_it_and_says_so(tmp_path):
    torch.manual_seed(0)
    config = tiny_config(dense_loss_weight=0.5, dense_size=6, reconstruction_loss_weight=0.0)
    model, inputs = CavMaeSyncForPreTraining(config).train(), tiny_inputs(4, 1)
    inputs["input_values"][0, 0, :24] = -2.0  # digital silence in half of a window
    output = model(**inputs)
    parts = config.contrastive_loss_weight * output.contrastive_loss + 0.5 * (
        output.dense_loss + output.dense_regularization_loss
    )
    torch.testing.assert_close(output.loss, parts)
    output.loss.backward()
    for projection in model.model.dense_projections.values():
        assert projection.weight.grad is not None and projection.weight.grad.abs().sum() > 0
    optimizer, first = torch.optim.Adam(model.parameters(), 3e-3), output.dense_loss.item()
    for _ in range(40):
        optimizer.zero_grad()
        found = model(**inputs)
        found.loss.backward()
        optimizer.step()
    assert found.dense_loss < 0.7 * first

    model.save_pretrained(tmp_path)
    again = CavMaeSyncModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        local = again(**inputs, output_local_embeds=True)
    assert local.local_video_embeds.shape == (4, 1, 16, 6) and local.local_audio_embeds.shape == (4, 1, 12, 6)
    torch.testing.assert_close(local.local_video_embeds.norm(dim=-1), torch.ones(4, 1, 16))
    scores = dense_similarities(local.local_audio_embeds[:, 0], local.local_video_embeds[:, 0])
    maps = dense_maps(local.local_video_embeds, local.local_audio_embeds, "max")
    torch.testing.assert_close(maps.mean(dim=-1)[:, 0], scores.diagonal())
    again.set_local_heads(4)
    assert again.config.dense_loss_weight == 0 and not len(again.dense_projections)


def test_models_without_it__are_as_ever():
    torch.manual_seed(0)
    model = CavMaeSyncForPreTraining(tiny_config())
    saved = model.config.to_dict()
    assert not any("dense" in name for name in [*model.state_dict(), *saved])
    assert model(**tiny_inputs()).dense_loss is None
    for wrong in ({"local_head_size": 4}, {"contrastive_loss_weight": 0.0}):
        with pytest.raises(Exception, match="`dense_loss_weight` is 0.1, which needs"):
            tiny_config(dense_loss_weight=0.1, **wrong)
    with pytest.raises(InferenceError, match="trained without a dense loss"):
        require_dense_projections(model.model)
    with pytest.raises(InferenceError, match="not with words"):
        require_dense_projections(CavMaeSyncModel(tiny_config(dense_loss_weight=0.1)), words=True)
    with pytest.raises(TrainingError, match="`contrast_chunk_size` is 2, and `dense_loss_weight`"):
        CavMaeSyncTrainer(
            CavMaeSyncForPreTraining(tiny_config(dense_loss_weight=0.1)),
            PretrainingArguments(contrast_chunk_size=2, use_cpu=True),
            processor=CavMaeSyncProcessor.from_config(tiny_config()),
        )


def test_localize__compares_projected_patches(tmp_path):
    torch.manual_seed(0)
    model = CavMaeSyncModel(tiny_config(dense_loss_weight=0.1)).eval()
    video = write_clip(tmp_path / "clip.mp4")

    found = localize(model, CavMaeSyncProcessor.from_config(model.config), video, fps=2, method="dense")

    assert found.method == "dense" and "video_block" not in found.settings
    assert found.video_maps.shape[1:] == (4, 4) and found.audio_maps.shape[1:] == (2, 6)
    assert found.video_maps[found.present].std() > 0 and abs(found.video_maps).max() <= 1
    assert found.audio_maps[found.present].std() > 0
