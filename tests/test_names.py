# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Which names are asked of the Hub, and what is said of those that are nothing."""

import pytest

from cavmae_sync_hf import DataError, ModelError
from cavmae_sync_hf.data.sources import read_source
from cavmae_sync_hf.inference.loading import choose_device, saved_model
from cavmae_sync_hf.loading import load_model
from cavmae_sync_hf.names import check_model_name, example_model, hub_name, model_names, nothing_at


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A folder with models and clips, which is the current one."""
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "models" / "mine" / "config.json").write_text("{}")
    (tmp_path / "videos").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["owner/name", "hf://owner/name", "hf://models/other", "Owner-1/name.v2_x"])
def test_hub__may_be_asked_for(name):
    assert hub_name(name) and check_model_name(name) is None


@pytest.mark.parametrize(
    "name",
    ["mine", "models/other", "modles/mine", "./owner/name", "/owner/name", "owner/name/", "a/b/c", "../a", "~/a"],
)
def test_hub__is_not_asked_for_what_may_be_a_path(name, monkeypatch):
    asked = []
    for function in ("transformers.utils.cached_file", "huggingface_hub.snapshot_download"):
        monkeypatch.setattr(function, lambda *name, **_: asked.append(name))

    with pytest.raises(ModelError, match="is not a folder"):
        load_model(name)
    with pytest.raises(DataError, match="no such file or folder"):
        read_source(name)
    assert asked == [] and not hub_name(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("exmple", "Did you mean example?"),
        ("cav-mae-snc", "Did you mean published:cav-mae-sync"),
        ("models/min", "Did you mean models/mine? For a model of that name on the Hub write hf://models/min."),
        ("modles/mine", "there is no folder modles. Did you mean models/mine?"),
        ("models", "holds no config.json"),
        ("models/mine/config.json", "is a file; name the folder"),
        ("published:none", "none of the 25 published"),
        ("hf://owner", "write hf://OWNER/NAME"),
        ("a\nb", r"a\nb is not a folder"),
    ],
)
def test_model__that_is_none_is_told_with_what_is_near(name, words):
    with pytest.raises(ModelError) as caught:
        check_model_name(name)
    assert words in str(caught.value)


def test_model__names_lead_to_what_transformers_loads(place):
    assert saved_model("example") == str(example_model()) and saved_model("hf://owner/name") == "owner/name"
    assert saved_model(place / "models" / "mine") == str(place / "models" / "mine")
    assert {"example", "published:cav-mae-sync"} <= set(model_names())
    (place / "example").mkdir()
    (place / "example" / "config.json").write_text("{}")
    assert saved_model("example") == "example"  # a folder of this name comes first


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("vidoes", "vidoes: no such file or folder. Did you mean videos?"),
        ("vidoes/a/b.mp4", "there is no folder vidoes. Did you mean videos/a/b.mp4?"),
        ("videos/b.mp4", "videos/b.mp4: no such file or folder; check the path."),
        ("zzz/b.mp4", "for there is no folder zzz; check the path."),
    ],
)
def test_nothing__says_what_is_missing_and_what_is_near(path, words):
    assert words in nothing_at(path)


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_device__of_auto_is_the_best_there_is(monkeypatch, cuda, mps, chosen):
    monkeypatch.setattr("torch.cuda.is_available", lambda: cuda)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: mps)

    assert str(choose_device("auto")) == chosen and str(choose_device("cpu")) == "cpu"
