"""Every use of a model whose audio encoder hears moments within longer clips."""

import numpy as np
import pytest
import torch

from cavmae_sync_hf import (
    CavMaeSyncConfig,
    CavMaeSyncModel,
    CavMaeSyncProcessor,
    InferenceError,
    ModelError,
    extract_features,
    load_model,
    localize,
    measure_sync,
)
from cavmae_sync_hf.evaluation import evaluate_retrieval
from cavmae_sync_hf.export import export_model
from cavmae_sync_hf.model.errors_cavmae_sync import ExportError
from cavmae_sync_hf.model.pipelines_cavmae_sync import CavMaeSyncFeatureExtractionPipeline
from cavmae_sync_hf.search import MomentStore, embed_query, index_videos, search_moments
from helpers.clips import noise, write_clip
from helpers.encoders import encoder_config, encoder_settings

AST = "audio-spectrogram-transformer"


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(0)
    sizes = {"audio_encoder_config": encoder_settings("audio", AST, max_length=96)}
    model = CavMaeSyncModel(encoder_config(AST, "vit", audio_context="clip", **sizes)).eval()
    return model, CavMaeSyncProcessor.from_config(model.config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("videos")
    for number, seconds in enumerate((6.0, 4.0)):
        write_clip(place / f"{number}.mp4", seconds=seconds, fps=4, audio=noise(seconds, seed=number))
    return place


def direct(pair, path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The model's own embeddings of the moments of a whole file."""
    model, processor = pair
    inputs = processor(videos=str(path), num_frames=count, return_tensors="pt")
    with torch.inference_mode():
        output = model(**inputs)
    return output.audio_embeds[0].numpy(), output.video_embeds[0].numpy()


def test_extracted_rows__are_what_the_whole_file_gives(pair, folder):
    rows = extract_features(*pair, folder / "0.mp4", window=0.5, stride=0.5, modalities=["a", "v"], batch_frames=2)
    np.testing.assert_allclose(rows.features["a"], direct(pair, folder / "0.mp4", 12)[0], atol=1e-4)
    mixed = extract_features(
        *pair, folder, window=1, stride=1, hop=0.5, modalities=["a", "v"], control="scramble", seed=1
    )
    own = extract_features(*pair, folder, window=1, stride=1, hop=0.5, modalities=["a", "v"])
    np.testing.assert_allclose(mixed.features["v"], own.features["v"], atol=1e-5)
    assert np.abs(mixed.features["a"] - own.features["a"]).max() > 1e-2
    with pytest.raises(InferenceError, match="none hears the window alone"):
        extract_features(*pair, folder, window=2, stride=2, audio_context="inside")


def test_index_and_queries__agree_with_the_whole_file(pair, folder, tmp_path):
    model, processor = pair
    index_videos(folder, tmp_path / "index", model, processor, hop=0.5, batch_size=5)
    audio, video = direct(pair, folder / "0.mp4", 12)
    query = embed_query(folder / "0.mp4", model, processor, hop=0.5, start=3.0, end=4.0, by="audio")
    np.testing.assert_allclose(query.audio, audio[6:8], atol=1e-4)
    best = search_moments(MomentStore.open(tmp_path / "index"), query, find="audio", top=1)[0]
    assert (best.path, best.start, best.windows) == (str(folder / "0.mp4"), 3.0, 2)


def test_synchrony_maps_and_evaluation__are_made(pair, folder):
    model, processor = pair
    result = measure_sync(model, processor, folder / "0.mp4", hop=0.5, max_offset=1.0)
    audio, video = direct(pair, folder / "0.mp4", 12)
    assert result.similarity == pytest.approx(float((audio * video).sum(axis=1).mean()), abs=1e-3)
    found = localize(model, processor, folder / "1.mp4", fps=2)
    audio, video = direct(pair, folder / "1.mp4", 8)
    np.testing.assert_allclose(found.similarity, (audio * video).sum(axis=1), atol=1e-3)
    pipeline = CavMaeSyncFeatureExtractionPipeline(model=model, processor=processor, task="x")
    np.testing.assert_allclose(pipeline(str(folder / "1.mp4"), num_frames=8)["audio_embeds"], audio, atol=1e-4)
    record = evaluate_retrieval(model, processor, folder)
    assert record["counts"]["clips_seen"] == 2 and record["metrics"]


def test_folder__is_loaded_with_its_own_processor_alone(pair, folder, tmp_path):
    model, processor = pair
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, own = load_model(tmp_path)
    assert own.feature_extractor.clip_length == again.config.heard_length == 96
    found = direct((again, own), folder / "1.mp4", 8)[0]
    np.testing.assert_allclose(found, direct(pair, folder / "1.mp4", 8)[0], atol=1e-5)
    with pytest.raises(ExportError, match="an exported tower takes each window alone"):
        export_model(model, processor, tmp_path / "onnx")
    plain = CavMaeSyncConfig.from_dict(model.config.to_dict() | {"audio_context": "window"})
    CavMaeSyncProcessor.from_config(plain).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="has `clip_length` None, .* needs 96"):
        load_model(tmp_path)
