"""Speed of `cavmae-sync prepare`, against decoding alone and against the published way of preparing data.

    python training/benchmarks/prepare.py                          # made 10 s clips, 720p
    python training/benchmarks/prepare.py my_video.mp4 --rounds 3

Four ways take turns on the same files, in processes with one thread each, as many as there are cores:

- decode only: every packet of both tracks, nothing kept;
- prepare: this package's shards, written to the disk with their checksums;
- prepare + load: the same, and all frames and windows read back out of them as model inputs;
- published: a shell runs ffmpeg for the audio, OpenCV picks frames that are saved as JPEG; loading opens each frame
  and computes the spectrogram of the whole clip anew for each of them.

ffmpeg is the one on the PATH, else that of the package imageio-ffmpeg; OpenCV is opencv-python-headless.
"""

import argparse
import functools
import os
import shlex
import shutil
import statistics
import subprocess
import tempfile
import time
import wave
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

from cavmae_sync_hf import CavMaeSyncConfig, CavMaeSyncProcessor
from cavmae_sync_hf.data.engines import run_processes
from cavmae_sync_hf.data.packing import PrepareOptions
from cavmae_sync_hf.data.prepare import ShardJob, ShardTask, shard_tasks
from cavmae_sync_hf.data.shards import read_shard
from cavmae_sync_hf.data.sources import read_source
from cavmae_sync_hf.files import usable_cores

FRAMES, WINDOW, REFERENCE_LENGTH = 16, 416, 1024


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", nargs="?", help="a video file; made on the spot when absent")
    parser.add_argument("--clips", type=int, default=4, help="clips per process, way and round")
    parser.add_argument("--rounds", type=int, default=3, help="how often each way runs")
    parser.add_argument("--processes", type=int, default=usable_cores())
    parser.add_argument("--height", type=int, default=720, help="of the made clip, 16:9")
    return parser.parse_args()


def make_clip(path: Path, height: int, seconds: int = 10, fps: int = 25) -> None:
    """A camera that sways over a scene with the detail of a photograph, something that moves in it, and tones."""
    width = height * 16 // 9 // 2 * 2
    generator = np.random.default_rng(0)
    scene, thing = _texture(height + 200, width + 400, generator), _texture(height // 4, height // 4, generator)
    grain = [generator.normal(0, 2, (height, width, 1)) for _ in range(4)]
    clock = np.arange(seconds * 44_100) / 44_100
    waveform = (0.3 * np.sin(2 * np.pi * (220 + 40 * np.floor(clock)) * clock)).astype(np.float32)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps, options={"crf": "23", "preset": "medium"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio = container.add_stream("aac", rate=44_100, layout="mono")
        for index in range(seconds * fps):
            x, y = int(200 + 190 * np.sin(index / 40)), int(100 + 90 * np.cos(index / 55))
            image = (scene[y : y + height, x : x + width] + grain[index % 4]).clip(0, 255).astype(np.uint8)
            top, left = (int(size * 0.37 * (1 + np.sin(index / 12 + size))) for size in (height, width))
            image[top : top + len(thing), left : left + len(thing)] = thing
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        frame = av.AudioFrame.from_ndarray(waveform[None], format="fltp", layout="mono")
        frame.sample_rate = 44_100
        container.mux(audio.encode(frame))
        for stream in (video, audio):
            container.mux(stream.encode(None))


def _texture(height: int, width: int, generator: np.random.Generator) -> np.ndarray:
    """Noise whose amplitude falls with the frequency, as in photographs; the channels are alike."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]).clip(1 / width) ** 1.2
    noise = [np.fft.irfft2(np.fft.rfft2(generator.normal(size=(height, width))) / frequency) for _ in range(4)]
    planes = [layer / layer.std() for layer in noise]
    image = np.stack([120 + 45 * (0.8 * planes[3] + 0.4 * plane) for plane in planes[:3]], axis=-1)
    return image.clip(0, 255).astype(np.uint8)


def decode_only(path: str, folder: Path) -> None:
    """Decode every packet of both tracks and keep nothing."""
    with av.open(path) as container:
        container.streams.video[0].codec_context.thread_count = 1
        for packet in container.demux(video=0, audio=0):
            packet.decode()


def prepared(path: str, folder: Path, load: bool = False) -> None:
    """A shard of one clip, by the function that every engine runs, and with `load` the model's inputs out of it."""
    (task,) = shard_tasks(read_source(path).records, 1)
    job = ShardJob(folder, folder, "bench", PrepareOptions())
    note = job(task)
    if not load:
        return
    for clip in read_shard(folder / note["file"]):
        processor = _processor()
        processor.video_processor(clip.frames(), return_tensors="pt")
        processor.feature_extractor.windows(torch.from_numpy(clip.log_mel).float(), clip.info["frame_times"])


@functools.cache
def _processor() -> CavMaeSyncProcessor:
    return CavMaeSyncProcessor.from_config(CavMaeSyncConfig())


def published(path: str, folder: Path, load: bool = True) -> None:
    """The published scripts' steps: audio by a shell command, frames by seeking, then a sample per frame."""
    wav = folder / "clip.wav"
    command = f"{shlex.quote(_ffmpeg())} -y -loglevel error -i {shlex.quote(path)} -vn -ac 1 -ar 16000 {wav}"
    subprocess.run(command, shell=True, check=True)
    extract_frames(path, folder)
    if load:
        for number in range(FRAMES):
            load_frame(folder, number)


def extract_frames(path: str, folder: Path) -> None:
    """Frames spread over the first ten seconds, resized and cropped to 224 pixels, each in a folder of its number."""
    import cv2
    from torchvision import transforms
    from torchvision.utils import save_image

    cv2.setNumThreads(1)
    shape = transforms.Compose(
        [
            transforms.Resize(224, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
        ]
    )
    capture = cv2.VideoCapture(path)
    total = min(int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), int(10 * capture.get(cv2.CAP_PROP_FPS)))
    for number in range(FRAMES):
        capture.set(cv2.CAP_PROP_POS_FRAMES, int(number * total / FRAMES))
        _, image = capture.read()
        target = folder / f"frame_{number}"
        target.mkdir(exist_ok=True)
        save_image(shape(Image.fromarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))), target / "clip.jpg")


def load_frame(folder: Path, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One frame and its window; the spectrogram of the whole clip is computed for each."""
    from torchaudio.compliance import kaldi
    from torchvision.transforms import functional

    with wave.open(str(folder / "clip.wav")) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype=np.int16)
    waveform = torch.from_numpy(samples.astype(np.float32) / 32768)[None]
    spectrogram = kaldi.fbank(
        waveform - waveform.mean(), htk_compat=True, sample_frequency=16000, use_energy=False, window_type="hanning",
        num_mel_bins=128, dither=0.0, frame_shift=10,
    )  # fmt: skip
    spectrogram = torch.nn.functional.pad(spectrogram, (0, 0, 0, max(0, REFERENCE_LENGTH - len(spectrogram))))
    start = min(max(0, round(number * REFERENCE_LENGTH / FRAMES) - WINDOW // 2), REFERENCE_LENGTH - WINDOW)
    with Image.open(folder / f"frame_{number}" / "clip.jpg") as image:
        pixels = functional.to_tensor(functional.resize(image.convert("RGB"), 224))
    pixels = functional.normalize(pixels, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return (spectrogram[start : start + WINDOW] + 5.081) / 4.4849, pixels


@functools.cache
def _ffmpeg() -> str:
    found = shutil.which("ffmpeg")
    if found is None:
        import imageio_ffmpeg

        found = imageio_ffmpeg.get_ffmpeg_exe()
    return found


WAYS: dict[str, Callable[[str, Path], None]] = {
    "decode only": decode_only,
    "prepare": prepared,
    "prepare + load": functools.partial(prepared, load=True),
    "published extraction": functools.partial(published, load=False),
    "published extraction + load": published,
}


@dataclass
class Turn:
    """One way in one process: it warms up, waits for the other processes, then goes over its clips."""

    way: str
    path: str
    clips: int
    processes: int
    folder: str

    def __call__(self, task: ShardTask, begin: Callable[[int], None], skip: Any) -> tuple[float, float, float]:
        torch.set_num_threads(1)
        work = WAYS[self.way]
        with tempfile.TemporaryDirectory(dir=self.folder) as own:
            work(self.path, Path(own))
            Path(self.folder, f"ready-{task.number}").touch()
            while len(list(Path(self.folder).glob("ready-*"))) < self.processes:
                time.sleep(0.002)
            start, used = time.perf_counter(), sum(os.times()[:4])  # with what child processes used
            for _ in range(self.clips):
                work(self.path, Path(own))
            return start, time.perf_counter(), sum(os.times()[:4]) - used


def measure(way: str, path: str, arguments: argparse.Namespace) -> tuple[float, float]:
    """Clips per second of all processes together, and processor seconds per clip."""
    with tempfile.TemporaryDirectory() as folder:
        turn = Turn(way, path, arguments.clips, arguments.processes, folder)
        tasks = [ShardTask(number, 0, ()) for number in range(arguments.processes)]
        spans = list(run_processes(turn, tasks, arguments.processes))
    clips = arguments.clips * arguments.processes
    starts, ends, used = zip(*spans, strict=True)
    return clips / (max(ends) - min(starts)), sum(used) / clips


def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        path = arguments.video
        if path is None:
            path = str(Path(folder) / "clip.mp4")
            make_clip(Path(path), arguments.height)
        rates: dict[str, list[float]] = {way: [] for way in WAYS}
        costs: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(arguments.rounds):
            for way in WAYS:
                rate, cost = measure(way, path, arguments)
                rates[way].append(rate)
                costs[way].append(cost)
        size = Path(path).stat().st_size
    print(
        f"{Path(path).name if arguments.video else f'made clip, {arguments.height}p, 10 s'}, {size / 1e6:.1f} MB; ",
        end="",
    )
    print(f"{arguments.processes} processes, PyAV {av.__version__}, median of {arguments.rounds} rounds")
    for way, values in rates.items():
        print(f"{way:28} {statistics.median(values):7.2f} clips/s {min(costs[way]):8.3f} processor s/clip")
    for ours, other in (
        ("prepare", "decode only"),
        ("prepare", "published extraction"),
        ("prepare + load", "published extraction + load"),
    ):
        # Of the same round, so that other work on the machine weighs on both.
        ratio = statistics.median(a / b for a, b in zip(rates[ours], rates[other], strict=True))
        cost = min(costs[other]) / min(costs[ours])
        print(f"{ours} / {other}: {ratio:.2f} (by processor time {cost:.2f})")


if __name__ == "__main__":
    main()
