"""Training of local heads: what is hidden, what is learned of it, and that the model itself stays as it is."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import ViTConfig

from cavmae_sync_hf import CavMaeSyncModel, CavMaeSyncProcessor, TrainingError
from cavmae_sync_hf.data.dataset import CavMaeSyncDataset
from cavmae_sync_hf.inference.local import local_maps
from cavmae_sync_hf.inference.occlusion import occlusion_maps
from cavmae_sync_hf.loading import load_model
from cavmae_sync_hf.training import CavMaeSyncLocalHeadTrainer, EvaluationSet, LocalHeadRunArguments
from cavmae_sync_hf.training.local_head import fall_loss, hidden_falls, local_head
from helpers.tiny import tiny_config, tiny_inputs

INPUTS = {"video": "pixel_values_videos", "audio": "input_values"}
RUN = ["--max_steps", "2", "--per_device_train_batch_size", "4", "--use_cpu", "--disable_tqdm", "true", "--log_level",
       "error", "--save_strategy", "no", "--local_head_size", "6"]  # fmt: skip


def make_model(**settings: Any) -> CavMaeSyncModel:
    torch.manual_seed(0)
    return CavMaeSyncModel(tiny_config(local_head_size=32, **settings)).eval()


def make_trainer(model: CavMaeSyncModel, shards: Any, out: Any, **settings: Any) -> CavMaeSyncLocalHeadTrainer:
    processor = CavMaeSyncProcessor.from_config(model.config)
    arguments = {
        "use_cpu": True, "per_device_train_batch_size": 4, "max_steps": 60, "learning_rate": 1e-2, "warmup_steps": 5,
        "save_strategy": "no", "logging_steps": 5, "disable_tqdm": True, "dataloader_pin_memory": False,
        "log_level": "error", "blocks_per_frame": 4,
    }  # fmt: skip
    dataset = CavMaeSyncDataset(shards, processor, frames="all")
    return CavMaeSyncLocalHeadTrainer(
        model, LocalHeadRunArguments(output_dir=str(out), **(arguments | settings)), processor=processor,
        train_dataset=dataset, evaluation_sets={"same": EvaluationSet(dataset)},
    )  # fmt: skip


def test_loss__is_the_mean_of_two_shares():
    falls = torch.tensor([[[[3.0, 4.0]], [[100.0, 100.0]]]])  # the second frame is absent
    found = torch.tensor([[[[3.0, 2.0]], [[0.0, 0.0]]]])
    present = torch.tensor([[True, False]])
    queries = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])

    loss = fall_loss(found, falls, queries, present)

    # Vectors: 4 of 25. Products with the queries: 3, 0, 7 were to be found, and 3, 0, 5 were.
    assert loss.item() == pytest.approx((4 / 25 + 4 / (9 + 49)) / 2)
    assert fall_loss(falls, falls, queries, present) == 0 and fall_loss(0 * falls, falls, queries, present) == 1


@pytest.mark.parametrize(("modality", "fill"), [("video", None), ("audio", -1.5)])
@pytest.mark.parametrize("kind", ["own", "encoder"])
def test_hidden_blocks__make_similarities_fall_as_occlusion_says(modality, fill, kind):
    settings: dict[str, Any] = {}
    if kind == "encoder":
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        settings["video_encoder_config"] = ViTConfig(**sizes, image_size=32, patch_size=8)
    model, inputs = make_model(**settings), tiny_inputs()[INPUTS[modality]]
    queries = torch.randn(2, 3, 32)
    with torch.no_grad():
        embeds = model(**{INPUTS[modality]: inputs})[f"{modality}_embeds"]

    generator = torch.Generator().manual_seed(0)
    places, falls = hidden_falls(model, modality, inputs, embeds, count=5, fill=fill, generator=generator)

    assert places.shape == (2, 3, 5) and all(len(set(row)) == 5 for row in places.flatten(0, 1).tolist())
    maps = occlusion_maps(model, modality, inputs, queries, fill=fill).flatten(-2)
    torch.testing.assert_close((falls * queries.unsqueeze(2)).sum(-1), maps.gather(-1, places), atol=1e-5, rtol=1e-4)
    assert maps.std() > 1e-4


def test_training__makes_maps_those_of_occlusion_and_leaves_the_towers(shards, tmp_path):
    """Of the clips that were trained on, by frames and by windows, whose true falls are computed beside them."""
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = make_trainer(model, shards, tmp_path)
    assert trainer.evaluate()["eval_same_video_explained"] == 0  # new heads predict that nothing falls
    trainer.train()
    metrics = trainer.evaluate()

    history = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert history[0] > 0.9 and history[-1] < 0.5
    assert {"audio_loss", "video_loss"} <= trainer.state.log_history[-3].keys()
    assert metrics["eval_same_video_explained"] > 0.5 and metrics["eval_same_audio_explained"] > 0.5
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items() if "local_heads" not in name)
    model.eval()
    batch = trainer.data_collator([trainer.train_dataset[number] for number in range(4)])
    with torch.no_grad():
        output = model(**{name: batch[name] for name in INPUTS.values()}, output_local_embeds=True)
    queries = torch.randn(4, 4, 32)
    for modality, grid in (("video", (4, 4)), ("audio", (2, 6))):
        fill = trainer.fills[modality]
        maps = local_maps(output[f"{modality}_embeds"], output[f"local_{modality}_embeds"], queries, grid)
        truth = occlusion_maps(model, modality, batch[INPUTS[modality]], queries, fill=fill)
        assert np.corrcoef(maps.flatten(), truth.flatten())[0, 1] > 0.7, modality
        other = occlusion_maps(model, modality, batch[INPUTS[modality]], queries.flip(0), fill=fill)
        assert np.corrcoef(maps.flatten(), other.flatten())[0, 1] < 0.4, modality


def test_resumed_run__is_the_run_that_was_not_interrupted(shards, tmp_path):
    whole = make_trainer(make_model(), shards, tmp_path / "whole", max_steps=4)
    whole.train()
    saving = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None}
    make_trainer(make_model(), shards, tmp_path / "two", max_steps=4, **saving).train()
    resumed = make_trainer(make_model(), shards, tmp_path / "two", max_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "two" / "checkpoint-2"))

    found, expected = resumed.model.state_dict(), whole.model.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_command__writes_a_model_that_loads(shards, tmp_path):
    processor = CavMaeSyncProcessor.from_config(tiny_config())
    CavMaeSyncModel(tiny_config()).save_pretrained(tmp_path / "start")
    processor.save_pretrained(tmp_path / "start")
    words = ["--model", str(tmp_path / "start"), "--train_data", str(shards), "--output_dir", str(tmp_path / "out")]

    assert local_head([*words, *RUN]) == 0
    model, _ = load_model(tmp_path / "out", modalities="both")
    assert model.config.local_head_size == 6 and len(model.local_heads) == 2
    assert (tmp_path / "out" / "README.md").is_file() and (tmp_path / "out" / "metrics.json").is_file()
    with pytest.raises(ValueError, match="holds an earlier run"):
        local_head([*words, *RUN])
    with pytest.raises(TrainingError, match="`streaming` has no use here"):
        local_head([*words, *RUN, "--overwrite", "--streaming"])
    for flag in ("--local_head_size", "--blocks_per_frame"):
        with pytest.raises(TrainingError, match=f"`{flag[2:]}` is 0; it must be at least 1"):
            local_head([*words, *RUN, flag, "0"])
