"""Damaged media files: bytes of small valid files are flipped, cut, spliced and moved, and every reader reads them.

    python tests/fuzz/damage.py --count 3000 --seed 0
    python tests/fuzz/damage.py --only ts:1234 --keep variant.ts

Nothing but `MediaError` may come of it, within time and memory. Each variant is made from its container, its number
and the seed alone, so that the second command makes it again.
"""

import argparse
import collections
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # the command runs without pytest

from cavmae_sync_hf.model.errors_cavmae_sync import MediaError
from cavmae_sync_hf.model.media_cavmae_sync import decode_media, probe_media
from cavmae_sync_hf.model.media_stream_cavmae_sync import iter_media
from helpers.bounded import BoundedCalls, Outcome
from helpers.clips import write_clip

SECONDS, MEMORY = 20.0, 1 << 30
# Container: how its clip is written, two seconds of video and audio each.
CLIPS = {
    "mp4": {"video_options": {"bf": "2"}},
    "mkv": {"video_codec": "libvpx-vp9", "audio_codec": "libopus", "rate": 48000, "video_options": {"cpu-used": "8"}},
    "avi": {"video_codec": "mpeg4", "audio_codec": "mp2"},
    "ts": {"video_codec": "mpeg2video", "audio_codec": "aac"},
    "flv": {"audio_codec": "aac"},
    "ogg": {"video_codec": "libvpx", "audio_codec": "flac"},
    "mov": {"video_codec": "mjpeg", "pixel_format": "yuvj420p", "audio_codec": "pcm_s16le"},
    "webm": {"video_codec": "libvpx", "audio_codec": "libopus", "rate": 48000, "video_options": {"cpu-used": "8"}},
    "h264.ts": {"video_options": {"bf": "2"}, "audio_codec": "ac3"},
    "fragments.mp4": {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "mpg": {"video_codec": "mpeg1video", "audio_codec": "mp2"},
    "wav": {"video": False, "audio_codec": "pcm_s16le"},
    "flac": {"video": False, "audio_codec": "flac"},
    "mp3": {"video": False, "audio_codec": "libmp3lame"},
}  # fmt: skip


def write_originals(folder: Path) -> dict[str, bytes]:
    """A small valid file of each container."""
    originals = {}
    for name, options in CLIPS.items():
        path = folder / f"clip.{name}"
        originals[name] = write_clip(path, size=(64, 48), gop=10, **options).read_bytes()
    return originals


def damaged(originals: dict[str, bytes], name: str, number: int, seed: int) -> bytes:
    """Variant `number` of a container's file."""
    choose = np.random.default_rng([seed, number, *name.encode()])
    data = bytearray(originals[name])

    def place(size: int = 0) -> int:
        # Half of all damage hits the headers and the index, at either end.
        whole = max(1, len(data) - size)
        near = min(whole, 2048)
        if choose.random() < 0.5:
            return int(choose.integers(whole))
        return int(choose.integers(near)) if choose.random() < 0.6 else whole - 1 - int(choose.integers(near))

    for _ in range(int(choose.integers(1, 4))):
        if not data:
            break
        kind = choose.choice(["flip", "number", "cut", "drop", "repeat", "splice", "noise", "zero", "swap", "join"])
        size = int(choose.integers(1, max(2, min(len(data), 1 << int(choose.integers(1, 14))))))
        first = place(size)
        if kind == "flip":
            for _ in range(int(choose.integers(1, 20))):
                data[place()] ^= 1 << int(choose.integers(8))
        elif kind == "number":  # a size, count or time becomes extreme
            width = int(choose.choice([2, 4, 8]))
            value = int(choose.choice([0, 1, 2, 0x7F, 0x80, 0xFF])) << (8 * int(choose.integers(width)))
            extreme = [value, (1 << 8 * width) - 1, 1 << (8 * width - 1), (1 << (8 * width - 1)) - 1][
                int(choose.integers(4))
            ]
            order = "big" if choose.random() < 0.5 else "little"
            first = place(width)
            data[first : first + width] = (extreme % (1 << 8 * width)).to_bytes(width, order)
        elif kind == "cut":
            del data[place() :]
        elif kind == "drop":
            del data[first : first + size]
        elif kind == "repeat":
            data[first:first] = data[first : first + size] * int(choose.integers(1, 8))
        elif kind == "splice":  # of another container
            other = originals[str(choose.choice(sorted(originals)))]
            begin = int(choose.integers(len(other)))
            data[first : first + size] = other[begin : begin + size]
        elif kind == "noise":
            data[first : first + size] = choose.bytes(size)
        elif kind == "zero":
            data[first : first + size] = bytes(size)
        elif kind == "swap":
            second = place(size)
            data[first : first + size], data[second : second + size] = (
                data[second : second + size],
                data[first : first + size],
            )
        elif kind == "join":
            data += originals[name][int(choose.integers(len(originals[name]))) :]
    return bytes(data)


def read_everything(path: str) -> str:
    """Read a file in every way; gives how often that was refused. Runs in a bounded process."""
    warnings.simplefilter("ignore")

    def stream(**options: str) -> None:
        for _ in iter_media(path, hop=0.3, num_frames=4, missing="mask", threads=1, **options):
            pass

    ways = [
        lambda: probe_media(path),
        lambda: decode_media(path, num_frames=4, threads=1),
        lambda: decode_media(path, num_frames=4, missing="mask", damaged="keep", threads=1),
        lambda: decode_media(path, num_frames=4, missing="mask", damaged="keep", start=0.7, end=1.4, threads=1),
        lambda: decode_media(path, num_frames=4, missing="mask", alignment="reference", damaged="keep", threads=1),
        stream,
        lambda: stream(damaged="keep"),
    ]
    refused = 0
    for way in ways:
        try:
            way()
        except MediaError:
            refused += 1
    return f"{refused} of {len(ways)} refused"


def run(
    originals: dict[str, bytes], variants: list[tuple[str, int]], seed: int, folder: Path
) -> Iterator[tuple[str, int, Outcome]]:
    """Read variants; yields container, number and outcome of each."""
    with BoundedCalls(read_everything, SECONDS, MEMORY) as bounded:
        for name, number in variants:
            path = folder / f"variant.{name}"
            path.write_bytes(damaged(originals, name, number, seed))
            outcome = bounded(str(path))
            if outcome.kind == "value" and outcome.peak > MEMORY:
                outcome.kind, outcome.reason = "memory", f"{outcome.peak >> 20} MiB"
            yield name, number, outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=3000, help="how many variants, spread over the containers")
    parser.add_argument("--first", type=int, default=0, help="number of the first variant")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--containers", nargs="+", choices=sorted(CLIPS), default=list(CLIPS))
    parser.add_argument("--only", help="container:number of one variant")
    parser.add_argument("--keep", type=Path, help="with --only: where to write the variant")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        originals = write_originals(Path(folder))
        names = options.containers
        variants = [(names[k % len(names)], options.first + k // len(names)) for k in range(options.count)]
        if options.only:
            name, number = options.only.split(":")
            variants = [(name, int(number))]
            if options.keep:
                options.keep.write_bytes(damaged(originals, name, int(number), options.seed))
        kinds: collections.Counter[str] = collections.Counter()
        begin, slowest, largest = time.monotonic(), (0.0, ""), (0, "")
        for name, number, outcome in run(originals, variants, options.seed, Path(folder)):
            kinds[outcome.value or outcome.kind] += 1
            variant = f"{name}:{number}"
            slowest, largest = max(slowest, (outcome.seconds, variant)), max(largest, (outcome.peak, variant))
            if outcome.kind != "value":
                again = f"python tests/fuzz/damage.py --seed {options.seed} --only {variant} --keep variant.{name}"
                print(f"{outcome.kind}: {outcome.reason}\n    {again}", flush=True)
        seconds = time.monotonic() - begin
    print(
        f"{len(variants)} variants in {seconds:.0f} s; slowest {slowest[0]:.1f} s ({slowest[1]}), "
        f"most memory {largest[0] >> 20} MiB ({largest[1]})"
    )
    print(", ".join(f"{kind}: {count}" for kind, count in sorted(kinds.items())))
    return int(any("refused" not in kind for kind in kinds))


if __name__ == "__main__":
    sys.exit(main())
