"""SyncWorld: what happens in a clip, and that video, audio and truth agree after encoding."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cavmae_sync_hf import DataError
from cavmae_sync_hf.syncworld import (
    CLASS_NAMES,
    WorldOptions,
    contact_sheet,
    find_truth,
    load_syncworld,
    make_world,
    preview_page,
    read_truth,
    sample_scene,
    sounding_boxes,
    sounding_class_sets,
    temporal_partners,
    truth_at,
)
from cavmae_sync_hf.syncworld.appearance import CLASS_APPEARANCES, draw_sprite, sample_appearance
from cavmae_sync_hf.syncworld.render import render_frames, render_waveform, write_clip
from cavmae_sync_hf.syncworld.truth import truth_record
from cavmae_sync_hf.syncworld.voices import sample_voice, synthesize

av = pytest.importorskip("av")

FIXTURES = Path(__file__).parents[1] / "fixtures"
SMALL = {"size": 48, "fps": 8, "seconds": 3.0}  # a clip in about 15 ms
SHORT_OPTIONS = {"width": 96, "height": 96, "fps": 10, "seconds": 10.0}
SOURCE = Path(__file__).parents[2] / "src"


def glow(frame: np.ndarray, box: np.ndarray) -> int:
    """Nearly white pixels in and around a box."""
    x0, y0, x1, y1 = (int(v) for v in box)
    margin = (x1 - x0) // 5
    area = frame[max(0, y0 - margin) : y1 + margin, max(0, x0 - margin) : x1 + margin]
    return int((area.min(-1) > 190).sum())


def decode(path: Path) -> tuple[list[float], list[np.ndarray], float, np.ndarray, int]:
    with av.open(str(path)) as file:
        frames = list(file.decode(video=0))
    with av.open(str(path)) as file:
        audio = list(file.decode(audio=0))
    waveform = np.concatenate([piece.to_ndarray()[0] for piece in audio])
    pixels = [frame.to_ndarray(format="rgb24") for frame in frames]
    return [frame.time for frame in frames], pixels, audio[0].time, waveform, audio[0].sample_rate


# --- what happens ---------------------------------------------------------------------------------------------------


def test_class_sets__are_298_for_twelve_classes():
    assert len(CLASS_NAMES) >= 12
    assert len(sounding_class_sets(12, 3)) == 298
    assert set(CLASS_APPEARANCES) == set(CLASS_NAMES)


def test_semantic_evaluation__never_repeats_a_set_of_sounding_classes():
    options = WorldOptions(preset="semantic", split="test", fps=5, seconds=4.0)
    sets = [tuple(sample_scene(options, i).classes) for i in range(298)]
    assert len(set(sets)) == 298
    with pytest.raises(ValueError, match="at most 298"):
        sample_scene(options, 298)
    train = WorldOptions(preset="semantic", split="train", fps=5, seconds=4.0)
    assert sample_scene(train, 298).classes  # a training split may repeat sets and goes on


def test_temporal_pair__differs_only_in_when_things_sound():
    options = WorldOptions(preset="temporal", **SHORT_OPTIONS)
    for pair in range(5):
        first, second = sample_scene(options, 2 * pair), sample_scene(options, 2 * pair + 1)
        assert (first.partner, second.partner) == (2 * pair + 1, 2 * pair)
        assert first.background_seed == second.background_seed
        assert first.animations == second.animations
        for one, other in zip(first.objects, second.objects, strict=True):
            assert (one.class_name, one.appearance, one.sounding) == (
                other.class_name,
                other.appearance,
                other.sounding,
            )
            assert np.array_equal(one.path, other.path)

        def events(scene):
            return {(event.object, event.end_frame - event.start_frame, event.voice) for event in scene.events}

        assert events(first) == events(second)
        assert len(first.events) == len(second.events) == len(events(first))
        active = np.zeros((2, len(first.objects), options.num_frames), bool)
        for which, scene in enumerate((first, second)):
            for event in scene.events:
                active[which, event.object, event.start_frame : event.end_frame] = True
        assert (active[0] & active[1]).sum() < 0.45 * active[0].sum()
        assert first.noise_seed != second.noise_seed


def test_temporal_pair__frames_and_audio_follow_from_the_times_alone():
    options = WorldOptions(preset="temporal", echo=0.8, noise_db=None, **SHORT_OPTIONS)
    for pair in range(3):
        first, second = sample_scene(options, 2 * pair), sample_scene(options, 2 * pair + 1)
        moved = replace(first, events=second.events)
        assert np.array_equal(render_frames(moved, options)[0], render_frames(second, options)[0])
        assert np.array_equal(render_waveform(moved, options), render_waveform(second, options))
        assert not np.array_equal(render_waveform(first, options), render_waveform(second, options))


def test_temporal_pair__truth_differs_only_in_times_and_the_shaking_of_what_sounds():
    options = WorldOptions(preset="temporal", **SHORT_OPTIONS)
    times = {"start", "end", "start_frame", "end_frame", "boxes"}

    def events(record):
        return sorted(json.dumps({k: v for k, v in e.items() if k not in times}) for e in record["events"])

    shaken = 0
    for pair in range(3):
        records, on = [], np.zeros((2, 4, options.num_frames), bool)
        for which in range(2):
            scene = sample_scene(options, 2 * pair + which)
            records.append(truth_record(scene, options, render_frames(scene, options)[1]))
            for event in scene.events:
                on[which, event.object, event.start_frame : event.end_frame] = True
        one, other = records
        assert {key for key in one if one[key] != other[key]} <= {
            "file_name", "clip_id", "index", "partner", "objects", "events", "sounding_objects", "sounding_boxes"
        }  # fmt: skip
        assert events(one) == events(other)
        for slot, (item, twin) in enumerate(zip(one["objects"], other["objects"], strict=True)):
            apart = np.abs(np.array(item.pop("boxes")) - np.array(twin.pop("boxes"))).max(1)
            assert item == twin
            assert apart[on[0, slot] == on[1, slot]].max() == 0
            assert apart.max() <= 1  # a fortieth of a body of about 27 pixels
            shaken += int(apart.max())
    assert shaken > 0


def test_spatial__two_candidates_of_two_classes_one_sounds():
    options = WorldOptions(preset="spatial", **SHORT_OPTIONS)
    for index in range(20):
        scene = sample_scene(options, index)
        assert sorted(item.sounding for item in scene.objects) == [False, True]
        assert scene.objects[0].class_name != scene.objects[1].class_name
        assert {scene.objects[event.object].sounding for event in scene.events} == {True}


@pytest.mark.parametrize("preset", ["semantic", "temporal", "spatial"])
def test_order_of_objects__does_not_tell_which_sound(preset):
    options = WorldOptions(preset=preset, **SHORT_OPTIONS)
    wanted, first, last = [], [], []
    for index in range(0, 300, 2):  # one of each pair
        sounding = [item.sounding for item in sample_scene(options, index).objects]
        wanted.append(np.mean(sounding))
        first.append(sounding[0])
        last.append(sounding[-1])
    # 150 draws have a standard error of 0.04; sounding objects first would make the means 1 and 0.
    assert np.mean(first) == pytest.approx(np.mean(wanted), abs=0.13)
    assert np.mean(last) == pytest.approx(np.mean(wanted), abs=0.13)


def test_mixed__takes_the_presets_in_turn():
    options = WorldOptions(preset="mixed", **SHORT_OPTIONS)
    scenes = [sample_scene(options, i) for i in range(8)]
    assert [scene.kind for scene in scenes] == ["semantic", "spatial", "temporal", "temporal"] * 2
    assert [scene.partner for scene in scenes] == [None, None, 3, 2, None, None, 7, 6]


@pytest.mark.parametrize(("fps", "seconds"), [(10, 10.0), (8, 6.4), (25, 3.0), (5, 3.0)])
def test_schedule__obeys_the_rules(fps, seconds):
    options = WorldOptions(preset="mixed", fps=fps, seconds=seconds)
    shown = np.floor((np.arange(16) + 0.5) / 16 * seconds * fps + 1e-6)
    animations = 0
    for index in range(40):
        scene = sample_scene(options, index)
        assert 2 <= len(scene.objects) <= 4
        assert len({item.class_name for item in scene.objects}) == len(scene.objects)
        assert 1 <= len(scene.classes) < len(scene.objects)  # there is always a silent candidate
        taken = np.zeros(options.num_frames, int)
        for event in scene.events:
            assert scene.objects[event.object].sounding
            assert 0.3 - 1e-9 <= (event.end_frame - event.start_frame) / fps <= 2.0
            assert 0 < event.start_frame < event.end_frame < options.num_frames
            taken[event.start_frame : event.end_frame] += 1
        assert taken.max() == 1
        for slot, item in enumerate(scene.objects):
            mine = [event for event in scene.events if event.object == slot]
            caught = any(((shown >= e.start_frame) & (shown < e.end_frame)).any() for e in mine)
            assert caught == item.sounding  # one of the 16 frames shows each object that sounds
        for animation in scene.animations:
            animations += 1
            assert not scene.objects[animation.object].sounding
            assert not taken[animation.start_frame : animation.end_frame].any()
    assert animations > 5


def test_overlap__lets_events_of_different_objects_meet():
    options = WorldOptions(preset="semantic", overlap=1.0)
    together = 0
    for index in range(20):
        scene = sample_scene(options, index)
        taken = np.zeros((len(scene.objects), options.num_frames), int)
        for event in scene.events:
            assert event.end_frame < options.num_frames
            taken[event.object, event.start_frame : event.end_frame] += 1
        assert taken.max() == 1  # never with itself
        together += int((taken.sum(0) > 1).any())
    assert together > 5


def test_objects__never_touch_and_stay_in_the_frame():
    options = WorldOptions(preset="mixed", **SHORT_OPTIONS)
    moved = []
    for index in range(8):
        scene = sample_scene(options, index)
        _, boxes = render_frames(scene, options)
        assert boxes.min() >= 0 and boxes.max() <= 96
        assert (boxes[..., 2] - boxes[..., 0]).min() >= 8 and (boxes[..., 3] - boxes[..., 1]).min() >= 8
        for a in range(len(boxes)):
            for b in range(a):
                wide = np.minimum(boxes[a, :, 2], boxes[b, :, 2]) - np.maximum(boxes[a, :, 0], boxes[b, :, 0])
                high = np.minimum(boxes[a, :, 3], boxes[b, :, 3]) - np.maximum(boxes[a, :, 1], boxes[b, :, 1])
                assert np.minimum(wide, high).max() <= 0
        moved.extend(np.ptp(item.path, axis=0).max() for item in scene.objects)
    assert np.mean(moved) > 5


# --- video and audio ------------------------------------------------------------------------------------------------


def test_voices__can_be_told_apart_whatever_pitch_length_and_loudness():
    rng = np.random.default_rng(0)
    features, labels = [], []
    for label, name in enumerate(CLASS_NAMES):
        for _ in range(30):
            samples = synthesize(sample_voice(name, rng), int(rng.uniform(0.4, 2.0) * 16000), 16000)
            assert np.isfinite(samples).all() and np.abs(samples).max() <= 0.95
            samples = samples + 0.002 * rng.standard_normal(len(samples))
            pieces = np.lib.stride_tricks.sliding_window_view(samples, 400)[::160] * np.hanning(400)
            power = np.abs(np.fft.rfft(pieces, 512)) ** 2
            edges = np.unique(np.geomspace(2, 257, 25).astype(int))
            level = np.log(np.stack([power[:, a:b].mean(1) for a, b in zip(edges, edges[1:], strict=False)], 1) + 1e-6)
            features.append(np.concatenate([level.mean(0), level.std(0), 2 * np.abs(np.diff(level, axis=0)).mean(0)]))
            labels.append(label)
    features, labels = np.array(features), np.array(labels)
    train = np.arange(len(labels)) % 3 > 0
    distance = ((features[~train, None] - features[None, train]) ** 2).sum(-1)
    right = labels[train][distance.argmin(1)] == labels[~train]
    assert right.mean() > 0.97  # 1.0 as measured; chance is 0.08


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_voice__starts_at_once_and_differs_in_pitch_and_loudness(name):
    rng = np.random.default_rng(1)
    voices = [sample_voice(name, rng) for _ in range(8)]
    assert np.ptp([voice.level_db for voice in voices]) > 3
    for voice in voices:
        samples = synthesize(voice, 8000, 16000)
        assert np.array_equal(samples, synthesize(voice, 8000, 16000))
        assert np.argmax(np.abs(samples) > 0.1 * np.abs(samples).max()) < 160  # 10 ms
        assert np.abs(samples[-5:]).max() < 0.02


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_activity__shows_in_one_frame_and_in_no_other_state(name):
    rng = np.random.default_rng(2)
    appearance = sample_appearance(name, 25.0, rng)

    def white(state: str, step: int) -> int:
        sprite = draw_sprite(appearance, state, step)
        image = (np.full((*sprite.clear.shape[:2], 3), 60) * sprite.clear + sprite.colour) >> 8
        return int((image.min(-1) > 215).sum())

    quiet = [("idle", 0), ("dim", 0), *(("spin", k) for k in range(8)), *(("squash", k) for k in range(4))]
    assert min(white("active", k) for k in range(2)) > 40 + max(white(*state) for state in quiet)


def test_drawn_activity__lasts_exactly_as_long_as_the_audio():
    options = WorldOptions(preset="semantic", noise_db=None, **SHORT_OPTIONS)
    for index in range(3):
        scene = sample_scene(options, index)
        frames, boxes = render_frames(scene, options)
        waveform = render_waveform(scene, options).reshape(options.num_frames, -1)
        heard = np.abs(waveform).max(1) > 0
        on = np.zeros((len(scene.objects), options.num_frames), bool)
        for event in scene.events:
            on[event.object, event.start_frame : event.end_frame] = True
        assert np.array_equal(heard, on.any(0))
        for slot in range(len(scene.objects)):
            white = np.array([glow(frames[k], boxes[slot, k]) for k in range(options.num_frames)])
            if on[slot].any():
                assert white[on[slot]].min() > white[~on[slot]].max()


@pytest.mark.parametrize(
    "settings", [{}, {"sampling_rate": 48000, "fps": 25}, {"encoder_preset": "medium"}, {"echo": 0.7}, {"crf": 32}]
)
def test_decoded_onsets__agree_with_truth_and_each_other_within_20_ms(tmp_path, settings):
    options = WorldOptions(preset="semantic", split="test", **{**SHORT_OPTIONS, **settings})
    left, index = set(CLASS_NAMES), 0
    while left and (not settings or index < 4):  # every class once with the defaults
        scene = sample_scene(options, index)
        boxes = write_clip(tmp_path / "clip.mp4", scene, options)
        times, frames, audio_start, waveform, rate = decode(tmp_path / "clip.mp4")
        assert len(frames) == options.num_frames
        assert (
            abs(audio_start) < 1e-6 and abs(len(waveform) / rate - options.duration) < 0.07
        )  # one AAC frame of slack
        for event in scene.events:
            truth = event.start_frame / options.fps
            begin = round((truth - 0.15) * rate)
            level = np.abs(waveform[begin : round((truth + 0.3) * rate)])
            # Echo of the last event may still fade here, hence the first 100 ms set the floor.
            heard = (begin + np.argmax(level > max(2 * level[: rate // 10].max(), 0.1 * level.max()))) / rate
            span = range(event.start_frame - 2, event.start_frame + 3)
            white = np.array([glow(frames[k], boxes[event.object, k]) for k in span])
            seen = times[span[int(np.argmax(white - white[0] > 0.3 * (white.max() - white[0])))]]
            assert abs(heard - truth) < 0.02
            assert abs(seen - truth) < 0.02
            assert abs(heard - seen) < 0.02
        left -= {CLASS_NAMES[c] for c in scene.classes}
        index += 1


def test_options__reach_the_file(tmp_path):
    options = WorldOptions(width=128, height=64, fps=12, seconds=4.0, sampling_rate=24000)
    write_clip(tmp_path / "clip.mp4", sample_scene(options, 0), options)
    with av.open(str(tmp_path / "clip.mp4")) as file:
        video, audio = file.streams.video[0], file.streams.audio[0]
        assert (video.codec_context.name, audio.codec_context.name) == ("h264", "aac")
        assert (video.width, video.height, video.average_rate, video.frames) == (128, 64, 12, 48)
        assert (audio.rate, audio.channels) == (24000, 1)
        assert file.duration == 4_000_000


def test_echo_and_noise__change_the_audio_alone():
    plain, rich = WorldOptions(noise_db=None), WorldOptions(noise_db=-30.0, echo=0.8)
    scene = sample_scene(plain, 0)
    dry, wet = render_waveform(scene, plain), render_waveform(scene, rich)
    end = plain.sample_of_frame(max(event.end_frame for event in scene.events))
    assert np.abs(dry[end:]).max() == 0
    tail = wet[end + 800 : end + 2400]
    assert tail.std() > 10 ** (-30 / 20)  # the room's tail is above the noise
    assert abs(20 * np.log10(wet[:1600].std()) + 30) < 1  # nothing sounds in the first 0.1 s
    assert np.abs(wet).max() <= 0.9 + 1e-6


# --- truth ----------------------------------------------------------------------------------------------------------


def test_truth__sounding_boxes_are_those_of_the_frame_on_screen():
    options = WorldOptions(preset="semantic", **SHORT_OPTIONS)
    scene = sample_scene(options, 1)
    _, boxes = render_frames(scene, options)
    record = truth_record(scene, options, boxes)
    assert record["frame_times"] == pytest.approx([(i + 0.5) * 10 / 16 for i in range(16)])
    empty = 0
    for i, moment in enumerate(record["frame_times"]):
        on = [e for e in record["events"] if e["start"] <= int(moment * 10 + 1e-6) / 10 < e["end"]]
        assert record["sounding_objects"][i] == sorted(e["object"] for e in on)
        wanted = [e["boxes"][int(moment * 10 + 1e-6) - e["start_frame"]] for e in on]
        assert record["sounding_boxes"][i] == wanted
        empty += not on
    assert 0 < empty < 16
    assert record["labels"] == sorted({e["label"] for e in record["events"]})
    assert all(len(item["boxes"]) == 100 for item in record["objects"])
    assert all(len(e["boxes"]) == e["end_frame"] - e["start_frame"] for e in record["events"])
    assert json.loads(json.dumps(record)) == record


def test_parquet_and_json__hold_the_same_and_load(tmp_path):
    datasets = pytest.importorskip("datasets")
    make_world(tmp_path, clips=4, workers=1, **SMALL)
    make_world(tmp_path, clips=2, split="test", preset="spatial", workers=1, **SMALL)
    world = load_syncworld(tmp_path)
    assert isinstance(world, datasets.DatasetDict) and {k: len(v) for k, v in world.items()} == {"train": 4, "test": 2}
    for row, record in zip(world["train"], read_truth(tmp_path, "train"), strict=True):
        assert row.pop("video") == record.pop("path")
        assert row == record
    assert world["train"].features["labels"].feature.names == list(CLASS_NAMES)
    assert Path(load_syncworld(tmp_path, "test")[0]["video"]).is_file()
    plain = datasets.load_dataset(str(tmp_path), cache_dir=str(tmp_path / "cache"))  # the card names the files
    assert {k: len(v) for k, v in plain.items()} == {"train": 4, "test": 2}
    with pytest.raises(ValueError, match="no finished split 'nope', only test, train"):
        load_syncworld(tmp_path, "nope")
    with pytest.raises(ValueError, match="no finished SyncWorld"):
        load_syncworld(tmp_path / "train")
    with pytest.raises(ValueError, match="No SyncWorld clips.*its splits are test, train: name one"):
        next(read_truth(tmp_path))
    with pytest.raises(ValueError, match="No SyncWorld clips.*its splits are test, train: name one"):
        next(read_truth(tmp_path, "nope"))
    with pytest.raises(ValueError, match="No SyncWorld clips.*make a split with make_world"):
        next(read_truth(tmp_path / "nowhere"))


def test_find_truth__of_a_split_of_format_2_its_shards_and_elsewhere(tmp_path):
    split = FIXTURES / "syncworld" / "train"
    records = find_truth(split, ["train-000001", "000000"])
    assert [record["index"] for record in records] == [1, 0]
    world = tmp_path / "world"
    shutil.copytree(split, world / "train")
    assert find_truth(world / "shards_time_16" / "train", ["train-000000"])[0]["index"] == 0
    assert find_truth(tmp_path / "elsewhere", ["train-000000"], truth=split)[0]["index"] == 0
    assert find_truth(tmp_path / "elsewhere", ["train-000000"]) is None
    assert find_truth(["a.mp4"], ["a"]) is None
    with pytest.raises(DataError, match=r"train: has no truth for the clip 'test-000000' \(1 of 2 are unknown\)"):
        find_truth(split, ["train-000000", "test-000000"])
    with pytest.raises(DataError, match="elsewhere is no SyncWorld split"):
        find_truth(split, ["train-000000"], truth=tmp_path / "elsewhere")


def test_sounding_boxes_and_partners__are_those_of_the_truth():
    records = list(read_truth(FIXTURES / "syncworld", "train"))
    for record in records:
        boxes = sounding_boxes(record, record["frame_times"])
        assert [sorted(found) for found in boxes] == [sorted(known) for known in record["sounding_boxes"]]
        assert any(boxes) and sounding_boxes(record, [0.0, 1e6]) == [[], []]  # nothing sounds at either end
    assert temporal_partners(records) == [1, 0] and temporal_partners(records[::-1]) == [1, 0]
    assert temporal_partners(records[:1]) is None


# --- previews ----------------------------------------------------------------------------------------------------


def test_contact_sheet__shows_frames_boxes_and_spectrogram(tmp_path):
    make_world(tmp_path, clips=2, preset="spatial", workers=1, **SMALL)
    path = contact_sheet(tmp_path, tmp_path / "show" / "sheet.png", split="train", clips=2)
    sheet = np.asarray(Image.open(path))
    record = next(read_truth(tmp_path, "train"))
    assert sheet.shape[1] == 16 * 50
    i = next(i for i, boxes in enumerate(record["sounding_boxes"]) if boxes)
    x0, y0, x1, _ = record["sounding_boxes"][i][0]
    top = 32 + 14  # how to read the sheet, and the clip's title
    assert (sheet[top + y0, i * 50 + x0 : i * 50 + x1] == 255).all()


def test_preview_page__refers_to_the_clips_relative_to_itself(tmp_path):
    make_world(tmp_path, clips=2, preset="temporal", workers=1, **SMALL)
    page = preview_page(tmp_path / "train", tmp_path / "show" / "index.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page).group(1))
    assert [clip["src"] for clip in data["clips"]] == ["../train/000000.mp4", "../train/000001.mp4"]
    assert all((tmp_path / "show" / clip["src"]).is_file() for clip in data["clips"])
    assert len(data["colours"]) == len(CLASS_NAMES)
    assert str(tmp_path) not in page and "http" not in page


@pytest.mark.parametrize("show", [contact_sheet, preview_page])
def test_showing_no_clips__is_refused(tmp_path, show):
    make_world(tmp_path, clips=1, workers=1, **SMALL)
    with pytest.raises(ValueError, match="at least one clip to show, got clips=0"):
        show(tmp_path / "train", tmp_path / "show" / "out", clips=0)
    assert not (tmp_path / "show").exists()


def test_truth_at_the_clips_own_moments__is_the_truth(tmp_path):
    make_world(tmp_path, clips=4, seed=1, size=48, workers=1)
    for record in read_truth(tmp_path / "train"):
        again = truth_at(record, record["frame_times"])
        assert again == record
        fewer = truth_at(record, record["frame_times"][::3])
        assert fewer["sounding_objects"] == record["sounding_objects"][::3]
        assert fewer["sounding_boxes"] == record["sounding_boxes"][::3]
