# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""A Hub on this machine: repositories with branches and commits, uploads and downloads, as `huggingface_hub` asks."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from huggingface_hub import constants, hf_api

OWNER, TOKEN = "someone", "hf_of_the_stand_in"
# The Hub keeps such files apart, and commits name them by their checksum.
_LARGE = (".safetensors", ".bin", ".pt", ".pth")
_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"


@dataclass
class Repository:
    """Commits by checksum, each all of its files, and which commit a branch is at."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {}})
    branches: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})
    messages: list[str] = field(default_factory=list)

    def commit_of(self, revision: str) -> str | None:
        sha = self.branches.get(revision, revision)
        return sha if sha in self.commits else None

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """The files of a revision by their paths."""
        return self.commits[self.branches.get(revision, revision)]


class Hub(ThreadingHTTPServer):
    """The server; `repositories` are those that were created, `downloads` the files that were fetched."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.downloads: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Refusal(Exception):
    def __init__(self, status: int, code: str = "") -> None:
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args: Any) -> None:
        """Nothing: tests look at what is stored."""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        try:
            for (methods, pattern), method in _ROUTES.items():
                if self.command in methods.split() and (found := re.fullmatch(pattern, path)):
                    method(self, body, **found.groupdict())
                    return
            raise _Refusal(404)
        except _Refusal as refusal:
            self._send(b"{}", status=refusal.status, **({"X-Error-Code": refusal.code} if refusal.code else {}))

    def _send(self, content: bytes | Any, status: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repository(self, repo: str, *, write: bool = False) -> Repository:
        found = self.server.repositories.get(repo)
        if found is None or (found.private and not self._known()):
            raise _Refusal(404 if self._known() else 401, "RepoNotFound")
        if write and not self._known():
            raise _Refusal(401)
        return found

    def _at(self, repo: str, revision: str | None) -> tuple[Repository, str]:
        repository = self._repository(repo)
        sha = repository.commit_of(revision or "main")
        if sha is None:
            raise _Refusal(404, "RevisionNotFound")
        return repository, sha

    def _who(self, body: bytes) -> None:
        if not self._known():
            raise _Refusal(401)
        self._send({"name": OWNER, "type": "user", "orgs": []})

    def _create(self, body: bytes) -> None:
        if not self._known():
            raise _Refusal(401)
        asked = json.loads(body)
        repo = f"{asked.get('organization') or OWNER}/{asked['name']}"
        if repo in self.server.repositories:
            self._send({"url": f"{self.server.url}/{repo}"}, status=409)
            return
        self.server.repositories[repo] = Repository(private=asked.get("visibility") == "private")
        self._send({"url": f"{self.server.url}/{repo}"})

    def _check_card(self, body: bytes) -> None:
        parts = json.loads(body)["content"].split("---\n")
        data = yaml.safe_load(parts[1]) if len(parts) > 2 else {}
        self._send({"errors": [], "warnings": []}, status=200 if isinstance(data, dict) else 400)

    def _branch(self, body: bytes, repo: str, branch: str) -> None:
        repository = self._repository(repo, write=True)
        if branch in repository.branches:
            raise _Refusal(409)
        repository.branches[branch] = repository.branches["main"]
        self._send({})

    def _preupload(self, body: bytes, repo: str, revision: str) -> None:
        self._repository(repo, write=True)
        files = [
            {"path": file["path"], "shouldIgnore": False, "uploadMode": _mode(file["path"])}
            for file in json.loads(body)["files"]
        ]
        self._send({"files": files})

    def _large_files(self, body: bytes, repo: str) -> None:
        self._repository(repo, write=True)
        objects = [
            {"oid": item["oid"], "size": item["size"]}
            | ({} if item["oid"] in self.server.large else {"actions": {"upload": {"href": self._href(item["oid"])}}})
            for item in json.loads(body)["objects"]
        ]
        self._send({"transfer": "basic", "objects": objects}, **{"Content-Type": "application/vnd.git-lfs+json"})

    def _href(self, oid: str) -> str:
        return f"{self.server.url}/large/{oid}"

    def _store(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Refusal(400)
        self.server.large[oid] = body
        self._send(b"")

    def _commit(self, body: bytes, repo: str, revision: str) -> None:
        repository = self._repository(repo, write=True)
        if revision not in repository.branches:
            raise _Refusal(404, "RevisionNotFound")
        files = dict(repository.files(revision))
        for line in body.splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header":
                repository.messages.append(value["summary"])
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        sha = hashlib.sha1(repr((len(repository.commits), sorted(files))).encode()).hexdigest()  # noqa: S324
        repository.commits[sha] = files
        repository.branches[revision] = sha
        self._send({"success": True, "commitOid": sha, "commitUrl": f"{self.server.url}/{repo}/commit/{sha}"})

    def _info(self, body: bytes, repo: str, revision: str | None = None) -> None:
        repository, sha = self._at(repo, revision)
        files = repository.files(sha)
        parts = files.get("README.md", b"").decode().split("---\n")
        data = yaml.safe_load(parts[1]) if len(parts) > 2 else {}
        self._send(
            {"id": repo, "modelId": repo, "sha": sha, "private": repository.private, "cardData": data}
            | {"siblings": [{"rfilename": name} for name in files], "tags": data.get("tags", [])}
            | {name: data[name] for name in ("pipeline_tag", "library_name") if name in data}
        )

    def _tree(self, body: bytes, repo: str, revision: str, folder: str = "") -> None:
        repository, sha = self._at(repo, revision)
        inside = {name: data for name, data in repository.files(sha).items() if name.startswith(folder.lstrip("/"))}
        if folder and not inside:
            raise _Refusal(404, "EntryNotFound")
        self._send([_described(name, data) for name, data in inside.items()])

    def _resolve(self, body: bytes, repo: str, revision: str, file: str) -> None:
        repository, sha = self._at(repo, revision)
        data = repository.files(sha).get(file)
        if data is None:
            raise _Refusal(404, "EntryNotFound")
        if self.command == "GET":
            self.server.downloads.append(f"{repo}@{sha}/{file}")
        self._send(data, **{"X-Repo-Commit": sha, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'})


def _mode(path: str) -> str:
    return "lfs" if path.endswith(_LARGE) else "regular"


def _described(name: str, data: bytes) -> dict[str, Any]:
    oid = hashlib.sha256(data).hexdigest()
    large = {"lfs": {"oid": oid, "size": len(data), "pointerSize": 1}} if _mode(name) == "lfs" else {}
    return {"type": "file", "path": name, "size": len(data), "oid": oid} | large


_ROUTES = {
    ("GET", "/api/whoami-v2"): _Handler._who,
    ("POST", "/api/repos/create"): _Handler._create,
    ("POST", "/api/validate-yaml"): _Handler._check_card,
    ("POST", rf"/api/models/{_REPO}/branch/(?P<branch>.+)"): _Handler._branch,
    ("POST", rf"/api/models/{_REPO}/preupload/(?P<revision>.+)"): _Handler._preupload,
    ("POST", rf"/api/models/{_REPO}/commit/(?P<revision>.+)"): _Handler._commit,
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch"): _Handler._large_files,
    ("PUT", "/large/(?P<oid>[0-9a-f]+)"): _Handler._store,
    ("GET", rf"/api/models/{_REPO}"): _Handler._info,
    ("GET", rf"/api/models/{_REPO}/revision/(?P<revision>.+)"): _Handler._info,
    ("GET", rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)(?P<folder>.*)"): _Handler._tree,
    ("GET HEAD", rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)"): _Handler._resolve,
}


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Run a Hub for the length of the block."""
    with Hub() as hub:
        thread = threading.Thread(target=hub.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


@contextmanager
def connected(hub: Hub, cache: Any) -> Iterator[None]:
    """Have `huggingface_hub` talk to a Hub in this process, signed in, and keep its downloads in `cache`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(hf_api.api, "endpoint", hub.url)
        patch.setenv("HF_TOKEN", TOKEN)
        yield
