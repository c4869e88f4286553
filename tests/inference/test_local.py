"""Localisation by local heads: right of falls that are right, and open for audio, words and evaluation alike."""

import numpy as np
import pytest
import torch

from cavmae_sync_hf import CavMaeSyncModel, InferenceError
from cavmae_sync_hf.evaluation.localization import evaluate_localization
from cavmae_sync_hf.inference.local import local_maps, settle_peaks
from cavmae_sync_hf.inference.localize import localize
from cavmae_sync_hf.inference.occlusion import embed_without, occlusion_maps
from cavmae_sync_hf.inference.texts import project
from cavmae_sync_hf.loading import load_model
from cavmae_sync_hf.syncworld import read_truth
from helpers.tiny import tiny_config, tiny_inputs

INPUTS = {"video": "pixel_values_videos", "audio": "input_values"}
GRIDS = {"video": (4, 4), "audio": (2, 6)}


@pytest.mark.parametrize("width", [None, 20])
@pytest.mark.parametrize(("modality", "fill"), [("video", None), ("audio", -1.5)])
def test_maps__of_true_falls_are_those_of_occlusion(modality, fill, width):
    """Also of a text's query, whose space may be another."""
    torch.manual_seed(0)
    model, inputs = CavMaeSyncModel(tiny_config()).eval(), tiny_inputs()[INPUTS[modality]]
    weights = None if width is None else torch.randn(width, 32)
    queries, present = torch.randn(2, 3, width or 32), torch.tensor([[True, True, False], [True, True, True]])
    count = GRIDS[modality][0] * GRIDS[modality][1]
    with torch.no_grad():
        embeds = model(**{INPUTS[modality]: inputs})[f"{modality}_embeds"]
    places = torch.arange(count).expand(2, 3, -1).flatten(1)
    without = embed_without(model, modality, inputs.repeat_interleave(count, dim=1), places, fill=fill)
    falls = embeds.unsqueeze(2) - without.unflatten(1, (3, count))

    found = local_maps(embeds, falls, queries, GRIDS[modality], present=present, projection=weights)

    options = {"present": present, "fill": fill, "projection": weights}
    expected = occlusion_maps(model, modality, inputs, queries, **options)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert expected.std() > 1e-3 and project(embeds, weights).shape[-1] == (width or 32)


@pytest.mark.parametrize("width", [None, 20])
def test_peaks__are_settled_by_what_is_lost_indeed(width):
    """Of the highest three patches the one without whose block most is lost becomes the peak, at that height."""
    torch.manual_seed(0)
    model, inputs = CavMaeSyncModel(tiny_config()).eval(), tiny_inputs()["pixel_values_videos"]
    weights = None if width is None else torch.randn(width, 32)
    queries, maps = torch.randn(2, 3, width or 32), torch.rand(2, 3, 4, 4)
    with torch.no_grad():
        embeds = model(pixel_values_videos=inputs).video_embeds

    settled, hidden = settle_peaks(model, "video", inputs, embeds, queries, maps, projection=weights)

    falls = occlusion_maps(model, "video", inputs, queries, projection=weights).flatten(-2)
    tried = maps.flatten(-2).topk(3).indices
    lost, best = falls.gather(-1, tried).max(dim=-1, keepdim=True)
    assert torch.equal(settled.flatten(-2).argmax(-1, keepdim=True), tried.gather(-1, best))
    torch.testing.assert_close(settled.amax((-2, -1)), lost[..., 0].clamp(min=1e-6), atol=1e-5, rtol=1e-4)
    found = project(embeds, weights) - project(hidden, weights)
    torch.testing.assert_close((found * queries).sum(-1), lost[..., 0], atol=1e-5, rtol=1e-4)


def test_localize__takes_the_heads(spatial_world):
    model, processor = load_model("example", modalities="both")
    video = next(iter(read_truth(spatial_world)))["path"]
    for method in (localize, evaluate_localization):
        data, name = (video, "method") if method is localize else (spatial_world, "maps")
        with pytest.raises(InferenceError, match="no local heads, .* `cavmae-sync local-head`"):
            method(model, processor, data, **{name: "local"})
    relevance = localize(model, processor, video, fps=2)
    assert relevance.method == "relevance"

    torch.manual_seed(0)
    model.set_local_heads(8)
    for head in model.local_heads.values():
        torch.nn.init.normal_(head.fall.weight, std=0.1)
    found = localize(model, processor, video, fps=2, method="local")

    assert localize(model, processor, video, fps=0.5).method == "relevance"
    assert found.method == "local" and found.settings["video_block"] == [3, 3]
    assert all(getattr(found, name).shape == getattr(relevance, name).shape for name in ("video_maps", "audio_maps"))
    assert found.video_maps[found.present].std() > 0 and (found.similarity == relevance.similarity).all()
    assert np.isfinite(found.strength[found.present]).all()
    assert {"fall", "peak", "box"} <= found.to_dict()["moments"][0].keys()
    record = evaluate_localization(model, processor, spatial_world, maps="local")
    assert record["protocol"]["maps"] == "local"
    assert 0 <= record["metrics"]["pointing_accuracy"] < 0.6  # of heads that know nothing
    assert record["metrics"]["time_pointing_maps"] > 0
