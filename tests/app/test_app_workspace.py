# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Visitors' files on the web page: who gets which, how much room they take, and when they go."""

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest

from cavmae_sync_hf import AppError
from cavmae_sync_hf.app.workspace import FILES_ROUTE, Limits, Workspace
from helpers.little_app import send

MB = 1_000_000
# Room for two visitors, who take at most 64 MB each: an upload of 10, and three files of 18.
TIGHT = {"megabytes": 10, "seconds": 1, "disk_megabytes": 400}


class Clock:
    """Time that passes when it is told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def open_workspace(tmp_path, clock):
    """Makes workspaces with these limits."""
    opened = []

    def make(**limits) -> Workspace:
        opened.append(Workspace(Limits(**limits), parent=tmp_path, clock=clock))
        return opened[-1]

    yield make
    for workspace in opened:
        workspace.close()


@pytest.fixture
def workspace(open_workspace) -> Workspace:
    return open_workspace()


def fill(session, name="a.txt", size=7) -> Path:
    path = session.path(name)
    with open(path, "wb") as file:
        file.truncate(size)  # takes no room on the disk
    return path


def upload(workspace, name="clip.mp4", size=7) -> Path:
    with workspace.receive(name, size) as sent, open(sent.path, "wb") as file:
        file.truncate(size)
    return sent.path


# --- files of visitors -------------------------------------------------------------------------------------------


def test_files__that_are_on_the_list_are_handed_out_and_no_others(workspace):
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
    assert workspace.find(workspace.session("another").token, name) is None
    assert len(token) >= 24


def test_files__of_the_last_clip_go_with_a_new_one(workspace):
    session = workspace.session("visitor")
    turns = [session.begin()]
    path = fill(session)

    turns.append(session.begin())

    assert not path.exists() and turns[0] < turns[1]


def test_files__go_when_the_visitor_leaves_or_stays_away(open_workspace, clock):
    workspace = open_workspace(idle_seconds=600)
    paths = {name: fill(workspace.session(name)) for name in ("first", "second")}
    sent = upload(workspace)
    assert workspace.claim(str(sent), "first")
    turn = workspace.session("first").turn

    workspace.drop("first")
    assert not paths["first"].parent.exists() and not sent.parent.exists()
    assert workspace.session("first").turn <= turn

    clock.now += 590
    workspace.sweep()
    assert paths["second"].exists()
    clock.now += 20
    workspace.sweep()
    assert not paths["second"].parent.exists()


def test_visitors__one_who_is_away_makes_room_and_one_who_is_here_does_not(open_workspace, clock):
    workspace = open_workspace(sessions=2)
    paths = {name: fill(workspace.session(name)) for name in ("first", "second")}

    with pytest.raises(AppError, match="As many visitors as there is room for are here; try again"):
        workspace.session("third")
    clock.now += 61
    workspace.session("first")
    workspace.session("third")

    assert paths["first"].exists() and not paths["second"].exists()


def test_workspace__goes_as_a_whole(open_workspace):
    workspace = open_workspace()
    fill(workspace.session("visitor"))
    upload(workspace)

    workspace.close()

    assert not workspace.root.exists()


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="without locks it cannot be told who still runs")
def test_workspace__removes_what_a_killed_run_left_and_not_what_another_uses(tmp_path):
    with Workspace(parent=tmp_path) as running:
        left = tmp_path / "cavmae-sync-app-killed"
        (left / "uploads" / "0123").mkdir(parents=True)
        (left / "uploads" / "0123" / "clip.mp4").write_bytes(b"content")
        (left / ".in-use").touch()

        with Workspace(parent=tmp_path):
            assert not left.exists() and running.root.exists()


# --- uploads -----------------------------------------------------------------------------------------------------


def test_uploads__of_the_same_bytes_and_name_are_each_visitors_own(workspace):
    first, second = upload(workspace), upload(workspace)

    assert first != second and workspace.claim(str(first), "a") and workspace.claim(str(second), "b")
    workspace.remove_upload(first)

    assert not first.exists() and second.exists() and workspace.upload(second).name == "clip.mp4"


def test_uploads__are_given_to_the_first_who_asks(workspace):
    sent = upload(workspace)

    assert workspace.claim(str(sent), "a") and workspace.claim(str(sent), "a") and not workspace.claim(str(sent), "b")
    for other in (workspace.root / ".in-use", "/etc/passwd", f"{sent}/../{sent.name}", "", "http://127.0.0.1/"):
        assert not workspace.claim(str(other), "a")


@pytest.mark.parametrize(
    ("name", "stored"),
    [
        *((name, "upload.mp4") for name in ("clip.mp4", "clip.MP4", ".mp4", "..\\..\\x.mp4", "a/b.mp4", "日本.mp4")),
        *((name, "upload") for name in ("", "clip", "con", "../../etc/passwd", "a.b/c", "a.\x00", "clip.mp4;rm")),
        ("x" * 5000 + ".mp4", "upload.mp4"),
    ],
)
def test_uploads__lie_under_names_of_our_own_making(workspace, name, stored):
    path = upload(workspace, name)

    assert path.name == stored and path.parent.parent == workspace.uploads and workspace.upload(path).name == name


def test_uploads__that_break_off_are_removed_at_once(workspace):
    with pytest.raises(KeyError), workspace.receive("clip.mp4", 10) as sent:
        sent.path.write_bytes(b"half")
        raise KeyError

    assert list(workspace.uploads.iterdir()) == [] and not workspace.claim(str(sent.path), "a")
    assert workspace.used() == 0


def test_uploads__that_nobody_asks_for_go_after_minutes_and_those_that_wait_their_turn_later(open_workspace, clock):
    workspace = open_workspace(unclaimed_seconds=180, idle_seconds=3600)
    abandoned, waiting = upload(workspace), upload(workspace)
    workspace.claim(str(waiting), "visitor")
    with workspace.receive("slow.mp4", 10) as slow:
        slow.path.write_bytes(b"half")

        clock.now += 170
        workspace.sweep()
        assert abandoned.exists()
        clock.now += 20
        workspace.sweep()
        assert not abandoned.parent.exists() and waiting.exists() and slow.path.exists()
    clock.now += 900
    workspace.sweep()
    assert list(workspace.uploads.iterdir()) == []


def test_uploads__what_gradio_leaves_beside_them_goes_too(workspace, tmp_path):
    (tmp_path / "a").write_bytes(b"")
    old, new = (send(workspace, tmp_path / "a", name) for name in ("old", "new"))
    os.utime(old, (0, 0))

    workspace.sweep()

    assert not old.exists() and new.exists()


def test_files__that_go_while_they_are_counted_are_no_fault(workspace):
    ended = threading.Event()

    def come_and_go():  # as uploads of other visitors do
        while not ended.is_set():
            for number in range(5):
                folder = workspace.uploads / f"upload-{number}"
                folder.mkdir()
                (folder / "upload.mp4").touch()
                shutil.rmtree(folder)

    with ThreadPoolExecutor() as threads:
        working = threads.submit(come_and_go)
        try:
            for visit in range(2000):
                workspace.session(f"visitor-{visit % 3}")
                assert workspace.used() == 0
        finally:
            ended.set()
        working.result()


def test_uploads__nothing_else_is_removed_for_them(workspace, tmp_path):
    other = tmp_path / "precious.txt"
    other.write_text("content", encoding="utf-8")
    sent = send(workspace, other, "upload.txt")

    for path in (sent, sent, other, workspace.uploads / ".." / ".." / "precious.txt"):
        workspace.remove_upload(path)

    assert other.exists() and list(workspace.uploads.iterdir()) == []


# --- room --------------------------------------------------------------------------------------------------------


def test_room__of_all_files_together_is_bounded(open_workspace, clock):
    workspace = open_workspace(**TIGHT)
    for number in range(8):
        fill(workspace.session(f"{number}"), size=45 * MB)

    with workspace.room(30 * MB), pytest.raises(AppError, match="no room for more files here just now; try again"):
        upload(workspace, size=10 * MB + 1)
    upload(workspace, size=10 * MB)
    assert workspace.used() == 370 * MB

    with pytest.raises(AppError, match="no room"), workspace.room(40 * MB):
        pass
    clock.now += 61  # all are away
    for number in range(1, 8):
        workspace.session(f"{number}")
    with workspace.room(40 * MB):  # in the place of the one who did not come back
        assert workspace.used() == 325 * MB


def test_room__uploads_alone_leave_half_of_it_to_those_at_work(open_workspace):
    workspace = open_workspace(**TIGHT)
    for _ in range(20):
        upload(workspace, size=10 * MB)

    with pytest.raises(AppError, match="no room"):
        upload(workspace, size=10 * MB)
    with workspace.room(60 * MB, workspace.session("visitor")):
        pass


def test_room__of_one_visitor_is_bounded(open_workspace):
    workspace = open_workspace(**TIGHT)
    limits, session = workspace.limits, workspace.session("visitor")
    fill(session, size=limits.visitor_bytes - limits.copy_bytes)
    with workspace.room(limits.copy_bytes, session):
        pass
    fill(session, "b.txt", size=1)

    with (
        pytest.raises(AppError, match="all the room that one visitor has"),
        workspace.room(limits.copy_bytes, session),
    ):
        pass
    session.begin()
    with workspace.room(limits.copy_bytes, session):
        pass


def test_room__ends_where_the_disk_does(workspace, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=101 * MB))

    with workspace.room(MB):
        pass
    with pytest.raises(AppError, match="no room"), workspace.room(2 * MB):
        pass


def test_room__is_given_back_when_work_fails(open_workspace):
    workspace = open_workspace(**TIGHT)
    for _ in range(20):
        with pytest.raises(KeyError), workspace.room(390 * MB):
            raise KeyError


# --- limits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["megabytes", "seconds", "decode_seconds", "uploads", "disk_megabytes"])
def test_limits__must_leave_something(name):
    with pytest.raises(ValueError, match=f"`{name}` is 0"):
        Limits(**{name: 0})


def test_limits__there_is_room_for_one_visitor_at_least():
    with pytest.raises(ValueError, match="`disk_megabytes` is 100, and one visitor's files may take 610"):
        Limits(disk_megabytes=100)
    assert Limits().disk_bytes == 2000 * MB and Limits(megabytes=5000).disk_bytes > 10_000 * MB
