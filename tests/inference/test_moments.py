"""The loop over moments of media: what it gives, in which order, and that it stops and stays small."""

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cavmae_sync_hf import InferenceError, MediaError, UnexpectedError
from cavmae_sync_hf.inference import moments
from cavmae_sync_hf.inference.features import choose_features, encode_moments
from cavmae_sync_hf.inference.moments import MediaSpan, embed_moments, read_ahead, read_moments
from helpers.clips import noise, write_clip

HOP = 0.25
SECONDS = (3.0, 0.5, 2.0, 1.0)


@pytest.fixture(scope="module")
def spans(tmp_path_factory) -> list[MediaSpan]:
    """Four clips; the third has no audio, the last is cut out of its file."""
    folder = tmp_path_factory.mktemp("clips")
    made = []
    for number, seconds in enumerate(SECONDS):
        audio = False if number == 2 else noise(seconds + number, seed=number)
        path = write_clip(folder / f"{number}.mp4", seconds=seconds + number, fps=8, audio=audio)
        made.append(MediaSpan(str(path), name=path.name, end=seconds))
    made[3] = MediaSpan(made[3].media, name="3.mp4", start=1.5, end=2.5, about="cut")
    return made


def collect(groups) -> list[tuple[MediaSpan, dict[str, np.ndarray]]]:
    """Everything that came of each source, joined."""
    found = []
    for span, chunks in groups:
        parts = list(chunks)
        columns: dict[str, Any] = {name: [part.values[name] for part in parts] for name in parts[0].values}
        for name in ("audio_present", "video_present", "times", "window_times", "window_coverage"):
            columns[name] = [getattr(part, name) for part in parts]
        found.append((span, {name: np.concatenate(column) for name, column in columns.items()}))
    return found


@pytest.fixture(scope="module")
def plain(tiny, spans) -> list[dict[str, np.ndarray]]:
    """The same by the processor's stream and the model, file by file."""
    model, processor = tiny
    features = choose_features(("a", "v", "av"), model.config)
    results = []
    for span in spans:
        rows: list[dict[str, np.ndarray]] = []
        for batch in processor.stream(span.media, hop=HOP, start=span.start, end=span.end, missing="mask"):
            found = encode_moments(model, batch, features)
            rows.append({name: value[0].numpy() for name, value in found.values.items()})
            rows[-1] |= {
                "audio_present": found.audio_present[0].numpy(),
                "video_present": found.video_present[0].numpy(),
                "times": batch["frame_times"][0].numpy(),
                "window_times": batch["window_times"][0].numpy(),
                "window_coverage": batch["window_coverage"][0].numpy(),
            }
        results.append({name: np.concatenate([row[name] for row in rows]) for name in rows[0]})
    return results


@pytest.mark.parametrize(("batch_size", "decoders"), [(1, 1), (5, 2), (7, 3), (1000, 4), (64, None)])
def test_moments__are_those_of_a_plain_loop_however_they_are_batched(tiny, spans, plain, batch_size, decoders):
    groups = embed_moments(
        *tiny, spans, ("a", "v", "av"), hop=HOP, missing="mask", batch_size=batch_size, decoders=decoders
    )
    found = collect(groups)

    assert [span for span, _ in found] == spans and found[3][0].about == "cut"
    for (_, columns), expected in zip(found, plain, strict=True):
        assert set(columns) == set(expected)
        for name, values in columns.items():
            np.testing.assert_allclose(values, expected[name], atol=1e-6, err_msg=name)
    assert not found[2][1]["audio_present"].any() and not found[2][1]["a"].any()


def test_moments__of_chunks_that_go_alone_are_the_same_to_the_last_bit(tiny, spans, plain):
    for (_, columns), expected in zip(
        collect(embed_moments(*tiny, spans, hop=HOP, missing="mask", batch_size=1)), plain, strict=True
    ):
        np.testing.assert_array_equal(columns["v"], expected["v"])


def test_moments__of_a_whole_clip_are_those_of_the_processors_call(tiny, spans):
    model, processor = tiny
    times = (0.2, 0.7)
    chosen = MediaSpan(spans[3].media, start=0.5, end=2.5, frame_times=times)
    found = collect(embed_moments(*tiny, [spans[0], chosen], num_frames=6))

    inputs = processor(videos=spans[0].media, end=spans[0].end, num_frames=6, return_times=True, return_tensors="pt")
    expected = encode_moments(model, inputs, choose_features(("a",), model.config))
    np.testing.assert_allclose(found[0][1]["a"], expected.values["a"][0].numpy(), atol=1e-6)
    np.testing.assert_allclose(found[0][1]["times"], inputs["frame_times"][0].numpy())
    inputs = processor(videos=spans[3].media, start=0.5, end=2.5, frame_times=times, return_tensors="pt")
    expected = encode_moments(model, inputs, choose_features(("v",), model.config))
    np.testing.assert_allclose(found[1][1]["v"], expected.values["v"][0].numpy(), atol=1e-6)
    assert np.abs(found[1][1]["times"] - 0.5 - times).max() < 1 / 8


def test_moments__with_another_audio_track(tiny, spans):
    model, processor = tiny
    waveform = torch.from_numpy(noise(3.0, rate=16000, channels=1, seed=9)[0])
    span = MediaSpan(spans[0].media, end=3.0, audio=waveform, sampling_rate=16000)
    ((_, found),) = collect(embed_moments(*tiny, [span], ("a",), hop=HOP))

    stream = processor.stream(spans[0].media, hop=HOP, end=3.0, audio=waveform, sampling_rate=16000)
    feature = choose_features(("a",), model.config)
    expected = [encode_moments(model, batch, feature).values["a"][0].numpy() for batch in stream]
    np.testing.assert_allclose(found["a"], np.concatenate(expected), atol=1e-6)


def test_bad_file__is_its_own_error_and_the_others_go_on(tiny, spans, plain, tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")

    def unreachable():
        raise MediaError("far.mp4: cannot be fetched.")

    bad = [MediaSpan(str(tmp_path / "empty.mp4")), MediaSpan(unreachable)]
    sources = [bad[0], spans[0], bad[1], spans[2]]
    values, errors = [], []
    for _, chunks in embed_moments(*tiny, sources, hop=HOP, missing="mask", batch_size=20):
        try:
            values.append(np.concatenate([chunk.values["v"] for chunk in chunks]))
        except MediaError as error:
            errors.append(str(error))

    assert len(errors) == 2 and "empty.mp4" in errors[0] and errors[1] == "far.mp4: cannot be fetched."
    np.testing.assert_allclose(values[0], plain[0]["v"], atol=1e-6)
    np.testing.assert_allclose(values[1], plain[2]["v"], atol=1e-6)


def test_source__that_is_left_early_is_passed_over(tiny, spans, plain):
    firsts = []
    for _, chunks in embed_moments(*tiny, spans, hop=HOP, num_frames=2, missing="mask", batch_size=3, decoders=2):
        firsts.append(next(chunks).values["v"])

    assert len(firsts) == len(spans)
    for first, expected in zip(firsts, plain, strict=True):
        np.testing.assert_allclose(first, expected["v"][:2], atol=1e-6)


def test_prepare__sees_the_media_and_may_leave_out_moments(tiny, spans, plain):
    seen: list[tuple[int, tuple[int, ...], str]] = []

    def every_second(span: MediaSpan, inputs: dict[str, Any], first: int) -> list[int]:
        media = inputs["media"]
        seen.append((first, tuple(media.frames.shape[2:]), threading.current_thread().name))
        count = inputs["frame_times"].shape[1]
        kept = [place for place in range(count) if (first + place) % 2] if first else []
        for name in set(inputs) - {"media"}:
            inputs[name] = inputs[name][:, kept]
        return [first + place for place in kept]

    groups = embed_moments(*tiny, spans[:1], ("v",), hop=HOP, num_frames=5, prepare=every_second)
    chunks = [chunk for _, chunks in groups for chunk in chunks]

    assert [(first, size) for first, size, _ in seen] == [(0, (48, 64)), (5, (48, 64)), (10, (48, 64))]
    assert all(name != threading.main_thread().name for _, _, name in seen)
    assert [chunk.kept for chunk in chunks] == [[], [5, 7, 9], [11]]
    assert len(chunks[0]) == 0
    np.testing.assert_allclose(chunks[1].values["v"], plain[0]["v"][[5, 7, 9]], atol=1e-6)


def test_exported_model__fits_as_well(tiny, spans, plain):
    model, processor = tiny

    def exported(*, input_values=None, pixel_values_videos=None, padding_mask=None, padding_mask_videos=None):
        with torch.no_grad():
            output = model(
                input_values=input_values, pixel_values_videos=pixel_values_videos, padding_mask=padding_mask
            )
        return {name: output[name].numpy() for name in ("audio_embeds", "video_embeds") if output[name] is not None}

    found = collect(embed_moments(exported, processor, spans, hop=HOP, missing="mask"))
    for (_, columns), expected in zip(found, plain, strict=True):
        np.testing.assert_allclose(columns["a"], expected["a"], atol=1e-6)
        np.testing.assert_allclose(columns["v"], expected["v"], atol=1e-6)
    with pytest.raises(InferenceError, match="gives the features a and v alone"):
        embed_moments(exported, processor, spans, ("av",), hop=HOP)


def test_early_end__stops_all_threads(tiny, spans):
    before = threading.active_count()
    groups = embed_moments(*tiny, spans * 5, hop=HOP, num_frames=1, missing="mask", batch_size=1, decoders=4)
    _, chunks = next(groups)
    next(chunks)
    assert threading.active_count() > before
    groups.close()

    assert threading.active_count() == before
    assert list(chunks) == []


@pytest.mark.parametrize(("count", "told"), [(4, 4), (30, 19)])
def test_model_that_embeds_nothing__ends_all(tiny, spans, count, told):
    _, processor = tiny
    before = threading.active_count()

    def broken(**inputs):
        raise RuntimeError("out of memory")

    failed = 0
    with pytest.raises(RuntimeError, match="out of memory"):  # after so many, or at the end
        for _, chunks in embed_moments(broken, processor, [spans[0]] * count, hop=HOP, batch_size=1):
            try:
                list(chunks)
            except UnexpectedError:
                failed += 1
    assert failed == told and threading.active_count() == before


def test_sources__are_asked_for_late_and_their_error_comes_after_what_was_before_it():
    asked: list[int] = []

    def sources():
        for number in range(5):
            asked.append(number)
            yield number
        raise OSError("the list has ended")

    done = []
    with pytest.raises(OSError, match="the list has ended"):
        for number, items in read_ahead(sources(), lambda number: iter(range(number)), decoders=2):
            assert len(asked) <= number + 2
            done.append((number, list(items)))
    assert done == [(number, list(range(number))) for number in range(5)]


def test_memory__holds_a_few_chunks_of_each_file_that_is_read():
    made = used = 0
    most = 0
    lock = threading.Lock()

    def read(source: int):
        nonlocal made, most
        for item in range(50):
            with lock:
                made += 1
                most = max(most, made - used)
            yield item

    for _, items in read_ahead(range(6), read, decoders=3):
        for _ in items:
            used += 1
    assert used == made == 300
    assert most <= 3 * 4  # two wait in each queue, one for room in it, and one is in use


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"decoders": 0}, {"features": ("b",)}, {"features": "av"}])
def test_settings__that_cannot_work_are_refused_at_once(tiny, spans, settings):
    with pytest.raises(InferenceError):
        embed_moments(*tiny, spans, hop=HOP, **settings)


def test_inputs__are_read_without_what_is_not_wanted(tiny, spans):
    _, processor = tiny
    (inputs,) = read_moments(processor, spans[1], hop=HOP, want_audio=False)
    assert not inputs["padding_mask"].any() and "media" not in inputs
    assert inputs["frame_times"].shape == (1, 2)


def test_clips__of_a_folder_are_paths_too(tiny, spans):
    span = MediaSpan(Path(spans[1].media), end=0.5)
    assert len(collect(embed_moments(*tiny, [span], ("v",), hop=HOP))[0][1]["v"]) == 2


def test_read_ahead__gives_up_a_file_that_never_comes(monkeypatch):
    monkeypatch.setattr(moments, "STALLED_SECONDS", 0.3)
    never = threading.Event()

    def read(source):
        yield source
        if source == "stalled.mp4":
            never.wait(60)  # as for a disk that does not answer
        if source == "slow.mp4":
            end = time.monotonic() + 1.0
            while time.monotonic() < end:
                pass
        yield source

    found, errors = [], []
    for source, items in read_ahead(["a.mp4", "stalled.mp4", "slow.mp4", "b.mp4"], read, decoders=1):
        try:
            found += items
        except MediaError as error:
            errors.append((source, str(error)))
    never.set()

    # What has come of it counts; one that works is waited for.
    assert found == ["a.mp4", "a.mp4", "stalled.mp4", "slow.mp4", "slow.mp4", "b.mp4", "b.mp4"]
    assert [name for name, _ in errors] == ["stalled.mp4"] and "nothing came of it for 0.3 s" in errors[0][1]


@pytest.mark.parametrize("batch_size", [1, 64])
def test_error_of_the_model_at_one_file__costs_that_file(tiny, spans, monkeypatch, batch_size):
    def mark(span, inputs, first):
        if span is spans[1]:
            inputs["pixel_values_videos"][:] = 123.0

    def fail(model, inputs, features):
        if bool((inputs["pixel_values_videos"] == 123.0).any()):
            raise RuntimeError("shapes do not fit")
        return encode_moments(model, inputs, features)

    monkeypatch.setattr(moments, "encode_moments", fail)
    good, bad = [], []
    options = {"hop": HOP, "batch_size": batch_size, "missing": "mask", "prepare": mark}
    for span, chunks in embed_moments(*tiny, spans, **options):
        try:
            list(chunks)
            good.append(span.name)
        except UnexpectedError as error:
            bad.append(str(error))

    assert good == ["0.mp4", "2.mp4", "3.mp4"]
    assert len(bad) == 1 and "1.mp4: RuntimeError: shapes do not fit at test_moments.py" in bad[0]
