"""Localisation by relevance: contributions that add up, the place whose loss matters most, and the same answers."""

import pytest
import torch
from transformers import ViTConfig

from cavmae_sync_hf import CavMaeSyncModel, CavMaeSyncProcessor, InferenceError
from cavmae_sync_hf.evaluation.localization import evaluate_localization
from cavmae_sync_hf.inference import relevance
from cavmae_sync_hf.inference.localize import localize
from cavmae_sync_hf.inference.occlusion import embed_without, occlusion_maps
from cavmae_sync_hf.inference.relevance import contributions, relevance_maps
from cavmae_sync_hf.inference.texts import project
from cavmae_sync_hf.loading import load_model
from cavmae_sync_hf.syncworld import read_truth
from helpers.tiny import tiny_config, tiny_inputs

INPUTS = {"video": "pixel_values_videos", "audio": "input_values"}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return CavMaeSyncModel(tiny_config(num_contrastive_head_layers=1)).eval()


def embed(model: CavMaeSyncModel) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        output = model(**tiny_inputs())
    return {"audio": output.audio_embeds, "video": output.video_embeds}


@pytest.mark.parametrize("modality", ["audio", "video"])
def test_contributions__add_up_to_the_similarity(modality):
    """Without biases, and without tokens besides the patches, nothing else contributes."""
    torch.manual_seed(0)
    model = CavMaeSyncModel(tiny_config(num_register_tokens=0, use_global_tokens=False)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") and "projection" not in name:
                parameter.zero_()
    queries = torch.randn(2, 3, 32)

    values, embeds = contributions(model, modality, tiny_inputs()[INPUTS[modality]], queries)

    torch.testing.assert_close(embeds, embed(model)[modality], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(values.sum((-2, -1)), (embeds * queries).sum(-1), atol=1e-5, rtol=1e-4)
    assert values.std() > 1e-4


def test_contributions__leave_the_model_as_it_was(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    contributions(model, "video", tiny_inputs()["pixel_values_videos"], torch.randn(2, 3, 32))

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("width", [None, 20])
@pytest.mark.parametrize(("modality", "fill"), [("video", None), ("audio", -1.5)])
def test_maps__with_all_blocks_tried_peak_where_occlusion_does(model, modality, fill, width, monkeypatch):
    """If falls alone count. Also of a text's query, whose space may be another."""
    monkeypatch.setattr(relevance, "_SUM_WEIGHT", 0.0)
    inputs = tiny_inputs()[INPUTS[modality]]
    embeds = embed(model)
    weights = None if width is None else torch.randn(width, 32)
    queries = project(embeds["audio" if modality == "video" else "video"], weights)
    options = {"fill": fill, "projection": weights}

    maps, hidden = relevance_maps(model, modality, inputs, queries, candidates=100, **options)
    expected = occlusion_maps(model, modality, inputs, queries, **options)

    falls = expected.flatten(-2).amax(-1)
    at_peaks = expected.flatten(-2).gather(-1, maps.flatten(-2).argmax(-1, keepdim=True))[..., 0]
    torch.testing.assert_close(at_peaks, falls)  # blocks that reach over the same patches are equals
    torch.testing.assert_close(maps.flatten(-2).amax(-1), falls.clamp(min=1e-6), atol=1e-5, rtol=1e-4)
    lost = project(embeds[modality], weights) - project(hidden, weights)
    torch.testing.assert_close((lost * queries).sum(-1), falls, atol=1e-5, rtol=1e-4)


def test_maps__of_one_candidate_are_those_of_the_largest_sum(model):
    inputs, queries = tiny_inputs()["pixel_values_videos"], torch.randn(2, 3, 32)
    present = torch.tensor([[True, True, False], [True, True, True]])
    one, hidden = relevance_maps(model, "video", inputs, queries, candidates=1, present=present)
    none = relevance_maps(model, "video", inputs, queries, candidates=0, present=present)

    peaks = one.flatten(-2).argmax(-1)
    assert torch.equal(peaks, none.maps.flatten(-2).argmax(-1)) and none.hidden is None
    sums = torch.nn.functional.avg_pool2d(contributions(model, "video", inputs, queries)[0], 3, 1, 1)
    assert torch.equal(peaks[present], sums.flatten(-2).argmax(-1)[present])
    expected = embed_without(model, "video", inputs, peaks)
    torch.testing.assert_close(hidden[present], expected[present], atol=1e-6, rtol=1e-5)
    assert not one[0, 2].any() and (one[present] >= 0).all()


def test_localize__by_relevance_points_at_what_sounds(spatial_world):
    """The small trained model finds it where leaving out patch after patch does; with other audio it does not."""
    model, processor = load_model("example", modalities="both")
    record = next(iter(read_truth(spatial_world)))
    found = localize(model, processor, record["path"], fps=2)
    slow = localize(model, processor, record["path"], fps=2, method="occlusion")

    assert found.method == "relevance" and slow.method == "occlusion"
    strong = found.has_source & slow.has_source
    assert strong.sum() >= 3
    apart = ((found.peaks() - slow.peaks())[strong] ** 2).sum(axis=1) ** 0.5
    assert (apart < 0.2).mean() > 0.7
    assert found.settings["video_block"] == [3, 3] and found.to_dict()["moments"][0].keys() >= {"fall", "peak"}
    record = evaluate_localization(model, processor, spatial_world, maps="relevance")
    assert record["protocol"]["maps"] == "relevance"
    assert record["metrics"]["pointing_accuracy"] > 0.6 > 3 * record["metrics"]["pointing_chance"]
    assert record["metrics"]["time_pointing_accuracy"] > record["metrics"]["time_pointing_chance"]


def test_localize__of_other_models_encoders_leaves_out_patches(spatial_world):
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    encoder = ViTConfig(**sizes, image_size=32, patch_size=8)
    model = CavMaeSyncModel(tiny_config(video_encoder_config=encoder)).eval()
    processor = CavMaeSyncProcessor.from_config(model.config)
    video = next(iter(read_truth(spatial_world)))["path"]

    assert localize(model, processor, video, fps=0.5).method == "occlusion"
    with_heads = CavMaeSyncModel(tiny_config(video_encoder_config=encoder, local_head_size=4)).eval()
    assert localize(with_heads, processor, video, fps=0.5).method == "local"
    with pytest.raises(InferenceError, match='The video tower is an encoder .* use method="occlusion"'):
        localize(model, processor, video, fps=0.5, method="relevance")
