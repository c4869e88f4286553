# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Embedding on a Ray cluster.

Each actor holds the model and writes rows into the index itself, where they do not count before this process registers
them. So no vectors travel, and an actor that dies leaves nothing but rows that are swept away.
"""

import itertools
import os
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ..model.errors_cavmae_sync import MediaWarning, SearchError, WorkerError, collected_remarks
from ..model.modeling_cavmae_sync import CavMaeSyncModel
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from ..provenance import require_package
from .embedding import EmbeddingOptions, append_clips, embed_clips
from .store import MomentStore
from .tables import READ_AGAIN, ClipEntry

# Clips that an actor is given at a time, and so writes with one commit.
_CLIPS_PER_TASK = 8
_RESTARTS = 2


class _Embedder:
    """What an actor does."""

    def __init__(
        self,
        uri: str,
        *,
        storage_options: dict[str, str] | None,
        model: CavMaeSyncModel,
        processor: CavMaeSyncProcessor,
        options: EmbeddingOptions,
        device: str,
    ) -> None:
        self.store = MomentStore.open(uri, storage_options)
        self.model: Any = model.to(device).eval()  # type: ignore[arg-type]
        self.processor, self.options = processor, options

    def append(self, clips: list[ClipEntry]) -> tuple[list[ClipEntry], list[MediaWarning]]:
        """Embed clips and write their rows; gives what is to be registered, and what is to be told."""
        with collected_remarks() as remarks:
            embedded = embed_clips(self.model, self.processor, clips, self.options)
            entries = [entry for group in append_clips(self.store, embedded) for entry in group]
        return entries, remarks


def append_with_ray(
    uri: str,
    model: CavMaeSyncModel,
    processor: CavMaeSyncProcessor,
    clips: Iterator[ClipEntry],
    options: EmbeddingOptions,
    *,
    workers: int | None = None,
    address: str | None = None,
    storage_options: dict[str, str] | None = None,
) -> Iterator[list[ClipEntry]]:
    """Embed clips on a cluster.

    Args:
        uri: Of the index, which every machine of the cluster must see; the clips' files likewise.
        model: The model; where it lies on a GPU, each actor takes one.
        processor: Its processor.
        clips: What is known of each.
        options: How they are embedded.
        workers: Actors; default: one per GPU or core of the cluster.
        address: Of the cluster; default: `RAY_ADDRESS`, else a Ray of this machine's own, which is ended afterwards.
        storage_options: For an index in an object store.

    Yields:
        What is to be registered, as it comes.

    Raises:
        ImportError: Ray is not installed.
        WorkerError: Ray failed.
    """
    ray = require_package("ray", "ray", 'The engine "ray"')
    from ray.exceptions import RayActorError, RayError

    if uri.startswith("memory://"):
        raise SearchError(f"{uri}: no other process sees an index in memory; name a folder or an object store.")
    on_gpu = model.device.type != "cpu"
    started = not ray.is_initialized()
    if started:
        settings: dict[str, Any] = {"address": address, "log_to_driver": False}
        if address is None and "RAY_ADDRESS" not in os.environ:
            settings["include_dashboard"] = False
        ray.init(**settings)
    actors: list[Any] = []
    try:
        needs: dict[str, Any] = {"num_gpus": 1} if on_gpu else {"num_cpus": 1}
        if workers is None:
            workers = max(1, int(ray.cluster_resources().get("GPU" if on_gpu else "CPU", 1)))
        arguments = {
            "storage_options": storage_options,
            "model": ray.put(model.to("cpu")),  # type: ignore[arg-type]
            "processor": processor,
            "options": options,
            "device": "cuda" if on_gpu else "cpu",  # each actor sees its own GPU alone, as the first
        }
        kind: Any = ray.remote(max_restarts=-1, **needs)(_Embedder)
        idle: list[Any] = [kind.remote(uri, **arguments) for _ in range(workers)]
        actors += idle
        running: dict[Any, tuple[Any, list[ClipEntry]]] = {}
        again: list[list[ClipEntry]] = []
        deaths: dict[str, int] = {}
        while True:
            while idle:
                task = again.pop() if again else list(itertools.islice(clips, _CLIPS_PER_TASK))
                if not task:
                    break
                actor = idle.pop()
                running[actor.append.remote(task)] = (actor, task)
            if not running:
                return
            done, _ = ray.wait(list(running), num_returns=1)
            actor, task = running.pop(done[0])
            idle.append(actor)
            try:
                entries, remarks = ray.get(done[0])
                for remark in remarks:
                    warnings.warn(remark, stacklevel=2)
                yield entries
            except RayActorError:
                yield from retry_after_death(task, deaths, again)
    except RayError as error:
        reason = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
        raise WorkerError(f"Ray gave up: {reason}") from error
    finally:
        for actor in actors:
            ray.kill(actor)
        if started:
            ray.shutdown()


def retry_after_death(
    task: list[ClipEntry], deaths: dict[str, int], again: list[list[ClipEntry]]
) -> Iterator[list[ClipEntry]]:
    """An actor died of some clips: each is tried alone, and a clip of which actors go on dying is bad."""
    for clip in task:
        if len(task) == 1:
            deaths[clip.key] = deaths.get(clip.key, 0) + 1
        if deaths.get(clip.key, 0) > _RESTARTS:
            problem = f"{clip.path}: the worker process that read it died, {_RESTARTS + 1} times."
            yield [replace(clip, problem=problem, place="", size=READ_AGAIN, content="")]
        else:
            again.append([clip])
