# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The model with a language model: any family, moments in their places, generation, saving, adapters."""

import copy
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM, CLIPTextConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from cavmae_sync_hf import CavMaeSyncForConditionalGeneration, CavMaeSyncLMConfig, CavMaeSyncLMModel, CavMaeSyncModel
from helpers.tiny import tiny_config, tiny_inputs

VIDEO, AUDIO = 95, 96
SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "vocab_size": 97, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "max_position_embeddings": 256,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {"head_dim": 8, "tie_word_embeddings": True},
    "smollm3": {},
    "gemma2": {"head_dim": 8},  # caps its logits
    "cohere": {"logit_scale": 0.5},
    "granite": {"logits_scaling": 3.0, "embedding_multiplier": 2.0},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "phi": {},  # a head with a bias
    "gpt_neox": {},
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},  # no attention alone
}


def language_model(family: str = "qwen3", seed: int = 0, **settings: Any) -> Any:
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **(SIZES | FAMILIES[family] | settings))
    return AutoModelForCausalLM.from_config(config).eval()


def build(family: str = "qwen3", av_settings: dict[str, Any] | None = None, **settings: Any) -> Any:
    language = language_model(family)
    av_model = CavMaeSyncModel(tiny_config(**(av_settings or {}))).eval()
    sizes = {"tokens_per_frame": 4, "tokens_per_window": 2, "video_token_id": VIDEO, "audio_token_id": AUDIO}
    return CavMaeSyncForConditionalGeneration.from_av_text_pretrained(av_model, language, **(sizes | settings))


def prompt(moments: int = 3, frame: int = 5, window: int = 3) -> list[int]:
    """A clip's moments between words."""
    return [5, *([7, *[VIDEO] * frame, *[AUDIO] * window] * moments), 8, 9]


def inputs(texts: int = 2, **kwargs: Any) -> dict[str, torch.Tensor]:
    ids = torch.tensor([prompt()] * texts)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **clips(texts, **kwargs)}


def clips(count: int = 2, **kwargs: Any) -> dict[str, torch.Tensor]:
    times = torch.tensor([[0.5, 1.5, 2.5]] * count)
    return tiny_inputs(count, **kwargs) | {"video_times": times, "audio_times": times}


def answers(model: Any, **kwargs: Any) -> torch.Tensor:
    return model.generate(**kwargs, max_new_tokens=4, min_new_tokens=4, do_sample=False)[:, -4:]


@pytest.mark.parametrize("family", FAMILIES)
def test_text_alone__gives_the_logits_of_the_language_model(family):
    language = language_model(family)
    ids = torch.randint(3, 90, (2, 7))
    expected = language(ids).logits

    model = CavMaeSyncForConditionalGeneration.from_av_text_pretrained(
        CavMaeSyncModel(tiny_config()), language, video_token_id=VIDEO, audio_token_id=AUDIO
    )

    torch.testing.assert_close(model(ids).logits, expected, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "phi"])
def test_saved_and_loaded__answers_the_same(family, tmp_path):
    model = build(family)
    model.save_pretrained(tmp_path)

    loaded = AutoModelForMultimodalLM.from_pretrained(tmp_path)

    assert isinstance(loaded, CavMaeSyncForConditionalGeneration)
    assert torch.equal(loaded(**inputs()).logits, model(**inputs()).logits)
    assert torch.equal(answers(loaded, **inputs()), answers(model, **inputs()))
    tied = model.config.tie_word_embeddings
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tied
    base = CavMaeSyncLMModel.from_pretrained(tmp_path)
    torch.testing.assert_close(
        base(**inputs()).last_hidden_state, model.model(**inputs()).last_hidden_state, rtol=0, atol=0
    )


def test_random_weights__are_finite_and_make_sense_of_a_config(tmp_path):
    config = CavMaeSyncLMConfig(
        av_config=tiny_config(), text_config=AutoConfig.for_model("qwen3", **(SIZES | FAMILIES["qwen3"])),
        video_token_id=VIDEO, audio_token_id=AUDIO, tokens_per_frame=4, tokens_per_window=2,
    )  # fmt: skip
    model = CavMaeSyncForConditionalGeneration(config).eval()

    assert all(weight.isfinite().all() for weight in model.parameters())
    assert model(**inputs()).logits.isfinite().all()
    assert CavMaeSyncLMConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()


@pytest.mark.parametrize("changed", ["pixel_values_videos", "input_values"])
def test_every_moment__reaches_the_words_after_it_and_none_before(changed):
    model, given = build(), inputs(1)
    before = model(**given).logits[0]
    given[changed] = given[changed].clone()
    given[changed][0, 1] += 1  # the second of three moments

    difference = (model(**given).logits[0] - before).abs().amax(dim=-1)

    first = 1 + 9 + 1 + (0 if changed == "pixel_values_videos" else 5)
    assert difference[:first].max() == 0 and difference[first:].min() > 0


def test_tokens__are_the_global_one_and_means_over_places_and_times():
    model, given = build().model, tiny_inputs(2)
    output = model.av_model(**given)

    video = model.encode_tokens("video", given["pixel_values_videos"])
    audio = model.encode_tokens("audio", given["input_values"])

    assert video.shape == (2, 3, 5, 32) and audio.shape == (2, 3, 3, 32)
    torch.testing.assert_close(torch.nn.functional.normalize(video[:, :, 0], dim=-1), output.video_embeds)
    patches = output.video_patch_embeds.unflatten(2, (4, 4))
    torch.testing.assert_close(video[:, :, 2], patches[:, :, :2, 2:].mean(dim=(2, 3)))  # top right
    heard = output.audio_patch_embeds.unflatten(2, (2, 6))
    torch.testing.assert_close(audio[:, :, 1], heard[:, :, :, :3].mean(dim=(2, 3)))  # the first half


def test_merged_tokens__are_one_of_each_that_knows_all_parts(tmp_path):
    model, given = build(merge_tokens=True), inputs(1)
    ids = torch.tensor([prompt(frame=1, window=1)])
    given |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert (model.config.frame_tokens, model.config.window_tokens) == (1, 1)
    tokens = model.model.encode_tokens("video", given["pixel_values_videos"])
    seen = model.model.get_video_features(video_tokens=tokens, video_times=given["video_times"]).pooler_output
    swapped = tokens.clone()
    swapped[:, :, [1, 2]] = tokens[:, :, [2, 1]]  # left and right of the top

    other = model.model.get_video_features(video_tokens=swapped, video_times=given["video_times"]).pooler_output

    assert tokens.shape[2] == 5 and seen[0].shape == (3, 32) and not torch.allclose(seen[0], other[0])
    model.save_pretrained(tmp_path)
    again = CavMaeSyncForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(answers(again, **given), answers(model, **given))
    with pytest.raises(ValueError, match="placeholders"):
        model(**inputs(1))


@pytest.mark.parametrize("merge", [False, True])
def test_standardised_projectors__take_tokens_of_mean_0_and_variance_1(merge):
    model = build(merge_tokens=merge, time_frequencies=0).model
    tokens = model.encode_tokens("video", tiny_inputs(8)["pixel_values_videos"])
    tokens = (tokens + 3 * torch.randn(tokens.shape[-1])).flatten(0, 1)  # most of what they hold is alike
    projector, seen = model.video_projector, []
    projector.linear_1.register_forward_hook(lambda layer, inputs, output: seen.append((inputs[0], output)))

    projector(tokens[None])
    projector.standardise(tokens)
    projector(tokens[None])

    (before, _), (after, output) = seen
    assert before.std(dim=1).mean() < 0.7 < 0.9 < after.std(dim=1).mean() < 1.1
    mean = output.mean(dim=(0, 1)) if merge else output.mean(dim=(0, 1, 2))
    torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-4)


def test_kept_tokens__are_as_good_as_the_clips():
    model, given = build(), inputs()
    kept = {
        "video_tokens": model.model.encode_tokens("video", given.pop("pixel_values_videos")),
        "audio_tokens": model.model.encode_tokens("audio", given.pop("input_values")),
    }

    torch.testing.assert_close(model(**given, **kept).logits, model(**inputs()).logits)
    assert torch.equal(answers(model, **given, **kept), answers(model, **inputs()))


def test_absent_moments__have_no_tokens():
    model, given = build(), clips(1)
    ids = torch.tensor([[5, *[VIDEO] * 5, *[AUDIO] * 3, *[VIDEO] * 5, 8]])
    masks = {
        "padding_mask_videos": torch.tensor([[True, True, False]]),
        "padding_mask": torch.tensor([[True, False, False]]),
    }
    expected = model(ids, **given, **masks).logits
    given["pixel_values_videos"][:, 2] = given["input_values"][:, 1:] = 100.0

    assert torch.equal(model(ids, **given, **masks).logits, expected)


def test_clips_without_video_or_audio__and_several_of_a_text():
    model, given = build(), clips(2)
    seen, heard = [VIDEO] * 5 * 3, [AUDIO] * 3 * 3
    ids = torch.tensor([[5, *seen, 6, *heard, *seen, 7, 8], [0] * 31 + [5, *heard, 7, 8]])
    mask = (ids != 0).long()

    together = model(ids, attention_mask=mask, **given).logits
    heard = {name: given[name][1:] for name in ("input_values", "audio_times")}
    alone = model(ids[1:, 31:], **heard).logits

    torch.testing.assert_close(together[1, 31:], alone[0])


@pytest.mark.parametrize("family", ["qwen3", "lfm2"])
@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}], ids=str)
def test_generation__of_a_batch_gives_what_each_text_alone_gives(settings, family):
    model = build(family)
    given = inputs(2)
    given["input_ids"][1] = torch.tensor([0] * 2 + prompt()[1:-2] + [9])  # padded on the left
    given["attention_mask"][1, :2] = 0

    together = answers(model, **given, **settings)

    count = settings.get("num_return_sequences", 1)
    for row in range(2):
        start = 2 * row
        alone = {name: value[row : row + 1] for name, value in given.items()}
        alone |= {name: alone[name][:, start:] for name in ("input_ids", "attention_mask")}
        assert torch.equal(answers(model, **alone, **settings), together[row * count : (row + 1) * count])


def test_beams__keep_several_clips_of_a_text_together():
    model, media = build(), clips(4)
    clip = [*[VIDEO] * 15, *[AUDIO] * 9]
    ids = torch.tensor([[5, *clip, 6, *clip, 7], [5, *clip, 4, *clip, 9]])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **media}

    together = answers(model, **given, num_beams=2)

    for row in range(2):
        alone = {name: value[row * 2 : row * 2 + 2] for name, value in media.items()}
        mask = torch.ones_like(ids[:1])
        one = answers(model, input_ids=ids[row : row + 1], attention_mask=mask, **alone, num_beams=2)
        assert torch.equal(one[0], together[row])


def test_generation__with_and_without_a_cache_and_with_encoded_clips():
    model, given = build(), inputs()
    expected = answers(model, **given)
    assert torch.equal(answers(model, **given, use_cache=False), expected)
    encoded = {
        "video": model.get_video_features(given.pop("pixel_values_videos"), video_times=given.pop("video_times")),
        "audio": model.get_audio_features(given.pop("input_values"), audio_times=given.pop("audio_times")),
    }

    assert torch.equal(answers(model, **given, mm_encoder_outputs=encoded), expected)
    with pytest.raises(ValueError, match="pass one of them"):
        answers(model, **inputs(), mm_encoder_outputs=encoded)


def test_generation__goes_on_where_a_placeholder_is_said():
    model, given = build("llama"), inputs(1)
    with torch.no_grad():  # which the model then says at every step
        model.lm_head.weight.zero_()
        model.lm_head.weight[AUDIO] = model.model(**given).last_hidden_state[0, -1]

    assert (answers(model, **given)[0] == AUDIO).all()


def test_generation__encodes_clips_once():
    model, calls = build(), []
    model.model.av_model.video_tower.register_forward_hook(lambda *_: calls.append("video"))
    model.model.av_model.audio_tower.register_forward_hook(lambda *_: calls.append("audio"))

    answers(model, **inputs())

    assert sorted(calls) == ["audio", "video"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values_videos": None}, "0 video tokens"),
        ({"input_values": None}, "0 audio tokens"),
        ({"input_ids": torch.tensor([[5, 8, 9]] * 2), "attention_mask": None}, "video placeholders than the 30"),
    ],
    ids=["no video", "no audio", "no placeholders"],
)
def test_placeholders_and_clips_that_do_not_match__are_told(change, message):
    with pytest.raises((ValueError, RuntimeError), match=message):
        build()(**(inputs() | change))


def test_loss__is_that_of_the_answer_alone_and_trains_what_is_not_frozen():
    model, given = build(), inputs()
    model.requires_grad_(False)
    model.model.video_projector.requires_grad_(True)
    labels = torch.full_like(given["input_ids"], -100)
    labels[:, -1] = 9

    output = model(**given, labels=labels)
    output.loss.backward()

    expected = torch.nn.functional.cross_entropy(output.logits[:, -2], labels[:, -1])
    torch.testing.assert_close(output.loss, expected)
    assert model.model.video_projector.linear_1.weight.grad.abs().sum() > 0
    assert model.model.audio_projector.linear_1.weight.grad is None


def test_logits_of_labelled_tokens_alone__give_the_same_loss():
    model, given = build(), inputs()
    labels = torch.full_like(given["input_ids"], -100)
    labels[0, -2:], labels[1:, -1] = 7, 9
    with torch.no_grad():
        whole = model(**given, labels=labels)
        fewer = model(**given, labels=labels, only_labelled=True)

    torch.testing.assert_close(fewer.loss, whole.loss)
    asked = torch.cat([whole.logits[0, -3:-1], whole.logits[1:, -2]])
    torch.testing.assert_close(fewer.logits, asked)


def test_gradient_checkpointing__changes_no_gradient():
    model, given = build().train(), inputs()
    labels = given["input_ids"].clone()
    labels[labels >= VIDEO] = -100
    gradients = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(**given, labels=labels).loss.backward()
        gradients.append(model.get_submodule("model.av_model.video_tower.embeddings.projection").weight.grad.clone())

    torch.testing.assert_close(*gradients)


def test_lora__is_of_the_language_model_alone():
    peft = pytest.importorskip("peft")
    model = build()
    before = copy.deepcopy(model.state_dict())
    config = peft.LoraConfig(
        r=2, target_modules=r".*language_model.*\.(q_proj|v_proj)", modules_to_save=["video_projector"],
        init_lora_weights=False,
    )  # fmt: skip

    adapted = peft.get_peft_model(model, config)

    trained = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert trained and all("language_model" in name or "video_projector" in name for name in trained)
    assert not torch.equal(adapted(**inputs()).logits, build()(**inputs()).logits)
    with adapted.disable_adapter():
        torch.testing.assert_close(adapted(**inputs()).logits, build()(**inputs()).logits)
    assert all(torch.equal(value, before[name]) for name, value in build().state_dict().items())


@pytest.mark.slow
def test_compiled__gives_the_same_logits():
    model, given = build(), inputs()
    expected = model(**given).logits

    compiled = torch.compile(model, backend="eager")

    torch.testing.assert_close(compiled(**given).logits, expected)


def test_an_audio_model__answers_about_audio_and_refuses_video():
    model = build(av_settings={"modality": "audio"})
    ids = torch.tensor([[5, *[AUDIO] * 9, 8]])

    given = clips(1)
    heard = {name: given[name] for name in ("input_values", "audio_times")}
    assert model(ids, **heard).logits.isfinite().all()
    with pytest.raises(ValueError, match="audio alone"):
        model(ids, **given)


def test_embeddings_in_place_of_ids__find_the_placeholders():
    model, given = build(), inputs()
    expected = model(**given).logits
    embeds = model.get_input_embeddings()(given.pop("input_ids"))

    torch.testing.assert_close(model(inputs_embeds=embeds, **given).logits, expected)


def test_times__change_nothing_at_first_and_tell_moments_apart_when_they_are_learned():
    model, given = build(), inputs(1)
    before = model(**given).logits
    later = given | {"video_times": given["video_times"] + 1, "audio_times": given["audio_times"] + 1}
    assert torch.equal(model(**later).logits, before)
    torch.nn.init.normal_(model.model.audio_projector.time_projection.weight)
    assert not torch.equal(model(**later).logits, model(**given).logits)
    with pytest.raises(ValueError, match="`video_times` and `audio_times` in seconds"):
        model(**{name: value for name, value in given.items() if name != "audio_times"})
    plain = build(time_frequencies=0)
    assert torch.equal(plain(**given).logits, plain(**later).logits)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens_per_frame": 3}, "square number"),
        ({"tokens_per_window": -1}, "whole number"),
        ({"projector_hidden_act": "gulp"}, "activation"),
    ],
)
def test_settings_that_cannot_work__are_refused(settings, message):
    with pytest.raises(Exception, match=message):
        CavMaeSyncLMConfig(**settings)


def test_a_text_encoder__is_no_language_model():
    config = CavMaeSyncLMConfig(av_config=tiny_config(), text_config=CLIPTextConfig(num_hidden_layers=1))
    with pytest.raises(ValueError, match="clip_text_model.*no causal language model"):
        CavMaeSyncForConditionalGeneration(config)


def test_features__name_each_clip_apart():
    model, given = build(), clips(2)
    mask = torch.tensor([[True, True, False], [True, True, True]])

    features = model.get_video_features(
        given["pixel_values_videos"], padding_mask_videos=mask, video_times=given["video_times"]
    )

    assert isinstance(features, BaseModelOutputWithPooling)
    assert [tuple(clip.shape) for clip in features.pooler_output] == [(10, 32), (15, 32)]
