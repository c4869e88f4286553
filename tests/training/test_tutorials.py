"""transformers' own tutorials on audio and video classification, step by step, with this package's classes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    AutoModelForVideoClassification,
    AutoProcessor,
    AutoVideoProcessor,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    pipeline,
)

from cavmae_sync_hf import CavMaeSyncForPreTraining, CavMaeSyncProcessor
from cavmae_sync_hf.data.dataset import CavMaeSyncCollator
from helpers.clips import tone, write_clips
from helpers.tiny import tiny_config, tiny_inputs

LABELS = ["low", "high"]
RATE = 16000


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    """What the tutorials call a checkpoint: a pretrained model and its processor, whose settings are not the usual."""
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(0)
    model = CavMaeSyncForPreTraining(tiny_config())
    processor = CavMaeSyncProcessor.from_config(model.config, channel="mean")
    processor.video_processor.exact_resize = False
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[str]:
    return write_clips(tmp_path_factory.mktemp("clips"), 4, darker=2)


@pytest.fixture(scope="module")
def datasets():
    return pytest.importorskip("datasets")


def arguments(folder: Path, **others: Any) -> TrainingArguments:
    chosen: dict[str, Any] = {
        "eval_strategy": "epoch", "save_strategy": "epoch", "learning_rate": 3e-3, "num_train_epochs": 1,
        "per_device_train_batch_size": 2, "per_device_eval_batch_size": 3, "load_best_model_at_end": True,
        "metric_for_best_model": "accuracy", "use_cpu": True, "disable_tqdm": True, "log_level": "error",
    }  # fmt: skip
    return TrainingArguments(output_dir=str(folder), **(chosen | others))


def compute_metrics(eval_pred) -> dict[str, float]:
    predictions = np.argmax(eval_pred.predictions, axis=1)
    assert predictions.shape == eval_pred.label_ids.shape
    return {"accuracy": float((predictions == eval_pred.label_ids).mean())}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def settings(processor: Any) -> dict[str, Any]:
    return json.loads(processor.to_json_string())


def labels() -> dict[str, Any]:
    label2id = {label: number for number, label in enumerate(LABELS)}
    return {"num_labels": 2, "label2id": label2id, "id2label": dict(enumerate(LABELS))}


def test_audio_classification__tutorial(datasets, pretrained, tmp_path):
    sounds = [tone(1.0 + 0.1 * k, rate=RATE, frequency=300 if k % 2 else 3000, channels=1)[0] for k in range(7)]
    rows = [{"audio": {"array": sound, "sampling_rate": RATE}, "intent": 1 - k % 2} for k, sound in enumerate(sounds)]
    minds = datasets.Dataset.from_list(rows).train_test_split(test_size=3, seed=0)
    feature_extractor = AutoFeatureExtractor.from_pretrained(pretrained)

    def preprocess_function(examples):
        arrays = [x["array"] for x in examples["audio"]]
        rate = feature_extractor.sampling_rate
        return feature_extractor(arrays, sampling_rate=rate, max_length=16000, truncation=True, padding=True)

    encoded = minds.map(preprocess_function, remove_columns="audio", batched=True).rename_column("intent", "label")
    model = AutoModelForAudioClassification.from_pretrained(pretrained, **labels())
    trainer = Trainer(
        model=model, args=arguments(tmp_path), train_dataset=encoded["train"], eval_dataset=encoded["test"],
        processing_class=feature_extractor, compute_metrics=compute_metrics,
    )  # fmt: skip
    trainer.train()
    trainer.save_model()

    assert "preprocessor_config.json" in names(tmp_path) & names(tmp_path / "checkpoint-2")
    found = pipeline("audio-classification", model=str(tmp_path))(sounds[0])
    again = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert settings(again) == settings(feature_extractor) and again.channel == "mean"
    inputs = again(sounds[0], sampling_rate=RATE, return_tensors="pt", return_attention_mask=True)
    with torch.no_grad():
        scores = AutoModelForAudioClassification.from_pretrained(tmp_path)(**inputs).logits.softmax(-1)[0]
    assert {entry["label"]: entry["score"] for entry in found} == pytest.approx(
        {label: float(score) for label, score in zip(LABELS, scores, strict=True)}, abs=1e-5
    )


@pytest.mark.parametrize("way", ["map", "set_transform"])
def test_video_classification__tutorial(datasets, clips, pretrained, tmp_path, way):
    rows = datasets.Dataset.from_dict({"video": clips, "label": [0, 1, 0, 1]})
    rows = rows.cast_column("video", datasets.Video(decode=False))
    processor = AutoProcessor.from_pretrained(pretrained)

    def preprocess(examples):
        inputs = processor(videos=examples["video"], num_frames=2, return_tensors="np")
        return dict(inputs) | {"label": examples["label"]}

    if way == "map":
        rows = rows.map(preprocess, batched=True, remove_columns="video")
    else:
        rows.set_transform(preprocess)
    model = AutoModelForVideoClassification.from_pretrained(pretrained, **labels(), ignore_mismatched_sizes=True)
    # A transform reads the column `video`, which Trainer drops by itself.
    trainer = Trainer(
        model=model, args=arguments(tmp_path, remove_unused_columns=way == "map", label_names=["labels"]),
        train_dataset=rows, eval_dataset=rows, processing_class=processor, compute_metrics=compute_metrics,
    )  # fmt: skip
    trainer.train()
    trainer.save_model()

    for folder in (tmp_path, tmp_path / "checkpoint-2"):
        assert settings(AutoProcessor.from_pretrained(folder)) == settings(processor)
    assert trainer.evaluate().keys() >= {"eval_loss", "eval_accuracy"}
    found = pipeline("video-classification", model=str(tmp_path))(clips[0])
    assert {entry["label"] for entry in found} == set(LABELS)


@pytest.mark.parametrize("part", ["feature_extractor", "video_processor"])
def test_processing_class__of_one_part_reloads_as_a_whole_processor(part, pretrained, tmp_path):
    auto_class = {"feature_extractor": AutoFeatureExtractor, "video_processor": AutoVideoProcessor}[part]
    kept = auto_class.from_pretrained(pretrained)
    kept.alignment, kept.num_frames = "reference", 3
    model = AutoModelForVideoClassification.from_pretrained(pretrained)
    Trainer(
        model, arguments(tmp_path, eval_strategy="no", load_best_model_at_end=False), processing_class=kept
    ).save_model()

    processor = AutoProcessor.from_pretrained(tmp_path)

    assert type(processor) is CavMaeSyncProcessor and settings(getattr(processor, part)) == settings(kept)
    for other in (processor.feature_extractor, processor.video_processor):
        assert (other.alignment, other.num_frames) == ("reference", 3)
    frames = np.zeros((3, 40, 50, 3), np.uint8)
    with torch.no_grad():
        assert model(**processor(videos=frames, audio=np.zeros(RATE), sampling_rate=RATE, fps=3, return_tensors="pt"))


@pytest.mark.parametrize("collator", ["default", "padding", "own"])
def test_collators__take_what_the_processor_gives(collator, clips, pretrained, tmp_path):
    processor = AutoProcessor.from_pretrained(pretrained)
    lengths = [2, 2, 2] if collator == "default" else [2, 4, 3]
    rows = []
    for number, (path, frames) in enumerate(zip(clips, lengths, strict=False)):
        batch = processor(videos=path, num_frames=frames, return_tensors="np")
        rows.append({name: values[0] for name, values in batch.items()} | {"label": number % 2})
    model = AutoModelForVideoClassification.from_pretrained(pretrained, **labels()).eval()
    chosen = {
        "default": None,
        "padding": DataCollatorWithPadding(processor.feature_extractor),
        "own": CavMaeSyncCollator(processor, problem_type="single_label_classification", num_labels=2),
    }[collator]
    trainer = Trainer(
        model, arguments(tmp_path), eval_dataset=rows, data_collator=chosen, processing_class=processor,
        compute_metrics=compute_metrics,
    )  # fmt: skip

    found = trainer.predict(rows)

    assert found.label_ids.tolist() == [0, 1, 0]
    for row, logits in zip(rows, found.predictions, strict=True):
        inputs = {name: torch.from_numpy(row[name])[None] for name in row if name != "label"}
        with torch.no_grad():
            np.testing.assert_allclose(logits, model(**inputs).logits[0], atol=1e-5)


@pytest.mark.parametrize("task", [None, "FEATURE_EXTRACTION", "SEQ_CLS"])
def test_peft__wraps_saves_and_merges_for_any_task(task, pretrained, tmp_path):
    peft = pytest.importorskip("peft")
    model = AutoModelForVideoClassification.from_pretrained(pretrained, **labels())
    head = {name: value.clone() for name, value in model.head.state_dict().items()}
    wrapped = peft.get_peft_model(model, peft.LoraConfig(task_type=task, r=2, target_modules=["q_proj", "v_proj"]))
    for name, value in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.1)
    wrapped(**tiny_inputs(), labels=torch.tensor([0, 1])).loss.backward()
    wrapped.save_pretrained(tmp_path)

    plain = AutoModelForVideoClassification.from_pretrained(pretrained, **labels())
    plain.head.load_state_dict(head)
    merged = peft.PeftModel.from_pretrained(plain, tmp_path).merge_and_unload().eval()

    with torch.no_grad():
        expected = wrapped.eval()(**tiny_inputs()).logits
        torch.testing.assert_close(merged(**tiny_inputs()).logits, expected, rtol=1e-4, atol=1e-5)
    assert any(value.grad is not None for name, value in wrapped.named_parameters() if "lora_A" in name)
