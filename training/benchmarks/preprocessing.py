"""Speed at which the processor turns video files into model inputs, against decoding the same file alone.

    python training/benchmarks/preprocessing.py                  # a made 10 s, 720p clip
    python training/benchmarks/preprocessing.py my_video.mp4 --clips 20
    python training/benchmarks/preprocessing.py --against OTHER_CHECKOUT/src --rounds 5

Prints clips per second of a bare decoding pass (every packet of both tracks, nothing kept), of `decode_media` (frames
chosen, audio resampled) and of the whole processor, taking turns on the same file, and their ratios. The decode-only
pass uses as many threads as the processor's decoder. With `--against`, both versions of the package measure in
processes of their own that take turns.
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import torch

from cavmae_sync_hf import CavMaeSyncConfig, CavMaeSyncProcessor

try:
    from cavmae_sync_hf.model.media_cavmae_sync import decode_media
except ModuleNotFoundError:  # 0.1.0, with --against
    decode_media = importlib.import_module("cavmae_sync_hf.media_cavmae_sync").decode_media


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", nargs="?", help="a video file; made on the spot when absent")
    parser.add_argument("--clips", type=int, default=7, help="how often each stage runs")
    parser.add_argument("--height", type=int, default=720, help="of the made clip, 16:9")
    parser.add_argument("--batch", type=int, default=4, help="files per call of the batched processor")
    parser.add_argument("--against", type=Path, help="source folder of another version of the package")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each version, with --against")
    parser.add_argument("--json", action="store_true", help="print the seconds of each stage alone")
    return parser.parse_args()


def make_clip(path: Path, height: int, seconds: int = 10, fps: int = 25) -> None:
    """A moving, textured image (so that the codec has to work) with tones, H.264 and AAC."""
    width = height * 16 // 9 // 2 * 2
    texture = np.random.default_rng(0).integers(0, 256, (height // 4 + 64, width // 4 + 64, 3), dtype=np.uint8)
    texture = texture.repeat(4, axis=0).repeat(4, axis=1)
    time_axis = np.arange(seconds * 44_100) / 44_100
    tones = (0.3 * np.sin(2 * np.pi * (220 + 40 * np.floor(time_axis)) * time_axis)).astype(np.float32)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps, options={"crf": "23", "preset": "fast"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio = container.add_stream("aac", rate=44_100, layout="mono")
        for index in range(seconds * fps):
            shift = index % 200
            image = np.ascontiguousarray(texture[shift : shift + height, shift : shift + width])
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        frame = av.AudioFrame.from_ndarray(tones[None], format="fltp", layout="mono")
        frame.sample_rate = 44_100
        container.mux(audio.encode(frame))
        for stream in (video, audio):
            container.mux(stream.encode(None))


def decode_only(path: str) -> None:
    """Decode every packet of both tracks and keep nothing."""
    with av.open(path) as container:
        for stream in container.streams:
            if stream.type in ("audio", "video"):
                stream.thread_type = "AUTO"
        for packet in container.demux(video=0, audio=0):
            packet.decode()


def measure(path: str, clips: int, batch: int) -> dict[str, float]:
    """Median seconds for a file of each stage; the stages take turns."""
    processor = CavMaeSyncProcessor.from_config(CavMaeSyncConfig())
    stages: dict[str, tuple[int, Callable[[], object]]] = {
        "decode only": (1, lambda: decode_only(path)),
        "decode_media": (1, lambda: decode_media(path)),
        "processor, one file": (1, lambda: processor(videos=path, return_tensors="pt")),
        f"processor, {batch} files a call": (batch, lambda: processor(videos=[path] * batch, return_tensors="pt")),
    }
    times: dict[str, list[float]] = {name: [] for name in stages}
    for turn in range(clips + 1):
        for name, (files, work) in stages.items():
            start = time.perf_counter()
            work()
            if turn:  # the first turn warms up
                times[name].append((time.perf_counter() - start) / files)
    return {name: statistics.median(values) for name, values in times.items()}


def compare(path: str, arguments: argparse.Namespace) -> None:
    """Print the seconds of both versions, and their ratio."""
    versions = [Path(__file__).resolve().parents[2] / "src", arguments.against.resolve()]
    command = [sys.executable, __file__, path, "--json", "--clips", arguments.clips, "--batch", arguments.batch]
    found: list[list[dict[str, float]]] = [[], []]
    for _ in range(arguments.rounds):
        for results, source in zip(found, versions, strict=True):
            environment = os.environ | {"PYTHONPATH": str(source)}
            done = subprocess.run(
                [str(word) for word in command], env=environment, check=True, stdout=subprocess.PIPE, text=True
            )
            results.append(json.loads(done.stdout.splitlines()[-1]))
    print(
        f"median seconds of {arguments.rounds} turns of {arguments.clips} (lowest to highest): this version, the other"
    )
    for name in found[0][0]:
        ours, theirs = ([result[name] for result in results] for results in found)
        shown = [
            f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})" for values in (ours, theirs)
        ]
        ratio = statistics.median(ours) / statistics.median(theirs)
        print(f"{name:28} {shown[0]}   {shown[1]}   ratio {ratio:.3f}")


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.video
        if path is None:
            path = str(Path(folder) / "clip.mp4")
            make_clip(Path(path), arguments.height)
        if arguments.against is not None:
            compare(path, arguments)
            return
        seconds = measure(path, arguments.clips, arguments.batch)
    if arguments.json:
        print(json.dumps(seconds))
        return
    print(f"{Path(arguments.video).name if arguments.video else f'made clip, {arguments.height}p, 10 s'}; ", end="")
    print(f"{torch.get_num_threads()} threads, PyAV {av.__version__}, median of {arguments.clips} turns")
    for name, value in seconds.items():
        print(f"{name:28} {1 / value:7.2f} clips/s   {seconds['decode only'] / value:6.1%} of decode only")


if __name__ == "__main__":
    main()
