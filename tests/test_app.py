# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The web page without a browser: limits on strangers' files, removal, and what every button does."""

import base64
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from cavmae_sync_hf import cli
from cavmae_sync_hf.app import demo_clips, guard, intake
from cavmae_sync_hf.app.engine import Engine
from cavmae_sync_hf.app.guard import copy_safely, display_name
from cavmae_sync_hf.app.handlers import SEARCHES, Desk
from cavmae_sync_hf.app.limits import AppError, Limits
from cavmae_sync_hf.app.views import bytes_view, verdict
from cavmae_sync_hf.app.workspace import FILES_ROUTE, Workspace
from cavmae_sync_hf.media_cavmae_sync import MediaError, decode_media
from clips import clicks, onset, tone, write_clip

RATE = 48000
PLAYLIST = "#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n"


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> demo_clips.DemoClips:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_clips, "LIBRARY_CLIPS", 1)
        patch.setattr(demo_clips, "SIDE", 96)
        return demo_clips.make_demo_clips(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def engine() -> Engine:
    engine = Engine()
    engine.map_plan = lambda seconds: {"fps": 1.0, "method": "cosine"}
    return engine


@pytest.fixture
def workspace(tmp_path):
    with Workspace(Limits(), parent=tmp_path) as workspace:
        yield workspace


@pytest.fixture
def desk(engine, workspace, demo) -> Desk:
    engine._store = None  # that of the last test lay in its workspace
    return Desk(engine, workspace, demo)


def flash(number: int, time: float, size=(64, 48)) -> np.ndarray:
    """White in the first frames of every second, black otherwise."""
    return np.full((size[1], size[0], 3), 255 if time % 1.0 < 0.1 else 0, np.uint8)


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """Two seconds; at 0 and 1 s a flash and a click."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    return write_clip(path, picture=flash, audio=clicks([0.0, 1.0], 2.0, RATE), rate=RATE)


def send(workspace: Workspace, source: Path, name: str | None = None) -> Path:
    """Put a file where an upload would be."""
    folder = workspace.uploads / "0123"
    folder.mkdir(exist_ok=True)
    target = folder / (name or source.name)
    target.write_bytes(source.read_bytes())
    return target


@pytest.fixture
def processes(monkeypatch) -> list[subprocess.Popen]:
    """Processes that were started."""
    started: list[subprocess.Popen] = []
    popen = subprocess.Popen

    def start(*arguments, **options):
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    return started


# --- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("/tmp/uploads/clip.mp4", "clip.mp4"),
        ("..\\..\\evil.mp4", "evil.mp4"),
        ("a\x1b[31m\nb\u202e4pm.mp4", "a[31mb4pm.mp4"),
        ("<img src=x onerror=alert(1)>.mp4", "<img src=x onerror=alert(1)>.mp4"),  # text, which the page keeps text
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


def test_copy__what_is_too_large_is_refused_before_anything_decodes_it(tmp_path, no_process, film):
    with pytest.raises(AppError, match=r"film.mp4: is 0 MB large, and at most 0.001 MB are taken"):
        copy_safely(film, tmp_path / "copy.mp4", "video", Limits(megabytes=0.001))


def test_copy__takes_a_video_apart_in_a_process_that_knows_no_secrets(tmp_path, film, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hush")
    started = []
    popen = subprocess.Popen

    def watch(*arguments, **options):
        started.append(options["env"])
        return popen(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", watch)
    done = []

    facts = copy_safely(film, tmp_path / "copy.mp4", "video", Limits(), progress=lambda *a: done.append(a))

    assert len(started) == 1 and "hush" not in started[0].values()
    assert facts["duration"] == pytest.approx(2.0, abs=0.05) and (facts["width"], facts["height"]) == (64, 48)
    assert done and done[-1][0] == pytest.approx(2.0, abs=0.1)
    copy = decode_media(tmp_path / "copy.mp4", frame_times=[0.95, 1.06], sampling_rate=RATE)
    # The flash and the click of 1 s are where they were, to a frame and to 5 ms.
    assert copy.frames[0].float().mean() < 60 < 200 < copy.frames[1].float().mean()
    assert onset(copy.waveform.numpy(), RATE, after=0.5) == pytest.approx(1.0, abs=0.005)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.mp4"]


def test_copy__a_process_that_takes_too_long_is_ended(tmp_path, film, processes):
    began = time.monotonic()

    with pytest.raises(AppError, match=r"film.mp4: decoding took longer than the 0.2 s that are allowed"):
        copy_safely(film, tmp_path / "copy.mp4", "video", Limits(decode_seconds=0.2))

    assert time.monotonic() - began < 10 and processes[0].returncode is not None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="the bound on memory needs /proc")
def test_copy__a_process_that_takes_too_much_memory_is_ended(tmp_path, film):
    with pytest.raises(AppError, match="needs more memory than is allowed"):
        copy_safely(film, tmp_path / "copy.mp4", "video", Limits(decode_memory=1 << 20))

    assert list(tmp_path.iterdir()) == []


def test_copy__a_visitor_who_has_gone_ends_the_process(tmp_path, film, processes):
    def leave(done, total):
        raise KeyError("gone")

    with pytest.raises(KeyError):
        copy_safely(film, tmp_path / "copy.mp4", "video", Limits(), progress=leave)

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
    assert words in guard._reason("a.mp4", last, code, late, 5.0)


# --- what runs in the process ------------------------------------------------------------------------------------


def test_copy_video__too_long_by_its_header_or_by_its_content_is_refused(film, tmp_path, monkeypatch):
    with open(film, "rb") as source, pytest.raises(MediaError, match=r"lasts 2 s, and at most 1 s are taken"):
        intake.copy_video(source, tmp_path / "copy.mp4", max_seconds=1, max_pixels=10**6)

    probe = intake._probe
    monkeypatch.setattr(intake, "_probe", lambda source, *_: replace(probe(source, 99, None), duration=None))
    with open(film, "rb") as source, pytest.raises(MediaError, match=r"lasts more, and at most 1 s are taken"):
        intake.copy_video(source, tmp_path / "copy.mp4", max_seconds=1, max_pixels=10**6)


def test_copy_video__too_large_a_picture_is_refused(film, tmp_path):
    with open(film, "rb") as source, pytest.raises(MediaError, match="64 by 48"):
        intake.copy_video(source, tmp_path / "copy.mp4", max_seconds=60, max_pixels=1000)


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


def test_cut__gives_the_piece(film, tmp_path):
    facts = intake.cut(film, tmp_path / "piece.mp4", 0.5, 1.5)

    assert facts["duration"] == pytest.approx(1.0, abs=0.05)
    piece = decode_media(tmp_path / "piece.mp4", frame_times=[0.3, 0.56], sampling_rate=RATE)
    assert piece.frames[0].float().mean() < 60 < 200 < piece.frames[1].float().mean()
    assert onset(piece.waveform.numpy(), RATE) == pytest.approx(0.5, abs=0.005)


def test_copy_sound__keeps_what_is_heard(tmp_path):
    clip = write_clip(tmp_path / "tone.mp4", audio=tone(2.0, RATE), rate=RATE)

    with open(clip, "rb") as source:
        facts = intake.copy_sound(source, tmp_path / "copy.wav", max_seconds=60)

    assert facts["duration"] == pytest.approx(2.0, abs=0.1)
    spectrum = np.abs(np.fft.rfft(decode_media(tmp_path / "copy.wav", want_video=False).waveform[:16000].numpy()))
    assert spectrum.argmax() == pytest.approx(440, abs=2)


def test_copy_picture__is_upright_and_small_and_hostile_ones_are_refused(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.new("RGB", (2000, 1000), "red").save(tmp_path / "a.jpg", exif=exif)

    with open(tmp_path / "a.jpg", "rb") as source:
        intake.copy_picture(source, tmp_path / "copy.png", max_pixels=10**7)
    with Image.open(tmp_path / "copy.png") as copy:
        assert copy.size == (480, 960) and not copy.getexif()

    with open(tmp_path / "a.jpg", "rb") as source, pytest.raises(MediaError, match="2000 by 1000"):
        intake.copy_picture(source, tmp_path / "copy.png", max_pixels=1000)
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    with open(tmp_path / "b.png", "rb") as source, pytest.raises(MediaError, match="no picture that can be read"):
        intake.copy_picture(source, tmp_path / "copy.png", max_pixels=10**7)


# --- workspace ---------------------------------------------------------------------------------------------------


def fill(session, name="a.txt") -> Path:
    path = session.path(name)
    path.write_text("content", encoding="utf-8")
    return path


def test_workspace__hands_out_what_is_on_the_list_alone(workspace):
    session = workspace.session("visitor")
    session.begin()
    path = fill(session)
    fill(session, "hidden.txt")

    url = session.offer(path, "mine.txt")

    route, token, name = url.split("/")
    assert route == FILES_ROUTE and workspace.find(token, name) == (path, "mine.txt")
    assert workspace.find(token, path.name.replace("a.txt", "hidden.txt")) is None
    assert workspace.find(token, f"../{token}/{name}") is None
    assert workspace.find("shared", name) is None and workspace.find("visitor", name) is None
    assert len(token) >= 24


def test_workspace__a_new_clip_removes_the_files_of_the_last(workspace):
    session = workspace.session("visitor")
    turns = [session.begin()]
    path = fill(session)

    turns.append(session.begin())

    assert not path.exists() and turns[0] < turns[1]


def test_workspace__removes_the_files_of_those_who_leave_or_stay_away(tmp_path):
    with Workspace(Limits(sessions=2, idle_seconds=60), parent=tmp_path) as workspace:
        paths = {name: fill(workspace.session(name)) for name in ("first", "second")}
        workspace.session("first")

        paths["third"] = fill(workspace.session("third"))  # there is room for two
        assert [path.exists() for path in paths.values()] == [True, False, True]

        turn = workspace.session("third").turn
        workspace.drop("third")
        assert not paths["third"].parent.exists() and workspace.session("third").turn <= turn

        workspace.session("first").seen -= 61
        workspace.sweep()
        assert not paths["first"].parent.exists()
        root = workspace.root
    assert not root.exists()


def test_workspace__removes_uploads_and_nothing_else(workspace, tmp_path):
    other = tmp_path / "precious.txt"
    other.write_text("content", encoding="utf-8")
    upload = send(workspace, other, "upload.txt")

    workspace.remove_upload(upload)
    workspace.remove_upload(upload)
    workspace.remove_upload(other)
    workspace.remove_upload(workspace.uploads / ".." / ".." / "precious.txt")

    assert other.exists() and list(workspace.uploads.iterdir()) == []


def test_workspace__removes_uploads_that_nothing_came_of(workspace, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"half")
    old, new = (send(workspace, tmp_path / "broken.mp4", name) for name in ("old.mp4", "new.mp4"))
    os.utime(old, (0, 0))

    workspace.sweep()

    assert not old.exists() and new.exists()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="without locks it cannot be told who still runs")
def test_workspace__removes_what_a_killed_run_left_and_not_what_another_uses(tmp_path):
    with Workspace(parent=tmp_path) as running:
        left = tmp_path / "cavmae-sync-app-killed"
        left.mkdir()
        (left / ".in-use").touch()

        with Workspace(parent=tmp_path):
            assert not left.exists() and running.root.exists()


@pytest.mark.parametrize("name", ["megabytes", "seconds", "decode_seconds"])
def test_limits__must_leave_something(name):
    with pytest.raises(ValueError, match=f"`{name}` is 0"):
        Limits(**{name: 0})


# --- views -------------------------------------------------------------------------------------------------------


def test_bytes_view__can_be_undone():
    values = np.array([[0.0, 0.5, np.nan], [1.0, 0.25, 0.75]], np.float32)

    view = bytes_view(values)

    levels = np.frombuffer(base64.b64decode(view["data"]), np.uint8).reshape(view["shape"])
    assert levels[0, 2] == 0  # absent
    shown = view["low"] + (levels.astype(float) - 1) / 254 * (view["high"] - view["low"])
    assert np.abs(shown - values)[np.isfinite(values)].max() < 1 / 254
    assert bytes_view(np.full((2, 2), np.nan))["data"] == base64.b64encode(bytes(4)).decode()


# --- what buttons do ---------------------------------------------------------------------------------------------


def test_demo_clips__are_made_once(demo, tmp_path, monkeypatch):
    assert [clip.video.exists() and clip.poster.exists() for clip in demo.clips] == [True] * 4
    before = {path: path.stat().st_mtime_ns for path in demo.library.glob("*")}
    monkeypatch.setattr(demo_clips, "LIBRARY_CLIPS", 1)

    again = demo_clips.make_demo_clips(demo.library.parent)

    assert again == demo and {path: path.stat().st_mtime_ns for path in demo.library.glob("*")} == before


@pytest.mark.parametrize(
    ("number", "kind", "offset"), [(0, "step", 0.0), (1, "late", demo_clips.LATE_SECONDS), (2, "unsure", None)]
)
def test_measure__says_of_the_demo_clips_what_was_done_to_them(desk, number, kind, offset):
    picked = desk.pick("visitor", number)

    view = desk.measure("visitor", picked["turn"])

    assert view["sync"]["verdict"]["kind"] == kind
    if offset is not None:
        assert view["sync"]["offset"] == pytest.approx(offset, abs=0.1)
    json.dumps(view, allow_nan=False)  # what the page is sent


def fetch(workspace: Workspace, entry: dict) -> bytes:
    """What the address of a download gives."""
    _, token, name = entry["url"].split("/")
    path, save_as = workspace.find(token, name)
    assert save_as == entry["name"] and path.stat().st_size == entry["bytes"]
    return path.read_bytes()


def test_results__can_all_be_saved(desk, tmp_path):
    turn = desk.pick("visitor", 3)["turn"]
    told = []

    views = [
        desk.measure("visitor", turn, lambda *a: told.append(a)),
        desk.locate("visitor", turn),
        desk.film("visitor", turn),
    ]

    files = {entry["name"]: fetch(desk.workspace, entry) for view in views for entry in view["downloads"]}
    assert sorted(files) == [
        "who-is-it-sources.json", "who-is-it-sources.mp4", "who-is-it-sources.npz", "who-is-it-sources.png",
        "who-is-it-spectrogram.png", "who-is-it-sync.json", "who-is-it-sync.npz", "who-is-it-sync.png",
    ]  # fmt: skip
    facts = json.loads(files["who-is-it-sync.json"])
    assert facts["model"] == "example" and facts["sync"]["source"] == "Who is it?"
    assert str(desk.workspace.root) not in str(files) and str(desk.demo.library) not in str(files)
    (tmp_path / "film.mp4").write_bytes(files["who-is-it-sources.mp4"])
    assert decode_media(tmp_path / "film.mp4").duration == pytest.approx(10, abs=0.3)
    assert told[-1][0] == pytest.approx(10, abs=1)
    x0, y0, x1, y1 = views[1]["places"]["region"]
    assert (x0, y0, x1, y1) == (0, 0, 1, 1) and len(views[1]["places"]["maps"]["shape"]) == 3
    json.dumps(views, allow_nan=False)


def test_steps__of_a_clip_that_is_not_looked_at_any_more_stop(desk):
    first = desk.pick("visitor", 0)["turn"]
    second = desk.pick("visitor", 1)["turn"]

    assert desk.measure("visitor", first) == {}
    assert second > first

    def change_clip(*_):
        desk.pick("visitor", 2)

    assert desk.measure("visitor", second, change_clip) == {}


def test_steps__are_done_once_for_a_clip(desk):
    turn = desk.pick("visitor", 0)["turn"]

    assert "sync" in desk.measure("visitor", turn)
    assert desk.measure("visitor", turn) == {}


@pytest.mark.parametrize("number", [-1, 4, None, "0", True, 0.0])
def test_pick__refuses_what_is_no_clip(desk, number):
    assert desk.pick("visitor", number) == {"error": "There is no such clip."}


def test_steps__without_a_clip_say_so(desk):
    turn = desk.workspace.session("visitor").turn

    assert "choose it again" in desk.measure("visitor", turn)["error"]


def test_steps__what_breaks_is_told_without_details(desk, monkeypatch, caplog):
    turn = desk.pick("visitor", 0)["turn"]

    def fail(*_, **__):
        raise KeyError("/secret/path")

    monkeypatch.setattr("cavmae_sync_hf.inference.sync.measure_sync", fail)
    view = desk.measure("visitor", turn)

    assert "Something went wrong here" in view["error"] and "secret" not in view["error"]
    assert "/secret/path" in caplog.text


def test_take__uses_a_copy_and_removes_the_upload(desk, film):
    name = "<b>my & clip</b>.mp4"
    upload = send(desk.workspace, film, name.replace("/", "_"))

    view = desk.take("visitor", upload)

    assert "error" not in view and not upload.exists() and list(desk.workspace.uploads.iterdir()) == []
    assert view["clip"]["title"] == "<b>my & clip<_b>.mp4"
    assert "<" not in view["clip"]["url"] and "my" not in view["clip"]["url"]
    copy = desk.workspace.session("visitor").state["clip"].path
    assert copy.exists() and desk.workspace.root in copy.parents
    assert "sync" in desk.measure("visitor", view["turn"])
    desk.workspace.drop("visitor")
    assert not copy.exists()


def test_take__a_bad_upload_is_removed_and_named(desk, tmp_path):
    (tmp_path / "list.mp4").write_text(PLAYLIST, encoding="utf-8")
    upload = send(desk.workspace, tmp_path / "list.mp4")

    view = desk.take("visitor", upload)

    assert view["error"].startswith("list.mp4: is a playlist") and not upload.exists()
    assert desk.measure("visitor", view["turn"])["error"]


def test_search__finds_the_moment_and_plays_it(desk):
    pytest.importorskip("lancedb")
    turn = desk.pick("visitor", 1)["turn"]

    view = desk.search("visitor", turn, "Moments that look the same", 5.0)

    # The clip whose sound was moved has the pictures of the one in step.
    best = view["hits"][0]
    assert best["title"] == "in-step.mp4" and best["score"] > 0.99
    assert best["from"] == best["start"] and best["start"] == pytest.approx(4.0, abs=0.5)
    _, token, name = best["url"].split("/")
    assert desk.workspace.find(token, name)[0] == desk.demo.library / "in-step.mp4"
    saved = json.loads(fetch(desk.workspace, view["downloads"][0]))
    assert [Path(hit["path"]).name for hit in saved["search"]["hits"]] == [
        hit["path"] for hit in saved["search"]["hits"]
    ]


def test_search__in_an_index_of_ones_own_cuts_the_moments_out(desk, demo, engine, workspace, tmp_path):
    pytest.importorskip("lancedb")
    from cavmae_sync_hf.search import index_videos

    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("another-take.mp4", "who-is-it.mp4"):
        (videos / name).write_bytes((demo.library / name).read_bytes())
    index_videos(videos, tmp_path / "index", engine.model, engine.processor)
    engine._store = engine._open(str(tmp_path / "index"))
    (videos / "who-is-it.mp4").unlink()
    turn = desk.pick("visitor", 0)["turn"]

    hits = desk.search("visitor", turn, next(iter(SEARCHES)), 2.0)["hits"]

    assert {hit["title"] for hit in hits} == {"another-take.mp4", "who-is-it.mp4"}
    for hit in hits:
        if hit["title"] == "who-is-it.mp4":
            assert hit["url"] is None  # its file is gone
        else:
            _, token, name = hit["url"].split("/")
            piece = decode_media(workspace.find(token, name)[0])
            assert piece.duration < 6 and hit["to"] - hit["from"] == pytest.approx(hit["end"] - hit["start"], abs=0.01)


def test_search__a_broken_index_is_told_without_its_place(desk, tmp_path, monkeypatch, caplog):
    pytest.importorskip("lancedb")
    from cavmae_sync_hf.search import SearchIndexError

    def fail(*_, **__):
        raise SearchIndexError("s3://secret/index: cannot be read")

    monkeypatch.setattr(desk.engine, "store", fail)
    turn = desk.pick("visitor", 0)["turn"]

    view = desk.search("visitor", turn, next(iter(SEARCHES)), 1.0)

    assert "cannot be searched just now" in view["error"] and "secret" in caplog.text


def test_search__with_a_sound_of_ones_own_and_with_nonsense(desk, demo, tmp_path):
    pytest.importorskip("lancedb")
    desk.pick("visitor", 0)
    upload = send(desk.workspace, demo.library / "who-is-it.mp4", "sound.mp4")

    view = desk.search_with("visitor", upload, "sound", "Moments that sound the same")

    assert "error" not in view
    assert view["hits"][0]["title"] == "who-is-it.mp4" and not upload.exists()
    (tmp_path / "text.png").write_text("no picture", encoding="utf-8")
    upload = send(desk.workspace, tmp_path / "text.png")
    view = desk.search_with("visitor", upload, "picture", "Moments that look the same")
    assert "no picture that can be read" in view["error"] and not upload.exists()
    turn = desk.workspace.session("visitor").turn
    assert "Choose what to look for" in desk.search("visitor", turn, "everything", 1.0)["error"]


def test_label__needs_a_head(desk, workspace, demo, tmp_path):
    from classifiers import LABELS, make_classifier, save

    turn = desk.pick("visitor", 0)["turn"]
    assert desk.label("visitor", turn) == {} and desk.engine.labels == 0

    engine = Engine(save(make_classifier(), tmp_path / "model"))
    view = Desk(engine, workspace, demo)
    turn = view.pick("visitor", 0)["turn"]
    labels = view.label("visitor", turn)["labels"]["labels"]

    assert engine.labels == len(LABELS) and sorted(name for name, _ in labels) == LABELS
    assert sum(score for _, score in labels) == pytest.approx(1, abs=1e-3)


def test_map_plan__gives_slow_models_less_to_do():
    engine = Engine()
    engine._pass_seconds = {"audio": 1e-4, "video": 1e-4}
    assert engine.map_plan(10) == {"fps": 5.0}
    engine._pass_seconds = {"audio": 0.02, "video": 0.02}
    assert engine.map_plan(10)["fps"] < 5
    engine._pass_seconds = {"audio": 5.0, "video": 5.0}
    assert engine.map_plan(10)["method"] == "cosine"


# --- the page ----------------------------------------------------------------------------------------------------


def test_build_app__makes_the_page_of_a_space(demo, monkeypatch):
    pytest.importorskip("gradio")
    from cavmae_sync_hf.app import build_app

    monkeypatch.setattr(demo_clips, "LIBRARY_CLIPS", 1)
    before = os.environ.get("GRADIO_TEMP_DIR")

    page = build_app(demo_folder=demo.library.parent)

    config = json.dumps(page.get_config_file())
    assert "Which sound belongs to which moment?" in config
    # Uploads go where they are removed, all of them.
    assert {block.GRADIO_CACHE for block in page.blocks.values()} == {str(page.workspace.uploads)}
    assert os.environ["GRADIO_TEMP_DIR"] == str(page.workspace.uploads)
    page.close()
    assert not page.workspace.root.exists() and os.environ.get("GRADIO_TEMP_DIR") == before


def test_build_app__without_gradio_names_the_extra(monkeypatch):
    from cavmae_sync_hf.app import build_app

    monkeypatch.setitem(sys.modules, "gradio", None)

    with pytest.raises(ImportError, match=r"cavmae-sync-hf\[app\]"):
        build_app()


@pytest.fixture
def run(capsys, monkeypatch):
    monkeypatch.setattr(cli.terminal, "console", Console(width=200))
    monkeypatch.setattr(cli.terminal, "errors", Console(stderr=True, width=200))

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["cavmae-sync", "app", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        printed = capsys.readouterr()
        return caught.value.code, printed.out + printed.err

    return run


def test_command__listens_at_this_machine_alone_unless_told_otherwise(run, monkeypatch):
    calls = []

    class Page:
        def launch(self, **options):
            calls[-1].update(options)

    def build(model=None, **options):
        calls.append({"model": model, **options})
        return Page()

    monkeypatch.setattr("cavmae_sync_hf.app.build_app", build)

    assert run()[0] == 0 and calls[0]["server_name"] == "127.0.0.1" and calls[0]["share"] is False
    assert calls[0]["limits"] == Limits()
    code, printed = run(
        "--host", "0.0.0.0", "--port", "8000", "--max-megabytes", "5", "--max-seconds", "20", "-m", "m"
    )
    assert code == 0 and "no password" in printed
    assert (calls[1]["server_port"], calls[1]["limits"], calls[1]["model"]) == (8000, Limits(5, 20), "m")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--max-seconds", "0"], 2, "leaves nothing to take"),
        (["--port", "99999"], 2, "99999"),
        (["--device", "foo"], 2, "'foo' is no device"),
        (["--model", "nowhere"], 1, "nowhere is not a folder"),
        (["--index", "nowhere"], 1, "nowhere"),
    ],
)
def test_command__bad_inputs_are_named(run, arguments, code, words):
    pytest.importorskip("gradio")
    pytest.importorskip("lancedb")

    assert run(*arguments)[0] == code


def test_verdict__of_an_early_sound():
    from types import SimpleNamespace

    curve = np.array([0.1, np.nan])
    result = SimpleNamespace(
        offset=-0.5, confidence=0.9, hop=0.1, resolution=0.1, max_offset=2.0, offset_scores=curve
    )  # fmt: skip

    assert verdict(result) == {
        "kind": "early",
        "headline": "The sound is 0.5 s early",
        "detail": "It would fit its picture if it came 0.50 s later. 90% of random draws of the clip's pieces agree.",
    }
    result.offset_scores = -curve  # the best of all offsets fits worse than chance
    assert verdict(result)["kind"] == "unsure"
