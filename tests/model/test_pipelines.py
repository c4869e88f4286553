# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""transformers' own classification pipelines over saved classifiers: the same figures as by hand, in every form that
the pipelines take; and all pipelines where this package is not."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, pipeline

from cavmae_sync_hf import (
    CavMaeSyncProcessor,
    decode_media,
    save_for_hub,
)
from cavmae_sync_hf.metrics import clip_similarity
from helpers.apart import run_apart
from helpers.classifiers import LABELS, RATE, assert_same, expected, heard, make_classifier, save, seen
from helpers.clips import noise, tone, write_clips


@pytest.fixture(scope="module")
def model():
    return make_classifier()


@pytest.fixture(scope="module")
def processor(model):
    return CavMaeSyncProcessor.from_config(model.config)


@pytest.fixture(scope="module", params=["save_for_hub", "save_pretrained"])
def folder(request, model, processor, tmp_path_factory) -> str:
    target = tmp_path_factory.mktemp("saved") / "model"
    if request.param == "save_for_hub":
        save_for_hub(model, processor, target)
    else:
        model.save_pretrained(target)
        processor.save_pretrained(target)
    return str(target)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[str]:
    """Frames of different brightness; the last clip has no audio."""
    return write_clips(tmp_path_factory.mktemp("clips"), 3, darker=2, silent=1)


@pytest.fixture(scope="module")
def waveforms() -> list[np.ndarray]:
    return [noise(seconds, rate=RATE, channels=1, seed=9)[0] * seconds for seconds in (2.0, 1.0, 0.2)]


# video-classification


def test_video__scores_are_those_of_the_model_on_the_picture(folder, model, processor, clips):
    classify = pipeline("video-classification", folder)

    results = [classify(clip) for clip in clips]

    for result, clip in zip(results, clips, strict=True):
        assert_same(result, seen(model, processor, clip))
    assert len({result[0]["score"] for result in results}) == 3
    whole = processor(videos=clips[0], return_tensors="pt")
    assert_same(results[0], expected(model, {"pixel_values_videos": whole["pixel_values_videos"]}))


def test_video__options(folder, model, processor, clips):
    classify = pipeline("video-classification", folder)

    assert_same(classify(clips[0], top_k=2), seen(model, processor, clips[0], top_k=2))
    assert len(classify(clips[0], top_k=50)) == len(LABELS)
    assert_same(classify(clips[0], num_frames=2), seen(model, processor, clips[0], num_frames=2))
    raw = classify(clips[0], function_to_apply="none")
    assert_same(raw, seen(model, processor, clips[0], activation=torch.clone))
    assert_same(classify(Path(clips[0])), classify(clips[0]))


def test_video__lists_generators_and_batches(folder, model, processor, clips):
    alone = pipeline("video-classification", folder)
    # transformers batches only where it is given a tokenizer or feature extractor; which one does not matter here.
    batched = pipeline("video-classification", folder, feature_extractor=AutoFeatureExtractor.from_pretrained(folder))

    wanted = [seen(model, processor, clip, top_k=2) for clip in clips]
    for found in (
        alone(clips, top_k=2),
        list(alone((clip for clip in clips), top_k=2)),
        batched(clips, top_k=2, batch_size=2),
        list(batched((clip for clip in clips), top_k=2, batch_size=2)),
    ):
        assert len(found) == len(clips)
        for one, other in zip(found, wanted, strict=True):
            assert_same(one, other)


def test_video__missing_file_is_named(folder):
    with pytest.raises(ValueError, match=r"nowhere\.mp4"):
        pipeline("video-classification", folder)("nowhere.mp4")


# audio-classification


def test_audio__arrays_tensors_and_dictionaries(folder, model, processor, waveforms):
    classify = pipeline("audio-classification", folder)

    for waveform in waveforms:
        wanted = heard(model, processor, waveform)
        for form in (
            waveform,
            torch.from_numpy(waveform),
            {"array": waveform, "sampling_rate": RATE, "path": "clip.wav"},
            {"raw": waveform, "sampling_rate": RATE},
        ):
            assert_same(classify(form), wanted)


@pytest.mark.skipif(not importlib.util.find_spec("torchaudio"), reason="transformers resamples with torchaudio here")
def test_audio__other_rates_are_resampled(folder, model, processor):
    # A tone, over noise so that no band is empty.
    waveform = (tone(2.0, 48000, 1000.0, channels=1) + 0.05 * noise(2.0, 48000, channels=1, seed=3))[0]

    found = pipeline("audio-classification", folder)({"array": waveform, "sampling_rate": 48000})

    # Its resampler and ours differ near 8 kHz; samples taken for another rate are much further off.
    wanted = heard(model, processor, waveform, rate=48000)
    assert_same(found, wanted, tolerance=0.01)
    assert abs(heard(model, processor, waveform)[0]["score"] - wanted[0]["score"]) > 0.2


def test_audio__options(folder, model, processor, waveforms):
    classify = pipeline("audio-classification", folder)

    assert_same(classify(waveforms[0], top_k=1), heard(model, processor, waveforms[0], top_k=1))
    assert len(classify(waveforms[0], top_k=None)) == len(LABELS)
    found = classify(waveforms[0], function_to_apply="sigmoid")
    assert_same(found, heard(model, processor, waveforms[0], activation=torch.sigmoid))


def test_audio__lists_generators_and_batches_of_unequal_clips(folder, model, processor, waveforms):
    classify = pipeline("audio-classification", folder)

    wanted = [heard(model, processor, waveform, top_k=2) for waveform in waveforms]
    for found in (
        classify(waveforms, top_k=2),
        classify(waveforms, top_k=2, batch_size=2),
        list(classify((waveform for waveform in waveforms), top_k=2, batch_size=3)),
    ):
        assert len(found) == len(waveforms)
        for one, other in zip(found, wanted, strict=True):
            assert_same(one, other)


def test_audio__the_audio_of_a_video_file(folder, model, processor, clips):
    media = decode_media(clips[0], want_video=False)
    assert media.sampling_rate == RATE

    found = pipeline("audio-classification", folder)(media.waveform)

    assert_same(found, expected(model, processor(audio=media.waveform, sampling_rate=RATE, return_tensors="pt")))


# Both


def test_pipelines__several_labels_get_a_sigmoid(tmp_path, clips, waveforms):
    model = make_classifier(problem_type="multi_label_classification", classifier_type="frame_attention")
    folder, processor = save(model, tmp_path / "model"), CavMaeSyncProcessor.from_config(model.config)

    found = pipeline("video-classification", folder)(clips[0])
    assert_same(found, seen(model, processor, clips[0], activation=torch.sigmoid))
    found = pipeline("audio-classification", folder)(waveforms[0])
    assert_same(found, heard(model, processor, waveforms[0], activation=torch.sigmoid))


def test_pipelines__half_precision(tmp_path, model, processor, clips, waveforms):
    folder = save(model, tmp_path / "model")

    # bfloat16 keeps 8 bits.
    found = pipeline("video-classification", folder, dtype=torch.bfloat16)(clips[0], top_k=1)
    assert_same(found, seen(model, processor, clips[0], top_k=1), tolerance=0.02)
    found = pipeline("audio-classification", folder, dtype=torch.bfloat16)(waveforms[0], top_k=1)
    assert_same(found, heard(model, processor, waveforms[0], top_k=1), tolerance=0.02)


def test_pipelines__model_of_one_modality(tmp_path, clips, waveforms):
    model = make_classifier(modality="audio")
    folder, processor = save(model, tmp_path / "model"), CavMaeSyncProcessor.from_config(model.config)

    found = pipeline("audio-classification", folder)(waveforms[0])
    assert_same(found, heard(model, processor, waveforms[0]))
    with pytest.raises(ValueError, match="modality='audio'"):
        pipeline("video-classification", folder)(clips[0])


STRANGER = """
import importlib.abc, json, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'cavmae_sync_hf':
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
import numpy as np
from transformers import pipeline
folder, clip, audio, again = sys.argv[1:]

def load(task, folder):
    return pipeline(task, folder, trust_remote_code=True, device='cpu')

result = {
    'video-classification': load('video-classification', folder)(clip),
    'audio-classification': load('audio-classification', folder)(np.load(audio)),
}
classify = load('audio-visual-classification', folder)
assert type(classify).__module__.startswith('transformers_modules.'), type(classify)
classify.save_pretrained(again)
for name, place in (('first', folder), ('again', again)):
    result[name] = load('audio-visual-classification', place)(clip)
    features = load('audio-visual-feature-extraction', place)(clip)
    result[name + ' similarity'] = features['similarity'].tolist()
    retrieve = load('audio-visual-retrieval', place)
    result[name + ' ranking'] = retrieve(clip, candidates=[clip], by='audio')
print(json.dumps(result))
"""


def test_pipelines__where_the_package_cannot_be_imported(tmp_path, model, processor, clips, waveforms):
    folder = save(model, tmp_path / "model")
    script = tmp_path / "stranger.py"
    script.write_text(STRANGER)
    np.save(tmp_path / "audio.npy", waveforms[0])
    arguments = [folder, clips[0], str(tmp_path / "audio.npy"), str(tmp_path / "again")]

    done = run_apart(["-I", str(script), *arguments], tmp_path)

    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert_same(found["video-classification"], seen(model, processor, clips[0]), tolerance=1e-4)
    assert_same(found["audio-classification"], heard(model, processor, waveforms[0]), tolerance=1e-4)
    inputs = processor(videos=clips[0], return_tensors="pt")
    with torch.no_grad():
        similarity = model.base_model(**inputs).similarity[0]
        windows = processor(audio=clips[0], return_tensors="pt")["input_values"]
        heard_alone = model.base_model.get_audio_features(windows).audio_embeds
        seen_alone = model.base_model.get_video_features(inputs["pixel_values_videos"]).video_embeds
    for name in ("first", "again"):
        assert_same(found[name], expected(model, inputs), tolerance=1e-4)
        torch.testing.assert_close(torch.tensor(found[f"{name} similarity"]), similarity, rtol=0, atol=1e-4)
        score = clip_similarity(heard_alone, seen_alone).item()
        assert found[f"{name} ranking"][0]["score"] == pytest.approx(score, abs=1e-4)
