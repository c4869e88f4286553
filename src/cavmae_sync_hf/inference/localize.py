# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Where in the frame the sounding object is, and when and at which pitch in the audio the frame's content is.

`localize` gives both maps for every moment of a video. By default they show what each patch contributes to the
similarity (`relevance_maps`). A model with local heads predicts in one pass what leaving a patch out would do
(`local_maps`). By `"occlusion"` a patch's value is how far the similarity falls without the patch and
its neighbours (`occlusion_maps`), at the cost of a pass per patch. Parts of a frame are left out: the tower does not
get their tokens, as in the pretraining of a masked autoencoder, so the model is used as it was trained and no grey box
has to stand for nothing. Parts of an audio window are made silent, since for audio there is a nothing, and a gap
between two sounds must not count for being left out. The plain cosine of patch embeddings, `"cosine"`, points far less
well. With a text, its embedding takes the place of the other modality's.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..files import StrPath, whole_file
from ..metrics.localization import map_boxes, patch_maps
from ..model.alignment_cavmae_sync import FRAMES_PER_SECOND, view_of
from ..model.batching_cavmae_sync import cut_windows
from ..model.errors_cavmae_sync import Hint, InferenceError, printable
from ..model.local_cavmae_sync import default_block
from ..model.media_cavmae_sync import decode_media
from ..model.modeling_cavmae_sync import CavMaeSyncModel
from ..model.processing_cavmae_sync import CavMaeSyncProcessor
from ..model.video_processing_cavmae_sync import CavMaeSyncVideoProcessor
from ..provenance import backend_of, model_fingerprint
from .features import OFFSETS, check_towers, evaluating, move_inputs, not_finite_error
from .local import (
    dense_maps,
    has_local_heads,
    local_maps,
    require_dense_projections,
    require_local_heads,
    settle_peaks,
)
from .loudness import SILENCE_DB, span_loudness
from .moments import MediaSpan, Progress, format_clock, read_ahead, read_moments, report_seconds, source_name
from .occlusion import embed_without, occlusion_maps
from .relevance import has_relevance, relevance_maps
from .strength import LEAST_LOG_ODDS, LEAST_STRENGTH, NEAR_SECONDS, NO_SOURCE, NOT_SEEN, source_strength
from .texts import TextVectors, embed_texts

METHODS = ("relevance", "local", "occlusion", "dense", "cosine")
DEFAULT_FPS = 5.0
# Columns of the stored spectrogram are the highest of so many of its frames: 20 ms, enough for a plot of it.
_POOLED_FRAMES = 2
# The most heat of a moment that has no source, of 1.
_WEAK_HEAT = 0.35


@dataclass(frozen=True)
class View:
    """Which part of a video's upright frame the model sees.

    Attributes:
        width, height: Of the whole frame, pixels.
        box: `(x0, y0, x1, y1)` of the part that is seen, pixels of the whole frame.
    """

    width: int
    height: int
    box: tuple[float, float, float, float]

    @classmethod
    def of(cls, height: int, width: int, video_processor: CavMaeSyncVideoProcessor) -> "View":
        """The view of a frame of so many pixels: resized by its shorter side, then cropped in the centre."""
        short = video_processor.size.get("shortest_edge")
        if short is None or not video_processor.do_center_crop:
            return cls(width, height, (0.0, 0.0, float(width), float(height)))
        crop = video_processor.crop_size["height"]
        return cls(width, height, view_of((height, width), (crop, crop), short).seen)

    @property
    def region(self) -> tuple[float, float, float, float]:
        """`box` as shares 0 to 1 of the whole frame."""
        x0, y0, x1, y1 = self.box
        return x0 / self.width, y0 / self.height, x1 / self.width, y1 / self.height


@dataclass
class LocalizationResult:
    """Maps of both directions for every moment. Times are seconds of the video's file.

    Attributes:
        source: Name of the video.
        audio_source: Name of its audio track, where that is another file.
        times: When each moment's frame is on screen, `(moments,)`.
        window_times: Start and end of each moment's audio window, `(moments, 2)`.
        present: Whether a moment has both audio and video, `(moments,)`; maps of others are 0. With a text: whether it
            has a frame.
        similarity: Cosine of each moment's audio and frame, `(moments,)`; NaN where one is absent. With a text: its
            cosine with both, weighted as the model learned of it; where there is no audio, with the frame.
        strength: How far the audio speaks for a source in the frame, nats, `(moments,)`; NaN where one is absent. See
            `strength.source_strength`. With a text: the log-odds that it is true of the frame, nats, as the model was
            trained to tell moments inside and outside of the spans of captions.
        loudness: Of the audio within 0.25 s of each moment, dB of full scale, `(moments,)`.
        video_maps: Where in the frame the sounding object is, `(moments, rows, columns)` float32, top to bottom. By
            occlusion and local heads: fall of the cosine; above 0 speaks for the audio. By relevance the highest value
            is that fall, and the others are shares of it.
        audio_maps: When and at which pitch in its window the frame's content is, `(moments, rows, columns)` float32,
            low to high mel and earlier to later.
        spectrogram: Log-mel of the span as the model sees it, `(mel bins, columns)` float16; the columns are
            `spectrogram_step` seconds each, from `spectrogram_start` on.
        frequencies: Where each mel bin is centred, Hz.
        view: Which part of the frame the maps cover.
        fps: Moments per second.
        method: One of `METHODS`.
        settings: What else the maps depend on: the block left out, the model's fingerprint.
        least_strength: Strength from which on a moment has a source.
        channel: Which channel of the audio was heard.
        span: Where in the video this starts and ends, seconds, as it was asked for.
        remarks: What a reader should know.
        audio_track: Which audio track was heard; `None` for the one that a player plays.
        text: What was looked for in place of the source of the audio.
    """

    source: str
    audio_source: str | None
    times: np.ndarray
    window_times: np.ndarray
    present: np.ndarray
    similarity: np.ndarray
    strength: np.ndarray
    loudness: np.ndarray
    video_maps: np.ndarray
    audio_maps: np.ndarray
    spectrogram: np.ndarray
    frequencies: np.ndarray
    spectrogram_start: float
    spectrogram_step: float
    view: View
    fps: float
    method: str
    settings: dict[str, Any]
    channel: str
    span: tuple[float | None, float | None]
    least_strength: float = LEAST_STRENGTH
    remarks: list[str] = field(default_factory=list)
    audio_track: int | str | None = None
    text: str | None = None

    @property
    def region(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of what the maps cover, as shares 0 to 1 of the whole frame."""
        return self.view.region

    @property
    def silent(self) -> np.ndarray:
        """Whether nothing is heard around a moment, `(moments,)`."""
        return self.loudness < SILENCE_DB

    @property
    def has_source(self) -> np.ndarray:
        """Whether what is heard at a moment, or what the text says, has a source in the frame, `(moments,)`."""
        return self.compared & (self.strength >= self.least_strength)

    @property
    def compared(self) -> np.ndarray:
        """Whether there is something to look for in a frame, `(moments,)`: for a source of silence there is not."""
        return self.present if self.text is not None else self.present & ~self.silent

    @property
    def absence(self) -> str:
        """What is said of moments without a source."""
        return NO_SOURCE if self.text is None else NOT_SEEN

    def peaks(self) -> np.ndarray:
        """Where each moment's sounding object is, `(moments, 2)`: x, y as shares 0 to 1 of the frame.

        That is the centre of the highest patch; NaN if the moment is silent or absent. It means nothing at moments
        without a source.
        """
        count, rows, columns = self.video_maps.shape
        best = self.video_maps.reshape(count, -1).argmax(axis=1)
        x0, y0, x1, y1 = self.region
        x = x0 + (best % columns + 0.5) / columns * (x1 - x0)
        y = y0 + (best // columns + 0.5) / rows * (y1 - y0)
        return np.where(self.compared[:, None], np.stack([x, y], axis=1), np.nan)

    def boxes(self, threshold: float = 0.5) -> np.ndarray:
        """A box around each moment's highest patch and what hangs together with it, `(moments, 4)`.

        Args:
            threshold: Share of the map's range above which a patch belongs to it.

        Returns:
            `[x0, y0, x1, y1]` in pixels of the whole frame; NaN if the moment is silent or absent.
        """
        rows, columns = self.video_maps.shape[1:]
        x0, y0, x1, y1 = self.view.box
        found = map_boxes(torch.from_numpy(self.video_maps), (rows, columns), threshold).numpy()
        scale = np.array([(x1 - x0) / columns, (y1 - y0) / rows] * 2)
        return np.where(self.compared[:, None], found * scale + np.array([x0, y0] * 2), np.nan)

    def heat(self, which: Literal["video", "audio"] = "video") -> np.ndarray:
        """The maps as plots show them, of the maps' shape, -1 to 1: 0 and below is cold, 1 hottest.

        Where there is a source, the peak is hottest, unless it lies below half of what most moments' peaks reach: a
        moment at which nothing stands out stays cooler. Moments without a source are dimmed to about a third; silent
        and absent ones are 0.
        """
        maps = self.video_maps if which == "video" else self.audio_maps
        peaks = maps.max(axis=(1, 2))
        usual = float(np.quantile(peaks[self.compared], 0.95)) if self.compared.any() else 0.0
        divisors = np.maximum(np.maximum(peaks, usual / 2), 1e-6)
        most = np.where(self.has_source, 1.0, np.where(self.compared, _WEAK_HEAT, 0.0))
        return (np.clip(maps / divisors[:, None, None], -1.0, 1.0) * most[:, None, None]).astype(np.float32)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: peaks and boxes of every moment, without the maps."""
        measure = "cosine" if self.method in ("cosine", "dense") else "fall"
        moments = []
        for k, (peak, box) in enumerate(zip(self.peaks(), self.boxes(), strict=True)):
            here, heard = bool(self.present[k]), bool(self.compared[k])
            moments.append({
                "time": round(float(self.times[k]), 4),
                "source": bool(self.has_source[k]),
                "silent": bool(self.silent[k]),
                "strength": round(float(self.strength[k]), 4) if here else None,
                "similarity": round(float(self.similarity[k]), 6) if here else None,
                "peak": [round(float(value), 4) for value in peak] if heard else None,
                "box": [round(float(value), 1) for value in box] if heard else None,
                measure: round(float(self.video_maps[k].max()), 6) if heard else None,
            })  # fmt: skip
        said = {} if self.text is None else {"text": self.text}
        return {
            "source": self.source,
            "audio_source": self.audio_source,
            **said,
            "method": self.method,
            "fps": self.fps,
            "least_strength": self.least_strength,
            "width": self.view.width,
            "height": self.view.height,
            "view": [round(edge, 1) for edge in self.view.box],
            "video_grid": list(self.video_maps.shape[1:]),
            "audio_grid": list(self.audio_maps.shape[1:]),
            "settings": self.settings,
            "remarks": self.remarks,
            "moments": moments,
        }

    def save_arrays(self, path: StrPath, *, overwrite: bool = False) -> None:
        """Write the maps, with times, peaks and the view, as a NumPy archive; `overwrite` replaces an earlier one."""
        numbers = ("times", "window_times", "present", "similarity", "strength", "loudness", "has_source")
        with whole_file(path, overwrite=overwrite) as partial:
            np.savez_compressed(
                partial,
                **{name: getattr(self, name) for name in (*numbers, "video_maps", "audio_maps")},
                peaks=self.peaks(),
                view=np.array(self.view.box),
            )


def localize(
    model: PreTrainedModel,
    processor: CavMaeSyncProcessor,
    video: Any,
    audio: Any = None,
    *,
    text: str | None = None,
    sampling_rate: int | None = None,
    start: float | None = None,
    end: float | None = None,
    fps: float = DEFAULT_FPS,
    method: Literal["relevance", "local", "occlusion", "dense", "cosine"] | None = None,
    block: tuple[int, int] | None = None,
    stride: int | None = None,
    least_strength: float | None = None,
    batch_size: int = 16,
    damaged: Literal["error", "keep"] = "error",
    channel: Literal["first", "mean"] | None = None,
    audio_track: int | str | None = None,
    fingerprint: str | None = None,
    progress: Progress | None = None,
) -> LocalizationResult:
    """Find where in the frame a video's sounding object is, and where in the audio it is heard, moment by moment.

    Audio is compared by what sets it apart from silence: the difference of its embedding and that of a silent
    window. A frame is compared as it is. With a text both are compared with its embedding.

    Args:
        model: A model with both towers, as `load_model(name, modalities="both")` gives it; for a text one with text,
            `load_model(name, use="text")`.
        processor: Its processor.
        video: Path, address, bytes or file object.
        audio: Another audio track for it, a file or waveform, whose time 0 is the video's. Default: the video's own.
        text: Words, such as `"the bell"`, to look for instead of the source of the audio. The video then needs no
            audio.
        sampling_rate: Of a waveform in `audio`, Hz.
        start: Where in the video to start, seconds.
        end: Where to end, seconds.
        fps: Moments per second.
        method: `"relevance"`, one pass forward and back and a few places left out (`relevance_maps`); `"local"`, one
            pass and a few places left out, for models with local heads (`cavmae-sync local-head`); `"occlusion"`,
            which runs the towers once for every patch; `"dense"`, cosines of projected patches, for models trained
            with `dense_loss_weight`; or `"cosine"` of the final patches. Default: the first of the first three that
            the model allows; relevance needs towers of this package.
        block: Rows and columns of frame patches that are taken together, odd; see `default_block`.
        stride: Of occlusion, patches from one place that is tried to the next; see `occlusion_maps`.
        least_strength: Nats from which on a moment has a source. The default, 2.5, suits the example model; another
            model's is found with clips of which it is known. With a text 0: as likely as not.
        batch_size: Moments decoded at a time.
        damaged: `"keep"` uses what can be decoded of truncated and corrupt files.
        channel: `"first"` or `"mean"` of several audio channels; default: the processor's.
        audio_track: Which audio track of files that have several: its number, counted from 0, or its language such as
            `"de"`. Default: the one that a player plays.
        fingerprint: `model_fingerprint` of model and processor where it is known, to spare computing it again.
        progress: Called with seconds done and seconds in all (0 where unknown).

    Returns:
        A `LocalizationResult`.

    Raises:
        InferenceError: The model has one tower or, for a text, no text encoder; an argument cannot work; or no moment
            has what is compared.
        MediaError: The video or its audio cannot be read.
    """
    base = cast(CavMaeSyncModel, model.base_model)
    check_towers(base)
    if method is None:
        method = "relevance" if has_relevance(base) else "local" if has_local_heads(base) else "occlusion"
    if method not in METHODS:
        raise InferenceError(f"There is no method {method!r}; use {' or '.join(METHODS)}.")
    check_method(backend_of(base)["backend"], method)
    if method == "local":
        require_local_heads(base)
    if method == "dense":
        require_dense_projections(base, words=text is not None)
    if not (math.isfinite(fps) and fps > 0 and batch_size >= 1):
        raise InferenceError(f"fps is {fps} and batch_size {batch_size}; both must be above 0.")
    query = None if text is None else _TextQuery.of(model, processor, text)
    if least_strength is None:
        least_strength = LEAST_STRENGTH if text is None else LEAST_LOG_ODDS
    processor = processor.with_audio_choice(channel, audio_track)
    mapper = _Mapper(base, processor, query, method=method, block=block, stride=stride)
    parts: list[dict[str, np.ndarray]] = []
    canvas = _Canvas(start or 0.0)
    span = MediaSpan(video, audio=audio, sampling_rate=sampling_rate, start=start, end=end)
    with evaluating(base):
        read = partial(
            _read, processor, hop=1 / fps, num_frames=batch_size, damaged=damaged, device=base.device,
            missing="error" if text is None else "mask",
        )  # fmt: skip
        show = report_seconds(progress, span)
        for inputs in (inputs for _, chunks in read_ahead([span], read) for inputs in chunks):
            parts.append(mapper(inputs))
            length = processor.feature_extractor.audio_length
            windows = cut_windows(inputs["input_values"], inputs.get(OFFSETS), length)
            canvas.add(windows[0], inputs["window_times"][0])
            show(float(inputs["frame_times"][0, -1]))
    values: dict[str, Any] = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    source = source_name(video)
    if not values["present"].any():
        lacking = "both audio and video" if text is None else "a frame"
        raise InferenceError(f"{source}: no moment has {lacking}; name another span or video.")
    settings = {**mapper.settings(), "model": (fingerprint or model_fingerprint(base, processor))[:16]}
    settings |= backend_of(base)
    if processor.audio_track is not None:
        settings["audio_track"] = processor.audio_track
    found = LocalizationResult(
        source=source,
        audio_source=None if audio is None else source_name(audio),
        **values,
        frequencies=processor.feature_extractor.mel_frequencies,
        spectrogram=canvas.finish(float(values["times"][-1]) + 0.5 / fps),
        spectrogram_start=start or 0.0,
        spectrogram_step=_POOLED_FRAMES / FRAMES_PER_SECOND,
        view=_view(video, float(values["times"][0]), processor, damaged),
        fps=fps,
        method=method,
        settings=settings,
        channel=processor.feature_extractor.channel,
        audio_track=processor.audio_track,
        span=(start, end),
        least_strength=least_strength,
        text=text,
    )
    found.remarks += _remarks(found)
    return found


def check_method(backend: str, method: str | None, argument: str = "method") -> None:
    """Refuse ways to make maps that need the model in PyTorch, where it does not run there.

    Args:
        backend: What runs it (`provenance.backend_of`).
        method: One of `METHODS`; `None` for the best.
        argument: What the caller calls it.

    Raises:
        InferenceError: It runs elsewhere.
    """
    if method not in ("local", "cosine") and backend != "torch":
        raise InferenceError(
            f"Maps by {method or 'relevance'} need more of the model than what comes out at its end, and ONNX Runtime "
            "gives no more.",
            hint=(
                Hint("backend", "torch", "have them"),
                Hint(argument, "local", "use local heads, where the model has them"),
                Hint(argument, "cosine", "compare the patches themselves, which points badly"),
            ),
        )


def _read(processor: CavMaeSyncProcessor, span: MediaSpan, **options: Any) -> Iterator[dict[str, Any]]:
    """Inputs of some moments with their `loudness`, without the decoded frames, which are large."""
    for inputs in read_moments(processor, span, return_media=True, **options):
        media, times = inputs.pop("media"), inputs["frame_times"][0].numpy()
        yield inputs | {"loudness": span_loudness(media, times[:, None] + np.array([-NEAR_SECONDS, NEAR_SECONDS]))}


@dataclass(frozen=True)
class _TextQuery:
    """A text to look for.

    Attributes:
        found: Its vectors.
        scale, bias: Of its cosine with a moment; they make log-odds of it.
    """

    found: TextVectors
    scale: float
    bias: float

    @classmethod
    def of(cls, model: Any, processor: CavMaeSyncProcessor, text: str) -> "_TextQuery":
        found = embed_texts(model, processor, [text])
        scale, bias = model.moment_logit_scale.exp().item(), model.moment_logit_bias.item()
        return cls(replace(found, embeds=found.embeds.to(model.device)), scale, bias)

    def scores(self, output: Any, heard: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """The cosine with each moment, and the log-odds of its frame, `(moments,)`; NaN without a frame."""
        audio, video = (
            self.found.project(name, output[f"{name}_embeds"][0].float()) @ self.found.embeds[0]
            for name in ("audio", "video")
        )
        share = float(self.found.video_shares[0])
        mixed = torch.where(heard[0], share * video + (1 - share) * audio, video)
        return mixed.masked_fill(~seen[0], torch.nan), (self.scale * video + self.bias).masked_fill(
            ~seen[0], torch.nan
        )


class _Mapper:
    """Makes the maps of a chunk of moments."""

    def __init__(
        self,
        model: CavMaeSyncModel,
        processor: CavMaeSyncProcessor,
        query: _TextQuery | None,
        *,
        method: str,
        block: tuple[int, int] | None,
        stride: int | None,
    ) -> None:
        self.model, self.query, self.method, self.block, self.stride = model, query, method, block, stride
        extractor = processor.feature_extractor
        self.floor = (extractor.silence - extractor.mean) / extractor.std
        windows = extractor.windows(torch.empty(0, extractor.num_mel_bins), [0.0])
        self.silent = {"input_values": torch.full_like(windows.values[None], self.floor)}
        if extractor.clip_length is not None:
            self.silent[OFFSETS] = windows.offsets[None]

    @cached_property
    def silence(self) -> Tensor:
        """The embedding of a silent window, `(hidden,)`."""
        return self.model.get_audio_features(**move_inputs(self.silent, self.model)).audio_embeds[0, 0]

    @torch.no_grad()
    def __call__(self, inputs: dict[str, Tensor]) -> dict[str, np.ndarray]:
        model = self.model
        moved = move_inputs(inputs, model)
        moved.setdefault("padding_mask_videos", torch.ones_like(moved["padding_mask"]))
        output = model(**moved, output_local_embeds=self.method in ("local", "dense"))
        heard, seen = moved["padding_mask"], moved["padding_mask_videos"]
        if self.query is None:
            both = heard = seen = heard & seen
            for_video, for_audio = output.audio_embeds, output.video_embeds
            asked = for_video - self.silence
        else:
            both = seen
            places = *output.video_embeds.shape[:2], -1
            asked = for_video = for_audio = self.query.found.embeds[0].to(output.video_embeds).expand(places)
        windows = cut_windows(moved["input_values"], moved.get(OFFSETS), model.config.audio_length)
        hidden = None
        if self.method == "cosine":
            video_patches, audio_patches = (
                output[f"{name}_patch_embeds"] if self.query is None
                else self.query.found.project(name, output[f"{name}_patch_embeds"])
                for name in ("video", "audio")
            )  # fmt: skip
            video_maps = patch_maps(for_video, video_patches, model.config.video_grid)
            audio_maps = patch_maps(for_audio, audio_patches, model.config.audio_grid)
            video_maps, audio_maps = video_maps * seen[..., None, None], audio_maps * heard[..., None, None]
        elif self.method == "dense":
            local = output.local_audio_embeds, output.local_video_embeds
            video_maps = dense_maps(*local).unflatten(-1, model.config.video_grid) * seen[..., None, None]
            audio_maps = dense_maps(*local[::-1], "max").unflatten(-1, model.config.audio_grid)
            audio_maps = audio_maps * heard[..., None, None]
        elif self.method == "local":
            video_maps = local_maps(
                output.video_embeds, output.local_video_embeds, asked, model.config.video_grid,
                projection=self._projection("video"),
            )  # fmt: skip
            video_maps, hidden = settle_peaks(
                model, "video", moved["pixel_values_videos"], output.video_embeds, asked, video_maps,
                projection=self._projection("video"),
            )  # fmt: skip
            video_maps = video_maps * seen[..., None, None]
            audio_maps = local_maps(
                output.audio_embeds, output.local_audio_embeds, for_audio, model.config.audio_grid, present=heard,
                projection=self._projection("audio"),
            )  # fmt: skip
        elif self.method == "relevance":
            video_maps, hidden = relevance_maps(
                model, "video", moved["pixel_values_videos"], asked, present=seen, block=self.block,
                projection=self._projection("video"),
            )  # fmt: skip
            audio_maps = relevance_maps(
                model, "audio", windows, for_audio, present=heard, fill=self.floor,
                projection=self._projection("audio"),
            ).maps  # fmt: skip
        else:
            video_maps = occlusion_maps(
                model, "video", moved["pixel_values_videos"], asked, present=seen, block=self.block,
                stride=self.stride, projection=self._projection("video"),
            )  # fmt: skip
            audio_maps = occlusion_maps(
                model, "audio", windows, for_audio, present=heard, stride=self.stride, fill=self.floor,
                projection=self._projection("audio"),
            )  # fmt: skip
        if self.query is None:
            if hidden is None:
                hidden = embed_without(
                    model, "video", moved["pixel_values_videos"], video_maps.flatten(-2).argmax(-1), block=self.block
                )
            strength = source_strength(
                output.audio_embeds[0], output.video_embeds[0], silence=self.silence, hidden=hidden[0],
                temperature=model.config.temperature,
            ).masked_fill(~both[0], torch.nan)  # fmt: skip
            similarity = output.similarity[0].diagonal().float().masked_fill(~both[0], torch.nan)
        else:
            similarity, strength = self.query.scores(output, heard, seen)
        made = similarity[None], strength[None], video_maps, audio_maps
        if not all(bool(values[both].isfinite().all()) for values in made):
            first = format_clock(float(inputs["frame_times"][0, 0]))
            raise not_finite_error(f"A map of the moments from {first} on", model)
        return {
            "times": inputs["frame_times"][0].numpy(),
            "window_times": inputs["window_times"][0].numpy(),
            "present": both[0].cpu().numpy(),
            "similarity": similarity.cpu().numpy(),
            "strength": strength.cpu().numpy(),
            "loudness": inputs["loudness"],
            "video_maps": video_maps[0].float().cpu().numpy(),
            "audio_maps": audio_maps[0].float().cpu().numpy(),
        }

    def _projection(self, modality: str) -> Tensor | None:
        """Weights that bring embeddings into the space of the text, if that is another."""
        return None if self.query is None else self.query.found.projections.get(modality)

    def settings(self) -> dict[str, Any]:
        """What the maps depend on besides the model."""
        if self.method in ("cosine", "dense"):
            return {}
        config = self.model.config
        video = (None if self.method == "local" else self.block) or default_block(config.video_grid)
        blocks = {"video_block": list(video), "audio_block": list(default_block(config.audio_grid))}
        return blocks if self.method in ("local", "relevance") else blocks | {"audio_against": "silence"}


class _Canvas:
    """Puts a video's spectrogram together from its windows, which overlap."""

    def __init__(self, start: float) -> None:
        self.first = round(start * FRAMES_PER_SECOND)
        self.reached = self.first  # spectrogram frame of the video up to which there are pieces
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


def _view(video: Any, time: float, processor: CavMaeSyncProcessor, damaged: str) -> View:
    """The view, from one decoded frame: headers do not tell the size of a rotated video."""
    media = decode_media(video, num_frames=1, start=max(0.0, time - 0.05), end=time + 2.0, want_audio=False,
                         damaged=damaged, alignment="time")  # fmt: skip
    assert media.frames is not None  # want_video makes its absence an error
    return View.of(media.frames.shape[2], media.frames.shape[3], processor.video_processor)


def _remarks(found: LocalizationResult) -> list[str]:
    remarks = []
    if found.text is not None:
        best = int(np.nanargmax(found.similarity))
        remarks.append(
            f'"{printable(found.text)}" fits best at {format_clock(found.times[best])} (cosine '
            f"{found.similarity[best]:.2f})."
        )
    total, absent, silent = len(found.times), int((~found.present).sum()), int((found.present & found.silent).sum())
    weak = int((found.compared & ~found.has_source).sum())
    if absent:
        lacking = "audio or video" if found.text is None else "a frame"
        remarks.append(f"{absent} of {total} moments lack {lacking}; their maps are empty.")
    if silent and found.text is None:
        remarks.append(f"{silent} of {total} moments are silent.")
    if weak:
        what = "finds no source in the frame" if found.text is None else "does not see it in the frame"
        remarks.append(
            f"At {weak} of {total} moments the model {what} (strength below {found.least_strength:g} nats); their "
            "maps mean little and are dimmed."
        )
    return remarks
