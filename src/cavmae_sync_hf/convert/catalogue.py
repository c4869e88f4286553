# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Fetching the authors' published weights and converting them into a cache, which `CAVMAE_SYNC_CACHE` moves."""

import http.client
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..files import StrPath, file_digest, locked, user_cache
from ..model.errors_cavmae_sync import ModelError
from ..names import PublishedWeights, find_published
from .conversion import ConversionReport, convert_checkpoint
from .reading import check_head

__all__ = ["convert_published", "fetch_published"]

_BLOCK = 1 << 20
_TIMEOUT_SECONDS = 30.0
_LOCK_PATIENCE_SECONDS = 3600.0


def fetch_published(
    name: str, *, cache: StrPath | None = None, progress: Callable[[int, int], None] | None = None
) -> Path:
    """The authors' file of a published checkpoint, fetched once; a transfer that broke off goes on where it stopped.

    Args:
        name: As for `find_published`.
        cache: Folder of the cache; default: the user's.
        progress: Called with bytes there and bytes in all (0 where unknown).

    Raises:
        ModelError: There is no such checkpoint, it cannot be fetched, or what came is not the authors' file. The
            message has the link to fetch it by hand.
        LockedError: Another run has been fetching it for an hour.
    """
    weights = find_published(name)
    folder = _folder(cache, weights)
    file = folder / (weights.file or f"{weights.name}.pth")
    if file.is_file():
        return file
    partial = folder / f"{file.name}.incomplete"
    with locked(folder / ".lock", folder, patience=_LOCK_PATIENCE_SECONDS):
        if not file.is_file():
            try:
                _fetch(weights, partial, progress)
                _check(weights, partial)
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", None) or error
                raise ModelError(
                    f"{weights.name}: cannot be fetched from {weights.link} ({reason}); run it again, which goes on "
                    f"where it stopped, or fetch it by hand and convert that file."
                ) from error
            os.replace(partial, file)
    return file


def convert_published(
    name: str,
    destination: StrPath | None = None,
    *,
    config_overrides: Mapping[str, Any] | None = None,
    cache: StrPath | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Path, ConversionReport | None]:
    """A published checkpoint as a folder that loads.

    Args:
        name: As for `find_published`.
        destination: New folder; default: one in the cache, converted once.
        config_overrides: As for `convert_checkpoint`; with them, a destination is needed.
        cache: As for `fetch_published`.
        progress: As for `fetch_published`.

    Returns:
        The folder, and the report of the conversion; `None` where it was converted before.

    Raises:
        ModelError: As `fetch_published` and `convert_checkpoint`.
    """
    weights = find_published(name)
    if config_overrides and destination is None:
        raise ModelError(f"{weights.name}: with settings of your own, name the folder to write to.")
    folder = _folder(cache, weights) / "model" if destination is None else Path(destination)
    if destination is None and (folder / "config.json").is_file():
        return folder, None
    file = fetch_published(name, cache=cache, progress=progress)
    overrides = ({"modality": weights.modality} if weights.modality else {}) | dict(config_overrides or {})
    with locked(file.parent / ".lock", file.parent, patience=_LOCK_PATIENCE_SECONDS):
        if destination is None and (folder / "config.json").is_file():
            return folder, None
        return folder, convert_checkpoint(file, folder, config_overrides=overrides)


def _folder(cache: StrPath | None, weights: PublishedWeights) -> Path:
    base = Path(cache) if cache is not None else user_cache() / "published"
    folder = base / weights.name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _fetch(weights: PublishedWeights, partial: Path, progress: Callable[[int, int], None] | None) -> None:
    """Bring the file to `partial`, from where an earlier transfer stopped."""
    if urllib.parse.urlsplit(weights.link).scheme not in ("http", "https"):
        raise ModelError(f"{weights.name}: its link {weights.link} is no web address; correct the table.")
    tag_file = partial.with_name(f"{partial.name}.etag")
    tag = tag_file.read_text(encoding="utf-8") if tag_file.is_file() else ""
    there = partial.stat().st_size if partial.is_file() and tag else 0
    headers = {"User-Agent": "cavmae-sync-hf"}
    if there:
        # The server sends the rest only of the very same file, and else the whole one anew.
        headers |= {"Range": f"bytes={there}-", "If-Range": tag}
    request = urllib.request.Request(weights.link, headers=headers)
    try:
        reply = urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS)  # noqa: S310 (http(s) only)
    except urllib.error.HTTPError as error:
        if error.code == 416 and there:  # nothing is left to send
            return
        raise
    with reply:
        if reply.status != 206:
            there = 0
        tag_file.write_text(reply.headers.get("ETag") or "", encoding="utf-8")
        total = there + int(reply.headers.get("Content-Length") or 0)
        if "html" in (reply.headers.get("Content-Type") or ""):
            raise ModelError(_page_sentence(weights))
        with open(partial, "ab" if there else "wb") as file:
            while block := reply.read(_BLOCK):
                file.write(block)
                there += len(block)
                if progress is not None:
                    progress(there, total if total >= there else 0)
    if there < total:
        raise http.client.IncompleteRead(b"", total - there)
    tag_file.unlink(missing_ok=True)


def _check(weights: PublishedWeights, file: Path) -> None:
    """Refuse, and remove, what is not the authors' file."""
    size = file.stat().st_size
    try:
        check_head(file)
        problem = ""
    except ModelError:
        problem = _page_sentence(weights)
    if not problem and weights.bytes and size != weights.bytes:
        problem = (
            f"{weights.name}: what {weights.link} gave has {size:,} bytes and the authors' file {weights.bytes:,}; "
            "the link may have moved: look for the file on the authors' page and convert that."
        )
    if not problem and weights.sha256 and not (digest := file_digest(file)).startswith(weights.sha256):
        problem = (
            f"{weights.name}: what {weights.link} gave has SHA-256 {digest[:12]}..., the authors' file "
            f"{weights.sha256[:12]}...; look for the file on the authors' page and convert that."
        )
    if problem:
        file.unlink()
        raise ModelError(problem)


def _page_sentence(weights: PublishedWeights) -> str:
    return (
        f"{weights.name}: {weights.link} answered with a web page instead of the file (a consent or quota notice, or "
        "a link that moved); open it in a browser, save the file and convert that."
    )
