# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Exported towers: they compute what the model computes, for any number of clips and frames, and say what they are."""

import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from cavmae_sync_hf import (
    CavMaeSyncForAudioVisualClassification,
    CavMaeSyncModel,
    CavMaeSyncProcessor,
    ExportError,
    InferenceError,
    save_for_hub,
)
from cavmae_sync_hf.export import ExportedModel, export_model, folder, tower_files
from cavmae_sync_hf.export.towers import TowerIO, example_input, make_towers, trace
from helpers.clips import noise, write_clip
from helpers.tiny import tiny_config
from helpers.words import save, text_model

ONNX = ("onnx", "onnxruntime", "onnxscript")
needs_onnx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ONNX)), reason="ONNX files need onnx, onnxruntime and onnxscript"
)


def make_model(**overrides) -> CavMaeSyncModel:
    torch.manual_seed(0)
    return CavMaeSyncModel(tiny_config(**overrides)).eval()


def make_small(modality: str = "audio") -> CavMaeSyncModel:
    """A model of one tower that is traced in a second."""
    return make_model(modality=modality, num_modality_layers=0)


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def processor(model):
    return CavMaeSyncProcessor.from_config(model.config)


@pytest.fixture(scope="module")
def as_onnx(model, processor, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("onnx") / "exported"
    export_model(model, processor, target, int8=True)
    return target


@pytest.fixture(scope="module")
def as_torch(model, processor, tmp_path_factory) -> Path:
    target = tmp_path_factory.mktemp("torch") / "exported"
    export_model(model, processor, target, format="torch")
    return target


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> str:
    return str(write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", audio=noise(2.0, seed=3)))


def reference(model, modality: str, inputs: torch.Tensor) -> list[np.ndarray]:
    with torch.no_grad():
        found = model.get_audio_features(inputs) if modality == "audio" else model.get_video_features(inputs)
    return [found[f"{modality}_embeds"].numpy(), found.last_hidden_state.numpy()]


# The files themselves


@needs_onnx
@pytest.mark.parametrize("modality", ["audio", "video"])
def test_onnx__computes_what_the_model_computes_for_other_shapes(as_onnx, model, modality):
    import onnxruntime

    io = TowerIO.of(model.config, modality)
    session = onnxruntime.InferenceSession(as_onnx / f"{modality}_tower.onnx")

    assert [(value.name, value.shape) for value in session.get_inputs()] == [
        (io.inputs[0], ["batch", "frames", *io.input_shape])
    ]
    assert [(value.name, value.shape) for value in session.get_outputs()] == [
        (f"{modality}_embeds", ["batch", "frames", *io.output_shapes[0]]),
        (f"{modality}_patch_embeds", ["batch", "frames", *io.output_shapes[1]]),
    ]
    for shape in ((1, 1), (4, 5), (1, 16)):
        inputs = example_input(io, shape, seed=7)
        outputs = session.run(None, {io.inputs[0]: inputs.numpy()})
        for found, wanted in zip(outputs, reference(model, modality, inputs), strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("modality", ["audio", "video"])
def test_torch__computes_what_the_model_computes_for_other_shapes(as_torch, model, modality):
    io = TowerIO.of(model.config, modality)
    program = torch.export.load(as_torch / f"{modality}_tower.pt2")

    for shape in ((1, 1), (4, 5)):
        inputs = example_input(io, shape, seed=7)
        for found, wanted in zip(program.module()(inputs), reference(model, modality, inputs), strict=True):
            np.testing.assert_allclose(found.detach().numpy(), wanted, atol=1e-4)


def test_torch__files_hold_one_tower_each(as_torch, model):
    sizes = {modality: (as_torch / f"{modality}_tower.pt2").stat().st_size for modality in ("audio", "video")}
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())

    # Half of the weights, some of them shared, and the program.
    assert all(size < 0.75 * weights + 500_000 for size in sizes.values())
    names = set(torch.export.load(as_torch / "audio_tower.pt2").state_dict)
    assert not any("video_tower" in name for name in names) and any("audio_tower" in name for name in names)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_global_tokens": False, "num_register_tokens": 0, "position_embedding_type": "learned"},
        {"num_contrastive_head_layers": 1, "num_joint_layers": 2},
        {"modality": "video", "frames_per_moment": 3, "subtract_mean_frame": True},
        {"modality": "audio", "subtract_mean_spectrum": True},
    ],
)
def test_trace__other_architectures(settings):
    model = make_model(**settings)
    tower = make_towers(model)[0]
    inputs = example_input(tower.io, (1, 4), seed=1)

    with torch.no_grad():
        found = trace(tower).module()(inputs)

    for value, wanted in zip(found, reference(model, tower.io.modality, inputs), strict=True):
        np.testing.assert_allclose(value.numpy(), wanted, atol=1e-5)


@needs_onnx
def test_int8__files_are_smaller_and_close(as_onnx, model):
    description = json.loads((as_onnx / "export.json").read_text())

    for modality, entry in description["towers"].items():
        small = as_onnx / entry["int8"]["file"]
        assert small.name == f"{modality}_tower_int8.onnx"
        assert small.stat().st_size < 0.8 * (as_onnx / entry["file"]).stat().st_size
        # On any processor. Weights of 8 full bits give 0.9998 with VNNI, but 0.94 to 0.95 without: sums saturate.
        assert 0.999 < entry["int8"]["min_cosine"] < 1.0


@needs_onnx
@pytest.mark.parametrize("modality", ["audio", "video"])
def test_int8__no_processor_saturates(as_onnx, modality):
    import onnx

    tower = onnx.load(as_onnx / f"{modality}_tower_int8.onnx")
    weights = [onnx.numpy_helper.to_array(tensor) for tensor in tower.graph.initializer]
    weights = [values for values in weights if values.ndim == 2 and values.dtype in (np.int8, np.uint8)]

    assert len(weights) == 18  # six matrices in each of three layers
    for values in weights:
        # Without VNNI, two neighbouring products with unsigned 8-bit inputs are added in signed 16 bits.
        assert values.dtype == np.int8
        sums = 255 * (np.abs(values[0::2].astype(int)) + np.abs(values[1::2].astype(int)))
        assert 16_000 < sums.max() <= 32_767  # all 8 bits: to 64,770


# What the folder says


@needs_onnx
def test_description__names_shapes_checksums_and_checks(as_onnx, model):
    description = json.loads((as_onnx / "export.json").read_text())

    assert description["kind"] == "onnx" and description["hidden_size"] == 32
    assert description["checkpoint"]["class"] == "CavMaeSyncModel"
    assert {"torch", "onnx", "onnxruntime"} <= set(description["versions"])
    for modality, entry in description["towers"].items():
        for part in (entry, entry["int8"]):
            data = (as_onnx / part["file"]).read_bytes()
            assert part["bytes"] == len(data) and part["sha256"] == hashlib.sha256(data).hexdigest()
        assert all(difference <= 1e-4 for difference in entry["max_difference"].values())
        assert entry["inputs"][0]["shape"] == ["batch", "frames", *TowerIO.of(model.config, modality).input_shape]


def test_folder__carries_the_processor(as_torch, processor, clip):
    loaded = CavMaeSyncProcessor.from_pretrained(as_torch)
    for name, value in processor(videos=clip, return_tensors="np").items():
        np.testing.assert_array_equal(loaded(videos=clip, return_tensors="np")[name], value)
    names = {entry.name for entry in as_torch.iterdir()}
    assert {"processing_cavmae_sync.py", "audio_tower.pt2", "video_tower.pt2", "export.json"} <= names


def test_export__leaves_the_model_as_it_was(model, as_torch):
    assert model.audio_tower is not None and model.video_tower is not None and model.config.deduplicate_windows


# Running them


@pytest.mark.parametrize("kind", [pytest.param("as_onnx", marks=needs_onnx), "as_torch"])
def test_exported_model__embeds_a_clip_as_the_model_does(request, kind, model, clip):
    exported = ExportedModel(request.getfixturevalue(kind), threads=1)
    inputs = exported.processor(videos=clip, return_tensors="pt", return_times=True)
    # One absent of each.
    inputs["padding_mask"][0, 1] = False
    inputs["padding_mask_videos"] = torch.tensor([[True, True, False, True]])

    found = exported(**inputs, return_patches=True)

    with torch.no_grad():
        wanted = model(**inputs)
    for name in ("audio_embeds", "video_embeds", "similarity", "audio_patch_embeds", "video_patch_embeds"):
        np.testing.assert_allclose(found[name], wanted[name].numpy(), atol=1e-4)
    assert not found["audio_embeds"][0, 1].any() and not found["video_patch_embeds"][0, 2].any()


@needs_onnx
def test_exported_model__int8_and_one_modality(as_onnx, clip):
    exact, small = ExportedModel(as_onnx), ExportedModel(as_onnx, precision="int8")
    inputs = exact.processor(videos=clip, return_tensors="np")

    for name in ("input_values", "pixel_values_videos"):
        one, other = (found(**{name: inputs[name]}) for found in (exact, small))
        (key,) = one
        assert set(other) == {key}
        assert 0.999 < (one[key] * other[key]).sum(axis=-1).min() < 1.0
        assert not np.array_equal(one[key], other[key])


def test_exported_model__bad_inputs(as_torch, model):
    exported = ExportedModel(as_torch)

    with pytest.raises(ExportError, match="Got neither"):
        exported()
    with pytest.raises(ExportError, match=r"has shape \(1, 2, 40, 16\); this export takes \(batch, frames, 48, 16\)"):
        exported(input_values=np.zeros((1, 2, 40, 16)))
    with pytest.raises(ExportError, match="no 8-bit towers"):
        ExportedModel(as_torch, precision="int8")
    with pytest.raises(ExportError, match="'float16'"):
        ExportedModel(as_torch, precision="float16")


def test_exported_model__bad_folders(as_torch, tmp_path):
    with pytest.raises(ExportError, match="holds no export.json"):
        ExportedModel(tmp_path)
    description = json.loads((as_torch / "export.json").read_text())
    for content, words in (
        ("{", "cannot be read"),
        ("[]", "does not describe"),
        (json.dumps(description | {"format_version": 9}), "version 9"),
        (json.dumps(description), r"audio_tower\.pt2 is missing"),
    ):
        (tmp_path / "export.json").write_text(content)
        with pytest.raises(ExportError, match=words):
            ExportedModel(tmp_path)


def test_export__model_of_one_tower(tmp_path):
    alone = make_small()
    target = tmp_path / "exported"

    description = export_model(alone, CavMaeSyncProcessor.from_config(alone.config), target, format="torch")

    assert list(description["towers"]) == ["audio"] and not (target / "video_tower.pt2").exists()
    with pytest.raises(ExportError, match="no video tower"):
        ExportedModel(target)(pixel_values_videos=np.zeros((1, 1, 3, 32, 32)))


@pytest.mark.parametrize(
    ("format", "settings"),
    [
        pytest.param("onnx", {"num_clip_layers": 1, "num_text_layers": 1, "score_sequences": True}, marks=needs_onnx),
        ("torch", {"projection_dim": 20, "text_pooling": "eos"}),
    ],
)  # fmt: skip
def test_export__of_a_model_with_text_embeds_words(tmp_path, format, settings):
    alone = make_small()
    model, processor = text_model(alone, **settings)
    with torch.no_grad():
        model.video_gate.weight.normal_()
    target = tmp_path / "exported"

    description = export_model(model, processor, target, format=format, int8=format == "onnx")

    assert list(description["towers"]) == ["audio", "text"] and description["longest_text"] == 32
    entry = description["towers"]["text"]
    assert [facts["shape"] for facts in entry["inputs"]] == [["batch", "tokens"]] * 2
    exported = ExportedModel(target)
    # Other numbers of texts and of tokens than were traced, with padding.
    texts = ["a dog barks", "the bell rings and then the dog barks", "rain", "a dog"]
    for some in (texts, texts[1], texts[2:3]):
        found = exported.embed_texts(some)
        with torch.no_grad():
            tokens = processor(text=[some] if isinstance(some, str) else some, return_tensors="pt")
            wanted = model.get_text_features(**tokens)
            shares = model.video_gate(wanted.pooler_output).sigmoid()[:, 0]
        np.testing.assert_allclose(found["text_embeds"], wanted.pooler_output.numpy(), atol=1e-4)
        np.testing.assert_allclose(found["video_shares"], shares.numpy(), atol=1e-4)
        assert ("text_clip_embeds" in found) is bool(model.config.num_clip_layers)
        if "text_clip_embeds" in found:
            np.testing.assert_allclose(found["text_clip_embeds"], wanted.text_clip_embeds.numpy(), atol=1e-4)
    # What they are compared with.
    windows = example_input(TowerIO.of(alone.config, "audio"), (1, 3))
    heard = exported(input_values=windows)["audio_embeds"]
    np.testing.assert_allclose(heard, reference(alone, "audio", windows)[0], atol=1e-4)  # as in every index
    with torch.no_grad():
        projected = model.get_audio_features(windows).audio_embeds.numpy()
    np.testing.assert_allclose(exported.project("audio", heard), projected, atol=1e-4)
    if format == "onnx":
        assert entry["int8"]["min_cosine"] > 0.99
        small = ExportedModel(target, precision="int8").embed_texts(texts)["text_embeds"]
        exact = exported.embed_texts(texts)["text_embeds"]
        assert 0.99 < (small * exact).sum(axis=-1).min() < 1.0
    with pytest.raises(InferenceError, match="42 tokens, and the text encoder takes 32 at most"):
        exported.embed_texts("a dog " * 20)
    with pytest.raises(InferenceError, match="say in words"):
        exported.embed_texts([""])


def test_export__of_a_model_with_text_needs_its_tokenizer(tmp_path):
    model, _ = text_model(make_small())

    with pytest.raises(ExportError, match="the processor no tokenizer; pass CavMaeSyncProcessor.*model.base_model"):
        export_model(model, CavMaeSyncProcessor.from_config(model.config.av_config), tmp_path / "out", format="torch")


def test_export__of_a_classifier_is_its_encoder(tmp_path):
    torch.manual_seed(0)
    classifier = CavMaeSyncForAudioVisualClassification(tiny_config(modality="audio", num_modality_layers=0)).eval()
    processor = CavMaeSyncProcessor.from_config(classifier.config)

    export_model(classifier, processor, tmp_path / "exported", format="torch")

    inputs = example_input(TowerIO.of(classifier.config, "audio"), (1, 2))
    found = ExportedModel(tmp_path / "exported")(input_values=inputs)["audio_embeds"]
    np.testing.assert_allclose(found, reference(classifier.base_model, "audio", inputs)[0], atol=1e-5)


# What is refused


def test_export__tower_that_computes_something_else_leaves_nothing(processor, tmp_path, monkeypatch):
    load = folder.load_tower

    def shifted(path):
        return lambda names, inputs: [output + np.float32(2e-4) for output in load(path)(names, inputs)]

    monkeypatch.setattr(folder, "load_tower", shifted)

    with pytest.raises(ExportError, match=r"audio_tower\.pt2 .*0\.0002 from the model's.*nothing was written"):
        export_model(make_small(), processor, tmp_path / "exported", format="torch")

    assert list(tmp_path.iterdir()) == []


@needs_onnx
def test_export__broken_8_bit_weights_leave_nothing(processor, tmp_path, monkeypatch):
    alone = make_small()

    def swap(source, target):
        import onnx

        broken = onnx.load(source)
        for tensor in broken.graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            if values.ndim == 2 and values.dtype == np.float32:
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values[::-1]), tensor.name))
        onnx.save(broken, target)

    monkeypatch.setattr(folder, "quantize_file", swap)

    with pytest.raises(ExportError, match=r"nothing was written\. Leave out int8 to export this model"):
        export_model(alone, processor, tmp_path / "exported", int8=True)

    assert list(tmp_path.iterdir()) == []


def test_export__target_is_replaced_only_when_it_is_an_earlier_export(as_torch, processor, tmp_path):
    alone = make_small()
    target = tmp_path / "exported"
    target.mkdir()  # an empty folder will do
    export_model(alone, processor, target, format="torch")

    with pytest.raises(ExportError, match="Pass overwrite=True to replace it"):
        export_model(alone, processor, target, format="torch")
    export_model(alone, processor, target, format="torch", overwrite=True)
    (target / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match=r"holds other files \(notes.txt\)"):
        export_model(alone, processor, target, format="torch", overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="is a file"):
        export_model(alone, processor, tmp_path / "file")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["exported", "file"]


def test_export__arguments_and_models_that_cannot_work(model, processor, tmp_path, monkeypatch):
    out = tmp_path / "out"
    for options, words in (({"format": "tflite"}, "'tflite'"), ({"format": "torch", "int8": True}, "ONNX files")):
        with pytest.raises(ExportError, match=words):
            export_model(model, processor, out, **options)
    with pytest.raises(ExportError, match=r"bfloat16 on cpu.*float\(\)"):
        export_model(make_model().to(torch.bfloat16), processor, out, format="torch")
    flash = make_model()
    flash.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ExportError, match='"flash_attention_2" runs on its own kernels'):
        export_model(flash, processor, out, format="torch")
    for name in ONNX:
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ImportError, match=rf"needs {name}: pip install 'cavmae-sync-hf\[export\]'"):
            tower_files.require_onnx(name)
    assert not out.exists()


# The command


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    alone = make_small("video")
    return save_for_hub(alone, CavMaeSyncProcessor.from_config(alone.config), tmp_path_factory.mktemp("saved") / "m")


def test_command__takes_the_text_of_a_model_that_has_it(run, tmp_path):
    folder, target = save(*text_model(make_small()), tmp_path / "words"), tmp_path / "out"

    code, out, _ = run("export", folder, target, "--format", "torch")

    assert code == 0 and "text_tower.pt2" in out and "tokens" in out
    assert ExportedModel(target).embed_texts("a dog")["text_embeds"].shape == (1, 32)
    # The tokenizer's files are an export's own.
    alone = make_small()
    export_model(alone, CavMaeSyncProcessor.from_config(alone.config), target, format="torch", overwrite=True)
    with pytest.raises(ExportError, match="holds no text tower; export a model with text"):
        ExportedModel(target).embed_texts("a dog")


@needs_onnx
def test_command__writes_and_shows_the_towers(run, saved, tmp_path):
    code, out, err = run("export", saved, tmp_path / "out", "--int8")

    assert code == 0 and err == f"loading model {saved} ...\n"
    assert "video_tower.onnx" in out and "3 x 32 x 32" in out and "video_tower_int8.onnx" in out and "cosine" in out
    assert ExportedModel(tmp_path / "out", precision="int8").description["modality"] == "video"
    code, out, err = run("export", saved, tmp_path / "out")
    assert code == 1 and out == "" and "Add --overwrite to replace it." in err


def test_command__json_and_torch(run, saved, tmp_path):
    code, out, _ = run("export", saved, tmp_path / "out", "--format", "torch", "--json")

    assert code == 0 and json.loads(out) == json.loads((tmp_path / "out" / "export.json").read_text())
    assert json.loads(out)["checkpoint"]["sha256_of"] == "model.safetensors"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--help"], 0, ""),
        (["m"], 2, "OUT"),
        (["m", "out", "--format", "tflite"], 2, "--format"),
        (["no-such-model", "out"], 1, "no-such-model is not a folder"),
    ],
)
def test_command__wrong_usage(run, arguments, code, words):
    found, _, err = run("export", *arguments)

    assert found == code and words in " ".join(err.replace("│", " ").split())


def test_command__int8_with_torch_is_refused_in_its_own_words(run, saved, tmp_path):
    code, _, err = run("export", saved, tmp_path / "out", "--format", "torch", "--int8")

    assert code == 1 and "8-bit weights are a form of ONNX files" in err
    assert "Add --format onnx to write both." in err and "Leave out --int8" in err and "int8=" not in err
    assert not (tmp_path / "out").exists()
