"""`--audio-track` and `--channel` on every command: what is heard, what records remember, what readers are told."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from cavmae_sync_hf import CavMaeSyncProcessor, MediaWarning, SearchError, index_videos, measure_sync, search
from cavmae_sync_hf.data.dataset import CavMaeSyncDataset
from cavmae_sync_hf.data.shards import read_index
from cavmae_sync_hf.loading import load_model
from cavmae_sync_hf.model.errors_cavmae_sync import Hint
from cavmae_sync_hf.model.media_source_cavmae_sync import MediaSource
from cavmae_sync_hf.search import MomentStore
from cavmae_sync_hf.search.settings import IndexSettings
from helpers.clips import noise, tone, write_audio_tracks
from helpers.tiny import tiny_config

COMMANDS = ("prepare", "index", "search", "extract", "evaluate", "sync", "localize", "classify")


def own_audio(number: int, kind: str) -> np.ndarray:
    """Two channels of a clip: of English or German, which differ from each other and between channels."""
    loud = noise(1.0, seed=number + 10 * (kind == "deu"), channels=1)
    return np.concatenate([loud, tone(1.0, frequency=300 * (number + 1), channels=1)])


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> dict[str, Path]:
    """The same clips with both tracks, English being the default, and with the German one alone."""
    root = tmp_path_factory.mktemp("videos")
    folders = {name: root / name for name in ("both", "german")}
    for folder in folders.values():
        folder.mkdir()
    for number in range(3):
        tracks = [
            {"language": language, "audio": own_audio(number, language), "channels": 2, "codec": "flac"}
            for language in ("eng", "deu")
        ]
        write_audio_tracks(folders["both"] / f"{number}.mkv", tracks)
        write_audio_tracks(folders["german"] / f"{number}.mkv", tracks[1:])
    return folders


@pytest.fixture(scope="module")
def made(models, videos, tmp_path_factory) -> Path:
    """An index of the clips with both tracks."""
    index = tmp_path_factory.mktemp("index") / "index"
    index_videos(videos["both"], index, *load_model(models["both"]), hop=0.25)
    return index


def arguments(command: str, models: dict[str, Path], folder: Path, out: Path, index: Path) -> list[object]:
    files = sorted(folder.glob("*.mkv"))
    both, classifier = models["both"], models["classifier"]
    return {
        "prepare": ["prepare", folder, out, "--workers", 1, "--num-frames", 2, "--num-mel-bins", 16],
        "index": ["index", folder, out, "--model", both, "--hop", 0.25],
        "search": ["search", index, files[1], "--json"],
        "extract": ["extract", folder, out, "--model", both, "--window", 0.5, "--stride", 0.5, "--hop", 0.25],
        "evaluate": ["evaluate", "sync", both, folder, "--min-shift", 0.2, "--json"],
        "sync": ["sync", *files, "--model", both, "--hop", 0.25, "--max-offset", 0.5, "--json"],
        "localize": ["localize", files[0], "--model", both, "--fps", 2, "--out", out, "--no-video", "--json"],
        "classify": ["classify", *files, "--model", classifier, "--json"],
    }[command]


def heard(command: str, printed: str, out: Path) -> object:
    """What of a command's results depends on the audio, as numbers that can be compared."""
    if command == "prepare":
        dataset = CavMaeSyncDataset(
            out, CavMaeSyncProcessor.from_config(tiny_config(), channel=read_index(out).channel)
        )
        return [dataset.source.read(number, lambda _, count: [0]).log_mel.tolist() for number in range(len(dataset))]
    if command == "index":
        return sorted(MomentStore.open(out).clip_vectors("audio")[1].tolist())
    if command == "extract":
        return np.load(out / "a.npy").tolist()
    found = json.loads(printed)
    if command == "search":
        return [(Path(hit["path"]).name, hit["score"]) for hit in found["hits"]]
    if command == "evaluate":
        return found["metrics"]
    if command == "classify":
        return [clip["labels"] for clip in found["clips"]]
    if command == "localize":
        return [moment["similarity"] for moment in found["videos"][0]["moments"]]
    return [video["scores"] for video in found["videos"]]


@pytest.mark.parametrize("command", COMMANDS)
def test_audio_track__is_what_a_file_of_that_track_alone_gives(run, models, videos, made, tmp_path, command):
    results = {}
    for name, folder, options in (
        ("default", "both", []),
        ("number", "both", ["--audio-track", 1]),
        ("language", "both", ["--audio-track", "de"]),
        ("alone", "german", []),
    ):
        out = tmp_path / name
        code, printed, errors = run(*arguments(command, models, videos[folder], out, made), *options)
        assert code == 0, errors
        results[name] = heard(command, printed, out)
    assert results["number"] == results["language"] == results["alone"] != results["default"]


@pytest.mark.parametrize("command", COMMANDS)
def test_channel__is_of_every_command(run, models, videos, made, tmp_path, command):
    results = []
    for number, options in enumerate(([], ["--channel", "first"], ["--channel", "mean"])):
        out = tmp_path / str(number)
        code, printed, errors = run(*arguments(command, models, videos["both"], out, made), *options)
        assert code == 0, errors
        results.append(heard(command, printed, out))
    assert results[0] == results[1] != results[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_audio_track__that_no_file_has_names_those_there_are(run, models, videos, made, tmp_path, command):
    code, _, errors = run(*arguments(command, models, videos["both"], tmp_path / "out", made), "--audio-track", "fr")
    if command == "prepare":
        errors = (tmp_path / "out" / "bad_clips.csv").read_text()
    assert code == 1 and "has no audio track 'fr'" in errors
    assert "0 (eng, flac, 2 channels, default), 1 (deu, flac, 2 channels)" in errors


@pytest.mark.parametrize("value", ["-1", "1.5", "d e"])
def test_audio_track__that_can_be_none_is_wrong_usage(run, models, videos, made, tmp_path, value):
    words = arguments("sync", models, videos["both"], tmp_path / "out", made)
    code, _, errors = run(*words, f"--audio-track={value}")
    assert code == 2 and "is no audio track; give its number, from 0, or a language" in errors


def test_index__remembers_the_choice(run, models, videos, tmp_path):
    words = arguments("index", models, videos["both"], tmp_path / "index", tmp_path)
    assert run(*words, "--audio-track", "de", "--channel", "mean")[0] == 0
    settings = MomentStore.open(tmp_path / "index").settings
    assert (settings.audio_track, settings.channel) == ("de", "mean")
    code, _, errors = run(*words, "--channel", "mean")
    assert code == 1 and "audio_track was 'de' and is None" in errors and "Add --audio-track de" in errors
    code, _, errors = run(*words, "--audio-track", "de")
    assert code == 1 and "channel was 'mean' and is 'first'" in errors and "Add --channel mean" in errors
    assert run(*words, "--audio-track", "de", "--channel", "mean")[0] == 0
    # A query that is one of the files is that moment itself: it is heard as the index was.
    model, processor = load_model(models["both"])
    query = videos["both"] / "1.mkv"
    (hit,) = search(tmp_path / "index", query, model, processor, by="audio", find="audio", start=0.25, end=0.75, top=1)
    assert hit.score == pytest.approx(1.0, abs=1e-5) and hit.path.endswith("1.mkv")
    other = search(tmp_path / "index", query, model, processor, by="audio", find="audio", start=0.25, end=0.75, top=1,
                   audio_track="en")  # fmt: skip
    assert other[0].score < hit.score - 1e-4
    # A query of one track has no other to choose.
    alone = write_audio_tracks(tmp_path / "alone.mkv", [{"audio": own_audio(1, "deu"), "channels": 2}])
    assert len(search(tmp_path / "index", alone, model, processor, by="audio", find="audio")) > 0


def test_index__without_a_choice_has_the_settings_of_earlier_versions(made, models):
    settings = MomentStore.open(made).settings
    assert "audio_track" not in settings.processing and settings.audio_track is None
    model, processor = load_model(models["both"])
    chosen = IndexSettings.of(model, processor.with_audio_choice(audio_track="de"), 0.25)
    with pytest.raises(SearchError, match="audio_track was None and is 'de'.*Leave out audio_track to add to it"):
        settings.check(chosen, "the index", adding=True)
    settings.check(chosen, "the index", adding=False)


@pytest.mark.parametrize("command", ["prepare", "extract"])
def test_folders__remember_the_choice(run, models, videos, tmp_path, command):
    words = arguments(command, models, videos["both"], tmp_path / "out", tmp_path)
    assert run(*words, "--audio-track", "de")[0] == 0
    code, _, errors = run(*words)
    assert code == 1 and "audio_track" in errors and "de" in errors
    assert run(*words, "--audio-track", "de")[0] == 0
    if command == "prepare":
        assert read_index(tmp_path / "out").audio_track == "de"
        processor = CavMaeSyncProcessor.from_config(tiny_config())
        assert len(CavMaeSyncDataset(tmp_path / "out", processor)) == 3
        with pytest.raises(ValueError, match="prepared with audio_track='de', not 0"):
            CavMaeSyncDataset(tmp_path / "out", processor.with_audio_choice(audio_track=0))


def test_prepare__without_a_choice_writes_what_earlier_versions_wrote(run, models, videos, tmp_path):
    assert run(*arguments("prepare", models, videos["both"], tmp_path / "out", tmp_path))[0] == 0
    assert "audio_track" not in json.loads((tmp_path / "out" / "index.json").read_text())


def test_sync__protocol_names_the_track(models, videos):
    model, processor = load_model(models["both"])
    results = [
        measure_sync(model, processor, videos["both"] / "0.mkv", hop=0.25, max_offset=0.5, **options)
        for options in ({}, {"audio_track": "de"})
    ]
    assert "track=" not in results[0].protocol and results[1].protocol.endswith(";track=de")


def test_processor__choice_is_not_saved(models, tmp_path):
    _, processor = load_model(models["both"])
    chosen = processor.with_audio_choice(audio_track="de")
    assert (chosen.audio_track, processor.audio_track) == ("de", None)
    chosen.save_pretrained(tmp_path / "saved")
    assert "audio_track" not in (tmp_path / "saved" / "processor_config.json").read_text()
    assert CavMaeSyncProcessor.from_pretrained(tmp_path / "saved").audio_track is None


@pytest.fixture
def odd(monkeypatch):
    """Every opening of a file has something to tell of it."""
    real = MediaSource.open

    def open_and_tell(self, **options):
        hint = Hint("channel", "mean", "hear all channels")
        warnings.warn(MediaWarning(f"{self.name}: its first channel is silent.", hint=hint), stacklevel=2)
        return real(self, **options)

    monkeypatch.setattr(MediaSource, "open", open_and_tell)


@pytest.mark.parametrize("command", COMMANDS)
def test_warnings__are_one_line_a_file(run, models, videos, made, tmp_path, odd, command):
    words = arguments(command, models, videos["both"], tmp_path / "out", made)
    code, printed, errors = run(*words)
    assert code == 0, errors
    told = [line for line in errors.splitlines() if "silent" in line]
    names = {"search": ["1.mkv"], "localize": ["0.mkv"]}.get(command, ["0.mkv", "1.mkv", "2.mkv"])
    assert len(told) == len(names)
    for name, line in zip(names, sorted(told), strict=True):
        assert line.startswith("Warning: ") and name in line
        assert line.endswith("its first channel is silent. Add --channel mean to hear all channels.")
    assert "MediaWarning" not in errors and ".py" not in errors and "is silent" not in printed


@pytest.mark.parametrize("command", ["prepare", "evaluate", "extract"])
def test_warnings__of_a_real_file_come_out_of_workers(run, models, tmp_path, command):
    folder = tmp_path / "videos"
    folder.mkdir()
    samples = np.stack([np.zeros(48000, np.float32), noise(1.0, channels=1)[0]])
    for number in range(2):
        audio = {"audio": samples, "channels": 2, "codec": "flac"}
        write_audio_tracks(folder / f"{number}.mkv", [audio])
    words = arguments(command, models, folder, tmp_path / "out", tmp_path)
    workers = {"prepare": ["--workers", 2, "--silent", "keep"], "evaluate": ["--num-workers", 2]}.get(command, [])
    code, _, errors = run(*words, *workers)
    assert code == 0, errors
    told = sorted(line for line in errors.splitlines() if "is silent" in line)
    assert len(told) == 2 and all(f"{number}.mkv" in line for number, line in enumerate(told))
    assert all(
        line.startswith("Warning: ") and line.endswith("Add --channel mean to hear all channels.") for line in told
    )
    assert "MediaWarning" not in errors
    code, _, errors = run(*arguments(command, models, folder, tmp_path / "again", tmp_path), "--channel", "mean")
    assert code == 0 and "is silent" not in errors


def test_warnings__in_python_name_the_argument(models, videos, odd):
    model, processor = load_model(models["both"])
    with pytest.warns(MediaWarning, match=r"0.mkv: its first channel is silent. Pass channel='mean' to hear all"):
        measure_sync(model, processor, videos["both"] / "0.mkv", hop=0.25, max_offset=0.5)
