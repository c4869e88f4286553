# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Evaluation of a model on a data set: values are those of the metrics on what the model says, and say what they are
of."""

import hashlib
import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from cavmae_sync_hf import (
    AlreadyExistsError,
    CavMaeSyncForAudioVisualClassification,
    CavMaeSyncModel,
    DataError,
    EvaluationError,
    save_for_hub,
)
from cavmae_sync_hf.data.dataset import CavMaeSyncCollator, CavMaeSyncDataset
from cavmae_sync_hf.evaluation import (
    evaluate_classification,
    evaluate_localization,
    evaluate_retrieval,
    evaluate_sync,
    read_results,
    write_results,
)
from cavmae_sync_hf.evaluation.clips import fit_processor
from cavmae_sync_hf.evaluation.protocols import RETRIEVAL_PROTOCOLS, SyncProtocol
from cavmae_sync_hf.inference.occlusion import occlusion_maps
from cavmae_sync_hf.loading import load_model
from cavmae_sync_hf.metrics import (
    boxes_in_view,
    classification_metrics,
    localization_metrics,
    pointing_accuracy,
    retrieval_metrics,
)
from cavmae_sync_hf.provenance import checkpoint_record
from cavmae_sync_hf.syncworld import make_world, read_truth, sounding_boxes
from helpers.clips import noise, tone, write_clip
from helpers.tiny import tiny_config
from helpers.tiny_shards import NUM_FRAMES, tiny_processor, write_shards


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return CavMaeSyncModel(tiny_config()).eval()


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return CavMaeSyncForAudioVisualClassification(tiny_config(num_labels=3)).eval()


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), [4, 3])


@pytest.fixture(scope="module")
def poor_shards(tmp_path_factory):
    """Clip 1 has no audio, clip 3 no frames, clip 5 only two frames."""
    return write_shards(tmp_path_factory.mktemp("poor"), [4, 3], silent=[1], blind=[3], short=[5])


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    make_world(folder, clips=4, split="temporal", preset="temporal", size=48, fps=8, seconds=3.0, workers=1)
    return folder / "temporal"


def direct_output(model, processor, source):
    """What the model says of all clips of shards, in one batch."""
    dataset = CavMaeSyncDataset(source, processor, frames="all")
    batch = CavMaeSyncCollator(processor)([dataset[number] for number in range(len(dataset))])
    for name in ("clip_ids", "frame_times"):
        batch.pop(name)
    with torch.no_grad():
        return model(**batch), batch


class Oracle(torch.nn.Module):
    """Knows which moment of its clip a window and a frame are, since audio and frames rise from moment to moment.

    `shift` moves its windows' embeddings by so many moments, as if the audio were early.
    """

    def __init__(self, shift: int = 0) -> None:
        super().__init__()
        self.config, self.shift = tiny_config(), shift
        self.device, self.dtype, self.name_or_path = torch.device("cpu"), torch.float32, ""

    def forward(self, pixel_values_videos, input_values, **_):
        ranks = [
            values.flatten(2).mean(dim=2).argsort(dim=1).argsort(dim=1)
            for values in (input_values, pixel_values_videos)
        ]
        audio, video = (torch.nn.functional.one_hot(rank, NUM_FRAMES).float() for rank in ranks)
        return SimpleNamespace(audio_embeds=audio.roll(self.shift, dims=1), video_embeds=video)


# Retrieval


def test_retrieval__is_the_metric_of_the_models_embeddings(model, processor, shards):
    record = evaluate_retrieval(model, processor, shards, batch_size=3)

    output, _ = direct_output(model, processor, shards)
    expected = retrieval_metrics(audio_embeds=output.audio_embeds, video_embeds=output.video_embeds)
    assert {name: record["metrics"][name] for name in expected if "clips" not in name} == pytest.approx(
        {name: value for name, value in expected.items() if "clips" not in name}
    )
    assert record["metrics"]["chance_r1"] == pytest.approx(1 / 7)
    assert record["counts"]["clips_seen"] == record["counts"]["clips_expected"] == 7 and record["complete"]
    assert record["protocol"]["name"] == "clips" and record["protocol"]["version"] == "1"
    assert record["settings"]["alignment"] == "time" and record["settings"]["frames_per_clip"] == NUM_FRAMES


def test_retrieval__takes_the_lists_order_and_counts_what_is_missing(model, processor, shards, tmp_path):
    ids = tmp_path / "ids.txt"
    ids.write_text("# the list\nclip-5\nclip-99\nclip-0\nclip-5\nclip-2\n")

    record = evaluate_retrieval(model, processor, shards, ids=ids)
    again = evaluate_retrieval(model, processor, shards, ids=["clip-5", "clip-0", "clip-2"])

    assert record["counts"]["clips_seen"] == 3 and record["counts"]["clips_expected"] == 4
    assert record["counts"]["missing"] == ["clip-99"] and not record["complete"]
    assert again["complete"] and again["metrics"] == record["metrics"]
    assert again["data"]["fingerprint"] == record["data"]["fingerprint"]
    with pytest.raises(EvaluationError, match="1 of 4 clips are missing or unusable .clip-99."):
        evaluate_retrieval(model, processor, shards, ids=ids, strict=True)


def test_retrieval__marks_clips_without_a_track(model, processor, poor_shards):
    done = []

    record = evaluate_retrieval(model, processor, poor_shards, batch_size=2, progress=lambda *at: done.append(at))

    assert record["counts"]["clips_seen"] == 5 and record["counts"]["clips_unusable"] == 2
    assert record["counts"]["unusable"] == [
        {"id": "clip-1", "reason": "clip-1: has no audio."},
        {"id": "clip-3", "reason": "clip-3: has no video."},
    ]
    assert not record["complete"] and done[-1] == (7, 7, "2 unusable")
    # The clip of two frames takes part with its two moments.
    assert record["settings"]["frames_per_clip"] == NUM_FRAMES


def test_retrieval__is_the_same_with_workers(model, processor, poor_shards):
    alone = evaluate_retrieval(model, processor, poor_shards)
    shared = evaluate_retrieval(model, processor, poor_shards, num_workers=2, batch_size=2)

    assert shared["metrics"] == pytest.approx(alone["metrics"]) and shared["counts"] == alone["counts"]


def test_retrieval__reads_video_files_and_names_the_broken_one(model, processor, tmp_path):
    for seed in range(3):
        write_clip(tmp_path / f"{seed}.mp4", seconds=1, audio=noise(1.0, seed=seed))
    (tmp_path / "3.mp4").write_bytes(b"no video at all")

    record = evaluate_retrieval(model, processor, tmp_path, limit=None)

    assert record["counts"]["clips_seen"] == 3 and record["counts"]["unusable"][0]["id"] == "3"
    assert "3.mp4" in record["counts"]["unusable"][0]["reason"] and record["data"]["kind"] == "videos"


def test_retrieval__published_protocols_need_their_list_and_their_alignment(model, processor, tmp_path):
    for seed in range(2):
        write_clip(tmp_path / f"id{seed}_00003{seed}.mp4", seconds=2, audio=noise(2.0, seed=seed))
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps({"data": [{"video_id": f"id{k}_00003{k}", "wav": "x.wav"} for k in range(3)]}))
    published = fit_processor(processor, RETRIEVAL_PROTOCOLS["cav-mae-sync-vggsound"])
    # Windows of the published mapping need not fit into the clip of a tiny model.
    assert published.feature_extractor.alignment == published.video_processor.alignment == "reference"
    assert published.feature_extractor.num_frames == 16 and processor.feature_extractor.num_frames == NUM_FRAMES

    record = evaluate_retrieval(model, processor, tmp_path, "cav-mae-sync-vggsound", ids=listed)

    assert record["counts"]["clips_seen"] == 2 and record["counts"]["clips_expected"] == 3
    assert record["counts"]["published_list"] == 1545 and not record["complete"]
    assert record["settings"] | {"alignment": "reference", "frames_per_clip": 16} == record["settings"]
    with pytest.raises(EvaluationError, match="defined on a list of clips"):
        evaluate_retrieval(model, processor, tmp_path, "cav-mae-sync-vggsound")


def test_retrieval__plain_cav_mae_compares_one_frame(model, processor, tmp_path):
    for seed in range(2):
        write_clip(tmp_path / f"{seed}.mp4", seconds=1, audio=noise(1.0, seed=seed))

    record = evaluate_retrieval(model, processor, tmp_path, "cav-mae-vggsound", ids=["0", "1"])

    assert record["settings"]["frames_per_clip"] == 1


# Synchrony


def test_sync__an_oracle_tells_every_shift(processor, shards):
    record = evaluate_sync(Oracle(), processor, shards, min_shift=0.5)

    assert record["metrics"]["accuracy"] == record["metrics"]["auc"] == 1.0
    # The oracle knows the moment and nothing of the clip: the control with another clip's audio says so.
    assert record["metrics"]["other_audio_accuracy"] == 1.0 and record["metrics"]["beyond_other_audio"] == 0.0
    assert record["metrics"]["equal_error_rate"] == 0.0
    assert record["metrics"]["same_moment_similarity"] == 1.0 and record["metrics"]["other_moment_similarity"] == 0.0
    assert (
        record["protocol"]["name"] == "shifted, min shift 0.5" and record["settings"]["seconds_between_moments"] == 0.5
    )


def test_sync__audio_that_is_early_loses(processor, shards):
    record = evaluate_sync(Oracle(shift=1), processor, shards, min_shift=0.5)

    assert record["metrics"]["accuracy"] < 0.9 and record["metrics"]["same_moment_similarity"] == 0.0


def test_sync__leaves_out_clips_of_another_pace(processor, poor_shards):
    record = evaluate_sync(Oracle(), processor, poor_shards, min_shift=0.5)

    reasons = {row["id"]: row["reason"] for row in record["counts"]["unusable"]}
    assert set(reasons) == {"clip-1", "clip-3", "clip-5"} and "1.000 s apart" in reasons["clip-5"]
    assert record["counts"]["clips_seen"] == 4


def test_sync__finds_temporal_twins(model, processor, world):
    record = evaluate_sync(model, processor, world, min_shift=1.0)

    assert record["data"]["kind"] == "syncworld" and record["metrics"]["pair_clips"] == 4
    assert 0 <= record["metrics"]["pair_accuracy"] <= 1


class Recognizer(torch.nn.Module):
    """Gives each moment of each clip a vector of its own, the same to both sides; audio is `late` by so many moments.

    `timing`: gives all clips the same vectors, so that it knows when something is, and not what.
    """

    def __init__(self, late: int = 0, *, timing: bool = False) -> None:
        super().__init__()
        self.config, self.late, self.timing, self.clips = tiny_config(), late, timing, 0
        self.device, self.dtype, self.name_or_path = torch.device("cpu"), torch.float32, ""

    def forward(self, pixel_values_videos, input_values, **_):
        audio, video = [], []
        for _ in input_values:
            generator = torch.Generator().manual_seed(0 if self.timing else self.clips)
            vectors = torch.nn.functional.normalize(
                torch.randn(input_values.shape[1], 32, generator=generator), dim=-1
            )
            audio.append(vectors.roll(self.late, dims=0))
            video.append(vectors)
            self.clips += 1
        return SimpleNamespace(audio_embeds=torch.stack(audio), video_embeds=torch.stack(video))


@pytest.fixture(scope="module")
def talks(tmp_path_factory):
    """Six clips of 2.4 s, of which the middle 1.6 s sound."""
    folder = tmp_path_factory.mktemp("talks")
    for seed in range(6):
        audio = noise(2.4, seed=seed)
        audio[: int(0.4 * 16000)] *= 1e-4
        audio[int(2.0 * 16000) :] *= 1e-4
        write_clip(folder / f"{seed}.mp4", seconds=2.4, audio=audio)
    return folder


@pytest.mark.parametrize(("late", "error"), [(0, 0.0), (1, 0.1), (-3, 0.3)])
def test_offsets__are_found_and_told_from_another_clips(processor, talks, late, error):
    record = evaluate_sync(Recognizer(late), processor, talks, "offsets", num_frames=24)

    found = record["metrics"]
    assert found["clips"] == 6 and found["median_error"] == pytest.approx(error, abs=0.03)
    for limit in (0.04, 0.08, 0.2):
        share = float(error <= limit)
        assert found[f"within_{limit}"] == found[f"within_{limit}_low"] == found[f"within_{limit}_high"] == share
        assert found[f"within_{limit}_chance"] == pytest.approx((2 * limit + 0.1) / 1.3, rel=0.02)
    assert found["within_0.04_other_audio"] < 0.5
    for shift in (0.1, 0.2, 0.4):
        assert (found[f"shifted_{shift}_auc"] == 1.0) == (late == 0)
    assert found["other_audio_auc_best_contrast"] == 1.0
    assert record["protocol"]["name"] == "offsets, num frames 24"
    assert sorted(record["offsets"]) == list("012345")
    assert list(record["offsets"].values()) == pytest.approx([late * 0.1] * 6, abs=0.03)


def test_noise__is_added_and_said(model, processor, talks):
    clean, noisy, again = (
        evaluate_sync(model, processor, talks, num_frames=8, **options)
        for options in ({}, *[{"noise_snr_db": -5.0, "noise_source": "babble"}] * 2)
    )

    assert (noisy["settings"]["noise_snr_db"], noisy["settings"]["noise_source"]) == (-5.0, "babble")
    assert "noise_snr_db" not in clean["settings"]
    assert noisy["metrics"] == again["metrics"] != clean["metrics"]
    with pytest.raises(EvaluationError, match="two numbers of dB"):
        evaluate_sync(model, processor, talks, noise_snr_db=500.0)


def test_offsets__timing_alone_is_exposed_by_the_control(processor, talks):
    found = evaluate_sync(Recognizer(timing=True), processor, talks, "offsets", num_frames=24)["metrics"]

    assert found["within_0.04"] == found["within_0.04_other_audio"] == 1.0
    assert found["other_audio_auc_contrast"] == 0.5


def test_offsets__of_a_second_and_of_all_moments(processor, talks):
    class Seen(Recognizer):
        def forward(self, pixel_values_videos, input_values, padding_mask=None, **_):
            return super().forward(pixel_values_videos, input_values)

    short, loud, whole = (
        evaluate_sync(Seen(), processor, talks, "offsets", num_frames=24, **options)["protocol"]
        for options in ({"seconds": 1.0}, {}, {"moments": "all", "max_offset": 1.0})
    )

    assert (short["seconds"], loud["moments"], whole["max_offset"]) == (1.0, "loud", 1.0)
    with pytest.raises(EvaluationError, match="none of the 6 clips can be used; the first.*fewer than 3 moments"):
        evaluate_sync(Recognizer(), processor, talks, "offsets", num_frames=24, seconds=0.1)
    with pytest.raises(EvaluationError, match="no caption of its clips has a span"):
        evaluate_sync(Recognizer(), processor, talks, num_frames=24, moments="captions")
    with pytest.raises(EvaluationError, match="`seconds` is 0"):
        evaluate_sync(Recognizer(), processor, talks, "offsets", seconds=0)


def test_sync__of_two_twins_alone_has_no_control(model, processor, world):
    metrics = evaluate_sync(model, processor, world, min_shift=1.0, limit=2)["metrics"]

    assert metrics["pair_clips"] == 2 and "accuracy" in metrics and "other_audio_accuracy" not in metrics
    with pytest.raises(EvaluationError, match="2 clips hold no other clip for each"):
        evaluate_sync(model, processor, world, "offsets", moments="all", limit=2)


def test_sync__labelled_lists(processor, tmp_path):
    labels = [[0], [0], [1], [1], [0], [], [1]]
    folder = write_shards(tmp_path / "labelled", [7], labels=labels)
    # In sync and not are told apart by the oracle's shift, half of the clips each.
    moved = Oracle(shift=1)
    original = Oracle()

    class Half(Oracle):
        def forward(self, pixel_values_videos, input_values, **rest):
            # Clip k's log-mel is lower than clip 0's by k / 8.
            parts = [original(pixel_values_videos, input_values), moved(pixel_values_videos, input_values)]
            number = ((input_values.amax(dim=(1, 2, 3)).amax() - input_values.amax(dim=(1, 2, 3))) * 8).round()
            late = torch.tensor([labels[int(k)] == [1] for k in number])[:, None, None]
            return SimpleNamespace(
                audio_embeds=torch.where(late, parts[1].audio_embeds, parts[0].audio_embeds),
                video_embeds=parts[0].video_embeds,
            )

    plain = tiny_processor(mean=0.0, std=1.0)
    record = evaluate_sync(Half(), plain, folder, "labelled", positive=0)

    metrics = record["metrics"]
    assert metrics["auc"] == metrics["mean_auc"] == metrics["z_score_auc"] == 1.0
    assert metrics["equal_error_rate"] == 0.0
    assert metrics["clips_in_sync"] == 3 and metrics["clips_out_of_sync"] == 3
    assert record["counts"]["unusable"] == [{"id": "clip-5", "reason": "has no label."}]
    with pytest.raises(EvaluationError, match="needs the label of clips in sync"):
        evaluate_sync(Half(), plain, folder, "labelled")
    with pytest.raises(EvaluationError, match="0 of 6 labelled clips have the label 7"):
        evaluate_sync(Half(), plain, folder, "labelled", positive=7)
    with pytest.raises(EvaluationError, match="score 'loudest' is none"):
        evaluate_sync(Half(), plain, folder, SyncProtocol(name="own", truth="labels", score="loudest"), positive=0)


# Classification


def test_classification__is_the_metric_of_the_models_logits(classifier, processor, shards):
    record = evaluate_classification(classifier, processor, shards, inputs=["av", "a"], batch_size=3)

    output, batch = direct_output(classifier, processor, shards)
    labels = np.arange(7) % 3
    expected = classification_metrics(labels, output.logits, ks=(5,))
    with torch.no_grad():
        sound = classifier(input_values=batch["input_values"], padding_mask=batch["padding_mask"]).logits
    assert record["metrics"]["accuracy"] == expected["accuracy"]
    assert record["metrics"]["mean_average_precision"] == pytest.approx(expected["mean_average_precision"])
    assert record["metrics"]["a_mean_average_precision"] == pytest.approx(
        classification_metrics(labels, sound, ks=())["mean_average_precision"]
    )
    assert record["protocol"]["name"] == "clips, inputs av+a" and record["protocol"]["inputs"] == ["av", "a"]


def test_classification__names_join_data_and_model(processor, tmp_path):
    torch.manual_seed(0)
    labels = {"id2label": {0: "dog", 1: "cat"}, "label2id": {"dog": 0, "cat": 1}}
    model = CavMaeSyncForAudioVisualClassification(tiny_config(num_labels=2, **labels)).eval()
    rows = []
    for seed, name in enumerate(("cat", "dog", "cat")):
        write_clip(tmp_path / f"{seed}.mp4", seconds=1, audio=noise(1.0, seed=seed))
        rows.append({"path": str(tmp_path / f"{seed}.mp4"), "label": name})

    record = evaluate_classification(model, processor, rows)

    scores = []
    for row in rows:
        inputs = processor(videos=row["path"], return_tensors="pt")
        with torch.no_grad():
            scores.append(model(**inputs).logits[0])
    # In the data's own order of names, cat is 0.
    assert (
        record["metrics"]["accuracy"]
        == classification_metrics(torch.tensor([1, 0, 1]), torch.stack(scores), ks=())["accuracy"]
    )
    with pytest.raises(EvaluationError, match="the label 'bird', which is no class of the model"):
        evaluate_classification(model, processor, [*rows, {"path": rows[0]["path"], "id": "b", "label": "bird"}])
    nameless = CavMaeSyncForAudioVisualClassification(tiny_config(num_labels=2)).eval()
    with pytest.raises(EvaluationError, match="names .cat, dog, .*, the model's classes have none"):
        evaluate_classification(nameless, processor, rows)
    named = evaluate_classification(nameless, processor, rows, class_names=["dog", "cat"])
    assert named["counts"]["clips_seen"] == 3


class Listener(CavMaeSyncForAudioVisualClassification):
    """Says which third of the mel bins is the loudest, and keeps the mean power that it hears of each clip."""

    def forward(self, input_values=None, padding_mask=None, **_):
        extractor = tiny_processor().feature_extractor
        power = (input_values * extractor.std + extractor.mean).exp().mean(dim=(1, 2))
        self.heard = getattr(self, "heard", []) + power.tolist()
        return SimpleNamespace(logits=torch.stack([part.sum(dim=-1) for part in power.tensor_split(3, dim=-1)], dim=1))


def test_classification__in_noise_of_the_wanted_ratio_what_is_heard_is_lost(processor, tmp_path):
    torch.manual_seed(0)
    names = {"id2label": {0: "low", 1: "mid", 2: "high"}, "label2id": {"low": 0, "mid": 1, "high": 2}}
    rows = []
    for number in range(6):
        word, hertz = (("low", 300), ("mid", 1500), ("high", 5000))[number % 3]
        write_clip(tmp_path / f"{number}.mp4", seconds=0.5, rate=16000, audio=tone(0.5, 16000, hertz, 1))
        rows.append({"path": str(tmp_path / f"{number}.mp4"), "word": word})
    accuracy, heard = {}, {}
    for level in (None, 30.0, -20.0):
        model = Listener(tiny_config(num_labels=3, **names)).eval()
        record = evaluate_classification(
            model, processor, rows, inputs=["a"], noise_snr_db=level, noise_source="babble", batch_size=4
        )
        accuracy[level], heard[level] = record["metrics"]["accuracy"], torch.tensor(model.heard).sum(dim=-1)
        assert record["settings"].get("noise_snr_db") == level

    assert accuracy[None] == accuracy[30.0] == 1.0 and accuracy[-20.0] < 0.7
    added = [(heard[level] - heard[None]).sum() for level in (30.0, -20.0)]
    assert 10 * math.log10(added[1] / added[0]) == pytest.approx(50.0, abs=0.5)
    with pytest.raises(EvaluationError, match="two numbers of dB"):
        evaluate_classification(model, processor, rows, noise_snr_db=500.0)


def test_classification__refuses_what_does_not_fit(classifier, processor, shards, tmp_path):
    with pytest.raises(EvaluationError, match="has 527 classes, the model 3"):
        evaluate_classification(classifier, processor, shards, "audioset")
    with pytest.raises(EvaluationError, match="needs VGGSounder's table"):
        evaluate_classification(classifier, processor, shards, "vggsounder")
    with pytest.raises(EvaluationError, match="input 'x' is none"):
        evaluate_classification(classifier, processor, shards, inputs=["x"])
    with pytest.raises(EvaluationError, match="has label 4, the model 3 classes"):
        evaluate_classification(classifier, processor, write_shards(tmp_path / "s", [2], labels=[[0], [4]]))
    with pytest.raises(EvaluationError, match="no clip has a label"):
        evaluate_classification(classifier, processor, write_shards(tmp_path / "t", [2], labels=[[], []]))


def annotation_file(folder, rows, header="video_id,label,modality,background_music,static_image,voice_over"):
    path = folder / "vggsounder.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_vggsounder__scores_what_is_heard_and_seen(classifier, processor, shards, tmp_path):
    table = annotation_file(
        tmp_path,
        [
            'clip-0,"dog, barking",AV,False,False,False',
            "clip-0,cat,A,False,False,False",
            "clip-1,cat,V,False,False,False",
            "clip-2,bird,AV,True,False,False",
            "clip-3,bird,A,False,False,False",
            "clip-3,unheard of,A,False,False,False",
            "clip-9,cat,AV,False,False,False",
        ],
    )
    names = ["dog, barking", "cat", "bird"]

    record = evaluate_classification(classifier, processor, shards, "vggsounder", annotations=table, class_names=names)

    metrics = record["metrics"]
    # Clip 2 has background music, clip 9 is not there.
    assert record["counts"]["clips_seen"] == 3 and record["counts"]["missing"] == ["clip-9"]
    assert [metrics[f"{view}_clips"] for view in ("av", "a", "v", "a_only", "v_only")] == [1, 2, 2, 2, 1]
    assert metrics["labels_unknown"] == 1 and "av_hit_rate@3" in metrics and "av_hit_rate@5" not in metrics
    assert metrics["v_hit_rate@3"] == 1.0 and 0 <= metrics["mu_a"] <= 1
    with pytest.raises(EvaluationError, match="classes have no names"):
        evaluate_classification(classifier, processor, shards, "vggsounder", annotations=table)
    with pytest.raises(EvaluationError, match="none of its labels is a class of the model"):
        evaluate_classification(
            classifier, processor, shards, "vggsounder", annotations=table, class_names=["x", "y", "z"]
        )


# Localisation


class Pointer(Oracle):
    """Its audio embedding is the patch in the middle of the first sounding box, its patches are all different."""

    def __init__(self, boxes) -> None:
        super().__init__()
        self.boxes = iter(boxes)

    def forward(self, pixel_values_videos, input_values, **_):
        clips, moments = pixel_values_videos.shape[:2]
        patches = torch.eye(16).expand(clips, moments, 16, 16)
        sounds = torch.ones(clips, moments, 16)
        for clip in range(clips):
            for moment, boxes in enumerate(next(self.boxes)):
                if boxes:
                    # 48 pixels of the world are 4 x 4 patches of 12.
                    x, y = ((boxes[0][side] + boxes[0][side + 2]) / 2 // 12 for side in (0, 1))
                    sounds[clip, moment] = patches[0, 0, int(y) * 4 + int(x)]
        pooled = torch.nn.functional.normalize(sounds, dim=-1)
        return SimpleNamespace(
            audio_embeds=pooled,
            video_embeds=pooled,
            video_patch_embeds=patches,
            audio_patch_embeds=torch.ones(clips, moments, 12, 16),
        )


def test_localization__on_syncworlds_truth(processor, world):
    records = list(read_truth(world))
    times = [(k + 0.5) * 3.0 / NUM_FRAMES for k in range(NUM_FRAMES)]
    boxes = [sounding_boxes(record, times) for record in records]
    assert any(any(clip) for clip in boxes)

    record = evaluate_localization(Pointer(boxes), processor, world, batch_size=3, maps="cosine")

    metrics = record["metrics"]
    # Boxes are hardly larger than patches: the centre of the patch in which a box's centre lies may be outside.
    assert metrics["pointing_accuracy"] > 0.6 > 0.2 > metrics["pointing_chance"]
    assert metrics["maps"] == sum(bool(given) for clip in boxes for given in clip)
    assert metrics["time_pointing_accuracy"] == pytest.approx(metrics["time_pointing_chance"])
    assert metrics["pointing_other_audio"] < metrics["pointing_accuracy"]
    assert record["settings"]["view"] == 32


def test_localization__by_occlusion_is_what_occlusion_maps_say(model, processor, world):
    record = evaluate_localization(model, processor, world, batch_size=2)

    truth = list(read_truth(world))
    dataset = CavMaeSyncDataset(world, processor, frames="all")
    silent = torch.full((1, 1, 48, 16), processor.feature_extractor.outside_value)
    silence = model.get_audio_features(silent).audio_embeds[0, 0]
    maps, other_maps, boxes, other_boxes, earlier = [], [], [], [], []
    for number, known in enumerate(truth):
        sample = dataset[number]
        pixels, sounds = sample["pixel_values_videos"][None], sample["input_values"][None]
        embeds = model.get_audio_features(sounds, sample["padding_mask"][None]).audio_embeds
        earlier.append(embeds)
        given = sounding_boxes(known, sample["frame_times"].tolist())
        given = [boxes_in_view(own, (48, 48), 32) for own in given]
        maps.append(occlusion_maps(model, "video", pixels, embeds - silence)[0])
        boxes += given
        if number >= 2:
            other_maps.append(occlusion_maps(model, "video", pixels, earlier[number - 2] - silence)[0])
            other_boxes += given
    expected = localization_metrics(torch.cat(maps), boxes, (32, 32))
    control = pointing_accuracy(torch.cat(other_maps), other_boxes, (32, 32))
    assert {name: record["metrics"][name] for name in expected} == pytest.approx(expected)
    assert record["metrics"]["pointing_other_audio"] == control["accuracy"]
    assert 0 <= record["metrics"]["time_pointing_accuracy"] <= 1
    assert record["protocol"]["maps"] == "occlusion"


def test_sounding_boxes__are_those_of_the_truth_at_its_own_times(world):
    for record in read_truth(world):
        theirs = [sorted(boxes) for boxes in record["sounding_boxes"]]
        assert [sorted(boxes) for boxes in sounding_boxes(record, record["frame_times"])] == theirs


def test_localization__needs_a_truth(model, processor, shards, world, tmp_path):
    with pytest.raises(EvaluationError, match="no truth about what sounds where"):
        evaluate_localization(model, processor, shards)
    with pytest.raises(DataError, match="is no SyncWorld split"):
        evaluate_localization(model, processor, shards, truth=tmp_path)
    with pytest.raises(DataError, match="has no truth for the clip 'clip-0'"):
        evaluate_localization(model, processor, shards, truth=world)
    with pytest.raises(EvaluationError, match="needs a table with image, audio and mask"):
        evaluate_localization(model, processor, shards, "ade20k-sound")


@pytest.fixture
def prompts(tmp_path):
    """Two images of 64 x 48 with audio each, and their masks in two files."""
    rows = ["id,image,audio,mask,mask_value,label"]
    for number in range(2):
        write_clip(tmp_path / f"{number}.mp4", seconds=1, audio=noise(1.0, seed=number))
        pixels = np.random.default_rng(number).integers(0, 255, (48, 64, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        mask = np.zeros((48, 64), np.uint8)
        mask[10:30, 20:40] = 7
        Image.fromarray(mask).save(tmp_path / f"mask{number}.png")
        rows.append(f"p{number},{number}.png,{number}.mp4,mask{number}.png,7,thing{number}")
    table = tmp_path / "prompts.csv"
    table.write_text("\n".join(rows) + "\n")
    return table


@pytest.mark.parametrize(("protocol", "maps"), [("masks", "occlusion"), ("ade20k-sound", "cosine")])
def test_localization__on_masks(model, processor, prompts, protocol, maps):
    record = evaluate_localization(model, processor, prompts, protocol)

    assert record["protocol"]["maps"] == maps

    assert record["counts"]["clips_seen"] == record["metrics"]["maps"] == 2 and record["complete"]
    assert 0 < record["metrics"]["mean_average_precision"] < 1 and 0 < record["metrics"]["mean_iou"] < 1
    assert record["data"]["kind"] == "masks"


def test_localization__counts_rows_without_media(model, processor, prompts):
    (prompts.parent / "1.mp4").unlink()

    record = evaluate_localization(model, processor, prompts, "masks")

    assert record["counts"]["clips_seen"] == 1 and record["counts"]["unusable"][0]["id"] == "p1"
    with pytest.raises(EvaluationError, match="1 of 2 clips are missing or unusable .p1.*the first, 'p1': .*1.mp4"):
        evaluate_localization(model, processor, prompts, "masks", strict=True)


def test_localization__refuses_masks_that_do_not_fit(model, processor, prompts):
    Image.new("L", (10, 10), 7).save(prompts.parent / "mask1.png")
    with pytest.raises(EvaluationError, match="is 10 x 10 pixels, its image .*1.png 64 x 48"):
        evaluate_localization(model, processor, prompts, "masks")


# Protocols, lists, records


def test_evaluation__names_ids_that_match_nothing(model, processor, shards):
    with pytest.raises(
        EvaluationError, match="None of the 2 ids .* the list has 'a', for example, the\\s+data 'clip-0'"
    ):
        evaluate_retrieval(model, processor, shards, ids=["a", "b"])


def test_evaluation__ends_where_nothing_can_be_used(model, processor, tmp_path):
    folder = write_shards(tmp_path / "silent", [2], silent=[0, 1])
    with pytest.raises(
        EvaluationError, match="none of the 2 clips can be used; the first, 'clip-0': clip-0: has no audio"
    ):
        evaluate_retrieval(model, processor, folder)


def test_evaluation__ends_where_the_model_raises_of_every_clip(processor, tmp_path):
    class Broken(Oracle):
        def forward(self, **_):
            raise RuntimeError("no kernel for this device")

    few = write_shards(tmp_path / "few", [3])
    with pytest.raises(EvaluationError, match="none of the 3 clips can be used; .* no kernel .* at test_evaluate.py"):
        evaluate_retrieval(Broken(), processor, few)
    told = []
    with pytest.raises(RuntimeError, match="no kernel"):  # instead of reading all
        evaluate_retrieval(
            Broken(), processor, write_shards(tmp_path / "many", [30]), progress=lambda done, *_: told.append(done)
        )
    assert told == [8, 16]


def test_record__can_be_checked_and_read_again(model, processor, shards, tmp_path):
    folder = save_for_hub(model, processor, tmp_path / "model")
    loaded, own = load_model(folder)

    record = evaluate_retrieval(loaded, own, shards, command="cavmae-sync evaluate ...", limit=3)
    path = write_results(tmp_path / "deep" / "results.json", record)

    weights = (folder / "model.safetensors").read_bytes()
    assert record["checkpoint"]["sha256"] == hashlib.sha256(weights).hexdigest()
    assert record["checkpoint"]["name"] == str(folder) and record["checkpoint"]["sha256_of"] == "model.safetensors"
    assert {"python", "torch", "transformers", "numpy"} <= set(record["versions"])
    assert record["date"].endswith("+00:00") and record["command"] == "cavmae-sync evaluate ..."
    assert record["counts"]["clips_seen"] == 3 and not record["complete"]
    assert read_results(path) == record and [path] == list(path.parent.iterdir())
    with pytest.raises(AlreadyExistsError, match="Pass overwrite=True"):
        write_results(path, record)
    write_results(path, record, overwrite=True)
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    with pytest.raises(EvaluationError, match="holds no results, so it is not replaced"):
        write_results(other, record, overwrite=True)
    assert other.read_text() == "mine"


def test_record__tells_weights_in_memory_and_data_apart(model, processor, shards, tmp_path):
    again = CavMaeSyncModel(tiny_config())
    again.load_state_dict(model.state_dict())
    assert checkpoint_record(again)["sha256"] == checkpoint_record(model)["sha256"]
    with torch.no_grad():
        next(again.parameters()).add_(1e-3)
    assert checkpoint_record(again)["sha256"] != checkpoint_record(model)["sha256"]

    copied = shutil.copytree(shards, tmp_path / "elsewhere")
    fingerprints = [
        evaluate_retrieval(model, processor, source, **options)["data"]["fingerprint"]
        for source, options in ((shards, {}), (copied, {}), (shards, {"ids": ["clip-0", "clip-1"]}))
    ]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_record__has_null_for_what_is_infinite(classifier, processor, tmp_path):
    # Two clips, one of each class, in the order that the classifier gives them: its d-prime is infinite either way.
    folder = write_shards(tmp_path / "two", [2], labels=[[0], [1]])

    metrics = evaluate_classification(classifier, processor, folder)["metrics"]

    assert metrics["d_prime"] is None or math.isfinite(metrics["d_prime"])
    json.dumps(metrics, allow_nan=False)
