"""How fast are clip similarities and retrieval ranks, against a double loop over pairs of clips, and in what memory?

    python training/benchmarks/retrieval.py                                       # 1,545 clips; ranks of 20,000
    python training/benchmarks/retrieval.py --rank-clips 1000000 --rank-seconds 60
    python training/benchmarks/retrieval.py --device cuda --rank-clips 1000000

The published evaluation compares every pair of clips in a Python double loop. Its body for the diagonal mean computes
one cosine per moment, NumPy's dot product and norms of rows that are torch tensors, and takes their mean: that body is
timed in turns with ours (in our words); other ways to write one follow. It runs the loop once for each direction; ours
ranks both from one product. Loops are timed on a few clips, and the time for all clips is extrapolated from the pairs,
which are independent. The least of several times counts, since other work on the machine only adds to them. It slows
two threads more than one, so wait for a quiet machine; processor time, also printed, depends on it less. Embeddings
are random: only the work is measured. Ranks are counted from memory maps in half precision; where the time is limited,
the blocks done by then give the whole by proportion.
"""

import argparse
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import cosine_similarity, normalize

from cavmae_sync_hf.metrics.retrieval import count_blocks, retrieval_metrics
from cavmae_sync_hf.metrics.similarity import (
    STRATEGIES,
    clip_similarity,
    make_sides,
    paired_similarity,
    similarity_blocks,
)

TOLERANCE = 1e-6


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--clips", type=int, default=1545)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--loop-clips", type=int, default=24, help="clips of the double loop")
    parser.add_argument("--repeats", type=int, default=5, help="times that each is measured; the least counts")
    parser.add_argument("--rank-clips", type=int, default=20_000, help="clips, of one vector each; 0 to leave it out")
    parser.add_argument("--rank-seconds", type=float, default=float("inf"), help="stop counting ranks after so long")
    parser.add_argument("--chunk-mib", type=int, default=256, help="memory budget of the ranks")
    return parser.parse_args()


def moment_by_moment(audio: torch.Tensor, video: torch.Tensor) -> float:
    """As published: one cosine per moment, by NumPy functions that are given rows of torch tensors."""
    cosines = [
        np.dot(audio[moment], video[moment]) / (np.linalg.norm(audio[moment]) * np.linalg.norm(video[moment]))
        for moment in range(len(audio))
    ]
    return float(np.mean(cosines))


def all_moments(audio: torch.Tensor, video: torch.Tensor) -> float:
    """One cosine per pair of moments, in NumPy throughout (the published body for the other strategies, on arrays)."""
    left, right = audio.numpy(), video.numpy()
    table = [[np.dot(one, other) / (np.linalg.norm(one) * np.linalg.norm(other)) for other in right] for one in left]
    return float(np.diagonal(table).mean())


def broadcasting(audio: torch.Tensor, video: torch.Tensor) -> float:
    """All cosines of two clips at once."""
    return float(cosine_similarity(audio[:, None], video[None], dim=-1).diagonal().mean())


def torch_product(audio: torch.Tensor, video: torch.Tensor) -> float:
    """All cosines of two clips as a product of normalised moments."""
    return float((normalize(audio, dim=-1) @ normalize(video, dim=-1).T).diagonal().mean())


def numpy_product(audio: torch.Tensor, video: torch.Tensor) -> float:
    """The product in NumPy."""
    left, right = audio.numpy(), video.numpy()
    lengths = np.linalg.norm(left, axis=1)[:, None] * np.linalg.norm(right, axis=1)
    return float((left @ right.T / lengths).diagonal().mean())


BODIES: dict[str, Callable[[torch.Tensor, torch.Tensor], float]] = {
    "as published, moment by moment": moment_by_moment,
    "every pair of moments, NumPy": all_moments,
    "cosines by broadcasting, torch": broadcasting,
    "normalised product, torch": torch_product,
    "normalised product, NumPy": numpy_product,
}


def double_loop(
    audio: torch.Tensor, video: torch.Tensor, body: Callable[[torch.Tensor, torch.Tensor], float]
) -> torch.Tensor:
    """Diagonal means of every pair of clips, one pair at a time."""
    return torch.tensor([[body(windows, frames) for frames in video] for windows in audio])


class Cost(NamedTuple):
    """What a call took, the device's queue included."""

    wall: float
    processor: float


def measure(work: Callable[[], object], device: str) -> Cost:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    wall, processor = time.perf_counter(), time.process_time()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return Cost(time.perf_counter() - wall, time.process_time() - processor)


def compare(arguments: argparse.Namespace) -> None:
    """Print our time for each strategy, and the double loops'."""
    shape = (arguments.clips, arguments.frames, arguments.hidden)
    generator = torch.Generator().manual_seed(0)
    audio, video = (torch.randn(shape, generator=generator) for _ in range(2))
    few = audio[: arguments.loop_clips], video[: arguments.loop_clips]
    there = audio.to(arguments.device), video.to(arguments.device)
    expected = clip_similarity(*few)
    for body in BODIES.values():
        torch.testing.assert_close(double_loop(*few, body), expected, atol=1e-5, rtol=0)

    works: dict[str, Callable[[], object]] = {
        "all similarities": lambda: clip_similarity(*there),
        "recall and ranks, both directions": lambda: retrieval_metrics(audio_embeds=there[0], video_embeds=there[1]),
    }
    ours, published = list(works), next(iter(BODIES))
    works[published] = lambda: double_loop(*few, BODIES[published])
    for name in ours:
        works[name]()
    costs: dict[str, list[Cost]] = {name: [] for name in works}
    for _ in range(arguments.repeats):
        for name, work in works.items():
            costs[name].append(measure(work, arguments.device))
    least = {name: Cost(*map(min, zip(*values, strict=True))) for name, values in costs.items()}

    pairs = (arguments.clips / arguments.loop_clips) ** 2
    print(
        f"{arguments.clips} clips of {arguments.frames} moments of {arguments.hidden}, diagonal mean, against the ",
        end="",
    )
    print(f"double loop as published ({least[published].wall:.3f} s for {arguments.loop_clips} clips, extrapolated)")
    for name, rounds in zip(ours, (1, 2), strict=True):
        mine, theirs = least[name], Cost(*(part * pairs * rounds for part in least[published]))
        print(f"  {name:36} ours {mine.wall:6.2f} s, published {theirs.wall:6,.0f} s: ", end="")
        print(f"{theirs.wall / mine.wall:,.0f} times as fast ", end="")
        print(f"({theirs.processor / mine.processor:,.0f} times in processor time)", flush=True)
    print("other double loops, all similarities, once each")
    for name in list(BODIES)[1:]:
        whole = measure(lambda n=name: double_loop(*few, BODIES[n]), "cpu").wall * pairs
        print(f"  {name:36} {whole:10.1f} s (ours is {whole / least[ours[0]].wall:,.0f} times as fast)", flush=True)
    print("ours, similarities by other strategies, once each")
    for strategy in STRATEGIES[1:]:
        took = measure(lambda s=strategy: clip_similarity(*there, s), arguments.device)
        print(f"  {strategy:36} {took.wall:10.1f} s", flush=True)


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
        block = torch.randn(count, 1, hidden, generator=generator)
        maps[0][start : start + count] = block.numpy()
        maps[1][start : start + count] = (block + 4 * torch.randn(block.shape, generator=generator)).numpy()
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
        sides = make_sides(audio, video, "mean", device=arguments.device)
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
    # NumPy warns about tensors' old way to be read, which is what the published body is made of.
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    print(f"torch {torch.__version__}, {arguments.device}, {torch.get_num_threads()} threads")
    compare(arguments)
    if arguments.rank_clips:
        rank(arguments)


if __name__ == "__main__":
    main()
