"""Embeddings that are NaN or infinite: the failure of their file, which names the moment; nothing of them is kept."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cavmae_sync_hf import (
    CavMaeSyncForAudioVisualClassification,
    CavMaeSyncModel,
    CavMaeSyncProcessor,
    InferenceError,
    SearchError,
)
from cavmae_sync_hf.export import ExportedModel, export_model
from cavmae_sync_hf.inference.classify import classify
from cavmae_sync_hf.inference.extract import extract_features, extract_to_folder
from cavmae_sync_hf.inference.features import choose_features, encode_moments
from cavmae_sync_hf.inference.localize import localize
from cavmae_sync_hf.inference.moments import MediaSpan, embed_moments
from cavmae_sync_hf.inference.sync import measure_sync
from cavmae_sync_hf.model.errors_cavmae_sync import CavMaeSyncError, ExportError
from cavmae_sync_hf.search import embed_query, index_videos, search_clips, search_moments
from helpers.clips import write_clip
from helpers.indexes import make_store, random_vectors, rows_of, vector_query
from helpers.rule_models import RampModel, ramp_video
from helpers.tiny import tiny_config, tiny_inputs


class Overflowing(RampModel):
    """Bright frames give numbers that no half precision holds."""

    def separate(self, modality: str, tokens: Tensor, record: Any = None) -> tuple[Tensor, Tensor]:
        embeds, patches = super().separate(modality, tokens, record)
        bright = embeds.argmax(dim=-1, keepdim=True) > 20
        return (embeds.masked_fill(bright, torch.inf) if modality == "video" else embeds), patches


@pytest.fixture(scope="module")
def pair() -> tuple[Overflowing, CavMaeSyncProcessor]:
    model = Overflowing().eval()
    return model, CavMaeSyncProcessor.from_config(model.config)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> dict[str, Path]:
    """A video that grows bright after some 4 s, between two that stay dark."""
    folder = tmp_path_factory.mktemp("videos")
    dark = {"seconds": 6.0, "frame": lambda *_: np.full((48, 64, 3), 40, np.uint8)}
    return {
        "a": write_clip(folder / "a.mp4", **dark),
        "bright": ramp_video(folder / "bright.mp4"),
        "c": write_clip(folder / "c.mp4", **dark),
    }


@pytest.mark.parametrize("batch_size", [1, 16, 64])
def test_embedding__fails_for_the_file_alone_after_all_that_is_good(pair, videos, batch_size):
    spans = [MediaSpan(path, name=path.name) for path in videos.values()]
    found, errors = {}, {}
    for span, chunks in embed_moments(*pair, spans, hop=0.5, batch_size=batch_size):
        try:
            found[span.name] = 0
            for chunk in chunks:
                assert all(np.isfinite(values).all() for values in chunk.values.values())
                found[span.name] += len(chunk)
        except InferenceError as error:
            errors[span.name] = str(error)
    assert found["a.mp4"] == found["c.mp4"] == 12 and found["bright.mp4"] == 8
    assert list(errors) == ["bright.mp4"]
    assert "bright.mp4: the embedding at 0:04" in errors["bright.mp4"]
    assert "is NaN or infinite, computed in float32" in errors["bright.mp4"]


def test_extraction__lists_the_file_and_keeps_the_others(pair, videos, tmp_path):
    folder = videos["a"].parent
    summary = extract_to_folder(*pair, folder, tmp_path / "out", window=2.0, stride=1.0, modalities=["v"])
    assert list(summary.failed) == ["bright"] and "NaN or infinite" in summary.failed["bright"]
    assert np.isfinite(np.load(tmp_path / "out" / "v.npy")).all()
    with pytest.raises(InferenceError, match="bright.mp4: the embedding at 0:04"):
        extract_features(*pair, videos["bright"], window=2.0, stride=1.0, modalities=["v"])


def test_index__holds_nothing_of_the_file(pair, videos, tmp_path):
    summary = index_videos(videos["a"].parent, tmp_path / "index", *pair, hop=0.5)
    assert [Path(name).name for name in summary.bad] == ["bright.mp4"]
    assert "NaN or infinite" in next(iter(summary.bad.values()))
    rows = rows_of(tmp_path / "index")
    assert sorted(rows) == ["a.mp4", "c.mp4"] and all(len(found) == 12 for found in rows.values())


@pytest.mark.parametrize(
    "use",
    [
        lambda pair, path: measure_sync(*pair, path, hop=0.5),
        lambda pair, path: embed_query(path, *pair, hop=0.5),
        lambda pair, path: embed_query(Image.new("RGB", (64, 48), (240,) * 3), *pair, hop=0.5),
    ],
    ids=["sync", "query", "image"],
)
def test_every_use__says_so(pair, videos, use):
    with pytest.raises(CavMaeSyncError, match="NaN or infinite"):
        use(pair, videos["bright"])


def test_half_precision__is_named_with_the_way_out(pair, videos, monkeypatch):
    model, processor = pair
    monkeypatch.setattr(Overflowing, "dtype", torch.float16)
    monkeypatch.setattr("cavmae_sync_hf.inference.features.move_inputs", lambda inputs, _: dict(inputs))
    with pytest.raises(InferenceError, match="computed in float16; load the model in float32"):
        for _, chunks in embed_moments(model, processor, [MediaSpan(videos["bright"])], hop=0.5):
            list(chunks)


def test_what_stands_for_an_absent_moment__may_be_anything():
    model = CavMaeSyncModel(tiny_config(deduplicate_windows=False)).eval()
    inputs = tiny_inputs(1, 3)
    inputs["pixel_values_videos"][0, 1] = torch.nan
    inputs["padding_mask_videos"] = torch.tensor([[True, False, True]])
    features = choose_features(("v",), model.config)
    encoded = encode_moments(model, inputs, features)
    assert not encoded.broken(features).any() and not encoded.values["v"][0, 1].any()
    del inputs["padding_mask_videos"]
    assert encode_moments(model, inputs, features).broken(features).tolist() == [[False, True, False]]


def test_classification__names_the_clip(videos):
    model = CavMaeSyncForAudioVisualClassification(tiny_config()).eval()
    with torch.no_grad():
        model.head.classifier.bias[0] = torch.inf
    with pytest.raises(InferenceError, match="a.mp4: its scores are NaN or infinite"):
        classify(model, CavMaeSyncProcessor.from_config(model.config), videos["a"])


@pytest.mark.parametrize("method", ["relevance", "occlusion", "cosine"])
def test_localization__says_when(videos, method):
    model = CavMaeSyncModel(tiny_config()).eval()
    with torch.no_grad():
        next(model.joint_layers.parameters())[0] = torch.nan
    with pytest.raises(InferenceError, match="of the moments from 0:00.5 on is NaN or infinite"):
        localize(model, CavMaeSyncProcessor.from_config(model.config), videos["a"], fps=1, method=method)


@pytest.mark.parametrize("whole", [False, True])
def test_search__refuses_vectors_that_are_not_finite(tmp_path, whole):
    vectors = random_vectors(6, seed=1)
    query = vectors[:1].copy()
    query[0, 3] = np.nan
    store = make_store(tmp_path / "index", {"clip.mp4": {"audio": vectors, "video": vectors}})
    find = search_clips if whole else search_moments
    assert find(store, vector_query(audio=vectors[:1])).hits
    with pytest.raises(SearchError, match="vectors that are NaN or infinite"):
        find(store, vector_query(audio=query))


def test_index_of_a_broken_model__is_refused(tmp_path):
    vectors = random_vectors(6, seed=1)
    vectors[2] = 7e4  # more than half precision holds
    with np.errstate(over="ignore"):
        store = make_store(tmp_path / "index", {"clip.mp4": {"audio": None, "video": vectors}})
    with pytest.raises(SearchError, match="make the index anew"):
        search_moments(store, vector_query(audio=random_vectors(1, seed=2)))


def test_export__refuses_broken_weights_and_says_what_an_exported_tower_gives(tmp_path):
    model = CavMaeSyncModel(tiny_config(modality="video")).eval()
    processor = CavMaeSyncProcessor.from_config(model.config)
    export_model(model, processor, tmp_path / "good", format="torch")
    exported = ExportedModel(tmp_path / "good")
    frames = tiny_inputs(1, 2)["pixel_values_videos"]
    assert np.isfinite(exported(pixel_values_videos=frames)["video_embeds"]).all()
    with pytest.raises(ExportError, match="gives `video_embeds` that are NaN or infinite"):
        exported(pixel_values_videos=torch.full_like(frames, torch.nan))
    with torch.no_grad():
        model.video_tower.layers[0].mlp.fc1.weight[0, 0] = torch.nan
    with pytest.raises(ExportError, match="video_tower.layers.0.mlp.fc1.weight"):
        export_model(model, processor, tmp_path / "bad", format="torch")
    assert not (tmp_path / "bad").exists()
