"""`recipes`, `pretrain`, `finetune` and `probe`: what they say before anything is loaded, and that they train."""

import importlib.metadata
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from cavmae_sync_hf import CavMaeSyncForPreTraining, CavMaeSyncProcessor
from cavmae_sync_hf.training import earlier_run
from helpers.scripts import RECIPES
from helpers.tiny import tiny_config
from helpers.tiny_shards import write_shards

ROOT = Path(__file__).parents[2]
COMMANDS = ("pretrain", "finetune", "probe", "text", "local-head", "instruct")
OWN_LOOP = ("probe",)  # which transformers' Trainer does not run
SCRIPTS = {
    "run_pretraining.py": "pretrain",
    "run_classification.py": "finetune",
    "run_probe.py": "probe",
    "run_text.py": "text",
    "run_local_head.py": "local-head",
    "run_instruction.py": "instruct",
}
MODULES = {f"cavmae_sync_hf.training.{command.replace('-', '_')}": command for command in COMMANDS}
SMALL = [
    "--max_steps", "2", "--per_device_train_batch_size", "4", "--use_cpu", "--disable_tqdm", "true", "--log_level",
    "error", "--dataloader_num_workers", "0", "--save_strategy", "no", "--eval_strategy", "no",
]  # fmt: skip


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("shards"), [8, 6])


def test_recipes__are_listed_and_printed_to_be_copied(run, tmp_path):
    code, out, _ = run("recipes")
    files = sorted(RECIPES.rglob("*.yaml"))
    lines = [line for line in out.splitlines() if line.startswith("  ")]
    assert code == 0 and len(lines) == len(files) and max(map(len, out.splitlines())) <= 80
    for path in files:
        name = f"{path.parent.name}/{path.stem}"
        (line,) = [line.split(maxsplit=1) for line in lines if line.split()[0] == name]
        assert path.read_text(encoding="utf-8").startswith(f"# {line[1]}\n")

    code, out, _ = run("recipes", "syncworld_tiny")
    assert (code, out) == (0, (RECIPES / "pretraining" / "syncworld_tiny.yaml").read_text(encoding="utf-8"))
    code, _, err = run("recipes", "syncworld")
    known = [f"{folder}/syncworld" for folder in ("classification", "probe", "text", "local_head", "instruction")]
    assert code == 1 and "write " + " or ".join(known) in err


@pytest.mark.parametrize("command", COMMANDS)
def test_help__shows_the_own_settings_first_and_where_the_rest_is(command, run):
    code, out, err = run(command, "--help")
    assert code == 0 and "--help-all" in out and "--train_data" in out and "__" not in out
    assert ("--ddp_timeout" in out, "--push_to_hub" in out) == (False, command not in ("probe", "text", "instruct"))
    code, all_of_them, _ = run(command, "--help-all")
    assert code == 0 and ("--ddp_timeout" in all_of_them) == (command not in OWN_LOOP)


@pytest.mark.parametrize("loaded", ["help", "recipe", "refused"])
def test_torch__is_not_loaded_for_help_lists_and_refusals(loaded):
    words = {
        "help": ["pretrain", "--help"],
        "recipe": ["recipes"],
        "refused": ["pretrain", "syncworld_tiny", "--se", "1"],
    }
    code = (
        "import sys, cavmae_sync_command\n"
        "try:\n    cavmae_sync_command.main()\n"
        "except SystemExit as end:\n    print(end.code, 'torch' in sys.modules, file=sys.stderr)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code, *words[loaded]], capture_output=True, text=True, timeout=60)
    assert ran.stderr.splitlines()[-1] == ("2 False" if loaded == "refused" else "0 False")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["pretrain", "syncworld_tni"], 1, "no recipe syncworld_tni; did you mean pretraining/syncworld_tiny?"),
        (["pretrain", "probe/syncworld"], 1, "is a recipe for `cavmae-sync probe`"),
        (["pretrain", "nowhere.yaml"], 1, "nowhere.yaml: no such file"),
        (["pretrain", "training/recipes/pretraining/audioset.yaml"], 1, "write pretraining/audioset"),
        (["pretrain", "syncworld_tiny", "--max_step", "2"], 2, "--max_step is no flag; did you mean --max_steps?"),
        (["finetune", "syncworld", "--from-scrath"], 2, "did you mean --from_scratch?"),
        (["pretrain", "syncworld_tiny", "more"], 2, "the recipe comes first"),
        (["pretrain", "syncworld_tiny", "--max_steps", "two"], 2, "invalid int value: 'two'"),
        (["pretrain", "audioset"], 1, "nothing to train on"),
        (
            ["pretrain", "audioset", "--train_data", "./no/where"],
            1,
            "./no/where: no such file or folder",
        ),
        (["pretrain", "syncworld_tiny", "--eval_data", '{"held": "./no/where"}'], 1, "./no/where: no such"),
        (["finetune", "syncworld", "--init_from", "./no/where"], 1, "./no/where"),
        (["finetune", "audioset_20k", "--train_data", ".", "--class_names", "no.csv"], 1, "no.csv: no such file"),
        (["probe", "vggsound", "--train_data", "."], 1, "name a model by --model"),
        (["local-head", "--train_data", "."], 1, "nothing to train heads of; name a model by --model"),
    ],
)
def test_wrong_words__are_told_in_one_sentence(words, status, message, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*words)
    assert code == status and message in err and len(err.replace("loading ...\n", "").splitlines()) == 1
    assert not list(tmp_path.iterdir())


def without_accelerate(name: str, known=importlib.metadata.version) -> str:
    if name == "accelerate":
        raise importlib.metadata.PackageNotFoundError(name)
    return known(name)


def test_folder_in_use_and_missing_extra__are_told_first(run, tmp_path, monkeypatch):
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "trainer_state.json").write_text("{}")
    code, _, err = run("pretrain", "syncworld_tiny", "--output-dir", tmp_path)
    assert code == 1 and "earlier run (checkpoint-3)" in err
    assert "Add --resume-from-checkpoint auto" in err and "Add --overwrite" in err
    (tmp_path / "metrics.json").write_text("{}")
    assert "--overwrite" in run("probe", "syncworld", "--model", "example", "--output_dir", tmp_path)[2]

    monkeypatch.setattr(importlib.metadata, "version", without_accelerate)
    code, _, err = run("pretrain", "syncworld_tiny", "--output_dir", tmp_path / "new")
    assert code == 1 and "Training needs accelerate: pip install 'cavmae-sync-hf[training]'" in err


def test_checkpoints__have_the_names_that_trainer_gives():
    assert (earlier_run.CHECKPOINT, earlier_run.TRAINER_STATE) == (PREFIX_CHECKPOINT_DIR, TRAINER_STATE_NAME)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")  # of runpy, for this process has loaded them
@pytest.mark.parametrize("started", [*SCRIPTS, *MODULES])
def test_script_and_module__are_the_command(started, capfd, monkeypatch):
    command = SCRIPTS.get(started) or MODULES[started]
    monkeypatch.setattr(sys, "argv", [started, "ablations/syncworld"])
    with pytest.raises(SystemExit) as end:
        if started in SCRIPTS:
            runpy.run_path(str(ROOT / "training" / started), run_name="__main__")
        else:
            runpy.run_module(started, run_name="__main__")
    assert end.value.code == 1 and "ablations/syncworld is a recipe for `python -m" in capfd.readouterr().err
    assert sys.argv[1] == command


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_torchrun__starts_the_module_on_two_processes(shards, tmp_path):
    words = ["--nproc_per_node", "2", "-m", "cavmae_sync_hf.training.pretrain", "syncworld_tiny", *SMALL]
    data = ["--train_data", str(shards), "--eval_data", json.dumps({"held": str(shards)}), "--ddp_backend", "gloo"]
    sizes = tiny_config().to_diff_dict()
    model = ["--model_config", json.dumps({key: value for key, value in sizes.items() if key != "model_type"})]
    ran = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words, *data, *model, "--output_dir", str(tmp_path / "out")],
        capture_output=True, text=True, timeout=280, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    assert ran.stdout.count("eval_held_audio_to_video_r1 ") == 1
    assert "on 2 processes" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_commands__train_and_probe_by_an_edited_recipe(run, shards, tmp_path):
    config = tiny_config()
    CavMaeSyncForPreTraining(config).save_pretrained(tmp_path / "start")
    CavMaeSyncProcessor.from_config(config).save_pretrained(tmp_path / "start")
    recipe = tmp_path / "my.yaml"
    data = {"train_data": str(shards), "eval_data": {"held": str(shards)}}
    recipe.write_text(yaml.safe_dump(data | {"init_from": str(tmp_path / "start"), "output_dir": str(tmp_path / "a")}))
    code, out, err = run("pretrain", recipe, *SMALL)
    assert code == 0, err
    assert "eval_held_audio_to_video_r1" in out
    code, _, err = run("pretrain", recipe, *SMALL)
    assert code == 1 and "holds an earlier run (model.safetensors)" in err

    code, out, err = run("finetune", recipe, *SMALL, "--init_from", tmp_path / "a", "--output_dir", tmp_path / "b")
    assert code == 0, err
    assert json.loads((tmp_path / "b" / "metrics.json").read_text())["eval_held_accuracy"] >= 0

    recipe.write_text(yaml.safe_dump(data | {"model": str(tmp_path / "a"), "output_dir": str(tmp_path / "c")}))
    code, out, err = run("probe", recipe, "--features", "a", "--strengths", "1.0", "--device", "cpu")
    assert code == 0 and "held: 14 clips" in out, err
