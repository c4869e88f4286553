"""A saved folder must work for somebody who has transformers and not this package."""

import ast
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import EvalResult, ModelCard
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioClassification,
    AutoModelForPreTraining,
    AutoModelForVideoClassification,
    AutoProcessor,
    AutoVideoProcessor,
    BertConfig,
    BertModel,
    pipeline,
)
from transformers.dynamic_module_utils import get_imports, get_relative_import_files, get_relative_imports
from transformers.pipelines import PIPELINE_REGISTRY

import cavmae_sync_hf
from cavmae_sync_hf import (
    CavMaeSyncFeatureExtractor,
    CavMaeSyncForAudioVisualClassification,
    CavMaeSyncForPreTraining,
    CavMaeSyncModel,
    CavMaeSyncProcessor,
    CavMaeSyncVideoProcessor,
    decode_media,
    hub,
)
from cavmae_sync_hf.hub import push_to_hub, register_auto_classes, save_for_hub
from cavmae_sync_hf.model.auto_map_cavmae_sync import AUTO_MAP, code_files, complete_auto_map
from cavmae_sync_hf.model_card import CardDetails, create_model_card, usage_snippet
from helpers.apart import run_apart
from helpers.clips import write_clip
from helpers.tiny import TINY, tiny_config

# What may be imported at the top of a file that travels; everything else goes under `try`.
ALLOWED_IMPORTS = {"PIL", "huggingface_hub", "numpy", "safetensors", "torch", "torchvision", "transformers"}

# Run where this package cannot be imported. Everything the auto classes give is used, saved again and loaded again.
STRANGER = """
import importlib.abc, json, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "cavmae_sync_hf":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
import torch, transformers
from safetensors.torch import save_file

source, clip, again, task, alone = sys.argv[1:6]
torch.set_num_threads(1)
tensors = {}

def run(folder, prefix):
    processor = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    inputs = processor(videos=clip, return_tensors="pt")
    for name in ("AutoFeatureExtractor", "AutoVideoProcessor"):
        part = getattr(transformers, name).from_pretrained(folder, trust_remote_code=True)
        assert part.__module__.startswith("transformers_modules."), part.__module__
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert type(config).__module__.startswith("transformers_modules."), type(config)
    for name in ("AutoModel", "AutoModelForPreTraining", "AutoModelForAudioClassification",
                 "AutoModelForVideoClassification"):
        model = getattr(transformers, name).from_pretrained(folder, trust_remote_code=True).eval()
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        if name == "AutoModel":
            with torch.no_grad():
                outputs = model(**inputs)
            tensors[prefix + "similarity"] = outputs.similarity.contiguous()
        if name == task:
            saved = model
            if "Classification" in name:
                with torch.no_grad():
                    tensors[prefix + "logits"] = model(**inputs).logits
    for key in ("input_values", "pixel_values_videos"):
        tensors[prefix + key] = inputs[key].contiguous()
    return saved, processor

model, processor = run(source, "first.")
model.save_pretrained(again)
processor.save_pretrained(again)
run(again, "second.")
processor.feature_extractor.save_pretrained(alone)
assert not any(name.startswith("cavmae_sync_hf") for name in sys.modules)
save_file(tensors, again + "/outputs.st")
"""


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(1)
    return CavMaeSyncForAudioVisualClassification(tiny_config(classifier_type="frame_attention")).eval()


@pytest.fixture(scope="module")
def processor():
    return CavMaeSyncProcessor.from_config(tiny_config())


@pytest.fixture(scope="module")
def folder(classifier, processor, tmp_path_factory) -> Path:
    return save_for_hub(classifier, processor, tmp_path_factory.mktemp("hub") / "tiny-sync")


# Registration


def test_register_auto_classes__is_done_by_the_import_and_can_be_repeated():
    register_auto_classes()
    register_auto_classes()

    config = AutoConfig.for_model("cavmae_sync", **TINY)

    assert type(AutoModel.from_config(config)) is CavMaeSyncModel
    assert type(AutoModelForPreTraining.from_config(config)) is CavMaeSyncForPreTraining
    assert type(AutoModelForAudioClassification.from_config(config)) is CavMaeSyncForAudioVisualClassification
    assert type(AutoModelForVideoClassification.from_config(config)) is CavMaeSyncForAudioVisualClassification


def test_auto_map__names_classes_that_exist():
    for reference in AUTO_MAP.values():
        file, name = reference.split(".")
        module = __import__(f"cavmae_sync_hf.model.{file}", fromlist=[name])
        assert getattr(module, name).__name__ == name


def test_complete_auto_map__keeps_own_classes_and_replaces_references_to_other_repositories():
    completed = complete_auto_map({"AutoModel": "mine.MyModel", "AutoConfig": "a/b--c.D", "AutoModelForX": "a/b--x.Y"})

    assert completed == AUTO_MAP | {"AutoModel": "mine.MyModel", "AutoModelForX": "a/b--x.Y"}


def test_complete_auto_map__names_todays_file_of_a_class_that_an_earlier_version_kept_elsewhere():
    earlier = {"AutoModelForX": "classification_cavmae_sync.CavMaeSyncForAudioVisualClassification"}
    own = {"AutoModelForPreTraining": "mine_cavmae_sync.MyPreTraining"}

    completed = complete_auto_map(EARLIER_MAP | earlier | own)

    assert completed == AUTO_MAP | {"AutoModelForX": AUTO_MAP["AutoModelForVideoClassification"]} | own


@pytest.mark.parametrize("trust", [None, True])
def test_installed_package__wins_over_code_in_the_folder(folder, trust):
    assert type(AutoModel.from_pretrained(folder, trust_remote_code=trust)) is CavMaeSyncModel
    assert type(AutoProcessor.from_pretrained(folder, trust_remote_code=trust)) is CavMaeSyncProcessor
    assert type(AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=trust)) is CavMaeSyncFeatureExtractor
    assert type(AutoVideoProcessor.from_pretrained(folder, trust_remote_code=trust)) is CavMaeSyncVideoProcessor


# The files that travel


def test_code_files__are_what_every_entry_file_needs():
    everything = {file.name for file in code_files()}
    for reference in AUTO_MAP.values():
        entry = code_files()[0].with_name(reference.split(".")[0] + ".py")
        assert {Path(file).name for file in get_relative_import_files(entry)} | {entry.name} == everything


def test_code_files__import_each_other_without_a_circle():
    imports = {file.stem: set(get_relative_imports(file)) for file in code_files()}

    while free := [name for name, needed in imports.items() if not needed & set(imports)]:
        for name in free:
            del imports[name]

    assert not imports, f"these import each other: {sorted(imports)}"


@pytest.mark.parametrize("file", code_files(), ids=lambda file: file.stem)
def test_code_file__imports_only_what_a_folder_can_offer(file):
    # The scanner reads lines, docstrings included; what it finds must be a file beside this one.
    for name in get_relative_imports(file):
        assert file.with_name(f"{name}.py").is_file(), f"{file.name} names .{name}"
    third_party = {name for name in get_imports(file) if name not in sys.stdlib_module_names}
    assert third_party <= ALLOWED_IMPORTS
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module, f"{file.name}:{node.lineno}: write `from .file import name`"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            assert not any(name.startswith("cavmae_sync_hf") for name in names), f"{file.name}:{node.lineno}"


# save_for_hub


def test_save_for_hub__writes_weights_settings_code_and_card(folder):
    names = {entry.name for entry in folder.iterdir()}

    assert names >= {"config.json", "model.safetensors", "processor_config.json", "README.md"}
    assert names >= {file.name for file in code_files()}
    for file in ("config.json", "processor_config.json"):
        assert json.loads((folder / file).read_text())["auto_map"] == AUTO_MAP
    # Whoever may read the settings may read the weights.
    assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode


def test_save_for_hub__leaves_the_processor_as_it_was(classifier, tmp_path):
    processor = CavMaeSyncProcessor.from_config(tiny_config())
    before = processor.to_dict()

    save_for_hub(classifier, processor, tmp_path / "model")

    assert processor.to_dict() == before


@pytest.mark.parametrize("place", ["folder", "hub"])
def test_saved_folder__works_without_the_package_and_can_be_saved_again_there(
    folder, classifier, processor, clip, tmp_path, place
):
    script = tmp_path / "stranger.py"
    script.write_text(STRANGER)
    again, alone = tmp_path / "again", tmp_path / "alone"
    source = str(folder)
    if place == "hub":
        # What a download leaves behind. From there, files are fetched one by one, by following their imports.
        source, commit = "owner/tiny", "0123456789abcdef0123456789abcdef01234567"
        cache = tmp_path / "hub" / "models--owner--tiny"
        shutil.copytree(folder, cache / "snapshots" / commit)
        (cache / "refs").mkdir()
        (cache / "refs" / "main").write_text(commit)

    arguments = [source, str(clip), str(again), "AutoModelForVideoClassification", str(alone)]
    done = run_apart(["-I", str(script), *arguments], tmp_path)

    assert done.returncode == 0, done.stderr
    from safetensors.torch import load_file

    seen = load_file(again / "outputs.st")
    inputs = processor(videos=str(clip), return_tensors="pt")
    with torch.no_grad():
        similarity, logits = classifier.model(**inputs).similarity, classifier(**inputs).logits
    for turn in ("first", "second"):
        # The same operations on the same processor; only the number of threads may order sums differently.
        for name in ("input_values", "pixel_values_videos"):
            torch.testing.assert_close(seen[f"{turn}.{name}"], inputs[name], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(seen[f"{turn}.similarity"], similarity, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(seen[f"{turn}.logits"], logits, rtol=1e-4, atol=1e-5)
    for saved in (again / "config.json", again / "processor_config.json", alone / "preprocessor_config.json"):
        assert json.loads(saved.read_text())["auto_map"] == AUTO_MAP
        assert {file.name for file in code_files()} <= {entry.name for entry in saved.parent.iterdir()}


def test_saved_folder__needs_consent_without_the_package(folder, tmp_path):
    code = STRANGER.split("import torch")[0] + (
        "import transformers\ntransformers.AutoModel.from_pretrained(sys.argv[1], trust_remote_code=False)"
    )
    script = tmp_path / "stranger.py"
    script.write_text(code)

    done = run_apart(["-I", str(script), str(folder)], tmp_path)

    assert done.returncode != 0 and "trust_remote_code=True" in done.stderr


@pytest.mark.parametrize("model_class", [CavMaeSyncModel, CavMaeSyncForPreTraining])
def test_save_pretrained__carries_all_classes_and_their_code_from_any_model(model_class, tmp_path):
    model_class(tiny_config()).save_pretrained(tmp_path)

    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert {file.name for file in code_files()} <= {entry.name for entry in tmp_path.iterdir()}


def test_trainer_checkpoint__carries_all_classes_and_their_code(classifier, tmp_path):
    pytest.importorskip("accelerate")
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")

    Trainer(classifier, arguments).save_model(str(tmp_path / "checkpoint"))

    assert json.loads((tmp_path / "checkpoint" / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert (tmp_path / "checkpoint" / "modeling_cavmae_sync.py").is_file()


@pytest.mark.parametrize("part", ["config", "processor", "feature_extractor", "video_processor"])
def test_save_pretrained__carries_all_classes_and_their_code_from_any_part(part, tmp_path):
    config, processor = tiny_config(), CavMaeSyncProcessor.from_config(tiny_config())
    saved = {"config": config, "processor": processor}.get(part) or getattr(processor, part)

    saved.save_pretrained(tmp_path)

    assert {file.name for file in code_files()} <= {entry.name for entry in tmp_path.iterdir()}
    (settings,) = tmp_path.glob("*.json")
    assert json.loads(settings.read_text())["auto_map"] == AUTO_MAP


def test_save_pretrained__uploads_the_code_too(monkeypatch, tmp_path):
    uploaded = {}

    def push_to_hub(self, repo_id, **options):
        uploaded.update(repo_id=repo_id, options=options)

    monkeypatch.setattr(type(tiny_config()), "push_to_hub", push_to_hub)

    tiny_config().save_pretrained(tmp_path / "tiny", push_to_hub=True, token="secret")

    assert uploaded == {"repo_id": "tiny", "options": {"token": "secret"}}


def test_save_pretrained__names_a_subclass_of_ones_own(tmp_path):
    class OwnFeatureExtractor(CavMaeSyncFeatureExtractor):
        pass

    OwnFeatureExtractor.register_for_auto_class()
    OwnFeatureExtractor().save_pretrained(tmp_path)

    auto_map = json.loads((tmp_path / "preprocessor_config.json").read_text())["auto_map"]
    assert auto_map == AUTO_MAP | {"AutoFeatureExtractor": f"{Path(__file__).stem}.OwnFeatureExtractor"}
    assert (tmp_path / Path(__file__).name).is_file() and CavMaeSyncFeatureExtractor._auto_class is None


# The `auto_map` of folders written before all modeling classes lay in one file.
EARLIER_MAP = {
    "AutoConfig": "configuration_cavmae_sync.CavMaeSyncConfig",
    "AutoModel": "modeling_cavmae_sync.CavMaeSyncModel",
    "AutoModelForPreTraining": "pretraining_cavmae_sync.CavMaeSyncForPreTraining",
    "AutoModelForAudioClassification": "classification_cavmae_sync.CavMaeSyncForAudioVisualClassification",
    "AutoModelForVideoClassification": "classification_cavmae_sync.CavMaeSyncForAudioVisualClassification",
    "AutoFeatureExtractor": "feature_extraction_cavmae_sync.CavMaeSyncFeatureExtractor",
    "AutoVideoProcessor": "video_processing_cavmae_sync.CavMaeSyncVideoProcessor",
    "AutoProcessor": "processing_cavmae_sync.CavMaeSyncProcessor",
}


def test_saved_folder__of_an_earlier_version_loads_and_names_the_files_of_today_when_saved_again(folder, tmp_path):
    earlier, again = shutil.copytree(folder, tmp_path / "earlier"), tmp_path / "again"
    for name in ("config.json", "processor_config.json"):
        settings = json.loads((earlier / name).read_text())
        for part in (settings, settings.get("feature_extractor"), settings.get("video_processor")):
            if part is not None:
                part["auto_map"] = EARLIER_MAP | {"AutoModelForImageToText": "mine.MyModel"}
        (earlier / name).write_text(json.dumps(settings))
    model = AutoModelForVideoClassification.from_pretrained(earlier)
    processor = AutoProcessor.from_pretrained(earlier)
    assert type(model) is CavMaeSyncForAudioVisualClassification and type(processor) is CavMaeSyncProcessor

    model.save_pretrained(again)
    processor.save_pretrained(again)

    own = AUTO_MAP | {"AutoModelForImageToText": "mine.MyModel"}
    settings = json.loads((again / "processor_config.json").read_text())
    assert json.loads((again / "config.json").read_text())["auto_map"] == own
    assert settings["auto_map"] == AUTO_MAP
    assert settings["feature_extractor"]["auto_map"] == settings["video_processor"]["auto_map"] == own


def test_save_for_hub__refuses_a_folder_with_other_files(classifier, processor, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(ValueError, match=r"holds other files \(notes.txt\)"):
        save_for_hub(classifier, processor, tmp_path, overwrite=True)

    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


def test_save_for_hub__refuses_own_names_of_another_model(classifier, processor, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')

    with pytest.raises(ValueError, match="config.json"):
        save_for_hub(classifier, processor, tmp_path, overwrite=True)


def test_save_for_hub__replaces_its_own_folder_only_when_asked(classifier, processor, tmp_path):
    target = save_for_hub(classifier, processor, tmp_path / "model")
    (target / "README.md").write_text("old")

    with pytest.raises(ValueError, match="overwrite=True"):
        save_for_hub(classifier, processor, target)
    assert (target / "README.md").read_text() == "old"

    save_for_hub(classifier, processor, target, overwrite=True)
    assert (target / "README.md").read_text().startswith("---")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


def test_save_for_hub__refuses_a_file_as_folder(classifier, processor, tmp_path):
    (tmp_path / "file").touch()

    with pytest.raises(ValueError, match="is a file"):
        save_for_hub(classifier, processor, tmp_path / "file")


def test_save_for_hub__leaves_nothing_when_it_fails(classifier, processor, tmp_path, monkeypatch):
    target = save_for_hub(classifier, processor, tmp_path / "model")
    monkeypatch.setattr(hub, "create_model_card", lambda *_: 1 / 0)

    for place in (target, tmp_path / "other"):
        with pytest.raises(ZeroDivisionError):
            save_for_hub(classifier, processor, place, overwrite=True)

    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    assert (target / "model.safetensors").is_file()


def test_save_for_hub__refuses_another_kind_of_model(processor, tmp_path):
    bert = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8))

    with pytest.raises(ValueError, match="BertModel"):
        save_for_hub(bert, processor, tmp_path / "model")


@pytest.mark.parametrize(("name", "value"), [("audio_length", 64), ("num_mel_bins", 32), ("image_size", 64)])
def test_save_for_hub__refuses_a_processor_of_another_size(classifier, name, value, tmp_path):
    other = CavMaeSyncProcessor.from_config(tiny_config(**{name: value}))

    with pytest.raises(ValueError, match=f"`{name}` {value}"):
        save_for_hub(classifier, other, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_push_to_hub__uploads_the_folder_in_one_commit(classifier, processor, monkeypatch):
    calls = []

    class Api:
        def __init__(self, token=None):
            calls.append(("token", token))

        def create_repo(self, repo_id, **options):
            calls.append(("create", repo_id, options))
            return SimpleNamespace(repo_id=f"owner/{repo_id}")

        def create_branch(self, repo_id, **options):
            calls.append(("branch", repo_id, options))

        def upload_folder(self, *, repo_id, folder_path, **options):
            names = {entry.name for entry in Path(folder_path).iterdir()}
            calls.append(("upload", repo_id, names, (Path(folder_path) / "README.md").read_text(), options))
            return SimpleNamespace(commit_url="address")

    monkeypatch.setattr(hub, "HfApi", Api)

    assert push_to_hub(classifier, processor, "tiny", private=True, token="secret", revision="next") == "address"

    token, create, branch, upload = calls
    assert token == ("token", "secret")
    assert create[1:] == ("tiny", {"private": True, "exist_ok": True})
    assert branch[1:] == ("owner/tiny", {"branch": "next", "exist_ok": True})
    assert upload[1] == "owner/tiny" and {"model.safetensors", "processing_cavmae_sync.py"} <= upload[2]
    assert 'from_pretrained("owner/tiny"' in upload[3] and "secret" not in upload[3]
    assert upload[4]["revision"] == "next"


# The model card


def test_model_card__has_metadata_that_the_hub_reads(folder):
    card = ModelCard.load(folder / "README.md")

    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "video-classification"
    assert "custom_code" in card.data.tags
    assert "{{" not in card.text.split("## Citation")[0] and "None" not in card.text


def test_model_card__snippet_runs(folder, clip):
    card = ModelCard.load(folder / "README.md").text
    snippet = card.split("```python\n")[1].split("```")[0]
    assert '"tiny-sync"' in snippet

    outputs: dict = {}
    exec(snippet.replace('"tiny-sync"', repr(str(folder))).replace('"clip.mp4"', repr(str(clip))), outputs)  # noqa: S102

    assert outputs["outputs"].logits.shape == (1, 5)


@pytest.mark.parametrize("modality", ["multimodal", "audio", "video"])
@pytest.mark.parametrize(
    "model_class", [CavMaeSyncModel, CavMaeSyncForPreTraining, CavMaeSyncForAudioVisualClassification]
)
def test_model_card__names_pipelines_that_run(model_class, modality, processor, clip, tmp_path):
    if model_class is CavMaeSyncForPreTraining and modality != "multimodal":
        pytest.skip("it needs both modalities")
    folder = save_for_hub(model_class(tiny_config(modality=modality)), processor, tmp_path / "model")
    data = ModelCard.load(folder / "README.md").data
    tasks = {task for task in [data.pipeline_tag, *data.tags] if task in PIPELINE_REGISTRY.supported_tasks}

    waveform = decode_media(clip, want_video=False).waveform.numpy()
    given = {
        "audio-classification": ((waveform,), {}),
        "audio-visual-retrieval": ((clip,), {"candidates": [clip], "by": "audio"}),
    }
    for task in tasks:
        arguments, options = given.get(task, ((str(clip),), {}))
        assert len(pipeline(task, str(folder))(*arguments, **options))
    assert any(task.startswith("audio-visual-") for task in tasks)
    named = {"multimodal": "video", "video": "video", "audio": "audio"}[modality] + "-classification"
    assert data.pipeline_tag == (named if model_class is CavMaeSyncForAudioVisualClassification else None)
    assert all(f"`{task}`" in (folder / "README.md").read_text() for task in tasks)


@pytest.mark.parametrize("modality", ["multimodal", "audio", "video"])
@pytest.mark.parametrize("model_class", [CavMaeSyncModel, CavMaeSyncForAudioVisualClassification])
def test_usage_snippet__passes_what_the_model_takes(model_class, modality, processor, clip, monkeypatch):
    model = model_class(tiny_config(modality=modality)).eval()
    monkeypatch.setattr("transformers.AutoProcessor.from_pretrained", lambda *_, **__: processor)
    for name in ("AutoModel", "AutoModelForVideoClassification"):
        monkeypatch.setattr(f"transformers.{name}.from_pretrained", lambda *_, **__: model)
    names: dict = {}

    exec(usage_snippet(model, "x").replace('"clip.mp4"', repr(str(clip))), names)  # noqa: S102

    assert names["outputs"] is not None


def test_model_card__shows_details_and_results(classifier, processor):
    result = EvalResult(
        task_type="retrieval", dataset_type="a/b", dataset_name="Clips", metric_type="recall_at_1", metric_value=0.25
    )
    details = CardDetails(
        name="owner/tiny",
        license="bsd-2-clause",
        datasets=["a/b"],
        results=[result],
        training="Two {{ epochs }}.",
        limits="Only squares.",
    )

    card = create_model_card(classifier, processor, details)

    assert card.data.license == "bsd-2-clause" and card.data.datasets == ["a/b"]
    assert card.data.to_dict()["model-index"][0]["results"][0]["metrics"][0]["value"] == 0.25
    assert "| retrieval | Clips | recall_at_1 | 0.25 |" in card.text
    assert "Two {{ epochs }}." in card.text and "Only squares." in card.text
    assert "under bsd-2-clause" in card.text


@pytest.mark.parametrize(("alignment", "words"), [("time", "whatever the length"), ("reference", "published code")])
def test_model_card__tells_the_alignment(classifier, processor, alignment, words):
    processor = CavMaeSyncProcessor.from_config(tiny_config())
    processor.feature_extractor.alignment = alignment

    assert words in create_model_card(classifier, processor).text


# Importing the package


def test_import__prints_nothing_and_loads_nothing_that_only_training_or_the_command_line_needs(tmp_path):
    source = str(Path(cavmae_sync_hf.__file__).parents[1])
    # transformers itself imports some packages where they are installed; only what comes on top counts.
    code = (
        "import sys, transformers, transformers.modeling_utils\n"
        "from transformers import AutoModel, AutoProcessor, AutoVideoProcessor, AutoFeatureExtractor\n"
        "import transformers.video_processing_utils, transformers.processing_utils\n"
        "before = set(sys.modules)\n"
        "import cavmae_sync_hf\n"
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )

    done = run_apart(["-W", "default", "-c", code], tmp_path, PYTHONPATH=source)

    assert done.returncode == 0 and "cavmae" not in done.stderr
    (line,) = done.stdout.splitlines()
    new = set(ast.literal_eval(line))
    heavy = {"datasets", "evaluate", "gradio", "matplotlib", "pandas", "pyarrow", "rich", "sklearn", "torchaudio"}
    assert "cavmae_sync_hf" in new
    assert not new & (heavy | {"typer", "webdataset", "torchcodec", "librosa"})


def test_public_names__exist():
    for name in cavmae_sync_hf.__all__:
        assert getattr(cavmae_sync_hf, name).__name__.removeprefix("cavmae_sync_hf.") == name
    assert set(cavmae_sync_hf.__all__) <= set(dir(cavmae_sync_hf))
    assert {"load_model", "measure_sync", "localize", "classify", "extract_features", "prepare", "make_world"} <= set(
        cavmae_sync_hf.__all__
    )
    assert cavmae_sync_hf.__version__
    with pytest.raises(AttributeError, match="no_such_name"):
        cavmae_sync_hf.no_such_name  # noqa: B018


@pytest.mark.parametrize("first", ["from cavmae_sync_hf import search", "import cavmae_sync_hf.search.store"])
def test_search__can_be_called_whatever_was_imported_first(first, tmp_path):
    code = f"{first}\nimport cavmae_sync_hf\ntry: cavmae_sync_hf.search('nowhere', 'q.wav', None, None)\n"
    code += "except cavmae_sync_hf.SearchError as error: print('refused:', error)"
    source = str(Path(cavmae_sync_hf.__file__).parents[1])

    done = run_apart(["-c", code], tmp_path, PYTHONPATH=source)

    assert done.returncode == 0 and "refused:" in done.stdout and "nowhere" in done.stdout, done.stderr
