# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How large the package is, and how much of it a reader must open for an everyday call.

    python training/benchmarks/structure.py                 # counts, and what is entered by five calls
    python training/benchmarks/structure.py --src OTHER/src # the counts alone, of another version

A function is "called once" when its name stands once in the package's code besides its definition. A file or function
that is entered often counts once.
"""

import argparse
import ast
import os
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

HERE = Path(__file__).resolve().parents[2] / "src"
NAMES = {"model", "processor"}


def count(package: Path) -> dict[str, int]:
    """Counts over all files of a package."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))]
    trees = [ast.parse(text) for text in texts]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    used = Counter(node.id for node in nodes if isinstance(node, ast.Name))
    used += Counter(node.attr for node in nodes if isinstance(node, ast.Attribute))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    private = [node.name for node in functions if node.name.startswith("_") and not node.name.startswith("__")]
    arguments = [
        item for node in functions for item in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
    ]
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    return {
        "lines": sum(len(text.splitlines()) for text in texts),
        "modules": len(texts),
        "functions": len(functions),
        "private functions": len(private),
        "private functions called once": sum(used[name] == 1 for name in private),
        "module docstrings that ask": sum("?" in (ast.get_docstring(tree) or "").split("\n\n")[0] for tree in trees),
        "`Any` for a model or processor": sum(
            item.arg in NAMES and item.annotation is not None and ast.unparse(item.annotation) == "Any"
            for item in arguments
        ),
        "calls with more than four positional values": sum(
            len(node.args) > 4 and getattr(node.func, "attr", "") != "join" for node in calls
        ),
        "`locals()`": sum(getattr(node.func, "id", "") == "locals" for node in calls),
        "private names imported": sum(
            alias.name.startswith("_") and alias.name != "__version__"
            for node in imports
            if node.level
            for alias in node.names
        ),
    }


class Trip:
    """Files and functions of a package that a call enters, in all threads."""

    def __init__(self, package: Path) -> None:
        self.package, self.files, self.functions = f"{package}{os.sep}", set(), set()

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(self.package) and not code.co_name.startswith("<"):
            self.files.add(code.co_filename)
            self.functions.add((code.co_filename, code.co_qualname))

    def take(self, call: Callable[[], Any]) -> None:
        call()  # imports and caches do not count
        threading.setprofile(self)
        sys.setprofile(self)
        try:
            call()
        finally:
            sys.setprofile(None)
            threading.setprofile(None)


def everyday_calls(folder: Path) -> dict[str, Callable[[], Any]]:
    """Five calls on small clips of SyncWorld, by what they do."""
    from cavmae_sync_hf import (
        CavMaeSyncConfig,
        CavMaeSyncForPreTraining,
        CavMaeSyncModel,
        CavMaeSyncProcessor,
        index_videos,
        make_world,
        prepare,
        search,
    )
    from cavmae_sync_hf.data.dataset import CavMaeSyncCollator, CavMaeSyncDataset

    config = CavMaeSyncConfig(
        hidden_size=32, num_attention_heads=4, intermediate_size=64, num_modality_layers=2, image_size=32,
        patch_size=8, num_mel_bins=16, audio_length=48, num_frames=4, num_register_tokens=2, decoder_hidden_size=16,
        decoder_num_hidden_layers=1, decoder_num_attention_heads=2, decoder_intermediate_size=32,
    )  # fmt: skip
    processor, model = CavMaeSyncProcessor.from_config(config), CavMaeSyncModel(config).eval()
    pretraining = CavMaeSyncForPreTraining(config).train()
    make_world(folder / "world", clips=4, size=48, seconds=3.0, workers=1)
    videos = folder / "world" / "train"
    prepare(videos, folder / "shards", num_frames=4, num_mel_bins=16, short_side=36, workers=1)
    dataset, collator = CavMaeSyncDataset(folder / "shards", processor, frames=2), CavMaeSyncCollator(processor)
    index_videos(videos, folder / "index", model, processor)
    indexes = iter(range(9))

    def load() -> dict[str, Any]:
        batch = collator([dataset[place] for place in range(4)])
        return {name: batch[name] for name in ("pixel_values_videos", "input_values")}

    loaded = load()
    video = str(videos / "000000.mp4")
    return {
        "processor(videos=path)": lambda: processor(videos=video, return_tensors="pt"),
        "batch to loss and gradients": lambda: pretraining(**loaded).loss.backward(),
        "shards to loss and gradients": lambda: pretraining(**load()).loss.backward(),
        "index a folder of 4": lambda: index_videos(videos, folder / f"index-{next(indexes)}", model, processor),
        "search(path) to hits": lambda: search(folder / "index", video, model, processor),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--src", type=Path, default=HERE, help="source tree of another version, for its counts")
    source = parser.parse_args().src.resolve()
    for what, number in count(source / "cavmae_sync_hf").items():
        print(f"{what:45} {number:7,}")
    if source != HERE:
        return
    print(f"\n{'entered by':45} {'files':>7} {'functions':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for name, call in everyday_calls(Path(folder)).items():
            trip = Trip(HERE / "cavmae_sync_hf")
            trip.take(call)
            print(f"{name:45} {len(trip.files):7} {len(trip.functions):10}")


if __name__ == "__main__":
    main()
