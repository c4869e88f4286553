# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How do a video file, or frames and a waveform, become the model's inputs, each window on the time of its frame?

`CavMaeSyncProcessor` decodes both tracks of a file in one pass and hands frames and sound to the video processor and
the feature extractor. Which frames are taken and where windows lie is one rule, `feature_extractor.alignment`.
"""

import copy
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin
from transformers.utils import TensorType
from transformers.video_utils import VideoMetadata

from .auto_map_cavmae_sync import AUTO_MAP
from .feature_extraction_cavmae_sync import FRAMES_PER_SECOND, CavMaeSyncFeatureExtractor
from .media_cavmae_sync import decode_media
from .media_stream_cavmae_sync import MediaChunk, iter_media
from .video_processing_cavmae_sync import CavMaeSyncVideoProcessor, is_media_source, split_clips

# Sound beyond half a window that a chunk of a stream needs: the spectrogram's own 25 ms and a margin for rounding.
_CONTEXT_MARGIN_SECONDS = 0.1
_AUDIO_OPTIONS = frozenset({"padding", "max_length", "truncation", "pad_to_multiple_of", "return_attention_mask"})


@dataclass
class _Clip:
    """One clip on its way through the processor.

    Attributes:
        frames: What the video processor takes, `None` without video.
        times: Times of the frames in seconds, `None` when nobody knows them.
        waveform: `(num_samples,)`, `None` without sound.
        duration: Seconds, `None` when unknown.
        name: For messages.
    """

    name: str
    frames: Any = None
    times: list[float] | None = None
    waveform: Any = None
    duration: float | None = None


class CavMaeSyncProcessor(ProcessorMixin):
    """Turns videos with sound into `input_values` and `pixel_values_videos`, window i on the time of frame i.

    Args:
        feature_extractor: A [`CavMaeSyncFeatureExtractor`]; its `alignment` rules frames and windows alike.
        video_processor: A [`CavMaeSyncVideoProcessor`].
    """

    def __init__(self, feature_extractor: Any = None, video_processor: Any = None) -> None:
        super().__init__(feature_extractor, video_processor)
        # Written into `processor_config.json`. Set here, so that saving changes nothing and loading gives the same.
        self.auto_map = dict(AUTO_MAP)

    @classmethod
    def from_config(cls, config: Any, **kwargs: Any) -> "CavMaeSyncProcessor":
        """The processor that fits a model's configuration.

        Args:
            config: A `CavMaeSyncConfig`.
            kwargs: Settings of the feature extractor that the configuration does not hold, such as
                `alignment="reference"`, `channel`, `mean` and `std`.
        """
        feature_extractor = CavMaeSyncFeatureExtractor(
            num_frames=config.num_frames,
            audio_length=config.audio_length,
            num_mel_bins=config.num_mel_bins,
            **kwargs,
        )
        side = config.image_size
        video_processor = CavMaeSyncVideoProcessor(
            size={"shortest_edge": side},
            crop_size={"height": side, "width": side},
            num_frames=config.num_frames,
            alignment=feature_extractor.alignment,
        )
        return cls(feature_extractor, video_processor)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the inputs that the model takes from this processor."""
        return ["pixel_values_videos", "input_values", "padding_mask_videos", "padding_mask"]

    def __call__(
        self,
        videos: Any = None,
        audio: Any = None,
        text: Any = None,
        images: Any = None,
        *,
        sampling_rate: int | None = None,
        num_frames: int | None = None,
        frame_times: Any = None,
        fps: float | Sequence[float] | None = None,
        video_metadata: Any = None,
        do_sample_frames: bool = False,
        start: float | Sequence[float | None] | None = None,
        end: float | Sequence[float | None] | None = None,
        missing: str = "error",
        damaged: str = "error",
        return_tensors: str | TensorType | None = None,
        return_times: bool = False,
        device: str | torch.device | None = None,
        audio_kwargs: dict[str, Any] | None = None,
        videos_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepare one clip or a batch.

        Args:
            videos: A file (path, address, bytes, file object) whose two tracks are decoded in one pass, or decoded
                frames (array, tensor or list of pictures), or a list of either.
            audio: Waveforms or files of their own, one per video; then the videos' own sound is not read.
            text: Not taken; there is no text side.
            images: Not taken; pass pictures as `videos`.
            sampling_rate: Rate in Hz of waveforms in `audio`; required with them.
            num_frames: Frames and windows per clip; default: the feature extractor's.
            frame_times: Seconds from the start of each clip: the frames to take from files, or the times of decoded
                frames. `(num_frames,)` for one clip, one row per clip for several.
            fps: Frame rate of decoded frames; frame i is then at `i / fps`.
            video_metadata: Instead of `fps`: `{"fps": ..., "frames_indices": ...}` per clip, as transformers' loaders
                return it.
            do_sample_frames: Take `num_frames` of the decoded frames, by the alignment; needs `fps` or
                `video_metadata` unless the clip is all the sound there is.
            start: Where in the files the clips start, seconds (one value or one per clip); times count from there.
            end: Where they end, seconds.
            missing: `"error"`, or `"mask"` to mark the windows or frames of an absent track as absent.
            damaged: `"error"`, or `"keep"` to use what can be decoded of truncated and corrupt files.
            return_tensors: `"pt"`, `"np"` or `None` (lists of arrays, one per clip).
            return_times: Also return `frame_times` `(batch, num_frames)` and, with sound, `window_times`
                `(batch, num_frames, 2)` and `window_coverage` `(batch, num_frames)`.
            device: Where to compute spectrograms and pixels.
            audio_kwargs: More arguments for the feature extractor.
            videos_kwargs: More arguments for the video processor.
            kwargs: Arguments of the video processor (`do_resize`, `size`, ...).

        Returns:
            `pixel_values_videos` `(batch, num_frames, 3, height, width)` and `input_values`
            `(batch, num_frames, audio_length, num_mel_bins)`, as far as there are videos and sound; `padding_mask`
            `(batch, num_frames)` bool with the latter, True where a window is present; `padding_mask_videos` only
            when a frame is absent, so that the model need not look for padding where there is none.

        Raises:
            ValueError: An input cannot be used (`MediaError` for files); the message says which, why and the remedy.
        """
        if text is not None or images is not None:
            raise ValueError("This processor takes `videos` and `audio` only; there is no text or image side.")
        if videos is None and audio is None:
            raise ValueError("Nothing to process: pass `videos`, `audio` or both.")
        options = dict(videos_kwargs or {})
        sound_options = dict(audio_kwargs or {})
        sampling_rate = sound_options.pop("sampling_rate", sampling_rate)
        for name, value in kwargs.items():
            if name in _AUDIO_OPTIONS:
                sound_options[name] = value
            elif name in _names_of(self.video_processor.valid_kwargs):
                options[name] = value
            else:
                raise TypeError(f"Unknown argument {name!r}; see the arguments of the processor's call.")
        count = self.feature_extractor.num_frames if num_frames is None else num_frames
        clips = self._gather(
            videos, audio, sampling_rate, count, frame_times, start, end, {"missing": missing, "damaged": damaged}
        )
        if videos is not None:
            self._place_frames(clips, videos, fps, video_metadata, num_frames, do_sample_frames)
        rate = sampling_rate
        if audio is None or all(map(is_media_source, _split_audio(audio))):
            rate = rate or self.feature_extractor.sampling_rate
        output: dict[str, Any] = {}
        with_sound = audio is not None or any(is_media_source(clip) for clip in split_clips(videos))
        self._settle_times(clips, count, rate)
        if videos is not None:
            output |= self._pixels(clips, count, options, device)
        if with_sound:
            output |= self._windows(clips, count, rate, return_times, device, sound_options)
        elif return_times and all(clip.times is not None for clip in clips):
            output["frame_times"] = _stack_rows([clip.times for clip in clips])
        return _finish(output, return_tensors)

    def stream(
        self,
        video: Any,
        hop: float = 0.625,
        num_frames: int | None = None,
        start: float | None = None,
        end: float | None = None,
        missing: str = "error",
        damaged: str = "error",
        return_tensors: str | TensorType = "pt",
        device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> Iterator[BatchFeature]:
        """Read a film of any length in constant memory: aligned frames and windows, some at a time.

        Frame k is the one on screen at `(k + 0.5) * hop`, and its window is centred on it with the true sound on
        either side, over the borders of chunks. So a clip of `n * hop` seconds gives what a call with `num_frames=n`
        and `alignment="time"` gives. (The published mapping is one for whole clips; a stream is aligned in time.)

        Args:
            video: Path, address, bytes or file object.
            hop: Seconds from one frame to the next; 0.625 is the distance in a clip of 10 s with 16 frames.
            num_frames: Frames per chunk; default: the feature extractor's. The last chunk may be shorter.
            start: Where in the file to start, seconds. What lies before counts as silence.
            end: Where to end, seconds.
            missing: `"error"`, or `"mask"` to mark an absent track as absent.
            damaged: `"error"`: a truncated or corrupt file ends in an error, after all that could be decoded has been
                handed out. `"keep"`: it ends there without one.
            return_tensors: `"pt"` or `"np"`.
            device: Where to compute spectrograms and pixels.
            kwargs: Arguments of the video processor.

        Yields:
            A batch of one clip as `__call__` returns it, with `frame_times` `(1, num_frames)`, `window_times`
            `(1, num_frames, 2)`, both in seconds of the *file*, and `window_coverage` `(1, num_frames)`.

        Raises:
            MediaError: The file cannot be used.
        """
        extractor = copy.copy(self.feature_extractor)
        extractor.alignment = "time"
        context = extractor.audio_length / 2 / FRAMES_PER_SECOND + _CONTEXT_MARGIN_SECONDS
        chunks = iter_media(
            video,
            hop=hop,
            num_frames=extractor.num_frames if num_frames is None else num_frames,
            context=context,
            start=start,
            end=end,
            sampling_rate=extractor.sampling_rate,
            channel=extractor.channel,
            missing=missing,
            damaged=damaged,
        )
        for chunk in chunks:
            clip = _Clip(chunk.source, chunk.frames, chunk.frame_times.tolist())
            output = self._pixels([clip], len(chunk.frame_times), kwargs, device)
            output |= _chunk_windows(extractor, chunk, device)
            yield _finish(output, return_tensors)

    def _gather(
        self,
        videos: Any,
        audio: Any,
        sampling_rate: int | None,
        count: int,
        frame_times: Any,
        start: Any,
        end: Any,
        rules: dict[str, str],
    ) -> list[_Clip]:
        """Decode what are files and pair videos with their sound."""
        pictures = split_clips(videos) if videos is not None else None
        sounds = _split_audio(audio) if audio is not None else None
        number = len(pictures if pictures is not None else sounds or [])
        if pictures is not None and sounds is not None and len(pictures) != len(sounds):
            raise ValueError(
                f"Got {len(pictures)} videos and {len(sounds)} waveforms; pass one waveform per video (several "
                "channels of one clip as `[array]`, channels first)."
            )
        times = _time_rows(frame_times, number)
        starts, ends = _per_clip("start", start, number), _per_clip("end", end, number)
        extractor = self.feature_extractor
        rate = sampling_rate or extractor.sampling_rate

        def load(position: int) -> _Clip:
            clip = _Clip(f"Clip {position}", times=times[position])
            span = {"start": starts[position], "end": ends[position], "channel": extractor.channel, **rules}
            span["threads"] = 1 if number > 1 else 0
            picture = pictures[position] if pictures is not None else None
            if is_media_source(picture):
                media = decode_media(
                    picture,
                    num_frames=count,
                    alignment=extractor.alignment,
                    frame_times=times[position],
                    sampling_rate=extractor.sampling_rate,
                    want_audio=sounds is None,
                    **span,
                )
                clip = _Clip(media.source, media.frames, times[position], media.waveform, media.duration)
                if media.frame_times is not None:
                    clip.times = media.frame_times.tolist()
            elif pictures is not None:
                clip.frames = picture
                if picture is None and rules["missing"] == "error":
                    raise ValueError(f"Clip {position} is None; pass missing='mask' to mark its frames as absent.")
            if sounds is not None:
                clip.waveform = sounds[position]
                if is_media_source(clip.waveform):
                    media = decode_media(clip.waveform, sampling_rate=rate, want_video=False, **span)
                    clip.waveform = media.waveform
                    clip.duration = clip.duration or media.duration
                elif clip.waveform is None and rules["missing"] == "error":
                    raise ValueError(f"The sound of clip {position} is None; pass missing='mask' to mark it absent.")
            return clip

        workers = min(number, os.cpu_count() or 1)
        if workers <= 1:
            return [load(position) for position in range(number)]
        with ThreadPoolExecutor(workers) as pool:  # PyAV decodes without holding the interpreter's lock
            return list(pool.map(load, range(number)))

    def _place_frames(
        self, clips: list[_Clip], videos: Any, fps: Any, metadata: Any, num_frames: int | None, sample: bool
    ) -> None:
        """Give decoded frames their times, and take some of them where that is asked for."""
        rates = _per_clip("fps", fps, len(clips))
        known = list(metadata) if isinstance(metadata, list | tuple) else [metadata] * len(clips)
        if len(known) != len(clips):
            raise ValueError(f"`video_metadata` has {len(known)} entries for {len(clips)} clips; give one per clip.")
        for clip, given, rate, facts in zip(clips, split_clips(videos), rates, known, strict=True):
            if is_media_source(given) or clip.frames is None:
                continue
            clip.frames = _as_frame_list(clip.frames)
            total = len(clip.frames)
            facts = dict(facts) if facts is not None else {}
            rate = rate or facts.get("fps")
            if rate is not None and not rate > 0:
                raise ValueError(f"{clip.name}: the frame rate must be positive, got {rate}.")
            numbers = facts.get("frames_indices")
            numbers = list(range(total)) if numbers is None else [int(index) for index in numbers]
            if len(numbers) != total:
                raise ValueError(f"{clip.name}: {len(numbers)} frame indices for {total} frames; give one per frame.")
            if clip.times is None and rate is not None:
                clip.times = [index / rate for index in numbers]
            if sample:
                places = self.video_processor.sample_frames(
                    VideoMetadata(total_num_frames=total, fps=rate),
                    num_frames=self.feature_extractor.num_frames if num_frames is None else num_frames,
                    alignment=self.feature_extractor.alignment,
                ).tolist()
                clip.frames = _take(clip.frames, places)
                clip.times = None if clip.times is None else [clip.times[place] for place in places]
                total = len(places)
            if clip.times is not None and len(clip.times) != total:
                raise ValueError(
                    f"{clip.name}: {len(clip.times)} frame times for {total} frames; give one time per frame."
                )
            if num_frames is not None and total != num_frames:
                raise ValueError(
                    f"{clip.name}: num_frames is {num_frames} but the clip has {total} frames; leave num_frames "
                    "out, or pass do_sample_frames=True with fps to take some of them."
                )

    def _settle_times(self, clips: list[_Clip], count: int, rate: int | None) -> None:
        """Give the clips whose frames have no known times the default ones, as far as their length is known."""
        for clip in clips:
            if clip.times is not None:
                continue
            if clip.duration is None and clip.waveform is not None and rate:
                clip.duration = np.shape(clip.waveform)[-1] / rate
            if clip.duration is None and clip.frames is not None:
                continue
            frames = count if clip.frames is None else len(clip.frames)
            clip.times = self.feature_extractor.default_frame_times(clip.duration or 0.0, frames)

    def _pixels(self, clips: list[_Clip], count: int, options: dict[str, Any], device: Any) -> dict[str, torch.Tensor]:
        """Pixels of all clips; zeros and a mask for those without frames."""
        present = [clip.frames for clip in clips if clip.frames is not None]
        mask = None
        if present:
            done = self.video_processor(
                present,
                do_sample_frames=False,
                return_tensors="pt",
                **options,
                **({"device": device} if device else {}),
            )
            pixels, mask = done["pixel_values_videos"], done.get("padding_mask_videos")
        else:
            crop = self.video_processor.crop_size
            pixels = torch.zeros(0, count, 3, crop["height"], crop["width"], device=device)
        if len(present) < len(clips):
            if mask is None:
                mask = torch.ones(pixels.shape[:2], dtype=torch.bool, device=pixels.device)
            places = [place for place, clip in enumerate(clips) if clip.frames is not None]
            pixels, mask = (_spread(value, places, len(clips)) for value in (pixels, mask))
        output = {"pixel_values_videos": pixels}
        if mask is not None and not bool(mask.all()):
            output["padding_mask_videos"] = mask
        return output

    def _windows(
        self,
        clips: list[_Clip],
        count: int,
        rate: int | None,
        return_times: bool,
        device: Any,
        options: dict[str, Any],
    ) -> dict[str, torch.Tensor]:
        """Windows of all clips on their frames' times."""
        rows = [clip.times for clip in clips]
        if any(row is None for row in rows):
            # Frames without times, sound without frames' count: the centres of equal parts of the clip.
            raise ValueError("The times of the frames are unknown; pass `fps`, `frame_times` or the sound's duration.")
        return dict(
            self.feature_extractor(
                [clip.waveform for clip in clips],
                sampling_rate=rate,
                frame_times=rows,
                return_tensors="pt",
                return_times=return_times,
                device=device,
                **options,
            )
        )


def _chunk_windows(extractor: Any, chunk: MediaChunk, device: Any) -> dict[str, torch.Tensor]:
    """Windows of one chunk of a stream; times in seconds of the file."""
    times = chunk.frame_times.tolist()
    waveform = chunk.waveform
    # Less than one spectrogram frame at the end of a film belongs to no frame of the whole, either.
    too_short = waveform is None or (len(waveform) < extractor.window_samples and chunk.waveform_start > 0)
    if waveform is None or too_short or not len(waveform):
        log_mel = torch.empty(0, extractor.num_mel_bins, device=device)
    else:
        log_mel = extractor.log_mel(waveform if device is None else waveform.to(device))
    windows = extractor.windows(log_mel, times, first_frame=chunk.waveform_start * FRAMES_PER_SECOND)
    starts = torch.tensor(windows.starts, dtype=torch.float64)
    spans = torch.stack((starts, starts + extractor.audio_length), dim=1) / FRAMES_PER_SECOND + chunk.start
    return {
        "input_values": windows.values.unsqueeze(0),
        "padding_mask": windows.mask.unsqueeze(0),
        "frame_times": (chunk.frame_times + chunk.start).unsqueeze(0),
        "window_times": spans.unsqueeze(0),
        "window_coverage": windows.coverage.unsqueeze(0),
    }


def _split_audio(audio: Any) -> list[Any]:
    """Tell one waveform or file from several."""
    if is_media_source(audio):
        return [audio]
    if isinstance(audio, np.ndarray | torch.Tensor):
        if audio.ndim == 0:
            raise ValueError("audio is a single number; pass a waveform `(num_samples,)`.")
        return [audio] if audio.ndim == 1 else list(audio)
    if not isinstance(audio, list | tuple) or not len(audio):
        raise ValueError(f"audio must be a waveform, a file or a list of them, got {type(audio).__name__}.")
    if isinstance(audio[0], int | float | np.number):
        return [np.asarray(audio, dtype=np.float32)]
    return list(audio)


def _time_rows(frame_times: Any, count: int) -> list[list[float] | None]:
    """One row of times per clip."""
    if frame_times is None:
        return [None] * count
    rows = list(frame_times)
    if rows and np.ndim(rows[0]) == 0:
        rows = [rows]
    if len(rows) != count:
        raise ValueError(f"frame_times has {len(rows)} rows for {count} clips; give one row of times per clip.")
    return [[float(time) for time in row] for row in rows]


def _per_clip(name: str, value: Any, count: int) -> list[Any]:
    """One value per clip out of one for all or a list."""
    if not isinstance(value, list | tuple | np.ndarray):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name} has {len(value)} values for {count} clips; give one for all or one per clip.")
    return list(value)


def _as_frame_list(frames: Any) -> Any:
    """Frames as something with a length and an order: a single picture becomes a list of one."""
    if isinstance(frames, np.ndarray | torch.Tensor):
        coloured = frames.ndim == 3 and not {frames.shape[0], frames.shape[-1]}.isdisjoint((1, 3, 4))
        return frames[None] if frames.ndim == 2 or coloured else frames
    return list(frames) if isinstance(frames, list | tuple) else [frames]


def _take(frames: Any, places: list[int]) -> Any:
    return [frames[place] for place in places] if isinstance(frames, list) else frames[places]


def _names_of(typed: Any) -> set[str]:
    """Names that a `TypedDict` of arguments allows."""
    return set(typed.__required_keys__) | set(typed.__optional_keys__)


def _spread(values: torch.Tensor, places: list[int], count: int) -> torch.Tensor:
    """Put rows at their places among `count` rows of zeros."""
    result = values.new_zeros((count, *values.shape[1:]))
    if places:
        result[torch.tensor(places, device=values.device)] = values
    return result


def _stack_rows(rows: Sequence[Any]) -> torch.Tensor:
    """Rows of times as `(batch, longest)` float64, filled with zeros."""
    result = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.float64)
    for place, row in enumerate(rows):
        result[place, : len(row)] = torch.tensor(row, dtype=torch.float64)
    return result


def _finish(output: dict[str, Any], return_tensors: str | TensorType | None) -> BatchFeature:
    """Hand out tensors, arrays, or a list of arrays per clip."""
    if return_tensors is None:
        return BatchFeature({name: list(value.cpu().numpy()) for name, value in output.items()})
    if TensorType(return_tensors) == TensorType.PYTORCH:
        return BatchFeature(output)
    return BatchFeature({name: value.cpu().numpy() for name, value in output.items()}, tensor_type=return_tensors)


__all__ = ["CavMaeSyncProcessor"]
