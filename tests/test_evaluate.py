# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Evaluation of a model on a data set: figures are those of the metrics on what the model says, and say what they are
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

from apart import run_apart
from cavmae_sync_hf import CavMaeSyncForAudioVisualClassification, CavMaeSyncModel, save_for_hub
from cavmae_sync_hf.data.collator import CavMaeSyncCollator
from cavmae_sync_hf.data.dataset import CavMaeSyncDataset
from cavmae_sync_hf.data.world import make_world, read_truth
from cavmae_sync_hf.evaluation import (
    PROTOCOLS,
    classification_metrics,
    evaluate_classification,
    evaluate_localization,
    evaluate_retrieval,
    evaluate_sync,
    read_results,
    retrieval_metrics,
    write_results,
)
from cavmae_sync_hf.evaluation.multilabel import (
    AnnotationError,
    modality_confusion,
    read_annotations,
    top_k_metrics,
    vggsounder_metrics,
)
from cavmae_sync_hf.evaluation.protocols import RETRIEVAL_PROTOCOLS, ProtocolError, SyncProtocol, find_protocol, modify
from cavmae_sync_hf.evaluation.results import ResultsError, checkpoint_record
from cavmae_sync_hf.evaluation.runs.clips import EvaluationError, fit_processor, read_ids
from cavmae_sync_hf.evaluation.runs.localization import sounding_boxes
from cavmae_sync_hf.evaluation.segmentation import (
    MaskError,
    class_segmentation_metrics,
    mask_in_view,
    read_mask,
    read_prompts,
)
from cavmae_sync_hf.inference.loading import load_model
from clips import noise, write_clip
from little_shards import NUM_FRAMES, little_processor, write_shards
from tiny import tiny_config


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
    return little_processor()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("shards"), [4, 3])


@pytest.fixture(scope="module")
def poor_shards(tmp_path_factory):
    """Clip 1 has no sound, clip 3 no pictures, clip 5 only two frames."""
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
    """Knows which moment of its clip a window and a frame are, since sound and picture rise from moment to moment.

    `shift` moves its windows' embeddings by so many moments, as if the sound were early.
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
    with pytest.raises(ProtocolError, match="defined on a list of clips"):
        evaluate_retrieval(model, processor, tmp_path, "cav-mae-sync-vggsound")


def test_retrieval__plain_cav_mae_compares_one_frame(model, processor, tmp_path):
    for seed in range(2):
        write_clip(tmp_path / f"{seed}.mp4", seconds=1, audio=noise(1.0, seed=seed))

    record = evaluate_retrieval(model, processor, tmp_path, "cav-mae-vggsound", ids=["0", "1"])

    assert record["settings"]["frames_per_clip"] == 1


def test_retrieval__ranks_of_many_clips_never_hold_the_matrix(tmp_path):
    code = """
import resource, sys, torch
from cavmae_sync_hf.evaluation.retrieval import retrieval_ranks
torch.set_num_threads(1)
few = torch.randn(50, 1, 8)
retrieval_ranks(few, few)
audio = torch.randn(12_000, 1, 8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ranks, _ = retrieval_ranks(audio, audio + 0.1 * torch.randn_like(audio), chunk_bytes=16 * 2**20)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10, len(ranks.better))
"""
    done = run_apart(["-c", code], tmp_path, PYTHONPATH=":".join(__import__("sys").path))

    assert done.returncode == 0, done.stderr
    megabytes, queries = map(float, done.stdout.split())
    # The whole matrix has 549 MiB; the budget is 16, beside counts and what an allocator keeps.
    assert queries == 12_000 and megabytes < 100


# Synchrony


def test_sync__an_oracle_tells_every_shift(processor, shards):
    record = evaluate_sync(Oracle(), processor, shards, min_shift=0.5)

    assert record["metrics"]["accuracy"] == record["metrics"]["auc"] == 1.0
    assert record["metrics"]["equal_error_rate"] == 0.0
    assert record["metrics"]["same_moment_similarity"] == 1.0 and record["metrics"]["other_moment_similarity"] == 0.0
    assert (
        record["protocol"]["name"] == "shifted, min shift 0.5" and record["settings"]["seconds_between_moments"] == 0.5
    )


def test_sync__sound_that_is_early_loses(processor, shards):
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

    plain = little_processor(mean=0.0, std=1.0)
    record = evaluate_sync(Half(), plain, folder, "labelled", positive=0)

    metrics = record["metrics"]
    assert metrics["auc"] == metrics["mean_auc"] == metrics["z_score_auc"] == 1.0
    assert metrics["equal_error_rate"] == 0.0
    assert metrics["clips_in_sync"] == 3 and metrics["clips_out_of_sync"] == 3
    assert record["counts"]["unusable"] == [{"id": "clip-5", "reason": "has no label."}]
    with pytest.raises(ProtocolError, match="needs the label of clips in sync"):
        evaluate_sync(Half(), plain, folder, "labelled")
    with pytest.raises(EvaluationError, match="0 of 6 labelled clips have the label 7"):
        evaluate_sync(Half(), plain, folder, "labelled", positive=7)
    with pytest.raises(ProtocolError, match="score 'loudest' is none"):
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


def test_classification__refuses_what_does_not_fit(classifier, processor, shards, tmp_path):
    with pytest.raises(ProtocolError, match="has 527 classes, the model 3"):
        evaluate_classification(classifier, processor, shards, "audioset")
    with pytest.raises(ProtocolError, match="needs VGGSounder's table"):
        evaluate_classification(classifier, processor, shards, "vggsounder")
    with pytest.raises(ProtocolError, match="input 'x' is none"):
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
    with pytest.raises(AnnotationError, match="none of its labels is a class of the model"):
        evaluate_classification(
            classifier, processor, shards, "vggsounder", annotations=table, class_names=["x", "y", "z"]
        )


def test_top_k_metrics__match_sklearn():
    sklearn = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(0)
    truth, scores = generator.random((40, 6)) < 0.3, generator.random((40, 6))
    truth[:, 5] = False
    for k in (1, 3):
        guesses = np.zeros_like(truth)
        np.put_along_axis(guesses, np.argsort(-scores, axis=1)[:, :k], True, axis=1)
        options = {"average": "micro", "zero_division": 0}
        expected = {
            "hit_rate": (guesses & truth).any(axis=1).mean(),
            "accuracy": sklearn.accuracy_score(truth, guesses),
            "f1": sklearn.f1_score(truth, guesses, **options),
            "f1_macro": sklearn.f1_score(truth, guesses, average="macro", zero_division=0),
            "precision": sklearn.precision_score(truth, guesses, **options),
            "recall": sklearn.recall_score(truth, guesses, **options),
            "jaccard": sklearn.jaccard_score(truth, guesses, **options),
        }
        assert top_k_metrics(truth, scores, k) == pytest.approx(expected)


def test_modality_confusion__by_hand():
    truth = np.array([[True, False], [True, False], [False, True], [False, True]])
    right = np.where(truth, 1.0, 0.0)
    scores = {"av": right.copy(), "a": right.copy(), "v": right.copy()}
    scores["av"][:2] = right[:2, ::-1]  # together wrong on the first two
    scores["v"][1] = right[1, ::-1]  # pictures wrong on the second

    assert modality_confusion(truth, scores) == {"mu_a": 0.5, "mu_v": 0.25, "mu_av": 0.25}


def test_vggsounder_metrics__views_take_their_labels(tmp_path):
    annotations = read_annotations(
        annotation_file(tmp_path, ["x,one,A", "x,two,V", "y,two,AV"], "video_id,label,modality")
    )
    scores = np.array([[0.9, 0.1], [0.2, 0.8]])

    metrics = vggsounder_metrics(annotations, ["x", "y"], {"a": scores, "v": scores}, ["one", "two"], ks=(1,))

    assert metrics["a_hit_rate@1"] == 1.0 and metrics["a_only_clips"] == 1 and metrics["a_only_accuracy@1"] == 1.0
    assert metrics["v_hit_rate@1"] == 0.5 and metrics["v_only_hit_rate@1"] == 0.0
    assert "av_clips" not in metrics and "mu_a" not in metrics


@pytest.mark.parametrize(
    ("rows", "header", "words"),
    [
        (["a,b,C"], "video_id,label,modality", "line 2 has clip 'a', label 'b' and modality 'C'"),
        (["a,b"], "video_id,label", "has no column 'modality'"),
        ([], "video_id,label,modality", "holds no annotations"),
    ],
)
def test_read_annotations__names_what_is_wrong(tmp_path, rows, header, words):
    with pytest.raises(AnnotationError, match=words):
        read_annotations(annotation_file(tmp_path, rows, header))


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

    record = evaluate_localization(Pointer(boxes), processor, world, batch_size=3)

    metrics = record["metrics"]
    # Boxes are hardly larger than patches: the centre of the patch in which a box's centre lies may be outside.
    assert metrics["pointing_accuracy"] > 0.6 > 0.2 > metrics["pointing_chance"]
    assert metrics["maps"] == sum(bool(given) for clip in boxes for given in clip)
    assert metrics["time_pointing_accuracy"] == pytest.approx(metrics["time_pointing_chance"])
    assert metrics["pointing_other_sound"] < metrics["pointing_accuracy"]
    assert record["settings"]["view"] == 32


def test_sounding_boxes__are_those_of_the_truth_at_its_own_times(world):
    for record in read_truth(world):
        theirs = [sorted(boxes) for boxes in record["sounding_boxes"]]
        assert [sorted(boxes) for boxes in sounding_boxes(record, record["frame_times"])] == theirs


def test_localization__needs_a_truth(model, processor, shards, world, tmp_path):
    with pytest.raises(EvaluationError, match="no truth about what sounds where"):
        evaluate_localization(model, processor, shards)
    with pytest.raises(EvaluationError, match="is no SyncWorld split"):
        evaluate_localization(model, processor, shards, truth=tmp_path)
    with pytest.raises(EvaluationError, match="has no truth for the clip 'clip-0'"):
        evaluate_localization(model, processor, shards, truth=world)
    with pytest.raises(EvaluationError, match="needs a table with image, audio and mask"):
        evaluate_localization(model, processor, shards, "ade20k-sound")


@pytest.fixture
def prompts(tmp_path):
    """Two pictures of 64 x 48 with a sound each, and their masks in two files."""
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


@pytest.mark.parametrize("protocol", ["masks", "ade20k-sound"])
def test_localization__on_masks(model, processor, prompts, protocol):
    record = evaluate_localization(model, processor, prompts, protocol)

    assert record["counts"]["clips_seen"] == record["metrics"]["maps"] == 2 and record["complete"]
    assert 0 < record["metrics"]["mean_average_precision"] < 1 and 0 < record["metrics"]["mean_iou"] < 1
    assert record["data"]["kind"] == "masks"


def test_localization__counts_rows_without_media(model, processor, prompts):
    (prompts.parent / "1.mp4").unlink()

    record = evaluate_localization(model, processor, prompts, "masks")

    assert record["counts"]["clips_seen"] == 1 and record["counts"]["unusable"][0]["id"] == "p1"
    with pytest.raises(EvaluationError, match="1 of 2 rows cannot be used"):
        evaluate_localization(model, processor, prompts, "masks", strict=True)


def test_localization__refuses_masks_that_do_not_fit(model, processor, prompts):
    Image.new("L", (10, 10), 7).save(prompts.parent / "mask1.png")
    with pytest.raises(MaskError, match="is 10 x 10 pixels, its picture .*1.png 64 x 48"):
        evaluate_localization(model, processor, prompts, "masks")


def test_read_mask__kinds_and_faults(tmp_path):
    mask = np.zeros((4, 6), np.int32)
    mask[1:3, 2:5] = 300
    np.save(tmp_path / "a.npy", mask)
    np.savez(tmp_path / "b.npz", mask=mask, other=np.zeros(3))
    Image.fromarray((mask > 0).astype(np.uint8)).save(tmp_path / "c.png")
    for name, value in (("a.npy", 300), ("b.npz", 300), ("c.png", None), ("a.npy", None)):
        assert np.array_equal(read_mask(tmp_path / name, value), mask > 0)
    (tmp_path / "d.png").write_bytes(b"broken")
    np.save(tmp_path / "e.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "f.npz", x=mask, y=mask)
    Image.new("RGB", (4, 4)).save(tmp_path / "g.png")
    for name, value, words in (
        ("d.png", None, "d.png: the mask cannot be read"),
        ("e.npy", None, "save it as a plain array"),
        ("f.npz", None, "call the mask 'mask'"),
        ("g.png", None, "picture of 3 channels"),
        ("h.png", None, "no such mask"),
        ("a.npy", 5, "does not hold the value 5"),
    ):
        with pytest.raises(MaskError, match=words):
            read_mask(tmp_path / name, value)


def test_read_prompts__names_what_is_wrong(tmp_path):
    table = tmp_path / "t.csv"
    for text, words in (
        ("image,audio\na.png,b.wav\n", "row 1 has no 'mask'"),
        ("audio,mask\nb.wav,c.png\n", "row 1 has no 'image'"),
        ("image,audio,mask,mask_value\na,b,c,x\n", "row 1 has a mask_value or time that is no number"),
        ("", "holds no rows"),
    ):
        table.write_text(text)
        with pytest.raises(MaskError, match=words):
            read_prompts(table)
    with pytest.raises(MaskError, match="is no table"):
        read_prompts(tmp_path / "t.parquet") if (tmp_path / "t.parquet").write_text("") == 0 else None


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (50, 50)])
def test_mask_in_view__lies_where_the_picture_does(processor, size):
    mask = np.zeros(size, bool)
    mask[: size[0] // 2] = True
    frames = torch.from_numpy(mask[None, None].repeat(3, 1) * np.uint8(255))

    view = processor.video_processor(frames, do_sample_frames=False, return_tensors="pt")["pixel_values_videos"][
        0, 0, 0
    ]

    assert torch.equal(mask_in_view(mask, 32, 32)[:14], (view > 0)[:14])
    assert torch.equal(mask_in_view(mask, 32, 32)[18:], (view > 0)[18:])


def test_class_segmentation_metrics__pool_the_pixels_of_a_class():
    maps = torch.tensor([[[0.9, 0.1], [0.2, 0.3]], [[0.8, 0.7], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]])
    masks = torch.tensor([[[1, 0], [0, 0]], [[1, 0], [0, 0]], [[0, 1], [0, 0]]]).bool()

    metrics = class_segmentation_metrics(maps, masks, ["a", "a", "b"], thresholds=10)

    # Class a: the two object pixels are the two highest of eight; class b: the object is the highest.
    assert metrics["mean_average_precision"] == 1.0 and metrics["mean_iou"] == 1.0
    assert metrics["classes"] == 2 and metrics["maps"] == 3
    assert metrics["chance_average_precision"] == pytest.approx(0.25)
    # Pooled, the second picture's 0.7 outranks nothing; raised above the first object it does.
    maps[1, 0, 1] = 0.95
    assert class_segmentation_metrics(maps, masks, ["a", "a", "b"])["mean_average_precision"] == pytest.approx(
        ((1 / 2 + 2 / 3) / 2 + 1) / 2
    )
    with pytest.raises(ValueError, match="No mask is in view"):
        class_segmentation_metrics(maps, torch.zeros_like(masks), ["a", "a", "b"])


# Protocols, lists, records


def test_protocols__have_versions_and_say_what_was_changed():
    for task, group in PROTOCOLS.items():
        for name, protocol in group.items():
            assert protocol.name == name and protocol.version and protocol.summary, (task, name)
            json.dumps(protocol.to_dict())
    changed = modify(RETRIEVAL_PROTOCOLS["clips"], strategy="mean")
    assert changed.name == "clips, strategy mean" and changed.strategy == "mean"
    assert modify(RETRIEVAL_PROTOCOLS["clips"], strategy="diagonal_mean").name == "clips"
    with pytest.raises(ProtocolError, match="no protocol 'x' here; choose one of clips"):
        find_protocol("x", RETRIEVAL_PROTOCOLS)
    with pytest.raises(ProtocolError, match="`strategy` is 'best'"):
        modify(RETRIEVAL_PROTOCOLS["clips"], strategy="best")


def test_read_ids__kinds(tmp_path):
    for name, text, expected in (
        ("a.txt", "one\n\n two \n", [("one",), ("two",)]),
        ("b.csv", "abc,30,dog barking,test\n", [("abc_000030", "abc")]),
        ("c.csv", '# YTID, start_seconds\nxyz, 10.000, 20.000, "/m/0"\n', [("xyz_000010", "xyz")]),
        ("d.json", '["x/y.mp4"]', [("x/y", "y")]),
    ):
        (tmp_path / name).write_text(text)
        assert read_ids(tmp_path / name) == expected
    (tmp_path / "e.txt").write_text("\n")
    for name, words in (("e.txt", "holds no ids"), ("f.txt", "no such file"), ("f.csv", "no such file")):
        with pytest.raises(EvaluationError, match=words):
            read_ids(tmp_path / name)


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
    write_results(path, record)  # a newer run replaces it
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    with pytest.raises(ResultsError, match="holds no results, so it is not replaced"):
        write_results(other, record)
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
