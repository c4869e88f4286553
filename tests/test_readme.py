"""The README's Python is run as it stands, in one folder, one block after the other."""

import re
import wave
from pathlib import Path

import pytest
from PIL import Image

from cavmae_sync_hf import (
    CavMaeSyncForAudioVisualClassification,
    CavMaeSyncModel,
    CavMaeSyncProcessor,
    save_for_hub,
)
from cavmae_sync_hf.export import export_model
from helpers.clips import noise, write_clip
from helpers.tiny import tiny_config

README = Path(__file__).parent.parent / "README.md"


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.timeout(600)  # exports and imports much
def test_readme__python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tiny_config(num_frames=16)
    processor = CavMaeSyncProcessor.from_config(config)
    save_for_hub(CavMaeSyncModel(config), processor, "my-cav-mae-sync")
    save_for_hub(CavMaeSyncForAudioVisualClassification(config), processor, "my-classifier")
    export_model(CavMaeSyncModel(config), processor, "exported", int8=True)
    for name in ("clip", "rain"):
        write_clip(tmp_path / f"{name}.mp4", seconds=3, audio=noise(3))
    with wave.open("bark.wav", "wb") as sound:
        sound.setparams((1, 2, 16000, 0, "NONE", ""))
        sound.writeframes((noise(2, rate=16000, channels=1) * 32767).astype("<i2").tobytes())
    Image.new("RGB", (64, 48), "red").save("street.jpg")
    names: dict = {}
    for block in python_blocks():
        exec(compile(block, str(README), "exec"), names)
    assert names["output"].similarity.shape == (1, 16, 16)
    assert names["batch"]["input_values"].shape == (2, 1, 48, 16)
    assert names["audio_embeds"].shape == (1, 32) and names["scores"].ndim == 2


@pytest.mark.parametrize("target", sorted(set(re.findall(r"make ([a-z-]+)", README.read_text(encoding="utf-8")))))
def test_readme__make_targets_exist(target):
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
