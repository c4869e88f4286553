"""Uploads to a Hub on this machine, and what comes back from it: by name, revision and folder, with and without this
package, online and offline."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard, constants
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForVideoClassification,
    AutoProcessor,
    AutoVideoProcessor,
    Trainer,
    TrainingArguments,
    pipeline,
)

from cavmae_sync_hf import CavMaeSyncForAudioVisualClassification, CavMaeSyncProcessor, load_model, push_to_hub
from cavmae_sync_hf.model.auto_map_cavmae_sync import code_files
from cavmae_sync_hf.model.errors_cavmae_sync import ModelError
from helpers.apart import run_apart
from helpers.hub_server import OWNER, TOKEN, connected, serve_hub
from helpers.tiny import tiny_config, tiny_inputs

CODE = {file.name for file in code_files()}
AUTO_CLASSES = (AutoConfig, AutoModel, AutoProcessor, AutoFeatureExtractor, AutoVideoProcessor)
PLACES: list[dict[str, Any]] = [{}, {"revision": "next"}, {"subfolder": "best"}]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return CavMaeSyncForAudioVisualClassification(tiny_config()).eval()


@pytest.fixture(scope="module")
def processor(model):
    return CavMaeSyncProcessor.from_config(model.config)


@pytest.fixture(scope="module")
def hub(model, processor, tmp_path_factory) -> Iterator[SimpleNamespace]:
    """A Hub with a private repository of two branches, of which the second has another head, and a folder `best`."""
    folder = tmp_path_factory.mktemp("hub")
    with serve_hub() as server, connected(server, folder / "cache"):
        address = push_to_hub(model, processor, "tiny", private=True)
        other = CavMaeSyncForAudioVisualClassification(tiny_config()).eval()
        other.load_state_dict(model.state_dict())
        torch.nn.init.zeros_(other.head.classifier.weight)
        push_to_hub(other, processor, f"{OWNER}/tiny", revision="next")
        model.save_pretrained(folder / "best")
        processor.save_pretrained(folder / "best")
        HfApi().upload_folder(repo_id=f"{OWNER}/tiny", folder_path=folder / "best", path_in_repo="best")
        yield SimpleNamespace(server=server, name=f"{OWNER}/tiny", address=address, repositories=server.repositories)


def test_push_to_hub__is_one_commit_that_the_hub_lists_as_the_card_says(hub):
    repository = hub.repositories[hub.name]
    assert repository.private and hub.address.startswith(f"{hub.server.url}/{hub.name}/commit/")
    assert repository.messages.count("Upload model, processor, code and model card") == 2
    assert {"model.safetensors", "config.json", "processor_config.json", "README.md"} | CODE <= set(repository.files())
    info = HfApi().model_info(hub.name)
    assert info.pipeline_tag == "video-classification" and "custom_code" in info.tags
    assert f'from_pretrained("{hub.name}"' in ModelCard.load(hub.name).text
    assert type(pipeline(model=hub.name)).__name__ == "VideoClassificationPipeline"


@pytest.mark.parametrize("place", PLACES, ids=lambda place: "-".join(place) or "main")
def test_from_pretrained__takes_name_revision_and_folder(hub, model, place):
    for auto_class in AUTO_CLASSES:
        assert type(auto_class.from_pretrained(hub.name, **place)).__module__.startswith("cavmae_sync_hf.")
    found = AutoModelForVideoClassification.from_pretrained(hub.name, **place).head.classifier.weight
    expected = model.head.classifier.weight
    torch.testing.assert_close(found, torch.zeros_like(expected) if place.get("revision") else expected)


def test_load_model__takes_a_revision_after_the_name(hub, run):
    for name in (f"{hub.name}@next", f"hf://{hub.name}@{hub.repositories[hub.name].branches['next']}"):
        model, processor = load_model(name, use="classification")
        assert not model.head.classifier.weight.any() and processor.feature_extractor.num_frames == 4
    assert load_model(hub.name, use="classification")[0].head.classifier.weight.any()
    for wrong in (f"{hub.name}@nowhere", f"{OWNER}/nothing", f"{OWNER}/nothing@next"):
        with pytest.raises(ModelError, match=wrong) as caught:
            load_model(wrong)
        assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="@"):
        load_model(f"hf://{hub.name}@")
    assert run("card", f"{hub.name}@next")[0] == 0


def test_private_repository__is_refused_without_a_token(hub, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")

    with pytest.raises(OSError, match="private"):
        AutoModel.from_pretrained(hub.name, cache_dir=tmp_path)

    assert AutoConfig.from_pretrained(hub.name, cache_dir=tmp_path, token=TOKEN).num_labels == 5


def test_offline__gives_what_was_fetched_before(hub, monkeypatch):
    AutoModel.from_pretrained(hub.name)
    load_model(f"{hub.name}@next")
    before = len(hub.server.downloads)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    assert AutoModel.from_pretrained(hub.name).config.num_labels == 5
    assert load_model(hub.name)[0].config.num_labels == load_model(f"{hub.name}@next")[0].config.num_labels
    assert len(hub.server.downloads) == before
    with pytest.raises(ModelError, match="nothing"):
        load_model(f"{OWNER}/nothing")


@pytest.mark.parametrize("way", ["push_to_hub", "save_pretrained", "pipeline"])
def test_parts__push_themselves_with_their_code(hub, model, processor, way, tmp_path):
    name = f"{OWNER}/parts-{way.replace('_', '-')}"
    if way == "push_to_hub":
        for part in (model, processor.feature_extractor, processor.video_processor, model.config, processor):
            part.push_to_hub(name, private=True)
    elif way == "save_pretrained":
        for part in (model, processor):
            part.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id=name, private=True)
    else:
        pipeline("audio-visual-classification", model=model, processor=processor).push_to_hub(name, private=True)

    assert hub.repositories[name].private
    assert {"model.safetensors", "processor_config.json"} | CODE <= set(hub.repositories[name].files())
    assert type(AutoProcessor.from_pretrained(name)) is CavMaeSyncProcessor
    weights = AutoModelForVideoClassification.from_pretrained(name).head.classifier.weight
    torch.testing.assert_close(weights, model.head.classifier.weight)


def test_trainer__pushes_checkpoints_and_the_end(hub, processor, tmp_path):
    name, inputs = f"{OWNER}/trained", tiny_inputs(batch_size=4, num_frames=2)
    rows = [{key: value[row] for key, value in inputs.items()} | {"labels": row} for row in range(4)]
    trainer = Trainer(
        CavMaeSyncForAudioVisualClassification(tiny_config()),
        TrainingArguments(
            str(tmp_path / "out"), max_steps=2, save_steps=1, per_device_train_batch_size=2, push_to_hub=True,
            hub_model_id=name, use_cpu=True, disable_tqdm=True, log_level="error",
        ),
        train_dataset=rows, processing_class=processor,
    )  # fmt: skip

    trainer.train()
    trainer.push_to_hub(tags=["of-the-tutorial"])

    repository = hub.repositories[name]
    assert repository.messages[0] == "Training in progress, step 1" and repository.messages[-1] == "End of training"
    assert {"model.safetensors", "processor_config.json", "README.md"} | CODE <= set(repository.files())
    assert "of-the-tutorial" in HfApi().model_info(name).tags
    found = AutoModelForVideoClassification.from_pretrained(name)
    torch.testing.assert_close(found.head.classifier.weight, trainer.model.head.classifier.weight.cpu())
    assert type(AutoProcessor.from_pretrained(name)) is CavMaeSyncProcessor


# Run where this package is unknown: the code comes with the weights.
STRANGER = """
import sys
sys.modules["cavmae_sync_hf"] = None
import huggingface_hub, transformers
name, places = sys.argv[1], eval(sys.argv[2])
for offline in (False, True):
    huggingface_hub.constants.HF_HUB_OFFLINE = offline
    for place in places:
        for auto_class in ("AutoModelForVideoClassification", "AutoProcessor", "AutoVideoProcessor"):
            found = getattr(transformers, auto_class).from_pretrained(name, trust_remote_code=True, **place)
            assert type(found).__module__.startswith("transformers_modules."), type(found)
classify = transformers.pipeline("audio-visual-classification", name, revision="next", trust_remote_code=True)
print(type(classify).__name__, float(classify.model.head.classifier.weight.abs().sum()))
"""


def test_stranger__loads_all_by_name_revision_and_folder_and_once_more_offline(hub, tmp_path):
    script = tmp_path / "stranger.py"
    script.write_text(STRANGER)
    arguments = ["-I", str(script), hub.name, repr(PLACES)]

    done = run_apart(arguments, tmp_path, HF_ENDPOINT=hub.server.url, HF_HUB_OFFLINE="0", HF_TOKEN=TOKEN)

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["CavMaeSyncClassificationPipeline", "0.0"]
