"""Names of results, files that are whole or not there, nothing replaced unasked, and what a full disk is told as."""

import errno
import json
import os
import pickle
import shutil
import subprocess
import unicodedata
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from cavmae_sync_hf.files import (
    check_free,
    disk_fault,
    file_stem,
    whole_file,
    whole_folder,
    write_bytes,
    write_json,
    write_text,
    writing,
)
from cavmae_sync_hf.model.errors_cavmae_sync import (
    AlreadyExistsError,
    DiskError,
    MediaError,
    on_command_line,
    printable,
)

KEPT = ("日本", "Überschrift", "مرحبا", "हिन्दी", "ไทย", "한국어", "👩‍🚀☃️", "ｆｕｌｌ", "a.b-c_d", "नमस्ते१")
LONGEST_ENDING = ".spectrogram.png"


@pytest.mark.parametrize("name", KEPT)
def test_stem__keeps_letters_of_every_script(name):
    assert file_stem(f"folder/{name}.mp4", set()) == unicodedata.normalize("NFC", name)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("two  words (1).mp4", "two_words_1"), ("全角　空白.mp4", "全角_空白"),
        ("a\nb\t\x1b[31mc.mp4", "a_nb_t_x1b_31mc"),
        ("\u202ecod.mp4", "u202ecod"), ("caf\udce9.mp4", "caf_xe9"), ("-rf.mp4", "rf"), (".hidden.mp4", "hidden"),
        ("...", "video"), ("end. .mp4", "end"), ("a:b*c?d.mp4", "a_b_c_d"), ("a\\b.mp4", "a_b"), ("", "video"),
        ("CON.mp4", "CON_"), ("nul.tar.mp4", "nul_.tar"), ("Lpt1", "Lpt1_"), ("console.mp4", "console"),
        ("https://host/clip.mp4?key=/etc", "clip"), ("why? because.mp4", "why_because"),
    ],
)  # fmt: skip
def test_stem__is_fit_for_every_system(name, stem):
    assert file_stem(name, set()) == stem


@pytest.mark.parametrize("sign", ["a", "é", "あ", "😀", "e\u0301", "👩‍🚀"])
def test_stem__is_short_enough_in_bytes(sign, tmp_path):
    taken: set[str] = set()
    for _ in range(11):  # the number counts, too
        stem = file_stem(f"{sign * 200}.mp4", taken)
        (tmp_path / f"{stem}{LONGEST_ENDING}").touch()
        assert stem.isprintable() or "\u200d" in stem
    assert len(list(tmp_path.iterdir())) == 11


@pytest.mark.parametrize(
    "names",
    [
        ("a/clip.mp4", "b/clip.mp4", "c/clip.mkv"), ("Clip.mp4", "CLIP.mp4", "clip.mp4"), ("é.mp4", "e\u0301.mp4"),
        ("Straße.mp4", "STRASSE.mp4"), ("\udce9.mp4", "\udce8.mp4", "_xe9.mp4"),
        ("clip.mp4", "clip-2.mp4", "x/clip.mp4"),
        ("?.mp4", "*.mp4", "..mp4"), ("con.mp4", "con_.mp4"), ("ÅNGSTRÖM.mp4", "a\u030angstro\u0308m.mp4"),
    ],
)  # fmt: skip
def test_stem__is_given_once_also_where_systems_tell_less_apart(names):
    taken: set[str] = set()

    stems = [file_stem(name, taken) for name in names]

    assert len({unicodedata.normalize("NFD", stem).casefold() for stem in stems}) == len(names)
    again: set[str] = set()
    assert stems == [file_stem(name, again) for name in names]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("日本 ünï\u3000 👩‍🚀.mp4", "日本 ünï\u3000 👩‍🚀.mp4"), ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\nb\r", r"a\nb\r"),
        ("\u202egnp.exe", r"\u202egnp.exe"), ("caf\udce9", r"caf\xe9"), ("\u2028\x85", r"\u2028\x85"),
        ("می\u200cخواهم",) * 2,
        ("\ud800", r"\ud800"),
    ],
)  # fmt: skip
def test_printable__shows_what_cannot_be_seen(text, shown):
    assert printable(text) == shown and shown.encode()


def test_files__are_replaced_only_when_asked(tmp_path):
    path = write_text(tmp_path / "日本.txt", "first")

    for write in (
        lambda: check_free(path),
        lambda: write_text(path, "second", overwrite=False),
        lambda: write_json(path, {}, overwrite=False),
    ):
        with pytest.raises(AlreadyExistsError, match="日本.txt is there already") as caught:
            write()
        assert caught.value.spelled(on_command_line).endswith("Add --overwrite to replace it.")
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]
    assert write_text(path, "second").read_text() == "second"
    with pytest.raises(AlreadyExistsError, match="is a folder"):
        check_free(tmp_path, overwrite=True)


@pytest.mark.parametrize("links", [True, False])
def test_files__that_came_meanwhile_are_not_replaced(tmp_path, monkeypatch, links):
    if not links:  # as on file systems that have none
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "not permitted")))
    path = tmp_path / "x.txt"
    with whole_file(tmp_path / "new.txt", overwrite=False) as partial:
        partial.write_text("new")
    with pytest.raises(AlreadyExistsError), whole_file(path, overwrite=False) as partial:
        partial.write_text("mine")
        path.write_text("another run's")

    assert path.read_text() == "another run's" and (tmp_path / "new.txt").read_text() == "new"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["new.txt", "x.txt"]


def test_folders__that_came_meanwhile_are_not_replaced(tmp_path):
    target = tmp_path / ("ü" * 120)  # as long as names may be
    with pytest.raises(AlreadyExistsError), whole_folder(target, overwrite=False) as folder:
        (folder / "mine").touch()
        target.mkdir()
        (target / "another run's").touch()
    assert [file.name for file in target.iterdir()] == ["another run's"]

    (target / "another run's").unlink()
    with whole_folder(target, overwrite=False) as folder:  # an empty one is nothing to lose
        (folder / "mine").touch()
    with whole_folder(target) as folder:
        (folder / "newer").touch()
    assert [file.name for file in target.iterdir()] == ["newer"] and list(tmp_path.iterdir()) == [target]


def test_json__holds_names_of_any_bytes(tmp_path):
    name = os.fsdecode(b"caf\xe9\n.mp4")

    path = write_json(tmp_path / "x.json", {"path": Path(name), "日本": 1})

    assert os.fsencode(json.loads(path.read_text(encoding="utf-8"))["path"]) == b"caf\xe9\n.mp4"
    assert "日本" in path.read_text(encoding="utf-8")


ENDED = [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    OSError(errno.EFBIG, os.strerror(errno.EFBIG)),
    RuntimeError("LanceError(IO): Generic LocalFileSystem error: No space left on device (os error 28)"),
    RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
    RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"),
    ValueError("I/O error: Disk quota exceeded (os error 122)"),
]


@pytest.mark.parametrize("error", ENDED, ids=lambda error: str(error)[-30:])
def test_full_disk__is_told_with_file_amounts_and_remedy(tmp_path, error):
    with pytest.raises(DiskError) as caught, whole_file(tmp_path / "日本.npy", size=5_000_000) as partial:
        partial.write_bytes(bytes(1500))
        raise error

    text = str(caught.value)
    assert text.startswith(f"{tmp_path}/日本.npy: cannot be written (") and "1.5 kB of 5.0 MB written, " in text
    assert "free); make room and run the same again. Nothing half-written is left" in text
    assert list(tmp_path.iterdir()) == [] and isinstance(caught.value, OSError) and caught.value.__cause__ is error
    assert str(pickle.loads(pickle.dumps(caught.value))) == text


def test_full_disk__of_a_folder_leaves_the_earlier_one(tmp_path):
    target = tmp_path / "model"
    with whole_folder(target) as folder:
        (folder / "old").touch()
    words = r"model/new: cannot be written \(No space left on device; 10 bytes written"
    with pytest.raises(DiskError, match=words), whole_folder(target) as folder:
        (folder / "new").write_bytes(bytes(10))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert [file.name for file in target.iterdir()] == ["old"] and list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_refusing_disk__is_told_but_not_for_a_file_that_is_read(tmp_path, code):
    target = tmp_path / "x.json"
    words = r"x.json: cannot be written .*; mend the access, or name another place\."
    with pytest.raises(DiskError, match=words), whole_file(target) as partial:
        raise OSError(code, os.strerror(code), str(partial))
    with pytest.raises(OSError, match="clip.mp4") as caught, whole_file(target):
        raise OSError(code, os.strerror(code), "/elsewhere/clip.mp4")
    assert not isinstance(caught.value, DiskError)


def test_writing__places_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "x.json", tmp_path / ("x" * 300) / "x.json"):
        with pytest.raises(DiskError, match=r"x\.json: cannot be written .*; mend the access, or name"):
            write_bytes(path, b"")
        with (
            pytest.raises(DiskError, match=r"x\.json: cannot be written .*; mend the access, or name"),
            whole_folder(path),
        ):
            pass


def test_writing__leaves_other_errors_alone(tmp_path):
    own = MediaError("clip.mp4: No space left on device")
    for error in (own, ValueError("other"), OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as caught, writing(tmp_path / "x"):
            raise error
        assert caught.value is error
    assert disk_fault(ValueError("other")) is None and disk_fault(None) is None


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    if shutil.which("mount") is None or os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root may mount")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(bytes(1 << 20)),
        lambda path: torch.save({"x": torch.zeros(1 << 18)}, path),
        lambda path: save_file({"x": torch.zeros(1 << 18)}, path),
    ],
    ids=["file", "torch", "safetensors"],
)
def test_full_disk__in_earnest(small_disk, write):
    with pytest.raises(DiskError, match="out.bin: cannot be written"), whole_file(small_disk / "out.bin") as partial:
        write(partial)
    assert list(small_disk.iterdir()) == []
