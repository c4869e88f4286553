import pytest
import torch

from cavmae_sync_hf.model.modeling_cavmae_sync import CavMaeSyncForAudioVisualClassification, CavMaeSyncModel
from helpers.tiny import tiny_config, tiny_inputs


def classifier(**overrides):
    return CavMaeSyncForAudioVisualClassification(tiny_config(**overrides)).eval()


HEADS = ["mean_pooling", "frame_attention"]


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("modality", ["multimodal", "audio", "video"])
def test_forward__gives_one_row_of_logits_per_clip(head, modality):
    model, inputs = classifier(classifier_type=head, modality=modality), tiny_inputs()
    if modality == "audio":
        inputs.pop("pixel_values_videos")
    if modality == "video":
        inputs.pop("input_values")
    output = model(**inputs)
    assert output.logits.shape == (2, 5)
    assert (output.frame_logits is None) == (head == "frame_attention")


@torch.no_grad()
@pytest.mark.parametrize(
    ("problem_type", "activation"),
    [("single_label_classification", lambda x: x.softmax(-1)), ("multi_label_classification", torch.sigmoid)],
)
def test_several_frames__average_their_probabilities(problem_type, activation):
    model = classifier(problem_type=problem_type)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    output = model(**tiny_inputs(), padding_mask=mask, padding_mask_videos=mask)
    probabilities = activation(output.frame_logits)
    expected = torch.stack([probabilities[0, :2].mean(dim=0), probabilities[1].mean(dim=0)])
    torch.testing.assert_close(activation(output.logits), expected)


@torch.no_grad()
def test_several_frames__regression_averages_scores():
    output = classifier(problem_type="regression")(**tiny_inputs())
    torch.testing.assert_close(output.logits, output.frame_logits.mean(dim=1))


@torch.no_grad()
def test_one_frame__keeps_its_logits():
    output = classifier()(**tiny_inputs(num_frames=1))
    assert torch.equal(output.logits, output.frame_logits[:, 0])


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("missing", ["input_values", "pixel_values_videos"])
def test_masked_modality__equals_a_modality_not_given(head, missing):
    model, inputs = classifier(classifier_type=head), tiny_inputs()
    mask_name = {"input_values": "padding_mask", "pixel_values_videos": "padding_mask_videos"}[missing]
    masked = model(**inputs, **{mask_name: torch.zeros(2, 3, dtype=torch.bool)}).logits
    absent = model(**{name: value for name, value in inputs.items() if name != missing}).logits
    torch.testing.assert_close(masked, absent)
    assert not torch.allclose(masked, model(**inputs).logits, atol=1e-4)


@torch.no_grad()
def test_masked_modality__is_decided_sample_by_sample():
    model, inputs = classifier(), tiny_inputs()
    mask = torch.ones(2, 3, dtype=torch.bool)
    mask[1] = False
    mixed = model(**inputs, padding_mask=mask).logits
    torch.testing.assert_close(mixed[0], model(**inputs).logits[0])
    torch.testing.assert_close(mixed[1], model(pixel_values_videos=inputs["pixel_values_videos"]).logits[1])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    ("labels", "problem_type"),
    [
        (torch.tensor([1, 4]), "single_label_classification"),
        (torch.eye(5)[:2] * 0.9, "multi_label_classification"),
    ],
)
def test_labels__choose_the_loss(head, labels, problem_type):
    model = classifier(classifier_type=head)
    output = model(**tiny_inputs(), labels=labels)
    assert model.config.problem_type == problem_type
    if problem_type.startswith("single"):
        expected = torch.nn.functional.cross_entropy(output.logits, labels)
    else:
        expected = torch.nn.functional.binary_cross_entropy_with_logits(output.logits, labels)
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert model.head.classifier.weight.grad.abs().sum() > 0


def test_labels__class_probabilities_are_taken_for_single_labels():
    model = classifier(problem_type="single_label_classification")
    labels = torch.tensor([[0.5, 0.5, 0, 0, 0], [0, 0, 0, 0, 1.0]])
    output = model(**tiny_inputs(), labels=labels)
    expected = -(labels * output.logits.log_softmax(-1)).sum(-1).mean()
    torch.testing.assert_close(output.loss, expected)


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
def test_nothing_present__stays_finite(head):
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    output = classifier(classifier_type=head)(**tiny_inputs(), padding_mask=nothing, padding_mask_videos=nothing)
    assert output.logits.isfinite().all()


@torch.no_grad()
def test_from_pretrained__starts_from_an_encoder(tmp_path):
    encoder = CavMaeSyncModel(tiny_config())
    encoder.save_pretrained(tmp_path)
    model = CavMaeSyncForAudioVisualClassification.from_pretrained(tmp_path, num_labels=7)
    torch.testing.assert_close(model.model.state_dict(), encoder.state_dict())
    assert model.head.classifier.out_features == 7


def test_missing_input__is_refused():
    with pytest.raises(ValueError, match="Got neither"):
        classifier()()
    with pytest.raises(ValueError, match="no audio tower"):
        classifier(modality="video")(**tiny_inputs())


@torch.no_grad()
def test_hidden_states__come_batch_first_on_request():
    output = classifier()(**tiny_inputs(), output_hidden_states=True)
    assert [tuple(states.shape) for states in output.video_hidden_states] == [(2, 3, 1 + 16 + 2, 32)] * 3
    assert output.audio_attentions is None
