"""How often the sounding object is found in the frame, and its sound in the spectrogram, on SyncWorld.

    cavmae-sync world world --preset spatial --split spatial --clips 200
    python training/benchmarks/localize.py MODEL world/spatial

Every clip of the spatial preset shows two objects, one of which sounds now and then. Counted are the moments at 16
times of a clip at which something sounds. Beside the methods of `localize` stand the centre of the frame, chance (the
mean share of patches in the object's box), and each method with the audio of another clip and with noise, which tells
what of the result is owed to the frame alone. "Right of two" is the share of moments whose highest patch is nearer to
the sounding object than to the silent one. The cost of the frame's maps is that of as many passes of both towers
forward over the same moments, processor time, the quickest of several.

In the spectrogram, the highest patch should lie at a time at which the object sounds; counted are windows that hold at
least a quarter of silence. Beside it stands the middle of the window, which is where a window's own moment is.
"""

import argparse
import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import torch

from cavmae_sync_hf.inference.local import local_maps, settle_peaks
from cavmae_sync_hf.inference.localize import METHODS, LocalizationResult, localize
from cavmae_sync_hf.inference.occlusion import occlusion_maps
from cavmae_sync_hf.inference.relevance import relevance_maps
from cavmae_sync_hf.loading import load_model
from cavmae_sync_hf.metrics.localization import (
    boxes_in_view,
    localization_metrics,
    peak_positions,
    pointing_accuracy,
    time_pointing_accuracy,
)
from cavmae_sync_hf.model.alignment_cavmae_sync import frame_at
from cavmae_sync_hf.model.media_cavmae_sync import decode_media
from cavmae_sync_hf.syncworld import read_truth

MOST_SOUND = 0.75  # share of a window


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("world", help="a SyncWorld split, best of the spatial preset")
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["relevance", "occlusion", "cosine"])
    parser.add_argument("--no-control", action="store_true", help="leave out the audio of another clip")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


class Scene:
    """Maps and truths of the moments at which something sounds."""

    def __init__(self, side: int, shortest_edge: int) -> None:
        self.side, self.shortest_edge = side, shortest_edge
        self.maps: list[np.ndarray] = []
        self.boxes: list[torch.Tensor] = []
        self.silent: list[torch.Tensor] = []
        self.time_maps: list[np.ndarray] = []
        self.spans: list[list[list[float]]] = []
        self.windows: list[np.ndarray] = []

    def add(self, record: dict[str, Any], found: LocalizationResult) -> None:
        for place, boxes in enumerate(record["sounding_boxes"]):
            if not boxes or not found.present[place]:
                continue
            moment = record["frame_times"][place]
            frame = min(frame_at(moment, record["fps"]), record["num_video_frames"] - 1)
            others = [item["boxes"][frame] for item in record["objects"] if not item["sounding"]]
            self.maps.append(found.video_maps[place])
            self.boxes.append(self._in_view(record, boxes))
            self.silent.append(self._in_view(record, others))
            on = {event["object"] for event in record["events"] if event["start"] <= moment < event["end"]}
            spans = [[event["start"], event["end"]] for event in record["events"] if event["object"] in on]
            window = found.window_times[place]
            heard = sum(max(0.0, min(window[1], end) - max(window[0], start)) for start, end in spans)
            if heard <= MOST_SOUND * (window[1] - window[0]):
                self.time_maps.append(found.audio_maps[place])
                self.spans.append(spans)
                self.windows.append(window)

    def _in_view(self, record: dict[str, Any], boxes: list[list[int]]) -> torch.Tensor:
        return boxes_in_view(boxes, (record["height"], record["width"]), self.side, self.shortest_edge)

    @property
    def view(self) -> tuple[int, int]:
        return self.side, self.side

    def right_of_two(self) -> float:
        """Share of moments whose highest patch is nearer to the sounding object."""
        peaks = peak_positions(torch.from_numpy(np.stack(self.maps)), self.view)
        wins = [
            float(_distance(peak, own) < _distance(peak, other))
            for peak, own, other in zip(peaks, self.boxes, self.silent, strict=True)
            if len(own) and len(other)
        ]
        return float(np.mean(wins))


def _distance(point: torch.Tensor, boxes: torch.Tensor) -> float:
    """Pixels from a point to the centre of the nearest box."""
    centres = torch.stack([boxes[:, 0::2].mean(dim=1), boxes[:, 1::2].mean(dim=1)], dim=1)
    return float(torch.linalg.vector_norm(centres - point, dim=1).min())


def run(records: list[dict[str, Any]], scene: Scene, find: Callable[[int], LocalizationResult]) -> float:
    began = time.perf_counter()
    for place, record in enumerate(records):
        scene.add(record, find(place))
    return time.perf_counter() - began


def centre_maps(count: int, grid: tuple[int, int]) -> torch.Tensor:
    """Maps that are highest in the middle."""
    rows, columns = (torch.arange(side) - (side - 1) / 2 for side in grid)
    return -(rows[:, None].square() + columns.square()).expand(count, -1, -1)


def report(name: str, scene: Scene, maps: torch.Tensor) -> None:
    metrics = localization_metrics(maps, scene.boxes, scene.view)
    near = pointing_accuracy(maps, scene.boxes, scene.view, tolerance=15 / 224 * scene.side)
    print(f"  {name}")
    print(
        f"    pointing {metrics['pointing_accuracy']:.1%} (chance {metrics['pointing_chance']:.1%}), within 15/224 "
        f"{near['accuracy']:.1%} (chance {near['chance']:.1%})"
    )
    print(
        f"    box IoU {metrics['box_iou']:.3f}, at least 0.5: {metrics['box_accuracy']:.1%}; cIoU at least 0.5: "
        f"{metrics['ciou_success']:.1%}, AUC {metrics['ciou_auc']:.3f}",
        flush=True,
    )


@torch.no_grad()
def cost(model: Any, processor: Any, record: dict[str, Any], method: str, repeats: int = 5) -> float:
    """Processor time of a pass forward and of a method's maps of the frames, in passes forward."""
    inputs = processor(videos=record["path"], return_tensors="pt")
    embeds = model(**inputs).audio_embeds
    frames = inputs["pixel_values_videos"]

    def make_local_maps() -> None:
        output = model(**inputs, output_local_embeds=True)
        maps = local_maps(output.video_embeds, output.local_video_embeds, embeds, model.config.video_grid)
        settle_peaks(model, "video", frames, output.video_embeds, embeds, maps)

    makers: dict[str, Callable[[], Any]] = {
        "relevance": lambda: relevance_maps(model, "video", frames, embeds),
        "occlusion": lambda: occlusion_maps(model, "video", frames, embeds),
        "local": make_local_maps,
    }
    works: dict[str, Callable[[], Any]] = {"forward": lambda: model(**inputs), "maps": makers[method]}
    best = dict.fromkeys(works, float("inf"))
    for _ in range(repeats):
        for name, work in works.items():
            began = time.process_time()
            work()
            best[name] = min(best[name], time.process_time() - began)
    return (method != "local") + best["maps"] / best["forward"]  # local heads take part in the pass forward


def main() -> None:
    arguments = parse_arguments()
    model, processor = load_model(arguments.model, device=arguments.device, modalities="both")
    records = list(islice(read_truth(arguments.world), arguments.clips))
    side, edge = model.config.image_size, processor.video_processor.size["shortest_edge"]
    rate = processor.feature_extractor.sampling_rate
    for method in arguments.methods:
        options: dict[str, Any] = {"method": method, "fingerprint": "-"}

        def find(place: int, audio: Any = None, options: dict[str, Any] = options) -> LocalizationResult:
            record = records[place]
            fps = len(record["frame_times"]) / record["duration"]
            return localize(
                model,
                processor,
                record["path"],
                audio,
                fps=fps,
                sampling_rate=None if audio is None else rate,
                **options,
            )

        def find_with_other_audio(place: int, find: Callable[..., LocalizationResult] = find) -> LocalizationResult:
            other = records[(place + 2) % len(records)]["path"]
            return find(place, decode_media(other, sampling_rate=rate, want_video=False).waveform)

        def find_with_noise(place: int, find: Callable[..., LocalizationResult] = find) -> LocalizationResult:
            samples = np.random.default_rng(place).normal(0, 0.1, round(records[place]["duration"] * rate))
            return find(place, samples.astype(np.float32)[None])

        scene = Scene(side, edge)
        seconds = run(records, scene, find)
        maps = torch.from_numpy(np.stack(scene.maps))
        print(f"{method}: {len(maps)} moments of {len(records)} clips, {seconds / len(records):.2f} s per clip")
        if method == arguments.methods[0]:
            report("centre of the frame", scene, centre_maps(len(maps), model.config.video_grid))
        report(method, scene, maps)
        print(f"    right of two {scene.right_of_two():.1%} (chance 50 %)")
        if method not in ("cosine", "dense"):
            print(f"    cost of the frames' maps, in passes forward: {cost(model, processor, records[0], method):.1f}")
        if not arguments.no_control:
            control = Scene(side, edge)
            run(records, control, find_with_other_audio)
            report(f"{method}, another clip's audio", control, torch.from_numpy(np.stack(control.maps)))
            print(f"    right of two {control.right_of_two():.1%}")
            noise = Scene(side, edge)
            run(records, noise, find_with_noise)
            report(f"{method}, noise", noise, torch.from_numpy(np.stack(noise.maps)))
        if scene.time_maps:
            heard = torch.from_numpy(np.stack(scene.time_maps))
            windows = torch.from_numpy(np.stack(scene.windows))
            own = time_pointing_accuracy(heard, scene.spans, windows)
            middle = time_pointing_accuracy(centre_maps(len(heard), model.config.audio_grid), scene.spans, windows)
            print(
                f"    in the spectrogram, by time: {own['accuracy']:.1%} of {own['maps']} windows (chance "
                f"{own['chance']:.1%}, middle of the window {middle['accuracy']:.1%})",
                flush=True,
            )


if __name__ == "__main__":
    main()
