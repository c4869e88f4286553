"""What a training run uploads: all that loads the model, its card and its metrics, at the end and on the way."""

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import HfApi, ModelCard
from safetensors.torch import load_file

from cavmae_sync_hf.training.pretrain import pretrain
from helpers.apart import run_apart
from helpers.scripts import run_training
from helpers.tiny import TINY
from helpers.tiny_shards import write_shards

# What a folder on the Hub must hold to be loaded, and understood, without this package.
NEEDED = {
    "config.json", "model.safetensors", "processor_config.json", "README.md", "modeling_cavmae_sync.py",
    "processing_cavmae_sync.py",
}  # fmt: skip


class Hub:
    """Stands in for the Hub: every upload is a folder of its own, and nothing leaves this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.created: list[str] = []
        self.uploads: list[dict[str, Any]] = []

    def create_repo(self, api: HfApi, repo_id: str, **options: Any) -> Any:
        self.created.append(repo_id)
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(self, api: HfApi, *, folder_path: Any, **options: Any) -> Any:
        """Keep what is in the folder now; what is written later does not reach the Hub."""
        repository = self.folder / str(len(self.uploads))
        for path in Path(folder_path).rglob("*"):
            name = str(path.relative_to(folder_path))
            patterns = options.get("ignore_patterns") or ()
            if path.is_file() and not any(fnmatch(name, f"{pattern}*") for pattern in patterns):
                (repository / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, repository / name)
        self.uploads.append({"folder": repository} | options)
        return SimpleNamespace(done=lambda: True, result=lambda: None)


@pytest.fixture(scope="module")
def upload(tmp_path_factory) -> SimpleNamespace:
    """A run of two steps that uploads at each of them, as is Trainer's default, and at the end."""
    folder = tmp_path_factory.mktemp("upload")
    hub = Hub(folder / "hub")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HfApi, "create_repo", lambda api, *given, **options: hub.create_repo(api, *given, **options))
        patch.setattr(HfApi, "upload_folder", lambda api, **options: hub.upload_folder(api, **options))
        run(folder, push_to_hub="true", hub_model_id="someone/tiny-model", save_steps=1, save_total_limit=1)
    return SimpleNamespace(hub=hub, out=folder / "out")


def run(folder: Path, **flags: Any) -> None:
    train, held_out = (write_shards(folder / name, [count]) for name, count in (("train", 8), ("held_out", 6)))
    flags = {
        "output_dir": folder / "out", "train_data": train, "eval_data": json.dumps({"held_out": str(held_out)}),
        "model_config": json.dumps(TINY), "max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": "true",
        "disable_tqdm": "true", "log_level": "error", "dataloader_pin_memory": "false", "eval_min_shift": 0.5,
    } | flags  # fmt: skip
    assert run_training(pretrain, flags) == 0


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_upload__holds_all_that_loads_the_model(upload):
    assert upload.hub.created == ["someone/tiny-model"]
    last = upload.hub.uploads[-1]
    assert last["repo_id"] == "someone/tiny-model"
    names = files(last["folder"])
    assert NEEDED | {"metrics.json", "trainer_state.json", "training_args.bin"} <= names
    assert not any("checkpoint-" in name or "optimizer" in name for name in names)
    weights = load_file(last["folder"] / "model.safetensors")
    trained = load_file(upload.out / "model.safetensors")
    assert all((value == trained[name]).all() for name, value in weights.items())


def test_upload__tells_the_metrics_of_the_last_evaluation(upload):
    metrics = json.loads((upload.out / "metrics.json").read_text())
    repository = upload.hub.uploads[-1]["folder"]
    assert json.loads((repository / "metrics.json").read_text()) == metrics
    logged = json.loads((repository / "trainer_state.json").read_text())["log_history"][-1]
    assert logged["eval_held_out_audio_to_video_r1"] == metrics["eval_held_out_audio_to_video_r1"]
    card = ModelCard.load(repository / "README.md")
    told = {result.metric_type: result.metric_value for result in card.data.eval_results}
    for name in ("audio_to_video_r1", "video_to_audio_r1", "audio_to_video_r10", "shift_accuracy"):
        assert told[name] == round(metrics[f"eval_held_out_{name}"], 4)
    assert {result.dataset_name for result in card.data.eval_results} == {"held_out (6 clips)"}
    assert "tiny-model" in card.text and "2 steps with batches of 4 clips out of 8" in card.text


def test_upload__on_the_way_can_be_loaded_too(upload):
    first = upload.hub.uploads[0]
    assert first["commit_message"] == "Training in progress, step 1" and len(upload.hub.uploads) == 3
    names = files(first["folder"])
    assert names >= NEEDED and not any("optimizer" in name for name in names)
    assert "with batches of 4 clips" in (first["folder"] / "README.md").read_text()


@pytest.mark.parametrize("place", [0, -1], ids=["on the way", "at the end"])
def test_upload__loads_where_this_package_is_unknown(place, upload, tmp_path):
    code = (
        "import sys\n"
        "sys.modules['cavmae_sync_hf'] = None\n"  # an import of it fails
        "from transformers import AutoModelForPreTraining, AutoProcessor\n"
        "model = AutoModelForPreTraining.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "processor = AutoProcessor.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
        "print(type(model).__name__, processor.feature_extractor.num_mel_bins)\n"
    )
    done = run_apart(["-c", code, str(upload.hub.uploads[place]["folder"])], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["CavMaeSyncForPreTraining", "16"]


def test_no_upload__unless_asked_for(tmp_path, monkeypatch):
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr(HfApi, "create_repo", lambda api, *given, **options: hub.create_repo(api, *given, **options))
    monkeypatch.setattr(HfApi, "upload_folder", lambda api, **options: hub.upload_folder(api, **options))
    run(tmp_path)
    assert not hub.created and not hub.uploads
