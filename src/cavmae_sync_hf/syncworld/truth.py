# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""What is known about SyncWorld clips, and how it is stored, read and looked up.

There is one record per clip, as a JSON file beside the clip and as a row of the split's `metadata.parquet`. Boxes are
half-open `[x0, y0, x1, y1]` in pixels of the clip's own frames and hold the body without its glow; times are seconds.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import StrPath, parse_json
from ..model.alignment_cavmae_sync import center_times, frame_at
from ..model.errors_cavmae_sync import DataError
from ..provenance import install_line
from .scene import NUM_FRAME_TIMES, Animation, Event, Scene, WorldObject, WorldOptions
from .voices import CLASS_NAMES

if TYPE_CHECKING:
    import datasets

METADATA_NAME = "metadata.parquet"
OPTIONS_NAME = "world.json"
ROWS_PER_GROUP = 500


def clip_stem(index: int) -> str:
    """File name of a clip without its ending."""
    return f"{index:06d}"


def truth_record(scene: Scene, options: WorldOptions, boxes: np.ndarray) -> dict[str, Any]:
    """Everything known about a clip as plain values.

    Args:
        scene: The clip.
        options: The split's options.
        boxes: Box of every object at every video frame, shape `(num_objects, num_frames, 4)`.

    Returns:
        A record with, among others, `labels` (ids of the classes that sound), `objects` (all on screen, with a box at
        every video frame), `events` (which object sounds from when to when, with a box at every video frame of the
        event), `animations` (which silent object moves when), `frame_times` (16 centres of equal spans of the
        clip) and for each of them `sounding_objects` (indices into `objects`) and `sounding_boxes`, which are empty
        lists where nothing sounds. `partner` is the index of the other clip of a temporal pair, or None.
    """
    times = center_times(options.duration, NUM_FRAME_TIMES)
    shown = [min(frame_at(time, options.fps), options.num_frames - 1) for time in times]
    on = [sorted({e.object for e in scene.events if e.start_frame <= k < e.end_frame}) for k in shown]
    return {
        "file_name": f"{clip_stem(scene.index)}.mp4",
        "clip_id": f"{options.split}-{clip_stem(scene.index)}",
        "split": options.split,
        "index": scene.index,
        "seed": options.seed,
        "preset": options.preset,
        "kind": scene.kind,
        "partner": scene.partner,
        "labels": scene.classes,
        "label_names": [CLASS_NAMES[c] for c in scene.classes],
        "duration": options.duration,
        "fps": options.fps,
        "num_video_frames": options.num_frames,
        "width": options.width,
        "height": options.height,
        "sampling_rate": options.sampling_rate,
        "objects": [
            {**_label(item), "sounding": item.sounding, "boxes": boxes[slot].tolist()}
            for slot, item in enumerate(scene.objects)
        ],
        "events": [_event_record(event, scene, options, boxes) for event in scene.events],
        "animations": [{**_span(animation, scene, options), "kind": animation.kind} for animation in scene.animations],
        "frame_times": times,
        "sounding_objects": on,
        "sounding_boxes": [[boxes[slot, k].tolist() for slot in slots] for slots, k in zip(on, shown, strict=True)],
    }


def _label(item: WorldObject) -> dict[str, Any]:
    return {"label": CLASS_NAMES.index(item.class_name), "label_name": item.class_name}


def _span(span: Event | Animation, scene: Scene, options: WorldOptions) -> dict[str, Any]:
    """Its object, and from when to when it is."""
    times = {"start": span.start_frame / options.fps, "end": span.end_frame / options.fps}
    return {"object": span.object, **_label(scene.objects[span.object]), **times}


def _event_record(event: Event, scene: Scene, options: WorldOptions, boxes: np.ndarray) -> dict[str, Any]:
    return {
        **_span(event, scene, options),
        "start_frame": event.start_frame,
        "end_frame": event.end_frame,
        "pitch": round(event.voice.pitch, 2),
        "level_db": round(event.voice.level_db, 2),
        "boxes": boxes[event.object, event.start_frame : event.end_frame].tolist(),
    }


def parquet_schema() -> Any:
    """The Arrow schema of `metadata.parquet`; the columns are those of `truth_record`."""
    import pyarrow as pa

    boxes = pa.list_(pa.list_(pa.int32()))
    common = [("label", pa.int32()), ("label_name", pa.string())]
    span = [("start", pa.float64()), ("end", pa.float64())]
    whole = [(name, pa.int32()) for name in ("num_video_frames", "width", "height", "sampling_rate")]
    events = [("object", pa.int32()), *common, *span, ("start_frame", pa.int32()), ("end_frame", pa.int32())]
    return pa.schema(
        [(name, pa.string()) for name in ("file_name", "clip_id", "split")]
        + [("index", pa.int64()), ("seed", pa.int64()), ("preset", pa.string()), ("kind", pa.string())]
        + [("partner", pa.int64()), ("labels", pa.list_(pa.int32())), ("label_names", pa.list_(pa.string()))]
        + [("duration", pa.float64()), ("fps", pa.int32()), *whole]
        + [
            ("objects", pa.list_(pa.struct([*common, ("sounding", pa.bool_()), ("boxes", boxes)]))),
            (
                "events",
                pa.list_(pa.struct([*events, ("pitch", pa.float64()), ("level_db", pa.float64()), ("boxes", boxes)])),
            ),
            ("animations", pa.list_(pa.struct([("object", pa.int32()), *common, ("kind", pa.string()), *span]))),
            ("frame_times", pa.list_(pa.float64())),
            ("sounding_objects", pa.list_(pa.list_(pa.int32()))),
            ("sounding_boxes", pa.list_(boxes)),
        ]
    )


def write_parquet(records: Iterable[dict[str, Any]], path: Path) -> None:
    """Write records in their order, a few hundred in memory at a time; the caller renames the file when it is whole.

    Raises:
        ImportError: If pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(f"Writing SyncWorld's truth needs pyarrow: {install_line('parquet')}") from error
    schema = parquet_schema()
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        batch: list[dict[str, Any]] = []
        for record in records:
            batch.append(record)
            if len(batch) == ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_pylist(batch, schema))
                batch = []
        if batch:
            writer.write_table(pa.Table.from_pylist(batch, schema))


def read_truth(folder: StrPath, split: str | None = None) -> Iterator[dict[str, Any]]:
    """Read the records of a split from its JSON files, in order, with the clip's full path as `path`.

    Args:
        folder: A world, or one split of it.
        split: Name of the split when `folder` is the world.

    Raises:
        ValueError: If there are no clips there; the message names the splits that are.
    """
    root = Path(folder) / split if split else Path(folder)
    files = sorted(root.glob("[0-9]*.json"), key=lambda file: int(file.stem))
    if not files:
        splits = sorted({file.parent.name for file in Path(folder).glob("*/[0-9]*.json")})
        remedy = f"its splits are {', '.join(splits)}: name one" if splits else "make a split with make_world"
        raise ValueError(f"No SyncWorld clips in {root}; {remedy}.")
    for file in files:
        record = parse_json(file.read_text(encoding="utf-8"))
        yield {**record, "path": str(root / record["file_name"])}


def find_truth(source: object, clip_ids: Sequence[str], truth: StrPath | None = None) -> list[dict[str, Any]] | None:
    """Look up what a SyncWorld knows about clips.

    Args:
        source: What the clips were read from. A truth is found where it is the path of a split, or of shards of a
            split inside its world, `WORLD/ANY/SPLIT`.
        clip_ids: The clips, by their `clip_id` or the stem of their file.
        truth: The split, where it lies elsewhere.

    Returns:
        The clips' records, in the order of `clip_ids`; `None` where there is no SyncWorld.

    Raises:
        DataError: `truth` is no split, or the split does not know a clip.
    """
    candidates = []
    if truth is not None:
        candidates = [Path(truth)]
    elif isinstance(source, str | os.PathLike):
        path = Path(source)
        candidates = [path, path.parent.parent / path.name]
    folder = next((path for path in candidates if (path / OPTIONS_NAME).is_file()), None)
    if folder is None:
        if truth is not None:
            raise DataError(f"{truth} is no SyncWorld split (no {OPTIONS_NAME}); `cavmae-sync world` makes one.")
        return None
    records: dict[str, dict[str, Any]] = {}
    for record in read_truth(folder):
        records[record["clip_id"]] = records[Path(record["file_name"]).stem] = record
    unknown = [clip_id for clip_id in clip_ids if clip_id not in records]
    if unknown:
        raise DataError(
            f"{folder}: has no truth for the clip {unknown[0]!r} ({len(unknown)} of {len(clip_ids)} are unknown); use "
            "clips of this world."
        )
    return [records[clip_id] for clip_id in clip_ids]


def sounding_boxes(record: Mapping[str, Any], times: Iterable[float]) -> list[list[list[int]]]:
    """Boxes of what sounds on the frames that are on screen at given times.

    Args:
        record: Truth of a clip.
        times: Seconds.

    Returns:
        For each time the boxes `[x0, y0, x1, y1]` in pixels of the clip, none where nothing sounds.
    """
    boxes = []
    for time in times:
        frame = min(frame_at(time, record["fps"]), record["num_video_frames"] - 1)
        events = [event for event in record["events"] if event["start_frame"] <= frame < event["end_frame"]]
        boxes.append([event["boxes"][frame - event["start_frame"]] for event in events])
    return boxes


def truth_at(record: Mapping[str, Any], times: Sequence[float]) -> dict[str, Any]:
    """Truth of a clip with other moments: `frame_times`, and what sounds at each of them.

    Args:
        record: Truth of a clip.
        times: Seconds; one object has one box, however many of its sounds overlap.
    """
    objects, boxes = [], []
    for time in times:
        frame = min(frame_at(time, record["fps"]), record["num_video_frames"] - 1)
        events = [event for event in record["events"] if event["start_frame"] <= frame < event["end_frame"]]
        shown = {event["object"]: event["boxes"][frame - event["start_frame"]] for event in events}
        objects.append(sorted(shown))
        boxes.append([shown[slot] for slot in sorted(shown)])
    return dict(record) | {"frame_times": list(times), "sounding_objects": objects, "sounding_boxes": boxes}


def temporal_partners(records: Sequence[Mapping[str, Any]]) -> list[int | None] | None:
    """Where the other clip of each temporal pair is among `records`; `None` where no pair is whole."""
    places = {record["index"]: place for place, record in enumerate(records)}
    partners = [places.get(record["partner"]) for record in records]
    return partners if any(partner is not None for partner in partners) else None


def load_syncworld(
    folder: StrPath, split: str | None = None, *, decode: bool = False
) -> "datasets.Dataset | datasets.DatasetDict":
    """Load a world as `datasets` objects.

    Args:
        folder: The world's folder, as given to `make_world`.
        split: One split, or None for all of them in a `DatasetDict`.
        decode: Make `video` a `datasets.Video` column, whose decoding needs torchcodec. By default `video` is the
            path, which the processor takes.

    Returns:
        A `Dataset` with the columns of `truth_record` plus `video`, or a `DatasetDict` of them; `labels` carry the
        class names.

    Raises:
        ValueError: If the folder or split holds no finished world.
        ImportError: If `datasets` is not installed.
    """
    try:
        import datasets
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ImportError(f"load_syncworld needs datasets: {install_line('training')}") from error
    root = Path(folder)
    found = {path.parent.name: path for path in sorted(root.glob(f"*/{METADATA_NAME}"))}
    if not found:
        raise ValueError(f"{root} holds no finished SyncWorld split (no */{METADATA_NAME}); make one with make_world.")
    if split is not None and split not in found:
        raise ValueError(f"{root} has no finished split {split!r}, only {', '.join(found)}.")
    loaded = datasets.DatasetDict()
    for name, path in found.items():
        if split not in (None, name):
            continue
        table = pq.read_table(path)
        videos = [str(path.parent.absolute() / file_name) for file_name in table["file_name"].to_pylist()]
        table = table.replace_schema_metadata().append_column("video", pa.array(videos, pa.string()))
        features = datasets.Features.from_arrow_schema(table.schema)
        features["labels"] = datasets.List(datasets.ClassLabel(names=list(CLASS_NAMES)))
        loaded[name] = datasets.Dataset(
            datasets.table.InMemoryTable(table.cast(features.arrow_schema)), split=datasets.NamedSplit(name)
        )
        if decode:
            loaded[name] = loaded[name].cast_column("video", datasets.Video())
    return loaded if split is None else loaded[split]
