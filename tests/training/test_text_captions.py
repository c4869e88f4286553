# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""`cavmae-sync text` on what is said of clips: in shards, in tables, in data sets; and what it refuses or tells."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, BertModel

from cavmae_sync_hf import (
    CavMaeSyncTextDualEncoderModel,
    DataError,
    TrainingError,
)
from cavmae_sync_hf.data.dataset import CavMaeSyncDataset
from cavmae_sync_hf.data.prepare import prepare
from cavmae_sync_hf.data.sources import read_source
from cavmae_sync_hf.model.errors_cavmae_sync import DataWarning
from cavmae_sync_hf.training.captions import (
    Caption,
    CaptionSet,
    choose_captions,
    load_tokenizer,
    open_captioned,
    read_captions,
    syncworld_captions,
    tell_cut_texts,
)
from cavmae_sync_hf.training.text_data import KnownTexts, TextSet
from cavmae_sync_hf.training.text_metrics import evaluate_text
from helpers.clips import noise, write_clip
from helpers.tiny import tiny_text_config, tiny_tokenizer
from helpers.tiny_shards import tiny_processor, write_shards
from helpers.words import save_parts

COMMAND = ("text",)
# A list of two segments of a file and of two whole files, with their captions, and words with times.
LIST = """path,start,end,caption
a.mp4,0,1,a dog barks
a.mp4,0,1,rain
a.mp4,1,2,the siren
b.mp4,,,A dog barks.
c.mp4,,,
"""
WORDS = "file,start,end,text\na.mp4,0.5,1.5,drum\nb.mp4,1,2,drum\nb.mp4,1,2,bell\n"


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """A model, a text encoder, three videos with a list and a table, and shards of them."""
    folder = tmp_path_factory.mktemp("text-captions")
    save_parts(folder)
    (folder / "videos").mkdir()
    for name in "abc":
        write_clip(folder / "videos" / f"{name}.mp4", seconds=2, audio=noise(2.0))
    (folder / "list.csv").write_text(LIST)
    (folder / "words.csv").write_text(WORDS)
    with pytest.warns(DataWarning, match="1 of 4 clips have no caption: 'c'"):
        prepare(
            folder / "list.csv", folder / "shards", media=folder / "videos", caption_column="caption",
            spans=folder / "words.csv", num_frames=4, num_mel_bins=16, short_side=36, workers=1,
        )  # fmt: skip
    return folder


def test_evaluation__takes_any_clip_of_which_a_caption_is_true(desk):
    """Clips and words as vectors on axes; clips 0 and 1 are the same, and each has the one caption."""
    model = CavMaeSyncTextDualEncoderModel.from_av_text_pretrained(desk / "model", desk / "encoder").eval()
    texts = KnownTexts(model, tiny_tokenizer())
    rng = torch.Generator().manual_seed(0)
    moments = torch.nn.functional.normalize(torch.randn(3, 4, 32, generator=rng), dim=-1)
    moments[1] = moments[0]
    there = torch.ones(3, 4, dtype=torch.bool)
    rows = [["a dog"], ["a dog"], []]

    def recall(rows: list[list[str]]) -> dict:
        captions = CaptionSet([[Caption(text, text, spans=((0.0, 2.0),)) for text in row] for row in rows], rows)
        clips = TextSet(
            {"audio": moments, "video": moments}, {"audio": there, "video": there},
            times=np.tile(np.arange(4) + 0.5, (3, 1)), captions=captions, records=None,
        )  # fmt: skip
        return evaluate_text(model, texts, clips)

    first, second, third = recall(rows), recall([["a dog"], [], []]), recall([[], [], ["a dog"]])

    assert first["texts"] == 1 and first["chance"] == pytest.approx(200 / 3)
    assert second["chance"] == pytest.approx(100 / 3)
    assert {first["text_to_clip_r1"], third["text_to_clip_r1"]} == {0, 100}
    logits = model.moment_logits("audio", texts.encode(["a dog"]), model.encode_clips({"audio": moments}, {}))[0, 0]
    pairs = [float(inside > outside) for inside in logits[:2] for outside in logits[2:]]
    assert first["moment_auroc_audio"] == pytest.approx(np.mean(pairs))


def words_of(found) -> list[list[str]]:
    return [[caption.text for caption in said] for said in found.captions]


def test_command__trains_on_shards_with_captions_and_spans(desk, tmp_path, run):
    words = ["--model", desk / "model", "--text_model", desk / "encoder", "--train_data", desk / "shards"]
    words += ["--output_dir", tmp_path / "out", "--max_steps", "2"]
    words += ["--eval_data", json.dumps({"same": str(desk / "shards")})]

    code, _, err = run(*words)

    assert code == 0, err
    assert "1 of 4 clips have no caption: 'c'" in err
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert record["clips"] == {"train": 4, "same": 4}
    found = record["metrics"]["same"]
    # "a dog barks" and "drum" are of several clips, and each is asked once.
    assert found["texts"] == 5 and found["chance"] == pytest.approx(100 * (2 + 1 + 3 + 1 + 1) / 4 / 5)
    assert found["chance_r10"] == found["text_to_clip_r10"] == 100
    # Of the three clips with captions each has three, two or three of the five texts.
    assert found["clip_to_text_chance"] == pytest.approx(100 * (3 + 2 + 3) / 5 / 3)
    assert found["clip_to_text_chance_r10"] == found["clip_to_text_r10"] == 100
    assert {f"{way}_r1_{side}" for way in ("text_to_clip", "clip_to_text") for side in ("audio", "video")} <= set(
        found
    )
    assert {"moment_auroc_audio", "moment_auroc_video"} <= found.keys()
    assert type(AutoModel.from_pretrained(tmp_path / "out" / "model")).__name__ == "CavMaeSyncTextDualEncoderModel"


def test_shards__give_captions_with_spans_and_equal_ones_are_positives(desk):
    with pytest.warns(DataWarning, match="1 of 4 clips have no caption: 'c'"):
        found = choose_captions(CavMaeSyncDataset(desk / "shards", tiny_processor()))

    assert words_of(found) == [
        ["a dog barks", "rain", "drum"], ["the siren", "drum"], ["A dog barks.", "drum", "bell"], []
    ]  # fmt: skip
    first, second, third, _ = found.captions
    assert first[2].spans == ((0.5, 1.0),) and second[1].spans == ((0.0, 0.5),) and third[1].spans == ((1.0, 2.0),)
    assert first[0].spans == () and first[0].key == third[0].key and first[2].key == second[1].key
    assert found.keys[0] == sorted({"a dog barks", "rain", "drum"})


def test_captions_of_lists_and_data_sets__are_those_of_shards(desk):
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict(
        {
            "video": [str(desk / "videos" / f"{name}.mp4") for name in "abc"],
            "caption": [["a dog barks", "rain"], ["the siren"], []],
            "words": [[{"text": "drum", "start": 0.5, "end": 1.0}], [], []],
        }
    )
    listed = read_source(desk / "list.csv", media=desk / "videos", caption_column="caption", spans=desk / "words.csv")
    of_list = choose_captions(open_captioned(listed, tiny_processor()))
    of_rows = choose_captions(open_captioned(rows, tiny_processor(), ["caption", "words"]))

    assert of_list == choose_captions(CavMaeSyncDataset(desk / "shards", tiny_processor()))
    assert words_of(of_rows) == [["a dog barks", "rain", "drum"], ["the siren"], []]
    assert of_rows.captions[0][2].spans == ((0.5, 1.0),)
    # Embeddings that were kept do not depend on what is said.
    plain, said = (open_captioned(rows, tiny_processor(), column) for column in (None, "caption"))
    assert plain.source.fingerprint == said.source.fingerprint


def test_table__gives_captions_and_spans_of_clips_and_whole_files(desk, tmp_path):
    table = tmp_path / "captions.csv"
    table.write_text("clip_id,text,start,end\na_0-1,A dog barks,0.5,0.75\na_0-1,rain,,\nelsewhere,sun,,\nb,rain,,\n")
    with pytest.warns(DataWarning, match="1 of 4 texts are about no clip here, but about 'elsewhere'"):
        found = read_captions(table, CavMaeSyncDataset(desk / "shards", tiny_processor()))
    assert words_of(found) == [["A dog barks", "rain"], [], ["rain"], []]
    assert found.captions[0][0].spans == ((0.5, 0.75),) and found.captions[0][1].spans == ()
    assert found.captions[0][1].key == found.captions[2][0].key

    table.write_text("file,text\na.mp4,rain\nvideos/b.mp4,sun\n")
    assert words_of(read_captions(table, CavMaeSyncDataset(desk / "videos", tiny_processor()))) == [
        ["rain"], ["sun"], []
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("clip_id,words\na,rain\n", "no column says the text"),
        ("clip_id,text\na,\n", "row 1 has no text"),
        ("clip_id,text\nz,rain\n", "none of its 1 rows is about one of the 3 clips"),
        ("clip_id,text,start,end\na,rain,3,2\n", "row 1 ends .2 s. before it starts"),
    ],
    ids=["no column", "no text", "other clips", "backwards"],
)
def test_table__is_checked(desk, tmp_path, content, says):
    (tmp_path / "captions.csv").write_text(content)
    with pytest.raises(DataError, match=says):
        read_captions(tmp_path / "captions.csv", CavMaeSyncDataset(desk / "videos", tiny_processor()))


def test_set_without_a_word__is_refused_with_what_would_work(desk, tmp_path):
    silent = CavMaeSyncDataset(write_shards(tmp_path / "shards", [2], labels=[[], []]), tiny_processor())
    with pytest.raises(TrainingError, match="neither captions nor labels. Name a table by `captions`.*--spans"):
        choose_captions(silent)
    with pytest.raises(TrainingError, match="shards hold their captions.*leave `caption_column` out"):
        open_captioned(desk / "shards", tiny_processor(), "caption")
    assert open_captioned(desk / "shards", tiny_processor(), "caption", training=False).captions()[3] == []


def test_overlong_texts__are_told_once(desk, recwarn):
    tokenizer = load_tokenizer(str(desk / "encoder"))

    tell_cut_texts(["a dog", "a " * 40, "a dog", "the " * 50], tokenizer)
    tell_cut_texts(["a dog"], tokenizer)

    (told,) = [str(one.message) for one in recwarn if isinstance(one.message, DataWarning)]
    assert told.startswith("2 of 3 texts are longer than the 32 tokens that the text encoder takes")


def test_tokenizer__cuts_at_what_the_encoder_takes(desk, tmp_path):
    shutil.copytree(desk / "encoder", tmp_path / "encoder")
    tiny_tokenizer(model_max_length=1000).save_pretrained(tmp_path / "encoder")
    assert load_tokenizer(str(tmp_path / "encoder")).model_max_length == 32


def test_encoder_without_a_tokenizer__is_refused(desk, tmp_path, run):
    BertModel(tiny_text_config()).save_pretrained(tmp_path / "encoder")  # transformers makes up an empty tokenizer
    words = ["--model", desk / "model", "--text_model", tmp_path / "encoder", "--train_data", desk / "shards"]

    code, _, err = run(*words, "--output_dir", tmp_path / "out")

    assert code == 1 and "has no tokenizer; save it there: AutoTokenizer.from_pretrained(NAME)" in err
    assert not (tmp_path / "out").exists()


def test_captions_of_syncworld__come_with_their_opposites_as_hard_pairs():
    events = [("bell", 1.0, 2.0, 10), ("bark", 4.0, 5.0, 80)]
    record = {
        "width": 100,
        "objects": [{"label_name": name} for name, *_ in events],
        "events": [
            {"label_name": name, "start": start, "end": end, "boxes": [[x, 0, x + 10, 10]]}
            for name, start, end, x in events
        ],
    }

    (said,) = syncworld_captions([record], per_clip=40, seed=0).captions

    by_hardness = {hard: {one.key.partition(":")[0] for one in said if one.hard == hard} for hard in (False, True)}
    assert by_hardness == {False: {"sounds", "heard", "count"}, True: {"order", "side"}}
    assert sum(one.true for one in said) == 40 and all(one.hard for one in said if not one.true)
    assert sum(one.hard and one.true for one in said) == sum(not one.true for one in said)
