"""Files that unpack into much, nest without end, or name files elsewhere are refused; nothing behind links goes."""

import io
import json
import resource
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from cavmae_sync_hf.data.shards import read_index, read_shard
from cavmae_sync_hf.data.sources import read_source
from cavmae_sync_hf.data.tables import read_vocabulary
from cavmae_sync_hf.evaluation.card import read_details
from cavmae_sync_hf.evaluation.results import read_results
from cavmae_sync_hf.evaluation.tables import read_mask
from cavmae_sync_hf.export import ExportedModel
from cavmae_sync_hf.files import check_array_size, parse_json, whole_file, whole_folder
from cavmae_sync_hf.model.errors_cavmae_sync import CavMaeSyncError, DataError, EvaluationError, MediaError
from cavmae_sync_hf.model.media_cavmae_sync import decode_media
from helpers.tiny_shards import write_shards

SOURCE = Path(__file__).parents[1] / "src" / "cavmae_sync_hf"
ENDLESS = "[" * 100_000


def png_header(width: int, height: int) -> bytes:
    """A PNG of so many black pixels, most of which are missing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = zlib.compress(bytes(1000))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def array_header(*shape: int) -> bytes:
    """An NPY file of bytes, without them."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


def replace_member(shard: Path, suffix: str, content: bytes, rename: str = "") -> None:
    """Another content in place of a shard's first member of that suffix, perhaps under another name."""
    with tarfile.open(shard) as archive:
        members = [(member, archive.extractfile(member).read()) for member in archive]
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as archive:
        for member, data in members:
            if member.name.endswith(suffix):
                data, suffix = content, "nothing more"
            member.size = len(data)
            member.name = rename + member.name
            archive.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize(
    "read",
    [
        parse_json,
        lambda text: read_source(write("list.json", text)),
        lambda text: read_source(write("list.jsonl", text)),
        lambda text: read_vocabulary(write("labels.json", text)),
        lambda text: read_results(write("results.json", text)),
        lambda text: read_details(write("details.yaml", text)),
        lambda text: read_index(write("index.json", text).parent),
        lambda text: ExportedModel(write("export.json", text).parent),
    ],
    ids=["json", "list", "lines", "vocabulary", "results", "details", "index", "export"],
)
@pytest.mark.parametrize(
    "text", [ENDLESS, '{"a":' * 100_000, "[" + "9" * 100_000 + "]"], ids=["lists", "objects", "digits"]
)
def test_json_without_end__is_no_json(tmp_path, monkeypatch, read, text):
    monkeypatch.chdir(tmp_path)
    if text.startswith("[9") and read is not parse_json and "yaml" in str(read.__code__.co_consts):
        pytest.skip("a number of that many digits is a text to YAML")
    with pytest.raises(ValueError):
        read(text)


def write(name: str, text: str) -> Path:
    path = Path(name).absolute()
    path.write_text(text, encoding="utf-8")
    return path


def test_json__is_read_in_one_place():
    """What others wrote goes through `parse_json`; the page's own processes speak to each other as they like."""
    allowed = {SOURCE / "files.py", SOURCE / "app" / "guard.py", SOURCE / "app" / "intake.py"}
    readers = {path for path in SOURCE.rglob("*.py") if "json.load" in path.read_text(encoding="utf-8")}
    assert readers <= allowed


@pytest.mark.parametrize(
    ("suffix", "content", "says"),
    [
        ("log_mel.npy", array_header(10**7, 10**7), "."),
        ("log_mel.npy", b"", "."),
        ("json", ENDLESS.encode(), "recursion"),
        ("frame_00.jpg", png_header(60_000, 60_000), "far too large"),
    ],
    ids=["array", "nothing", "nested", "image"],
)
def test_shard__of_a_bomb_is_damaged(tmp_path, suffix, content, says):
    shards = write_shards(tmp_path / "shards", [2])
    shard = next(shards.glob("*.tar"))
    replace_member(shard, suffix, content)
    with pytest.raises(ValueError, match=says):
        for clip in read_shard(shard):
            clip.frames()


def test_shard__members_are_never_written_where_they_say(tmp_path):
    shards = write_shards(tmp_path / "shards", [2])
    shard = next(shards.glob("*.tar"))
    before = sorted(path.name for path in tmp_path.rglob("*"))
    replace_member(shard, "nothing", b"", rename="../../../evil/")
    clips = list(read_shard(shard))
    assert len(clips) == 2 and "/" not in clips[0].key
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["../other/set-00000.tar", "/etc/passwd", "..", "a\\b.tar"])
def test_index_of_shards__names_files_beside_it_alone(tmp_path, name):
    shards = write_shards(tmp_path / "shards", [2])
    facts = json.loads((shards / "index.json").read_text())
    facts["shards"][0]["file"] = name
    (shards / "index.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match="index.json: does not describe shards .*shards lie beside it"):
        read_index(shards)


@pytest.mark.parametrize(
    "change", [{"shards": 5}, {"shards": [5]}, {"label_counts": []}, {"label_counts": {"a": 1}}, {"extra": 1}]
)
def test_index_of_shards__of_other_values_is_refused(tmp_path, change):
    shards = write_shards(tmp_path / "shards", [2])
    facts = json.loads((shards / "index.json").read_text()) | change
    (shards / "index.json").write_text(json.dumps(facts))
    with pytest.raises(DataError, match="index.json: does not describe shards"):
        read_index(shards)


@pytest.mark.parametrize("name", ["mask.npy", "mask.npz", "mask.png"])
def test_mask__that_unpacks_into_much_is_refused(tmp_path, name):
    path = tmp_path / name
    if name.endswith("npz"):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("mask.npy", array_header(10**6, 10**6) + bytes(1 << 20))
    else:
        path.write_bytes(array_header(10**6, 10**6) if name.endswith("npy") else png_header(60_000, 60_000))
    with pytest.raises(EvaluationError, match=f"{name}: the mask cannot be read"):
        read_mask(path)


def test_arrays__are_measured_before_they_are_read(tmp_path):
    np.savez(tmp_path / "two.npz", a=np.zeros((3, 4), np.float32), b=np.zeros(2))
    check_array_size(tmp_path / "two.npz", 64)
    with pytest.raises(ValueError, match="its arrays have 64 bytes, and at most 63"):
        check_array_size(tmp_path / "two.npz", 63)
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="could run code"):
        check_array_size(tmp_path / "objects.npy", 1 << 20)


@pytest.mark.parametrize("file", ["../evil.onnx", "/etc/passwd", "sub/tower.onnx", 5])
def test_export__names_files_beside_it_alone(tmp_path, file):
    entry = {"file": file, "inputs": [], "outputs": []}
    description = {"format": "cavmae-sync-export", "format_version": 1, "kind": "onnx", "towers": {"audio": entry}}
    (tmp_path / "export.json").write_text(json.dumps(description))
    with pytest.raises(CavMaeSyncError, match="export.json names .*; an export's files lie beside it"):
        ExportedModel(tmp_path)


def gif(side: int) -> bytes:
    """A GIF of three images of one pixel on a canvas of any size."""
    image = bytes.fromhex("21f904000a0000002c0000000001000100000202440100")
    return b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + bytes(3) + bytes([255] * 3) + image * 3 + b";"


def peak_megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("damaged", ["error", "keep"])
def test_frame_of_a_billion_pixels__takes_no_memory(damaged):
    """A file of 89 bytes may say that it is 30000 pixels wide and high."""
    assert decode_media(gif(64), num_frames=2, want_audio=False).frames.shape == (2, 3, 64, 64)
    before = peak_megabytes()
    with pytest.raises(MediaError):
        decode_media(gif(30_000), num_frames=2, want_audio=False, damaged=damaged)
    assert peak_megabytes() - before < 200


def test_replacing__never_reaches_through_links(tmp_path):
    """What lies behind a link in a folder that is replaced, or a link that is, stays as it was."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("mine")
    target = tmp_path / "target"
    target.mkdir()
    (target / "link").symlink_to(outside)
    (tmp_path / "file").symlink_to(outside / "kept")
    with whole_folder(target) as made:
        (made / "new").write_text("new")
    with whole_file(tmp_path / "file") as made:
        made.write_text("new")
    assert (outside / "kept").read_text() == "mine"
    assert [path.name for path in target.iterdir()] == ["new"] and (tmp_path / "file").read_text() == "new"
