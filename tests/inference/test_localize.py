"""Localisation: maps by leaving out parts, their place on the video, frames and videos with them drawn in."""

import json
import math
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from cavmae_sync_hf import (
    CavMaeSyncModel,
    CavMaeSyncProcessor,
    InferenceError,
    MediaError,
    MissingTrackError,
    decode_media,
)
from cavmae_sync_hf.inference.heat import blend, overlay_frames
from cavmae_sync_hf.inference.localize import View, localize
from cavmae_sync_hf.inference.occlusion import default_block, embed_without, occlusion_maps
from cavmae_sync_hf.inference.plots import (
    draw_spectrogram,
    draw_strip,
    joined_audio_maps,
    spectrogram_figure,
    strip_figure,
    ticks,
)
from cavmae_sync_hf.inference.strength import source_strength
from cavmae_sync_hf.inference.video_overlay import write_overlay_video
from cavmae_sync_hf.model.media_cavmae_sync import probe_media
from helpers.clips import noise, onset, tone, write_click_and_flash, write_clip
from helpers.rule_models import ColourModel
from helpers.tiny import tiny_config

RATE = 16000
# The mean colour of ImageNet, which is 0 for the model.
PLAIN = (124, 116, 104)


@pytest.fixture(scope="module")
def pair():
    model = ColourModel().eval()
    return model, CavMaeSyncProcessor.from_config(model.config)


def red_patch(left: int, top: int, size: int = 12, width: int = 64, height: int = 48):
    """Frames of one dull colour but for a red square."""

    def picture(number: int, time: float) -> np.ndarray:
        frame = np.full((height, width, 3), PLAIN, dtype=np.uint8)
        frame[top : top + size, left : left + size] = (235, *PLAIN[1:])
        return frame

    return picture


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """A red square at 38 to 50 pixels from the left and 28 to 40 from the top; low noise from 1 s on."""
    folder = tmp_path_factory.mktemp("videos")
    samples = np.concatenate([np.zeros((1, RATE), np.float32), low_noise(1.0)], axis=1)
    return write_clip(folder / "red.mp4", frame=red_patch(38, 28), audio=samples, rate=RATE)


def low_noise(seconds: float) -> np.ndarray:
    """Noise below about 1 kHz, the lower half of the mel bins."""
    spectrum = np.fft.rfft(noise(seconds, RATE, 1)[0])
    spectrum[round(1000 * seconds) :] = 0
    return np.fft.irfft(spectrum, round(seconds * RATE)).astype(np.float32)[None] * 3


@pytest.fixture(scope="module")
def found(pair, video):
    return localize(*pair, video, fps=5, least_strength=0.1)


def image_with(grid: int, row: int, column: int, size: int = 8) -> torch.Tensor:
    """A black frame `(1, 1, 3, height, width)` with one red patch."""
    image = torch.zeros(1, 1, 3, grid * size, grid * size)
    image[..., 0, row * size : (row + 1) * size, column * size : (column + 1) * size] = 1.0
    return image


RED = torch.nn.functional.pad(torch.tensor([1.0, 0.0, 0.0]), (0, 29)).view(1, 1, 32)


@pytest.mark.parametrize("place", [(2, 1), (0, 0), (3, 3)])
def test_occlusion__single_patches_tell_exactly(pair, place):
    """Without the red patch the mean redness falls to 0; without another one it rises."""
    maps = occlusion_maps(pair[0], "video", image_with(4, *place), RED, block=(1, 1))

    expected = torch.full((4, 4), 1 / 16 - 1 / 15)
    expected[place] = 1 / 16
    torch.testing.assert_close(maps[0, 0], expected, atol=1e-6, rtol=1e-4)


def test_occlusion__blocks_reach_to_their_centres_neighbours(pair):
    maps = occlusion_maps(pair[0], "video", image_with(4, 1, 2), RED, block=(3, 3))[0, 0]

    assert ((maps > 0.06) == torch.tensor([[0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1, 1], [0, 0, 0, 0]], dtype=bool)).all()


def test_occlusion__filled_parts_keep_their_tokens(pair):
    """Filled with black, a red patch takes its share of the mean with it, and black ones change nothing."""
    maps = occlusion_maps(pair[0], "video", image_with(4, 2, 2), RED, block=(1, 1), fill=0.0)

    expected = torch.zeros(4, 4)
    expected[2, 2] = 1 / 16
    torch.testing.assert_close(maps[0, 0], expected, atol=1e-6, rtol=1e-4)


def test_occlusion__strides_are_interpolated(pair):
    image = torch.linspace(0, 1, 32).expand(1, 1, 3, 32, 32).clone()
    every, second = (occlusion_maps(pair[0], "video", image, RED, block=(1, 1), stride=step)[0, 0] for step in (1, 3))

    torch.testing.assert_close(second[[0, 3]][:, [0, 3]], every[[0, 3]][:, [0, 3]])
    torch.testing.assert_close(second[0, 1], (2 * every[0, 0] + every[0, 3]) / 3)


def test_occlusion__frames_of_a_batch_are_their_own(pair):
    """Equal neighbours are encoded once, absent ones are 0, and queries belong to their frames."""
    first, second = image_with(4, 0, 1), image_with(4, 3, 2)
    images = torch.cat([first, first, second, second], dim=1)
    queries = torch.cat([RED, 2 * RED, RED, RED], dim=1)
    present = torch.tensor([[True, True, True, False]])

    maps = occlusion_maps(pair[0], "video", images, queries, present=present, block=(1, 1))[0]

    alone = occlusion_maps(pair[0], "video", second, RED, block=(1, 1))[0, 0]
    torch.testing.assert_close(maps[1], 2 * maps[0])
    torch.testing.assert_close(maps[2], alone)
    assert (maps[3] == 0).all() and maps[0].argmax() == 1


def test_occlusion__works_in_small_batches(pair, monkeypatch):
    images = torch.randn(1, 5, 3, 32, 32)
    queries = torch.randn(1, 5, 32)
    whole = occlusion_maps(pair[0], "video", images, queries)

    monkeypatch.setattr("cavmae_sync_hf.inference.occlusion._SAMPLES_AT_A_TIME", 3)

    torch.testing.assert_close(occlusion_maps(pair[0], "video", images, queries), whole)


def test_occlusion__real_towers_fall_by_what_the_embedding_loses():
    torch.manual_seed(0)
    model = CavMaeSyncModel(tiny_config()).eval()
    images = torch.randn(1, 2, 3, 32, 32)
    with torch.no_grad():
        whole = model.get_video_features(images).video_embeds
        keep = torch.tensor([i for i in range(16) if i not in (0, 1, 4, 5)]).expand(2, -1)
        part, _ = model.separate("video", model.tower("video")(images[0], keep))
        sounds = torch.randn(1, 2, 48, 16)
        silenced = sounds.clone()
        silenced[:, :, 40:, 8:] = -2.0
        heard, quiet = (model.get_audio_features(values).audio_embeds for values in (sounds, silenced))

    video = occlusion_maps(model, "video", images, whole, block=(3, 3))
    audio = occlusion_maps(model, "audio", sounds, heard, block=(1, 1), fill=-2.0)

    torch.testing.assert_close(video[0, :, 0, 0], 1 - (part * whole[0]).sum(-1), atol=1e-5, rtol=1e-4)
    # The last of 2 x 6 patches: high mel, late.
    torch.testing.assert_close(audio[0, :, 1, 5], 1 - (quiet * heard).sum(-1)[0], atol=1e-5, rtol=1e-4)


def test_occlusion__blocks_must_leave_something(pair):
    with pytest.raises(ValueError, match="covers the whole grid of 4 x 4"):
        occlusion_maps(pair[0], "video", image_with(4, 0, 0), RED, block=(7, 7))


def test_block__is_about_a_quarter_and_odd():
    assert [default_block(grid) for grid in ((6, 6), (14, 14), (8, 26))] == [(3, 3), (3, 3), (3, 7)]


@pytest.mark.parametrize(
    ("height", "width", "box"),
    [(48, 64, (8, 0, 56, 48)), (64, 48, (0, 8, 48, 56)), (32, 32, (0, 0, 32, 32))],
)
def test_view__is_the_centre_that_the_model_sees(pair, height, width, box):
    view = View.of(height, width, pair[1].video_processor)

    assert view.box == pytest.approx(box, abs=0.8)
    assert view.region == pytest.approx((box[0] / width, box[1] / height, box[2] / width, box[3] / height), abs=0.02)


def test_localize__points_at_what_goes_with_the_sound(pair, video, found):
    """Low sounds go with red: the square's centre is at 44, 34 of 64 x 48 pixels."""
    sounding = found.times >= 1.2

    assert found.video_maps.shape == (10, 4, 4) and found.audio_maps.shape == (10, 8, 6)
    x, y = found.peaks()[sounding].mean(axis=0)
    # A patch is 12 pixels wide here.
    assert abs(x * 64 - 44) <= 8 and abs(y * 48 - 34) <= 8
    assert found.view == View(64, 48, pytest.approx((8, 0, 56, 48), abs=0.8))
    boxes = found.boxes()[sounding]
    assert ((boxes[:, 0] <= 44) & (boxes[:, 2] >= 44) & (boxes[:, 1] <= 34) & (boxes[:, 3] >= 34)).all()


def high_noise(seconds: float) -> np.ndarray:
    """Noise above 2 kHz, which goes with nothing red."""
    spectrum = np.fft.rfft(noise(seconds, RATE, 1)[0])
    spectrum[: round(2000 * seconds)] = 0
    return np.fft.irfft(spectrum, round(seconds * RATE)).astype(np.float32) * 3


def test_localize__silence_has_no_heat_and_no_source(found):
    """Nothing is heard near moments before 0.7 s; the window of the last of them reaches into the noise."""
    silent, sounding = found.times < 0.7, found.times > 1.3

    assert (found.silent == silent).all() and not found.has_source[silent].any()
    for which in ("video", "audio"):
        assert (found.heat(which)[silent] == 0).all()
    assert found.has_source[sounding].all()
    assert found.heat()[sounding].max(axis=(1, 2)).min() == pytest.approx(1.0)
    assert np.isnan(found.peaks()[silent]).all() and np.isnan(found.boxes()[silent]).all()
    first, last = (found.to_dict()["moments"][k] for k in (0, -1))
    assert (first["source"], first["silent"], first["peak"]) == (False, True, None)
    assert (last["source"], last["silent"]) == (True, False) and last["strength"] >= 0.1
    assert "4 of 10 moments are silent." in found.remarks


def test_localize__sound_of_nothing_in_the_frame_has_no_source(pair, video, found):
    foreign = localize(*pair, video, high_noise(2.0), sampling_rate=RATE, fps=5, least_strength=0.1)

    assert not foreign.has_source.any() and not foreign.silent.any()
    assert foreign.strength.max() < found.strength[found.has_source].min() - 1
    assert 0 < foreign.heat().max() <= 0.35  # dimmed, not hidden
    entry = json.loads(json.dumps(foreign.to_dict(), allow_nan=False))["moments"][3]
    assert entry["source"] is False and entry["strength"] < 0 and entry["peak"] is not None
    assert any("At 10 of 10 moments the model finds no source" in remark for remark in foreign.remarks)


def test_strength__is_the_mean_ratio_against_the_pairs_that_lack_something():
    audio, video, hidden = torch.eye(4)[[0]], torch.tensor([[0.6, 0.8, 0.0, 0.0]]), torch.tensor([[0.2, 0.0, 0.9, 0]])
    silence = torch.tensor([0.0, 0.5, 0.1, 0.0])

    strength = source_strength(audio, video, silence=silence, hidden=hidden, temperature=0.1)

    assert strength.tolist() == pytest.approx([(0.6 - (0.4 + 0.2 + 0.09) / 3) / 0.1])


def test_strength__is_that_of_the_highest_place_of_the_map():
    """With what was left out there, the fall of the map comes out again."""
    torch.manual_seed(0)
    model = CavMaeSyncModel(tiny_config()).eval()
    images, queries = torch.randn(1, 3, 3, 32, 32), torch.randn(1, 3, 32)
    maps = occlusion_maps(model, "video", images, queries)
    places = maps.flatten(-2).argmax(-1)

    hidden = embed_without(model, "video", images, places)

    with torch.no_grad():
        whole = model.get_video_features(images).video_embeds
    torch.testing.assert_close(((whole - hidden) * queries).sum(-1), maps.amax((-2, -1)), atol=1e-5, rtol=1e-4)


def test_localize__finds_the_sound_in_time_and_pitch(found):
    """Around the onset at 1 s, the red frame is in the lower half and after the onset."""
    moment = int(np.abs(found.times - 0.9).argmin())
    start, end = found.window_times[moment]

    heat = found.audio_maps[moment]

    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert row < 4
    assert start + (column + 0.5) / 6 * (end - start) > 0.95


def test_localize__cosine_and_occlusion_are_told_apart(pair, video):
    result = localize(*pair, video, fps=2, method="cosine")

    assert result.method == "cosine" and result.video_maps.shape == (4, 4, 4)
    assert np.abs(result.video_maps).max() <= 1 + 1e-6


def test_localize__joins_the_spectrogram(pair, video, found):
    extractor = pair[1].feature_extractor
    media = decode_media(video, want_video=False)
    expected = (extractor.log_mel(media.waveform) - extractor.mean) / extractor.std

    pooled = expected[: len(expected) // 2 * 2].unflatten(0, (-1, 2)).amax(dim=1).T.numpy()

    shown = found.spectrogram.astype(np.float32)
    assert found.spectrogram_start == 0.0 and found.spectrogram_step == 0.02
    assert shown.shape[1] == pytest.approx(100, abs=2)
    width = min(shown.shape[1], pooled.shape[1]) - 2
    # float16, and the mean of each chunk of sound in place of the whole video's.
    np.testing.assert_allclose(shown[:, 55:width], pooled[:, 55:width], atol=0.05)


def test_localize__span_and_other_sound(pair, video):
    part = localize(*pair, video, start=1.0, end=1.8, fps=5)
    dubbed = localize(*pair, video, low_noise(2.0)[0], sampling_rate=RATE, fps=5)

    assert len(part.times) == 4 and part.times[0] == pytest.approx(1.1, abs=0.05)
    assert part.spectrogram_start == 1.0 and part.span == (1.0, 1.8)
    assert dubbed.audio_source == "a waveform"
    # Now there is sound from the beginning.
    assert dubbed.video_maps[1].max() > 10 * np.abs(localize(*pair, video, fps=5).video_maps[1]).max()


def test_localize__sound_that_ends_leaves_maps_empty(pair, video):
    result = localize(*pair, video, low_noise(0.5)[0], sampling_rate=RATE, fps=5)

    assert result.present[:2].all() and not result.present[6:].any()
    assert (result.video_maps[6:] == 0).all() and np.isnan(result.peaks()[6:]).all()
    assert any("lack audio or video" in remark for remark in result.remarks)
    entry = json.loads(json.dumps(result.to_dict(), allow_nan=False))["moments"][-1]
    assert entry["peak"] is None and entry["similarity"] is None


def test_localize__errors_name_the_remedy(pair, video, tmp_path):
    mute = write_clip(tmp_path / "mute.mp4", audio=False)
    trap = tmp_path / "list.mp4"
    trap.write_text("#EXTM3U\n/etc/passwd\n")

    with pytest.raises(InferenceError, match="'guess'"):
        localize(*pair, video, method="guess")
    for fps in (0.0, math.nan):
        with pytest.raises(InferenceError, match="fps"):
            localize(*pair, video, fps=fps)
    with pytest.raises(MissingTrackError, match=r"mute\.mp4"):
        localize(*pair, mute)
    with pytest.raises(MediaError, match="playlist"):
        localize(*pair, trap)
    with pytest.raises(MediaError, match="earlier start"):
        localize(*pair, video, start=30.0)
    with pytest.raises(InferenceError, match="video tower alone"):
        localize(CavMaeSyncModel(tiny_config(modality="video")), pair[1], video)


def test_overlay__heat_lies_where_the_map_says(pair, video, found):
    moment = int(np.abs(found.times - 1.5).argmin())

    hot = overlay_frames(found, video, size=128, indices=[moment])[0]

    assert hot.size == (128, 96)
    plain = decode_media(video, frame_times=[float(found.times[moment])], want_audio=False).frames[0]
    before = np.asarray(Image.fromarray(plain.permute(1, 2, 0).numpy()).resize((128, 96)), dtype=np.float32)
    change = np.abs(np.asarray(hot, dtype=np.float32) - before).mean(axis=2)
    # What the model does not see, 8 of 64 pixels to both sides, is darkened.
    assert np.asarray(hot)[:, :12].mean() < 0.6 * before[:, :12].mean()
    y, x = np.unravel_index(change[:, 20:108].argmax(), (96, 88))
    assert abs(x + 20 - 88) < 28 and abs(y - 68) < 28
    assert change[:30, 24:50].mean() < 6


def test_overlay__moments_must_exist(found, video):
    with pytest.raises(InferenceError, match="0 to 9"):
        overlay_frames(found, video, indices=[10])
    with pytest.raises(InferenceError, match="count is 0"):
        overlay_frames(found, video, count=0)


def test_blend__leaves_cold_frames_alone():
    image = Image.fromarray(np.full((20, 30, 3), 100, np.uint8))

    cold = blend(image, np.full((2, 2), -1.0), (0.0, 0.0, 1.0, 1.0))
    hot = blend(image, np.ones((2, 2)), (0.0, 0.0, 0.5, 1.0), ring=False)

    assert (np.asarray(cold) == 100).all()
    assert np.asarray(hot)[:, :15].mean() > 150 and np.asarray(hot)[:, 15:].mean() == pytest.approx(45, abs=1)


def test_plots__are_written_whole(found, video, tmp_path):
    strip, sound = tmp_path / "new" / "strip.png", tmp_path / "sound.png"

    sheet, spectrogram = draw_strip(found, video, strip, count=5, size=80, columns=3), draw_spectrogram(found, sound)

    assert Image.open(strip).size == sheet.size and Image.open(sound).size == spectrogram.size == (1200, 520)
    assert len(list(tmp_path.rglob("*.png"))) == 2 == len([path for path in tmp_path.rglob("*") if path.is_file()])
    joined = joined_audio_maps(found)
    # Low and after the onset at 1 s is hotter than before it and than high.
    half = joined.shape[1] // 2
    assert joined[:4, half + 1 :].max() > 0.3 and joined[:, : half - 3].max() < 0.1
    assert joined[:4].max() > 2 * joined[6:].max()
    with pytest.raises(InferenceError, match="too small"):
        draw_spectrogram(found, size=(60, 40))


def words_of(figure) -> str:
    return " | ".join(text.get_text() for text in figure.texts)


@pytest.mark.parametrize("count", [1, 10])
def test_strip__says_what_is_seen(found, video, count):
    """Every frame has its time and what speaks for a source; the scale, the ring and how to read them are told."""
    figure = strip_figure(found, video, count=count)

    words = words_of(figure)
    assert f"{count} of 10 moments" in words and "How to read it" in words and "ring: the warmest place" in words
    (scale,) = (axis for axis in figure.axes if axis.get_xlabel())
    assert "fall of the similarity" in scale.get_xlabel() and scale.get_xlim() == (0, 1)
    if count == 10:
        assert words.count("no source: silence") == 4 and "0:00.1" in words
        assert f"strength {found.strength[-1]:.1f}" in words


def test_spectrogram__has_frequencies_times_and_strength(found):
    figure = spectrogram_figure(found)

    heard, scale, strength = figure.axes
    marks = dict(zip([label.get_text() for label in heard.get_yticklabels()], heard.get_yticks(), strict=True))
    assert heard.get_ylabel() == "frequency" and {"1 kHz", "4 kHz"} <= marks.keys()
    # The mel bin with the frequency nearest to the mark.
    assert marks["4 kHz"] == pytest.approx(np.abs(found.frequencies - 4000).argmin(), abs=1)
    assert "fall of the similarity" in scale.get_ylabel() and strength.get_ylabel() == "strength,\nnats"
    times = [label.get_text() for label in strength.get_xticklabels()]
    assert times[0] == "0:00.0" and strength.get_xlabel() == "time, minutes:seconds"
    assert "no source\nbelow 0.1" in [text.get_text() for text in strength.texts]
    # The noise that is heard lies low.
    loud = found.spectrogram.astype(np.float32)[:, -20:].mean(axis=1)
    assert found.frequencies[loud.argmax()] < 1100


@pytest.mark.parametrize(("start", "end"), [(0.0, 10.0), (3.2, 3.9), (0.0, 7200.0), (59.0, 121.0)])
def test_ticks__are_round_and_few(start, end):
    marks = ticks(start, end)

    assert 3 <= len(marks) <= 11 and marks[0] >= start - 1e-9 and marks[-1] <= end + 1e-9
    assert len({round(b - a, 6) for a, b in zip(marks, marks[1:], strict=False)}) == 1


def flash_and_click(path: Path) -> tuple[float, float]:
    """When the first bright frame appears, and when the click begins."""
    with av.open(str(path)) as file:
        lit = next(
            float(frame.pts * frame.time_base)
            for frame in file.decode(video=0)
            if frame.to_ndarray(format="gray").mean() > 60
        )
    media = decode_media(path, num_frames=1, sampling_rate=48000)
    return lit, onset(media.waveform.numpy(), 48000)


@pytest.mark.parametrize(("fps", "start"), [(None, None), (None, 0.2), (10, None)])
def test_video__sound_and_frames_stay_together(pair, tmp_path, fps, start):
    moment = 0.8
    source = write_click_and_flash(tmp_path / "source.mp4", moments=(moment,), fps=25)
    result = localize(*pair, source, fps=5, start=start)

    target = write_overlay_video(result, source, tmp_path / "new" / "out.mp4", fps=fps, short_side=96)

    info = probe_media(target)
    assert (info.width, info.height) == (128, 96) and info.has_audio and info.frame_rate == (fps or 25)
    assert info.duration == pytest.approx(2.0 - (start or 0), abs=0.06)
    lit, heard = flash_and_click(target)
    frame = 1 / (fps or 25)
    # The flash within a frame of where it was, and so the click.
    assert abs(lit - (moment - (start or 0))) <= frame and abs(heard - (moment - (start or 0))) < 0.02
    assert abs(lit - heard) <= frame
    assert [path.name for path in target.parent.iterdir()] == ["out.mp4"]


def test_video__heat_moves_with_the_maps(found, video, tmp_path):
    target = write_overlay_video(found, video, tmp_path / "out.mp4", short_side=96)

    frames = decode_media(target, frame_times=[0.3, 1.7], want_audio=False).frames.float()
    plain = decode_media(video, frame_times=[0.3, 1.7], want_audio=False, short_side=96).frames.float()
    change = (frames - plain).abs().mean(dim=1)[:, 20:92, 24:104].mean(dim=(1, 2))
    assert change[0] < 6 and change[1] > 2 * change[0]


def test_video__says_below_wide_frames_whether_there_is_a_source(found, video, tmp_path):
    target = write_overlay_video(found, video, tmp_path / "out.mp4", short_side=240, fps=10)

    frames = decode_media(target, frame_times=[0.3, 1.7], want_audio=False).frames.float()
    assert frames.shape[-1] == 320 and frames.shape[-2] > 280
    warning = frames[:, 0, 240:] - frames[:, 2, 240:]  # the words "no source" are orange
    assert warning[0, :, :160].max() > 80 > 50 > warning[1, :, :160].max()


def test_video__carries_the_other_sound(pair, tmp_path):
    source = write_click_and_flash(tmp_path / "source.mp4", moments=(0.5,))
    samples = np.zeros(2 * RATE, np.float32)
    samples[round(1.2 * RATE) :] = tone(0.8, RATE, 1000, 1)[0]
    dub = write_clip(tmp_path / "dub.wav", video=False, audio=samples[None], rate=RATE, audio_codec="pcm_s16le")
    result = localize(*pair, source, dub, fps=5)

    by_file = write_overlay_video(result, source, tmp_path / "a.mp4", dub, short_side=48)
    by_wave = write_overlay_video(result, source, tmp_path / "b.mp4", samples, sampling_rate=RATE, short_side=48)

    for path in (by_file, by_wave):
        sound = decode_media(path, want_video=False)
        assert onset(sound.waveform.numpy(), 16000) == pytest.approx(1.2, abs=0.02)
        assert probe_media(path).sampling_rate == RATE


def test_video__odd_and_upright_frames(pair, tmp_path):
    source = write_clip(tmp_path / "odd.mov", size=(50, 62), audio=tone(1.0), seconds=1.0, rotation=90)
    result = localize(*pair, source, fps=2)

    target = write_overlay_video(result, source, tmp_path / "out.mkv", short_side=51)

    frames = decode_media(target, num_frames=1, want_audio=False).frames
    assert (result.view.width, result.view.height) == (62, 50)
    assert frames.shape[2] % 2 == 0 and frames.shape[3] % 2 == 0 and frames.shape[3] > frames.shape[2]


def test_video__of_slides_is_whole(pair, tmp_path):
    """A frame every 4 s, from files in memory as well."""
    slides = write_clip(tmp_path / "slides.mp4", frame_times=[0.0, 4.0], audio=noise(5.0, RATE, 1), rate=RATE)

    for source, span in ((slides, (None, None)), (slides.read_bytes(), (1.0, 2.0)), (slides, (4.2, None))):
        result = localize(*pair, source, fps=2, start=span[0], end=span[1])
        target = write_overlay_video(result, source, tmp_path / "out.mp4", short_side=48, overwrite=True)
        length = (span[1] or 5.0) - (span[0] or 0.0)
        info = probe_media(target)
        assert info.frame_rate == 10 and info.duration == pytest.approx(length, abs=0.11)
        assert overlay_frames(result, source, count=1, size=64)[0].size == (64, 48)


def test_video__leaves_nothing_behind_when_it_fails(found, video, tmp_path):
    with pytest.raises(InferenceError, match=r"\.mp4"):
        write_overlay_video(found, video, tmp_path / "out.avi")
    with pytest.raises(InferenceError, match="crf"):
        write_overlay_video(found, video, tmp_path / "out.mp4", crf=80)

    def interrupt(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_overlay_video(found, video, tmp_path / "out.mp4", progress=interrupt)

    assert list(tmp_path.iterdir()) == []
