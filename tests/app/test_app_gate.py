# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What the web page's outermost layer lets through, in front of a server that answers anything."""

import asyncio

import httpx
import pytest

pytest.importorskip("gradio")

from starlette.responses import JSONResponse

from cavmae_sync_hf.app import gate
from cavmae_sync_hf.app.access import Access
from cavmae_sync_hf.app.gate import Gate
from cavmae_sync_hf.app.workspace import Limits, Workspace

FILE = {"files": ("clip.mp4", b"content")}


@pytest.fixture
def workspace(tmp_path):
    with Workspace(Limits(waiting=2), parent=tmp_path) as workspace:
        yield workspace


async def behind(scope, receive, send):
    """Tells what came; answers 401 to whoever has not logged in and asks whether they have."""
    body = (await receive()).get("body", b"") if scope["method"] == "POST" else b""
    asks = scope["path"].endswith("/login_check")
    status = 401 if asks and (b"cookie", b"in=1") not in scope["headers"] else 200
    await JSONResponse({"path": scope["path"], "body": body.decode()}, status_code=status)(scope, receive, send)


def ask(workspace, method: str, path: str, *, headers=None, waiting=lambda visitor: 0, **options) -> httpx.Response:
    """The answer to a request, through a gate with these options."""
    content = {name: options.pop(name) for name in ("files", "json", "content") if name in options}
    access = Access.served_at("127.0.0.1", environment={})
    gate = Gate(behind, access, workspace, functions=range(3), waiting=waiting, **options)

    async def talk() -> httpx.Response:
        transport = httpx.ASGITransport(gate)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, headers=headers, **content)

    return asyncio.run(talk())


def test_upload__needs_the_login_that_the_page_needs(workspace):
    refused = ask(workspace, "POST", "/gradio_api/upload", files=FILE, needs_login=True)
    taken = ask(workspace, "POST", "/gradio_api/upload", files=FILE, needs_login=True, headers={"Cookie": "in=1"})

    assert refused.status_code == 401 and refused.text == "Log in first."
    assert workspace.upload(taken.json()[0]).name == "clip.mp4" and len(list(workspace.uploads.iterdir())) == 1


@pytest.mark.parametrize("prefix", ["", "/apps/sync", "/apps/sync/"])
def test_paths__are_known_with_the_prefix_that_a_proxy_leaves(workspace, prefix):
    way = prefix.rstrip("/")

    assert ask(workspace, "GET", f"{way}/config", prefix=prefix).status_code == 200
    assert ask(workspace, "GET", f"{way}/gradio_api/file=/etc/passwd", prefix=prefix).status_code == 404
    assert ask(workspace, "GET", "/gradio_api/file=/etc/passwd", prefix=prefix).status_code == 404
    assert ask(workspace, "POST", f"{way}/gradio_api/process_recording", prefix=prefix).status_code == 404
    assert (
        ask(workspace, "POST", f"{way}/gradio_api/upload", files=FILE, prefix=prefix).json()[0].endswith("upload.mp4")
    )


def test_requests__come_through_as_they_are_checked(workspace):
    # Of a name that comes twice the last counts, for us and so for what lies behind.
    twice = b'{"session_hash": "a", "fn_index": 0, "data": {"path": "/etc/passwd"}, "data": [1, "\xc3\xa4"]}'

    answer = ask(workspace, "POST", "/gradio_api/queue/join", content=twice)

    assert answer.status_code == 200 and "passwd" not in answer.text and '"data": [1, ' in answer.json()["body"]


def test_requests__more_than_may_wait_are_refused_and_those_of_others_are_not(workspace):
    counted = {"waiting": {"a": 2, "b": 1}.get}
    for visitor, status in (("a", 429), ("b", 200)):
        body = {"session_hash": visitor, "fn_index": 0, "data": []}
        assert ask(workspace, "POST", "/gradio_api/queue/join", json=body, **counted).status_code == status


def test_upload_progress__of_nothing_ends(workspace, monkeypatch):
    monkeypatch.setattr(gate, "_UNHEARD_SECONDS", 0.1)

    answer = ask(workspace, "GET", "/gradio_api/upload_progress?upload_id=abc")

    assert answer.text == 'data: {"msg": "done"}\n\n'
