"""Hits written as tables, as a page, and as timelines that OpenTimelineIO and its own reader of edit lists take."""

import base64
import csv
import io
import json
import re
import urllib.parse
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path

import av
import pytest
from PIL import Image

from cavmae_sync_hf.data.sources import read_source
from cavmae_sync_hf.model.errors_cavmae_sync import AlreadyExistsError, CavMaeSyncError, QueryError
from cavmae_sync_hf.search import Hit, SearchResult, cut_hits, write_hits
from helpers.clips import write_clip

otio = pytest.importorskip("opentimelineio")
HOSTILE = '<b>"&.mp4'


def found(*hits: tuple[Path, float, float]) -> SearchResult:
    return SearchResult(
        hits=tuple(
            Hit(str(path), start, end, score=0.9 - 0.1 * number, windows=2, clip_start=0.0, clip_end=4.0)
            for number, (path, start, end) in enumerate(hits)
        ),
        by="audio", find="video", pairs=("audio -> video",), exact=True, query="/sounds/bark.wav", query_start=0.0,
        query_seconds=1.0, query_windows=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    pal = write_clip(folder / "pal.mp4", seconds=4.0)
    with av.open(str(pal)) as old, av.open(str(folder / "Straße 日本.mov"), "w") as new:
        new.metadata["timecode"] = "10:00:00:00"
        streams = {stream: new.add_stream_from_template(stream) for stream in old.streams}
        for packet in old.demux():
            if packet.dts is not None:
                packet.stream = streams[packet.stream]
                new.mux(packet)
    ntsc = write_clip(folder / "ntsc.mov", seconds=70.0, fps=Fraction(30000, 1001), audio=False, size=(32, 32))
    radio = write_clip(folder / "radio.wav", seconds=4.0, video=False, audio_codec="pcm_s16le")
    hostile = pal.rename(folder / HOSTILE)
    return {
        "timed": folder / "Straße 日本.mov",
        "ntsc": ntsc,
        "radio": radio,
        "pal": hostile,
        "gone": folder / "gone.mp4",
    }


@pytest.fixture
def result(files) -> SearchResult:
    return found(
        (files["timed"], 1.0, 2.5), (files["ntsc"], 65.0, 66.0), (files["radio"], 1.0, 2.0), (files["pal"], 0.0, 1.0),
        (files["gone"], 1.0, 2.0), (files["timed"], 3.0, 4.0),
    )  # fmt: skip


def write(result, path, **options) -> tuple[list[Path], list[str]]:
    told: list[str] = []
    return write_hits(result, path, on_error=lambda name, error: told.append(Path(name).name), **options), told


def test_tables__hold_the_hits_and_serve_as_lists(result, files, tmp_path):
    (table,), _ = write(result, tmp_path / "hits.csv")
    (values,), _ = write(result, tmp_path / "new" / "hits.json")

    with open(table, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["path"], float(row["start"]), row["to"]) for row in rows][1] == (str(files["ntsc"]), 65.0, "1:06.0")
    assert json.loads(values.read_text(encoding="utf-8")) == result.to_dict()
    records = read_source(table).records
    assert [(record.path, record.start, record.end) for record in records] == [
        (hit.path, hit.start, hit.end) for hit in result
    ]
    (nothing,), _ = write(found(), tmp_path / "none.csv")
    assert nothing.read_text() == "hit,score,path,start,end,from,to,loudness\n"


def test_otio__gives_spans_of_the_files_back(result, files, tmp_path):
    (path,), told = write(result, tmp_path / "hits.otio")

    timeline = otio.adapters.read_from_file(str(path))
    video, audio = timeline.tracks
    assert told == ["gone.mp4"] and timeline.name == "Hits for bark.wav"
    assert [type(item).__name__ for item in video] == ["Clip", "Clip", "Gap", "Clip", "Clip", "Clip"]
    assert [type(item).__name__ for item in audio] == ["Clip", "Gap", "Clip", "Clip", "Clip", "Clip"]
    for number, clip in enumerate(video):
        hit = result[number]
        span = clip.trimmed_range()
        assert span.duration.to_seconds() == pytest.approx(hit.end - hit.start, abs=0.03)
        if number in (2, 4):
            continue
        media = clip.media_reference
        local = urllib.parse.unquote(media.target_url.removeprefix("file://"))
        assert local == hit.path and clip.metadata["cavmae_sync"]["score"] == hit.score
        in_file = span.start_time - media.available_range.start_time
        assert in_file.to_seconds() == pytest.approx(hit.start, abs=0.03) and in_file.rate == span.start_time.rate
        assert media.available_range.end_time_exclusive() >= span.end_time_exclusive()
    assert video[0].source_range.start_time.to_timecode() == "10:00:01:00"
    assert isinstance(video[4].media_reference, otio.schema.MissingReference)


def test_edl__one_list_for_each_frame_rate_with_right_time_codes(result, files, tmp_path):
    paths, told = write(result, tmp_path / "hits.edl")

    assert [path.name for path in paths] == ["hits.25.edl", "hits.29.97.edl"] and told == ["gone.mp4"]
    pal, ntsc = (path.read_text(encoding="utf-8") for path in paths)
    events = re.findall(r"(?m)^(\d{3})  (\w{1,8}) +(\S+) +C +(\S+) (\S+) (\S+) (\S+)$", pal)
    assert events[0] == ("001", "STRASSE", "AA/V", "10:00:01:00", "10:00:02:12", "01:00:00:00", "01:00:01:12")
    assert events[1] == ("002", "RADIO", "AA", "00:00:01:00", "00:00:02:00", "01:00:01:12", "01:00:02:12")
    assert [event[1] for event in events] == ["STRASSE", "RADIO", "B", "GONE", "STRASSE"]
    assert "FCM: NON-DROP FRAME" in pal and pal.count("* FILE NOT FOUND") == 1
    # At 29.97 frames a second two numbers are left out at the start of minute 1.
    assert "FCM: DROP FRAME" in ntsc and "V     C        00:01:05;00 00:01:06;00 01:00:00;00 01:00:01;00" in ntsc


def test_edl__is_read_by_opentimelineio(result, files, tmp_path):
    pytest.importorskip("otio_cmx3600_adapter")
    paths, _ = write(result, tmp_path / "hits.edl")

    for path, rate, expected in zip(paths, (25, 30000 / 1001), ((0, 3, 4, 5), (1,)), strict=True):
        timeline = otio.adapters.read_from_file(str(path), rate=rate)
        (video,) = (track for track in timeline.tracks if track.name == "V")
        clips = [item for item in video if isinstance(item, otio.schema.Clip)]
        assert [clip.name for clip in clips] == [Path(result[number].path).name for number in expected]
        for clip, number in zip(clips, expected, strict=True):
            hit = result[number]
            begin = hit.start + (36000 if hit.path == str(files["timed"]) else 0)
            assert clip.source_range.start_time.to_seconds() == pytest.approx(begin, abs=0.51 / rate)
            assert clip.source_range.duration.to_seconds() == pytest.approx(hit.end - hit.start, abs=1.01 / rate)


def test_edl__of_one_rate_is_one_list_and_reels_tell_files_apart(tmp_path):
    files = [write_clip(tmp_path / f"interview part {number}.mp4", seconds=0.4) for number in range(3)]
    files.append(write_clip(tmp_path / "日本.mp4", seconds=0.4))

    paths, told = write(found(*((file, 0.0, 0.2) for file in files)), tmp_path / "hits.edl")

    reels = re.findall(r"(?m)^\d{3}  (\S+)", paths[0].read_text(encoding="utf-8"))
    assert paths == [tmp_path / "hits.edl"] and told == [] and reels == ["INTERVIE", "INTERVI2", "INTERVI3", "REEL"]


class Page(HTMLParser):
    """Addresses and elements of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "poster", "srcset", "data")]


def test_page__is_whole_by_itself_and_plays_the_files(result, files, tmp_path):
    (path,), told = write(result, tmp_path / "hits.html")

    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert told == ["gone.mp4"] and "gone.mp4: no such file" in text
    media = [address for address in page.addresses if not address.startswith("data:image/jpeg;base64,")]
    assert {urllib.parse.urlsplit(address).scheme for address in media} == {"file"}
    assert not re.search(r"https?:|@import|url\(|<link", text)
    assert (page.tags.count("video"), page.tags.count("audio"), page.tags.count("article")) == (4, 1, 6)
    assert any(urllib.parse.unquote(address).endswith("Straße 日本.mov#t=1.000,2.500") for address in media)
    images = [address for address in page.addresses if address not in media]
    sizes = {Image.open(io.BytesIO(base64.b64decode(image.partition(",")[2]))).size for image in images}
    assert len(images) == 4 and sizes == {(360, 270), (270, 270)}
    assert "b" not in page.tags and "&lt;b&gt;" in text  # a file's name is no markup


def test_page__plays_clips_from_beside_it(result, tmp_path):
    clips = cut_hits(result, tmp_path / "clips", on_error=lambda *_: None)

    (path,), _ = write(result, tmp_path / "hits.html", clips=clips)
    (table,), _ = write(result, tmp_path / "hits.csv", clips=clips)

    sources = [address for address in Page(path.read_text(encoding="utf-8")).addresses if address.startswith("clips/")]
    assert len(sources) == 10  # a player and a link for each hit whose file is there
    for source in sources:
        name, _, span = source.partition("#t=")
        assert (tmp_path / urllib.parse.unquote(name)).is_file()
        start, end = map(float, span.split(","))
        assert 0 <= start < 1.0 and end - start == pytest.approx(1.0, abs=0.51)
    with open(table, encoding="utf-8", newline="") as file:
        assert [bool(row["clip"]) for row in csv.DictReader(file)] == [True, True, True, True, False, True]


@pytest.mark.parametrize("suffix", [".csv", ".json", ".html", ".edl", ".otio"])
def test_files__replace_nothing_unasked_and_are_whole_or_not_there(files, tmp_path, suffix):
    good, bad = found((files["pal"], 0.0, 1.0)), found((files["pal"], 0.0, 1.0), (files["gone"], 0.0, 1.0))
    path = tmp_path / f"hits{suffix}"
    path.write_text("mine")

    with pytest.raises(AlreadyExistsError, match="is there already"):
        write_hits(good, path)
    assert path.read_text() == "mine"
    if suffix not in (".csv", ".json"):  # which need no file
        with pytest.raises(CavMaeSyncError, match="gone.mp4"):
            write_hits(bad, path, overwrite=True)
        assert path.read_text() == "mine"
    assert write_hits(good, path, overwrite=True) == [path] and path.read_text() != "mine"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_files__of_other_kinds_are_refused(files, tmp_path):
    with pytest.raises(QueryError, match=r"hits.xml: hits are written as .csv, .json, .html, .edl, .otio"):
        write_hits(found((files["pal"], 0.0, 1.0)), tmp_path / "hits.xml")
    with pytest.raises(QueryError, match="0 clips for 1 hits"):
        write_hits(found((files["pal"], 0.0, 1.0)), tmp_path / "hits.csv", clips=[])
