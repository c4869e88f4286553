# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The audio-visual pipelines of this package: the same figures as by hand, in every form that a clip comes in."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, pipeline
from transformers.pipelines import PIPELINE_REGISTRY

from cavmae_sync_hf import (
    CavMaeSyncForPreTraining,
    CavMaeSyncModel,
    CavMaeSyncProcessor,
    MissingTrackError,
    ModelError,
    decode_media,
)
from cavmae_sync_hf.metrics import clip_similarity
from cavmae_sync_hf.model.auto_map_cavmae_sync import CUSTOM_PIPELINES
from cavmae_sync_hf.model.pipelines_cavmae_sync import STRATEGIES, CavMaeSyncClassificationPipeline
from helpers.classifiers import RATE, assert_same, expected, heard, make_classifier, save, seen
from helpers.clips import noise, numbered_frame, write_clips
from helpers.tiny import tiny_config


@pytest.fixture(scope="module")
def model():
    return make_classifier()


@pytest.fixture(scope="module")
def processor(model):
    return CavMaeSyncProcessor.from_config(model.config)


@pytest.fixture(scope="module")
def home(model, tmp_path_factory) -> str:
    return save(model, tmp_path_factory.mktemp("home") / "model")


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[str]:
    """Frames of different brightness; the last clip has no audio."""
    return write_clips(tmp_path_factory.mktemp("clips"), 3, darker=2, silent=1)


@pytest.fixture(scope="module")
def waveforms() -> list[np.ndarray]:
    return [noise(seconds, rate=RATE, channels=1, seed=9)[0] * seconds for seconds in (2.0, 1.0, 0.2)]


@pytest.mark.parametrize("task", CUSTOM_PIPELINES)
def test_outputs__that_are_not_finite_are_refused(processor, clips, task):
    broken = make_classifier()
    with torch.no_grad():
        next(broken.model.joint_layers.parameters())[0] = torch.nan
    own = pipeline(task, model=broken, processor=processor)
    with pytest.raises(ModelError, match="are NaN or infinite, computed in float32"):
        own(clips[0], candidates=clips[:2], by="audio") if task == "audio-visual-retrieval" else own(clips[0])


# Which code runs


def test_own__saved_folder_names_the_tasks_and_the_installed_ones_serve_it(home):
    saved = json.loads((Path(home) / "config.json").read_text())["custom_pipelines"]

    assert saved == CUSTOM_PIPELINES
    # Otherwise transformers would ask for `trust_remote_code=True`, and run the folder's code.
    assert not getattr(AutoConfig.from_pretrained(home), "custom_pipelines", None)
    for task, entry in CUSTOM_PIPELINES.items():
        registered = PIPELINE_REGISTRY.supported_tasks[task]["impl"]
        assert registered.__module__.endswith(entry["impl"].split(".")[0])
        assert type(pipeline(task, home)) is registered
        assert type(pipeline(task, home, trust_remote_code=True)) is registered


def test_own__pipelines_of_others_stay_in_the_configuration(tmp_path):
    other = {"mine": {"impl": "mine.MyPipeline", "pt": ["AutoModel"]}}
    tiny_config(custom_pipelines=other | CUSTOM_PIPELINES).save_pretrained(tmp_path)

    assert json.loads((tmp_path / "config.json").read_text())["custom_pipelines"] == other | CUSTOM_PIPELINES
    assert AutoConfig.from_pretrained(tmp_path).custom_pipelines == other


@pytest.mark.parametrize("task", sorted(CUSTOM_PIPELINES))
def test_own__no_clips_and_unknown_options_are_refused(home, clips, task):
    run = pipeline(task, home)
    options = {"candidates": [clips[0]], "by": "audio"} if "retrieval" in task else {}

    with pytest.raises(ValueError, match="got no clips"):
        run([], **options)
    with pytest.raises(TypeError, match="no option 'top'"):
        run(clips[0], top=3, **options)
    with pytest.raises(ValueError, match="`missing` is 'skip'"):
        run(clips[0], missing="skip", **options)
    with pytest.raises(ValueError, match=r"nowhere\.mp4"):
        run("nowhere.mp4", **options)
    with pytest.raises(ValueError, match="Got a int as a clip"):
        run(7, **options)


def test_own__model_object_needs_its_processor(model, processor, clips):
    with pytest.raises(ValueError, match="needs the model's processor"):
        CavMaeSyncClassificationPipeline(model, task="audio-visual-classification")
    found = pipeline("audio-visual-classification", model, processor=processor)(clips[0])
    assert_same(found, expected(model, processor(videos=clips[0], return_tensors="pt")))


# audio-visual-classification


def test_classification__forms_of_a_clip(home, model, processor, clips):
    classify = pipeline("audio-visual-classification", home)
    wanted = expected(model, processor(videos=clips[0], return_tensors="pt"))
    media = decode_media(clips[0], num_frames=model.config.num_frames)
    data = Path(clips[0]).read_bytes()

    for form in (
        clips[0],
        Path(clips[0]),
        data,
        io.BytesIO(data),
        {"path": clips[0], "bytes": None},
        {"video": clips[0]} | {"audio": clips[0]},
        {"video": clips[0], "audio": media.waveform, "sampling_rate": RATE},
        {
            "video": media.frames,
            "frame_times": media.frame_times,
            "audio": {"array": media.waveform.numpy(), "sampling_rate": RATE},
        },
    ):
        assert_same(classify(form), wanted)


def test_classification__other_audio_changes_the_scores(home, model, processor, clips, waveforms):
    found = pipeline("audio-visual-classification", home)(
        {"video": clips[0], "audio": waveforms[0], "sampling_rate": RATE}
    )

    inputs = processor(videos=clips[0], audio=waveforms[0], sampling_rate=RATE, return_tensors="pt")
    assert_same(found, expected(model, inputs))
    assert found[0]["score"] != pytest.approx(pipeline("audio-visual-classification", home)(clips[0])[0]["score"])


def test_classification__lists_generators_and_batches(home, model, processor, clips):
    classify = pipeline("audio-visual-classification", home)
    wanted = [expected(model, processor(videos=clip, return_tensors="pt"), top_k=2) for clip in clips[:2]]

    for found in (
        classify(clips[:2], top_k=2),
        classify(tuple(clips[:2]), top_k=2, batch_size=2),
        list(classify((clip for clip in clips[:2]), top_k=2, batch_size=3)),
    ):
        assert len(found) == 2
        for one, other in zip(found, wanted, strict=True):
            assert_same(one, other)


def test_classification__part_of_a_file_and_number_of_moments(home, model, processor, clips):
    classify = pipeline("audio-visual-classification", home)

    part = processor(videos=clips[0], start=0.5, end=0.9, return_tensors="pt")
    assert_same(classify({"video": clips[0], "start": 0.5, "end": 0.9}), expected(model, part))
    two = processor(videos=clips[0], num_frames=2, return_tensors="pt")
    assert_same(classify(clips[0], num_frames=2), expected(model, two))


def test_classification__one_modality_reads_that_track_alone(home, model, processor, clips):
    classify = pipeline("audio-visual-classification", home)
    wanted_seen = seen(model, processor, clips[2])

    assert_same(classify(clips[2], modality="video"), wanted_seen)
    heard_alone = expected(model, processor(audio=clips[0], return_tensors="pt"))
    for form in (clips[0], {"audio": clips[0]}, {"video": clips[0]}):
        assert_same(classify(form, modality="audio"), heard_alone)
    audio = decode_media(clips[0], want_video=False).waveform
    for form in ({"audio": audio, "sampling_rate": RATE}, {"array": audio, "sampling_rate": RATE}):
        assert_same(classify(form, modality="audio"), heard(model, processor, audio))


def test_classification__missing_track_is_named_with_ways_out(home, model, processor, clips):
    classify = pipeline("audio-visual-classification", home)

    with pytest.raises(MissingTrackError, match=r"2\.mp4: has no audio track.*missing='mask'.*modality='video'"):
        classify(clips[2])
    with pytest.raises(MissingTrackError, match="the clip has no video.*missing='mask'.*modality='audio'"):
        classify({"audio": np.zeros(RATE, dtype=np.float32), "sampling_rate": RATE})
    with pytest.raises(MissingTrackError, match="no audio track"):
        classify(clips[2], modality="audio")

    assert_same(classify(clips[2], missing="mask"), seen(model, processor, clips[2]))
    # In a batch with a clip that has both.
    both, alone = classify([clips[0], clips[2]], missing="mask", batch_size=2)
    assert_same(both, expected(model, processor(videos=clips[0], return_tensors="pt")))
    assert_same(alone, seen(model, processor, clips[2]))


def test_classification__bad_options_and_clips(home, clips, tmp_path):
    classify = pipeline("audio-visual-classification", home)

    for options, words in (
        ({"top_k": 0}, "`top_k` is 0"),
        ({"function_to_apply": "relu"}, "'relu'"),
        ({"modality": "noise"}, "'noise'"),
    ):
        with pytest.raises(ValueError, match=words):
            classify(clips[0], **options)
    with pytest.raises(ValueError, match="no 'vidio'"):
        classify({"vidio": 1, "audio": clips[0]})
    with pytest.raises(ValueError, match="both are None"):
        classify({"video": None, "audio": None})
    with pytest.raises(ValueError, match="`sampling_rate` is missing"):
        classify({"video": clips[0], "audio": np.zeros(RATE, dtype=np.float32)})
    (tmp_path / "fake.png").write_text("no image")
    with pytest.raises(ValueError, match=r"fake\.png: cannot be read as an image"):
        classify(str(tmp_path / "fake.png"))


@pytest.mark.parametrize("model_class", [CavMaeSyncForPreTraining, CavMaeSyncModel])
def test_classification__checkpoint_without_a_head_is_refused(tmp_path, model_class):
    other = model_class(tiny_config())
    home = save(other, tmp_path / "model")

    with pytest.raises(ValueError, match=f"saved as {model_class.__name__}, without a classification head"):
        pipeline("audio-visual-classification", home)
    with pytest.raises(ValueError, match="without a classification head"):
        pipeline("audio-visual-classification", other, processor=CavMaeSyncProcessor.from_config(other.config))


def test_classification__several_labels_get_a_sigmoid(tmp_path, clips):
    model = make_classifier(problem_type="multi_label_classification", classifier_type="frame_attention")
    home, processor = save(model, tmp_path / "model"), CavMaeSyncProcessor.from_config(model.config)
    inputs = processor(videos=clips[0], return_tensors="pt")

    classify = pipeline("audio-visual-classification", home)

    assert_same(classify(clips[0], top_k=None), expected(model, inputs, activation=torch.sigmoid))
    assert_same(classify(clips[0], function_to_apply="none"), expected(model, inputs, activation=torch.clone))


def test_own__half_precision(home, model, processor, clips):
    inputs = processor(videos=clips[0], return_tensors="pt")
    load = {task: pipeline(task, home, dtype=torch.bfloat16) for task in CUSTOM_PIPELINES}

    # bfloat16 keeps 8 bits.
    found = load["audio-visual-classification"](clips[0], top_k=1)
    assert_same(found, expected(model, inputs, top_k=1), tolerance=0.02)
    features = load["audio-visual-feature-extraction"](clips[0])
    assert features["audio_embeds"].dtype == np.float32
    with torch.no_grad():
        wanted = model.base_model(**inputs).similarity[0].numpy()
    np.testing.assert_allclose(features["similarity"], wanted, atol=0.02)
    score = load["audio-visual-retrieval"](clips[0], candidates=[clips[0]], by="video")[0]["score"]
    # Windows of audio alone lie up to a frame away from those beside frames.
    assert score == pytest.approx(wanted.diagonal().mean(), abs=0.1)


# audio-visual-feature-extraction


def test_features__are_the_models_with_their_times(home, model, processor, clips):
    found = pipeline("audio-visual-feature-extraction", home)(clips[0], return_patches=True)

    inputs = processor(videos=clips[0], return_tensors="pt", return_times=True)
    with torch.no_grad():
        wanted = model.base_model(**inputs)
    for name in ("audio_embeds", "video_embeds", "similarity", "audio_patch_embeds", "video_patch_embeds"):
        np.testing.assert_allclose(found[name], wanted[name][0].numpy(), atol=1e-5)
    np.testing.assert_allclose(found["frame_times"], inputs["frame_times"][0].numpy())
    np.testing.assert_allclose(found["window_times"], inputs["window_times"][0].numpy())
    assert found["padding_mask"].all() and found["padding_mask_videos"].all()
    pooled = model.base_model.get_audio_features(inputs["input_values"]).pooler_output[0].detach()
    np.testing.assert_allclose(found["audio_pooled"], pooled.numpy(), atol=1e-5)
    plain = pipeline("audio-visual-feature-extraction", home)(clips[0])
    assert "audio_patch_embeds" not in plain and plain["video_pooled"].shape == (model.config.hidden_size,)


def test_features__clips_of_a_batch_keep_their_own_moments(home, clips):
    extract = pipeline("audio-visual-feature-extraction", home)
    frames = [np.stack([numbered_frame(number) for number in range(count)]) for count in (3, 1)]
    given = [{"video": clip, "fps": 5} for clip in frames]

    alone = [extract(one, modality="video") for one in given]
    together = extract(given, modality="video", batch_size=2)

    for one, other, count in zip(alone, together, (3, 1), strict=True):
        assert other["video_embeds"].shape[0] == len(other["frame_times"]) == count
        for name, value in one.items():
            np.testing.assert_allclose(other[name], value, atol=1e-5)
    np.testing.assert_allclose(together[0]["frame_times"], [0.0, 0.2, 0.4])
    assert "audio_embeds" not in together[0]


def test_features__images_and_frames_without_times(home, model, processor, tmp_path):
    image = Image.fromarray(numbered_frame(3))
    image.save(tmp_path / "image.png")
    extract = pipeline("audio-visual-feature-extraction", home)
    pixels = processor(videos=[image], return_tensors="pt")["pixel_values_videos"]
    wanted = model.base_model.get_video_features(pixels).video_embeds[0].detach().numpy()

    for form in (image, str(tmp_path / "image.png"), {"video": image}, numbered_frame(3)):
        found = extract(form, modality="video")
        np.testing.assert_allclose(found["video_embeds"], wanted, atol=1e-5)
        assert found["frame_times"].tolist() == [0.0]
    frames = extract({"video": [image, image]}, modality="video")
    assert frames["video_embeds"].shape[0] == 2 and np.isnan(frames["frame_times"]).all()


def test_features__missing_track_is_zeros_and_marked(home, clips):
    found = pipeline("audio-visual-feature-extraction", home)(clips[2], missing="mask")

    assert not found["padding_mask"].any() and not found["audio_embeds"].any()
    assert found["padding_mask_videos"].all() and found["video_embeds"].any()


# audio-visual-retrieval


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> list[str]:
    return write_clips(tmp_path_factory.mktemp("library"), 4, loud=0.1)


@pytest.fixture(scope="module")
def embeds(model, processor, library):
    # Each side alone: windows then lie at the centres of equal spans, not at the times of the nearest frames.
    heard, seen = (processor(**{name: library}, return_tensors="pt") for name in ("audio", "videos"))
    with torch.no_grad():
        heard = model.base_model.get_audio_features(heard["input_values"]).audio_embeds
        return heard, model.base_model.get_video_features(seen["pixel_values_videos"]).video_embeds


def assert_ranked(found: list[dict], scores: torch.Tensor, names: list[str]) -> None:
    order = scores.argsort(descending=True).tolist()
    assert [entry["index"] for entry in found] == order
    assert [entry["candidate"] for entry in found] == [names[place] for place in order]
    assert [entry["score"] for entry in found] == pytest.approx(scores[order].tolist(), abs=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_retrieval__ranks_as_the_evaluation_does_in_both_directions(home, library, embeds, strategy):
    retrieve = pipeline("audio-visual-retrieval", home)
    scores = clip_similarity(*embeds, strategy)

    for batch_size in (1, 3):
        found = retrieve(library[1], candidates=library, by="audio", strategy=strategy, batch_size=batch_size)
        assert_ranked(found, scores[1], library)
    found = retrieve(library[2], candidates=library, by="video", strategy=strategy)
    assert_ranked(found, scores[:, 2], library)


def test_retrieval__direction_follows_from_what_the_query_has(home, library, embeds, tmp_path):
    retrieve = pipeline("audio-visual-retrieval", home)
    media = decode_media(library[3], num_frames=4)
    audio = {"array": media.waveform.numpy(), "sampling_rate": RATE}
    image = Image.fromarray(media.frames[1].permute(1, 2, 0).numpy())

    inputs = retrieve.processor(audio=media.waveform, sampling_rate=RATE, return_tensors="pt")
    heard = retrieve.model.get_audio_features(inputs["input_values"]).audio_embeds.detach()
    assert_ranked(retrieve(audio, candidates=library), clip_similarity(heard, embeds[1])[0], library)
    by_image = retrieve(image, candidates=library)
    scores = clip_similarity(embeds[0], embeds[1][3:, 1:2], "max")[:, 0]
    assert_ranked(by_image, scores, library)
    best = by_image[0]
    moment = int((embeds[0][best["index"]] @ embeds[1][3, 1]).argmax())
    assert best["time"] == pytest.approx((moment + 0.5) / 4, abs=0.03) and best["query_time"] == 0.0
    with pytest.raises(ValueError, match='by="audio" or by="video"'):
        retrieve(library[0], candidates=library)


def test_retrieval__candidates_are_embedded_once_and_named_as_given(home, library, embeds, monkeypatch):
    retrieve = pipeline("audio-visual-retrieval", home)
    calls = []
    forward = retrieve.model.forward
    monkeypatch.setattr(retrieve.model, "forward", lambda *a, **k: calls.append(set(k)) or forward(*a, **k))
    names = {f"clip {place}": clip for place, clip in enumerate(library)}

    kept = retrieve.embed_candidates(names, batch_size=4)
    assert len(kept) == 4 and calls == []
    found = retrieve(library[:2], candidates=kept, by="audio", top_k=2)

    # One batch of candidates, of frames alone, and the two queries' audio.
    assert sorted(map(sorted, calls)) == [["input_values"], ["input_values"], ["pixel_values_videos"]]
    scores = clip_similarity(*embeds)
    for place, ranking in enumerate(found):
        wanted = scores[place].topk(2)
        assert [entry["candidate"] for entry in ranking] == [f"clip {index}" for index in wanted.indices.tolist()]


def test_retrieval__candidates_without_the_track(home, library, clips):
    retrieve = pipeline("audio-visual-retrieval", home)

    with pytest.raises(MissingTrackError, match=r"2\.mp4: has no audio track.*by='video'"):
        retrieve(library[0], candidates=[library[0], clips[2]], by="video")
    for batch_size in (1, 2):
        found = retrieve(
            library[0], candidates=[clips[2], library[0]], by="video", missing="mask", batch_size=batch_size
        )
        assert [entry["index"] for entry in found] == [1]
    with pytest.raises(ValueError, match="The query has no audio"):
        retrieve(clips[2], candidates=library, by="audio", missing="mask")


def test_retrieval__bad_arguments(home, library, tmp_path):
    retrieve = pipeline("audio-visual-retrieval", home)

    for arguments, words in (
        ({}, "needs clips to rank"),
        ({"candidates": []}, "is empty"),
        ({"candidates": "clip.mp4"}, "is a str"),
        ({"candidates": library, "by": "text"}, "`by` is 'text'"),
        ({"candidates": library, "by": "audio", "strategy": "best"}, "`strategy` is 'best'"),
        ({"candidates": library, "by": "audio", "top_k": -1}, "`top_k` is -1"),
    ):
        with pytest.raises(ValueError, match=words):
            retrieve(library[0], **arguments)
    with pytest.raises(ValueError, match="1 moments and a candidate 4"):
        retrieve(Image.fromarray(numbered_frame(0)), candidates=library, strategy="diagonal_mean")
    other = CavMaeSyncModel(tiny_config(modality="audio"))
    alone = pipeline("audio-visual-retrieval", save(other, tmp_path / "model"))
    with pytest.raises(ValueError, match="audio tower alone"):
        alone(library[0], candidates=library, by="audio")
