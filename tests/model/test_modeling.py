import pytest
import torch

from cavmae_sync_hf.model.modeling_cavmae_sync import CavMaeSyncModel, select_distinct, sincos_positions
from helpers.tiny import tiny_config, tiny_inputs


@pytest.fixture
def model():
    return CavMaeSyncModel(tiny_config()).eval()


@torch.no_grad()
def test_forward__gives_batch_first_normalised_embeddings(model):
    output = model(**tiny_inputs(batch_size=2, num_frames=3))
    assert output.audio_embeds.shape == output.video_embeds.shape == (2, 3, 32)
    assert output.audio_patch_embeds.shape == (2, 3, 12, 32)
    assert output.video_patch_embeds.shape == (2, 3, 16, 32)
    torch.testing.assert_close(output.audio_embeds.norm(dim=-1), torch.ones(2, 3))
    expected = torch.einsum("bid,bjd->bij", output.audio_embeds, output.video_embeds)
    torch.testing.assert_close(output.similarity, expected)


@torch.no_grad()
def test_forward__a_batch_of_one_frame_keeps_its_dimensions(model):
    output = model(**tiny_inputs(batch_size=1, num_frames=1))
    assert output.audio_embeds.shape == (1, 1, 32) and output.similarity.shape == (1, 1, 1)


@torch.no_grad()
@pytest.mark.parametrize("modality", ["audio", "video"])
def test_forward__one_modality_never_runs_the_other_tower(model, modality):
    inputs = tiny_inputs()
    name = {"audio": "input_values", "video": "pixel_values_videos"}[modality]
    both = model(**inputs)
    other = model.video_tower if modality == "audio" else model.audio_tower
    ran = []
    other.register_forward_hook(lambda *_: ran.append(True))
    alone = model(**{name: inputs[name]})
    assert not ran and alone.similarity is None
    torch.testing.assert_close(alone[f"{modality}_embeds"], both[f"{modality}_embeds"])


@torch.no_grad()
def test_features__pool_one_vector_per_clip(model):
    inputs = tiny_inputs()
    output = model(**inputs)
    audio = model.get_audio_features(inputs["input_values"])
    video = model.get_video_features(inputs["pixel_values_videos"])
    torch.testing.assert_close(audio.audio_embeds, output.audio_embeds)
    torch.testing.assert_close(video.last_hidden_state, output.video_patch_embeds)
    expected = torch.nn.functional.normalize(output.audio_embeds.mean(dim=1), dim=-1)
    torch.testing.assert_close(audio.pooler_output, expected)
    assert video.pooler_output.shape == (2, 32)


@torch.no_grad()
def test_forward__without_global_tokens_pools_the_patches():
    model = CavMaeSyncModel(tiny_config(use_global_tokens=False, num_register_tokens=0)).eval()
    output = model(**tiny_inputs())
    expected = torch.nn.functional.normalize(output.audio_patch_embeds.mean(dim=2), dim=-1)
    torch.testing.assert_close(output.audio_embeds, expected)


@torch.no_grad()
def test_forward__every_joint_layer_takes_part():
    model = CavMaeSyncModel(tiny_config(num_joint_layers=2)).eval()
    inputs = tiny_inputs()
    before = model(**inputs).audio_embeds
    torch.nn.init.normal_(model.joint_layers[0].mlp.fc2.weight)
    assert not torch.allclose(before, model(**inputs).audio_embeds, atol=1e-3)


@torch.no_grad()
def test_forward__takes_other_window_lengths_and_frame_sizes(model):
    output = model(input_values=torch.randn(1, 2, 80, 16), pixel_values_videos=torch.randn(1, 2, 3, 16, 48))
    assert output.audio_patch_embeds.shape == (1, 2, 20, 32) and output.video_patch_embeds.shape == (1, 2, 12, 32)
    positions = model.audio_tower.embeddings.positions
    torch.testing.assert_close(positions((2, 10)), sincos_positions((2, 10), 32))
    # A longer window extends the grid of a shorter one: shared cells keep their position.
    torch.testing.assert_close(positions((2, 10)).view(2, 10, 32)[:, :6], positions((2, 6)).view(2, 6, 32))


@torch.no_grad()
def test_learned_positions__are_resized_for_other_lengths():
    model = CavMaeSyncModel(tiny_config(position_embedding_type="learned")).eval()
    assert model.audio_tower.embeddings.positions.weight.requires_grad
    assert model(input_values=torch.randn(1, 1, 96, 16)).audio_patch_embeds.shape == (1, 1, 24, 32)


@torch.no_grad()
@pytest.mark.parametrize("with_mask", [False, True])
def test_equal_windows__are_encoded_once_with_the_same_result(with_mask):
    inputs = tiny_inputs(batch_size=2, num_frames=6)
    windows = inputs["input_values"]
    windows[0, 1] = windows[0, 2] = windows[0, 0]  # clamped at the start
    windows[1, 5] = windows[1, 4]  # and at the end
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[0, 0] = mask[1, 2] = False
    extra = {"padding_mask": mask} if with_mask else {}
    on, off = (CavMaeSyncModel(tiny_config(deduplicate_windows=flag)).eval() for flag in (True, False))
    off.load_state_dict(on.state_dict())
    seen = []
    on.audio_tower.register_forward_hook(lambda module, args, tokens: seen.append(len(tokens)))
    first, second = on(input_values=windows, **extra), off(input_values=windows, **extra)
    assert seen == [8 if with_mask else 9]  # of 12 windows
    # The same numbers in batches of another size: equal up to the order of float32 sums.
    torch.testing.assert_close(first.audio_embeds, second.audio_embeds)
    torch.testing.assert_close(first.audio_patch_embeds, second.audio_patch_embeds)


def test_equal_windows__all_get_their_own_gradient():
    windows = tiny_inputs(num_frames=2)["input_values"]
    windows[:, 1] = windows[:, 0]
    windows.requires_grad_()
    CavMaeSyncModel(tiny_config())(input_values=windows).audio_embeds[..., 0].sum().backward()
    torch.testing.assert_close(windows.grad[:, 0], windows.grad[:, 1])


def test_select_distinct__films_that_stand_still_and_absent_frames():
    frames = torch.tensor([[1, 1, 2, 2], [2, 2, 3, 3]])[..., None].float()
    picked, places = select_distinct(frames, None, True)
    assert picked.flatten().tolist() == [1, 2, 2, 3]  # equal neighbours across clips stay apart
    assert places.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    present = torch.tensor([[False, True, False, True], [False] * 4])
    picked, places = select_distinct(frames, present, True)
    assert [picked.flatten()[i].item() for i in places[[1, 3]]] == [1, 2]


@torch.no_grad()
def test_absent_windows__are_zero_and_change_nothing_else(model):
    inputs = tiny_inputs(batch_size=2, num_frames=3)
    mask = torch.tensor([[True, True, False], [False, False, False]])
    plain, masked = model(**inputs), model(**inputs, padding_mask=mask)
    torch.testing.assert_close(masked.audio_embeds[0, :2], plain.audio_embeds[0, :2])
    assert masked.audio_embeds[~mask].eq(0).all() and masked.similarity[~mask].eq(0).all()
    pooled = model.get_audio_features(inputs["input_values"], padding_mask=mask).pooler_output
    expected = torch.nn.functional.normalize(plain.audio_embeds[0, :2].mean(dim=0), dim=-1)
    torch.testing.assert_close(pooled[0], expected)
    assert pooled[1].eq(0).all()


@torch.no_grad()
def test_return_loss__is_the_contrast_over_all_frames_of_the_batch(model):
    inputs = tiny_inputs()
    output = model(**inputs, return_loss=True)
    torch.testing.assert_close(output.loss, model.contrast(output.audio_embeds, output.video_embeds).loss)
    with pytest.raises(ValueError, match="needs both"):
        model(input_values=inputs["input_values"], return_loss=True)


@torch.no_grad()
def test_single_modality_model__has_one_tower_and_says_so(tmp_path):
    both = CavMaeSyncModel(tiny_config()).eval()
    both.save_pretrained(tmp_path)
    audio_only = CavMaeSyncModel.from_pretrained(tmp_path, modality="audio").eval()
    assert audio_only.video_tower is None
    inputs = tiny_inputs()
    features = audio_only.get_audio_features(inputs["input_values"])
    torch.testing.assert_close(features.audio_embeds, both(**inputs).audio_embeds)
    with pytest.raises(ValueError, match="modality='audio'` and no video tower"):
        audio_only(**inputs)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"input_values": torch.zeros(2, 3, 48, 17)}, r"expected \(batch_size, num_frames, audio_length, 16\)"),
        ({"input_values": torch.zeros(2, 3, 16)}, r"`input_values` has shape \(2, 3, 16\)"),
        ({"input_values": torch.zeros(2, 3, 50, 16)}, "50 spectrogram frames.*48 would work"),
        ({"input_values": torch.zeros(2, 4, 48, 16)}, "4 audio windows for 3 frames"),
        ({"pixel_values_videos": torch.zeros(2, 3, 1, 32, 32)}, r"expected \(batch_size, num_frames, 3, height"),
        ({"pixel_values_videos": torch.zeros(2, 3, 3, 30, 32)}, "30 x 32 pixels.*resize them to 32 x 32"),
        ({"padding_mask": torch.ones(2, 2)}, "one value per window or frame"),
        ({"output_attentions": True}, "attn_implementation='eager'"),
        ({"pixel_values_videos": None, "input_values": None}, "Got neither"),
    ],
)
def test_inputs_that_do_not_fit__are_refused(model, change, says):
    with pytest.raises(ValueError, match=f"(?s){says}"):
        model(**(tiny_inputs() | change))


def test_unknown_arguments__are_refused_and_known_ones_are_not(model):
    inputs = tiny_inputs()
    with pytest.raises(TypeError, match="`padding_masks`; is `padding_mask` meant"):
        model(**inputs, padding_masks=torch.ones(2, 3))
    with pytest.raises(ValueError, match="a str, not a tensor.*return_tensors='pt'"):
        model(input_values="clip.wav")
    with torch.no_grad():
        assert model(**inputs, frame_times=torch.zeros(2, 3), window_coverage=torch.ones(2, 3)).similarity is not None


def test_return_loss__one_clip_has_nothing_to_be_told_from():
    inputs = tiny_inputs(batch_size=1)
    with torch.no_grad():
        alone = CavMaeSyncModel(tiny_config())
        output = alone(**inputs)
        assert alone.contrast(output.audio_embeds, output.video_embeds) == (0.0, 0.0)
        among_moments = CavMaeSyncModel(tiny_config(intra_clip_negatives=True))
        assert among_moments(**inputs, return_loss=True).loss > 0
