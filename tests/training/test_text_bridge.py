# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Words over the frames: projections learn where a CLIP or SigLIP puts the frames, and its texts then find clips."""

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from cavmae_sync_hf import (
    CavMaeSyncModel,
    CavMaeSyncProcessor,
    TrainingError,
    classify,
    load_model,
    save_for_hub,
)
from cavmae_sync_hf.inference.texts import embed_texts
from cavmae_sync_hf.training.bridge import Teacher, bridge_metrics, centred, common_part
from cavmae_sync_hf.training.settings import TextArguments
from cavmae_sync_hf.training.text import run_text
from cavmae_sync_hf.training.text_arguments import TextRunArguments
from cavmae_sync_hf.training.text_data import TextSet
from cavmae_sync_hf.training.text_trainer import train_bridge
from helpers.clips import write_clip
from helpers.tiny import tiny_config, tiny_tokenizer
from helpers.tiny_shards import write_shards

SIZES = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
VISION = SIZES | {"image_size": 32, "patch_size": 8}
TEXT = SIZES | {"vocab_size": 60, "max_position_embeddings": 16, "pad_token_id": 0}
KINDS = ("clip", "siglip")


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A model, a CLIP and a SigLIP, and clips."""
    folder = tmp_path_factory.mktemp("bridge")
    torch.manual_seed(0)
    config = tiny_config()
    save_for_hub(CavMaeSyncModel(config), CavMaeSyncProcessor.from_config(config), folder / "model")
    clip = CLIPConfig(text_config=TEXT | {"eos_token_id": 3}, vision_config=VISION, projection_dim=20)
    CLIPModel(clip).save_pretrained(folder / "clip")
    SiglipModel(SiglipConfig(text_config=TEXT, vision_config=VISION)).save_pretrained(folder / "siglip")
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder / "clip"
    )
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder / "siglip")
    for kind in KINDS:
        tiny_tokenizer().save_pretrained(folder / kind)
    write_shards(folder / "train", [6, 4], blind=(3,), silent=(5,))
    write_shards(folder / "held_out", [5])
    return folder


def run_arguments(output, **settings) -> TextRunArguments:
    values = {"max_steps": 30, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "use_cpu": True}
    return TextRunArguments(output_dir=str(output), disable_tqdm=True, log_level="error", **(values | settings))


def arguments(desk, kind, **settings) -> TextArguments:
    values = {"model": str(desk / "model"), "bridge": str(desk / kind), "train_data": str(desk / "train")}
    return TextArguments(**(values | {"eval_data": {"held_out": str(desk / "held_out")}} | settings))


@pytest.mark.parametrize("kind", KINDS)
def test_run__gives_a_model_whose_words_are_the_teachers(desk, tmp_path, kind):
    status, record = run_text(arguments(desk, kind), run_arguments(tmp_path / "out"))

    assert status == 0 and record["loss"][-1] < record["loss"][0] / 2
    assert set(record["metrics"]["held_out"]["teacher"]) == {
        f"{what}_{side}" for what in ("cosine", "cosine_other_clips") for side in ("audio", "video")
    }
    model, processor = load_model(tmp_path / "out" / "model", use="text")
    before = CavMaeSyncModel.from_pretrained(desk / "model").state_dict()
    assert all(torch.equal(model.av_model.state_dict()[name], values) for name, values in before.items())
    teacher, texts = AutoModel.from_pretrained(desk / kind).eval(), ["a dog barks and a bell rings", "rain"]
    tokens = tiny_tokenizer()(texts, padding="max_length", max_length=16, return_tensors="pt")
    tokens = {"input_ids": tokens["input_ids"]} if kind == "siglip" else dict(tokens)
    wanted = torch.nn.functional.normalize(teacher.get_text_features(**tokens).pooler_output, dim=-1)
    torch.testing.assert_close(embed_texts(model, processor, texts).embeds, wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(embed_texts(model, processor, texts[1:]).embeds, wanted[1:], rtol=0, atol=1e-5)

    (result,) = classify(model, processor, write_clip(tmp_path / "clip.mp4"), labels=["a dog", "rain"])
    assert {entry["label"] for entry in result.labels} == {"a dog", "rain"}


def synthetic(teacher_seed: int, count: int) -> tuple[TextSet, torch.Tensor]:
    """Moments of which windows and frames are turned copies, and where a model puts the frames: all to one side."""
    turns = torch.Generator().manual_seed(3)
    turn, put, common = (torch.randn(*size, generator=turns) for size in ((32, 32), (32, 20), (20,)))
    generator = torch.Generator().manual_seed(teacher_seed)
    video = torch.nn.functional.normalize(torch.randn(count, 4, 32, generator=generator), dim=-1)
    audio = torch.nn.functional.normalize(video @ turn, dim=-1)
    teacher = torch.nn.functional.normalize(video @ put + 3 * common, dim=-1)
    present = {side: torch.ones(count, 4, dtype=torch.bool) for side in ("audio", "video")}
    present["audio"][0, 1] = False
    moments = {"audio": audio * present["audio"].unsqueeze(-1), "video": video}
    times = np.tile(np.arange(4) + 0.5, (count, 1))
    return TextSet(moments=moments, present=present, times=times, captions=None, records=None), teacher


@pytest.mark.parametrize("shuffled", [False, True], ids=["own frames", "frames of others"])
def test_projections__learn_where_held_out_frames_lie_and_the_control_does_not(desk, tmp_path, shuffled):
    (clips, frames), (held_out, wanted) = synthetic(1, 64), synthetic(2, 24)
    common = common_part(frames)
    frames, wanted = centred(frames, common), centred(wanted, common)
    av_model, processor = load_model(desk / "model")
    model = Teacher(str(desk / "clip")).join(av_model)
    before = bridge_metrics(model, held_out, wanted)
    given = frames[torch.randperm(len(frames), generator=torch.Generator().manual_seed(0))] if shuffled else frames

    train_bridge(model, clips, given, run_arguments(tmp_path, max_steps=120), processor=processor)

    after = bridge_metrics(model, held_out, wanted)
    for side in ("audio", "video"):
        assert abs(before[f"cosine_{side}"]) < 0.3 and abs(after[f"cosine_other_clips_{side}"]) < 0.3
        assert (after[f"cosine_{side}"] > 0.5) == (not shuffled), after
        assert shuffled == (abs(after[f"cosine_{side}"]) < 0.3), after


def test_cache__is_made_once_and_belongs_to_one_teacher(desk, tmp_path):
    run_text(arguments(desk, "clip", cache_dir=str(tmp_path / "moments")), run_arguments(tmp_path / "a", max_steps=1))
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "moments").rglob("part-*")}

    run_text(arguments(desk, "clip", cache_dir=str(tmp_path / "moments")), run_arguments(tmp_path / "b", max_steps=1))

    assert len(kept) == 4 and kept == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "moments").rglob("part-*")
    }
    with pytest.raises(TrainingError, match="train_frames: holds the features of another model"):
        run_text(
            arguments(desk, "siglip", cache_dir=str(tmp_path / "moments")), run_arguments(tmp_path / "c", max_steps=1)
        )


def test_what_is_no_teacher__is_refused(desk, tmp_path):
    CLIPVisionModel(CLIPConfig(vision_config=VISION).vision_config).save_pretrained(tmp_path / "vision")
    with pytest.raises(TrainingError, match="a CLIPVisionModel has no text tower"):
        Teacher(str(tmp_path / "vision"))
    AutoModel.from_pretrained(desk / "clip").save_pretrained(tmp_path / "bare")
    with pytest.raises(TrainingError, match="is no CLIP or SigLIP with tokenizer and image processor"):
        Teacher(str(tmp_path / "bare"))
    CLIPImageProcessor().save_pretrained(tmp_path / "bare")
    with pytest.raises(TrainingError, match="has no tokenizer"):
        Teacher(str(tmp_path / "bare"))
    with pytest.raises(TrainingError, match="leave out `captions`, or `bridge`"):
        arguments(desk, "clip", captions="captions.csv")
