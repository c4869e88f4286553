# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""transformers' own classification pipelines over saved classifiers: the same figures as by hand, in every form that
the pipelines take."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, pipeline

from apart import run_apart
from cavmae_sync_hf import (
    CavMaeSyncForAudioVisualClassification,
    CavMaeSyncProcessor,
    decode_media,
    save_for_hub,
)
from clips import noise, numbered_frame, tone, write_clip
from tiny import tiny_config

LABELS = ["applause", "barking", "chime", "drumming", "engine"]
RATE = 16000


def make_classifier(**overrides) -> CavMaeSyncForAudioVisualClassification:
    torch.manual_seed(0)
    return CavMaeSyncForAudioVisualClassification(tiny_config(id2label=dict(enumerate(LABELS)), **overrides)).eval()


def save(model, folder: Path) -> str:
    return str(save_for_hub(model, CavMaeSyncProcessor.from_config(model.config), folder))


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
    """Pictures of different brightness; the last one has no sound."""
    folder = tmp_path_factory.mktemp("clips")
    return [
        str(
            write_clip(
                folder / f"{place}.mp4",
                seconds=1.0,
                picture=lambda number, _, dark=place: numbered_frame(number) // (1 + 2 * dark),
                audio=noise(1.0, seed=place) if place < 2 else False,
            )
        )
        for place in range(3)
    ]


@pytest.fixture(scope="module")
def waveforms() -> list[np.ndarray]:
    return [noise(seconds, rate=RATE, channels=1, seed=9)[0] * seconds for seconds in (2.0, 1.0, 0.2)]


def expected(model, inputs, top_k=5, activation=torch.softmax) -> list[dict]:
    """What the pipelines give for one clip, from the model and its inputs."""
    with torch.no_grad():
        logits = model(**inputs).logits[0]
    scores = logits.softmax(-1) if activation is torch.softmax else activation(logits)
    order = scores.argsort(descending=True)[:top_k].tolist()
    return [{"label": LABELS[place], "score": scores[place].item()} for place in order]


def assert_same(found: list[dict], wanted: list[dict], tolerance: float = 1e-5) -> None:
    # Batches and single clips sum in another order; nothing else differs.
    assert [entry["label"] for entry in found] == [entry["label"] for entry in wanted]
    assert [entry["score"] for entry in found] == pytest.approx([entry["score"] for entry in wanted], abs=tolerance)


# video-classification


def seen(model, processor, clip, **options) -> list[dict]:
    num_frames = options.pop("num_frames", model.config.num_frames)
    pictures = processor.video_processor(clip, do_sample_frames=True, num_frames=num_frames, return_tensors="pt")
    return expected(model, pictures, **options)


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


def heard(model, processor, waveform, rate=RATE, **options) -> list[dict]:
    windows = processor.feature_extractor(waveform, sampling_rate=rate, return_tensors="pt")
    return expected(model, windows, **options)


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


def test_audio__the_sound_of_a_video_file(folder, model, processor, clips):
    sound = decode_media(clips[0], want_video=False)
    assert sound.sampling_rate == RATE

    found = pipeline("audio-classification", folder)(sound.waveform)

    assert_same(found, expected(model, processor(audio=sound.waveform, sampling_rate=RATE, return_tensors="pt")))


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


def test_pipelines__where_the_package_cannot_be_imported(tmp_path, model, processor, clips, waveforms):
    folder = save(model, tmp_path / "model")
    script = tmp_path / "stranger.py"
    script.write_text(
        "import importlib.abc, json, sys\n"
        "class Blocked(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] == 'cavmae_sync_hf':\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "import numpy as np\n"
        "from transformers import pipeline\n"
        "folder, clip, sound = sys.argv[1:]\n"
        "video = pipeline('video-classification', folder, trust_remote_code=True)(clip)\n"
        "audio = pipeline('audio-classification', folder, trust_remote_code=True)(np.load(sound))\n"
        "print(json.dumps([video, audio]))\n"
    )
    np.save(tmp_path / "sound.npy", waveforms[0])

    done = run_apart(["-I", str(script), folder, clips[0], str(tmp_path / "sound.npy")], tmp_path)

    assert done.returncode == 0, done.stderr
    video, audio = json.loads(done.stdout.splitlines()[-1])
    assert_same(video, seen(model, processor, clips[0]), tolerance=1e-4)
    assert_same(audio, heard(model, processor, waveforms[0]), tolerance=1e-4)
