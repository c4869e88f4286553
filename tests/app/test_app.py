# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The web page without a browser: what every button does, and the command that starts it."""

import base64
import io
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cavmae_sync_hf import AppError, SearchError, classify, load_model
from cavmae_sync_hf.app import demo_clips
from cavmae_sync_hf.app.endpoints import Endpoints
from cavmae_sync_hf.app.engine import Engine
from cavmae_sync_hf.app.handlers import SEARCHES, RequestHandler
from cavmae_sync_hf.app.views import bytes_view
from cavmae_sync_hf.app.workspace import Limits, Workspace
from cavmae_sync_hf.model.errors_cavmae_sync import DiskError
from cavmae_sync_hf.model.media_cavmae_sync import decode_media
from helpers.clips import write_clip
from helpers.little_app import PLAYLIST, decode_here, make_video, send, watch_processes, write_tone
from helpers.words import save as save_words
from helpers.words import text_model


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
def handler(engine, workspace, demo) -> RequestHandler:
    engine._store = None  # that of the last test lay in its workspace
    return RequestHandler(engine, workspace, demo)


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return make_video(tmp_path_factory.mktemp("video") / "video.mp4")


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
    ("number", "kind", "offset"),
    [(0, "in-sync", 0.0), (1, "late", demo_clips.LATE_SECONDS), (2, "does-not-fit", None)],
)
def test_measure__says_of_the_demo_clips_what_was_done_to_them(handler, number, kind, offset):
    picked = handler.pick("visitor", number)

    view = handler.measure("visitor", picked["turn"])

    assert view["sync"]["verdict"]["kind"] == kind
    if offset is not None:
        assert view["sync"]["offset"] == pytest.approx(offset, abs=0.1)
    assert view["sync"]["verdict"]["advice"] != ""
    json.dumps(view, allow_nan=False)  # what the page is sent
    assert handler.measure("visitor", picked["turn"]) == {}  # once is enough


def fetch(workspace: Workspace, entry: dict) -> bytes:
    """What the address of a download gives."""
    _, token, name = entry["url"].split("/")
    path, save_as = workspace.find(token, name)
    assert save_as == entry["name"] and path.stat().st_size == entry["bytes"]
    return path.read_bytes()


def test_results__can_all_be_saved(handler, tmp_path):
    turn = handler.pick("visitor", 3)["turn"]
    told = []

    views = [
        handler.measure("visitor", turn, lambda *a: told.append(a)),
        handler.locate("visitor", turn),
        handler.video("visitor", turn),
    ]

    files = {entry["name"]: fetch(handler.workspace, entry) for view in views for entry in view["downloads"]}
    assert sorted(files) == [
        "who-is-it-sources.json", "who-is-it-sources.mp4", "who-is-it-sources.npz", "who-is-it-sources.png",
        "who-is-it-spectrogram.png", "who-is-it-sync.json", "who-is-it-sync.npz", "who-is-it-sync.png",
    ]  # fmt: skip
    facts = json.loads(files["who-is-it-sync.json"])
    assert facts["model"] == "example" and facts["sync"]["source"] == "Who is it?"
    assert str(handler.workspace.root) not in str(files) and str(handler.demo.library) not in str(files)
    (tmp_path / "video.mp4").write_bytes(files["who-is-it-sources.mp4"])
    assert decode_media(tmp_path / "video.mp4").duration == pytest.approx(10, abs=0.3)
    assert told[-1][0] == pytest.approx(10, abs=1)
    frames = views[1]["frames"]
    flags = views[1]["places"]["source"]
    assert [frame["source"] for frame in frames] == flags and any(flags) and views[1]["places"]["none"] == "no source"
    assert len(frames) == 10 and [frame["time"] for frame in frames] == views[1]["places"]["times"]
    for frame in frames:
        _, token, name = frame["url"].split("/")
        assert handler.workspace.find(token, name)[0].read_bytes().startswith(b"\xff\xd8\xff")
    rows, columns = views[1]["sound"]["levels"]["shape"]
    assert rows == 128 and 200 < columns <= 800 and views[1]["sound"]["seconds"] == pytest.approx(10, abs=0.3)
    x0, y0, x1, y1 = views[1]["places"]["region"]
    assert (x0, y0, x1, y1) == (0, 0, 1, 1) and len(views[1]["places"]["maps"]["shape"]) == 3
    json.dumps(views, allow_nan=False)


def test_steps__of_a_clip_that_is_not_looked_at_any_more_stop(handler):
    first = handler.pick("visitor", 0)["turn"]
    second = handler.pick("visitor", 1)["turn"]

    assert handler.measure("visitor", first) == {}
    assert second > first

    def change_clip(*_):
        handler.pick("visitor", 2)

    assert handler.measure("visitor", second, change_clip) == {}


@pytest.mark.parametrize("error", [DiskError("x.png: cannot be written"), AppError("too long"), OSError("gone")])
def test_steps__whose_files_went_with_their_clip_say_nothing_of_the_next(handler, monkeypatch, caplog, error):
    def draw(*_, **__):
        handler.pick("visitor", 1)  # removes what was made for the clip before
        raise error

    monkeypatch.setattr("cavmae_sync_hf.inference.plots.draw_timeline", draw)
    assert handler.measure("visitor", handler.pick("visitor", 0)["turn"]) == {}
    assert not caplog.records


@pytest.mark.parametrize("number", [-1, 4, None, "0", True, 0.0])
def test_pick__refuses_what_is_no_clip(handler, number):
    assert handler.pick("visitor", number) == {"error": "There is no such clip."}


def test_steps__without_a_clip_say_so(handler):
    turn = handler.workspace.session("visitor").turn

    assert "choose it again" in handler.measure("visitor", turn)["error"]


def test_steps__what_breaks_is_told_without_details(handler, monkeypatch, caplog):
    turn = handler.pick("visitor", 0)["turn"]

    def fail(*_, **__):
        raise KeyError("/secret/path")

    monkeypatch.setattr("cavmae_sync_hf.inference.sync.measure_sync", fail)
    view = handler.measure("visitor", turn)

    assert "Something went wrong here" in view["error"] and "secret" not in view["error"]
    assert "/secret/path" in caplog.text


def test_take__uses_a_copy_and_removes_the_upload(handler, video, monkeypatch):
    decode_here(monkeypatch)
    name = "<b>my & clip</b>.mp4"
    upload = send(handler.workspace, video, name.replace("/", "_"))

    view = handler.take("visitor", upload)

    assert "error" not in view and not upload.exists() and list(handler.workspace.uploads.iterdir()) == []
    assert view["clip"]["title"] == "<b>my & clip<_b>.mp4"
    assert "<" not in view["clip"]["url"] and "my & clip" not in view["clip"]["url"]
    assert "small example" in view["clip"]["warning"] and view["clip"]["name"] == "b_my_clip__b.mp4"
    copy = handler.workspace.session("visitor").state["clip"].path
    assert copy.exists() and handler.workspace.root in copy.parents
    assert "sync" in handler.measure("visitor", view["turn"])
    handler.workspace.drop("visitor")
    assert not copy.exists()


def test_take__a_bad_upload_is_removed_and_named(handler, tmp_path):
    (tmp_path / "list.mp4").write_text(PLAYLIST, encoding="utf-8")
    upload = send(handler.workspace, tmp_path / "list.mp4")
    turn = handler.pick("visitor", 0)["turn"]

    view = handler.take("visitor", upload)

    assert view["error"].startswith("list.mp4: is a playlist") and list(handler.workspace.uploads.iterdir()) == []
    assert "sync" in handler.measure("visitor", turn)  # the clip from before is still there


def test_take__stops_when_the_visitor_chooses_another_clip(handler, video, monkeypatch):
    upload, processes = send(handler.workspace, video), watch_processes(monkeypatch)

    assert handler.take("visitor", upload, progress=lambda *_: handler.pick("visitor", 1)) == {}
    assert [process.returncode is not None for process in processes] == [True]
    assert list(handler.workspace.uploads.iterdir()) == []


@pytest.mark.parametrize(("sender", "kind"), [("in-sync", "in-sync"), ("who-is-it", "does-not-fit")])
def test_dub__measures_the_frames_of_the_clip_with_other_audio(handler, demo, monkeypatch, sender, kind):
    decode_here(monkeypatch)
    handler.pick("visitor", 0)
    upload = send(handler.workspace, demo.library / f"{sender}.mp4", "Geräusch.mp4")

    view = handler.dub("visitor", upload)
    measured = handler.measure("visitor", view["turn"])

    assert view["clip"]["title"] == "in-sync.mp4 with the audio of Geräusch.mp4" and not upload.exists()
    assert view["clip"]["name"] == "in-sync-with-Geräusch.mp4"
    assert measured["sync"]["verdict"]["kind"] == kind
    paths = handler.workspace.session("visitor").state["clip"].path, demo.clips[0].video
    made, clip = (decode_media(path) for path in paths)
    assert made.duration == pytest.approx(clip.duration, abs=0.1)
    assert (made.frames.float() - clip.frames.float()).abs().mean() < 6  # written anew, otherwise the same


def test_dub__needs_a_clip_with_frames_and_a_file_with_audio(handler, tmp_path, monkeypatch):
    decode_here(monkeypatch)
    upload = send(handler.workspace, write_tone(tmp_path / "tone.wav"))
    assert "Choose a clip with video first" in handler.dub("visitor", upload)["error"] and not upload.exists()

    handler.pick("visitor", 0)
    upload = send(handler.workspace, write_clip(tmp_path / "mute.mp4", seconds=1.0, audio=False))
    view = handler.dub("visitor", upload)

    assert view["error"].startswith("mute.mp4: ") and "audio" in view["error"] and not upload.exists()
    assert handler.workspace.session("visitor").state["clip"].title == "In sync"


def test_audio_alone__is_not_measured_and_searches(handler, tmp_path, monkeypatch):
    pytest.importorskip("lancedb")
    decode_here(monkeypatch)

    view = handler.take("visitor", send(handler.workspace, write_tone(tmp_path / "tone.wav")))

    assert view["clip"]["sound"] and view["clip"]["name"] == "tone.wav"
    turn = view["turn"]
    assert handler.measure("visitor", turn) == handler.locate("visitor", turn) == {}
    assert handler.search("visitor", turn, "Frames that fit this audio", 1.0)["hits"]
    assert "no frames" in handler.search("visitor", turn, "Moments that look the same", 1.0)["error"]
    again = send(handler.workspace, tmp_path / "tone.wav")
    assert "Choose a clip with video first" in handler.dub("visitor", again)["error"]


def test_search__finds_the_moment_and_plays_it(handler):
    pytest.importorskip("lancedb")
    turn = handler.pick("visitor", 1)["turn"]

    view = handler.search("visitor", turn, "Moments that look the same", 5.0)

    # The clip whose audio was moved has the frames of the one in step.
    best = view["hits"][0]
    assert best["title"] == "before-it-was-moved.mp4" and best["score"] > 0.99
    assert best["from"] == best["start"] and best["start"] == pytest.approx(4.0, abs=0.5)
    _, token, name = best["url"].split("/")
    assert handler.workspace.find(token, name)[0] == handler.demo.library / "before-it-was-moved.mp4"
    saved = json.loads(fetch(handler.workspace, view["downloads"][0]))
    assert [Path(hit["path"]).name for hit in saved["search"]["hits"]] == [
        hit["path"] for hit in saved["search"]["hits"]
    ]


def test_search__in_an_index_of_ones_own_cuts_the_moments_out(handler, demo, engine, workspace, tmp_path):
    pytest.importorskip("lancedb")
    from cavmae_sync_hf.search import index_videos

    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("another-take.mp4", "who-is-it.mp4"):
        (videos / name).write_bytes((demo.library / name).read_bytes())
    index_videos(videos, tmp_path / "index", engine.model, engine.processor)
    engine._store = engine._open(str(tmp_path / "index"))
    (videos / "who-is-it.mp4").unlink()
    turn = handler.pick("visitor", 0)["turn"]

    hits = handler.search("visitor", turn, next(iter(SEARCHES)), 2.0)["hits"]

    assert {hit["title"] for hit in hits} == {"another-take.mp4", "who-is-it.mp4"}
    for hit in hits:
        if hit["title"] == "who-is-it.mp4":
            assert hit["url"] is None  # its file is gone
        else:
            _, token, name = hit["url"].split("/")
            piece = decode_media(workspace.find(token, name)[0])
            assert piece.duration < 6 and hit["to"] - hit["from"] == pytest.approx(hit["end"] - hit["start"], abs=0.01)


def test_search__a_broken_index_is_told_without_its_place(handler, tmp_path, monkeypatch, caplog):
    pytest.importorskip("lancedb")

    def fail(*_, **__):
        raise SearchError("s3://secret/index: cannot be read")

    monkeypatch.setattr(handler.engine, "store", fail)
    turn = handler.pick("visitor", 0)["turn"]

    view = handler.search("visitor", turn, next(iter(SEARCHES)), 1.0)

    assert "cannot be searched just now" in view["error"] and "secret" in caplog.text


def test_search__with_audio_of_ones_own_and_with_nonsense(handler, demo, tmp_path, monkeypatch):
    pytest.importorskip("lancedb")
    decode_here(monkeypatch)
    handler.pick("visitor", 0)
    upload = send(handler.workspace, demo.library / "who-is-it.mp4", "audio.mp4")

    view = handler.search_with("visitor", upload, "audio", "Moments that sound the same")

    assert "error" not in view
    assert view["hits"][0]["title"] == "who-is-it.mp4" and not upload.exists()
    (tmp_path / "text.png").write_text("no image", encoding="utf-8")
    upload = send(handler.workspace, tmp_path / "text.png")
    view = handler.search_with("visitor", upload, "image", "Moments that look the same")
    assert "not an image that can be read" in view["error"] and not upload.exists()
    turn = handler.workspace.session("visitor").turn
    assert "Choose what to look for" in handler.search("visitor", turn, "everything", 1.0)["error"]


def test_label__needs_a_head(handler, workspace, demo, tmp_path):
    from helpers.classifiers import LABELS, make_classifier, save

    turn = handler.pick("visitor", 0)["turn"]
    assert handler.label("visitor", turn) == {} and handler.engine.labels == 0

    engine = Engine(save(make_classifier(), tmp_path / "model"))
    view = RequestHandler(engine, workspace, demo)
    turn = view.pick("visitor", 0)["turn"]
    labels = view.label("visitor", turn)["labels"]["labels"]

    assert engine.labels == len(LABELS) and sorted(name for name, _ in labels) == LABELS
    assert sum(score for _, score in labels) == pytest.approx(1, abs=1e-3)


# --- words -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wordy_engine(tmp_path_factory) -> Engine:
    """The example model with a text encoder that knows nothing; texts have a space of their own."""
    model, processor = text_model(load_model("example")[0], projection_dim=24)
    engine = Engine(save_words(model, processor, tmp_path_factory.mktemp("words") / "model"))
    engine.map_plan = lambda seconds: {"fps": 1.0, "method": "cosine"}
    return engine


@pytest.fixture
def wordy(wordy_engine, workspace, demo) -> RequestHandler:
    wordy_engine._store = None
    return RequestHandler(wordy_engine, workspace, demo)


def test_words__search_alone_and_beside_the_moment_as_in_python_and_from_programs(wordy, demo, run, tmp_path):
    pytest.importorskip("lancedb")
    from cavmae_sync_hf.search import SearchFilters, search

    turn = wordy.pick("visitor", 0)["turn"]
    what = "Moments that sound the same"
    alone = wordy.search_words("visitor", turn, " a dog barks ", 1, what, 5.0)
    joined = wordy.search_words("visitor", turn, "a dog barks", 0.25, what, 5.0)
    order = wordy.search_words("visitor", turn, "a dog barks, then the bell rings", 1, what, 5.0)

    engine = wordy.engine
    store = engine.store(demo, wordy.workspace.root)
    clip, span = wordy.workspace.session("visitor").state["clip"].path, {"start": 4.0, "end": 6.0}
    options = {"top": wordy.limits.search_results}
    filters = SearchFilters(exclude_same_file=True, per_file=2)
    for view, query, more in (
        (alone, None, {}),
        (joined, clip, span | {"by": "audio", "find": "audio", "text_weight": 0.25}),
    ):
        found = search(store, query, engine.text_model, engine.processor, text="a dog barks", filters=filters,
                       **options, **more)  # fmt: skip
        shown = [(hit["title"], hit["start"], hit["score"]) for hit in view["hits"]]
        assert shown == [(Path(hit.path).name, hit.start, round(hit.score, 3)) for hit in found] != []
    assert all(hit["end"] - hit["start"] > 2 * store.settings.hop - 1e-6 for hit in order["hits"]) and order["hits"]
    saved = json.loads(fetch(wordy.workspace, order["downloads"][0]))
    assert saved["search"]["texts"] == ["a dog barks", "the bell rings"]
    # The command, on the same index.
    command = ["search", store.uri, clip, "--text", "a dog barks", "--text-weight", 0.25, "--by", "audio",
               "--in", "audio", "--start", 4, "--end", 6, "--model", engine.name, "--exclude-same-file",
               "--per-file", 2, "--top", wordy.limits.search_results, "--json"]  # fmt: skip
    code, out, _ = run(*map(str, command))
    assert code == 0
    assert [(Path(hit["path"]).name, hit["start"], round(hit["score"], 3)) for hit in json.loads(out)["hits"]] == shown
    # A program.
    endpoints = Endpoints(wordy)
    asked = endpoints.search("program", None, "audio", "video", text="a dog barks")
    assert [round(hit["score"], 3) for hit in asked["hits"]] == [hit["score"] for hit in alone["hits"]]
    upload = send(wordy.workspace, clip, "clip.mp4")
    asked = endpoints.search("program", upload, "audio", "audio", text="a dog barks", text_weight=0.25, **span)
    assert len(asked["hits"]) == len(joined["hits"]) and asked["query"] == 'clip.mp4 with "a dog barks"'


def test_words__are_looked_for_in_the_frame_and_the_audio_again(wordy):
    turn = wordy.pick("visitor", 0)["turn"]
    before = wordy.locate("visitor", turn)

    words = wordy.locate_words("visitor", turn, "the bell")
    film = wordy.video("visitor", turn)
    saved = json.loads(fetch(wordy.workspace, words["downloads"][2]))
    other = wordy.locate_words("visitor", turn, "the dog")
    again = wordy.locate_words("visitor", turn, "")

    assert words["places"]["asked"] == "the bell" and words["places"]["none"] == "not seen"
    assert words["places"]["maps"] != before["places"]["maps"] and len(words["frames"]) == len(before["frames"])
    assert [entry["name"] for entry in words["downloads"]] == [
        "in-sync-words.png", "in-sync-words-spectrogram.png", "in-sync-words.json", "in-sync-words.npz",
    ]  # fmt: skip
    assert saved["words"]["text"] == "the bell"
    assert film["downloads"][0]["name"] == "in-sync-words.mp4"
    assert not {frame["url"] for frame in words["frames"]} & {frame["url"] for frame in other["frames"]}
    assert again["places"]["asked"] is None and again["frames"] == before["frames"]
    json.dumps(words, allow_nan=False)


def test_words__are_labels_with_moments(wordy, tmp_path, monkeypatch):
    turn = wordy.pick("visitor", 0)["turn"]

    view = wordy.label_words("visitor", turn, "a dog, rain,, the bell, rain,")["labels"]

    assert sorted(name for name, _ in view["labels"]) == ["a dog", "rain", "the bell"]
    starts, scores = view["when"]["starts"], view["when"]["scores"]
    assert len(scores) == 3 and all(len(row) == len(starts) == view["moments"] for row in scores)
    (result,) = classify(
        wordy.engine.text_model, wordy.engine.processor, str(wordy.demo.clips[0].video), moments=True,
        labels=["a dog", "rain", "the bell"],
    )  # fmt: skip
    assert view["labels"] == [[entry["label"], round(entry["score"], 4)] for entry in result.labels]
    best = ["a dog", "rain", "the bell"].index(view["labels"][0][0])
    assert scores[0] == pytest.approx(result.moment_scores[:, best].tolist(), abs=1e-3)
    # Audio alone, and a program.
    decode_here(monkeypatch)
    turn = wordy.take("visitor", send(wordy.workspace, write_tone(tmp_path / "tone.wav")))["turn"]
    view = wordy.label_words("visitor", turn, "a dog")
    assert len(view.get("labels", view)["labels"]) == 1, view
    upload = send(wordy.workspace, tmp_path / "tone.wav")
    answer = Endpoints(wordy).classify("program", upload, "a dog, rain")
    assert {entry["label"] for entry in answer["labels"]} == {"a dog", "rain"} and answer["moments"]


@pytest.mark.parametrize(
    ("step", "arguments", "says"),
    [
        ("search_words", ("  ", 1, None, 0), "Write some words first"),
        ("search_words", (None, 1, None, 0), "Write some words first"),
        ("search_words", ("a dog " * 100, 1, None, 0), "has 600 letters, and at most 500 are taken here"),
        ("search_words", ("a dog " * 40, 1, None, 0), "tokens, and the text encoder takes 32 at most"),
        ("search_words", ("a dog", 2, None, 0), "share of the words must be from 0 to 1"),
        ("search_words", ("a dog", 0.5, "everything", 0), "Choose what to look for"),
        ("search_words", ("a dog, then a bell", 0.5, "Moments that sound the same", 5), "cannot be joined with it"),
        ("locate_words", ("",), "Write some words first"),
        ("label_words", (" , ,",), "Write labels with commas between them"),
        ("label_words", (",".join(f"a{number}" for number in range(51)),), "There are 51 labels, and at most 50"),
    ],
)
def test_words__that_cannot_be_used_are_told(wordy, step, arguments, says):
    turn = wordy.pick("visitor", 0)["turn"]

    view = getattr(wordy, step)("visitor", turn, *arguments)

    assert says in view["error"] and view["turn"] == turn


def test_words__need_a_model_with_text(handler, tmp_path):
    turn = handler.pick("visitor", 0)["turn"]
    for step, arguments in (("search_words", (1, None, 0)), ("locate_words", ()), ("label_words", ())):
        assert "has no text encoder" in getattr(handler, step)("visitor", turn, "a dog", *arguments)["error"]
    with pytest.raises(AppError, match="has no text encoder, so it cannot be asked in words"):
        Endpoints(handler).search("program", None, "audio", "video", text="a dog")
    with pytest.raises(AppError, match="No file came"):
        Endpoints(handler).search("program", None, "audio", "video")
    upload = send(handler.workspace, write_tone(tmp_path / "tone.wav"))
    with pytest.raises(AppError, match="no classification head; one with text takes `labels`"):
        Endpoints(handler).classify("program", upload)


def test_map_plan__gives_slow_models_less_to_do(monkeypatch):
    engine = Engine()
    engine._pass_seconds = {"audio": 1e-4, "video": 1e-4}
    assert engine.map_plan(10) == {"fps": 5.0}
    engine._pass_seconds = {"audio": 0.1, "video": 0.1}
    assert engine.map_plan(10) == {"fps": 2.5}
    monkeypatch.setattr("cavmae_sync_hf.app.engine.has_relevance", lambda model: False)
    assert engine.map_plan(10) == {"fps": 1.0, "stride": 3}  # another model's encoder, once for every patch
    monkeypatch.undo()
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
    picture = re.search(r"data:image/png;base64,([\w+/=]+)", config)
    assert Image.open(io.BytesIO(base64.b64decode(picture[1]))).format == "PNG" and "GRID corpus" in config
    assert "Does the sound belong to the picture?" in config
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


def test_command__listens_at_this_machine_alone_unless_told_otherwise(run, monkeypatch):
    calls = []

    class Page:
        def launch(self, **options):
            calls[-1].update(options)

    def build(model=None, **options):
        calls.append({"model": model, **options})
        return Page()

    monkeypatch.setattr("cavmae_sync_hf.app.build_app", build)

    assert run("app")[0] == 0 and calls[0]["server_name"] == "127.0.0.1" and calls[0]["share"] is False
    assert calls[0]["limits"] == Limits()
    code, printed, _ = run(
        "app", "--host", "0.0.0.0", "--port", "8000", "--max-megabytes", "5", "--max-seconds", "20", "-m", "example",
        "--allow-host", "page.example", "--allow-host", ".lab.example", "--max-disk", "900",
    )  # fmt: skip
    assert code == 0 and "no password" in printed
    assert (calls[1]["server_port"], calls[1]["model"]) == (8000, "example")
    assert calls[1]["limits"] == Limits(5, 20, disk_megabytes=900)
    assert calls[1]["allow_hosts"] == ["page.example", ".lab.example"] and calls[0]["allow_hosts"] == ()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--max-seconds", "0"], 2, "leaves nothing to take"),
        (["--port", "99999"], 2, "65535"),
        (["--max-disk", "0"], 2, "leaves nothing to take"),
        (["--max-disk", "10"], 2, "one visitor's files may take"),
        (["--allow-host", "https://page.example/"], 1, "is no host name"),
        (["--device", "foo"], 2, "'foo' is no device"),
        (["--model", "nowhere"], 1, "nowhere is not a folder"),
        (["--index", "nowhere"], 1, "nowhere"),
    ],
)
def test_command__bad_inputs_are_named(run, arguments, code, words):
    pytest.importorskip("gradio")
    pytest.importorskip("lancedb")

    found, printed, errors = run("app", *arguments)
    assert found == code and words in printed + errors
