# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What is said of clips: read from the columns of lists and from tables of spans, cut to segments, kept in shards."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from cavmae_sync_hf import DataError
from cavmae_sync_hf.data.captions import TimedText, cut_texts, texts_of_cell
from cavmae_sync_hf.data.dataset import CavMaeSyncCollator, CavMaeSyncDataset
from cavmae_sync_hf.data.prepare import prepare
from cavmae_sync_hf.data.shards import read_clip_table, read_index, read_shard
from cavmae_sync_hf.data.sources import read_source
from cavmae_sync_hf.data.streaming import CavMaeSyncStreamingDataset
from cavmae_sync_hf.model.errors_cavmae_sync import DataWarning
from helpers.clips import noise, write_clip
from helpers.tiny_shards import tiny_processor, write_shards

COMMAND = ("prepare",)
OPTIONS = {"num_frames": 4, "num_mel_bins": 16, "short_side": 36, "clips_per_shard": 2}
# Two segments of one file, whose captions are its rows, a whole file, and one of which nothing is said.
LIST = """path,start,end,caption
one.mp4,0,1,A dog 🐶 barks
one.mp4,0,1,"[""first"", ""second, überall""]"
one.mp4,1,2,
two.mp4,,,今日は
three.mp4,,,
"""
WORDS = """part,file,word,start,end
train,one.mp4,lay,0.5,1.25
train,one.mp4,red,1.5,1.75
train,two.mp4,red,0,0.5
train,two.mp4,red,1,9
train,two.mp4,late,3,3.5
train,nine.mp4,late,3,3.5
"""
SAID = {
    "one_0-1": [("A dog 🐶 barks", []), ("first", []), ("second, überall", []), ("lay", [[0.5, 1.0]])],
    "one_1-2": [("lay", [[0.0, 0.25]]), ("red", [[0.5, 0.75]])],
    "two": [("今日は", []), ("red", [[0.0, 0.5], [1.0, 2.0]])],
    "three": [],
}


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("captioned")
    for name in ("one", "two", "three"):
        write_clip(folder / f"{name}.mp4", seconds=2, audio=noise(2.0))
    (folder / "list.csv").write_text(LIST, encoding="utf-8")
    (folder / "words.csv").write_text(WORDS)
    return folder


@pytest.fixture(scope="module")
def prepared(videos, tmp_path_factory):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        summary = prepare(
            videos / "list.csv", tmp_path_factory.mktemp("set") / "out", caption_column="caption",
            spans=videos / "words.csv", workers=1, **OPTIONS,
        )  # fmt: skip
    return summary, [str(one.message) for one in told if isinstance(one.message, DataWarning)]


def said(texts) -> list:
    return [(one.text, [list(span) for span in one.spans]) for one in texts]


def test_prepare__keeps_captions_of_segments_and_files(prepared):
    summary, told = prepared

    rows = read_clip_table(summary.folder)
    records = [clip.info for path in summary.index.paths for clip in read_shard(path)]
    for found in (rows, records):
        captions = {row["id"]: [tuple(one.values()) for one in row.get("captions", [])] for row in found}
        assert captions == SAID
    assert (summary.captions, summary.with_captions) == (8, 3) and "8 captions of 3 clips" in str(summary)
    assert "| captions | 8, of 3 of the clips |" in (summary.folder / "README.md").read_text()
    assert len(told) == 3
    for words in (
        "1 of 6 texts are about no clip here, but about 'nine.mp4'",
        "1 of 4 clips have no caption: 'three'",
    ):
        assert any(words in one for one in told), told
    assert any("1 clip of 4 had texts with times after their end, which were left out: 'two'" in one for one in told)


def test_prepare__without_captions_writes_what_it_always_wrote(videos, tmp_path):
    summary = prepare([videos / "two.mp4"], tmp_path / "out", workers=1, **OPTIONS)

    (clip,) = read_shard(summary.index.paths[0])
    texts = [clip.info, *read_clip_table(summary.folder), json.loads((summary.folder / "index.json").read_text())]
    assert not any("captions" in facts for facts in texts)
    assert "caption" not in (summary.folder / "README.md").read_text()
    job = json.loads((summary.folder / ".prepare" / "job.json").read_text())
    assert not any("caption" in name for name in job["options"])


def test_prepare__others_read_the_shards(prepared):
    datasets = pytest.importorskip("datasets")
    summary, _ = prepared
    for rows in (
        datasets.load_dataset(str(summary.folder), split="train", streaming=True),
        datasets.load_dataset(
            "webdataset", data_files=str(summary.folder / "train-*.tar"), split="train", streaming=True
        ),
    ):
        found = {row["json"]["id"]: row["json"].get("captions") or [] for row in rows}
        assert {name: [(one["text"], one["spans"]) for one in texts] for name, texts in found.items()} == SAID
    # What versions before captions knew of the index is all there is in it.
    assert read_index(summary.folder).clips == 4


def test_prepare__resumed_gives_the_same_bytes(prepared, videos, tmp_path):  # engines: test_prepare_engines
    summary, _ = prepared
    options = {"caption_column": ["caption"], "spans": videos / "words.csv", "workers": 1} | OPTIONS

    with pytest.warns(DataWarning):
        prepare(videos / "list.csv", tmp_path / "out", **options)
    (tmp_path / "out" / "train-00001.tar").unlink()
    with pytest.warns(DataWarning) as told:
        again = prepare(videos / "list.csv", tmp_path / "out", **options)

    assert again.made == 2 and any("after their end" in str(one.message) for one in told)
    files = [sorted(path.glob("[!.]*")) for path in (summary.folder, again.folder)]
    assert [path.name for path in files[0]] == [path.name for path in files[1]]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    assert (again.captions, again.with_captions) == (8, 3)


def test_prepare__other_captions_are_another_set(prepared, videos, tmp_path):
    summary, _ = prepared
    (tmp_path / "words.csv").write_text(WORDS.replace("lay", "bin"))
    with (
        pytest.warns(DataWarning),
        pytest.raises(DataError, match="was begun with another list of clips: 2 changed .'one_0-1', 'one_1-2'"),
    ):
        prepare(
            videos / "list.csv", summary.folder, caption_column="caption", spans=tmp_path / "words.csv", workers=1,
            **OPTIONS,
        )  # fmt: skip


def test_command__takes_columns_and_spans(videos, tmp_path, run):
    words = ["--caption-column", "caption", "--spans", videos / "words.csv", "--num-frames", "2", "--workers", "1"]

    code, out, err = run(videos / "list.csv", tmp_path / "out", *words)
    other, _, refused = run(videos / "list.csv", tmp_path / "other", "--caption-column", "captoin")

    assert code == 0, err
    assert "8 captions of 3 clips" in out and "Warning:" in err and "'nine.mp4'" in err
    assert other == 1 and "has no column 'captoin'; it has path, start, end, caption." in refused


def test_data_sets__return_captions_and_the_collator_on_request(prepared, videos):
    folder, processor = prepared[0].folder, tiny_processor()
    with pytest.warns(DataWarning):
        listed = read_source(videos / "list.csv", caption_column="caption", spans=videos / "words.csv")
    for source in (folder, listed):
        clips = CavMaeSyncDataset(source, processor)
        samples = [clips[number] for number in range(4)]
        for one in samples:
            spans = [list(map(list, own)) for own in one["caption_spans"]]
            assert list(zip(one["captions"], spans, strict=True)) == SAID[one["clip_id"]]
    assert {name: said(texts) for name, texts in zip(clips.clip_ids(), clips.captions(), strict=True)}["one_1-2"] == (
        SAID["one_1-2"]
    )
    streamed = CavMaeSyncStreamingDataset(folder, processor, shuffle=False)
    assert [one["captions"] for one in streamed] == [one["captions"] for one in samples]
    assert not {"captions", "caption_spans"} & CavMaeSyncCollator(processor)(samples).keys()
    batch = CavMaeSyncCollator(processor, with_captions=True)(samples)
    assert batch["captions"][1] == ["lay", "red"] and batch["caption_spans"][1] == [[(0.0, 0.25)], [(0.5, 0.75)]]


def test_older_shards__have_no_captions(tmp_path):
    clips = CavMaeSyncDataset(write_shards(tmp_path / "shards", [2]), tiny_processor())
    assert clips.captions() == [[], []]
    assert clips[0]["captions"] == clips[0]["caption_spans"] == []


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        (" a  dog\nbarks ", [("a dog barks", [])]),
        (None, []),
        (float("nan"), []),
        ("", []),
        ([], []),
        ("[]", []),
        (["rain", "", None], [("rain", [])]),
        (np.array(["rain", "sun"]), [("rain", []), ("sun", [])]),
        ('["rain", "sun"]', [("rain", []), ("sun", [])]),
        ("['rain', \"a dog's bark\"]", [("rain", []), ("a dog's bark", [])]),
        ("[music] a man sings", [("[music] a man sings", [])]),
        ('["rain", sun', [('["rain", sun', [])]),
        ({"text": "rain", "start": 1, "end": "1:02"}, [("rain", [[1.0, 62.0]])]),
        ({"text": ["a", "b"], "start": [0, None], "end": [1, None]}, [("a", [[0.0, 1.0]]), ("b", [])]),
        ('[{"word": "lay", "onset": 0.5, "offset": 0.85}]', [("lay", [[0.5, 0.85]])]),
        ([{"text": "rain", "spans": [[3, 4], [1, 2]]}], [("rain", [[1.0, 2.0], [3.0, 4.0]])]),
        ("\ud800odd", [("\\ud800odd", [])]),
    ],
    ids=lambda value: None,
)
def test_cells__hold_texts_in_several_forms(value, texts):
    assert said(texts_of_cell(value, "row 1")) == texts


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (3, "row 1 has the caption 3; captions are texts"),
        ({"start": 1, "end": 2}, "row 1 has a caption with start, end; texts with times have text, start and end"),
        ({"text": "a", "start": 1}, "row 1 has a start alone; give both, or neither"),
        ({"text": "a", "start": 2, "end": 2}, "row 1 ends .2 s. before it starts"),
        ({"text": "a", "start": "soon", "end": 2}, "row 1 has the start 'soon'; times are seconds"),
        ({"text": "a", "spans": [3]}, "row 1 has the spans .3.; they are a list"),
        ({"text": ["a", "b"], "start": [1], "end": [2]}, "row 1 has 2 texts, 1 starts and 1 ends"),
    ],
    ids=lambda value: None,
)
def test_cells__that_are_no_captions_are_refused(value, words):
    with pytest.raises(DataError, match=words):
        texts_of_cell(value, "row 1")


def test_cut_texts__shifts_to_the_segment():
    texts = [TimedText("a", ((0.0, 2.0), (5.0, 6.0))), TimedText("b", ((9.0, 10.0),)), TimedText("c")]
    assert cut_texts(texts, 1, 5.5) == (TimedText("a", ((0.0, 1.0), (4.0, 4.5))), TimedText("c"))
    assert cut_texts(texts, None, None) == tuple(texts)
    assert cut_texts(texts, 10, None) == (TimedText("c"),)


AUDIOCAPS = "audiocap_id,youtube_id,start_time,caption\n1,abc,30,rain falls\n2,abc,30,it rains\n3,xyz,0,a dog\n"
VALOR = '[{"video_id": "abc_30_40", "desc": "rain falls"}]'
MSRVTT = {
    "videos": [{"video_id": "video0", "split": "train"}, {"video_id": "video1", "split": "test"}],
    "sentences": [
        {"video_id": "video0", "caption": "a man cooks", "sen_id": 0},
        {"video_id": "video0", "caption": "a cook", "sen_id": 1},
        {"video_id": "video1", "caption": "a dog", "sen_id": 2},
    ],
}


@pytest.mark.parametrize(
    ("name", "text", "files", "options", "clips"),
    [
        (
            "audiocaps.csv", AUDIOCAPS, ["abc_30_40", "xyz"], {"caption_column": "caption"},
            {"abc": (None, ["rain falls", "it rains"]), "xyz": (10.0, ["a dog"])},
        ),
        ("valor.json", VALOR, ["abc_30_40"], {"caption_column": "desc"}, {"abc_30_40": (None, ["rain falls"])}),
        (
            "msrvtt.json", json.dumps(MSRVTT), ["video0", "video1"], {"caption_column": "caption", "split": "train"},
            {"video0": (None, ["a man cooks", "a cook"])},
        ),
        (
            "two.jsonl", '{"path": "video0.mp4", "a": "x", "b": ["y", "x"]}\n', ["video0"],
            {"caption_column": ["a", "b"]}, {"video0": (None, ["x", "y"])},
        ),
    ],
    ids=["audiocaps", "valor", "msr-vtt", "two columns"],
)  # fmt: skip
def test_lists_of_others__are_read(tmp_path, name, text, files, options, clips):
    for stem in files:
        (tmp_path / f"{stem}.mp4").write_bytes(b"")
    (tmp_path / name).write_text(text)

    found = read_source(tmp_path / name, **options).records

    assert {one.id: (one.end, [text.text for text in one.captions]) for one in found} == clips


def test_columns_of_parquet_and_data_sets(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict(
        {
            "file": ["a.mp4", "b.mp4"],
            "captions": [["rain", "it rains"], []],
            "events": [[{"text": "drop", "start": 0.0, "end": 1.0}], [{"text": "drop", "start": 1.0, "end": 2.0}]],
        }
    )
    rows.to_parquet(str(tmp_path / "list.parquet"))
    wanted = [[("rain", []), ("it rains", []), ("drop", [[0.0, 1.0]])], [("drop", [[1.0, 2.0]])]]
    for source in (rows, tmp_path / "list.parquet"):
        found = read_source(source, caption_column=["captions", "events"])
        assert [said(one.captions) for one in found.records] == wanted


def test_segments_that_are_cut_already__have_the_times_of_the_list(tmp_path):
    (tmp_path / "abc_30_40.mp4").write_bytes(b"")
    (tmp_path / "list.csv").write_text("id,start,end\nabc,30,40\n")
    (tmp_path / "words.csv").write_text("id,start,end,text\nabc,29,31,rain\nabc,35,36,sun\nabc,45,46,late\n")

    (record,) = read_source(tmp_path / "list.csv", spans=tmp_path / "words.csv").records

    assert record.start is None and said(record.captions) == [("rain", [[0.0, 1.0]]), ("sun", [[5.0, 6.0]])]


@pytest.mark.parametrize(
    "name", ["x/a.mp4", "x/a", "/elsewhere/x/a.mp4", "x\\a.mp4", "./x/a.MP4", "x/a.wav"], ids=lambda name: name
)
def test_tables__name_files_with_or_without_folder_and_suffix(tmp_path, name):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.mp4").write_bytes(b"")
    (tmp_path / "words.csv").write_text(f"file,text\n{name},rain\n")
    with pytest.warns(DataWarning, match="1 of 2 clips have no caption: 'y/a'"):
        found = read_source(tmp_path, spans=tmp_path / "words.csv").records
    assert {one.id: said(one.captions) for one in found} == {"x/a": [("rain", [])], "y/a": []}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file,start,end\nx/a.mp4,0,1\n", "no column says the text, it has file, start, end; name it 'text'"),
        ("movie,text\nx/a.mp4,rain\n", "no column says the clip, it has movie, text"),
        ("file,text\nx/a.mp4,  \n", "row 1 has no text; fill it or take the row out"),
        ("file,text\n,rain\n", "row 1 has no name of a clip"),
        ("file,start,end,text\nx/a.mp4,2,1,rain\n", "row 1 ends .1 s. before it starts .2 s."),
        ("file,start,end,text\nx/a.mp4,2,,rain\n", "row 1 has a start alone"),
        ("file,start,end,text\nx/a.mp4,nan,soon,rain\n", "row 1 has the start 'nan'"),
        ("file,text\na.mp4,rain\n", "the name 'a.mp4' may mean x/a.mp4 or y/a.mp4; write the folder"),
        ("file,text\nz.mp4,rain\n", "none of its 1 rows is about one of the 2 clips: it has 'z.mp4', the clips are"),
        ("file,text\n", "has no rows|holds no rows|no column says"),
        ("file,text\nx/a.mp4,rain,3\n", "row 2 has 3 values for 2 columns"),
    ],
    ids=lambda value: None,
)
def test_tables__are_checked(tmp_path, text, words):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.mp4").write_bytes(b"")
    (tmp_path / "words.csv").write_text(text)
    with pytest.raises(DataError, match=words):
        read_source(tmp_path, spans=tmp_path / "words.csv")


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        ("list.csv", {}, "ids stand for several clips: 'one_0-1'.*name their column .option `caption_column`"),
        (".", {"caption_column": "caption"}, "without a list has no use for the option `caption_column`"),
        ("empty.csv", {"caption_column": "caption"}, "None of the 1 clips has a caption in 'caption'; fill it"),
        ("list.csv", {"spans": "list.mp3", "caption_column": "caption"}, "a table of texts ends in .csv"),
        ("list.csv", {"spans": "nowhere.csv", "caption_column": "caption"}, "nowhere.csv: no such file"),
    ],
    ids=["rows of one clip", "a folder", "empty", "no table", "no file"],
)
def test_captions__that_cannot_be_are_refused(videos, tmp_path, source, options, words):
    (videos / "empty.csv").write_text("path,caption\none.mp4,\n")
    with pytest.raises(DataError, match=words):
        read_source(videos / source, **options)
