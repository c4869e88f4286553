"""The Python of README and documentation is run as it stands, each page in a folder and with names of its own."""

import re
import shlex
import shutil
import wave
from pathlib import Path

import pytest
import typer
from PIL import Image

import cavmae_sync_hf
from cavmae_sync_hf import (
    CavMaeSyncForAudioVisualClassification,
    CavMaeSyncModel,
    CavMaeSyncProcessor,
    save_for_hub,
)
from cavmae_sync_hf.cli import app
from cavmae_sync_hf.export import export_model
from cavmae_sync_hf.training import list_recipes
from helpers.clips import noise, write_clip
from helpers.lm import lm_model
from helpers.tiny import tiny_config
from helpers.words import save as save_words
from helpers.words import text_model

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "model_cards" / "README.md"]


# What the code of a page leaves behind: an expression, and what the page says of it.
PROMISED = {
    "README": ("(*output.audio_embeds.shape[:2], *output.similarity.shape)", (2, 16, 2, 16, 16)),
    "preprocess": ("output.similarity.shape, audio_embeds.ndim, scores.ndim", ((1, 16, 16), 2, 2)),
    "data": ("len(batch['input_values'])", 2),
    "sync": ("len(result.times) == len(result.scores) and str(result.verdict) != ''", True),
    "localize": ("len(found.video_maps) == len(found.peaks())", True),
    "search_moments": ("len(hits) == len(clips) > 0 and Path('found/hits.html').stat().st_size > 10_000", True),
    "score": ("len(found.placements) > 0 and Path('film.mp4').stat().st_size > 10_000", True),
    "text": (
        "vectors.shape[0], len(hits) > 0, hits.texts, found.text, len(result.moment_labels) == len(result.spans)",
        (2, True, ("rain",), "the bell", True),
    ),
    "ask": (
        "found.scores.sum().round(3), len(found.times), len(answers), 0 < len(answer.times) <= 6",
        (1.0, 16, 2, True),
    ),
    "features": ("len(found.timing) == len(found.features['av'])", True),
    "evaluate": ("record['counts']['clips_seen']", 1),
    "encoders": (
        "tuple(inputs['input_values'].shape), tuple(output.similarity.shape), output.audio_patch_embeds.shape[2]",
        ((1, 16, 416, 160), (1, 16, 16), 207),
    ),
    "checkpoints": ("type(model).__name__", "CavMaeSyncModel"),
    "hub_and_trainer": ("type(processor).__name__, trainer.state.global_step", ("CavMaeSyncProcessor", 2)),
    "pipelines": ("features['similarity'].shape[-2:]", (16, 16)),
    "export": (
        "type(exported).__name__, seen.shape, tuple(program(**inputs)['similarity'].shape)",
        ("ExportedModel", (2, 16), (2, 16, 16)),
    ),
    "web_page": ("result['model'], result['source']", ("my-model", "clip.mp4")),
}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """A folder with the files that the pages name, and a cache with a tiny model in the place of published weights."""
    folder = tmp_path_factory.mktemp("pages")
    config = tiny_config(num_frames=16)
    processor = CavMaeSyncProcessor.from_config(config)
    save_for_hub(CavMaeSyncModel(config), processor, folder / "my-model")
    headed = type(config)(**(config.to_dict() | {"local_head_size": 8}))
    save_for_hub(CavMaeSyncModel(headed), processor, folder / "my-model-local")
    shutil.copytree(folder / "my-model", folder / "cache" / "published" / "cav-mae-sync" / "model")
    save_for_hub(CavMaeSyncForAudioVisualClassification(config), processor, folder / "my-classifier")
    words = text_model(CavMaeSyncModel(config))
    save_words(*words, folder / "text-model")
    save_words(*lm_model(av={"num_frames": 16}), folder / "my-lm")
    export_model(*words, folder / "exported", int8=True)
    for name in ("clip", "rain"):
        write_clip(folder / f"{name}.mp4", seconds=3, audio=noise(3))
    with wave.open(str(folder / "bark.wav"), "wb") as sound:
        sound.setparams((1, 2, 16000, 0, "NONE", ""))
        sound.writeframes((noise(2, rate=16000, channels=1) * 32767).astype("<i2").tobytes())
    Image.new("RGB", (64, 48), "red").save(folder / "street.jpg")
    return folder


@pytest.mark.timeout(600)  # some export and import much
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_page__python_runs(desk, monkeypatch, capsys, page):
    monkeypatch.chdir(desk)
    monkeypatch.setenv("CAVMAE_SYNC_CACHE", str(desk / "cache"))
    names: dict = {"__name__": "page", "Path": Path}

    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)

    printed = capsys.readouterr().out
    for shape in re.findall(r"print\(.*  # (torch\.Size\(.*?\))", page.read_text(encoding="utf-8")):
        assert shape in printed
    what, expected = PROMISED[page.stem]
    assert eval(what, names) == expected


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page__code_is_not_cut_at_the_width_of_a_page(page):
    code = [block for language in ("python", "bash", "yaml") for block in blocks(page, language)]

    assert [line for line in "".join(code).splitlines() if len(line) > 88] == []


def test_readme__fits_one_sitting():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 200


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.name)
def test_page__links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    anchors = {
        re.sub(r"[^\w\- ]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in text.splitlines()
        if line.startswith("#")
    }
    for link in links:
        target, _, anchor = link.partition("#")
        if target:
            assert (page.parent / target).exists(), link
        else:
            assert anchor in anchors, link


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.name)
def test_page__make_targets_exist(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`?make ([a-z-]+)[`\s]", "".join(blocks(page, "bash")))):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.name)
def test_page__commands_options_and_recipes_exist(page):
    for line in "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] != ["cavmae-sync"]:
            continue
        command, rest = typer.main.get_command(app), words[1:]
        while rest and (inner := getattr(command, "commands", {})):
            command = inner[rest.pop(0)]
        options = {"-h", "--help", "--help-all"}.union(
            *(param.opts + param.secondary_opts for param in command.params)
        )
        assert [word for word in rest if re.match("--?[a-z]", word) and word.split("=")[0] not in options] == [], line
        if command.name in ("pretrain", "finetune", "probe", "text") and not rest[0].endswith(".yaml"):
            assert any(rest[0] in (name, name.split("/")[1]) for name in list_recipes()), line


def test_makefile__no_target_is_taken_for_a_folder():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = set(re.search(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)[1].split())
    assert phony >= set(re.findall(r"^([a-z-]+):.* ## ", makefile, flags=re.MULTILINE))


def test_api_page__has_every_public_name():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    errors = set(cavmae_sync_hf.model.errors_cavmae_sync.__all__)

    missing = [name for name in cavmae_sync_hf.__all__ if name not in errors and not re.search(rf"\b{name}\b", text)]

    assert missing == [] and "errors_cavmae_sync" in text


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent.name == "docs"], ids=lambda page: page.stem)
def test_page__is_not_named_like_one_that_sphinx_makes(page):
    assert page.stem not in ("search", "genindex", "py-modindex", "modindex")
