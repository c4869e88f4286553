"""What a user of transformers may take for granted, checked over every CAV-MAE Sync model."""

import functools
from typing import Any

import pytest
import torch
from torch import nn

from cavmae_sync_hf.model.modeling_cavmae_sync import (
    CavMaeSyncAttention,
    CavMaeSyncForAudioVisualClassification,
    CavMaeSyncForPreTraining,
    CavMaeSyncModel,
    CavMaeSyncPositions,
    sincos_positions,
)
from helpers.tiny import tiny_config, tiny_inputs

MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    "encoder": (CavMaeSyncModel, {}),
    "contrastive-layers": (CavMaeSyncModel, {"num_contrastive_head_layers": 1, "num_joint_layers": 2}),
    "pretraining": (CavMaeSyncForPreTraining, {}),
    "mean-pooling": (CavMaeSyncForAudioVisualClassification, {"classifier_type": "mean_pooling"}),
    "frame-attention": (CavMaeSyncForAudioVisualClassification, {"classifier_type": "frame_attention"}),
}
MASKS = {
    "no-mask": {},
    "masked": {
        "padding_mask": torch.tensor([[True, True, False], [False, True, True], [True, True, True]]),
        "padding_mask_videos": torch.tensor([[True, True, True], [False, False, True], [False, True, True]]),
    },
}
every_model = pytest.mark.parametrize("name", MODELS)
every_mask = pytest.mark.parametrize("masks", MASKS)


def build(name: str, **overrides: Any) -> Any:
    torch.manual_seed(0)
    model_class, options = MODELS[name]
    return model_class(tiny_config(**(options | overrides))).eval()


def inputs_for(
    name: str, masks: str = "no-mask", labels: bool = False, batch_size: int = 3
) -> dict[str, torch.Tensor]:
    """A batch of three clips of three frames, all a model needs to give the same output twice."""
    inputs = tiny_inputs(batch_size=batch_size, num_frames=3) | {k: v[:batch_size] for k, v in MASKS[masks].items()}
    if name == "pretraining":
        generator = torch.Generator().manual_seed(1)
        inputs["audio_noise"] = torch.rand(batch_size, 3, 12, generator=generator)
        inputs["video_noise"] = torch.rand(batch_size, 3, 16, generator=generator)
    if labels and MODELS[name][0] is CavMaeSyncForAudioVisualClassification:
        inputs["labels"] = torch.arange(batch_size) % 5
    return inputs


def loss_of(name: str, model: Any, **inputs: torch.Tensor) -> torch.Tensor:
    return model(**inputs, return_loss=True).loss


def assert_same_output(first: Any, second: Any, **tolerance: float) -> None:
    assert first.keys() == second.keys() and len(first) > 0
    for key in first:
        torch.testing.assert_close(
            first[key], second[key], check_dtype=False, **tolerance, msg=lambda m, k=key: f"{k}: {m}"
        )


def assert_positions_are_right(model: nn.Module) -> None:
    positions = [module for module in model.modules() if isinstance(module, CavMaeSyncPositions)]
    assert positions
    for module in positions:
        expected = sincos_positions(module.grid, module.weight.shape[-1])
        torch.testing.assert_close(module.weight.detach().float(), expected, atol=0, rtol=0)


# Saving, loading, initialisation


@every_model
@torch.no_grad()
def test_save_and_load__is_an_identity(name, tmp_path):
    model = build(name)
    for parameter in model.parameters():  # no value that a fresh model would have anyway
        parameter.add_(torch.randn_like(parameter) * 0.01)
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    expected = dict(model.named_parameters()) | dict(model.named_buffers())
    found = dict(loaded.named_parameters()) | dict(loaded.named_buffers())
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert_same_output(loaded(**inputs_for(name)), model(**inputs_for(name)), atol=0, rtol=0)


@every_model
def test_missing_weights__are_initialised_as_in_a_new_model(name):
    fresh = build(name)
    loaded = type(fresh).from_pretrained(None, config=fresh.config, state_dict={})
    expected = dict(fresh.named_parameters())
    for key, parameter in loaded.named_parameters():
        assert parameter.device.type == "cpu", key
        spread = expected[key].std().item() if parameter.numel() > 1 else 0.0
        if spread == 0:  # norms and biases start constant
            torch.testing.assert_close(parameter, expected[key], atol=0, rtol=0, msg=key)
        else:
            # The smallest random tensor has 32 values: its standard deviation lies within a factor 2 of the true one.
            assert spread / 2 < parameter.std().item() < spread * 2, key
            assert not torch.equal(parameter, expected[key]) or "positions" in key, key
    assert_positions_are_right(loaded)


@pytest.mark.parametrize("positions", ["sincos", "learned"])
@every_model
def test_meta_device__becomes_a_whole_model_by_init_weights(name, positions):
    model_class, options = MODELS[name]
    with torch.device("meta"):
        model = model_class(tiny_config(**options, position_embedding_type=positions))
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(torch.nan)  # what memory holds is arbitrary; NaN cannot hide
    model.init_weights()
    for key, tensor in (*model.named_parameters(), *model.named_buffers()):
        assert torch.isfinite(tensor).all(), key
    assert_positions_are_right(model)


@torch.no_grad()
def test_partial_checkpoint__keeps_what_it_holds(tmp_path):
    encoder = build("encoder")
    for parameter in encoder.parameters():
        parameter.fill_(7)
    encoder.save_pretrained(tmp_path)
    for name in ("pretraining", "frame-attention"):
        model_class, options = MODELS[name]
        model, info = model_class.from_pretrained(tmp_path, output_loading_info=True, **options)
        assert all(parameter.eq(7).all() for parameter in model.model.parameters())
        assert info["missing_keys"] and not any(key.startswith("model.") for key in info["missing_keys"])
        new = [p for key, p in model.named_parameters() if not key.startswith("model.")]
        assert all(torch.isfinite(parameter).all() and not parameter.eq(7).all() for parameter in new)
        model.save_pretrained(tmp_path / name)
        back = CavMaeSyncModel.from_pretrained(tmp_path / name)
        assert all(parameter.eq(7).all() for parameter in back.parameters())


@every_model
def test_partial_module__keeps_what_was_loaded(name):
    model = build(name)
    names = (
        "global_token",
        "mask_token",
        "modality_embedding",
        "class_token",
        "q_proj.bias",
        "layernorm_after.weight",
    )
    given = {key: torch.full_like(value, 7) for key, value in model.state_dict().items() if not key.endswith(names)}
    loaded = type(model).from_pretrained(None, config=model.config, state_dict=given)
    for key, parameter in loaded.named_parameters():
        assert parameter.eq(7).all() == (key in given), key


@torch.no_grad()
def test_other_number_of_labels__starts_a_new_classifier_only(tmp_path):
    model = build("mean-pooling")
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        type(model).from_pretrained(tmp_path, num_labels=9)
    other = type(model).from_pretrained(tmp_path, num_labels=9, ignore_mismatched_sizes=True)
    assert other(**inputs_for("mean-pooling")).logits.shape == (3, 9)
    expected = model.state_dict()
    changed = {key for key, value in other.state_dict().items() if not torch.equal(value, expected[key])}
    assert changed == {"head.classifier.weight"} | ({"head.classifier.bias"} & changed)


@pytest.mark.parametrize("where", ["cpu", "disk", "cpu and disk"])
@every_model
@torch.no_grad()
def test_device_map__gives_the_same_output(name, where, tmp_path):
    pytest.importorskip("accelerate")
    model = build(name)
    model.save_pretrained(tmp_path)
    options: dict[str, Any] = {"device_map": {"": where}, "offload_folder": tmp_path / "offload"}
    if where == "cpu and disk":
        half = sum(parameter.numel() * 4 for parameter in model.parameters()) // 2
        options |= {"device_map": "auto", "max_memory": {"cpu": half}}
    loaded = type(model).from_pretrained(tmp_path, **options)
    offloaded = any(parameter.is_meta for parameter in loaded.parameters())
    assert offloaded == (where != "cpu")
    assert_same_output(loaded(**inputs_for(name)), model(**inputs_for(name)), atol=0, rtol=0)


# Hidden states, attentions, output forms


@pytest.mark.parametrize("by", ["call", "config"])
@torch.no_grad()
def test_hidden_states_and_attentions__are_batch_first_for_every_layer(by):
    requests = {"output_hidden_states": True, "output_attentions": True}
    model = build("contrastive-layers", attn_implementation="eager")
    if by == "config":
        for key, value in requests.items():
            setattr(model.config, key, value)
        requests = {}
    inputs = inputs_for("encoder")
    inputs["input_values"][0, 1] = inputs["input_values"][0, 0]  # a window that is encoded once
    output = model(**inputs, **requests)
    for modality, patches in (("audio", 12), ("video", 16)):
        states, attentions = output[f"{modality}_hidden_states"], output[f"{modality}_attentions"]
        # Embeddings, two tower layers, two joint layers, one contrastive layer; two registers end with the tower.
        lengths = [1 + patches + 2] * 3 + [1 + patches] * 3
        assert [tuple(state.shape) for state in states] == [(3, 3, length, 32) for length in lengths]
        assert [tuple(a.shape) for a in attentions] == [(3, 3, 4, length, length) for length in lengths[1:]]
        for attention in attentions:
            torch.testing.assert_close(attention.sum(dim=-1), torch.ones(attention.shape[:-1]))
        expected = model.norms[modality](states[-1])
        torch.testing.assert_close(output[f"{modality}_patch_embeds"], expected[:, :, 1:])
        method = getattr(model, f"get_{modality}_features")
        features = method(inputs["input_values" if modality == "audio" else "pixel_values_videos"], **requests)
        assert_same_output(dict(enumerate(features.hidden_states)), dict(enumerate(states)))
        assert_same_output(dict(enumerate(features.attentions)), dict(enumerate(attentions)))
    plain = build("contrastive-layers")(**inputs)
    assert plain.audio_hidden_states is None and plain.video_attentions is None


def test_attentions__need_eager_attention():
    model = build("encoder", attn_implementation="sdpa")
    with pytest.raises(ValueError, match="set_attn_implementation"):
        model(**inputs_for("encoder"), output_attentions=True)
    model.set_attn_implementation("eager")
    assert model(**inputs_for("encoder"), output_attentions=True).audio_attentions[0] is not None


@every_model
@torch.no_grad()
def test_return_dict_false__gives_the_same_values_in_a_tuple(name):
    model, inputs = build(name), inputs_for(name, labels=True)
    named = model(**inputs)
    by_call = model(**inputs, return_dict=False)
    model.config.return_dict = False
    by_config = model(**inputs)
    assert isinstance(by_call, tuple) and isinstance(by_config, tuple)
    for values in (by_call, by_config):
        assert_same_output(dict(enumerate(values)), dict(enumerate(named.to_tuple())), atol=0, rtol=0)
    if name == "encoder":
        features = model.get_audio_features(inputs["input_values"])
        assert isinstance(features, tuple)
        torch.testing.assert_close(features[1], model.get_audio_features(inputs["input_values"], return_dict=True)[1])


# Attention implementations and precisions


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_mask
@every_model
@torch.no_grad()
def test_sdpa__agrees_with_eager(name, masks, dtype):
    # float32: other orders of summation. bfloat16 keeps 8 bits, and errors add up over four layers.
    tolerance = {"atol": 1e-5, "rtol": 1e-4} if dtype is torch.float32 else {"atol": 6e-2, "rtol": 6e-2}
    eager, sdpa = (build(name, attn_implementation=kind).to(dtype) for kind in ("eager", "sdpa"))
    assert_same_output(sdpa(**inputs_for(name, masks)), eager(**inputs_for(name, masks)), **tolerance)


@pytest.mark.slow  # flex attention is compiled when it first runs
@pytest.mark.parametrize("masks", ["masked"])
@pytest.mark.parametrize("name", ["pretraining", "frame-attention"])
@torch.no_grad()
def test_flex_attention__agrees_with_eager(name, masks):
    torch._dynamo.reset()
    eager, flex = (build(name, attn_implementation=kind) for kind in ("eager", "flex_attention"))
    assert flex.config._attn_implementation == "flex_attention"
    expected = eager(**inputs_for(name, masks))
    assert_same_output(flex(**inputs_for(name, masks)), expected, atol=1e-5, rtol=1e-4)


@every_model
def test_set_attn_implementation__reaches_every_layer(name, monkeypatch):
    model = build(name, attn_implementation="eager")
    used = []
    original = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda *args, **kwargs: used.append(1) or original(*args, **kwargs),
    )
    attended = []
    for module in model.modules():
        if isinstance(module, CavMaeSyncAttention):
            module.register_forward_hook(lambda *_: attended.append(1))
    model(**inputs_for(name))
    assert not used and attended
    attended.clear()
    model.set_attn_implementation("sdpa")
    model(**inputs_for(name))
    assert len(used) == len(attended) > 0
    with pytest.raises(ValueError, match="not supported"):
        model.set_attn_implementation("telepathy")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_mask
@every_model
@torch.no_grad()
def test_half_precision__loads_and_stays_close(name, masks, dtype, tmp_path):
    model = build(name)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    assert_positions_are_right(loaded)  # no weights: they keep their precision
    inputs = inputs_for(name, masks, labels=True)
    expected = model(**inputs)
    tolerance = 2e-2 if dtype is torch.float16 else 1e-1  # 11 and 8 bits, accumulated over four layers
    # Inputs in float32, as processors give them, and in the model's precision.
    for given in (
        inputs,
        {k: v.to(dtype) if k in ("pixel_values_videos", "input_values") else v for k, v in inputs.items()},
    ):
        output = loaded(**given)
        assert_same_output(output, expected, atol=tolerance, rtol=tolerance)
        assert {v.dtype for k, v in output.items() if k.endswith(("embeds", "logits", "reconstruction"))} == {dtype}
    with torch.autocast("cpu", dtype):
        output = model(**inputs)
    assert_same_output(output, expected, atol=tolerance, rtol=tolerance)


def test_autocast__leaves_the_contrast_in_float32():
    model, inputs = build("encoder"), inputs_for("encoder")
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**inputs, return_loss=True)
    expected = model.contrast(output.audio_embeds.float(), output.video_embeds.float()).loss
    torch.testing.assert_close(output.loss, expected, atol=1e-6, rtol=1e-6)


# Batches


@every_mask
@every_model
@torch.no_grad()
def test_batching__gives_each_clip_what_it_gets_alone(name, masks):
    model, inputs = build(name), inputs_for(name, masks)
    # Equal windows and frames, which are encoded once, in one clip but not in the others.
    inputs["input_values"][1, 2] = inputs["input_values"][1, 1]
    inputs["pixel_values_videos"][2, 2] = inputs["pixel_values_videos"][2, 1]
    together = model(**inputs)
    for index in range(3):
        alone = model(**{key: value[index : index + 1] for key, value in inputs.items()})
        for key, value in together.items():
            if value.ndim:  # losses are means over the batch
                assert value.shape[0] == 3, key
                torch.testing.assert_close(alone[key], value[index : index + 1], atol=1e-5, rtol=1e-4, msg=key)


def test_equal_windows__leave_the_weights_gradients_as_they_are():
    inputs = inputs_for("encoder")
    inputs["input_values"][:, 1] = inputs["input_values"][:, 0]
    on, off = (build("encoder", deduplicate_windows=flag) for flag in (True, False))
    for model in (on, off):
        loss_of("encoder", model, **inputs).backward()
    for (key, first), second in zip(on.named_parameters(), off.parameters(), strict=True):
        torch.testing.assert_close(first.grad, second.grad, atol=1e-6, rtol=1e-4, msg=key)


# Training


@pytest.mark.parametrize("use_reentrant", [True, False])
@every_model
def test_gradient_checkpointing__recomputes_and_gives_the_same_gradients(name, use_reentrant):
    inputs = inputs_for(name, "masked", labels=True)
    plain, checkpointed = build(name).train(), build(name).train()
    checkpointed.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    attention = checkpointed.base_model.audio_tower.layers[0].attention
    runs = []
    attention.register_forward_hook(lambda *_: runs.append(1))
    for model in (plain, checkpointed):
        loss_of(name, model, **inputs).backward()
    assert len(runs) == 2
    for (key, first), second in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(first.grad, second.grad, msg=key)
    checkpointed.gradient_checkpointing_disable()
    runs.clear()
    loss_of(name, checkpointed, **inputs).backward()
    assert len(runs) == 1


@pytest.mark.parametrize(
    ("name", "idle"),
    [
        # The contrast passes each modality alone through the joint layers; the fused norms belong to other heads.
        ("encoder", {"fused"}),
        ("pretraining", set()),
        # Both modalities given: the norms for one alone wait for a missing modality.
        ("mean-pooling", {"audio", "video"}),
        # The published head takes the towers' tokens, before any joint layer.
        ("frame-attention", {"joint_layers", "norms"}),
    ],
)
def test_gradients__reach_every_weight_but_the_known(name, idle):
    model = build(name).train()
    loss_of(name, model, **inputs_for(name, labels=True)).backward()
    without = {key for key, parameter in model.named_parameters() if parameter.grad is None}
    expected = {key for key, _ in model.named_parameters() if "tower" not in key and idle & set(key.split("."))}
    if name in ("encoder", "mean-pooling"):
        expected = {key for key in expected if "norm" in key}
    if name == "pretraining":
        expected = set()
    assert without == expected


def test_attention_dropout__acts_in_training_only():
    model, inputs = build("encoder", attention_probs_dropout_prob=0.5), inputs_for("encoder")
    assert_same_output(model(**inputs), model(**inputs), atol=0, rtol=0)
    model.train()
    assert not torch.allclose(model(**inputs).audio_embeds, model(**inputs).audio_embeds)


@pytest.mark.parametrize("name", ["mean-pooling", "frame-attention"])
@pytest.mark.parametrize("labels", ["single", "multi"])
def test_overfitting__a_classifier_learns_one_batch(name, labels):
    model, inputs = build(name).train(), inputs_for(name)
    inputs["labels"] = torch.tensor([0, 3, 1]) if labels == "single" else torch.eye(5)[[0, 3, 1]]
    losses = overfit(model, inputs, steps=40)
    assert losses[-1] < 0.1 * losses[0]


def test_overfitting__pretraining_learns_one_batch():
    # One clip per row of the contrast: with other moments left out there are three negatives at most.
    model = build("pretraining", contrastive_loss_weight=1.0, norm_pix_loss=False).train()
    inputs = inputs_for("pretraining")
    output = model(**inputs)
    before = {key: output[key].item() for key in output if key.endswith("loss")}
    overfit(model, inputs, steps=60)
    output = model(**inputs)
    assert output.contrastive_loss < 0.1 * before["contrastive_loss"]
    assert output.contrastive_accuracy == 1
    # Removed noise patches can only be learned by heart, which 60 steps begin.
    assert output.audio_reconstruction_loss < 0.9 * before["audio_reconstruction_loss"]
    assert output.video_reconstruction_loss < 0.9 * before["video_reconstruction_loss"]


def overfit(model: Any, inputs: dict[str, torch.Tensor], steps: int) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    losses = []
    for _ in range(steps):
        loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# Compiling and exporting


@every_mask
@every_model
def test_compile__is_one_graph_with_the_same_loss_and_gradients(name, masks):
    torch._dynamo.reset()
    model, inputs = build(name), inputs_for(name, masks, labels=True)
    inputs["input_values"][1, 2] = inputs["input_values"][1, 1]
    expected = model(**inputs, return_loss=True)
    expected.loss.backward()
    gradients = {
        key: parameter.grad.clone() for key, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.zero_grad()
    output = torch.compile(model, fullgraph=True, backend="eager")(**inputs, return_loss=True)
    assert_same_output(output, expected, atol=1e-5, rtol=1e-4)
    output.loss.backward()
    for key, gradient in gradients.items():
        found = dict(model.named_parameters())[key].grad
        torch.testing.assert_close(found, gradient, atol=1e-5, rtol=1e-4, msg=key)


class _Features(nn.Module):
    def __init__(self, method: Any):
        super().__init__()
        self.model = method.__self__
        self.method = functools.partial(getattr(type(self.model), method.__name__), self.model)

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = self.method(inputs, return_dict=True)
        return output.pooler_output, output.last_hidden_state


@pytest.mark.parametrize("modality", ["audio", "video"])
@torch.no_grad()
def test_export__gives_a_tower_for_any_number_of_clips_and_frames(modality):
    model = build("encoder")
    module = _Features(getattr(model, f"get_{modality}_features"))
    key = "input_values" if modality == "audio" else "pixel_values_videos"
    sizes = {0: torch.export.Dim("clips", max=64), 1: torch.export.Dim("frames", max=64)}
    program = torch.export.export(module, (inputs_for("encoder")[key],), dynamic_shapes=(sizes,)).module()
    for clips, frames in ((1, 1), (2, 5)):
        inputs = tiny_inputs(clips, frames)[key]
        for found, expected in zip(program(inputs), module(inputs), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_flash_attention__is_reached_through_the_interface(monkeypatch):
    """The kernel needs a GPU; a stand-in gets what the kernel would, and with plain attention gives sdpa's output."""
    from transformers.integrations import flash_attention

    given = []

    def stand_in(query, key, value, attention_mask, *, is_causal, softmax_scale=None, **kwargs):
        given.append((attention_mask, is_causal))
        heads_first = [
            states.transpose(1, 2) for states in (query, key, value)
        ]  # flash has (batch, tokens, heads, size)
        mixed = torch.nn.functional.scaled_dot_product_attention(*heads_first, scale=softmax_scale)
        return mixed.transpose(1, 2)

    monkeypatch.setattr(flash_attention, "_flash_attention_forward", stand_in)
    model, inputs = CavMaeSyncModel(tiny_config()).eval(), tiny_inputs()
    expected = model(**inputs).similarity
    model.config._attn_implementation_internal = "flash_attention_2"  # past the check for a GPU
    torch.testing.assert_close(model(**inputs).similarity, expected)
    assert given == [(None, False)] * 6  # two towers of two layers, and the joint layer for each
