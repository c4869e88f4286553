# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Strangers' files on the web page: what is refused, what is decoded and how, and that all of it is removed."""

import struct
import subprocess
import sys
import time
import wave
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cavmae_sync_hf import AppError, MediaError
from cavmae_sync_hf.app import guard, intake
from cavmae_sync_hf.app.guard import copy_safely, display_name
from cavmae_sync_hf.app.spelling import AUDIO_CHOICES, on_page
from cavmae_sync_hf.app.workspace import Limits
from cavmae_sync_hf.model.errors_cavmae_sync import Hint
from cavmae_sync_hf.model.media_cavmae_sync import decode_media
from helpers.clips import loudest_frequency, noise, onset, tone, write_audio_tracks, write_clip
from helpers.little_app import PLAYLIST, RATE, make_video, watch_processes


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return make_video(tmp_path_factory.mktemp("video") / "video.mp4")


@pytest.fixture
def processes(monkeypatch) -> list[subprocess.Popen]:
    return watch_processes(monkeypatch)


# --- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/some/folder/clip.mp4", "clip.mp4"),
        ("..\\..\\evil.mp4", "evil.mp4"),
        ("a\x1b[31m\nb\u202e4pm.mp4", "a[31mb4pm.mp4"),
        ("<img src=x onerror=alert(1)>.mp4", "<img src=x onerror=alert(1)>.mp4"),  # text, which the page keeps text
        ("a/b.mp4", "b.mp4"),
        (".mp4", ".mp4"),
        ("con.mp4", "con.mp4"),
        ("日本 Überschrift.mp4", "日本 Überschrift.mp4"),
        ("می\u200cخواهم.mp4", "می\u200cخواهم.mp4"),  # letters that are joined otherwise without what is between
        *((name, "your file") for name in ("", " ", ".", "..", "a/", "\n", "\u202e", "..\\..\\")),
    ],
)
def test_display_name__is_the_last_part_without_control_characters(name, shown):
    assert display_name(name) == shown


def test_display_name__is_not_too_long():
    shown = display_name("x" * 500 + ".mp4")

    assert len(shown) <= 80 and shown.endswith(".mp4")


# --- guard -------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_process(monkeypatch):
    """Nothing may be decoded."""

    def refuse(*_, **__):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (PLAYLIST.encode(), "is a playlist"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "is a playlist"),
        (b"PK\x03\x04" + bytes(64), "is a ZIP archive"),
        (b"\x1f\x8b" + bytes(64), "is a gzip archive"),
        (b"hello", "is text"),
        (b"", "is empty"),
    ],
)
def test_copy__what_is_no_video_is_refused_before_anything_decodes_it(tmp_path, no_process, content, words):
    (tmp_path / "clip.mp4").write_bytes(content)

    with pytest.raises(AppError, match=words) as caught:
        copy_safely(tmp_path / "clip.mp4", tmp_path / "copy.mp4", "video", Limits())

    assert str(caught.value).startswith("clip.mp4: ") and str(tmp_path) not in str(caught.value)
    assert not (tmp_path / "copy.mp4").exists()


def test_copy__what_is_too_large_is_refused_before_anything_decodes_it(tmp_path, no_process, video):
    with pytest.raises(AppError, match=r"video.mp4: is 0 MB large, and at most 0.001 MB are taken"):
        copy_safely(video, tmp_path / "copy.mp4", "video", Limits(megabytes=0.001))


def test_copy__takes_a_video_apart_in_a_process_that_knows_no_secrets(tmp_path, video, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hush")
    started = []
    popen = subprocess.Popen

    def watch(*arguments, **options):
        started.append(options["env"])
        return popen(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", watch)
    done = []

    facts = copy_safely(video, tmp_path / "copy.mp4", "video", Limits(), progress=lambda *a: done.append(a))

    assert len(started) == 1 and "hush" not in started[0].values()
    assert facts["duration"] == pytest.approx(2.0, abs=0.05) and (facts["width"], facts["height"]) == (64, 48)
    assert done and done[-1][0] == pytest.approx(2.0, abs=0.1)
    copy = decode_media(tmp_path / "copy.mp4", frame_times=[0.95, 1.06], sampling_rate=RATE)
    # The flash and the click of 1 s are where they were, to a frame and to 5 ms.
    assert copy.frames[0].float().mean() < 60 < 200 < copy.frames[1].float().mean()
    assert onset(copy.waveform.numpy(), RATE, after=0.5) == pytest.approx(1.0, abs=0.005)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.mp4"]


def test_copy__a_process_that_takes_too_long_is_ended(tmp_path, video, processes):
    began = time.monotonic()

    with pytest.raises(AppError, match=r"video.mp4: decoding took longer than the 0.2 s that are allowed"):
        copy_safely(video, tmp_path / "copy.mp4", "video", Limits(decode_seconds=0.2))

    assert time.monotonic() - began < 10 and processes[0].returncode is not None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="the bound on memory needs /proc")
def test_copy__a_process_that_takes_too_much_memory_is_ended(tmp_path, video):
    def copy(megabytes):
        with pytest.raises(AppError, match=r"video.mp4: decoding needs more memory than is allowed here"):
            copy_safely(video, tmp_path / f"copy-{megabytes}.mp4", "video", Limits(decode_memory=megabytes << 20))

    with ThreadPoolExecutor() as pool:  # each waits for a process
        list(pool.map(copy, [2, 8]))

    assert list(tmp_path.iterdir()) == []


def test_copy__a_visitor_who_has_gone_ends_the_process(tmp_path, video, processes):
    def leave(done, total):
        raise KeyError("gone")

    with pytest.raises(KeyError):
        copy_safely(video, tmp_path / "copy.mp4", "video", Limits(), progress=leave)

    assert processes[0].returncode is not None and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("last", "code", "late", "words"),
    [
        ({}, -11, False, "the decoder broke on this file"),
        ({"done": 1.0, "total": 2.0}, -24, False, "took longer than"),
        ({"done": 1.0, "total": 2.0}, -9, True, "took longer than"),
        ({"failed": "memory"}, 0, False, "more memory"),
        ({"failed": "unknown"}, 0, False, "the decoder broke on this file"),
        ({"error": "a.mp4: has no audio track"}, 0, False, "a.mp4: has no audio track"),
    ],
)
def test_copy__says_in_plain_words_how_the_process_ended(last, code, late, words):
    assert words in guard._reason("a.mp4", last, code, seconds=5.0, late=late)


def test_failure__is_told_as_shortage_of_memory_where_little_was_left(monkeypatch):
    told = {}
    for room in (100 << 20, 1 << 30, float("inf")):
        monkeypatch.setattr(intake, "_least_room", lambda room=room: room)
        errors = (
            MediaError("a.mp4: nothing could be decoded."),
            KeyError("external"),
            MemoryError(),
            OSError(12, "no"),
        )
        told[room] = [intake.describe_failure(error) for error in errors]

    shortage = {"failed": "memory"}
    assert told[100 << 20] == [shortage] * 4
    assert told[1 << 30] == told[float("inf")]
    assert told[1 << 30][0] == {"error": "a.mp4: nothing could be decoded."} and told[1 << 30][2:] == [shortage] * 2
    assert told[1 << 30][1] == {"failed": "unknown", "details": "KeyError: 'external'"}


# --- what runs in the process ------------------------------------------------------------------------------------


def test_copy_video__too_long_by_its_header_or_by_its_content_is_refused(video, tmp_path, monkeypatch):
    with open(video, "rb") as source, pytest.raises(MediaError, match=r"lasts 2 s, and at most 1 s are taken"):
        intake.copy_video(source, tmp_path / "copy.mp4", max_seconds=1, max_pixels=10**6)

    probe = intake._probe
    monkeypatch.setattr(intake, "_probe", lambda source, *_: replace(probe(source, 99, None), duration=None))
    with open(video, "rb") as source, pytest.raises(MediaError, match=r"lasts more, and at most 1 s are taken"):
        intake.copy_video(source, tmp_path / "copy.mp4", max_seconds=1, max_pixels=10**6)


def test_copy_video__too_large_frames_are_refused(video, tmp_path):
    with open(video, "rb") as source, pytest.raises(MediaError, match="64 by 48"):
        intake.copy_video(source, tmp_path / "copy.mp4", max_seconds=60, max_pixels=1000)


def test_copy_video__frames_that_grow_on_the_way_are_refused(tmp_path):
    parts = [write_clip(tmp_path / f"{width}.ts", seconds=1.0, size=(width, 48)) for width in (64, 640)]
    (tmp_path / "grows.ts").write_bytes(b"".join(part.read_bytes() for part in parts))

    with (
        open(tmp_path / "grows.ts", "rb") as source,
        pytest.raises(MediaError, match="a frame in it is 640 by 48, and"),
    ):
        intake.copy_video(source, tmp_path / "copy.mp4", max_seconds=60, max_pixels=100 * 48)
    with open(tmp_path / "grows.ts", "rb") as source:
        facts = intake.copy_video(source, tmp_path / "copy.mp4", max_seconds=60, max_pixels=640 * 48)
    assert (facts["width"], facts["height"]) == (64, 48)


def test_copy_video__needs_both_tracks(tmp_path):
    silent = write_clip(tmp_path / "silent.mp4", audio=False)

    with open(silent, "rb") as source, pytest.raises(MediaError, match="audio"):
        intake.copy_video(source, tmp_path / "copy.mp4", max_seconds=60, max_pixels=10**6)


@pytest.mark.parametrize(
    ("size", "fitted"),
    [((480, 640), (480, 640)), ((1080, 1920), (480, 854)), ((101, 51), (100, 52)), ((200, 9000), (28, 1280))],
)
def test_copy_video__is_no_larger_than_of_use_and_even(size, fitted):
    assert intake._fit(*size) == fitted


def test_cut__gives_the_piece(video, tmp_path):
    facts = intake.cut(video, tmp_path / "piece.mp4", 0.5, 1.5)

    assert facts["duration"] == pytest.approx(1.0, abs=0.05)
    piece = decode_media(tmp_path / "piece.mp4", frame_times=[0.3, 0.56], sampling_rate=RATE)
    assert piece.frames[0].float().mean() < 60 < 200 < piece.frames[1].float().mean()
    assert onset(piece.waveform.numpy(), RATE) == pytest.approx(0.5, abs=0.005)


def test_copy_audio__keeps_what_is_heard(tmp_path):
    clip = write_clip(tmp_path / "tone.mp4", audio=tone(2.0, RATE), rate=RATE)

    with open(clip, "rb") as source:
        facts = intake.copy_audio(source, tmp_path / "copy.wav", max_seconds=60)

    assert facts["duration"] == pytest.approx(2.0, abs=0.1)
    spectrum = np.abs(np.fft.rfft(decode_media(tmp_path / "copy.wav", want_video=False).waveform[:16000].numpy()))
    assert spectrum.argmax() == pytest.approx(440, abs=2)


def test_copy_image__is_upright_and_small_and_hostile_ones_are_refused(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.new("RGB", (2000, 1000), "red").save(tmp_path / "a.jpg", exif=exif)

    with open(tmp_path / "a.jpg", "rb") as source:
        intake.copy_image(source, tmp_path / "copy.png", max_pixels=10**7)
    with Image.open(tmp_path / "copy.png") as copy:
        assert copy.size == (480, 960) and not copy.getexif()

    with open(tmp_path / "a.jpg", "rb") as source, pytest.raises(MediaError, match="2000 by 1000"):
        intake.copy_image(source, tmp_path / "copy.png", max_pixels=1000)
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    with open(tmp_path / "b.png", "rb") as source, pytest.raises(MediaError, match="not an image that can be read"):
        intake.copy_image(source, tmp_path / "copy.png", max_pixels=10**7)


def bomb(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A black PNG of few bytes, with more chunks in it."""
    rows = zlib.compress(bytes((width + 7) // 8 + 1) * height, 9)
    head = (b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    parts = (head, *chunks, (b"IDAT", rows), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in parts
    )


MUCH = zlib.compress(bytes(80_000_000), 9)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (bomb(5000, 5000), "its frame is 5000 by 5000"),
        (bomb(20_000, 20_000), "has more than the 9.4 million pixels"),
        (bomb(10, 10, (b"zTXt", b"k\0\0" + MUCH)), "is not an image that can be read"),
        (bomb(10, 10, (b"iTXt", b"k\0\1\0\0\0" + MUCH)), "is not an image that can be read"),
    ],
    ids=["large", "enormous", "text", "international"],
)
def test_copy_image__what_unpacks_without_bounds_is_refused(tmp_path, content, words):
    (tmp_path / "a.png").write_bytes(content)

    with open(tmp_path / "a.png", "rb") as source, pytest.raises(MediaError, match=words):
        intake.copy_image(source, tmp_path / "copy.png", max_pixels=Limits().pixels)
    assert not (tmp_path / "copy.png").exists()


@pytest.mark.parametrize("declared", [2.0, 1e5])
def test_copy_audio__is_bounded_whatever_the_header_says(tmp_path, declared):
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(1)
        file.setframerate(4000)
        file.writeframes(b"\x80" * 4000 * 600)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    content[40:44] = struct.pack("<I", int(4000 * declared))
    (tmp_path / "a.wav").write_bytes(content)
    target = tmp_path / "copy.wav"

    with open(tmp_path / "a.wav", "rb") as source:
        try:
            assert intake.copy_audio(source, target, max_seconds=60)["duration"] <= 61
        except MediaError as error:
            assert "at most 60 s are taken" in str(error) and not target.exists()


# --- what is told of a good file ---------------------------------------------------------------------------------


def copied(path: Path, **audio) -> tuple[list[str], float]:
    """The remarks about a video, and the frequency that is heard in its copy."""
    copy = path.with_name("copy.mp4")
    job = {"source": str(path), "target": str(copy), "name": "a.mp4", "kind": "video", "audio": audio}
    facts = intake.do_job(job | {"max_seconds": 60, "max_pixels": 10**6})
    return facts["remarks"], loudest_frequency(decode_media(copy).waveform.numpy())


def test_remarks__several_audio_tracks_can_be_chosen_from(tmp_path):
    path = write_audio_tracks(tmp_path / "clip.mkv", [{"language": "deu"}, {"language": "eng"}, {}])
    one = write_audio_tracks(tmp_path / "one.mkv", [{"language": "deu"}])

    remarks, frequency = copied(path)
    assert frequency == pytest.approx(300, abs=5) and remarks == [
        "It has 3 audio tracks, and number 1 is heard. Choose “Audio track 2” at “Audio of your file” and send it "
        "again to hear another."
    ]
    assert copied(path, **AUDIO_CHOICES["Audio track 3"]) == ([], pytest.approx(900, abs=5))
    assert copied(one) == ([], pytest.approx(300, abs=5))
    with pytest.raises(MediaError, match="audio track"):
        copied(one, **AUDIO_CHOICES["Audio track 2"])


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_remarks__of_the_engine_are_told_in_the_words_of_the_page(tmp_path, kind):
    clip = write_clip(tmp_path / "stored.mp4", audio=np.stack([0 * noise(2.0)[0], noise(2.0)[0]]))
    job = {"source": str(clip), "target": str(tmp_path / "copy.mp4"), "name": "camera.mp4", "kind": kind, "audio": {}}

    (remark,) = intake.do_job(job | {"max_seconds": 60, "max_pixels": 10**6})["remarks"]

    assert remark.startswith("The first channel") and "channel=" not in remark and str(tmp_path) not in remark
    assert "Choose “All channels mixed” at “Audio of your file” and send it again" in remark
    assert copied(clip, channel="mean")[0] == []


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (Hint("channel", "mean"), "choose “All channels mixed” at “Audio of your file” and send it again"),
        (Hint("audio_track", 0), "choose “Audio track 1” at “Audio of your file” and send it again"),
        (Hint("audio_track", 7), None),
        (Hint("audio_track", "deu"), None),
        (Hint("damaged", "keep"), None),
    ],
)
def test_remedies__are_told_where_the_page_has_them(hint, words):
    assert on_page(hint) == words
