# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The web page's server as visitors, and those who mean harm, talk to it: over HTTP, without a browser."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("gradio")

from cavmae_sync_hf.app import Limits, gate, guard, handlers
from helpers.little_app import PLAYLIST, Visitor, decode_here, make_video, write_tone

LIMITS = Limits(megabytes=1.0, seconds=20.0, uploads=8, waiting=4)
JOIN, UPLOAD = "/gradio_api/queue/join", "/gradio_api/upload"


@pytest.fixture(scope="module")
def page(serve):
    with serve(decode_here, limits=LIMITS, allow_hosts=["page.example", ".lab.example"]) as page:
        yield page


@pytest.fixture
def visitor(page):
    visitor = Visitor(page)
    yield visitor
    page.workspace.drop(visitor.session)
    for path in kept_uploads(page):
        page.workspace.remove_upload(path)


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> bytes:
    return make_video(tmp_path_factory.mktemp("video") / "video.mp4").read_bytes()


def kept_uploads(page) -> list[Path]:
    """Uploads that are still there; Gradio's empty files beside them do not count."""
    return [path for path in page.workspace.uploads.rglob("*") if path.is_file() and path.stat().st_size]


def talk(page, request: bytes, *more: bytes, pause: float = 0.0) -> bytes:
    """The answer to bytes that are sent one after another."""
    with socket.create_connection(("127.0.0.1", page.server_port), timeout=30) as connection:
        for part in (request, *more):
            connection.sendall(part)
            time.sleep(pause)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
            if b"\r\n\r\n" in answer and len(answer.partition(b"\r\n\r\n")[2]) >= content_length(answer):
                break
        return answer


def content_length(answer: bytes) -> int:
    lines = answer.partition(b"\r\n\r\n")[0].lower().split(b"\r\n")
    return next((int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:")), 10**9)


# --- uploads of many ---------------------------------------------------------------------------------------------


def test_visitors__who_send_the_same_bytes_at_once_are_all_served(page, video):
    visitors = [Visitor(page) for _ in range(8)]

    with ThreadPoolExecutor(len(visitors)) as pool:
        views = list(pool.map(lambda visitor: visitor.send(video), visitors))

    assert [view.get("error") for view in views] == [None] * 8
    urls = [view["clip"]["url"] for view in views]
    assert len(set(urls)) == 8
    for visitor, url in zip(visitors, urls, strict=True):
        assert visitor.client.get(url).status_code == 200
    assert kept_uploads(page) == []


def test_visitors__good_and_bad_uploads_of_the_same_name_do_not_disturb_each_other(page, video):
    contents = [video, b"hello", video, PLAYLIST.encode(), b"", video[: len(video) // 3]] * 2

    with ThreadPoolExecutor(6) as pool:
        views = list(pool.map(lambda content: Visitor(page).send(content), contents))

    for content, view in zip(contents, views, strict=True):
        assert ("clip" in view) == (content is video)
        assert content is video or view["error"].startswith("clip.mp4: ")
    assert kept_uploads(page) == []


def test_visitor__may_send_a_clip_again_and_measures_it(page, visitor, video):
    for _ in range(2):
        view = visitor.send(video)
        output = visitor.wait(visitor.ask("measure", view).json()["event_id"])
        assert "verdict" in output["data"][0]["sync"]


# --- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("..\\..\\x.mp4", "x.mp4"), (".mp4", ".mp4"), ("a/b.mp4", "b.mp4"), ("con.mp4", "con.mp4"),
        ("日本 Überschrift.mp4", "日本 Überschrift.mp4"), ("a\r\nb\u202e.mp4", "ab.mp4"), ("\"'.mp4", "\"'.mp4"),
        ("<img src=x onerror=alert(1)>.mp4", "<img src=x onerror=alert(1)>.mp4"), ("clip.MP4", "clip.MP4"),
        ("clip.txt", "clip.txt"), ("clip", "clip"), ("a.mp4.", "a.mp4."), ("..", "your file"), ("<b>.exe", "<b>.exe"),
        ("x" * 3000 + ".mp4", "x" * 64 + "…" + "x" * 11 + ".mp4"),
    ],
)  # fmt: skip
def test_names__of_any_kind_are_taken_and_shown_as_far_as_they_can_be(page, visitor, video, name, title):
    view = visitor.send(video, name)

    assert view["clip"]["title"] == title
    assert ("Only a part of its name is shown" in view["clip"]["note"]) == (name != title)
    saved = visitor.client.get(view["clip"]["url"] + "?save").headers["content-disposition"]
    assert saved.startswith("attachment; filename*=UTF-8''") and saved.isascii() and "<" not in saved


def test_names__that_are_missing_are_no_matter(page, visitor, video):
    form = b'--b\r\nContent-Disposition: form-data; name="files"; filename=""\r\n\r\n' + video + b"\r\n--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}

    sent = visitor.client.post(UPLOAD, content=form, headers=headers)
    joined = visitor.ask("take", {"path": sent.json()[0], "meta": {"_type": "gradio.FileData"}})

    assert visitor.wait(joined.json()["event_id"])["data"][0]["clip"]["title"] == "your file"


def test_requests__that_gradio_cannot_read_get_a_sentence_and_leave_no_upload(page, visitor, video):
    for arguments in (["no such choice"], [{"no": "choice"}], [1.5]):
        sent = visitor.upload(video).json()[0]
        asked = visitor.ask("take", {"path": sent, "meta": {"_type": "gradio.FileData"}}, *arguments)
        output = visitor.wait(asked.json()["event_id"])
        assert output["error"] == "The request cannot be read; load the page again."
    assert kept_uploads(page) == []


# --- bounds ------------------------------------------------------------------------------------------------------


def test_upload__too_large_is_refused_declared_or_not(page, visitor):
    content = bytes(1_000_001)
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=b"}

    declared = visitor.upload(content)
    streamed = visitor.client.post(UPLOAD, content=iter([head, content, b"\r\n--b--\r\n"]), headers=kind)
    beside = visitor.client.post(UPLOAD, content=iter([b"x" * 70_000] * 30), headers=kind)

    for answer in (declared, streamed):
        assert answer.status_code == 413 and answer.text == "The file is too large: at most 1 MB are taken here."
    assert beside.status_code in (400, 413)
    claimed = {"Content-Type": kind["Content-Type"], "Content-Length": "99999999999"}
    early = b"".join(f"{name}: {value}\r\n".encode() for name, value in claimed.items())
    answer = talk(page, b"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\n" + early + b"\r\n" + head)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert kept_uploads(page) == []


@pytest.mark.parametrize(
    ("kind", "body", "words"),
    [
        ("application/json", b"{}", "multipart/form-data"),
        ("multipart/form-data", b"", "multipart/form-data"),
        ("multipart/form-data; boundary=b", b"nonsense", "cannot be read"),
        ("multipart/form-data; boundary=b", b"", "No file came"),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n--b--',
            "No file came",
        ),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\nhalf',
            "did not arrive whole",
        ),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\na\r\n' * 2 + b"--b--",
            "one file at a time",
        ),
    ],
)  # fmt: skip
def test_upload__that_is_no_form_with_one_file_gets_a_sentence(page, visitor, kind, body, words):
    answer = visitor.client.post(UPLOAD, content=body, headers={"Content-Type": kind})

    assert answer.status_code == 400 and words in answer.text and kept_uploads(page) == []


def test_upload__broken_off_leaves_nothing(page, video):
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n'
    with socket.create_connection(("127.0.0.1", page.server_port)) as connection:
        connection.sendall(
            b"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            b"Content-Length: 500000\r\n\r\n" + head + video
        )
        wait_until(lambda: kept_uploads(page))
    wait_until(lambda: not kept_uploads(page) and page.workspace._reserved == 0)

    assert kept_uploads(page) == []


def wait_until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_upload__that_trickles_or_stops_is_ended(page, monkeypatch):
    monkeypatch.setattr(gate, "_STALL_SECONDS", 0.5)
    head = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n\r\n'
    request = (
        b"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        b"Content-Length: 500000\r\n\r\n" + head
    )

    stopped = talk(page, request, b"x")
    monkeypatch.setattr(page.workspace, "limits", replace(LIMITS, upload_seconds=1.0))
    trickled = talk(page, request, *[b"x"] * 3, pause=0.3)
    half_asked = talk(page, b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")

    assert b"408" in stopped[:20] and b"Nothing came for 0.5 s" in stopped
    assert b"408" in trickled[:20] and b"longer than the 1 s that are allowed" in trickled
    assert b"408" in half_asked[:20]
    assert kept_uploads(page) == []


def test_uploads__at_the_same_time_are_counted(page, visitor, video):
    request = (
        b"POST /gradio_api/upload HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        b"Content-Length: 500000\r\n\r\n--b\r\n"
    )
    slow = [socket.create_connection(("127.0.0.1", page.server_port)) for _ in range(LIMITS.uploads)]
    try:
        for connection in slow:
            connection.sendall(request)
        wait_until(lambda: visitor.upload(video).status_code == 503)
        assert "Many files are on their way just now" in visitor.upload(video).text
    finally:
        for connection in slow:
            connection.close()
    wait_until(lambda: visitor.upload(video).status_code == 200)


def test_upload__without_a_session_is_removed_after_minutes(page, visitor, video, monkeypatch):
    assert visitor.upload(video).status_code == 200 and kept_uploads(page)

    now = page.workspace.clock() + LIMITS.unclaimed_seconds + 1
    monkeypatch.setattr(page.workspace, "clock", lambda: now)
    page.workspace.sweep()

    assert kept_uploads(page) == []


def test_upload__with_no_room_left_gets_a_sentence(page, visitor, video, monkeypatch):
    monkeypatch.setattr(type(page.workspace), "_free", lambda self: 10)

    assert visitor.upload(video).text == "There is no room for more files here just now; try again in a few minutes."
    assert visitor.upload(video).status_code == 507 and kept_uploads(page) == []


def test_requests__of_one_visitor_that_wait_are_counted(page, visitor, monkeypatch):
    monkeypatch.setattr(handlers.RequestHandler, "pick", lambda *_: time.sleep(1.0) or {})

    answers = [visitor.ask("pick") for _ in range(LIMITS.waiting + 2)]

    assert [answer.status_code for answer in answers] == [200] * LIMITS.waiting + [429] * 2
    assert "still to be done" in answers[-1].json()["detail"]
    assert Visitor(page).ask("pick").status_code == 200


def test_requests__that_are_too_large_or_too_deep_or_nonsense_get_a_sentence(visitor):
    headers = {"Content-Type": "application/json"}
    deep = b'{"session_hash": "abc", "fn_index": 0, "data": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    for content, status in (
        (b" " * 300_000, 413), (b"{", 400), (b"[]", 400), (b"null", 400), (b"\xff", 400), (deep, 400),
        (b'{"fn_index": 0, "data": []}', 400), (b'{"session_hash": 1, "fn_index": 0, "data": []}', 400),
        (json.dumps({"session_hash": "a" * 65, "fn_index": 0, "data": []}).encode(), 400),
        (b'{"session_hash": "../x", "fn_index": 0, "data": []}', 400),
        *((json.dumps({"session_hash": "a", "fn_index": number, "data": []}).encode(), 400) for number in
          (9999, -1, "0", None, True, [], 0.0)),
    ):  # fmt: skip
        answer = visitor.client.post(JOIN, content=content, headers=headers)
        assert answer.status_code == status and answer.json()["detail"].endswith("."), content[:60]


# --- programs ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(page):
    gradio_client = pytest.importorskip("gradio_client")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        client = gradio_client.Client(page.local_url, verbose=False, analytics_enabled=False)
        yield client
        client.close()


@pytest.fixture
def clip(tmp_path, video):
    path = tmp_path / "Früh übt sich.mp4"
    path.write_bytes(video)
    return path


def test_programs__get_the_verdict_of_a_video_and_of_other_audio(page, client, clip, tmp_path):
    from gradio_client import handle_file

    alone = client.predict(video=handle_file(str(clip)), api_name="/sync")
    tone = write_tone(tmp_path / "tone.wav")
    dubbed = client.predict(handle_file(str(clip)), handle_file(str(tone)), api_name="/sync")

    assert alone["verdict"].keys() == {"kind", "headline", "reason"} and alone["model"] == "example"
    assert (alone["source"], alone["audio_source"]) == ("Früh übt sich.mp4", None)
    assert dubbed["audio_source"] == "tone.wav" and dubbed["scores"] != alone["scores"]
    assert str(page.workspace.root) not in json.dumps([alone, dubbed]) and kept_uploads(page) == []


def test_programs__get_places_and_moments(page, client, clip, tmp_path):
    pytest.importorskip("lancedb")
    from gradio_client import handle_file

    places = client.predict(handle_file(str(clip)), api_name="/localize")
    found = client.predict(handle_file(str(write_tone(tmp_path / "a.wav"))), start=0, end=1, api_name="/search")
    by_frame = client.predict(handle_file(str(clip)), by="video", find="audio", api_name="/search")

    assert len(places["moments"]) == 4 and (places["width"], places["height"]) == (64, 48)
    for result, by in ((found, "audio"), (by_frame, "video")):
        assert result["hits"] and result["by"] == by
        assert all(hit["file"].endswith(".mp4") and "/" not in hit["file"] for hit in result["hits"])
    assert kept_uploads(page) == []


@pytest.mark.parametrize(
    ("endpoint", "content", "options", "words"),
    [
        ("/sync", b"hello", {}, "a.mp4: is text"),
        ("/localize", PLAYLIST.encode(), {}, "is a playlist"),
        ("/sync", bytes(1_100_000), {}, "exceeds the maximum file size"),  # which the client itself looks at
        ("/search", "video", {"by": "nonsense"}, "cannot be read"),
        ("/search", "tone", {"by": "video"}, "search by audio"),
        ("/search", "tone", {"start": 99.0}, "a.wav"),
        ("/sync", "tone", {}, "has no video"),
        ("/sync", None, {}, "No file came"),
    ],
)
def test_programs__are_told_in_a_sentence_what_cannot_be(
    page, client, video, tmp_path, endpoint, content, options, words
):
    from gradio_client import handle_file

    path = tmp_path / ("a.wav" if content == "tone" else "a.mp4")
    if content == "tone":
        write_tone(path)
    else:
        path.write_bytes(video if content == "video" else content or b"")

    with pytest.raises(Exception, match=words):  # `AppError` of the client, or its own `ValueError`
        client.predict(None if content is None else handle_file(str(path)), api_name=endpoint, **options)
    assert kept_uploads(page) == []


def test_programs__are_offered_what_is_meant_for_them_and_are_bounded_like_visitors(page, client, visitor, video):
    offered = client.view_api(print_info=False, return_format="dict")
    assert set(offered["named_endpoints"]) == {"/sync", "/localize", "/classify", "/search", "/ask"}
    assert not offered["unnamed_endpoints"]

    assert visitor.ask("sync", {"path": "/etc/passwd"}, None).status_code == 400
    assert Visitor(page, Host="evil.example").ask("sync", None, None).status_code == 403
    assert visitor.upload(bytes(1_100_000)).status_code == 413


# --- whence requests come ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["/", "/config", "/gradio_api/info", "/gradio_api/queue/data?session_hash=a", "/gradio_api/heartbeat/a",
     "/cavmae-files/shared/in-sync.jpg", "/nowhere"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST"])
def test_hosts__that_are_not_ours_reach_nothing(visitor, method, path):
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}, {"Origin": "null"}):
        answer = visitor.client.request(method, path, headers=headers)

        assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers
        assert method == "HEAD" or "page" in answer.text
        assert answer.headers["content-type"].startswith("text/plain") and "content-security-policy" in answer.headers


def test_hosts__that_are_not_ours_send_nothing(page, visitor, video):
    for headers in ({"Host": "evil.example:7860"}, {"Origin": "http://evil.example"}):
        stranger = Visitor(page, **headers)
        assert stranger.upload(video).status_code == 403
        asked = stranger.ask("pick")
        assert asked.status_code == 403 and "--allow-host evil.example" in asked.json()["detail"]
        preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        assert stranger.client.options(JOIN, headers=preflight).status_code == 403
    assert kept_uploads(page) == []


@pytest.mark.parametrize("host", ["page.example", "PAGE.example.:443", "a.lab.example", "localhost:1"])
def test_hosts__that_are_allowed_are_served_whole(page, video, host):
    origin = f"https://{host.partition(':')[0]}" if "example" in host else f"http://{host}"
    visitor = Visitor(page, Host=host, Origin=origin)

    assert visitor.client.get("/config").status_code == 200 and "clip" in visitor.send(video)


def test_hosts__that_are_missing_or_malformed_are_refused(page):
    for head in (
        b"Host:",
        b"Host: evil.example\r\nHost: localhost",
        b"Host: localhost\r\nHost: evil.example",
        b"A: b",
    ):
        answer = talk(page, b"GET / HTTP/1.1\r\n" + head + b"\r\nConnection: close\r\n\r\n")
        assert answer.split(b" ")[1] in (b"400", b"403"), head
    assert talk(page, b"GET / HTTP/1.0\r\n\r\n").split(b" ")[1] in (b"400", b"403")


def test_sockets__are_closed(page):
    for host in (b"localhost", b"evil.example"):
        answer = talk(
            page,
            b"GET /gradio_api/queue/join HTTP/1.1\r\nHost: " + host + b"\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
        )
        assert answer.split(b" ")[1] in (b"400", b"403", b"404", b"405")


# --- what means harm ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "{root}/.in-use", "{root}/uploads", "{sent}/../../../.in-use", "http://127.0.0.1:1/", "", "a.mp4",
     "file:///etc/passwd", "http://169.254.169.254/latest", "\\\\host\\share", "{sent}\x00", None, 1, ["{sent}"]],
)  # fmt: skip
def test_requests__that_name_files_which_are_no_uploads_are_refused(page, visitor, video, path):
    sent = visitor.upload(video).json()[0]
    if isinstance(path, str):
        path = path.format(root=page.workspace.root, sent=sent)
    file = {"path": path, "url": "http://127.0.0.1:1/secret", "meta": {"_type": "gradio.FileData"}}

    for data in (file, {"deep": [{"in": file}]}, [file]):
        for way in (JOIN, "/gradio_api/run/predict", f"{JOIN}/"):
            answer = visitor.ask("take", data, way=way)
            assert answer.status_code == 400 and "is not there any more" in answer.json()["detail"]


def test_requests__addresses_in_them_are_not_followed(page, visitor, video):
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.2)
        sent = visitor.upload(video).json()[0]
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/a.mp4"
        file = {"path": sent, "url": url, "orig_name": "../../x", "meta": {"_type": "gradio.FileData"}}

        output = visitor.wait(visitor.ask("take", file).json()["event_id"])

        assert output["data"][0]["clip"]["title"] == "clip.mp4"  # as it came
        with pytest.raises(TimeoutError):
            trap.accept()


def test_requests__do_not_get_at_the_uploads_of_others(page, visitor, video):
    sent = visitor.upload(video).json()[0]
    file = {"path": sent, "meta": {"_type": "gradio.FileData"}}
    asked = visitor.ask("take", dict(file))

    assert Visitor(page).ask("take", dict(file)).status_code == 400
    assert "clip" in visitor.wait(asked.json()["event_id"])["data"][0]


def test_requests__that_the_queue_does_not_take_leave_no_upload(page, visitor, video, monkeypatch):
    monkeypatch.setattr(page._queue, "max_size", 0)

    view = visitor.send(video)

    assert "Queue is full" in view["error"] and kept_uploads(page) == []


def test_files__of_others_and_of_the_server_are_not_handed_out(page, visitor, video, tmp_path):
    (tmp_path / "secret.txt").write_text("hush", encoding="utf-8")
    url = visitor.send(video)["clip"]["url"]
    folder, token, name = url.split("/")
    for path in (
        f"gradio_api/file={tmp_path}/secret.txt", "gradio_api/file=/etc/passwd", "gradio_api/file=../../etc/passwd",
        f"gradio_api/file={page.workspace.root}/.in-use", f"gradio_api/file={page.workspace.root}/{token}/{name}",
        "gradio_api/file=http://127.0.0.1:1/", "gradio_api/file/etc/passwd", "gradio_api/proxy=http://127.0.0.1:1/",
        f"{folder}/shared/..%2f.in-use", f"{folder}/{token}/..%2f..%2f.in-use", f"{folder}/{token[:-1]}/{name}",
        f"{folder}//{name}", f"{folder}/{token}/", f"{folder}/shared/{name}", "static/../../../../etc/passwd",
        "static/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "assets/..%2f..%2f..%2fetc/passwd", "svelte/..%2f..%2fetc/passwd",
        "custom_component/0/client/component/..%2f..%2fetc/passwd",
    ):  # fmt: skip
        request = f"GET /{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"  # as it is, dots and all
        answer = talk(page, request.encode())
        assert answer.split(b" ")[1] in (b"403", b"404"), path
        assert b"hush" not in answer and b"root:" not in answer and str(page.workspace.root).encode() not in answer
    assert visitor.client.get(url).content[4:8] == b"ftyp"


@pytest.mark.parametrize(
    "path",
    ["process_recording", "component_server", "run/take", "api/predict", "call/take", "call/v2/take", "deep_link",
     "vibe-edit/", "stream/a", "run-history/connect", "openapi.json", "mcp/", "profiling/clear", "dev/reload", "."],
)  # fmt: skip
def test_doors__of_gradio_that_the_page_has_no_use_for_are_shut(visitor, path):
    for method in ("GET", "POST"):
        answer = visitor.client.request(method, f"/gradio_api/{path}")
        assert answer.status_code == 404 and "nothing here" in answer.text
    assert visitor.client.get("/docs").status_code == visitor.client.get("/openapi.json").status_code == 404


def test_sentences__name_no_place_on_the_server(page, visitor, video, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device", str(page.workspace.root))

    monkeypatch.setattr(guard, "_run", fail)
    view = visitor.send(video)

    assert "Something went wrong here" in view["error"] and kept_uploads(page) == []
    for answer in (visitor.ask("take", {"path": str(page.workspace.root)}), visitor.client.get("/gradio_api/file=/x")):
        assert str(page.workspace.root) not in answer.text


def test_server__keeps_nothing_of_those_who_leave(page, visitor, video):
    before = page.workspace.used()
    sent = visitor.upload(video).json()[0]
    assert visitor.ask("take", {"path": sent, "meta": {"_type": "gradio.FileData"}}).status_code == 200
    with visitor.client.stream("GET", f"/gradio_api/heartbeat/{visitor.session}") as heart:
        next(heart.iter_lines())

    wait_until(lambda: page.workspace.used() == before and not kept_uploads(page))
