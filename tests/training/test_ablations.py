"""The table of ablations: every variant is a run that can be started, and metrics go into the right cells."""

import json

import pytest
import yaml

from cavmae_sync_hf import CavMaeSyncConfig
from cavmae_sync_hf.training import (
    DataArguments,
    ModelArguments,
    PretrainingArguments,
    ablations,
    parse_arguments,
)
from helpers.scripts import RECIPES

PLAN = yaml.safe_load((RECIPES / "ablations" / "syncworld.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", PLAN["variants"])
def test_variant__changes_the_recipe_as_it_says(name):
    kinds = (ModelArguments, DataArguments, PretrainingArguments)
    words = [PLAN["recipe"], *ablations.flags(PLAN["settings"] | PLAN["variants"][name])]
    model, data, training = parse_arguments(kinds, words, "pretraining")
    changes = PLAN["variants"][name]
    assert training.max_steps == PLAN["settings"]["max_steps"]
    assert data.frames_per_clip * training.per_device_train_batch_size == 64  # pairs, in every variant
    assert training.teacher_momentum == changes.get("teacher_momentum", 0.0)
    config = CavMaeSyncConfig(**model.model_config)
    assert config.hidden_size == 96  # the recipe's
    for key, value in changes.get("model_config", {}).items():
        assert getattr(config, key) == value


def test_table__has_mean_and_deviation_of_the_seeds_that_are_there(tmp_path):
    plan = {
        "output_dir": str(tmp_path), "seeds": [0, 1, 2], "variants": {"a (b)": {}, "none yet": {}},
        "columns": {"first": "eval_first", "second": "eval_second"},
    }  # fmt: skip
    for seed, value in ((0, 0.5), (2, 0.6)):
        folder = ablations.run_folder(plan, "a (b)", seed)
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps({"eval_first": value}), encoding="utf-8")
    text, metrics = ablations.table(plan, list(plan["variants"]))
    assert "| a (b) | 2 | 55.0 ± 7.1 | – |" in text and "| none yet | 0 | – | – |" in text
    assert metrics == {"a (b)": [{"eval_first": 0.5}, {"eval_first": 0.6}], "none yet": []}


def test_train__a_failed_run_is_reported_and_a_finished_one_not_repeated(tmp_path):
    plan = {"output_dir": str(tmp_path), "settings": {}, "variants": {"v": {}}, "recipe": str(tmp_path / "none.yaml")}
    message = ablations.train(plan, "v", 0, threads=1)
    log = ablations.run_folder(plan, "v", 0) / "log.txt"
    assert str(log) in message and "none.yaml" in log.read_text(encoding="utf-8")
    (log.parent / "metrics.json").write_text("{}", encoding="utf-8")
    assert ablations.train(plan, "v", 0, threads=1) is None
