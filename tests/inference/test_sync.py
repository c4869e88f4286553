"""Synchrony of videos: offsets, scores and tests, with a model whose embeddings are known."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from cavmae_sync_hf import CavMaeSyncModel, CavMaeSyncProcessor, InferenceError, MediaError, MissingTrackError
from cavmae_sync_hf.data.sync_list import read_sync_list
from cavmae_sync_hf.files import file_stem, whole_file
from cavmae_sync_hf.inference import sync as room
from cavmae_sync_hf.inference.plots import draw_timeline, timeline_figure
from cavmae_sync_hf.inference.sync import detection_metrics, measure_sync, score_alignment, sync_from_embeddings
from cavmae_sync_hf.inference.sync_band import Band, Outline, band_contrast, find_offset, shift_test
from helpers.clips import noise, write_clip
from helpers.rule_models import RATE, SECONDS, brighter, ramp_pair, ramp_video, rising_tone
from helpers.tiny import tiny_config


@pytest.fixture(scope="module")
def pair():
    return ramp_pair()


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    return {late: ramp_video(folder / f"late {late}.mp4", late=late) for late in (0.0, 0.5, -0.7)}


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def random_moments(count: int, hidden: int = 8, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    audio = unit(generator.standard_normal((count, hidden)))
    return audio, unit(audio + 0.8 * generator.standard_normal((count, hidden)))


def contrast_by_hand(matrix: np.ndarray, reach: int, temperature: float) -> np.ndarray:
    """`band_contrast` as a whole matrix `[window, frame]`, entry by entry, NaN outside the band."""
    count = len(matrix)
    result = np.full_like(matrix, np.nan, dtype=np.float64)
    near = [[other for other in range(count) if abs(other - one) <= reach] for one in range(count)]
    for window in range(count):
        for frame in near[window]:
            if not math.isfinite(matrix[window, frame]):
                continue
            by_frame = [matrix[other, frame] for other in near[frame] if math.isfinite(matrix[other, frame])]
            by_window = [matrix[window, other] for other in near[window] if math.isfinite(matrix[window, other])]
            levels = [math.log(np.mean(np.exp(np.array(some) / temperature))) for some in (by_frame, by_window)]
            result[window, frame] = matrix[window, frame] / temperature - sum(levels) / 2
    return result


@pytest.mark.parametrize("pieces", [(40,), (1,) * 40, (7, 13, 1, 19)])
def test_band__is_the_whole_matrix_around_the_diagonal_however_moments_come(pieces):
    audio, frames = random_moments(40)
    audio[[5, 6]] = np.nan
    frames[20] = np.nan
    reach, band, start = 6, Band(6), 0
    for length in pieces:
        band.add(audio[start : start + length], frames[start : start + length])
        start += length

    found = band.finish()

    matrix = audio @ frames.T
    assert found.shape == (40, 13)
    for frame in range(40):
        for column in range(13):
            window = frame + column - reach
            expected = matrix[window, frame] if 0 <= window < 40 else np.nan
            np.testing.assert_allclose(found[frame, column], expected, rtol=1e-5)


def test_contrast__of_the_band_is_that_of_the_whole_matrix():
    audio, frames = random_moments(30)
    audio[4] = np.nan
    band = Band(5)
    band.add(audio, frames)

    found = band_contrast(band.finish(), 0.1)

    expected = contrast_by_hand(audio @ frames.T, 5, 0.1)
    for frame in range(30):
        for column in range(11):
            window = frame + column - 5
            value = expected[window, frame] if 0 <= window < 30 else np.nan
            np.testing.assert_allclose(found[frame, column], value, rtol=1e-4, atol=1e-4)


def test_contrast__long_videos_in_parts_are_the_same(monkeypatch):
    audio, frames = random_moments(50)
    band = Band(4)
    band.add(audio, frames)
    whole = band_contrast(band.finish(), 0.05)

    monkeypatch.setattr("cavmae_sync_hf.inference.sync_band._ROWS_AT_A_TIME", 7)

    np.testing.assert_allclose(band_contrast(band.finish(), 0.05), whole, rtol=1e-6)


def test_contrast__gains_nothing_from_what_fits_everything():
    """A frame that fits every window equally well stands out nowhere."""
    audio = unit(np.ones((12, 4)))
    frames = unit(np.eye(4)[np.arange(12) % 4] + 1)
    band = Band(3)
    band.add(audio, frames)

    np.testing.assert_allclose(np.nan_to_num(band_contrast(band.finish(), 0.05)), 0, atol=1e-4)


def test_offset__is_that_of_the_whole_matrix(monkeypatch):
    """The estimator on the band and the one on whole matrices agree on every offset's score."""
    audio, frames = random_moments(60, seed=3)
    audio = np.roll(audio, 4, axis=0)
    band = Band(10)
    band.add(audio, frames)

    found = find_offset(band_contrast(band.finish(), 0.1), 0.1, block=5)

    whole = contrast_by_hand(audio @ frames.T, 10, 0.1)
    steps = np.arange(-10, 11)
    # Window i + k belongs to frame i where the audio is late by k steps.
    expected = [np.diagonal(np.nan_to_num(whole), -step).mean() for step in steps]
    np.testing.assert_allclose(found.offsets, steps * 0.1, atol=1e-9)
    np.testing.assert_allclose(found.scores, expected, atol=1e-4)
    assert steps[np.argmax(expected)] == 4
    assert found.offset == pytest.approx(0.4, abs=0.05) and found.confidence > 0.99
    assert not found.at_edge and found.interval[0] <= 0.4 <= found.interval[1]


def test_offset__of_noise_has_no_confidence():
    generator = np.random.default_rng(1)

    found = [find_offset(generator.standard_normal((80, 41)).astype(np.float32), 0.1, block=5) for _ in range(5)]

    assert np.mean([one.confidence for one in found]) < 0.6
    assert all(one.interval[1] - one.interval[0] > 0.5 for one in found)


def test_offset__among_equals_the_smallest_wins():
    found = find_offset(np.zeros((30, 11), dtype=np.float32), 0.2, block=3)

    assert found.offset == 0.0


def test_outline__keeps_evenly_spread_moments():
    audio, frames = random_moments(103)
    outline = Outline(20)
    for start in range(0, 103, 10):
        outline.add(start, audio[start : start + 10], frames[start : start + 10])

    assert outline.stride == 8 and outline.indices == list(range(0, 103, 8))
    np.testing.assert_allclose(outline.matrix(), audio[::8] @ frames[::8].T, rtol=1e-5)


def test_shift_test__tells_a_true_diagonal_from_sound_that_is_the_same_all_along():
    audio, frames = random_moments(40)

    share, turns = shift_test(audio @ frames.T, 3)
    flat = shift_test(np.ones((40, 40), dtype=np.float32), 3)

    assert turns == 35 and share == pytest.approx(1 / 36)
    assert flat == (1.0, 35)
    assert shift_test(np.ones((4, 4), dtype=np.float32), 3) is None


@pytest.mark.parametrize("late", [0.0, 0.5, -0.7])
@pytest.mark.parametrize("hop", [0.1, 0.2])
def test_measure__finds_how_late_the_sound_is(pair, videos, late, hop):
    result = measure_sync(*pair, videos[late], hop=hop)

    # The video has a frame every 50 ms, and its sound is AAC.
    assert result.offset == pytest.approx(late, abs=0.05)
    assert result.confidence > 0.95 and result.interval[0] - 1e-6 <= late <= result.interval[1] + 1e-6
    assert result.resolution == hop and len(result.times) == round(SECONDS / hop)
    assert result.matrix.shape == (len(result.times),) * 2
    if not late:
        assert result.lead > 1 and result.test["z_score"] > 5 and result.test["shift_p_value"] < 0.05
        assert result.alignment_score > 0.95 and result.remarks == []
    else:
        assert result.lead < 0


def test_measure__does_not_depend_on_the_size_of_batches(pair, videos):
    whole, small = (measure_sync(*pair, videos[0.5], batch_size=size) for size in (64, 7))

    np.testing.assert_allclose(whole.band, small.band, atol=1e-5)
    assert whole.offset == pytest.approx(small.offset, abs=1e-6)


def test_measure__spans_count_in_seconds_of_the_video(pair, videos):
    result = measure_sync(*pair, videos[0.5], start=1.0, end=5.0)

    assert len(result.times) == 40 and result.times[0] == pytest.approx(1.05, abs=0.051)
    assert result.offset == pytest.approx(0.5, abs=0.06)


def test_measure__long_videos_keep_a_matrix_in_outline(pair, videos):
    result = measure_sync(*pair, videos[0.0], matrix_limit=16)

    assert result.matrix.shape == (15, 15) and len(result.times) == 60
    np.testing.assert_allclose(np.diff(result.matrix_times), 0.4, atol=0.06)
    np.testing.assert_allclose(result.matrix.diagonal(), result.scores[::4], atol=1e-6)


def test_measure__another_sound_track(pair, videos, tmp_path):
    """The sound of another file, or a waveform, whatever the video itself sounds like."""
    wave = rising_tone(late=0.4)
    dubbed = write_clip(tmp_path / "dub.wav", video=False, audio=wave, rate=RATE, audio_codec="pcm_s16le")

    by_file = measure_sync(*pair, videos[-0.7], dubbed)
    by_wave = measure_sync(*pair, videos[-0.7], wave[0], sampling_rate=RATE)
    own = measure_sync(*pair, videos[-0.7], videos[0.0])

    assert by_file.offset == pytest.approx(0.4, abs=0.05) and by_file.audio_source.endswith("dub.wav")
    np.testing.assert_allclose(by_file.band, by_wave.band, atol=0.02)
    assert by_wave.audio_source == "a waveform"
    assert own.offset == pytest.approx(0.0, abs=0.05)


def test_measure__own_sound_as_another_track_is_the_same(pair, videos):
    first, second = measure_sync(*pair, videos[0.5]), measure_sync(*pair, videos[0.5], videos[0.5])

    np.testing.assert_allclose(first.band, second.band, atol=1e-4)


def test_measure__sound_that_ends_early_is_absent_afterwards(pair, videos):
    short = rising_tone()[:, : 3 * RATE]

    result = measure_sync(*pair, videos[0.0], short[0], sampling_rate=RATE)

    # The windows of 0.48 s reach a little beyond the end.
    present = np.isfinite(result.scores)
    assert present[:30].all() and not present[33:].any()
    assert any("lack audio or video" in remark for remark in result.remarks)
    assert result.offset == pytest.approx(0.0, abs=0.06)


def test_measure__silence_gives_no_offset(pair, tmp_path):
    video = ramp_video(tmp_path / "silent.mp4", audio=np.zeros((1, round(SECONDS * RATE)), np.float32))

    result = measure_sync(*pair, video)

    assert result.offset is None and result.confidence == 0.0 and result.interval is None
    assert result.verdict.kind == "cannot tell" and "silent or one steady sound" in result.verdict.reason


def test_measure__stills_give_no_offset(pair, tmp_path):
    video = ramp_video(tmp_path / "still.mp4", frame=lambda *_: brighter(0, 3.0))

    result = measure_sync(*pair, video)

    assert result.offset is None
    assert result.verdict.kind == "cannot tell" and "the video is a still" in result.verdict.reason.lower()


def test_measure__states_the_distance_of_frames_where_that_is_coarser(pair, tmp_path):
    video = ramp_video(tmp_path / "slow.mp4", fps=4)

    result = measure_sync(*pair, video, hop=0.1)

    assert result.resolution == pytest.approx(0.25, abs=0.02)
    assert any("a frame every 0.25 s" in remark for remark in result.remarks)


def test_measure__missing_sound_is_named(pair, tmp_path):
    video = ramp_video(tmp_path / "mute.mp4", audio=False)

    with pytest.raises(MissingTrackError, match=r"mute\.mp4"):
        measure_sync(*pair, video)


def test_measure__span_outside_the_video(pair, videos):
    with pytest.raises(MediaError, match="earlier start"):
        measure_sync(*pair, videos[0.0], start=20.0, end=25.0)


@pytest.mark.parametrize(
    ("options", "words"), [({"end": 0.2}, "smaller hop"), ({"hop": 4.0, "max_offset": 4.0}, "longer span")]
)
def test_measure__too_few_moments_name_the_remedy(pair, videos, options, words):
    with pytest.raises(InferenceError, match=rf"3 are needed; .*{words}"):
        measure_sync(*pair, videos[0.0], **options)


def test_measure__short_videos_try_fewer_offsets(pair, videos):
    result = measure_sync(*pair, videos[0.0], end=1.0)

    assert np.abs(result.offsets).max() == pytest.approx(0.5)
    assert any("long enough for offsets up to 0.5 s only" in remark for remark in result.remarks)


@pytest.mark.parametrize(
    "options", [{"hop": 0.0}, {"hop": math.nan}, {"max_offset": 0.05}, {"batch_size": 0}, {"matrix_limit": 1}]
)
def test_measure__impossible_settings(pair, videos, options):
    with pytest.raises(InferenceError, match=next(iter(options))):
        measure_sync(*pair, videos[0.0], **options)


def test_measure__needs_both_towers(pair, videos):
    model = CavMaeSyncModel(tiny_config(modality="audio"))

    with pytest.raises(InferenceError, match="audio tower alone"):
        measure_sync(model, pair[1], videos[0.0])


@pytest.mark.parametrize("text", ["#EXTM3U\n#EXTINF:5,\n/etc/passwd\n", "ffconcat version 1.0\nfile '/etc/passwd'\n"])
@pytest.mark.parametrize("as_audio", [False, True])
def test_measure__refuses_playlists(pair, videos, tmp_path, text, as_audio):
    trap = tmp_path / "video.mp4"
    trap.write_text(text)

    with pytest.raises(MediaError, match=r"video\.mp4.*playlist"):
        measure_sync(*pair, *((videos[0.0], trap) if as_audio else (trap,)))


def test_measure__leaves_the_model_as_it_was(videos):
    model = CavMaeSyncModel(tiny_config())
    model.train()

    measure_sync(model, CavMaeSyncProcessor.from_config(model.config), videos[0.0], hop=0.5)

    assert model.training


def test_measure__reports_seconds(pair, videos):
    told = []

    measure_sync(*pair, str(videos[0.0]), batch_size=16, progress=lambda *args: told.append(args))

    assert told[0] == (1, 6) and told[-1][0] >= 5 and all(total == 6 for _, total in told)


def test_result__is_json(pair, videos, tmp_path):
    silent = ramp_video(tmp_path / "silent.mp4", audio=np.zeros((1, round(SECONDS * RATE)), np.float32))
    for video in (videos[0.0], silent):
        result = measure_sync(*pair, video, hop=0.2)
        values = json.loads(json.dumps(result.to_dict(), allow_nan=False))
        assert values["moments"] == len(values["scores"]) == 30
        assert values["alignment_score"] == pytest.approx(result.similarity, abs=1e-6)
        assert "scores" not in result.to_dict(series=False)


def test_protocol__names_what_the_score_depends_on(pair, videos):
    model, processor = pair
    first, again = (measure_sync(model, processor, videos[late]).protocol for late in (0.0, 0.5))
    other_hop = measure_sync(model, processor, videos[0.0], hop=0.2).protocol
    torch.manual_seed(1)
    other = CavMaeSyncModel(tiny_config(num_mel_bins=64)).eval()

    assert first == again and first.startswith("cavmae-sync-alignment/1;")
    for part in ("hop=0.1s", "window=0.48s", "16000Hz-first-64mel", "picture=32x32", "model=", "package="):
        assert part in first
    assert other_hop != first
    assert measure_sync(other, processor, videos[0.0]).protocol != first


def test_score_alignment__means_over_videos(pair, videos):
    scores = score_alignment(*pair, [videos[0.0], (videos[-0.7], videos[0.0])], hop=0.2)
    worse = score_alignment(*pair, [videos[0.5], videos[-0.7]], hop=0.2)

    assert scores.score > worse.score + 0.3 and scores.contrast > worse.contrast
    assert len(scores.videos) == 2 and scores.standard_error < 0.05
    assert json.loads(json.dumps(scores.to_dict()))["protocol"] == scores.protocol
    with pytest.raises(InferenceError, match="no videos"):
        score_alignment(*pair, [])


def test_join__refuses_different_protocols(pair, videos):
    with pytest.raises(InferenceError, match="2 protocols"):
        room.join_scores([measure_sync(*pair, videos[0.0], hop=hop) for hop in (0.1, 0.2)])


def test_detection__tells_videos_in_sync(pair, videos):
    results = [measure_sync(*pair, videos[late], hop=0.2) for late in (0.0, 0.5, -0.7)]

    figures = detection_metrics(results, [True, False, False])

    assert set(figures) == set(room.SYNC_SCORES)
    assert all(figure == {"auc": 1.0, "equal_error_rate": 0.0} for figure in figures.values())
    with pytest.raises(InferenceError, match="both kinds"):
        detection_metrics(results, [True, True, True])
    with pytest.raises(InferenceError, match="nonsense"):
        results[0].score("nonsense")


def test_embeddings__give_what_the_video_gives(pair, videos):
    model, processor = pair
    result = measure_sync(model, processor, videos[0.5], hop=0.2)
    chunk = next(processor.stream(videos[0.5], hop=0.2, num_frames=30))
    with torch.no_grad():
        output = model(chunk["pixel_values_videos"], chunk["input_values"])

    same = sync_from_embeddings(
        output.audio_embeds[0].numpy(), output.video_embeds[0].numpy(), chunk["frame_times"][0].numpy(), processor,
        model.config.temperature, hop=0.2,
    )  # fmt: skip

    assert same.offset == pytest.approx(result.offset, abs=1e-5)
    np.testing.assert_allclose(same.band, result.band, atol=1e-5)


def test_timeline__is_an_image(pair, videos, tmp_path):
    pytest.importorskip("matplotlib")
    target = tmp_path / "new" / "a $b$.png"

    image = draw_timeline(measure_sync(*pair, videos[0.5], hop=0.2), target, size=(800, 600))

    assert image.size == (800, 600) and target.read_bytes().startswith(b"\x89PNG")
    assert len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) > 100
    assert [path.name for path in target.parent.iterdir()] == [target.name]


def test_timeline__has_units_scales_and_a_verdict(pair, videos):
    """Every axis and scale says what it shows; times are written as everywhere."""
    result = measure_sync(*pair, videos[0.5], hop=0.2)

    figure = timeline_figure(result)

    words = " ".join(text.get_text() for text in figure.texts)
    assert str(result.verdict) in words and "How to read it" in words
    labels = [axis.get_ylabel() for axis in figure.axes]
    assert all(labels) and "cosine" in labels and labels.count("fit, nats (0: chance)") == 2
    times = {label.get_text() for axis in figure.axes for label in axis.get_xticklabels()}
    assert "0:02" in times or "0:02.0" in times


@pytest.mark.parametrize(("moments", "hop"), [(75, 0.04), (61, 1.0), (300, 30.0)])
@pytest.mark.parametrize("width", [800, 1200])
def test_timeline__times_along_an_axis_do_not_touch(pair, moments, hop, width):
    """Of seconds, of a minute and of hours."""
    embeds = np.random.default_rng(0).standard_normal((moments, 8)).astype(np.float32)
    embeds /= np.linalg.norm(embeds, axis=1, keepdims=True)
    result = sync_from_embeddings(
        embeds, embeds, hop * np.arange(moments), pair[1], 0.05, hop=hop, max_offset=10 * hop
    )

    figure = timeline_figure(result, size=(width, 800))

    figure.canvas.draw()
    for axis in figure.axes:
        places = [label.get_window_extent() for label in axis.get_xticklabels() if label.get_text()]
        assert all(first.x1 < second.x0 for first, second in pairwise(places))


def test_timeline__of_silence_and_of_gaps(pair, videos, tmp_path):
    pytest.importorskip("matplotlib")
    silent = ramp_video(tmp_path / "a $ign {x}.mp4", audio=np.zeros((1, round(SECONDS * RATE)), np.float32))
    short = rising_tone()[0, : 2 * RATE]

    for result in (
        measure_sync(*pair, silent, hop=0.2),
        measure_sync(*pair, videos[0.0], short, sampling_rate=RATE, hop=0.2),
    ):
        assert draw_timeline(result, size=(600, 450)).size == (600, 450)


def test_files__are_whole_or_not_there(tmp_path):
    with pytest.raises(ValueError, match="half"), whole_file(tmp_path / "x.json") as partial:
        partial.write_text("half")
        raise ValueError("half")

    assert list(tmp_path.iterdir()) == []


def test_files__names_are_safe_and_each_once():
    taken: set[str] = set()
    names = [
        "a/b c.mp4",
        "x/b c.mkv",
        "../../..",
        "http://host/v.mp4?key=/etc",
        "-rf.mp4",
        "\n\x1b[31m.mp4",
        "ü/é.mp4",
    ]

    stems = [file_stem(name, taken) for name in names]

    assert stems[:2] == ["b_c", "b_c-2"] and stems[3:5] == ["v", "rf"] and stems[-1] == "é"
    assert len(set(stems)) == len(stems)
    assert all(stem.isprintable() and "/" not in stem and not stem.startswith((".", "-")) for stem in stems)


def test_labelled_videos__are_read_with_their_sound(tmp_path):
    table = tmp_path / "list.csv"
    table.write_text("path,label,audio\na.mp4,1,\nsub/b.mp4,fake,b.wav\n")

    first, second = read_sync_list(table)

    assert first.in_sync and first.audio is None and first.video == str(tmp_path / "a.mp4")
    assert not second.in_sync and second.audio == str(tmp_path / "b.wav")


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("path,label\na.mp4,maybe\n", [], "'maybe' does not say"),
        ("path,label\na.mp4,\n", [], "0 labels"),
        ("id,label\nx,1\n", [], "path and label"),
        ("path,label\n", [], "holds no rows"),
    ],
)
def test_labelled_videos__that_cannot_be_understood(tmp_path, text, options, words):
    table = tmp_path / "list.csv"
    table.write_text(text)

    with pytest.raises(ValueError, match=words):
        read_sync_list(table, options)


def test_labelled_videos__own_words(tmp_path):
    table = tmp_path / "list.csv"
    table.write_text("path,label\na.mp4,good\nb.mp4,bad\n")

    assert [video.in_sync for video in read_sync_list(table, ["Good"])] == [True, False]


def test_stream__another_sound_track_must_be_one(pair, videos):
    processor = pair[1]
    two = np.stack([noise(1.0, RATE, 1)[0]] * 2)

    with pytest.raises(ValueError, match="2 waveforms"):
        processor.stream(videos[0.0], audio=two, sampling_rate=RATE)
    with pytest.raises(ValueError, match="sampling_rate"):
        processor.stream(videos[0.0], audio=two[0])
    with pytest.raises(ValueError, match="want_audio"):
        processor.stream(videos[0.0], audio=two[0], sampling_rate=RATE, want_audio=False)
