"""The README's Python is run as it stands, in one folder, one block after the other."""

import re
from pathlib import Path

import pytest

from cavmae_sync_hf import CavMaeSyncModel, CavMaeSyncProcessor, save_for_hub
from clips import noise, write_clip
from tiny import tiny_config

README = Path(__file__).parent.parent / "README.md"


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_readme__python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tiny_config(num_frames=16)
    save_for_hub(CavMaeSyncModel(config), CavMaeSyncProcessor.from_config(config), "my-cav-mae-sync")
    write_clip(tmp_path / "clip.mp4", seconds=3, audio=noise(3))
    names: dict = {}
    for block in python_blocks():
        exec(compile(block, str(README), "exec"), names)
    assert names["output"].similarity.shape == (1, 16, 16)
    assert names["batch"]["input_values"].shape == (2, 1, 48, 16)
    assert names["sound"].shape == (1, 32) and names["scores"].ndim == 2


@pytest.mark.parametrize("target", sorted(set(re.findall(r"make ([a-z-]+)", README.read_text(encoding="utf-8")))))
def test_readme__make_targets_exist(target):
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
