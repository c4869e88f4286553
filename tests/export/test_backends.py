# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Models in ONNX Runtime behind every command: the same results, named in what is written; exported once."""

import importlib.util
import json
import pickle
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from cavmae_sync_hf import (
    CavMaeSyncForPreTraining,
    CavMaeSyncModel,
    CavMaeSyncProcessor,
    ExportError,
    InferenceError,
    ModelError,
    extract_features,
    load_model,
    save_for_hub,
)
from cavmae_sync_hf.cli.kinds import ModelName
from cavmae_sync_hf.export import cache
from cavmae_sync_hf.inference.localize import localize
from cavmae_sync_hf.model.errors_cavmae_sync import on_command_line
from cavmae_sync_hf.provenance import checkpoint_record, model_fingerprint, weights_fingerprint
from cavmae_sync_hf.search import MomentStore, search
from cavmae_sync_hf.search.tables import as_matrix
from helpers.clips import write_clips
from helpers.every_command import every_command
from helpers.tiny import tiny_config, tiny_inputs
from helpers.words import save, text_model

pytestmark = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnx", "onnxruntime", "onnxscript"))),
    reason="ONNX files need onnx, onnxruntime and onnxscript",
)
INT8 = ("--backend", "onnx", "--precision", "int8")
RUN_BY = {"backend": "onnx", "precision": "int8"}
# Of weights in 8 bits, and activations that are brought to 8 bits, in a tiny model with random weights.
CLOSE = 0.99


@pytest.fixture(scope="module", autouse=True)
def exports(tmp_path_factory):
    """The cache of these tests."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("CAVMAE_SYNC_CACHE", str(folder))
        yield folder / "exports"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """With local heads that say something, as untrained ones do not."""
    torch.manual_seed(0)
    made = CavMaeSyncModel(tiny_config(local_head_size=8)).eval()
    for head in made.local_heads.values():
        torch.nn.init.normal_(head.fall.weight)
    processor = CavMaeSyncProcessor.from_config(made.config)
    return Path(save_for_hub(made, processor, tmp_path_factory.mktemp("model") / "model"))


@pytest.fixture
def little(tmp_path) -> Path:
    """A model of one tower without layers, which is exported in a second."""
    torch.manual_seed(2)
    made = CavMaeSyncModel(tiny_config(modality="audio", num_modality_layers=0))
    return Path(save_for_hub(made, CavMaeSyncProcessor.from_config(made.config), tmp_path / "little"))


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    write_clips(folder, 3, seconds=2.0, darker=0)
    return folder


def cosines(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    found, wanted = (np.asarray(values, np.float32) for values in (found, wanted))
    return (found * wanted).sum(-1) / np.linalg.norm(found, axis=-1) / np.linalg.norm(wanted, axis=-1)


def vectors_of(index: Path) -> np.ndarray:
    """All vectors of an index, in an order that does not depend on the run."""
    store = MomentStore.open(index)
    paths = {entry.rows: entry.path for entry in store.entries().values()}
    rows = {}
    for batch in store.scan(["rows", "window", "audio", "video"]):
        audio, video = (as_matrix(batch[side], store.settings.hidden_size)[0] for side in ("audio", "video"))
        for place, key in enumerate(zip(batch["rows"].to_pylist(), batch["window"].to_pylist(), strict=True)):
            rows[paths[key[0]], key[1]] = np.concatenate([audio[place], video[place]])
    return np.stack([rows[key] for key in sorted(rows)])


def both_ways(run, *command) -> tuple[dict, dict]:
    """What a command prints as JSON in ONNX Runtime and in PyTorch."""
    found = []
    for how in (INT8, ()):
        code, out, error = run(*command, *how, "--json")
        assert code == 0, error
        found.append(json.loads(out))
    assert {name: found[0].get(name) for name in RUN_BY} == RUN_BY
    assert {name: found[1].get(name) for name in RUN_BY} == {"backend": "torch", "precision": "float32"}
    return found[0], found[1]


def test_index_and_search__in_8_bits_are_near_and_go_together(run, model, media, tmp_path):
    for place, how in (("small", INT8), ("exact", ())):
        assert run("index", media, tmp_path / place, "--model", model, "--hop", "0.25", *how)[0] == 0
    assert cosines(vectors_of(tmp_path / "small"), vectors_of(tmp_path / "exact")).min() > CLOSE
    info = json.loads(run("index-info", tmp_path / "small", "--json")[1])
    assert {name: info[name] for name in RUN_BY} == RUN_BY
    assert "ONNX Runtime in int8" in run("index-info", tmp_path / "small")[1]
    for index in ("small", "exact"):  # each with either
        small, exact = both_ways(run, "search", tmp_path / index, media / "1.mp4", "--top", "1")
        assert small["hits"][0]["path"] == exact["hits"][0]["path"] == str(media / "1.mp4")
        assert small["hits"][0]["score"] == pytest.approx(exact["hits"][0]["score"], abs=0.01)
    code, _, error = run("index", media, tmp_path / "small", "--model", model, "--hop", "0.25")
    assert code == 1 and "made by onnx in int8" in error and "Add --backend onnx. Add --precision int8" in error
    torch.manual_seed(1)
    other = CavMaeSyncForPreTraining(tiny_config())
    save_for_hub(other, CavMaeSyncProcessor.from_config(other.config), tmp_path / "other")
    code, _, error = run("search", tmp_path / "small", media / "1.mp4", "--model", tmp_path / "other", *INT8)
    assert code == 1 and "another model" in error


def test_sync__in_8_bits_is_near(run, model, media):
    small, exact = both_ways(run, "sync", media / "0.mp4", "--model", model)

    assert small["videos"][0]["similarity"] == pytest.approx(exact["videos"][0]["similarity"], abs=0.02)
    assert small["videos"][0]["protocol"] != exact["videos"][0]["protocol"]  # scores of both do not mix


def test_localize__by_cosine_in_8_bits_is_near(run, model, media):
    command = ("localize", media / "0.mp4", "--model", model, "--fps", "4")
    small, exact = both_ways(run, *command, "--method", "cosine")

    found = np.array(
        [[(one["similarity"], one["strength"]) for one in way["videos"][0]["moments"]] for way in (small, exact)]
    )
    apart = abs(found[0] - found[1])
    assert apart.shape == (8, 2) and apart[:, 0].max() < 0.02
    assert np.median(apart[:, 1]) < 0.5  # nats; a place is filled, not left out
    assert small["videos"][0]["settings"]["precision"] == "int8"
    for method, name in ((("--method", "occlusion"), model), ((), "example")):  # which has no local heads
        code, _, error = run("localize", media / "0.mp4", "--model", name, *method, *INT8)
        assert code == 1 and "Add --backend torch to have them. Add --method local" in error


def test_localize__by_local_heads_in_8_bits_is_near(run, model, media):
    small, processor = load_model(model, backend="onnx", precision="int8")
    exact, _ = load_model(model)

    maps = [
        localize(one, processor, str(media / "0.mp4"), fps=4, method=method)
        for one, method in ((small, None), (exact, "local"))
    ]

    assert [found.method for found in maps] == ["local", "local"]
    for name in ("video_maps", "audio_maps"):
        found, wanted = (getattr(one, name) for one in maps)
        assert np.corrcoef(found.ravel(), wanted.ravel())[0, 1] > 0.98
    code, out, error = run("localize", media / "0.mp4", "--model", model, *INT8, "--json")
    assert code == 0 and json.loads(out)["videos"][0]["method"] == "local", error


def test_extract__in_8_bits_is_near_and_stays_apart(run, model, media, tmp_path):
    settings = ("--model", model, "--window", "1", "--modalities", "a,v,a_patches")
    for place, how in (("small", INT8), ("exact", ())):
        assert run("extract", media, tmp_path / place, *settings, *how)[0] == 0
    for name in ("a", "v", "a_patches"):
        small, exact = (np.load(tmp_path / place / f"{name}.npy") for place in ("small", "exact"))
        assert cosines(small, exact).min() > CLOSE
    manifest = json.loads((tmp_path / "small" / "manifest.json").read_text("utf-8"))
    assert {name: manifest["identity"]["settings"][name] for name in RUN_BY} == RUN_BY
    code, _, error = run("extract", media, tmp_path / "small", *settings)
    assert code == 1 and "was begun with backend=onnx, now it is torch" in error
    # One of an earlier version, which ran PyTorch.
    path = tmp_path / "exact" / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    for name in RUN_BY:
        del manifest["identity"]["settings"][name]
    path.write_text(json.dumps(manifest), encoding="utf-8")
    code, out, _ = run("extract", media, tmp_path / "exact", *settings)
    assert code == 0 and "all there already" in out
    code, _, error = run("extract", media, tmp_path / "av", "--model", model, "--modalities", "av", *INT8)
    assert code == 1 and "Add --backend torch" in error and not (tmp_path / "av").exists()


@pytest.mark.parametrize("task", ["retrieval", "sync"])
def test_evaluate__in_8_bits_is_near(run, model, media, tmp_path, task):
    records = []
    for place, how in (("small", INT8), ("exact", ())):
        options = ("--min-shift", "0.3") if task == "sync" else ()
        code, _, error = run("evaluate", task, model, media, *options, *how, "--out", tmp_path / place)
        assert code == 0, error
        records.append(json.loads((tmp_path / place).read_text("utf-8")))
    assert {name: records[0]["settings"][name] for name in RUN_BY} == RUN_BY
    assert records[0]["checkpoint"] == records[1]["checkpoint"]
    name = "same_moment_similarity" if task == "sync" else "clips_seen"
    small, exact = (record["metrics"].get(name, record["counts"]["clips_seen"]) for record in records)
    assert small == pytest.approx(exact, abs=0.02)
    run("card", model, "--results", tmp_path / "small", "--out", tmp_path / "card.md")
    assert "int8 on cpu (onnx)" in (tmp_path / "card.md").read_text("utf-8")


def test_app__measures_in_8_bits_and_finds_places_in_pytorch_without_local_heads(model, media):
    pytest.importorskip("gradio")
    from cavmae_sync_hf.app.engine import Engine

    engine = Engine(str(model), backend="onnx", precision="int8")
    backends = []
    for heads in (engine.model.local_heads, torch.nn.ModuleDict()):
        engine.model.local_heads = heads
        plan = engine.map_plan(1.0)
        found = localize(engine.map_model(), engine.processor, str(media / "0.mp4"), **plan)
        backends.append((found.settings["backend"], engine._torch_model is None))

    assert backends == [("onnx", True), ("torch", False)] and engine.torch_model() is engine.torch_model()


WITH = {
    "index", "search", "score", "sync", "localize", "extract", "app", "evaluate retrieval", "evaluate classification",
    "evaluate localization", "evaluate sync",
}  # fmt: skip
# A head, a language model, a check of the weights, and what makes exports.
WITHOUT = {"classify", "ask", "selfcheck", "export", "card"}


def test_commands__that_take_a_model_say_what_runs_it():
    takes: dict[str, set[str]] = {}
    for words, _, arguments in every_command():
        if any(isinstance(kind, ModelName) for argument in arguments for kind in argument.kinds):
            takes[" ".join(words)] = {argument.option for argument in arguments} & {"--backend", "--precision"}
    assert set(takes) == WITH | WITHOUT
    assert {name for name, options in takes.items() if options} == WITH
    assert all(options == {"--backend", "--precision"} for options in takes.values() if options)


def test_cache__is_made_once_from_weights_that_are_not_loaded_again(exports, model, monkeypatch):
    steps: list[tuple] = []
    load = partial(load_model, model, backend="onnx", precision="int8", progress=lambda *step: steps.append(step))
    load()
    steps.clear()
    monkeypatch.setattr(cache, "load_torch_model", None)

    loaded, processor = load()

    assert not steps and not list(loaded.parameters())
    folder = cache.cached_export(str(model), precision="int8")
    assert folder.parents[1] == exports and not (folder / "audio_tower.onnx").exists()
    monkeypatch.undo()
    again, _ = load_model(model)
    assert weights_fingerprint(loaded) == weights_fingerprint(again)
    assert checkpoint_record(loaded) == checkpoint_record(load_model(model, use="embedding")[0])
    assert model_fingerprint(loaded, processor) != model_fingerprint(again, processor)


@pytest.fixture
def made(monkeypatch) -> list:
    """The exports that a test makes."""
    calls, export = [], cache.export_model
    monkeypatch.setattr(cache, "export_model", lambda *args, **options: calls.append(args) or export(*args, **options))
    return calls


def test_cache__that_is_damaged_is_made_anew(little, made):
    folder = cache.cached_export(str(little), precision="int8")
    tower = folder / "audio_tower_int8.onnx"
    content = tower.read_bytes()
    for count, damage in enumerate(
        (
            lambda: tower.write_bytes(content[:-100] + bytes(100)),
            lambda: (folder / "cache.json").write_text("{"),
            lambda: folder.rename(folder.with_name(".partial-1234")),  # as of a run that was killed
        ),
        start=2,
    ):
        damage()
        assert [cache.cached_export(str(little), precision="int8") for _ in range(2)] == [folder] * 2
        assert len(made) == count and tower.stat().st_size == len(content)
        assert [path.name for path in folder.parent.iterdir()] == ["towers"]


def test_cache__two_at_once_make_one_and_changed_weights_another(little, made):
    found: list[Path] = []
    both = [threading.Thread(target=lambda: found.append(cache.cached_export(str(little)))) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert len(made) == 1 and len(found) == 2 and found[0] == found[1]
    torch.manual_seed(3)
    other = CavMaeSyncModel(tiny_config(modality="audio", num_modality_layers=0)).eval()
    other.save_pretrained(little)

    own, _ = load_model(little, backend="onnx")

    assert len(made) == 2
    windows = tiny_inputs()["input_values"]
    with torch.no_grad():
        wanted = other(input_values=windows).audio_embeds
    torch.testing.assert_close(own(input_values=windows).audio_embeds, wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "int8"}, "torch runs models in float32 or bfloat16, not int8. Add --precision float32"),
        ({"backend": "onnx", "precision": "bfloat16"}, "onnx runs models in float32 or int8, not bfloat16."),
        ({"backend": "tensorrt"}, "no backend 'tensorrt'. Add --backend torch"),
        ({"backend": "onnx", "use": "pretraining"}, "without the pretraining head"),
        ({"backend": "onnx", "device": "cuda"}, "runs models on the CPU, and the device is cuda. Add --backend torch"),
        ({"backend": "onnx", "dtype": torch.float16}, "`dtype` is float16 and `precision` float32"),
    ],
)
def test_load_model__refuses_what_does_not_go_together(model, options, words):
    with pytest.raises(ModelError) as caught:
        load_model(model, **options)

    assert words in caught.value.spelled(on_command_line)


def test_load_model__without_weights_finds_no_other_ones(little):
    cache.cached_export(str(little))
    (little / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="holds no weights"):
        load_model(little, backend="onnx")


def test_load_model__in_bfloat16_and_without_onnx_runtime(model, monkeypatch):
    assert load_model(model, precision="bfloat16")[0].dtype == torch.bfloat16
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"onnxruntime.*cavmae-sync-hf\[export\]"):
        load_model(model, backend="onnx")


def test_model__says_what_it_cannot_do(model, media):
    small, processor = load_model(model, backend="onnx", precision="int8")
    inputs = tiny_inputs(1, 2)

    for attempt in (
        small.train,
        partial(small, **inputs, output_hidden_states=True),
        partial(small, pixel_values_videos=inputs["pixel_values_videos"].requires_grad_()),
        partial(small.save_pretrained, "nowhere"),
        partial(small.fuse, torch.zeros(1), torch.zeros(1)),
    ):
        with pytest.raises(ExportError, match="A model in ONNX Runtime cannot .*Pass backend='torch'"):
            attempt()
    with pytest.raises(ExportError, match=r"samples of shape \(3, 64, 64\)"):
        small(pixel_values_videos=torch.zeros(1, 1, 3, 64, 64))
    with pytest.raises(InferenceError, match="'av' comes from within the model"):
        extract_features(small, processor, media / "0.mp4", window=1.0, modalities=("av",))
    copied = pickle.loads(pickle.dumps(small))  # as workers get it
    frames = inputs["pixel_values_videos"].detach()
    assert torch.equal(copied(frames).video_embeds, small(frames).video_embeds)
    # A vector does not depend on what else is in the batch.
    assert torch.equal(small(frames).video_embeds[:, :1], small(frames[:, :1]).video_embeds)


def test_model__absent_windows_are_zeros_and_equal_ones_alike(model):
    small, _ = load_model(model, backend="onnx", precision="int8")
    exact, _ = load_model(model)
    inputs = tiny_inputs(2, 3)
    inputs["input_values"][0, 1] = inputs["input_values"][0, 0]
    masks = {"padding_mask": torch.tensor([[True, True, False], [True, True, True]])}

    with torch.inference_mode():
        found, wanted = small(**inputs, **masks), exact(**inputs, **masks)

    assert found.similarity.shape == wanted.similarity.shape
    for name in ("audio_embeds", "video_embeds", "video_patch_embeds", "similarity"):
        assert torch.allclose(found[name], wanted[name], atol=0.3 if "patch" in name else 0.05)
    assert torch.equal(found.audio_embeds[0, 0], found.audio_embeds[0, 1]) and not found.audio_embeds[0, 2].any()


def test_words__are_embedded_as_in_pytorch(run, media, tmp_path):
    av_model = CavMaeSyncModel(tiny_config(num_modality_layers=0))  # traced in a second
    folder = save(*text_model(av_model, projection_dim=16), tmp_path / "words")
    assert run("index", media, tmp_path / "index", "--model", folder, "--backend", "onnx")[0] == 0
    small, processor = load_model(folder, use="text", backend="onnx")
    exact, _ = load_model(folder, use="text")

    hits = [
        search(tmp_path / "index", None, model, processor, text="the bell rings", top=3) for model in (small, exact)
    ]
    places = [
        localize(model, processor, str(media / "0.mp4"), text="the bell", fps=2, method="cosine")
        for model in (small, exact)
    ]

    assert [hit.path for hit in hits[0]] == [hit.path for hit in hits[1]]
    assert [hit.score for hit in hits[0]] == pytest.approx([hit.score for hit in hits[1]], abs=1e-3)
    assert np.allclose(places[0].strength, places[1].strength, atol=1e-3)
    assert np.allclose(places[0].video_maps, places[1].video_maps, atol=1e-3)
    with pytest.raises(ExportError, match="cannot score texts and whole clips"):
        small(input_ids=torch.zeros(1, 1, dtype=torch.long))


@pytest.mark.slow
def test_example__finds_as_many_clips_in_8_bits(run, tmp_path):
    assert run("world", tmp_path / "world", "--split", "semantic", "--preset", "semantic", "--clips", "100")[0] == 0
    found = []
    for place, how in (("small", INT8), ("exact", ())):
        out = tmp_path / f"{place}.json"
        assert run("evaluate", "retrieval", "example", tmp_path / "world" / "semantic", *how, "--out", out)[0] == 0
        found.append(json.loads(out.read_text("utf-8"))["metrics"])
    for way in ("audio_to_video_r1", "video_to_audio_r1"):
        assert found[1][way] > 0.8 and found[0][way] == pytest.approx(found[1][way], abs=0.011)  # one clip
