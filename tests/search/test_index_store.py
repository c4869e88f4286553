"""Indexes lie anywhere, refuse other models, say when they are damaged, and read what earlier versions wrote."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import lancedb
import numpy as np
import pytest
import torch

from cavmae_sync_hf import CavMaeSyncForPreTraining, CavMaeSyncModel, CavMaeSyncProcessor, SearchError
from cavmae_sync_hf.model.errors_cavmae_sync import Hint, on_command_line
from cavmae_sync_hf.search import ClipEntry, IndexSettings, MomentStore, index_status, index_videos, search
from cavmae_sync_hf.search.store import MOMENTS
from cavmae_sync_hf.search.tables import as_matrix
from helpers.clips import noise, write_clip
from helpers.indexes import index_settings, random_vectors, rows_of, same_rows
from helpers.tiny import tiny_config

HOP = 0.25


def test_index__refuses_another_model_hop_or_processor(folder, run, loaded, tmp_path):
    run(folder)
    model, processor = loaded
    torch.manual_seed(1)
    other = CavMaeSyncModel(tiny_config()).eval()
    shifted = CavMaeSyncProcessor.from_config(model.config, mean=0.0)

    with pytest.raises(SearchError, match=r"another model.*make another index"):
        index_videos(folder, tmp_path / "index", other, processor, hop=HOP)
    with pytest.raises(SearchError, match="another model"):
        search(tmp_path / "index", folder / "0.mp4", other, processor)
    with pytest.raises(SearchError, match="mean was -5.081 and is 0.0"):
        search(tmp_path / "index", folder / "0.mp4", model, shifted)
    with pytest.raises(SearchError, match=r"a hop of 0.25"):
        index_videos(folder, tmp_path / "index", model, processor, hop=0.5)


def test_index__knows_its_model_in_half_precision_and_with_a_head(folder, run, loaded, tmp_path):
    run(folder)
    model, processor = loaded
    headed = CavMaeSyncForPreTraining(tiny_config()).eval()
    headed.model.load_state_dict(model.state_dict())
    half = CavMaeSyncModel(tiny_config()).eval()
    half.load_state_dict(model.state_dict())
    half = half.to(torch.bfloat16)

    assert search(tmp_path / "index", folder / "0.mp4", headed, processor, by="both")[0].score > 0.99
    assert search(tmp_path / "index", folder / "0.mp4", half, processor, by="both")[0].score > 0.99
    with torch.no_grad():
        next(half.parameters()).mul_(1.5)
    with pytest.raises(SearchError, match="another model"):
        search(tmp_path / "index", folder / "0.mp4", half, processor)


def test_index__one_tower_is_refused(folder, tmp_path):
    model = CavMaeSyncModel(tiny_config(modality="audio")).eval()

    with pytest.raises(ValueError, match="audio tower alone"):
        index_videos(folder, tmp_path / "index", model, CavMaeSyncProcessor.from_config(model.config), hop=HOP)
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("hop", [0, -1.0, float("nan"), float("inf"), True, "x"])
def test_index__hop_must_be_a_length(folder, run, hop):
    with pytest.raises(ValueError, match="hop is"):
        run(folder, hop=hop)


def test_open__says_what_is_wrong_with_the_place(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "text.txt").write_text("x")
    lancedb.connect(tmp_path / "foreign").create_table(MOMENTS, [{"a": 1}])

    for name, words in (("none", "no such index"), ("file", "is a file"), ("folder", "holds no index")):
        with pytest.raises(SearchError, match=words):
            MomentStore.open(tmp_path / name)
    assert not (tmp_path / "none").exists()
    with pytest.raises(SearchError, match="did not make"):
        MomentStore.open(tmp_path / "foreign")
    with pytest.raises(SearchError, match="a new or empty folder"):
        MomentStore.create(tmp_path / "folder", index_settings())
    with pytest.raises(SearchError, match="is empty"):
        MomentStore.open("")
    with pytest.raises(SearchError, match="cannot be read"):
        MomentStore.open("nowhere-at-all://x/y")


def test_open__of_another_format(tmp_path):
    with pytest.raises(SearchError, match="format 99"):
        MomentStore.create(tmp_path / "index", index_settings(format=99))
    with pytest.raises(SearchError, match="format 99"):
        MomentStore.open(tmp_path / "index")


def test_open__an_index_without_clips_holds_nothing(loaded, folder, run, tmp_path):
    run(folder)
    store = MomentStore.create(tmp_path / "empty", MomentStore.open(tmp_path / "index").settings)

    assert len(search(store, folder / "0.mp4", *loaded)) == 0
    # As a writer leaves it that is killed between making the two tables.
    shutil.rmtree(tmp_path / "empty" / "clips.lance")
    assert len(search(tmp_path / "empty", folder / "0.mp4", *loaded)) == 0
    assert run(folder, index=tmp_path / "empty").added == 3


@pytest.mark.parametrize("part", ["data/*.lance", "_versions/*.manifest"])
@pytest.mark.parametrize("table", ["moments", "clips"])
def test_search__a_damaged_index_is_an_error_that_says_so(folder, run, loaded, tmp_path, part, table):
    run(folder)
    for file in (tmp_path / "index" / f"{table}.lance").glob(part):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    with pytest.raises(SearchError, match=r"cannot be read.*make it anew"):
        search(tmp_path / "index", folder / "0.mp4", *loaded)


def test_index_status__tells_what_is_there_and_what_is_missing(folder, run, tmp_path):
    (folder / "bad.mp4").touch()
    run(folder)

    status = index_status(tmp_path / "index", check=True)

    assert (status["clips"], status["files"], status["bad"], status["moments"]) == (3, 3, 1, 18)
    assert status["seconds"] == pytest.approx(4.5, abs=0.1) and status["loose_rows"] == 0
    assert [bool(entry["problem"]) for entry in status["entries"]] == [False, False, False, True]
    store = MomentStore.open(tmp_path / "index")
    store._moments.delete("`window` = 2 AND loudness < 0")
    with pytest.raises(SearchError, match="3 clips lack rows"):
        index_status(tmp_path / "index", check=True)
    # The next run mends it.
    assert run(folder).changed == 3
    index_status(tmp_path / "index", check=True)


def test_index__lies_anywhere_lancedb_can_write(folder, run, loaded, tmp_path):
    run(folder)
    address = f"file://{tmp_path}/by-address"
    memory = MomentStore.create("memory://index", MomentStore.open(tmp_path / "index").settings)

    assert run(folder, index=address).added == 3
    assert run(folder, index=memory).added == 3

    expected = rows_of(tmp_path / "index")
    assert same_rows(rows_of(MomentStore.open(address)), expected)
    assert same_rows(rows_of(memory), expected)
    assert search(memory, folder / "1.mp4", *loaded, by="both")[0].path == str(folder / "1.mp4")


def test_index__approximate_index_is_built_above_the_threshold_and_extended(many, run, loaded, tmp_path):
    first = run(many, approximate_from=10)
    store = MomentStore.open(tmp_path / "index")
    write_clip(many / "new.mp4", seconds=0.5, audio=noise(0.5, seed=77))

    second = run(many, approximate_from=10)

    assert first.approximate == 24 and set(store.indexed_columns()) == {"audio", "video"}
    assert second.approximate == 26
    result = search(tmp_path / "index", many / "new.mp4", *loaded, by="both")
    assert not result.exact and Path(result[0].path).name == "new.mp4"
    (many / "new.mp4").unlink()
    assert run(many, approximate_from=10).removed == 1
    result = search(tmp_path / "index", many / "00.mp4", *loaded, by="both", top=50)
    assert {Path(hit.path).stem for hit in result} == {f"{number:02d}" for number in range(12)}


def test_as_matrix__leaves_out_what_is_null(folder, run, tmp_path):
    import pyarrow as pa

    values = random_vectors(3, 0).astype(np.float16)
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 16, mask=pa.array([False, True, False]))

    vectors, places = as_matrix(column[1:], 16)

    np.testing.assert_array_equal(vectors, values[2:].astype(np.float32))
    assert places.tolist() == [1]


# What version 0.1.0 wrote for the tiny model, every weight of which was 0.25.
WRITTEN = """{"format": 1, "hidden_size": 32, "hop": 0.25, "model": "", "processing": {"audio_length": 48, "channel":
"first", "crop_size": {"height": 32, "width": 32}, "do_center_crop": true, "do_convert_rgb": true,
"do_normalize": true, "do_rescale": true, "do_resize": true, "exact_resize": true, "image_mean": [0.485,
0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "mean": -5.081, "min_window_coverage": 0.0,
"num_mel_bins": 16, "resample": 3, "rescale_factor": 0.00392156862745098, "sampling_rate": 16000, "size":
{"shortest_edge": 32}, "std": 4.4849}, "weights":
"ed374912172d7f755395d43f673ad006f4a437c93f87bd8fae67b7b608131b5d", "window_seconds": 0.48}"""
COLUMNS = {
    "moments": "rows window start end time loudness audio video thumbnail",
    "clips": "key rows path raw_path start end root size mtime_ns content moments has_audio has_video problem audio "
    "video previous turn",
}
PROBLEM = "/bad.mp4: is truncated; fetch it again, or pass damaged='keep' to use what can be decoded."


def test_index_of_version_0_1__is_read_and_added_to(folder, loaded, run, tmp_path):
    torch.manual_seed(0)
    model = CavMaeSyncModel(tiny_config()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.25)
    settings = IndexSettings.from_json(WRITTEN, "index")

    settings.check(IndexSettings.of(model, loaded[1], 0.25), "index", adding=True)

    run_by = {"backend": "torch", "precision": "float32"}  # which it did not say
    assert json.loads(settings.to_json()) == json.loads(WRITTEN) | run_by
    store = MomentStore.create(tmp_path / "index", replace(settings, weights=IndexSettings.of(*loaded, 0.25).weights))
    store.register([ClipEntry(key="0:-", rows="", path="/bad.mp4", problem=PROBLEM)])
    for table, columns in COLUMNS.items():
        assert lancedb.connect(tmp_path / "index").open_table(table).schema.names == columns.split()
    assert run(folder).added == 3
    assert str(MomentStore.open(tmp_path / "index").entries()["0:-"].error) == PROBLEM


def test_problems__keep_their_hints(tmp_path):
    store = MomentStore.create(tmp_path / "index", index_settings())
    hints = (Hint("damaged", "keep", "use what can be decoded"), Hint("retry_bad", True, "read it again"))
    bad = ClipEntry(key="0:-", rows="", path="/bad.mp4", problem="/bad.mp4: is truncated.", hints=hints)

    store.register([bad])

    error = MomentStore.open(tmp_path / "index").entries()["0:-"].error
    assert str(error) == (
        "/bad.mp4: is truncated. Pass damaged='keep' to use what can be decoded. Pass retry_bad=True to read it again."
    )
    assert error.spelled(on_command_line) == (
        "/bad.mp4: is truncated. Add --damaged keep to use what can be decoded. Add --retry-bad to read it again."
    )
    (entry,) = index_status(tmp_path / "index")["entries"]
    assert entry["problem"] == str(error)
