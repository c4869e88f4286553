# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Where in the picture is the sound, and when and at which pitch in the sound is the picture?

`localize` gives both maps for every moment of a film. By default a patch's value is how far the similarity falls
without the patch and its neighbours (`occlusion`); the plain cosine of patch embeddings, `"cosine"`, is faster by the
number of patches and points far less well.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..metrics.localization import map_boxes, patch_maps
from ..model.alignment_cavmae_sync import FRAMES_PER_SECOND, view_of
from ..model.errors_cavmae_sync import InferenceError
from ..model.feature_extraction_cavmae_sync import SILENCE
from ..model.media_cavmae_sync import decode_media
from ..provenance import model_fingerprint
from .occlusion import default_block, occlusion_maps
from .sync import Progress, check_towers, evaluating, source_name, track_seconds

__all__ = ["METHODS", "LocalizationResult", "View", "localize"]

METHODS = ("occlusion", "cosine")
DEFAULT_FPS = 5.0
# Columns of the stored spectrogram are the highest of so many of its frames: 20 ms, enough for a picture of it.
_POOLED_FRAMES = 2


@dataclass(frozen=True)
class View:
    """Which part of a film's upright picture the model sees.

    Attributes:
        width, height: Of the whole picture, pixels.
        box: `(x0, y0, x1, y1)` of the part that is seen, pixels of the whole picture.
    """

    width: int
    height: int
    box: tuple[float, float, float, float]

    @classmethod
    def of(cls, height: int, width: int, video_processor: Any) -> "View":
        """The view of a picture of so many pixels: resized by its shorter side, then cropped in the centre."""
        short = video_processor.size.get("shortest_edge")
        if short is None or not video_processor.do_center_crop:
            return cls(width, height, (0.0, 0.0, float(width), float(height)))
        crop = video_processor.crop_size["height"]
        return cls(width, height, view_of((height, width), (crop, crop), short).seen)

    @property
    def region(self) -> tuple[float, float, float, float]:
        """`box` as shares 0 to 1 of the whole picture."""
        x0, y0, x1, y1 = self.box
        return x0 / self.width, y0 / self.height, x1 / self.width, y1 / self.height


@dataclass
class LocalizationResult:
    """Maps of both directions for every moment. Times are seconds of the film's file.

    Attributes:
        source: Name of the film.
        audio_source: Name of its sound track, where that is another file.
        times: When each moment's frame is on screen, `(moments,)`.
        window_times: Start and end of each moment's window of sound, `(moments, 2)`.
        present: Whether a moment has both sound and picture, `(moments,)`; maps of others are 0.
        similarity: Cosine of each moment's sound and picture, `(moments,)`; NaN where one is absent.
        video_maps: Where in the picture the sound is, `(moments, rows, columns)` float32, top to bottom. By occlusion:
            fall of the cosine; above 0 speaks for the sound.
        audio_maps: When and at which pitch in its window the picture is, `(moments, rows, columns)` float32, low to
            high mel and earlier to later.
        spectrogram: Log-mel of the span as the model sees it, `(mel bins, columns)` float16; the columns are
            `spectrogram_step` seconds each, from `spectrogram_start` on.
        view: Which part of the picture the maps cover.
        fps: Moments per second.
        method: `"occlusion"` or `"cosine"`.
        settings: What else the maps depend on: the block left out, the model's fingerprint.
        channel: Which channel of the sound was heard.
        span: Where in the film this starts and ends, seconds, as it was asked for.
        remarks: What a reader should know.
    """

    source: str
    audio_source: str | None
    times: np.ndarray
    window_times: np.ndarray
    present: np.ndarray
    similarity: np.ndarray
    video_maps: np.ndarray
    audio_maps: np.ndarray
    spectrogram: np.ndarray
    spectrogram_start: float
    spectrogram_step: float
    view: View
    fps: float
    method: str
    settings: dict[str, Any]
    channel: str
    span: tuple[float | None, float | None]
    remarks: list[str] = field(default_factory=list)

    @property
    def region(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of what the maps cover, as shares 0 to 1 of the whole picture."""
        return self.view.region

    def peaks(self) -> np.ndarray:
        """Where each moment's sound is, `(moments, 2)`: x and y as shares 0 to 1 of the whole picture; NaN if absent.

        That is the centre of the highest patch.
        """
        count, rows, columns = self.video_maps.shape
        best = self.video_maps.reshape(count, -1).argmax(axis=1)
        x0, y0, x1, y1 = self.region
        x = x0 + (best % columns + 0.5) / columns * (x1 - x0)
        y = y0 + (best // columns + 0.5) / rows * (y1 - y0)
        return np.where(self.present[:, None], np.stack([x, y], axis=1), np.nan)

    def boxes(self, threshold: float = 0.5) -> np.ndarray:
        """A box around each moment's highest patch and what hangs together with it, `(moments, 4)`.

        Args:
            threshold: Share of the map's range above which a patch belongs to it.

        Returns:
            `[x0, y0, x1, y1]` in pixels of the whole picture; NaN if absent.
        """
        rows, columns = self.video_maps.shape[1:]
        x0, y0, x1, y1 = self.view.box
        found = map_boxes(torch.from_numpy(self.video_maps), (rows, columns), threshold).numpy()
        scale = np.array([(x1 - x0) / columns, (y1 - y0) / rows] * 2)
        return np.where(self.present[:, None], found * scale + np.array([x0, y0] * 2), np.nan)

    def heat(self, which: Literal["video", "audio"] = "video") -> np.ndarray:
        """The maps as pictures show them, of the maps' shape, -1 to 1: 0 and below is cold, 1 hottest; absent ones 0.

        Every moment's peak is hottest, unless it lies below half of what most moments' peaks reach: a moment at which
        nothing stands out stays cooler.
        """
        maps = self.video_maps if which == "video" else self.audio_maps
        peaks = maps.max(axis=(1, 2))
        usual = float(np.quantile(peaks[self.present], 0.95)) if self.present.any() else 0.0
        divisors = np.maximum(np.maximum(peaks, usual / 2), 1e-6)
        heat = np.clip(maps / divisors[:, None, None], -1.0, 1.0)
        return np.where(self.present[:, None, None], heat, 0.0).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: peaks and boxes of every moment, without the maps."""
        moments = [
            {"time": round(float(time), 4), "similarity": round(float(similarity), 6),
             "peak": [round(float(value), 4) for value in peak], "box": [round(float(value), 1) for value in box],
             "fall" if self.method == "occlusion" else "cosine": round(float(grid.max()), 6)}
            if here else {"time": round(float(time), 4), "similarity": None, "peak": None, "box": None}
            for time, similarity, peak, box, grid, here in zip(
                self.times, self.similarity, self.peaks(), self.boxes(), self.video_maps, self.present, strict=True
            )
        ]  # fmt: skip
        return {
            "source": self.source,
            "audio_source": self.audio_source,
            "method": self.method,
            "fps": self.fps,
            "width": self.view.width,
            "height": self.view.height,
            "view": [round(edge, 1) for edge in self.view.box],
            "video_grid": list(self.video_maps.shape[1:]),
            "audio_grid": list(self.audio_maps.shape[1:]),
            "settings": self.settings,
            "remarks": self.remarks,
            "moments": moments,
        }


def localize(
    model: Any,
    processor: Any,
    video: Any,
    audio: Any = None,
    *,
    sampling_rate: int | None = None,
    start: float | None = None,
    end: float | None = None,
    fps: float = DEFAULT_FPS,
    method: Literal["occlusion", "cosine"] = "occlusion",
    block: tuple[int, int] | None = None,
    stride: int | None = None,
    batch_size: int = 16,
    damaged: Literal["error", "keep"] = "error",
    fingerprint: str | None = None,
    progress: Progress | None = None,
) -> LocalizationResult:
    """Find where in the picture a film's sound is, and where in the sound its picture, moment by moment.

    A sound is compared by what sets it apart from silence: the difference of its embedding and that of a silent
    window. A picture is compared as it is.

    Args:
        model: A `CavMaeSyncModel` with both towers, as `load_model(name, modalities="both")` gives it.
        processor: Its processor.
        video: Path, address, bytes or file object.
        audio: Another sound track for it, a file or waveform, whose time 0 is the film's. Default: the film's own.
        sampling_rate: Of a waveform in `audio`, Hz.
        start: Where in the film to start, seconds.
        end: Where to end, seconds.
        fps: Moments per second.
        method: `"occlusion"`, which runs the towers once for every patch, or `"cosine"` of the final patches.
        block: Rows and columns of picture patches that are left out together, odd; see `default_block`.
        stride: Patches from one place that is tried to the next; see `occlusion_maps`.
        batch_size: Moments decoded at a time.
        damaged: `"keep"` uses what can be decoded of truncated and corrupt files.
        fingerprint: `model_fingerprint` of model and processor where it is known, to spare computing it again.
        progress: Called with seconds done and seconds in all (0 where unknown).

    Returns:
        A `LocalizationResult`.

    Raises:
        InferenceError: An argument cannot work, or no moment has both sound and picture.
        InferenceError: The model has one tower.
        MediaError: The film or its sound cannot be read.
    """
    check_towers(model)
    if method not in METHODS:
        raise InferenceError(f"There is no method {method!r}; use {' or '.join(METHODS)}.")
    if not (math.isfinite(fps) and fps > 0 and batch_size >= 1):
        raise InferenceError(f"fps is {fps} and batch_size {batch_size}; both must be above 0.")
    base = getattr(model, "base_model", model)
    mapper = _Mapper(base, processor, method, block, stride)
    parts: list[dict[str, np.ndarray]] = []
    canvas = _Canvas(start or 0.0)
    with evaluating(base):
        chunks = processor.stream(
            video, hop=1 / fps, num_frames=batch_size, start=start, end=end, damaged=damaged, audio=audio,
            sampling_rate=sampling_rate, device=base.device,
        )  # fmt: skip
        for inputs in track_seconds(chunks, video, start, end, progress):
            parts.append(mapper(inputs))
            canvas.add(inputs["input_values"][0], inputs["window_times"][0])
    values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    source = source_name(video)
    if not values["present"].any():
        raise InferenceError(f"{source}: no moment has both sound and picture; name another span or film.")
    settings = {**mapper.settings(), "model": (fingerprint or model_fingerprint(base, processor))[:16]}
    return LocalizationResult(
        source=source,
        audio_source=None if audio is None else source_name(audio),
        **values,
        spectrogram=canvas.finish(float(values["times"][-1]) + 0.5 / fps),
        spectrogram_start=start or 0.0,
        spectrogram_step=_POOLED_FRAMES / FRAMES_PER_SECOND,
        view=_view(video, float(values["times"][0]), processor, damaged),
        fps=fps,
        method=method,
        settings=settings,
        channel=processor.feature_extractor.channel,
        span=(start, end),
        remarks=_remarks(values, method),
    )


class _Mapper:
    """Makes the maps of a chunk of moments."""

    def __init__(
        self, model: Any, processor: Any, method: str, block: tuple[int, int] | None, stride: int | None
    ) -> None:
        self.model, self.method, self.block, self.stride = model, method, block, stride
        extractor = processor.feature_extractor
        self.floor = (SILENCE - extractor.mean) / extractor.std
        self.silent_window = torch.full((1, 1, extractor.audio_length, extractor.num_mel_bins), self.floor)
        self._silence: Tensor | None = None

    @torch.no_grad()
    def __call__(self, inputs: Any) -> dict[str, np.ndarray]:
        model = self.model
        sounds = inputs["input_values"].to(model.device, model.dtype)
        pictures = inputs["pixel_values_videos"].to(model.device, model.dtype)
        heard = inputs["padding_mask"].to(model.device)
        seen = inputs.get("padding_mask_videos")
        seen = torch.ones_like(heard) if seen is None else seen.to(model.device)
        output = model(pixel_values_videos=pictures, input_values=sounds, padding_mask=heard, padding_mask_videos=seen)
        both = heard & seen
        if self.method == "cosine":
            video_maps = patch_maps(output.audio_embeds, output.video_patch_embeds, model.config.video_grid)
            audio_maps = patch_maps(output.video_embeds, output.audio_patch_embeds, model.config.audio_grid)
            video_maps, audio_maps = (maps * both[..., None, None] for maps in (video_maps, audio_maps))
        else:
            if self._silence is None:
                window = self.silent_window.to(model.device, model.dtype)
                self._silence = model.get_audio_features(window).audio_embeds[0, 0]
            video_maps = occlusion_maps(
                model, "video", pictures, output.audio_embeds - self._silence, both, block=self.block,
                stride=self.stride,
            )  # fmt: skip
            audio_maps = occlusion_maps(
                model, "audio", sounds, output.video_embeds, both, stride=self.stride, fill=self.floor
            )
        similarity = output.similarity[0].diagonal().float().masked_fill(~both[0], torch.nan)
        return {
            "times": inputs["frame_times"][0].numpy(),
            "window_times": inputs["window_times"][0].numpy(),
            "present": both[0].cpu().numpy(),
            "similarity": similarity.cpu().numpy(),
            "video_maps": video_maps[0].float().cpu().numpy(),
            "audio_maps": audio_maps[0].float().cpu().numpy(),
        }

    def settings(self) -> dict[str, Any]:
        """What the maps depend on besides the model."""
        if self.method == "cosine":
            return {}
        config = self.model.config
        video = self.block or default_block(config.video_grid)
        return {"video_block": list(video), "audio_block": list(default_block(config.audio_grid)),
                "sound_against": "silence"}  # fmt: skip


class _Canvas:
    """Puts a film's spectrogram together from its windows, which overlap."""

    def __init__(self, start: float) -> None:
        self.first = round(start * FRAMES_PER_SECOND)
        self.reached = self.first  # spectrogram frame of the film up to which there are pieces
        self.pieces: list[np.ndarray] = []

    def add(self, windows: Tensor, window_times: Tensor) -> None:
        starts = (window_times[:, 0] * FRAMES_PER_SECOND).round().long().tolist()
        for window, start in zip(windows.half().cpu().numpy(), starts, strict=True):
            if start > self.reached:  # moments further apart than a window is long
                self.pieces.append(np.full((start - self.reached, window.shape[1]), window.min(), window.dtype))
                self.reached = start
            new = window[max(0, self.reached - start) :]
            self.pieces.append(new)
            self.reached += len(new)

    def finish(self, end: float) -> np.ndarray:
        """`(mel bins, columns)` float16 up to a time in seconds."""
        whole = np.concatenate(self.pieces)[: max(_POOLED_FRAMES, round(end * FRAMES_PER_SECOND) - self.first)]
        count = len(whole) // _POOLED_FRAMES * _POOLED_FRAMES
        return whole[:count].reshape(-1, _POOLED_FRAMES, whole.shape[1]).max(axis=1).T


def _view(video: Any, time: float, processor: Any, damaged: Any) -> View:
    """The view, from one decoded frame: headers do not tell the size of a rotated picture."""
    media = decode_media(video, num_frames=1, start=max(0.0, time - 0.05), end=time + 2.0, want_audio=False,
                         damaged=damaged, alignment="time")  # fmt: skip
    assert media.frames is not None  # want_video makes its absence an error
    return View.of(media.frames.shape[2], media.frames.shape[3], processor.video_processor)


def _remarks(values: dict[str, np.ndarray], method: str) -> list[str]:
    remarks = []
    absent = int((~values["present"]).sum())
    if absent:
        remarks.append(f"{absent} of {len(values['present'])} moments lack sound or picture; their maps are empty.")
    peaks = values["video_maps"][values["present"]].max(axis=(1, 2))
    if method == "occlusion" and float(peaks.max()) < 0.01:
        remarks.append("Leaving out parts of the picture hardly changes how the sound fits; the maps mean little.")
    return remarks
