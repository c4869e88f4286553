import pytest
import torch

from cavmae_sync_hf.model.modeling_cavmae_sync import CavMaeSyncForPreTraining
from helpers.tiny import tiny_config, tiny_inputs

INPUTS = {"audio": "input_values", "video": "pixel_values_videos"}


def noises(batch_size: int = 2, num_frames: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "audio_noise": torch.rand(batch_size, num_frames, 12, generator=generator),
        "video_noise": torch.rand(batch_size, num_frames, 16, generator=generator),
    }


def test_forward__adds_the_weighted_parts():
    model = CavMaeSyncForPreTraining(tiny_config(contrastive_loss_weight=0.3, reconstruction_loss_weight=2.0))
    output = model(**tiny_inputs(), **noises())
    expected = 2.0 * (output.audio_reconstruction_loss + output.video_reconstruction_loss)
    torch.testing.assert_close(output.loss, expected + 0.3 * output.contrastive_loss)
    assert output.audio_mask.shape == (2, 3, 12) and output.audio_mask.sum(-1).eq(9).all()
    assert output.video_reconstruction.shape == (2, 3, 16, 8 * 8 * 3)
    assert output.audio_patch_embeds.shape == (2, 3, 3, 32)
    assert output.contrastive_accuracy.ndim == 0


def test_forward__every_parameter_gets_a_gradient():
    model = CavMaeSyncForPreTraining(tiny_config())
    model(**tiny_inputs(), **noises()).loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


@pytest.mark.parametrize("weight", ["contrastive_loss_weight", "reconstruction_loss_weight"])
def test_zero_weight__skips_that_work(weight):
    model = CavMaeSyncForPreTraining(tiny_config(**{weight: 0.0}))
    passes = []
    model.model.joint_layers[0].register_forward_hook(lambda *_: passes.append("joint"))
    model.decoder.register_forward_hook(lambda *_: passes.append("decoder"))
    output = model(**tiny_inputs(), **noises())
    if weight == "contrastive_loss_weight":
        assert passes == ["joint", "decoder"] and output.contrastive_loss is None and output.audio_embeds is None
    else:
        assert passes == ["joint", "joint"] and output.audio_reconstruction is None
    assert output.loss.isfinite()


def test_both_weights_zero__are_refused():
    with pytest.raises(ValueError, match="nothing would be learned"):
        CavMaeSyncForPreTraining(tiny_config(contrastive_loss_weight=0.0, reconstruction_loss_weight=0.0))


def test_removed_patches__do_not_reach_the_encoder():
    model = CavMaeSyncForPreTraining(tiny_config()).eval()
    inputs, noise = tiny_inputs(), noises()
    output = model(**inputs, **noise)
    patches = model.patchify_audio(inputs["input_values"])
    patches = torch.where(output.audio_mask.unsqueeze(-1).bool(), torch.full_like(patches, 9.0), patches)
    changed = inputs | {"input_values": model.unpatchify_audio(patches)}
    again = model(**changed, **noise)
    torch.testing.assert_close(again.audio_embeds, output.audio_embeds)
    torch.testing.assert_close(again.audio_reconstruction, output.audio_reconstruction)
    assert again.audio_reconstruction_loss != output.audio_reconstruction_loss


def test_absent_modality__leaves_the_other_untouched():
    model = CavMaeSyncForPreTraining(tiny_config(norm_pix_loss=False)).eval()
    inputs, noise = tiny_inputs(), noises()
    mask = torch.tensor([[True, True, False], [True, False, True]])
    first = model(**inputs, **noise, padding_mask=mask)
    loud = inputs | {"input_values": torch.where(mask[..., None, None], inputs["input_values"], 100.0)}
    second = model(**loud, **noise, padding_mask=mask)
    torch.testing.assert_close(first.loss, second.loss)
    torch.testing.assert_close(first.video_reconstruction, second.video_reconstruction)
    torch.testing.assert_close(first.contrastive_accuracy, second.contrastive_accuracy)


def test_absent_everything__gives_a_finite_loss():
    model = CavMaeSyncForPreTraining(tiny_config())
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    output = model(**tiny_inputs(), **noises(), padding_mask=nothing, padding_mask_videos=nothing)
    output.loss.backward()
    assert output.loss == 0
    assert all(w.grad is None or w.grad.isfinite().all() for w in model.parameters())


@pytest.mark.parametrize("mode", ["time", "frequency", "time_frequency"])
def test_structured_masking__works_for_any_window_length(mode):
    model = CavMaeSyncForPreTraining(tiny_config(audio_mask_mode=mode))
    inputs = tiny_inputs() | {"input_values": torch.randn(2, 3, 80, 16)}
    output = model(**inputs)
    assert output.audio_mask.shape == (2, 3, 20) and output.audio_mask.sum(-1).eq(15).all()
    assert output.loss.isfinite()


def test_same_seed__draws_the_same_mask():
    model, inputs = CavMaeSyncForPreTraining(tiny_config()).eval(), tiny_inputs()
    torch.manual_seed(3)
    first = model(**inputs)
    second = model(**inputs)
    torch.manual_seed(3)
    third = model(**inputs)
    assert torch.equal(first.audio_mask, third.audio_mask) and not torch.equal(first.audio_mask, second.audio_mask)


def test_patchify_helpers__undo_each_other():
    model, inputs = CavMaeSyncForPreTraining(tiny_config()), tiny_inputs()
    for modality, name in (("audio", "input_values"), ("video", "pixel_values_videos")):
        patches = getattr(model, f"patchify_{modality}")(inputs[name])
        assert torch.equal(getattr(model, f"unpatchify_{modality}")(patches), inputs[name])


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_inpaint__keeps_what_is_visible_and_fills_the_rest(norm_pix_loss):
    model = CavMaeSyncForPreTraining(tiny_config(norm_pix_loss=norm_pix_loss)).eval()
    inputs, noise = tiny_inputs(), noises()
    filled = model.inpaint(**inputs, **noise)
    for modality, name in (("audio", "input_values"), ("video", "pixel_values_videos")):
        assert filled[name].shape == inputs[name].shape
        change = (getattr(model, f"patchify_{modality}")(filled[name] - inputs[name])).abs().amax(dim=-1)
        removed = filled[f"{modality}_mask"].bool()
        assert change[~removed].max() == 0 and change[removed].min() > 0


def test_inpaint__without_a_decoder_in_use_is_refused():
    model = CavMaeSyncForPreTraining(tiny_config(reconstruction_loss_weight=0.0))
    with pytest.raises(ValueError, match="decoder is off"):
        model.inpaint(**tiny_inputs())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"input_values": None}, "`input_values` is missing"),
        ({"audio_noise": torch.rand(2, 3, 11)}, r"`audio_noise` has shape \(2, 3, 11\)"),
        ({"input_values": torch.zeros(2, 2, 48, 16)}, "2 audio windows for 3 frames"),
    ],
)
def test_inputs_that_do_not_fit__are_refused(change, says):
    model = CavMaeSyncForPreTraining(tiny_config())
    with pytest.raises(ValueError, match=says):
        model(**(tiny_inputs() | change))
    with pytest.raises(ValueError, match="Pretraining needs both towers"):
        CavMaeSyncForPreTraining(tiny_config(modality="audio"))


def test_hidden_states_and_attentions__come_batch_first_on_request():
    model = CavMaeSyncForPreTraining._from_config(tiny_config(), attn_implementation="eager")
    output = model(**tiny_inputs(), **noises(), output_hidden_states=True, output_attentions=True)
    # The global token, 3 visible patches of 12, 2 registers; the embeddings and two layers.
    assert [tuple(states.shape) for states in output.audio_hidden_states] == [(2, 3, 6, 32)] * 3
    assert [tuple(weights.shape) for weights in output.video_attentions] == [(2, 3, 4, 7, 7)] * 2


def test_inpaint__takes_the_processors_masks():
    model = CavMaeSyncForPreTraining(tiny_config()).eval()
    mask = torch.tensor([[True, True, False], [True, True, True]])
    filled = model.inpaint(**tiny_inputs(), **noises(), padding_mask=mask)
    expected = model.inpaint(**tiny_inputs(), **noises())
    torch.testing.assert_close(filled.pixel_values_videos[1], expected.pixel_values_videos[1])
    assert not torch.equal(filled.pixel_values_videos[0, 2], expected.pixel_values_videos[0, 2])


def test_contrastive_pass__has_a_masking_of_its_own():
    """Embeddings come from half of the patches, reconstructions from a quarter, and neither moves the other."""
    model = CavMaeSyncForPreTraining(tiny_config(contrastive_mask_ratio=0.5)).eval()
    inputs, noise = tiny_inputs(), noises()
    own = {f"contrastive_{name}": value.flip(-1) for name, value in noise.items()}
    output = model(**inputs, **noise, **own)
    assert output.audio_patch_embeds.shape == (2, 3, 6, 32) and output.video_patch_embeds.shape == (2, 3, 8, 32)
    assert output.audio_mask.sum(-1).eq(9).all()

    single = CavMaeSyncForPreTraining(tiny_config()).eval()
    single.load_state_dict(model.state_dict())
    plain = single(**inputs, **noise)
    torch.testing.assert_close(plain.audio_reconstruction_loss, output.audio_reconstruction_loss)
    assert (plain.audio_embeds - output.audio_embeds).abs().max() > 1e-3

    other = model(**inputs, **noise, **{name: value.flip(-1) for name, value in own.items()})
    torch.testing.assert_close(other.audio_reconstruction, output.audio_reconstruction)
    assert (other.audio_embeds - output.audio_embeds).abs().max() > 1e-3


def test_contrastive_pass__is_the_only_one_without_a_decoder():
    model = CavMaeSyncForPreTraining(tiny_config(contrastive_mask_ratio=0.5, reconstruction_loss_weight=0.0))
    passes = []
    model.model.audio_tower.register_forward_hook(lambda *_: passes.append("tower"))
    output = model(**tiny_inputs())
    assert passes == ["tower"] and output.audio_mask.sum(-1).eq(6).all()


def test_contrastive_pass__wrong_ratio_and_noise_are_refused():
    with pytest.raises(Exception, match="`contrastive_mask_ratio` is 0.95"):
        tiny_config(contrastive_mask_ratio=0.95)
    model = CavMaeSyncForPreTraining(tiny_config(contrastive_mask_ratio=0.5))
    with pytest.raises(ValueError, match=r"`contrastive_audio_noise` has shape \(2, 3, 5\)"):
        model(**tiny_inputs(), contrastive_audio_noise=torch.rand(2, 3, 5))


def test_distillation__is_one_less_the_cosine_over_what_is_present():
    model = CavMaeSyncForPreTraining(tiny_config(distillation_loss_weight=0.5)).eval()
    inputs, noise = tiny_inputs(), noises()
    inputs["padding_mask"] = torch.ones(2, 3, dtype=torch.bool)
    inputs["padding_mask"][1, 2] = False
    plain = model(**inputs, **noise)
    assert plain.distillation_loss is None  # nobody teaches
    targets = {"audio_teacher_embeds": plain.audio_embeds.clone(), "video_teacher_embeds": -plain.video_embeds}
    targets["audio_teacher_embeds"][1, 2] = 0  # absent: must not count
    output = model(**inputs, **noise, **{name: value.detach() for name, value in targets.items()})
    # Five windows at distance 0, six frames at distance 2.
    assert output.distillation_loss.item() == pytest.approx(2 * 6 / 11, rel=1e-5)
    torch.testing.assert_close(output.loss, plain.loss + 0.5 * output.distillation_loss)
    with pytest.raises(ValueError, match="`audio_teacher_embeds` has shape"):
        model(**inputs, **noise, **(targets | {"audio_teacher_embeds": torch.zeros(2, 2, 32)}))


# Decoders that do less than the published one

DECODERS = {
    "a part": {"decoder_mask_ratio": 0.5},
    "cross": {"decoder_type": "cross"},
    "cross, a part": {"decoder_type": "cross", "decoder_mask_ratio": 0.5},
}


@pytest.mark.parametrize("name", DECODERS)
def test_decoder__is_judged_by_what_it_reconstructs_alone(name):
    model = CavMaeSyncForPreTraining(tiny_config(norm_pix_loss=False, **DECODERS[name])).train()
    inputs, noise = tiny_inputs(), noises()
    output = model(**inputs, **noise)
    part = "decoder_mask_ratio" in DECODERS[name]
    for modality, removed in (("audio", 9), ("video", 12)):
        mask = output[f"{modality}_reconstruction_mask"] if part else output[f"{modality}_mask"]
        assert (mask <= output[f"{modality}_mask"]).all()
        assert mask.sum(-1).eq(removed - removed // 2 if part else removed).all()
        patches = getattr(model, f"patchify_{modality}")(inputs[INPUTS[modality]])
        predicted = output[f"{modality}_reconstruction"]
        error = (predicted - patches).square().mean(dim=-1)
        torch.testing.assert_close(output[f"{modality}_reconstruction_loss"], error[mask.bool()].mean())
        assert predicted[~mask.bool()].abs().max() == 0 and predicted[mask.bool()].abs().amax(dim=-1).min() > 0
    output.loss.backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()] == []


@pytest.mark.parametrize("name", DECODERS)
def test_decoder__fills_every_removed_patch_outside_of_training_steps(name, tmp_path):
    model = CavMaeSyncForPreTraining(tiny_config(**DECODERS[name])).train()
    inputs, noise = tiny_inputs(), noises()
    step = model(**inputs, **noise)
    filled = model.inpaint(**inputs, **noise)  # needs no `eval()`: there is no gradient, so no step
    change = model.patchify_video(filled.pixel_values_videos - inputs["pixel_values_videos"]).abs().amax(dim=-1)
    assert torch.equal(change > 0, step.video_mask.bool())
    model.eval()
    output = model(**inputs, **noise)
    assert output.audio_reconstruction_mask is None
    assert torch.equal(output.audio_reconstruction.any(-1), step.audio_mask.bool()) == (model.decoder.crosses)
    if name == "cross, a part":  # patches do not see each other, so it is the same which others are asked for
        told = step.audio_reconstruction_mask.bool()
        torch.testing.assert_close(output.audio_reconstruction[told], step.audio_reconstruction[told])

    model.save_pretrained(tmp_path)
    again = CavMaeSyncForPreTraining.from_pretrained(tmp_path).eval()
    assert again.config.decoder_mask_ratio == model.config.decoder_mask_ratio
    torch.testing.assert_close(again(**inputs, **noise).loss, output.loss)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_decoder__hides_an_absent_modality_from_the_other(name, attention):
    config = tiny_config(norm_pix_loss=False, **DECODERS[name])
    model = CavMaeSyncForPreTraining._from_config(config, attn_implementation=attention).train()
    inputs, noise, mask = tiny_inputs(), noises(), torch.ones(2, 3, dtype=torch.bool)
    plain, all_there = (model(**inputs, **noise, padding_mask=given) for given in (None, mask))
    torch.testing.assert_close(all_there.video_reconstruction, plain.video_reconstruction)
    mask[0, 2] = False
    first = model(**inputs, **noise, padding_mask=mask)
    inputs["input_values"][0, 2] = 100.0
    second = model(**inputs, **noise, padding_mask=mask)
    torch.testing.assert_close(first.loss, second.loss)
    torch.testing.assert_close(first.video_reconstruction, second.video_reconstruction)
    changed = (first.video_reconstruction - plain.video_reconstruction).abs().amax(dim=(-1, -2)) > 1e-6
    assert changed.tolist() == [[False, False, True], [False, False, False]]


def test_decoder__of_older_configurations_is_the_published_one(tmp_path):
    config = tiny_config()
    config.save_pretrained(tmp_path)
    saved = (tmp_path / "config.json").read_text()
    assert "decoder_type" not in saved and "decoder_mask_ratio" not in saved  # as files were before there were these
    again = type(config).from_pretrained(tmp_path)
    assert (again.decoder_type, again.decoder_mask_ratio) == ("self", 0)


def test_decoder__that_crosses_needs_something_removed():
    with pytest.raises(Exception, match="predicts what was removed"):
        tiny_config(decoder_type="cross", audio_mask_ratio=0, video_mask_ratio=0)
    model = CavMaeSyncForPreTraining(tiny_config(decoder_type="cross", audio_mask_ratio=0))
    output = model(**tiny_inputs())
    assert output.audio_reconstruction_loss == 0 and output.video_reconstruction_loss > 0
