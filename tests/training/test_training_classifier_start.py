"""From what a classifier starts: pretrained folders, published files, other classifiers; and which classes it has."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cavmae_sync_hf import TrainingError
from cavmae_sync_hf.data.dataset import CavMaeSyncDataset
from cavmae_sync_hf.model.modeling_cavmae_sync import CavMaeSyncForAudioVisualClassification, CavMaeSyncModel
from cavmae_sync_hf.training import (
    ClassificationModelArguments,
    EvaluationSet,
    LabelSpace,
    build_classifier,
    find_labels,
    starting_point,
)
from helpers.classification_runs import SIZES, save_pretrained
from helpers.published_tensors import SMALL as PUBLISHED
from helpers.published_tensors import published_decoder, published_encoder
from helpers.tiny_shards import tiny_processor, write_shards

CLASSES = LabelSpace(3, ("bell", "drum", "hum"), "multi_label_classification")


def build(labels: LabelSpace = CLASSES, seed: int = 3, **settings: Any) -> Any:
    arguments = ClassificationModelArguments(**settings)
    return build_classifier(starting_point(arguments), labels, arguments, seed)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    return save_pretrained(tmp_path_factory.mktemp("pretrained"))


@pytest.fixture
def classifier(tmp_path) -> Path:
    model = build(init_from=str(save_pretrained(tmp_path / "encoder")))
    model.save_pretrained(tmp_path / "classifier")
    tiny_processor(alignment="reference", mean=-4.0).save_pretrained(tmp_path / "classifier")
    return tmp_path / "classifier"


def test_pretrained_folder__gives_encoder_and_processor_and_a_new_head(pretrained):
    model = build(init_from=str(pretrained))
    assert_same(model.model.state_dict(), CavMaeSyncModel.from_pretrained(pretrained).state_dict())
    assert model.config.id2label == {0: "bell", 1: "drum", 2: "hum"} and model.config.label2id["hum"] == 2
    assert model.config.problem_type == "multi_label_classification"
    processor = starting_point(ClassificationModelArguments(init_from=str(pretrained))).processor
    assert (processor.feature_extractor.audio_length, processor.feature_extractor.alignment) == (48, "time")
    fewer = ClassificationModelArguments(init_from=str(pretrained), model_config={"num_frames": 2})
    parts = starting_point(fewer).processor
    assert (
        parts.feature_extractor.num_frames
        == parts.video_processor.num_frames
        == 2
        != processor.video_processor.num_frames
    )


def test_head__depends_on_the_seed_alone(pretrained):
    first, scratch, other = (
        build(init_from=str(pretrained)),
        build(init_from=str(pretrained), from_scratch=True),
        build(init_from=str(pretrained), seed=4),
    )
    assert_same(first.head.state_dict(), scratch.head.state_dict())
    assert not torch.equal(first.head.classifier.weight, other.head.classifier.weight)


def test_from_scratch__takes_sizes_and_processor_and_no_weights(classifier):
    arguments = ClassificationModelArguments(init_from=str(classifier), from_scratch=True)
    start = starting_point(arguments)
    model = build_classifier(start, CLASSES, arguments, seed=9)
    trained = CavMaeSyncForAudioVisualClassification.from_pretrained(classifier)
    assert start.processor.feature_extractor.mean == -4.0
    for name in ("model.audio_tower.layers.0.mlp.fc1.weight", "head.classifier.weight"):
        assert model.state_dict()[name].shape == trained.state_dict()[name].shape
        assert not torch.equal(model.state_dict()[name], trained.state_dict()[name])
    with pytest.raises(TrainingError, match="`from_scratch` takes the sizes"):
        ClassificationModelArguments(from_scratch=True)


def test_classifier__keeps_its_head_for_the_same_classes_alone(classifier):
    trained = CavMaeSyncForAudioVisualClassification.from_pretrained(classifier)
    again = build(init_from=str(classifier), seed=9)
    assert_same(again.state_dict(), trained.state_dict())
    unnamed = build(LabelSpace(3, None, CLASSES.problem_type), init_from=str(classifier), seed=9)
    assert torch.equal(unnamed.head.classifier.weight, trained.head.classifier.weight)
    for other in (
        {"labels": LabelSpace(3, ("bell", "hum", "drum"), CLASSES.problem_type)},
        {"labels": LabelSpace(4, ("bell", "drum", "hum", "bark"), CLASSES.problem_type)},
        {"classifier": "frame_attention"},
    ):
        model = build(init_from=str(classifier), seed=9, **other)
        assert_same(model.model.state_dict(), trained.model.state_dict())
        assert not torch.equal(model.head.norm.weight.sum() + model.head.classifier.weight.sum(),
                               trained.head.norm.weight.sum() + trained.head.classifier.weight.sum())  # fmt: skip


@pytest.mark.parametrize("modality", ["audio", "video"])
def test_modality__is_cut_out_of_a_multimodal_model_without_complaint(modality, pretrained, capfd):
    model = build(init_from=str(pretrained), modality=modality)
    assert "UNEXPECTED" not in capfd.readouterr().err
    whole = CavMaeSyncModel.from_pretrained(pretrained).state_dict()
    found = model.model.state_dict()
    assert 0 < len(found) < len(whole)
    assert_same(found, {name: whole[name] for name in found})


def test_modality__that_the_source_lacks_is_refused(pretrained, tmp_path):
    build(init_from=str(pretrained), modality="audio").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"lacks weights that the classifier needs: .*video_tower"):
        build(init_from=str(tmp_path), modality="multimodal")
    assert build(init_from=str(tmp_path)).config.modality == "audio"  # what it has is the default


def test_sizes__that_are_not_the_source_s_are_refused(pretrained):
    with pytest.raises(ValueError, match=r"mlp.fc1.*has shape .*Leave sizes out of `model_config`"):
        build(init_from=str(pretrained), model_config={"intermediate_size": 96})


@pytest.mark.parametrize("modality", [None, "audio"])
def test_published_pretraining_file__gives_the_encoder(modality, tmp_path):
    tensors = published_encoder() | published_decoder()
    torch.save({f"module.{name}": tensor for name, tensor in tensors.items()}, tmp_path / "published.pth")
    arguments = ClassificationModelArguments(
        init_from=str(tmp_path / "published.pth"), model_config=dict(PUBLISHED), modality=modality
    )
    start = starting_point(arguments)
    assert start.processor.feature_extractor.alignment == "reference"
    model = build_classifier(start, CLASSES, arguments)
    expected = tensors["patch_embed_a.proj.weight"]
    assert torch.equal(model.model.audio_tower.embeddings.projection.weight, expected)
    assert (model.model.video_tower is None) == (modality == "audio")


def test_published_classifier__keeps_its_head_for_as_many_classes(tmp_path):
    width = published_encoder()["norm.weight"].shape[0]
    torch.manual_seed(0)
    head = {"mlp_head.0.weight": torch.randn(width), "mlp_head.0.bias": torch.randn(width),
            "mlp_head.1.weight": torch.randn(3, width), "mlp_head.1.bias": torch.randn(3)}  # fmt: skip
    torch.save(published_encoder(registers=0, cls=False) | head, tmp_path / "finetuned.pth")
    settings = {"init_from": str(tmp_path / "finetuned.pth"), "model_config": dict(PUBLISHED)}
    assert torch.equal(build(**settings).head.classifier.weight, head["mlp_head.1.weight"])
    more = LabelSpace(4, None, CLASSES.problem_type)
    assert build(more, **settings).head.classifier.weight.shape == (4, width)


def test_scratch__settings_are_those_of_the_family_and_the_flags():
    model = build(model_config=SIZES | {"hidden_size": 16}, classifier="frame_attention", attention="eager")
    assert (model.config.hidden_size, model.config.classifier_type) == (16, "frame_attention")
    assert model.config._attn_implementation == "eager"


# Classes


def sets(tmp_path: Path, *labels: list[list[int]]) -> list[CavMaeSyncDataset]:
    processor = tiny_processor()
    return [
        CavMaeSyncDataset(write_shards(tmp_path / str(number), [len(rows)], rows), processor, frames="all")
        for number, rows in enumerate(labels)
    ]


def test_labels__problem_type_and_number_of_classes_come_from_the_training_set(tmp_path):
    single, many = sets(tmp_path, [[0], [2], [1]], [[0, 3], [1], []])
    assert find_labels(single, {}) == LabelSpace(3, None, "single_label_classification")
    assert find_labels(many, {}) == LabelSpace(4, None, "multi_label_classification")
    chosen = find_labels(single, {"held out": EvaluationSet(single)}, problem_type="multi_label_classification")
    assert chosen.problem_type == "multi_label_classification"
    names = tmp_path / "names.txt"
    names.write_text("bell\ndrum\nhum\nbark\n")
    assert find_labels(single, {}, str(names)) == LabelSpace(
        4, ("bell", "drum", "hum", "bark"), "single_label_classification"
    )


def test_labels__stored_names_are_used_and_must_agree(tmp_path):
    train, held_out = sets(tmp_path, [[0], [1]], [[1], [0]])
    train.source.index.label_names, held_out.source.index.label_names = ["bell", "drum"], ["bell", "drum"]
    assert find_labels(train, {"held out": EvaluationSet(held_out)}).names == ("bell", "drum")
    held_out.source.index.label_names = ["drum", "bell"]
    with pytest.raises(TrainingError, match="'held out' has other classes .*another order"):
        find_labels(train, {"held out": EvaluationSet(held_out)})


def test_labels__that_cannot_be_used_are_refused(tmp_path):
    single, many, none, high = sets(tmp_path, [[0], [1]], [[0, 1], [1]], [[], []], [[5], [0]])
    with pytest.raises(TrainingError, match="No training clip has a label"):
        find_labels(none, {})
    with pytest.raises(TrainingError, match="'held out' has no labels"):
        find_labels(single, {"held out": EvaluationSet(none)})
    with pytest.raises(TrainingError, match="'held out' has a label 5, and there are 2 classes"):
        find_labels(single, {"held out": EvaluationSet(high)})
    with pytest.raises(TrainingError, match="clip with 2 labels; single-label"):
        find_labels(many, {}, problem_type="single_label_classification")


def test_model_arguments__that_contradict_are_refused():
    with pytest.raises(TrainingError, match="leave `freeze` out"):
        ClassificationModelArguments(lora_rank=4, freeze="encoder")
    with pytest.raises(TrainingError, match="`lora_rank` is -1"):
        ClassificationModelArguments(lora_rank=-1)
