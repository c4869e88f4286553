import pytest

from cavmae_sync_hf.model.configuration_cavmae_sync import CavMaeSyncConfig
from helpers.tiny import tiny_config


def test_defaults__are_the_published_sync_release():
    config = CavMaeSyncConfig.cav_mae_sync()
    assert (config.audio_length, config.num_frames, config.num_register_tokens) == (416, 16, 8)
    assert config.use_global_tokens and config.audio_grid == (8, 26) and config.video_grid == (14, 14)
    assert config.num_hidden_layers == 12


def test_cav_mae__has_one_window_and_no_extra_tokens():
    config = CavMaeSyncConfig.cav_mae(norm_pix_loss=False)
    assert (config.audio_length, config.num_register_tokens, config.use_global_tokens) == (1024, 0, False)
    assert config.contrastive_loss_weight == 0.01 and not config.norm_pix_loss


def test_save_and_load__keeps_every_field(tmp_path):
    config = tiny_config(
        audio_mask_mode="time", bidirectional_contrast=True, problem_type="multi_label_classification"
    )
    config.save_pretrained(tmp_path)
    assert CavMaeSyncConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"audio_length": 100}, "`audio_length` is 100.*96 or 112 would work"),
        ({"num_mel_bins": 100}, "`num_mel_bins` is 100.*96 or 112 would work"),
        ({"image_size": 8}, "`image_size` is 8.*16 would work"),
        ({"hidden_size": 770}, "`hidden_size` is 770.*768 or 780 would work"),
        ({"hidden_size": 6, "num_attention_heads": 3}, "`hidden_size` is 6.*multiple of 4, such as 4"),
        ({"decoder_num_attention_heads": 7}, "`decoder_hidden_size` is 512.*511 or 518 would work"),
        ({"num_joint_layers": 0}, "`num_joint_layers` is 0.*from 1 to"),
        ({"num_register_tokens": -1}, "`num_register_tokens` is -1.*from 0 to"),
        ({"audio_mask_ratio": 1.0}, "`audio_mask_ratio` is 1.0.*and below 1"),
        ({"audio_mask_ratio": 0.999}, "at least one must stay visible.*0.9952"),
        ({"video_mask_ratio": -0.1}, "`video_mask_ratio` is -0.1"),
        ({"temperature": 0}, "above 0"),
        ({"contrastive_loss_weight": -1}, "`contrastive_loss_weight` is -1.*from 0 to"),
        ({"attention_probs_dropout_prob": 1.5}, "is 1.5.*and below 1"),
        ({"modality": "text"}, "multimodal"),
        ({"hidden_act": "gelo"}, "`hidden_act` is 'gelo'.*Perhaps 'gelu' is meant"),
        ({"classifier_type": "frame_attention", "num_classifier_layers": 0}, "1 or more"),
        ({"num_labels": 0}, "`num_labels` is 0.*from 1 to"),
        ({"audio_mask_mode": "blocks"}, "time_frequency"),
        ({"audio_length": "416"}, "audio_length"),
        ({"frames_per_moment": 4}, "`frames_per_moment` is 4; it must be an odd whole number from 1 to 99"),
        ({"frame_step": 0}, "`frame_step` is 0.*above 0"),
        ({"subtract_mean_frame": True}, "`subtract_mean_frame` is True and `frames_per_moment` 1.*use 3"),
    ],
)
def test_values_that_cannot_work__are_refused_with_what_would(bad, says):
    with pytest.raises(Exception, match=f"(?s){says}") as error:
        CavMaeSyncConfig(**bad)
    assert type(error.value).__name__.startswith("StrictDataclass")
