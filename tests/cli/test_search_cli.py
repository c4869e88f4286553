"""`cavmae-sync index`, `search` and `index-info`: what people see, what scripts get, and plain words for bad input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cavmae_sync_hf import CavMaeSyncModel, CavMaeSyncProcessor
from cavmae_sync_hf.cli.search import HIT_SUFFIXES
from cavmae_sync_hf.model.media_cavmae_sync import decode_media, probe_media
from cavmae_sync_hf.search import writing
from helpers.clips import loudest_frequency, noise, truncate, write_audio_tracks, write_clip
from helpers.tiny import tiny_config
from helpers.words import save as save_words
from helpers.words import teach, text_model


def save(place: Path, seed: int, **changes) -> Path:
    torch.manual_seed(seed)
    model = CavMaeSyncModel(tiny_config(**changes))
    model.save_pretrained(place)
    CavMaeSyncProcessor.from_config(model.config).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "one", 0)


@pytest.fixture(scope="module")
def other_model(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("models") / "other", 1)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for seed, name in enumerate(("one.mp4", "two.mp4", "-dash.mp4", "line\nbreak [bold].mp4")):
        write_clip(folder / name, seconds=2.0, audio=noise(2.0, seed=seed))
    (folder / "archive.mp4").write_bytes(b"PK\x03\x04" + bytes(100))
    (folder / "playlist.mp4").write_text("#EXTM3U\n/etc/passwd\n")
    return folder


@pytest.fixture(scope="module")
def index(tmp_path_factory, videos, model) -> Path:
    from cavmae_sync_hf.loading import load_model
    from cavmae_sync_hf.search import index_videos

    place = tmp_path_factory.mktemp("index") / "index"
    index_videos(videos, place, *load_model(model), hop=0.25)
    return place


@pytest.mark.parametrize("command", ["index", "search", "index-info"])
def test_help__is_printed(run, command):
    code, out, _ = run(command, "--help")

    assert code == 0 and f"Usage: cavmae-sync {command}" in out


def test_index__says_what_it_did(run, videos, model, tmp_path):
    code, out, err = run("index", videos, tmp_path / "index", "--model", model, "--hop", "0.5", "--thumbnails", "32")

    assert code == 1
    assert "4 added, 2 bad; holds 4 clips, 16 moments" in out
    assert "is a ZIP archive" in err and "is a playlist" in err
    assert err.splitlines()[-1] == f"4 clips done, 2 left out; see cavmae-sync index-info {tmp_path / 'index'} --files"
    code, out, _ = run("index", videos, tmp_path / "index", "--model", model, "--json")
    summary = json.loads(out)
    assert code == 1 and (summary["unchanged"], len(summary["bad"]), summary["total_moments"]) == (4, 2, 16)


def test_index__nothing_usable_is_a_failure(run, videos, model, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copy(videos / "archive.mp4", folder)

    code, out, _ = run("index", folder, tmp_path / "index", "--model", model)

    assert code == 1 and "1 bad" in out


def test_search__prints_a_table(run, index, videos):
    code, out, _ = run("search", index, videos / "two.mp4", "--start", "0.5", "--end", "0:01.25", "--by", "both")

    assert code == 0
    lines = out.splitlines()
    assert "0:00.5 to 0:01.2: audio -> audio, video -> video (every moment compared)" in lines[0]
    assert lines[1].split() == ["score", "from", "to", "file"]
    assert lines[2].split() == ["1", "1.000", "0:00.5", "0:01.2", str(videos / "two.mp4")]
    # A name with a line break and with what rich takes for a style stays one readable line.
    assert "line\\nbreak [bold].mp4" in out


def test_search__json_is_all_that_is_printed(run, index, videos):
    options = ("--by", "audio", "--in", "audio", "--top", "2", "--per-file", "1", "--json")

    code, out, err = run("search", index, videos / "one.mp4", "--start", "1", "--end", "1.5", *options)

    result = json.loads(out)
    assert code == 0 and err.splitlines() == ["loading model of the index ...", "running on cpu"]
    assert result["pairs"] == ["audio -> audio"] and len(result["hits"]) == 2
    assert result["hits"][0]["path"] == str(videos / "one.mp4")
    assert (result["hits"][0]["start"], result["hits"][0]["end"]) == (1.0, 1.5)


def test_search__filters(run, index, videos):
    def found(*options: object) -> list[dict]:
        code, out, _ = run("search", index, videos / "one.mp4", "--end", "0.25", "--json", "--top", 99, *options)
        assert code == 0
        return json.loads(out)["hits"]

    assert str(videos / "one.mp4") not in {hit["path"] for hit in found("--exclude-same-file")}
    assert {hit["path"] for hit in found("--files", "*/two.mp4")} == {str(videos / "two.mp4")}
    assert min(hit["start"] for hit in found("--after", "1")) >= 1.0
    assert max(hit["end"] for hit in found("--before", "0:01")) <= 1.0
    assert len(found("--min-gap", "0")) > len(found())
    assert found("--min-loudness", "0") == [] and len(found("--whole-clips")) == 4


def test_search__old_spellings_are_accepted_with_a_note(run, index, videos):
    code, out, err = run("search", index, videos / "one.mp4", "--by", "sound", "--in", "picture", "--json")

    assert code == 0 and json.loads(out)["pairs"] == ["audio -> video"]
    assert err.splitlines()[:2] == ["Note: 'sound' is now written 'audio'.", "Note: 'picture' is now written 'video'."]


def test_search__nothing_found_is_said(run, index, videos):
    code, out, _ = run("search", index, videos / "one.mp4", "--files", "*/none/*")

    assert code == 0 and "nothing found" in out


def test_search__a_name_that_begins_with_a_dash(run, index, videos, monkeypatch):
    monkeypatch.chdir(videos)

    code, out, _ = run("search", index, "--by", "audio", "--in", "audio", "--json", "--", "-dash.mp4")

    assert code == 0 and json.loads(out)["hits"][0]["path"] == str(videos / "-dash.mp4")


def test_search__by_audio_and_by_image_files(run, index, tmp_path):
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / "image.png")
    write_clip(tmp_path / "audio.wav", video=False, audio=noise(0.5), audio_codec="pcm_s16le")

    by_image = json.loads(run("search", index, tmp_path / "image.png", "--json")[1])
    by_audio = json.loads(run("search", index, tmp_path / "audio.wav", "--json")[1])

    assert by_image["pairs"] == ["video -> audio"] and by_audio["pairs"] == ["audio -> video"]
    assert by_image["hits"] and by_audio["hits"]


def test_search__cuts_and_writes_its_hits(run, index, videos, tmp_path):
    query = ("search", index, videos / "one.mp4", "--end", "0:00.5", "--by", "audio", "--in", "audio", "--top", 3)
    folder = tmp_path / "found"

    code, out, err = run(*query, "--clips", folder, "--out", folder / "hits.html")

    assert code == 0, err
    clips = sorted(path for path in folder.iterdir() if path.suffix == ".mp4")
    assert len(clips) == 3 and out.count("wrote ") == 4 and f"wrote {folder / 'one_00-00-00.00.mp4'}" in out
    assert (folder / "hits.html").read_text(encoding="utf-8").count("<video") == 3
    assert probe_media(folder / "one_00-00-00.00.mp4").duration == pytest.approx(0.5, abs=0.1)
    code, out, _ = run(*query, "--clips", folder, "--reencode", "--padding", "0.25", "--overwrite", "--json")
    values = json.loads(out)
    assert code == 0 and [clip["is_copy"] for clip in values["clips"]] == [False] * 3
    for hit, clip in zip(values["hits"], values["clips"], strict=True):
        assert clip["start"] == max(0.0, hit["start"] - 0.25)
    for suffix in HIT_SUFFIXES[:2]:
        assert run(*query, "--out", tmp_path / f"hits{suffix}")[0] == 0
    assert json.loads((tmp_path / "hits.json").read_text())["hits"] == values["hits"]
    assert (tmp_path / "hits.csv").read_text().count("\n") == 4


@pytest.mark.parametrize("reencode", [(), ("--reencode",)])
def test_search__clips_have_the_audio_track_that_was_indexed(run, model, tmp_path, reencode):
    from cavmae_sync_hf.loading import load_model
    from cavmae_sync_hf.search import index_videos

    source = write_audio_tracks(tmp_path / "two.mkv", [{"language": "en"}, {"language": "de"}], seconds=2.0)
    index_videos(source, tmp_path / "index", *load_model(model), hop=0.5, audio_track="de")

    code, _, err = run(
        "search", tmp_path / "index", source, "--end", 1, "--top", 1, "--clips", tmp_path / "clips", *reencode
    )  # fmt: skip

    (clip,) = (tmp_path / "clips").iterdir()
    waveform = decode_media(clip, want_video=False).waveform.numpy()
    assert code == 0, err
    assert loudest_frequency(waveform) == pytest.approx(600, abs=5)  # the second track's; the first has 300 Hz


def test_search__hits_whose_files_are_gone_are_named(run, videos, index, tmp_path):
    gone = videos / "two.mp4"
    gone.rename(tmp_path / "two.mp4")
    try:
        code, out, err = run(
            "search", index, videos / "one.mp4", "--end", "0.5", "--in", "audio", "--by", "audio", "--per-file", 1,
            "--clips", tmp_path / "clips", "--out", tmp_path / "hits.html",
        )  # fmt: skip
    finally:
        (tmp_path / "two.mp4").rename(gone)

    assert code == 1 and str(gone) in out  # the table has it all the same
    assert err.count(f"{gone}: no such file") == 1 and err.splitlines()[-1] == "3 hits done, 1 left out."
    assert len(list((tmp_path / "clips").iterdir())) == 3
    assert (tmp_path / "hits.html").read_text(encoding="utf-8").count("two.mp4: no such file") == 1


def test_search__outputs_are_checked_before_the_model_is_loaded(run, index, videos, tmp_path, monkeypatch):
    monkeypatch.setattr("cavmae_sync_hf.loading.load_model", None)
    (tmp_path / "hits.html").write_text("mine")
    for options, code, words in (
        (("--out", tmp_path / "hits.xml"), 1, "ends in .csv or .json or .html or .edl or .otio"),
        (("--out", tmp_path / "hits.html"), 1, "is there already"),
        (("--out", tmp_path / "none" / "hits.csv"), 1, "no such folder"),
        (("--clips", tmp_path / "hits.html"), 1, "is a file"),
        (("--reencode",), 2, "go with --clips"),
        (("--padding", "0:01"), 2, "go with --clips"),
    ):
        found = run("search", index, videos / "one.mp4", *options)
        assert found[0] == code and words in " ".join(found[2].split()), options
    assert HIT_SUFFIXES == writing.HIT_SUFFIXES and (tmp_path / "hits.html").read_text() == "mine"


def test_search__the_model_may_have_moved(run, index, videos, model, other_model, tmp_path):
    moved = shutil.copytree(model, tmp_path / "moved")
    hidden = model.with_name("hidden")
    model.rename(hidden)
    try:
        code, _, err = run("search", index, videos / "one.mp4")
        assert code == 1 and str(model) in err
        assert run("search", index, videos / "one.mp4", "--model", moved)[0] == 0
        code, _, err = run("search", index, videos / "one.mp4", "--model", other_model)
        assert code == 1 and "another model" in err
    finally:
        hidden.rename(model)


def test_index_info__tells_what_is_there(run, index, videos):
    code, out, _ = run("index-info", index, "--files", "--check")

    assert code == 0
    assert "32, every 0.25 s, each hears 0.48 s" in out and "4 of 4 files" in out and "2 bad" in out
    assert "all rows are there" in out and "line\\nbreak [bold].mp4: 0:00.0 to 0:02.0, 8 moments" in out
    assert "bad: " in out and "ZIP archive" in out
    status = json.loads(run("index-info", index, "--json")[1])
    assert (status["clips"], status["moments"], status["bad"]) == (4, 32, 2) and "entries" not in status


def test_bad_files__are_told_with_options_that_help(run, videos, model, tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copy(videos / "one.mp4", folder)
    truncate(write_clip(folder / "cut.mkv", seconds=2.0, audio=noise(2.0)), folder / "cut.mkv")

    code, _, out = run("index", folder, tmp_path / "index", "--model", model)
    assert code == 1
    _, told, _ = run("index-info", tmp_path / "index", "--files")

    for text in (out, told):
        assert "cut.mkv: is truncated" in text and "damaged=" not in text
        assert "--damaged keep" in text and "Add --retry-bad to read it again" in text
    code, out, _ = run("index", folder, tmp_path / "index", "--model", model, "--damaged", "keep", "--retry-bad")
    assert code == 0 and "1 added, 1 unchanged;" in out and " bad" not in out


def test_bad_input__is_one_plain_message(run, index, videos, model, other_model, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("x")
    damaged = shutil.copytree(index, tmp_path / "damaged")
    for file in (damaged / "moments.lance").glob("data/*.lance"):
        file.write_bytes(b"rubbish")
    one_tower = save(tmp_path / "one-tower", 0, modality="audio")
    video = videos / "one.mp4"
    cases = [
        (("search", tmp_path / "none", video), "no such index"),
        (("search", tmp_path / "empty", video), "holds no index"),
        (("search", tmp_path / "text.txt", video), "is a file"),
        (("search", damaged, video), "cannot be read"),
        (("index-info", damaged, "--check"), "cannot be read"),
        (("index-info", tmp_path / "none"), "no such index"),
        (("search", index, tmp_path / "none.mp4"), "no such file"),
        (("search", index, videos / "archive.mp4"), "ZIP archive"),
        (("search", index, videos / "playlist.mp4"), "playlist"),
        (("search", index, tmp_path / "text.txt"), "is text"),
        (("search", index, videos), "is a folder"),
        (("search", index, video, "--start", "90"), "choose an earlier one"),
        (("search", index, video, "--start", "1", "--end", "1"), "is empty"),
        (("search", index, video, "--approximate"), "no approximate index"),
        (("search", index, video, "--after", "2", "--before", "1"), "must come after"),
        (("search", index, video, "--model", tmp_path / "none"), "is not a folder"),
        (("search", index, video, "--model", one_tower), "tower alone"),
        (("index", tmp_path / "empty", tmp_path / "new", "--model", model), "holds no clips"),
        (("index", tmp_path / "none", tmp_path / "new", "--model", model), "no such file or folder"),
        (("index", videos, index, "--model", other_model, "--hop", "0.25"), "another model"),
        (("index", videos, index, "--model", model, "--hop", "1"), "a hop of 0.25"),
        (("index", videos, videos, "--model", model), "a folder of other files"),
        (("index", videos, tmp_path / "new", "--model", tmp_path / "empty"), "no config.json"),
        (("index", videos, tmp_path / "new", "--model", model, "--hop", "0"), "hop is 0"),
    ]
    for arguments, words in cases:
        code, out, err = run(*arguments)
        assert (code, out) == (1, ""), arguments
        assert words in err and err.splitlines()[-1].startswith("Error: "), (arguments, err)
    assert not (tmp_path / "new").exists() and not (tmp_path / "none").exists()
    for arguments in (("--start", "soon"), ("--by", "smell"), ("--top", "0"), ("--device", "toaster")):
        assert run("search", index, video, *arguments)[0] == 2, arguments


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory, model, index) -> Path:
    """A model with text that has the index's model inside: "a dog barks" is what is seen in the middle of two.mp4."""
    from cavmae_sync_hf.search import MomentStore

    store = MomentStore.open(index)
    rows = {entry.rows for entry in store.entries().values() if entry.path.endswith("two.mp4")}
    (vector,) = (
        row["video"]
        for batch in store.scan(["rows", "window", "video"])
        for row in batch.to_pylist()
        if row["rows"] in rows and row["window"] == 4
    )
    made, processor = text_model(CavMaeSyncModel.from_pretrained(model))
    teach(made, processor, {"a dog barks": torch.tensor(vector), "rain": -torch.tensor(vector)})
    return save_words(made, processor, tmp_path_factory.mktemp("models") / "words")


@pytest.mark.parametrize("asked", [("a dog barks",), ("--text", "a dog barks")])
def test_search__by_words(run, index, videos, text_folder, asked):
    code, out, _ = run("search", index, *asked, "--model", text_folder, "--in", "video", "--top", 1)

    assert code == 0
    lines = out.splitlines()
    assert lines[0] == '"a dog barks": text -> video (every moment compared)'
    *found, path = lines[2].split(maxsplit=4)
    assert found == ["1", "1.000", "0:01.0", "0:01.2"]
    assert path.startswith(str(videos))  # several of which show the same there


def test_search__by_words_in_an_order_and_beside_a_file(run, index, videos, text_folder):
    options = ("--model", text_folder, "--json")

    code, out, _ = run("search", index, "a dog barks", "--then", "rain", "--then-within", "1", *options)
    written = json.loads(run("search", index, "a dog barks, then rain", "--then-within", "1", *options)[1])

    result = json.loads(out)
    assert code == 0 and result["texts"] == ["a dog barks", "rain"] and result["query_windows"] == 2
    assert result["hits"] == written["hits"] and 0.5 <= result["hits"][0]["end"] - result["hits"][0]["start"] <= 1.25
    code, out, _ = run("search", index, videos / "two.mp4", "--text", "rain", "--text-weight", "0.1", *options)
    assert code == 0 and "text -> video" in json.loads(out)["pairs"]
    assert json.loads(out)["query"].endswith('two.mp4 with "rain"')


def test_search__by_words_writes_its_hits(run, index, text_folder, tmp_path):
    out = tmp_path / "hits.html"

    code, _, _ = run("search", index, "a dog barks", "--model", text_folder, "--out", out)

    assert code == 0 and "<h1>Hits for &quot;a dog barks&quot;</h1>" in out.read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("dog",), "has no text encoder, so it cannot be asked in words. Add --model MODEL to name a model with text"),
        (("dog.wav",), "dog.wav: no such file"),
        (("sounds/dog",), "sounds/dog: no such file"),
        ((" ", "--model", "TEXT"), "The text is ' '; say in words"),
        (("a dog " * 20, "--model", "TEXT"), "takes 32 at most; shorten it"),
        (("dog", "--model", "OTHER"), "was made with another model"),
        (("rain", "--start", "1", "--model", "TEXT"), "Words alone have no start, no end and no modality. Leave out"),
        ((), "name a file, or say in words what to find"),
        (("--then", "rain"), "--then goes with words"),
        (("dog", "--text", "rain"), "there is no file 'dog', and --text has words, too"),
    ],
)
def test_search__by_words_that_cannot_be(run, index, text_folder, tmp_path, arguments, says):
    places = {"TEXT": text_folder, "OTHER": tmp_path / "other"}
    if "OTHER" in arguments:
        save_words(*text_model(seed=9), places["OTHER"])

    code, out, err = run("search", index, *(places.get(argument, argument) for argument in arguments))

    assert code in (1, 2) and out == ""
    assert says in " ".join(err.split())
