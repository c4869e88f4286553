# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""`score_film`: recordings fit what is seen, begin with it, and what is still stays silent; what is written."""

import json
import math
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from cavmae_sync_hf import index_videos, load_model, make_world
from cavmae_sync_hf.model.errors_cavmae_sync import (
    AlreadyExistsError,
    CavMaeSyncError,
    InferenceError,
    QueryError,
    SearchError,
)
from cavmae_sync_hf.model.media_cavmae_sync import decode_media, probe_media
from cavmae_sync_hf.search.placements import Candidate, FilmScore, FilmSegment, Placement
from cavmae_sync_hf.search.scoring import change_points, choose_sounds, exchange, score_film, silence_threshold
from cavmae_sync_hf.search.settings import IndexSettings
from cavmae_sync_hf.search.soundtrack import (
    RATE,
    first_sound,
    measure_loudness,
    mix,
    read_samples,
    write_film,
    write_score,
    write_stems,
)
from cavmae_sync_hf.search.store import MomentStore
from cavmae_sync_hf.syncworld import find_truth
from helpers.clips import noise, onset, tone, write_clip


def write_wav(path: Path, samples: np.ndarray, rate: int = RATE) -> Path:
    samples = np.atleast_2d(samples).astype(np.float32)
    return write_clip(
        path, seconds=samples.shape[1] / rate, video=False, audio=samples, rate=rate, audio_codec="pcm_s16le"
    )


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """The example model, four films of SyncWorld, and an index of single events of another world."""
    folder = tmp_path_factory.mktemp("studio")
    make_world(folder, clips=4, seed=5, split="films", preset="semantic", seconds=6, workers=1)
    make_world(folder, clips=14, seed=6, split="others", preset="semantic", seconds=10, workers=1)
    names = [f"{number:06d}" for number in range(14)]
    (folder / "sounds").mkdir()
    for name, record in zip(names, find_truth(folder / "others", names), strict=True):
        samples = read_samples(folder / "others" / f"{name}.mp4", 0.0, 10.0, 16000, "mono")
        for number, event in enumerate(record["events"]):
            own = samples[:, round(event["start"] * 16000) : round(event["end"] * 16000)]
            write_wav(folder / "sounds" / f"{event['label_name']}_{name}_{number}.wav", own, 16000)
    model, processor = load_model("example")
    index_videos(folder / "sounds", folder / "sounds.index", model, processor, hop=0.25)
    return folder, model, processor


def films(folder: Path) -> list[tuple[Path, dict]]:
    names = [f"{number:06d}" for number in range(4)]
    return [
        (folder / "films" / f"{n}.mp4", t) for n, t in zip(names, find_truth(folder / "films", names), strict=True)
    ]


def label(path: str) -> str:
    return Path(path).name.split("_")[0]


def test_sounds__are_of_the_right_class_begin_with_the_picture_and_leave_stillness_alone(studio):
    folder, model, processor = studio
    right = events = idle = 0
    errors = []
    for film, truth in films(folder):
        found = score_film(film, folder / "sounds.index", model, processor)
        assert found.seconds == pytest.approx(6.0) and found.segments[0].start == 0.0
        assert all(one.end == two.start for one, two in zip(found.segments, found.segments[1:], strict=False))
        for event in truth["events"]:
            near = [s for s in found.placements if s.time < event["end"] and s.time + s.seconds > event["start"]]
            events += 1
            if near:
                best = min(near, key=lambda sound: abs(sound.time - event["start"]))
                right += label(best.path) == event["label_name"]
                errors.append(abs(best.time - event["start"]))
        idle += sum(
            all(s.time >= e["end"] or s.time + s.seconds <= e["start"] for e in truth["events"])
            for s in found.placements
        )
    # 12 classes: chance is one in twelve.
    assert right / events >= 0.5 and len(errors) / events >= 0.6
    assert np.mean(np.array(errors) < 0.11) >= 0.8 and idle <= 1


def test_a_choice_by_seed__is_another_and_the_same_again(studio):
    folder, model, processor = studio
    film = films(folder)[0][0]
    chosen = [
        [sound.path for sound in score_film(film, folder / "sounds.index", model, processor, seed=seed).placements]
        for seed in (None, 1, 1, 2)
    ]
    assert chosen[1] == chosen[2] and len({tuple(paths) for paths in chosen}) >= 2


def test_layers_and_choices__are_other_recordings_of_the_same_segment(studio):
    folder, model, processor = studio
    found = score_film(films(folder)[0][0], folder / "sounds.index", model, processor, layers=2, top=2)
    assert {sound.layer for sound in found.placements} == {0, 1}
    for sound in found.placements:
        beside = [other.path for other in found.placements if other.segment == sound.segment]
        assert len(set(beside)) == len(beside) and len(sound.choices) <= 2
        assert sound.path not in [choice.path for choice in sound.choices]


def test_files__restrict_the_recordings(studio):
    folder, model, processor = studio
    index, film = folder / "sounds.index", films(folder)[0][0]
    kept = {label(path.name) for path in (folder / "sounds").iterdir()} & {
        event["label_name"] for event in films(folder)[0][1]["events"]
    }
    only = sorted(kept)[0]
    found = score_film(film, index, model, processor, files=f"*/{only}_*")
    assert {label(sound.path) for sound in found.placements} == {only}
    with pytest.raises(InferenceError, match="nothing in it asks for anything"):
        score_film(film, index, model, processor, files="*/nobody_*")


def test_columns_of_a_table__are_kept_beside_what_is_placed(studio, tmp_path):
    folder, model, processor = studio
    film = films(folder)[0][0]
    table = tmp_path / "about.csv"
    names = sorted(path.name for path in (folder / "sounds").iterdir())
    table.write_text("file,Licence\n" + "".join(f"{name},CC BY {number}\n" for number, name in enumerate(names)))
    found = score_film(film, folder / "sounds.index", model, processor, about=table)
    assert all(s.about == {"licence": f"CC BY {names.index(Path(s.path).name)}"} for s in found.placements)
    assert ",CC BY " in write_score(found, tmp_path / "a.csv").read_text().splitlines()[1]
    table.write_text("licence\nCC0\n")
    with pytest.raises(CavMaeSyncError, match="names no files"):
        score_film(film, folder / "sounds.index", model, processor, about=table)


def test_an_interrupted_run__goes_on_where_it_was(studio, tmp_path, monkeypatch):
    folder, model, processor = studio
    film, work = films(folder)[1][0], tmp_path / "work.jsonl"
    monkeypatch.setattr("cavmae_sync_hf.search.scoring._AT_A_TIME", 20)
    whole = score_film(film, folder / "sounds.index", model, processor, batch_size=8)

    def stop(done: int, total: int) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_film(film, folder / "sounds.index", model, processor, batch_size=8, work=work, progress=stop)
    before = work.read_text().splitlines()
    with work.open("a") as file:
        file.write('{"start": 1')  # as a killed run leaves it
    seen = []
    again = score_film(
        film,
        folder / "sounds.index",
        model,
        processor,
        batch_size=8,
        work=work,
        progress=lambda done, _: seen.append(done),
    )

    assert len(before) > 2 and min(seen) >= 1
    assert [(s.path, s.time) for s in again.placements] == [(s.path, s.time) for s in whole.placements]
    assert work.read_text().splitlines()[: len(before)] == before
    # Another question begins anew.
    other = score_film(film, folder / "sounds.index", model, processor, batch_size=8, work=work, hop=0.2)
    head, *rows = work.read_text().splitlines()
    assert json.loads(head)["hop"] == 0.2 and len(rows) == len(other.segments) and other.segments[0].start == 0.0


def test_a_recording_that_is_gone__is_told_and_the_next_best_taken(studio, tmp_path):
    folder, model, processor = studio
    film = films(folder)[0][0]
    first = score_film(film, folder / "sounds.index", model, processor).placements[0]
    away = tmp_path / "away.wav"
    Path(first.path).rename(away)
    try:
        lost: dict[str, CavMaeSyncError] = {}
        found = score_film(film, folder / "sounds.index", model, processor, on_error=lost.setdefault)
        with pytest.raises(CavMaeSyncError, match=Path(first.path).name):
            score_film(film, folder / "sounds.index", model, processor)
    finally:
        away.rename(first.path)
    assert list(lost) == [first.path]
    assert found.placements[0].time == first.time and found.placements[0].path != first.path


def test_the_offset_estimate__may_place_a_recording(studio):
    folder, model, processor = studio
    film = films(folder)[0][0]
    moved = score_film(film, folder / "sounds.index", model, processor, place="sync").placements
    plain = score_film(film, folder / "sounds.index", model, processor).placements
    by_segment = {sound.segment: sound for sound in plain}
    assert len(moved) == len(plain)
    assert all(abs(sound.time - by_segment[sound.segment].time) <= 1.05 for sound in moved)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hop": 0}, "hop is 0"),
        ({"change": math.inf}, "change is inf"),
        ({"layers": 0}, "layers is 0"),
        ({"top": -1}, "top is -1"),
        ({"place": "anywhere"}, '"onset" or "sync"'),
        ({"start": 99.0}, "no moments lie between|start"),
    ],
)
def test_arguments_that_cannot_work__are_refused(studio, options, message):
    folder, model, processor = studio
    with pytest.raises(CavMaeSyncError, match=message):
        score_film(films(folder)[0][0], folder / "sounds.index", model, processor, **options)


def test_a_library_without_what_is_looked_for__is_refused(studio, tmp_path):
    folder, model, processor = studio
    sound = next((folder / "sounds").iterdir())
    with pytest.raises(QueryError, match="holds no video"):
        score_film(sound, folder / "sounds.index", model, processor)
    write_clip(tmp_path / "films" / "mute.mp4" if (tmp_path / "films").mkdir() is None else "", audio=False)
    index_videos(tmp_path / "films", tmp_path / "mute.index", model, processor)
    with pytest.raises(QueryError, match="holds no audio"):
        score_film(films(folder)[0][0], tmp_path / "mute.index", model, processor)


def test_an_empty_library_and_one_of_another_model__are_refused(studio, tmp_path):
    folder, model, processor = studio
    film = films(folder)[0][0]
    settings = IndexSettings.of(model, processor, 0.25)
    MomentStore.create(tmp_path / "empty.index", settings)
    with pytest.raises(QueryError, match="holds no audio"):
        score_film(film, tmp_path / "empty.index", model, processor)
    other, its = load_model("example")
    with torch.no_grad():
        next(other.parameters()).add_(1.0)
    with pytest.raises(SearchError, match="another model|other weights|made with"):
        score_film(film, folder / "sounds.index", other, its)


def test_a_recording_longer_than_the_film__is_cut_where_its_segment_ends(studio, tmp_path):
    folder, model, processor = studio
    (tmp_path / "long").mkdir()
    write_wav(tmp_path / "long" / "hiss.wav", 0.3 * noise(25, 16000, 1), 16000)
    index_videos(tmp_path / "long", tmp_path / "long.index", model, processor, hop=0.5)
    found = score_film(films(folder)[0][0], tmp_path / "long.index", model, processor, min_fit=-50.0)
    assert found.placements
    assert all(p.time + p.seconds <= p.segment[1] + 1e-6 <= 6.0 + 1e-5 for p in found.placements)


def test_a_still_picture__asks_for_nothing(studio, tmp_path):
    folder, model, processor = studio
    grey = np.full((96, 96, 3), 128, np.uint8)
    write_clip(tmp_path / "still.mp4", seconds=3, size=(96, 96), frame=lambda number, time: grey, audio=False)
    with pytest.raises(InferenceError, match=r"nothing in it asks .* the best fits by"):
        score_film(tmp_path / "still.mp4", folder / "sounds.index", model, processor, min_fit=12.0)


def test_audio_alone__gets_pictures_all_along(studio, tmp_path):
    folder, model, processor = studio
    index_videos(folder / "others", folder / "pictures.index", model, processor, hop=0.5)
    track = write_wav(tmp_path / "track.wav", read_samples(films(folder)[2][0], 0.0, 6.0, 16000, "mono"), 16000)
    found = score_film(track, folder / "pictures.index", model, processor)

    assert found.kind == "video" and found.placements[0].time == 0.0
    assert [placed.segment[0] for placed in found.placements[1:]] == [p.segment[1] for p in found.placements[:-1]]
    assert all(0 <= placed.start < placed.end <= 10.0 for placed in found.placements)
    # What is seen sounds like what is heard: chance is about one in four.
    names = [f"{number:06d}" for number in range(14)]
    truths = dict(zip(names, find_truth(folder / "others", names), strict=True))
    right = []
    for event in films(folder)[2][1]["events"]:
        middle = (event["start"] + event["end"]) / 2
        placed = next(p for p in found.placements if p.segment[0] <= middle < p.segment[1])
        at = placed.start + middle - placed.time
        sounding = [e for e in truths[Path(placed.path).stem]["events"] if e["start"] <= at < e["end"]]
        right.append(event["label_name"] in [e["label_name"] for e in sounding])
    assert np.mean(right) >= 0.5

    for option in ({"layers": 2}, {"place": "sync"}):
        with pytest.raises(InferenceError, match=f"{next(iter(option))} is for recordings"):
            score_film(track, folder / "pictures.index", model, processor, **option)

    write_film(found, tmp_path / "film.mp4")
    info = probe_media(tmp_path / "film.mp4")
    assert info.has_video and info.has_audio and info.duration == pytest.approx(6.0, abs=0.15)
    for placed in found.placements:
        here = decode_media(tmp_path / "film.mp4", frame_times=[placed.time + 0.05]).frames[0].float()
        there = decode_media(placed.path, frame_times=[placed.start + 0.05]).frames[0].float()
        assert (here - there).abs().mean() < 8  # of 255


# --- choosing --------------------------------------------------------------------------------------------------------


def test_change_points__lie_where_vectors_change():
    rng = np.random.default_rng(0)
    means = np.eye(4)[[0, 1, 0, 2]].repeat([5, 8, 3, 6], axis=0)
    vectors = means + rng.normal(scale=0.02, size=means.shape)
    assert change_points(vectors, 0.2) == [0, 5, 13, 16, 22]
    assert change_points(vectors[:5], 0.2) == [0, 5] and change_points(vectors, 100.0) == [0, 22]
    assert change_points(means[:5].repeat(3, axis=0), 0.2, longest=6) in ([0, 6, 12, 15], [0, 3, 9, 15], [0, 6, 9, 15])


def segment(number: int, *candidates: tuple[str, float], alike: tuple[float, ...] = (), seconds: float = 1.0):
    found = tuple(Candidate(path, 0.5, seconds, fit) for path, fit in candidates)
    return FilmSegment(float(number), number + 1.0, alike, found)


def paths(chosen: list[Candidate | None]) -> list[str | None]:
    return [None if one is None else one.path for one in chosen]


def test_choices__are_the_best_fit_and_silence_below_the_least():
    segments = [segment(0, ("a", 8.0), ("b", 7.9)), segment(1, ("b", 3.0)), segment(2)]
    assert paths(choose_sounds(segments, 5.0)) == ["a", None, None]
    assert paths(choose_sounds(segments, 2.0)) == ["a", "b", None]
    assert paths(choose_sounds(segments, 5.0, taken=[{"a"}, set(), set()])) == ["b", None, None]


def test_segments_that_look_alike__get_the_same_recording_also_over_silence():
    first = segment(0, ("a", 8.0), ("b", 7.8))
    still = segment(1, ("b", 1.0), alike=(0.1,))
    other = segment(2, ("b", 8.0), ("a", 7.4), alike=(0.0, 0.2))
    again = segment(2, ("b", 8.0), ("a", 7.4), alike=(0.0, 1.0))
    assert paths(choose_sounds([first, still, other], 5.0)) == ["a", None, "b"]
    assert paths(choose_sounds([first, still, again], 5.0)) == ["b", None, "b"]


def test_a_recording_too_short_for_its_segment__is_worth_less():
    long, short = Candidate("long", 0.5, 1.0, 7.0), Candidate("short", 0.1, 0.2, 7.5)
    assert paths(choose_sounds([FilmSegment(0.0, 1.0, (), (short, long))], 5.0)) == ["long"]


def test_the_threshold__parts_two_kinds_and_is_five_nats_without_them():
    fits = [1.0, 1.2, 0.9, 6.0, 9.0, 14.0]
    assert 1.2 < silence_threshold([segment(n, ("a", fit)) for n, fit in enumerate(fits)]) < 6.0
    # What sounds may itself be two kinds.
    fits = [1.0, 1.1, 1.2, 1.1, 2.2, 2.3, 14.0, 16.0, 15.0]
    assert 1.2 < silence_threshold([segment(n, ("a", fit)) for n, fit in enumerate(fits)]) < 2.2
    assert silence_threshold([segment(n, ("a", 7.0 + 0.01 * n)) for n in range(2)]) == 5.0
    assert silence_threshold([segment(n) for n in range(5)]) == 5.0


# --- writing ---------------------------------------------------------------------------------------------------------


def placed(path: Path, time: float, start: float, end: float, layer: int = 0) -> Placement:
    return Placement(time, str(path), start, end, 7.0, layer, (time, time + end - start), "fits", ())


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A silent film of four seconds, one with a tone, a loud and a quiet recording, and what is placed."""
    folder = tmp_path_factory.mktemp("desk")
    write_clip(folder / "silent.mp4", seconds=4, audio=False, video_options={"bf": "2"})
    write_clip(folder / "tone.mp4", seconds=4, audio=tone(4, 48000), rate=48000)
    hush = np.zeros((1, RATE // 2), np.float32)
    write_wav(folder / "loud.wav", np.concatenate([hush, 0.5 * noise(1, RATE, 1)], axis=1))
    write_wav(folder / "quiet.wav", 0.02 * noise(0.3, RATE, 1, seed=1))
    sounds = (placed(folder / "loud.wav", 1.0, 0.5, 1.3), placed(folder / "quiet.wav", 3.0, 0.0, 0.3))
    return folder, FilmScore(str(folder / "silent.mp4"), "sounds.index", 4.0, (), sounds)


def test_the_first_sound__is_where_it_begins(desk):
    folder, _ = desk
    assert first_sound(folder / "loud.wav", 0.0, 1.5) == pytest.approx(0.5, abs=0.006)
    assert first_sound(folder / "loud.wav", 0.7, 1.5) == pytest.approx(0.7, abs=0.006)


@pytest.mark.parametrize(("at", "start"), [(0.6, 0.5), (2.0, 0.5), (5.5, 5.2)])
def test_a_recording__begins_with_its_first_sound_or_where_what_fits_is(desk, tmp_path, at, start):
    _, found = desk
    hush = np.zeros((1, RATE // 2), np.float32)
    path = write_wav(tmp_path / "long.wav", np.concatenate([hush, 0.3 * noise(7, RATE, 1)], axis=1))
    old = replace(found.placements[0], segment=(1.0, 1.6), choices=(Candidate(str(path), at, 7.5, 6.0),))
    before = FilmSegment(1.0, 1.6, (), (Candidate(old.path, 0.5, 1.5, 7.0),))
    new = exchange(replace(found, segments=(before,), placements=(old,)), 0, 0).placements[0]
    assert (new.path, new.time) == (str(path), 1.0) and new.start == pytest.approx(start, abs=0.01)
    assert new.seconds == pytest.approx(0.6) and [choice.path for choice in new.choices] == [old.path]


def test_loudness__is_that_of_ebu_r_128():
    # EBU Tech 3341, case 1: a stereo sine of 1000 Hz at -23 dB of full scale has -23 LUFS.
    time = np.arange(3 * RATE) / RATE
    wave = 10 ** (-23 / 20) * np.sin(2 * np.pi * 1000 * time)
    found = measure_loudness([np.stack([wave, wave])[:, first : first + 7777] for first in range(0, len(wave), 7777)])
    assert found.integrated == pytest.approx(-23.0, abs=0.1) and found.true_peak == pytest.approx(-23.0, abs=0.3)
    assert measure_loudness([np.zeros((2, RATE))]).gain() == 1.0


def test_a_mix__has_each_sound_at_its_sample_and_all_alike_loud(desk):
    _, found = desk
    blocks = list(mix(found.placements, 4.0))
    wave = np.concatenate(blocks, axis=1)
    assert wave.shape == (2, 4 * RATE)
    (heard,) = (np.flatnonzero(np.abs(wave[0]) > 1e-6),)
    assert abs(heard[0] - RATE) < 20 and abs(heard[-1] - 3.3 * RATE) < 40
    assert not np.abs(wave[:, round(1.86 * RATE) : round(2.99 * RATE)]).any()
    loud, quiet = wave[:, RATE : round(1.8 * RATE)], wave[:, 3 * RATE : round(3.3 * RATE)]
    levels = [measure_loudness([np.tile(part, 4)]).integrated for part in (loud, quiet)]
    assert levels == pytest.approx([-23.0, -23.0], abs=1.0)  # fades take a little


def test_recordings_one_after_the_other__are_cross_faded(desk):
    folder, found = desk
    before, after = placed(folder / "loud.wav", 1.0, 0.5, 1.0), placed(folder / "loud.wav", 1.5, 0.7, 1.2)
    alone, both = (np.concatenate(list(mix(sounds, 2.5)), axis=1) for sounds in ((before,), (before, after)))
    tail = np.abs(alone[0, round(1.5 * RATE) : round(1.55 * RATE)]).reshape(5, -1).max(axis=1)
    assert tail[0] > 0.5 * np.abs(alone).max() and 0 < tail[-1] < 0.3 * tail[0]  # it fades out under the next one
    assert not alone[:, round(1.551 * RATE) :].any()
    assert np.array_equal(both[:, : round(1.5 * RATE)], alone[:, : round(1.5 * RATE)])


def test_a_mix_in_blocks__is_the_mix_in_one(desk, monkeypatch):
    _, found = desk
    whole = np.concatenate(list(mix(found.placements, 4.0)), axis=1)
    monkeypatch.setattr("cavmae_sync_hf.search.soundtrack._BLOCK_SECONDS", 0.37)
    assert np.array_equal(np.concatenate(list(mix(found.placements, 4.0)), axis=1), whole)


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv"])
def test_a_film__has_its_picture_as_it_was_and_the_sounds_in_time(desk, tmp_path, name):
    folder, found = desk

    write_film(found, tmp_path / name)

    def packets(path: Path) -> list[bytes]:
        with av.open(str(path)) as container:
            return [bytes(packet) for packet in container.demux(video=0) if packet.size]

    def same(one: list[bytes], two: list[bytes]) -> bool:
        return len(one) == len(two) and all(a[-64:] == b[-64:] for a, b in zip(one, two, strict=True))

    assert same(packets(tmp_path / name), packets(folder / "silent.mp4"))
    info = probe_media(tmp_path / name)
    assert info.has_audio and info.duration == pytest.approx(4.0, abs=0.1)
    media = decode_media(tmp_path / name, num_frames=1)
    assert onset(media.waveform.numpy(), media.sampling_rate) == pytest.approx(1.0, abs=0.01)
    with pytest.raises(AlreadyExistsError):
        write_film(found, tmp_path / name)


def test_a_film_with_audio__is_refused_kept_under_or_replaced(desk, tmp_path):
    folder, found = desk
    film = FilmScore(str(folder / "tone.mp4"), found.library, 4.0, (), found.placements)

    def strength(path: Path) -> float:
        """Of the tone, where nothing is placed."""
        return float(np.abs(read_samples(path, 0.2, 0.8, layout="mono")).max())

    with pytest.raises(InferenceError, match="has audio of its own"):
        write_film(film, tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())
    write_film(film, tmp_path / "under.mp4", original="under")
    write_film(film, tmp_path / "replaced.mp4", original="replace")
    before = strength(folder / "tone.mp4")
    assert strength(tmp_path / "under.mp4") == pytest.approx(before * 10 ** (-10 / 20), rel=0.1)
    assert strength(tmp_path / "replaced.mp4") < 1e-3
    with pytest.raises(InferenceError, match="original is 'maybe'"):
        write_film(film, tmp_path / "b.mp4", original="maybe")
    with pytest.raises(InferenceError, match="films are written as"):
        write_film(found, tmp_path / "b.avi")


def test_room_tone__is_under_all_without_a_gap(desk, tmp_path):
    _, found = desk
    hiss = write_wav(tmp_path / "room.wav", 0.01 * noise(0.7, RATE, 1, seed=2))
    plain = np.concatenate(list(mix(found.placements, 4.0)), axis=1)
    tone_alone = np.concatenate(list(mix(found.placements, 4.0, room_tone=hiss)), axis=1) - plain
    levels = np.sqrt(np.square(tone_alone[0]).reshape(-1, RATE // 20).mean(axis=1))
    assert levels.min() > 0.7 * levels.mean() and levels.max() < 1.3 * levels.mean()


def test_stems__are_each_recording_alone_and_add_up_to_the_mix(desk, tmp_path):
    _, found = desk
    written = write_stems(found, tmp_path / "stems")
    assert [path.name for path in written] == ["loud.wav", "quiet.wav"]
    total = sum(read_samples(path, 0.0, 4.0) for path in written)
    assert np.abs(total - np.concatenate(list(mix(found.placements, 4.0)), axis=1)).max() < 1e-3


def test_a_score__is_written_as_table_json_and_timeline(desk, tmp_path):
    folder, found = desk
    table = write_score(found, tmp_path / "a.csv").read_text().splitlines()
    assert table[0].startswith("time,seconds,path,in,out,fit,layer") and table[1].startswith("1.0,0.8,")
    assert json.loads(write_score(found, tmp_path / "a.json").read_text())["placements"][1]["time"] == 3.0
    with pytest.raises(InferenceError, match="a score is written as"):
        write_score(found, tmp_path / "a.txt")
    otio = pytest.importorskip("opentimelineio")
    over = FilmScore(
        found.film, found.library, 4.0, (), (*found.placements, placed(folder / "loud.wav", 1.2, 0.5, 1.0))
    )
    timeline = otio.adapters.read_from_file(str(write_score(over, tmp_path / "a.otio")))
    picture, *heard = timeline.tracks
    assert picture.duration().to_seconds() == 4.0 and len(heard) == 2  # what overlaps has a track of its own
    clip = next(item for item in heard[0] if isinstance(item, otio.schema.Clip))
    at = heard[0].trimmed_range_of_child(clip)
    assert (at.start_time.to_seconds(), at.duration.to_seconds()) == pytest.approx((1.0, 0.8))
    assert clip.source_range.start_time.to_seconds() == 0.5 and clip.media_reference.target_url.endswith("loud.wav")
