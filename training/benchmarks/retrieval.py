"""How fast are clip similarities and retrieval ranks, against a double loop over pairs of clips, and in what memory?

    python training/benchmarks/retrieval.py                                       # 1,545 clips; ranks of 20,000
    python training/benchmarks/retrieval.py --rank-clips 1000000 --rank-seconds 60
    python training/benchmarks/retrieval.py --device cuda --rank-clips 1000000

The published evaluation compares every pair of clips in a Python double loop. Four ways to write its body, all our
own, are timed on a few clips, in turns with ours on all of them, so that a busy machine slows both; the loop's time
for all clips is extrapolated from its pairs, which are independent. Embeddings are random: only the work is measured.
Ranks are counted from memory maps in half precision; where the time is limited, the blocks done by then give the whole
by proportion.
"""

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cosine_similarity, normalize

from cavmae_sync_hf.evaluation.retrieval import STRATEGIES, clip_similarity, count_blocks, paired_similarity
from cavmae_sync_hf.evaluation.similarity import make_sides, similarity_blocks

TOLERANCE = 1e-6


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clips", type=int, default=1545)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--loop-clips", type=int, default=24, help="clips of the double loop")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rank-clips", type=int, default=20_000, help="clips, of one vector each; 0 to leave it out")
    parser.add_argument("--rank-seconds", type=float, default=float("inf"), help="stop counting ranks after so long")
    parser.add_argument("--chunk-mib", type=int, default=256, help="memory budget of the ranks")
    return parser.parse_args()


def cosine_table(audio: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
    """All cosines of two clips by broadcasting."""
    return cosine_similarity(audio[:, None], video[None], dim=-1)


def product_table(audio: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
    """All cosines of two clips as a product of normalised frames."""
    return normalize(audio, dim=-1) @ normalize(video, dim=-1).T


def numpy_table(audio: np.ndarray, video: np.ndarray) -> np.ndarray:
    """The product in numpy."""
    lengths = np.linalg.norm(audio, axis=1)[:, None] * np.linalg.norm(video, axis=1)
    return audio @ video.T / lengths


def frame_by_frame_table(audio: np.ndarray, video: np.ndarray) -> np.ndarray:
    """The cosine of every pair of frames on its own, in numpy."""
    return np.array(
        [[np.dot(one, other) / (np.linalg.norm(one) * np.linalg.norm(other)) for other in video] for one in audio]
    )


def double_loop(audio: torch.Tensor, video: torch.Tensor, table: Callable) -> torch.Tensor:
    """Diagonal means of every pair of clips, one pair at a time."""
    result = torch.empty(len(audio), len(video))
    for i in range(len(audio)):
        for j in range(len(video)):
            if table in (numpy_table, frame_by_frame_table):
                result[i, j] = float(table(audio[i].numpy(), video[j].numpy()).diagonal().mean())
            else:
                result[i, j] = table(audio[i], video[j]).diagonal().mean()
    return result


def seconds(work: Callable[[], object], device: str) -> float:
    """Wall-clock seconds of one call, the device's queue included."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(arguments: argparse.Namespace) -> None:
    """Print our time for each strategy, and the double loops'."""
    shape = (arguments.clips, arguments.frames, arguments.hidden)
    generator = torch.Generator().manual_seed(0)
    audio, video = (torch.randn(shape, generator=generator) for _ in range(2))
    few = audio[: arguments.loop_clips], video[: arguments.loop_clips]
    there = audio.to(arguments.device), video.to(arguments.device)
    loops = {
        "frame by frame, numpy": frame_by_frame_table,
        "cosines by broadcasting": cosine_table,
        "normalised product": product_table,
        "normalised product, numpy": numpy_table,
    }
    expected = clip_similarity(*few)
    for table in loops.values():
        torch.testing.assert_close(double_loop(*few, table), expected, atol=1e-5, rtol=0)

    works = {strategy: (lambda s=strategy: clip_similarity(*there, s)) for strategy in STRATEGIES}
    works |= {name: (lambda t=table: double_loop(*few, t)) for name, table in loops.items()}
    for strategy in STRATEGIES:
        works[strategy]()
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(arguments.repeats):
        for name, work in works.items():
            times[name].append(seconds(work, arguments.device))
    medians = {name: statistics.median(values) for name, values in times.items()}

    print(f"{arguments.clips} clips of {arguments.frames} frames of {arguments.hidden}, median of {arguments.repeats}")
    for strategy in STRATEGIES:
        print(f"  ours, {strategy:34} {medians[strategy]:10.3f} s")
    pairs = (arguments.clips / arguments.loop_clips) ** 2
    print(f"double loop, diagonal_mean, on the CPU: measured on {arguments.loop_clips} clips, extrapolated to all")
    for name in loops:
        whole = medians[name] * pairs
        print(f"  {name:40} {whole:10.1f} s", end="")
        print(f"  ({medians[name]:.3f} s measured; ours is {whole / medians['diagonal_mean']:,.0f} times as fast)")


class MemoryWatch:
    """Highest memory of the process's own (pages of mapped files left out) beyond what it held at the start."""

    def __init__(self, device: str) -> None:
        self.device, self.highest, self.stop = device, 0, threading.Event()

    def __enter__(self) -> "MemoryWatch":
        self.start = self.held()
        if self.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()

    def watch(self) -> None:
        while not self.stop.wait(0.005):
            self.highest = max(self.highest, self.held() - self.start)

    @staticmethod
    def held() -> int:
        """Bytes, or 0 where the system does not say."""
        status = Path("/proc/self/status")
        lines = status.read_text().splitlines() if status.exists() else []
        return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

    def text(self) -> str:
        host = f"{self.highest / 2**20:.0f} MiB" if self.start else "not measured here"
        device = f", device {torch.cuda.max_memory_allocated() / 2**20:.0f} MiB"
        return f"highest extra memory: host {host}{device if self.device.startswith('cuda') else ''}"


def make_maps(folder: Path, clips: int, hidden: int) -> tuple[np.ndarray, np.ndarray]:
    """Clip vectors as memory maps in half precision: the video's are the audio's with noise."""
    paths = folder / "audio.npy", folder / "video.npy"
    maps = [np.lib.format.open_memmap(path, "w+", np.float16, (clips, 1, hidden)) for path in paths]
    generator = torch.Generator().manual_seed(0)
    for start in range(0, clips, 50_000):
        count = min(50_000, clips - start)
        sounds = torch.randn(count, 1, hidden, generator=generator)
        maps[0][start : start + count] = sounds.numpy()
        maps[1][start : start + count] = (sounds + 4 * torch.randn(sounds.shape, generator=generator)).numpy()
    del maps
    return np.load(paths[0], mmap_mode="r"), np.load(paths[1], mmap_mode="r")


def rank(arguments: argparse.Namespace) -> None:
    """Print time and memory of counting the ranks of many clips, both directions."""
    clips, budget = arguments.rank_clips, arguments.chunk_mib * 2**20
    progress = {"pairs": 0, "blocks": 0}

    def until_time_is_up(blocks: Iterator) -> Iterator:
        start = time.perf_counter()
        for rows, columns, scores in blocks:
            yield rows, columns, scores
            progress["pairs"] += scores.numel()
            progress["blocks"] += 1
            if time.perf_counter() - start > arguments.rank_seconds:
                return

    # Beside the results of other runs, not in a temporary folder that may be memory.
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".benchmark-") as folder:
        audio, video = make_maps(Path(folder), clips, arguments.hidden)
        sides = make_sides(audio, video, None, None, "mean", True, arguments.device)
        with torch.no_grad(), MemoryWatch(arguments.device) as memory:
            start = time.perf_counter()
            true = paired_similarity(audio, video, "mean", chunk_bytes=budget, device=arguments.device)
            blocks = until_time_is_up(similarity_blocks(*sides, budget))
            by_audio, _ = count_blocks(true.to(arguments.device), blocks, TOLERANCE)
            took = time.perf_counter() - start
    share = progress["pairs"] / clips**2
    print(f"ranks of {clips:,} clips of one vector of {arguments.hidden}, both directions, budget ", end="")
    print(f"{arguments.chunk_mib} MiB (the whole matrix has {4 * clips**2 / 2**30:,.1f} GiB)")
    print(f"  {took:.1f} s for {share:.2%} of the pairs in {progress['blocks']} blocks", end="")
    print("" if share == 1 else f"; all of them would take {took / share / 3600:.1f} h by proportion")
    print(f"  {memory.text()}")
    if share == 1:
        print(f"  R@1 of the audio queries {float(by_audio.recalls(1).mean()):.1%}")


def main() -> None:
    arguments = parse_arguments()
    print(f"torch {torch.__version__}, {arguments.device}, {torch.get_num_threads()} threads")
    if arguments.rank_clips:
        rank(arguments)
    compare(arguments)


if __name__ == "__main__":
    main()
