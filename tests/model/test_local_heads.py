"""Local heads: what they make of tokens, that they are saved with the model, and that models without them stay."""

import pytest
import torch
from transformers import AutoModel, ViTConfig

from cavmae_sync_hf import CavMaeSyncConfig, CavMaeSyncForPreTraining, CavMaeSyncModel, CavMaeSyncProcessor
from cavmae_sync_hf.hub import save_for_hub
from cavmae_sync_hf.model.local_cavmae_sync import CavMaeSyncLocalHead, block_sums
from cavmae_sync_hf.model.modeling_text_cavmae_sync import CavMaeSyncTextDualEncoderModel
from cavmae_sync_hf.training import ModelArguments, build_for_pretraining, freeze_unused
from helpers.tiny import tiny_config, tiny_inputs, tiny_text_config

PATCHES = {"audio": 12, "video": 16}
FEATURES = {"audio": ("get_audio_features", "input_values"), "video": ("get_video_features", "pixel_values_videos")}


def build(**settings):
    """With heads that predict something; new ones predict that nothing falls."""
    torch.manual_seed(0)
    model = CavMaeSyncModel(tiny_config(local_head_size=6, **settings)).eval()
    for head in model.local_heads.values():
        assert not head.fall.weight.any() and head.patch.weight.any()
        torch.nn.init.normal_(head.fall.weight)
    return model


def test_block_sums__are_those_counted_by_hand():
    patches = torch.arange(1.0, 13.0).reshape(1, 12, 1)  # rows of 4: 1 2 3 4, 5 6 7 8, 9 10 11 12

    found = block_sums(patches, (3, 4))[0, :, 0] * 9

    assert found[0] == 1 + 2 + 5 + 6 and found[1] == 1 + 2 + 3 + 5 + 6 + 7
    assert found[5] == sum((1, 2, 3, 5, 6, 7, 9, 10, 11))
    # Long grids have wide blocks: 1 row and 26 columns make one of 3 by 7.
    assert block_sums(torch.ones(1, 26, 1), (1, 26))[0, 13, 0] == pytest.approx(7 / 21)


def test_head__is_what_its_formula_says():
    """A width of 1, weights of 1 or 0, tokens whose norms are known."""
    head = CavMaeSyncLocalHead(hidden_size=2, num_states=1, width=1)
    with torch.no_grad():
        for weight in head.parameters():
            weight.zero_()
        head.patch.weight.copy_(torch.tensor([[1.0, 0.0]]))
        head.whole.weight.copy_(torch.tensor([[2.0, 0.0]]))
        head.mix.weight.copy_(torch.tensor([[0.5, 1.0]]))
        head.fall.weight.copy_(torch.tensor([[1.0], [-3.0]]))
    # Normalised: (1, -1), and (-1, 1) for the last patch.
    states = [torch.tensor([[[3.0, 1.0], [5.0, 1.0], [9.0, 8.0], [0.0, 7.0]]])]

    found = head(states, (1, 3))

    gelu = torch.nn.functional.gelu
    each = gelu(torch.tensor([1.0 + 2.0, 1.0 + 2.0, -1.0 + 2.0]))
    sums = torch.stack([each[0] + each[1], each.sum(), each[1] + each[2]]) / 9
    value = sums + gelu(0.5 * each + sums)
    torch.testing.assert_close(found[0], torch.stack([value, -3 * value], dim=1), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("settings", [{}, {"use_global_tokens": False, "num_contrastive_head_layers": 1}])
def test_local_embeds__come_on_request_and_change_nothing_else(settings):
    model, inputs = build(**settings), tiny_inputs()
    mask = torch.tensor([[True, True, False], [True, True, True]])
    with torch.no_grad():
        plain = model(**inputs, padding_mask_videos=mask, output_hidden_states=True)
        asked = model(**inputs, padding_mask_videos=mask, output_hidden_states=True, output_local_embeds=True)
        alone = {
            name: getattr(model, method)(inputs[given], output_local_embeds=True)[f"local_{name}_embeds"]
            for name, (method, given) in FEATURES.items()
        }

    assert "local_video_embeds" not in plain and len(plain.to_tuple()) + 2 == len(asked.to_tuple())
    for name in plain:
        torch.testing.assert_close(asked[name], plain[name])
    for name, patches in PATCHES.items():
        assert asked[f"local_{name}_embeds"].shape == (2, 3, patches, 32)
    torch.testing.assert_close(alone["audio"], asked.local_audio_embeds)
    torch.testing.assert_close(alone["video"][1], asked.local_video_embeds[1])
    assert not asked.local_video_embeds[0, 2].any() and asked.local_video_embeds[0, 1].any()


def test_gradients__reach_every_weight_of_the_heads():
    model, inputs = build(), tiny_inputs()
    output = model(**inputs, output_local_embeds=True)
    (output.local_audio_embeds.square().sum() + output.local_video_embeds.square().sum()).backward()

    heads = dict(model.local_heads.named_parameters())
    assert set(model.local_heads) == {"audio", "video"} and len(heads) == 14
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in heads.values())


def test_encoders_of_other_models__have_heads_on_what_they_give():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = build(video_encoder_config=ViTConfig(**sizes, image_size=32, patch_size=8), num_joint_layers=2)
    with torch.no_grad():
        output = model(**tiny_inputs(), output_local_embeds=True, output_hidden_states=True)

    assert model.local_heads["video"].patch.in_features == 3 * 32  # its output and two joint layers
    assert model.local_heads["audio"].patch.in_features == 5 * 32
    assert output.local_video_embeds.shape == (2, 3, 16, 32)


def test_heads__are_saved_loaded_and_travel_with_the_code(tmp_path):
    model, inputs = build(), tiny_inputs()
    save_for_hub(model, CavMaeSyncProcessor.from_config(model.config), tmp_path / "hub")
    again = CavMaeSyncModel.from_pretrained(tmp_path / "hub").eval()
    remote = AutoModel.from_pretrained(tmp_path / "hub", trust_remote_code=True).eval()
    with torch.no_grad():
        expected = model(**inputs, output_local_embeds=True)
        for loaded in (again, remote):
            found = loaded(**inputs, output_local_embeds=True)
            torch.testing.assert_close(found.local_audio_embeds, expected.local_audio_embeds)
            torch.testing.assert_close(found.local_video_embeds, expected.local_video_embeds)
    assert (tmp_path / "hub" / "local_cavmae_sync.py").is_file()

    joined = CavMaeSyncTextDualEncoderModel.from_av_text_pretrained(
        model, AutoModel.from_config(tiny_text_config()), projection_dim=8
    )
    joined.save_pretrained(tmp_path / "text")
    text = CavMaeSyncTextDualEncoderModel.from_pretrained(tmp_path / "text").eval()
    with torch.no_grad():
        found = text.av_model(**inputs, output_local_embeds=True)
    torch.testing.assert_close(found.local_video_embeds, expected.local_video_embeds)


def test_models_without_heads__are_as_ever(tmp_path):
    torch.manual_seed(0)
    plain = CavMaeSyncModel(tiny_config()).eval()
    names = set(plain.state_dict())
    assert not any("local" in name for name in names) and "local_head_size" not in plain.config.to_dict()
    with pytest.raises(ValueError, match=r"`local_head_size` is 0.*cavmae-sync local-head"):
        plain(**tiny_inputs(), output_local_embeds=True)

    torch.manual_seed(0)
    with_heads = CavMaeSyncModel(tiny_config(local_head_size=6)).eval()
    assert {name for name in with_heads.state_dict() if "local_heads" not in name} == names
    with_heads.set_local_heads(0)
    assert set(with_heads.state_dict()) == names and CavMaeSyncConfig(**with_heads.config.to_dict())
    with_heads.set_local_heads(5)
    weights = with_heads.local_heads["audio"].state_dict()
    assert weights["mix.weight"].shape == (5, 10) and weights["mix.weight"].any()
    assert not weights["mix.bias"].any() and not weights["fall.weight"].any()
    with_heads.save_pretrained(tmp_path)
    assert CavMaeSyncModel.from_pretrained(tmp_path).config.local_head_size == 5


def test_weights_of_heads__are_left_out_where_there_are_none(tmp_path):
    """As in a pretraining that goes on with the towers, to which they would no longer belong."""
    build().save_pretrained(tmp_path)
    model, processor = build_for_pretraining(ModelArguments(init_from=str(tmp_path)), 0)

    assert not len(model.model.local_heads) and model.config.local_head_size == 0
    torch.testing.assert_close(model.model.norms["audio"].weight, build().norms["audio"].weight)
    frozen = CavMaeSyncForPreTraining(tiny_config(local_head_size=4))
    assert all("local_heads" in name for name in freeze_unused(frozen))
    assert not any(weight.requires_grad for weight in frozen.model.local_heads.parameters())
