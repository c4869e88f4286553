"""The command line: quick help, plain errors, exit codes that scripts can rely on."""

import json
import sys
from pathlib import Path

import pytest
import torch

import cavmae_sync_hf
from cavmae_sync_hf import CavMaeSyncModel, CavMaeSyncProcessor, Hint, cli, save_for_hub
from cavmae_sync_hf.convert import ConversionReport
from helpers.apart import run_apart
from helpers.clips import noise, write_clip
from helpers.tiny import tiny_config

SOURCE = str(Path(cavmae_sync_hf.__file__).parents[1])


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    model = CavMaeSyncModel(tiny_config())
    return save_for_hub(model, CavMaeSyncProcessor.from_config(model.config), tmp_path_factory.mktemp("cli") / "model")


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    return [write_clip(folder / f"{seed}.mp4", audio=noise(2.0, seed=seed)) for seed in range(2)]


def test_version__is_printed(run):
    code, out, _ = run("--version")

    assert code == 0 and out.split() == ["cavmae-sync-hf", cavmae_sync_hf.__version__]


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["convert", "--help"], ["selfcheck", "--help"]])
def test_help__is_printed(run, arguments):
    code, out, _ = run(*arguments)

    assert code == 0 and "Usage: cavmae-sync" in out


def test_help__does_not_load_torch(tmp_path):
    code = (
        "import sys, time\n"
        "sys.argv = ['cavmae-sync', '--help']\n"
        "from cavmae_sync_command import main\n"
        "try:\n    main()\n"
        "finally:\n"
        "    loaded = [name for name in ('torch', 'transformers', 'av', 'numpy') if name in sys.modules]\n"
        "    print(loaded, time.process_time())"
    )
    done = run_apart(["-c", code], tmp_path, PYTHONPATH=SOURCE)

    assert done.returncode == 0, done.stderr
    loaded, seconds = done.stdout.splitlines()[-1].rsplit(maxsplit=1)
    assert loaded == "[]"
    # Half a second; loading torch and transformers takes ten times as long.
    assert float(seconds) < 3


def test_command__registers_the_classes_that_the_import_left_out(saved, clips, tmp_path):
    code = f"import sys\nsys.argv = ['cavmae-sync', 'selfcheck', {str(saved)!r}, '--json', {str(clips[0])!r}]\n"

    done = run_apart(["-c", code + "from cavmae_sync_command import main\nmain()"], tmp_path, PYTHONPATH=SOURCE)

    assert done.returncode in (0, 1), done.stderr
    assert json.loads(done.stdout)["clips"] == ["0.mp4"]


def test_import__registers_in_a_script_of_the_same_name_and_in_worker_processes(tmp_path):
    # The script that an installer writes, which runs the command and then asks a worker process.
    script = tmp_path / "cavmae-sync.py"
    script.write_text(
        "import multiprocessing, sys\n"
        "from cavmae_sync_command import main\n"
        "def known():\n"
        "    import cavmae_sync_hf\n"
        "    from transformers import CONFIG_MAPPING\n"
        "    return 'cavmae_sync' in CONFIG_MAPPING\n"
        "if __name__ == '__main__':\n"
        "    if sys.argv[1:] == ['alone']:\n"
        "        sys.exit(not known())\n"
        "    sys.argv[1:] = ['--version']\n"
        "    try:\n        main()\n"
        "    except SystemExit:\n        pass\n"
        "    assert 'transformers' not in sys.modules\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        sys.exit(not pool.apply(known))\n"
    )

    for arguments in (["alone"], []):
        done = run_apart([str(script), *arguments], tmp_path, PYTHONPATH=SOURCE)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "nonsense"),
        (["convert"], "SRC"),
        (["convert", __file__, "b", "--set", "heads"], "KEY=VALUE"),
        (["selfcheck", "model", "clip", "--min-margin", "much"], "--min-margin"),
        (["selfcheck", "example", __file__, "--device", "foo"], "'foo' is no device"),
        (["selfcheck", "example", __file__, "--device", "meta"], "'meta' cannot be used on this machine"),
    ],
)
def test_wrong_usage__exits_with_2(run, arguments, words):
    code, _, err = run(*arguments)

    # Without the frame and the line breaks around the words.
    assert code == 2 and words in " ".join(err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            ValueError("clip.mp4 has no sound;\n pass [another] one"),
            "Error: clip.mp4 has no sound; pass [another] one",
        ),
        (FileNotFoundError(2, "No such file or directory", "x.pth"), "x.pth"),
        (ImportError("pip install av"), "pip install av"),
        (KeyError("name"), "KeyError: 'name' (run again with --traceback"),
    ],
)
def test_error__becomes_one_message(run, monkeypatch, error, words):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("cavmae_sync_hf.convert.convert_checkpoint", fail)

    code, out, err = run("convert", __file__, "b")

    assert code == 1 and out == ""
    assert words in err and len(err.splitlines()) == 1


def test_error__is_shown_in_full_on_request(monkeypatch):
    def fail(*_, **__):
        raise KeyError("name")

    monkeypatch.setattr("cavmae_sync_hf.convert.convert_checkpoint", fail)
    monkeypatch.setattr(sys, "argv", ["cavmae-sync", "--traceback", "convert", __file__, "b"])
    monkeypatch.setattr(cli.terminal, "show_tracebacks", False)

    with pytest.raises(KeyError):
        cli.main()


def test_interrupt__exits_with_130(run, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("cavmae_sync_hf.convert.convert_checkpoint", interrupt)

    code, _, err = run("convert", __file__, "b")

    assert code == 130 and err == "Interrupted. b is as it was before; run the command again.\n"


def test_convert__passes_settings_on_and_shows_the_report(run, monkeypatch):
    seen = {}

    def record(source, destination, config_overrides=None):
        seen.update(source=source, destination=destination, overrides=config_overrides)
        return ConversionReport("[CAV-MAE Sync]", "CavMaeSyncModel", tiny_config())

    monkeypatch.setattr("cavmae_sync_hf.convert.convert_checkpoint", record)
    settings = ["num_attention_heads=6", "norm_pix_loss=False", "temperature=0.1", "modality=audio", "id2label=null"]

    code, out, _ = run("convert", __file__, "b", *[part for setting in settings for part in ("--set", setting)])

    assert code == 0 and "Family:      [CAV-MAE Sync]" in out
    assert seen["source"] == Path(__file__) and seen["destination"] == Path("b")
    assert seen["overrides"] == {
        "num_attention_heads": 6,
        "norm_pix_loss": False,
        "temperature": 0.1,
        "modality": "audio",
        "id2label": None,
    }


def test_convert__remedies_are_options_of_the_command(run, tmp_path):
    published = Path(__file__).parents[1] / "fixtures" / "sync.pth"

    def refused(*settings: str) -> str:
        options = [part for setting in settings for part in ("--set", setting)]
        code, _, err = run("convert", published, tmp_path / "out", *options)
        assert code == 1 and not (tmp_path / "out").exists()
        assert "config_overrides" not in err and "Strict" not in err and "validator" not in err
        return " ".join(err.split())

    assert "Add --set num_attention_heads=" in refused()
    heads = ("num_attention_heads=4", "decoder_num_attention_heads=2")
    assert "no setting of CavMaeSyncConfig" in refused("num_atention_heads=4")
    assert "did you mean num_attention_heads?" in refused("num_atention_heads=4")
    assert "`audio_length` is 100, not a multiple of `patch_size`" in refused(*heads, "audio_length=100")
    assert "'num_frames' expected int" in refused(*heads, "num_frames=many")


def test_convert__report_names_options_of_the_command(run, monkeypatch):
    hint = Hint("config_overrides", {"modality": "audio"}, "convert one of audio alone")
    report = ConversionReport("CAV-MAE classifier", "CavMaeSyncModel", tiny_config(), hints=[hint])
    monkeypatch.setattr("cavmae_sync_hf.convert.convert_checkpoint", lambda *_, **__: report)

    _, out, _ = run("convert", __file__, "b")

    assert "Option:      Add --set modality=audio to convert one of audio alone." in out
    assert "Pass config_overrides={'modality': 'audio'} to convert one of audio alone." in str(report)


def test_convert__missing_file_is_named(run, tmp_path):
    code, _, err = run("convert", tmp_path / "nowhere.pth", tmp_path / "out")

    assert code == 1 and "nowhere.pth" in err
    assert not (tmp_path / "out").exists()


def test_selfcheck__prints_a_table_and_tells_by_its_exit_code(run, saved, clips):
    easy, out, _ = run("selfcheck", saved, *clips, "--min-margin", "-2")
    hard, failed, _ = run("selfcheck", saved, *clips, "--min-margin", "2")

    assert easy == 0 and "passed" in out and "0.mp4" in out and "1.mp4" in out
    assert hard == 1 and "FAILED" in failed and "other clips" in failed


def test_selfcheck__missing_model_and_clip_are_named(run, saved, tmp_path):
    code, _, err = run("selfcheck", tmp_path / "nothing", "clip.mp4")
    assert code == 1 and "nothing is not a folder" in " ".join(err.split())

    code, _, err = run("selfcheck", saved, tmp_path / "nothing.mp4")
    assert code == 1 and "nothing.mp4" in err


def test_selfcheck__bare_name_file_and_other_folder_are_told_apart_without_the_hub(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.pth").write_bytes(b"weights")

    for name, words in (
        ("nofolder", "nofolder is not a folder. Name one that holds a saved model, example, published:NAME, or a Hub"),
        ("no/such/folder", "no/such/folder is not a folder"),
        ("empty", "empty holds no config.json"),
        ("model.pth", "model.pth is a file; name the folder"),
    ):
        code, _, err = run("selfcheck", name, "clip.mp4")
        assert code == 1 and words in " ".join(err.split())


def test_selfcheck__hub_name_that_cannot_be_fetched(run):
    code, _, err = run("selfcheck", "owner/name", __file__)

    assert code == 1 and "There is no folder owner/name, and the Hub gives no model of this name" in err


def test_selfcheck__another_kind_of_model_is_refused(run, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')

    code, _, err = run("selfcheck", tmp_path, __file__)

    assert code == 1 and "'bert'" in err


def test_world__makes_clips_as_hard_as_asked_and_a_page(run, tmp_path):
    out = tmp_path / "world"
    asked = ("world", out, "--preset", "temporal", "--echo", 0.5, "--crf", 35)
    code, printed, _ = run(*asked, "--clips", 2, "--preview")
    assert code == 0 and "2 clips" in printed
    options = json.loads((out / "train" / "world.json").read_text(encoding="utf-8"))["options"]
    assert (options["echo"], options["crf"]) == (0.5, 35)
    assert (out / "train.html").stat().st_size > 0 and (out / "train.png").stat().st_size > 0
    code, _, errors = run(*asked, "--clips", 3)
    assert code == 1 and "use 4" in errors


def test_world__size_rates_and_encoder_reach_the_split(run, tmp_path):
    asked = ("world", tmp_path / "world", "--clips", 1, "--seconds", 3)
    code, _, errors = run(*asked, "--size", "96 by 64")
    assert code == 1 and "'96 by 64'" in errors and "160x96" in errors and not (tmp_path / "world").exists()
    code, *_ = run(*asked, "--size", "80x64", "--sampling-rate", 24000, "--encoder-preset", "superfast")
    assert code == 0
    options = json.loads((tmp_path / "world" / "train" / "world.json").read_text(encoding="utf-8"))["options"]
    assert (options["width"], options["height"]) == (80, 64)
    assert (options["sampling_rate"], options["encoder_preset"]) == (24000, "superfast")
