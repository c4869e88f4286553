"""Folders, patterns and the usual lists of clips become the same kind of records."""

import json
from pathlib import Path

import pytest

from cavmae_sync_hf import DataError
from cavmae_sync_hf.data.sources import describe_difference, read_source


@pytest.fixture
def folder(tmp_path) -> Path:
    """Names are all that a list looks at, so empty files do."""
    for name in ("b.mp4", "a.MKV", "dog/one.mp4", "dog/two.webm", "cat/one.mp4", "notes.txt", ".hidden.mp4"):
        path = tmp_path / "videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "videos"


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def ids(clips) -> list[str]:
    return [record.id for record in clips.records]


def test_read_source__folder_is_sorted_and_relative(folder):
    clips = read_source(folder)

    assert ids(clips) == ["a", "b", "cat/one", "dog/one", "dog/two"]
    assert [record.source for record in clips.records] == [
        "a.MKV",
        "b.mp4",
        "cat/one.mp4",
        "dog/one.mp4",
        "dog/two.webm",
    ]
    assert Path(clips.records[2].path) == folder / "cat" / "one.mp4"
    assert clips.label_names is None and not any(record.labels for record in clips.records)


def test_read_source__same_stem_keeps_the_suffix(folder):
    (folder / "b.avi").touch()

    assert ids(read_source(folder))[:3] == ["a", "b.avi", "b.mp4"]


def test_read_source__audio_files_where_they_are_of_use(folder, tmp_path):
    for name in ("rain.WAV", "dog/bark.mp3", "b.flac", ".hidden.wav", "notes.txt"):
        (folder / name).touch()

    with_audio = ids(read_source(folder))
    assert with_audio == ["a", "b", "cat/one", "dog/bark", "dog/one", "dog/two", "rain"]  # b.flac is that of b.mp4
    assert ids(read_source(f"{folder}/*.WAV")) == ["rain"]
    assert set(with_audio) - set(ids(read_source(folder, audio_files=False))) == {"dog/bark", "rain"}
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "rain.ogg").touch()
    with pytest.raises(DataError, match="no clips with video, only audio .*rain.ogg"):
        read_source(tmp_path / "alone", audio_files=False)


def test_read_source__labels_by_folder(folder):
    clips = read_source(folder, folder_labels=True)

    assert clips.label_names == ["cat", "dog"]
    assert [record.labels for record in clips.records] == [(), (), (0,), (1,), (1,)]


def test_read_source__pattern_file_and_address(folder):
    assert ids(read_source(f"{folder}/**/*.mp4")) == ["b", "cat/one", "dog/one"]
    assert ids(read_source(f"{folder}/dog/*")) == ["one", "two"]
    assert ids(read_source(folder / "b.mp4")) == ["b"]
    assert read_source(f"file://{folder}").lines() == read_source(folder).lines()


def test_read_source__moved_folder_has_the_same_digest(folder, tmp_path):
    digest = read_source(folder).digest()
    folder.rename(tmp_path / "moved")

    assert read_source(tmp_path / "moved").digest() == digest
    (tmp_path / "moved" / "c.mp4").touch()
    assert read_source(tmp_path / "moved").digest() != digest


def test_read_source__csv_with_a_header(folder, tmp_path):
    table = write(tmp_path / "t.csv", "Path,Start,End,Label\nb.mp4,1.5,4,dog\nb.mp4,4,6,\ncat/one.mp4,,,cat|dog\n")

    clips = read_source(table, media=folder)

    assert ids(clips) == ["b_1.5-4", "b_4-6", "cat/one"]
    assert [(record.start, record.end) for record in clips.records] == [(1.5, 4.0), (4.0, 6.0), (None, None)]
    assert [record.labels for record in clips.records] == [(1,), (), (0, 1)]
    assert Path(clips.records[0].path) == folder / "b.mp4"


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet"])
def test_read_source__same_list_in_other_formats(folder, tmp_path, suffix):
    rows = [
        {"id": "x", "path": "b.mp4", "start": 0.0, "end": 2.0, "labels": ["dog", "cat"]},
        {"id": "y", "path": "cat/one.mp4", "start": None, "end": None, "labels": []},
    ]
    table = tmp_path / f"list.{suffix}"
    if suffix == "json":
        write(table, json.dumps(rows))
    elif suffix == "jsonl":
        write(table, "\n".join(map(json.dumps, rows)))
    else:
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.Table.from_pylist(rows), table)

    clips = read_source(table, media=folder)

    assert [(record.id, record.start, record.end, record.labels) for record in clips.records] == [
        ("x", 0.0, 2.0, (0, 1)),
        ("y", None, None, ()),
    ]


def test_read_source__audioset(tmp_path):
    media = tmp_path / "media"
    media.mkdir()
    for name in ("--aa.mp4", "bb_20.000_30.000.mp4", "Ycc.mkv", "dd_000030.mp4"):
        (media / name).touch()
    table = write(
        tmp_path / "eval_segments.csv",
        "# Segments csv created Sun Mar  5 10:54:31 2017\n"
        "# num_ytids=5, num_segs=5\n"
        "# YTID, start_seconds, end_seconds, positive_labels\n"
        '--aa, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n'
        'bb, 20.000, 30.000, "/m/09x0r"\n'
        'cc, 0.000, 10.000, "/m/0xyz"\n'
        'dd, 30.000, 40.000, "/m/0xyz"\n'
        'gone, 0.000, 10.000, "/m/0xyz"\n',
    )
    names = write(
        tmp_path / "class_labels_indices.csv",
        'index,mid,display_name\n0,/m/09x0r,"Speech, human"\n1,/t/dd00088,Gush\n2,/m/0xyz,Dog\n',
    )

    clips = read_source(table, media=media, labels=names)

    assert clips.label_names == ["Speech, human", "Gush", "Dog"]
    assert [record.labels for record in clips.records] == [(0, 1), (0,), (2,), (2,), (2,)]
    whole, cut, other, padded, gone = clips.records
    assert (whole.source, whole.start, whole.end, whole.maybe_cut) == ("--aa.mp4", 30.0, 40.0, True)
    assert (cut.source, cut.start, cut.end, cut.maybe_cut) == ("bb_20.000_30.000.mp4", None, None, False)
    assert other.source == "Ycc.mkv" and (padded.source, padded.start) == ("dd_000030.mp4", None)
    assert gone.path is None and "no media file has this id" in gone.problem
    assert read_source(table, media=media, cut="done").records[0].start is None
    assert not read_source(table, media=media, cut="needed").records[0].maybe_cut
    assert read_source(table, media=media).label_names == ["/m/09x0r", "/m/0xyz", "/t/dd00088"]


def test_read_source__vggsound(tmp_path):
    media = tmp_path / "media"
    media.mkdir()
    (media / "aa_000001.mp4").touch()
    (media / "cc.mp4").touch()
    table = write(
        tmp_path / "vggsound.csv",
        'aa,1,"playing violin, fiddle",test\nbb,30,people marching,train\n'
        "aa,70,people marching,test\ncc,5,people marching,test\n",
    )

    clips = read_source(table, media=media, split="test")

    assert ids(clips) == ["aa_1-11", "aa_70-80", "cc"]
    assert clips.label_names == ["people marching", "playing violin, fiddle"]
    assert clips.records[0].labels == (1,) and clips.records[0].source == "aa_000001.mp4"
    assert (clips.records[1].start, clips.records[1].end) == (70.0, 80.0) and clips.records[1].problem
    assert clips.records[0].start is None and clips.records[2].maybe_cut


def test_read_source__published_json(tmp_path):
    entry = {"video_id": "v", "wav": "/data/wav/v.wav", "video_path": "/data/frames", "labels": "/m/01,/m/02"}
    table = write(tmp_path / "train.json", json.dumps({"data": [entry]}))

    (record,) = read_source(table).records

    assert record.frames == "/data/frames/frame_{}/v.jpg" and record.audio == "/data/wav/v.wav"
    assert record.labels == (0, 1)


def test_read_source__labels_with_names_keep_their_numbers(tmp_path):
    rows = [{"path": "a.mp4", "labels": [4, 2], "label_names": ["hum", "bark"]}, {"path": "b.mp4", "labels": [0]}]
    table = write(tmp_path / "metadata.jsonl", "\n".join(map(json.dumps, rows)))

    for source in (table, tmp_path):  # a folder's own table is read
        clips = read_source(source)
        assert [record.labels for record in clips.records] == [(2, 4), (0,)]
        assert clips.label_names == ["0", "1", "bark", "3", "hum"]


def test_read_source__made_world(tmp_path):
    from cavmae_sync_hf.syncworld import CLASS_NAMES, make_world, read_truth

    make_world(tmp_path, clips=2, size=64, workers=1)

    clips = read_source(tmp_path / "train")

    truth = list(read_truth(tmp_path / "train"))
    assert [sorted(row["labels"]) for row in truth] == [list(record.labels) for record in clips.records]
    assert clips.label_names == list(CLASS_NAMES)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("t.csv", "path,start,end\na.mp4,5,2\n", "row 1 goes from 5 s to 2 s"),
        ("t.csv", "path,start\na.mp4,soon\n", "row 1 has the start 'soon'"),
        ("t.csv", "path,label\na.mp4\n", "row 2 has 1 values for 2 columns"),
        ("t.csv", "one,two,three\n1,2,3\n", "which column is the file"),
        ("t.csv", "path\n", "holds no rows"),
        ("t.json", '{"rows": []}', 'key "data"'),
        ("t.json", "{", "not valid JSON"),
        ("t.jsonl", '{"label": 1}\n', "names no clip"),
        ("t.csv", "id,path\nx,a.mp4\nx,b.mp4\n", "1 ids stand for several clips: 'x'"),
    ],
)
def test_read_source__wrong_lists_are_refused(tmp_path, name, text, words):
    with pytest.raises((DataError, DataError), match=words):
        read_source(write(tmp_path / name, text))


def test_read_source__unknown_label_is_refused(tmp_path):
    table = write(tmp_path / "t.csv", "path,label\na.mp4,dgo\n")

    with pytest.raises(DataError, match="'dgo' is not among the 2 label names"):
        read_source(table, labels=["cat", "dog"])


@pytest.mark.parametrize("source", ["no/such/folder/here", "/nowhere", "missing.csv", "nowhere://bucket/x", 5])
def test_read_source__what_is_not_there_is_refused(source):
    with pytest.raises(DataError):
        read_source(source)


def test_read_source__folder_without_videos_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no clips"):
        read_source(tmp_path)


def test_describe_difference__names_what_changed(folder):
    clips = read_source(folder)
    before = clips.lines()
    fewer = before[1:]
    changed = [before[0].replace('"labels": []', '"labels": [7]'), *before[1:]]

    assert describe_difference(before, fewer) == "1 gone ('a')"
    assert describe_difference(fewer, before) == "1 new ('a')"
    assert describe_difference(before, changed) == "1 changed ('a')"
    assert describe_difference(before, before[::-1]) == "the same clips in another order"


def test_read_source__published_folder_with_a_dot_is_a_folder(tmp_path):
    rows = [
        {"video_id": "v", "wav": "/d/v.wav", "video_path": "/d/fr_v1.0"},
        {"video_id": "w", "wav": "/d/w.wav", "video_path": "/d/w.mp4"},
    ]

    frames, file = read_source(write(tmp_path / "train.json", json.dumps({"data": rows}))).records

    assert frames.frames == "/d/fr_v1.0/frame_{}/v.jpg" and frames.path is None
    assert file.path == "/d/w.mp4" and file.frames is None


def test_read_source__rows_that_begin_with_a_hash_are_rows(folder, tmp_path):
    table = write(tmp_path / "t.csv", "# a comment\n\nid,path\n#1,b.mp4\n# two,dog/one.mp4\n")

    assert ids(read_source(table, media=folder)) == ["#1", "# two"]


def test_read_source__line_breaks_within_values(folder, tmp_path):
    table = write(tmp_path / "t.csv", 'path,label\nb.mp4,"two\nlines"\ndog/one.mp4,a\u2028b\n')
    lines = write(
        tmp_path / "t.jsonl", '{"path": "b.mp4", "label": "a\u2028b"}\r\n{"path": "a.MKV", "label": "c\x85"}\n'
    )

    assert read_source(table, media=folder).label_names == ["a\u2028b", "two\nlines"]
    assert read_source(lines, media=folder).label_names == ["a\u2028b", "c"]


def test_read_source__close_segments_have_names_of_their_own(tmp_path):
    table = write(tmp_path / "t.csv", "path,start,end\na.mp4,12345.671,12346\na.mp4,12345.672,12346\n")

    assert ids(read_source(table)) == ["a_12345.671-12346", "a_12345.672-12346"]


def test_read_source__numbers_in_whatever_form(tmp_path):
    table = write(tmp_path / "t.csv", 'path,label\na.mp4,1.0\nb.mp4,\nc.mp4,10\nd.mp4,"2.0,1"\n')

    clips = read_source(table)

    assert [record.labels for record in clips.records] == [(1,), (), (10,), (1, 2)] and clips.label_names is None
    rows = [{"path": "a.mp4", "labels": 1.0}, {"path": "b.mp4", "labels": [2, 0]}]
    assert [record.labels for record in read_source(rows).records] == [(1,), (0, 2)]
    assert read_source(table, labels=[str(chr(97 + number)) for number in range(11)]).records[0].labels == (1,)


@pytest.mark.parametrize("label", ["-1", -1, "0.5", 0.5, True, {"dog": 1}, "dog", float("inf")])
def test_read_source__labels_that_are_no_numbers_are_refused(label):
    rows = [{"path": "a.mp4", "label": 2}, {"path": "b.mp4", "label": label}]

    with pytest.raises(DataError, match=r"row 2: has the label .*label names in order \(option `labels`\)"):
        read_source(rows)


def test_read_source__folders_called_by_digits_and_names(tmp_path):
    for name in ("1", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.mp4").touch()

    assert read_source(tmp_path, folder_labels=True).label_names == ["1", "dog"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("names.txt", "cat\ndog\ncat\n", r"names.txt: holds 'cat' more than once"),
        ("names.json", "[", r"names.json: the label names cannot be understood"),
        ("names.csv", "index,display_name\none,Dog\n", r"names.csv: the label names cannot be understood"),
    ],
)
def test_read_source__wrong_label_files_are_named(folder, tmp_path, name, text, words):
    with pytest.raises(DataError, match=words):
        read_source(folder, labels=write(tmp_path / name, text))


def test_read_source__broken_parquet_is_named(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "list.parquet").write_bytes(b"PAR1 broken PAR1")

    with pytest.raises((DataError, DataError), match=r"list.parquet: is not a whole Parquet file"):
        read_source(tmp_path / "list.parquet")


def test_read_source__sizes_are_part_of_the_list(folder):
    digest = read_source(folder).digest()
    (folder / "b.mp4").write_bytes(b"other")

    assert read_source(folder).digest() != digest
    assert [record.size for record in read_source([folder / "b.mp4"]).records] == [5]


def test_read_source__options_without_effect_are_refused(folder, tmp_path):
    table = write(tmp_path / "t.csv", "path\nb.mp4\n")

    for source, options in (
        (folder, {"split": "train"}),
        (f"{folder}/*.mp4", {"media": folder}),
        (table, {"folder_labels": True}),
    ):
        with pytest.raises(DataError, match=f"has no use for the option `{next(iter(options))}`"):
            read_source(source, **options)
