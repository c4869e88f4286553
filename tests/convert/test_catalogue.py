# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Published weights by name: listed, fetched from a server of this machine, checked, converted once."""

import csv
import hashlib
import http.server
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from cavmae_sync_hf import ModelError, load_model
from cavmae_sync_hf.convert import convert_published, fetch_published, find_published, published_weights
from cavmae_sync_hf.convert.catalogue import PublishedWeights
from cavmae_sync_hf.model.modeling_cavmae_sync import sincos_positions
from helpers.published_tensors import WIDTH, module, published_encoder, sync_classifier

COMMAND: tuple[str, ...] = ()
HEAD = module("mlp_head.0", WIDTH) | module("mlp_head.1", 5, WIDTH)


def encoder(**options: Any) -> dict[str, torch.Tensor]:
    """A small encoder of 128 mel bins, which a name without settings stands for."""
    return published_encoder(**options) | {"pos_embed_a": sincos_positions((32, 3), WIDTH)}


# A small file of every family, the modality of its row, and what loads of it.
FAMILIES = {
    "cav-mae": (lambda: encoder(registers=0, cls=False), "", "CavMaeSyncModel"),
    "cav-mae-sync": (lambda: encoder(), "", "CavMaeSyncModel"),
    "tg-dp": (lambda: encoder(registers=4), "", "CavMaeSyncModel"),
    "classifier": (lambda: encoder(registers=0, cls=False) | HEAD, "", "multimodal"),
    "sync-classifier": (lambda: sync_classifier(2 * WIDTH) | encoder(), "", "multimodal"),
    "audio-classifier": (lambda: encoder(registers=0, cls=False) | HEAD, "audio", "audio"),
    "video-classifier": (lambda: encoder(registers=0, cls=False) | HEAD, "video", "video"),
}


class Server:
    """Serves files from memory, with ranges and tags; breaks off where it is told to.

    Attributes:
        files: By path.
        breaks_after: Bytes after which a reply ends, once.
        requests: Paths and ranges asked for.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.breaks_after: int | None = None
        self.requests: list[tuple[str, str | None]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.headers.get("Range")
                outer.requests.append((self.path, asked))
                if self.path not in outer.files:
                    self.send_error(404, "gone")
                    return
                content = outer.files[self.path]
                tag = f'"{hashlib.sha256(content).hexdigest()[:8]}"'
                begin = 0
                if asked and self.headers.get("If-Range") == tag:
                    begin = int(asked.removeprefix("bytes=").rstrip("-"))
                    self.send_response(206)
                else:
                    self.send_response(200)
                page = content.startswith(b"<html")
                self.send_header("Content-Type", "text/html" if page else "application/octet-stream")
                self.send_header("ETag", tag)
                self.send_header("Content-Length", str(len(content) - begin))
                self.end_headers()
                limit, outer.breaks_after = outer.breaks_after, None
                self.wfile.write(content[begin:][:limit])

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture
def publish(server, tmp_path, monkeypatch):
    """Put contents under a name into a table of our own, with a cache of its own."""
    table, rows = tmp_path / "table.csv", []
    monkeypatch.setenv("CAVMAE_SYNC_PUBLISHED", str(table))
    monkeypatch.setenv("CAVMAE_SYNC_CACHE", str(tmp_path / "cache"))

    def add(name: str, content: bytes, **values: object) -> None:
        server.files[f"/{name}.pth"] = content
        row = dict.fromkeys(PublishedWeights.__dataclass_fields__, "") | {"name": name, "file": f"{name}.pth"}
        rows.append(row | {"link": f"{server.address}/{name}.pth", "bytes": len(content)} | values)
        with open(table, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerows(rows)

    return add


def saved(tensors: dict[str, torch.Tensor], tmp_path: Path) -> bytes:
    torch.save(tensors, tmp_path / "saved.pth")
    return (tmp_path / "saved.pth").read_bytes()


def test_table__lists_the_published_checkpoints():
    found = published_weights()

    assert len(found) == 25 and len({weights.name for weights in found}) == 25
    assert all(weights.link.startswith("https://") and weights.paper and weights.what for weights in found)
    assert find_published("published:cav-mae-sync").bytes == 762_886_272


def test_name__that_is_unknown_names_the_nearest():
    with pytest.raises(ModelError, match="near are cav-mae-sync"):
        find_published("cavmae-sync")


@pytest.mark.parametrize("family", FAMILIES)
def test_family__is_fetched_converted_and_loaded(publish, server, tmp_path, family):
    tensors, modality, expected = FAMILIES[family]
    publish(family, saved(tensors(), tmp_path), modality=modality)
    seen = []

    folder, report = convert_published(family, progress=lambda at, of: seen.append((at, of)))
    again, nothing = convert_published(family)

    use = "classification" if "classifier" in family else "embedding"
    model, processor = load_model(f"published:{family}", use=use)
    assert expected in (type(model).__name__, model.config.modality)
    assert processor.feature_extractor.alignment == "reference"
    assert again == folder and nothing is None and report is not None
    assert len(server.requests) == 1 and seen[-1][0] == seen[-1][1] > 0


def test_transfer__that_breaks_off_goes_on(publish, server, tmp_path):
    content = saved(encoder(), tmp_path)
    publish("sync", content)
    server.breaks_after = 3000
    with pytest.raises(ModelError, match="run it again, which goes on where it stopped"):
        fetch_published("sync")

    file = fetch_published("sync")

    assert file.read_bytes() == content
    assert server.requests[1] == ("/sync.pth", "bytes=3000-")
    assert [path.name for path in file.parent.iterdir()] == ["sync.pth"]


def test_transfer__of_a_file_that_changed_begins_anew(publish, server, tmp_path):
    publish("sync", b"P" * 5000)
    server.breaks_after = 3000
    with pytest.raises(ModelError):
        fetch_published("sync")
    content = saved(encoder(), tmp_path)
    publish("sync", content)
    server.files["/sync.pth"] = content

    assert find_published("sync").bytes == len(content)
    assert fetch_published("sync").read_bytes() == content


@pytest.mark.parametrize(
    ("content", "values", "words"),
    [
        (b"<html>quota exceeded</html>", {}, "answered with a web page"),
        (b"  <!DOCTYPE html><html>sign in</html>", {}, "answered with a web page"),
        (b"PK\x03\x04 something else", {"bytes": 99}, "has 19 bytes and the authors' file 99"),
        (b"PK\x03\x04 something else", {"sha256": "0" * 64}, "the authors' file 000000000000"),
    ],
)
def test_file__that_is_not_the_authors(publish, server, tmp_path, content, values, words):
    publish("sync", content, **values)

    with pytest.raises(ModelError, match=words) as caught:
        fetch_published("sync")

    assert f"{server.address}/sync.pth" in str(caught.value)
    assert not [path for path in (tmp_path / "cache").rglob("sync.pth*") if path.suffix != ".etag"]


def test_link__that_moved_or_leads_nowhere(publish, server):
    publish("sync", b"P", link=f"{server.address}/moved.pth")
    with pytest.raises(ModelError, match="Not Found|gone") as caught:
        fetch_published("sync")
    assert "fetch it by hand" in str(caught.value)
    server.close()
    with pytest.raises(ModelError, match="refused"):
        fetch_published("sync")


def test_command__lists_and_converts(run, publish, tmp_path):
    publish("sync", saved(encoder(), tmp_path), what="a small one", paper="a paper", metric="R@1 12")

    code, listed, _ = run("published")
    assert code == 0 and "a small one" in listed and "R@1 12" in listed
    code, printed, errors = run("convert", "sync", str(tmp_path / "model"))
    assert code == 0 and "a small one" in printed and "R@1 12" in printed and "SHA-256" in printed, errors
    assert (tmp_path / "model" / "config.json").is_file()
    code, _, errors = run("convert", "synk")
    assert code == 1 and "near are sync" in errors
