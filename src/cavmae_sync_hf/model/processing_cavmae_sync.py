# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""How do a video file, or frames and a waveform, become the model's inputs, each window on the time of its frame?

`CavMaeSyncProcessor` decodes both tracks of a file in one pass and hands frames and sound to the video processor and
the feature extractor. Which frames are taken and where windows lie is one rule, `feature_extractor.alignment`.
"""

import copy
import math
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin
from transformers.utils import TensorType
from transformers.video_utils import VideoMetadata

from .alignment_cavmae_sync import FRAMES_PER_SECOND, window_seconds, window_times
from .auto_map_cavmae_sync import AUTO_MAP
from .clips_cavmae_sync import Clip, Wishes, as_frame_list, check_rate, check_tracks, pair_clips, share_out
from .feature_extraction_cavmae_sync import CavMaeSyncFeatureExtractor
from .media_cavmae_sync import decode_media
from .media_stream_cavmae_sync import DUB_CONTEXT_SECONDS, MediaChunk, iter_media, iter_waveform, with_sound_of
from .video_processing_cavmae_sync import CavMaeSyncVideoProcessor, is_media_source, pad_clips
from .waveforms_cavmae_sync import samples_and_rate, split_waveforms

# Sound beyond half a window that a chunk of a stream needs: the spectrogram's own 25 ms and a margin for rounding.
_CONTEXT_MARGIN_SECONDS = 0.1
_AUDIO_OPTIONS = frozenset({"padding", "max_length", "truncation", "pad_to_multiple_of", "return_attention_mask"})
# Arguments of the call that concern frames and windows alike; one of the two alone would not know of them.
_SHARED_ARGUMENTS = frozenset(
    {
        "num_frames",
        "frame_times",
        "fps",
        "video_metadata",
        "do_sample_frames",
        "return_tensors",
        "return_times",
        "device",
    }
)


class CavMaeSyncProcessor(ProcessorMixin):
    """Turns videos with sound into `input_values` and `pixel_values_videos`, window i on the time of frame i.

    Absent windows and frames are marked by False in `padding_mask` and `padding_mask_videos`: those of a missing
    track, those that fill up clips with fewer frames than the longest of a batch, and, with `alignment="time"`,
    windows that lie wholly outside the clip. A window partly outside counts as present, unless no more than
    `feature_extractor.min_window_coverage` of it lies inside; `return_times=True` tells the share of each,
    `window_coverage`. The model takes all that this returns, `model(**inputs)`.

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
        fps: float | Sequence[float | None] | None = None,
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
            audio: Waveforms or files of their own, one per video; then the videos' own sound is not read. An array of
                two rows is two clips; `[array]` is one clip of two channels. `datasets`' `{"array": ...,
                "sampling_rate": ...}` is taken as well.
            text: Not taken; there is no text side.
            images: Not taken; pass pictures as `videos`.
            sampling_rate: Rate in Hz of waveforms in `audio`; required with them. Files say theirs themselves.
            num_frames: Frames and windows per clip; default: the feature extractor's.
            frame_times: Seconds from the start of each clip: the frames to take from files, or the times of decoded
                frames. `(num_frames,)` for one clip, one row per clip for several.
            fps: Frame rate of decoded frames (one value or one per clip); frame i is then at `i / fps`.
            video_metadata: Instead of `fps`: `{"fps": ..., "frames_indices": ...}` per clip, as transformers' loaders
                return it.
            do_sample_frames: Take `num_frames` of the decoded frames, by the alignment; needs `fps` or
                `video_metadata` unless the clip is all the sound there is.
            start: Where in the files the clips start, seconds (one value or one per clip); times count from there.
            end: Where they end, seconds.
            missing: `"error"`, or `"mask"` to mark the windows or frames of an absent track as absent. Decoded frames
                without sound beside files with sound have an absent track, too.
            damaged: `"error"`, or `"keep"` to use what can be decoded of truncated and corrupt files.
            return_tensors: `"pt"`, `"np"` or `None` (lists of arrays, one per clip).
            return_times: Also return `frame_times` `(batch, num_frames)` and, with sound, `window_times`
                `(batch, num_frames, 2)`, in seconds and NaN where a shorter clip is filled up, and `window_coverage`
                `(batch, num_frames)`, the share of each window that lies inside the clip.
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
            TypeError: An argument is unknown.
        """
        if text is not None or images is not None:
            raise ValueError("This processor takes `videos` and `audio` only; there is no text or image side.")
        if videos is None and audio is None:
            raise ValueError("Nothing to process: pass `videos`, `audio` or both.")
        _check_rules(missing, damaged, num_frames)
        picture_options, sound_options = self._sort_options(kwargs, audio_kwargs, videos_kwargs)
        rate = _one_rate(sampling_rate, sound_options.pop("sampling_rate", None))
        clips = pair_clips(videos, audio)
        own_sound = audio is None and any(is_media_source(clip.video) for clip in clips)
        wishes = Wishes(
            num_frames, rate, do_sample_frames, missing, damaged, device, picture_options, sound_options,
            audio is not None or own_sound, own_sound, 1 if len(clips) > 1 else 0,
        )  # fmt: skip
        share_out(clips, wishes, frame_times, fps, video_metadata, start, end)
        check_rate(clips, rate, self.feature_extractor.sampling_rate)
        if missing == "error":
            check_tracks(clips, videos is not None, audio is not None, own_sound)
        self._load_all(clips, wishes)
        output: dict[str, Any] = {}
        for clip in clips:
            self._settle_times(clip, wishes)
        if videos is not None:
            output |= self._stack_pixels(clips, wishes)
        if wishes.with_sound:
            output |= self._windows(clips, wishes, return_times)
        elif return_times:
            output["frame_times"] = _stack_rows(_known_times(clips))
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
        want_audio: bool = True,
        want_video: bool = True,
        audio: Any = None,
        sampling_rate: int | None = None,
        return_tensors: str | TensorType = "pt",
        return_media: bool = False,
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
            want_audio: Whether sound is decoded; if not, all windows are absent.
            want_video: Whether pictures are decoded; if not, all frames are absent, windows lie on the centres of
                the steps themselves, and files without a video track will do.
            audio: Another sound track for the film: a file, or a waveform as `__call__` takes one clip's. Its time 0
                is the film's; then the film's own sound is not read. Windows after its end are absent.
            sampling_rate: Rate in Hz of a waveform in `audio`; required with it.
            return_tensors: `"pt"` or `"np"`.
            return_media: Also give each chunk's decoded frames and sound, a `MediaChunk`, as `media`; it is no input
                of the model.
            device: Where to compute spectrograms and pixels.
            kwargs: Arguments of the video processor.

        Yields:
            A batch of one clip as `__call__` returns it, with `frame_times` `(1, num_frames)`, `window_times`
            `(1, num_frames, 2)`, both in seconds of the *file*, and `window_coverage` `(1, num_frames)`.

        Raises:
            MediaError: The file cannot be used (raised with the first chunk).
            ValueError: An argument cannot work; raised at once.
            TypeError: An argument is unknown; raised at once.
        """
        _check_rules(missing, damaged, num_frames)
        options, _ = self._sort_options(kwargs, None, None)
        extractor = copy.copy(self.feature_extractor)
        extractor.alignment = "time"
        context = window_seconds(extractor.audio_length) / 2 + _CONTEXT_MARGIN_SECONDS
        span: dict[str, Any] = {
            "hop": hop,
            "num_frames": extractor.num_frames if num_frames is None else num_frames,
            "start": start,
            "end": end,
        }
        rules: dict[str, Any] = {"missing": missing, "damaged": damaged}
        if audio is None:
            heard: dict[str, Any] = {"sampling_rate": extractor.sampling_rate, "channel": extractor.channel}
            chunks = iter_media(
                video, context=context, want_audio=want_audio, want_video=want_video, **span, **heard, **rules
            )
        else:
            if not want_audio or not want_video:
                raise ValueError("`audio` goes with the pictures of `video`; leave out `want_audio` and `want_video`.")
            sounds = self._sound_of_its_own(audio, sampling_rate, context + DUB_CONTEXT_SECONDS, span, rules)
            chunks = with_sound_of(iter_media(video, context=0.0, want_audio=False, **span, **rules), sounds)
        return self._stream_chunks(chunks, extractor, options, device, return_tensors, return_media)

    def _sound_of_its_own(
        self, audio: Any, sampling_rate: int | None, context: float, span: dict[str, Any], rules: dict[str, Any]
    ) -> Iterator[MediaChunk]:
        """The sound of a stream from a file or waveform of its own."""
        extractor = self.feature_extractor
        rate = extractor.sampling_rate
        if is_media_source(audio):
            check_rate([Clip(0, "The sound", audio=audio)], sampling_rate, rate)
            heard: dict[str, Any] = {"sampling_rate": rate, "channel": extractor.channel}
            return iter_media(audio, context=context, want_video=False, **span, **heard, **rules)
        clips, _ = split_waveforms(audio)
        if len(clips) != 1:
            raise ValueError(f"`audio` is {len(clips)} waveforms for one film; give one (its channels as `[array]`).")
        samples, own_rate = samples_and_rate(clips[0], sampling_rate)
        if samples is None:
            raise ValueError("`audio` is a list of None; give the film's sound, or leave `audio` out.")
        return iter_waveform(extractor._load(samples, own_rate, 0, None), rate, context=context, **span)

    def _stream_chunks(
        self,
        chunks: Iterator[MediaChunk],
        extractor: Any,
        options: dict[str, Any],
        device: Any,
        return_tensors: Any,
        return_media: bool = False,
    ) -> Iterator[BatchFeature]:
        """The model's inputs of each chunk of a stream."""
        for chunk in chunks:
            pixels = self._pixels(chunk.frames, chunk.source, options, device)
            output = pad_clips([pixels], len(chunk.frame_times)) | _chunk_windows(extractor, chunk, device)
            batch = _finish(output, return_tensors)
            if return_media:
                batch["media"] = chunk
            yield batch

    def _sort_options(
        self, kwargs: dict[str, Any], audio_kwargs: dict[str, Any] | None, videos_kwargs: dict[str, Any] | None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arguments for the video processor and for the feature extractor; refuses what neither would heed."""
        pictures, sounds = dict(videos_kwargs or {}), dict(audio_kwargs or {})
        for name in (*kwargs, *pictures, *sounds):
            if name == "alignment":
                raise ValueError(
                    "`alignment` is one setting for frames and windows and no argument of a call; set "
                    '`processor.feature_extractor.alignment = "reference"` (or "time").'
                )
        for group, options in (("videos_kwargs", pictures), ("audio_kwargs", sounds)):
            for name in sorted(_SHARED_ARGUMENTS & set(options)):
                raise ValueError(
                    f"`{name}` in `{group}` would reach frames or windows alone; pass it to the call itself, beside "
                    "`videos`."
                )
        typed = self.video_processor.valid_kwargs
        known = (set(typed.__required_keys__) | set(typed.__optional_keys__)) - _SHARED_ARGUMENTS - {"return_metadata"}
        for name, value in kwargs.items():
            (sounds if name in _AUDIO_OPTIONS else pictures)[name] = value
        for name in pictures:
            if name not in known:
                raise TypeError(f"Unknown argument {name!r}; see the arguments of the processor's call.")
        return pictures, sounds

    def _load_all(self, clips: list[Clip], wishes: Wishes) -> None:
        """Read clips side by side and make pixels of each at once; only as many as threads hold full-size frames."""
        workers = min(sum(clip.has_file for clip in clips), os.cpu_count() or 1)
        if workers <= 1:
            for clip in clips:
                self._make_pixels(clip, self._read(clip, wishes), wishes)
            return
        # torch spreads the work on pixels over the cores itself, so one clip at a time is enough; decoding goes on.
        turn = threading.Lock()

        def load(clip: Clip) -> None:
            frames = self._read(clip, wishes)
            with turn:
                self._make_pixels(clip, frames, wishes)

        with ThreadPoolExecutor(workers) as pool:  # PyAV decodes without holding the interpreter's lock
            list(pool.map(load, clips))

    def _make_pixels(self, clip: Clip, frames: Any, wishes: Wishes) -> None:
        """Turn the frames of a clip into its pixels."""
        if frames is not None:
            clip.pixels = self._pixels(frames, clip.name, wishes.picture_options, wishes.device)

    def _read(self, clip: Clip, wishes: Wishes) -> Any:
        """Decode a clip, or place its decoded frames; returns the frames."""
        frames = None
        if is_media_source(clip.video):
            frames = self._decode(clip, wishes)
        elif clip.video is not None:
            frames = self._place_frames(clip, wishes)
        clip.video = None
        if is_media_source(clip.audio):
            rate = self.feature_extractor.sampling_rate
            media = decode_media(clip.audio, sampling_rate=rate, want_video=False, **self._span(clip, wishes))
            self._set_sound(clip, media.waveform, rate, media.duration)
        elif clip.audio is not None:
            samples, rate = samples_and_rate(clip.audio, wishes.sampling_rate, clip.position)
            shape = np.shape(samples) if isinstance(samples, np.ndarray | torch.Tensor) else (len(samples),)
            self._set_sound(clip, samples, rate, shape[-1] / rate if shape else None)
        return frames

    def _span(self, clip: Clip, wishes: Wishes) -> dict[str, Any]:
        """Arguments that the decoding of videos and of sound of their own share."""
        return {
            "start": clip.start,
            "end": clip.end,
            "channel": self.feature_extractor.channel,
            "missing": wishes.missing,
            "damaged": wishes.damaged,
            "threads": wishes.threads,
        }

    def _decode(self, clip: Clip, wishes: Wishes) -> torch.Tensor | None:
        """Read a file: its frames, and its sound if that is wanted."""
        extractor = self.feature_extractor
        media = decode_media(
            clip.video,
            num_frames=extractor.num_frames if wishes.num_frames is None else wishes.num_frames,
            alignment=extractor.alignment,
            frame_times=clip.times,
            sampling_rate=extractor.sampling_rate,
            want_audio=wishes.own_sound,
            **self._span(clip, wishes),
        )
        clip.name, clip.duration = media.source, media.duration
        if media.frame_times is not None:
            clip.times = media.frame_times.tolist()
        self._set_sound(clip, media.waveform, extractor.sampling_rate, None)
        return media.frames

    @staticmethod
    def _set_sound(clip: Clip, samples: Any, rate: int, duration: float | None) -> None:
        """Keep sound together with its rate; its length counts where the video's is unknown."""
        clip.waveform = None if samples is None else {"array": samples, "sampling_rate": rate}
        clip.duration = clip.duration or duration

    def _place_frames(self, clip: Clip, wishes: Wishes) -> Any:
        """Give decoded frames their times, and take some of them where that is asked for."""
        frames = as_frame_list(clip.video)
        total = len(frames)
        facts = dict(clip.facts) if clip.facts is not None else {}
        rate = facts.get("fps") if clip.fps is None else clip.fps
        if rate is not None:
            if not (isinstance(rate, int | float | np.number) and rate > 0):
                raise ValueError(f"{clip.name}: the frame rate must be a positive number, got {rate!r}.")
            rate = float(rate)
        numbers = facts.get("frames_indices")
        numbers = list(range(total)) if numbers is None else [int(index) for index in numbers]
        if len(numbers) != total:
            raise ValueError(f"{clip.name}: {len(numbers)} frame indices for {total} frames; give one per frame.")
        if clip.times is None and rate is not None:
            clip.times = [index / rate for index in numbers]
        if clip.times is not None and len(clip.times) != total:
            raise ValueError(
                f"{clip.name}: {len(clip.times)} frame times for {total} frames; give one time per frame."
            )
        if wishes.do_sample_frames:
            places = self.video_processor.sample_frames(
                VideoMetadata(total_num_frames=total, fps=rate),
                num_frames=self.feature_extractor.num_frames if wishes.num_frames is None else wishes.num_frames,
                alignment=self.feature_extractor.alignment,
            ).tolist()
            clip.times = None if clip.times is None else [clip.times[place] for place in places]
            return [frames[place] for place in places] if isinstance(frames, list) else frames[places]
        if wishes.num_frames is not None and total != wishes.num_frames:
            raise ValueError(
                f"{clip.name}: num_frames is {wishes.num_frames} but the clip has {total} frames; leave num_frames "
                "out, or pass do_sample_frames=True with fps to take some of them."
            )
        return frames

    def _pixels(self, frames: Any, name: str, options: dict[str, Any], device: Any) -> torch.Tensor:
        """Pixels `(num_frames, 3, height, width)` of one clip; none of them, in the right size, without frames."""
        given = torch.zeros(1, 3, 8, 8, dtype=torch.uint8) if frames is None else frames
        try:
            done = self.video_processor(
                [given],
                do_sample_frames=False,
                return_tensors="pt",
                **options,
                **({"device": device} if device else {}),
            )
        except ValueError as error:
            # The video processor counts the clips it is given, which is one.
            raise ValueError(str(error).replace("Clip 0", name).replace("clip 0", name)) from error
        pixels = done["pixel_values_videos"][0]
        return pixels[:0] if frames is None else pixels

    def _settle_times(self, clip: Clip, wishes: Wishes) -> None:
        """Give frames without known times the default ones, as far as the clip's length is known."""
        if clip.times is None and (clip.duration is not None or clip.pixels is None):
            count = clip.num_frames or wishes.num_frames or self.feature_extractor.num_frames
            clip.times = self.feature_extractor.default_frame_times(clip.duration or 0.0, count)

    def _stack_pixels(self, clips: list[Clip], wishes: Wishes) -> dict[str, torch.Tensor]:
        """Pixels of all clips, as many frames as there are windows; zeros and a mask where a clip has none."""
        present = [clip.pixels for clip in clips if clip.pixels is not None]
        none = present[0][:0] if present else self._pixels(None, "", wishes.picture_options, wishes.device)
        pixels = [none if clip.pixels is None else clip.pixels for clip in clips]
        return pad_clips(pixels, max(clip.num_frames for clip in clips))

    def _windows(self, clips: list[Clip], wishes: Wishes, return_times: bool) -> dict[str, torch.Tensor]:
        """Windows of all clips on their frames' times."""
        return dict(
            self.feature_extractor(
                [clip.waveform for clip in clips],
                frame_times=_known_times(clips),
                return_tensors="pt",
                return_times=return_times,
                device=wishes.device,
                **wishes.sound_options,
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
    spans = torch.tensor(window_times(windows.starts, extractor.audio_length), dtype=torch.float64) + chunk.start
    return {
        "input_values": windows.values.unsqueeze(0),
        "padding_mask": windows.mask.unsqueeze(0),
        "frame_times": (chunk.frame_times + chunk.start).unsqueeze(0),
        "window_times": spans.unsqueeze(0),
        "window_coverage": windows.coverage.unsqueeze(0),
    }


def _check_rules(missing: Any, damaged: Any, num_frames: Any) -> None:
    """Refuse values of the call's arguments that cannot work, whatever the input."""
    for name, value, other in (("missing", missing, "mask"), ("damaged", damaged, "keep")):
        if value not in ("error", other):
            raise ValueError(f'`{name}` is {value!r}; it must be "error" or "{other}".')
    whole = isinstance(num_frames, int | np.integer) and not isinstance(num_frames, bool)
    if num_frames is not None and not (whole and num_frames >= 1):
        raise ValueError(f"num_frames is {num_frames!r}; it must be a whole number of at least 1.")


def _one_rate(first: Any, second: Any) -> Any:
    """The sampling rate, which may be given beside `audio` or in `audio_kwargs`."""
    if first is not None and second is not None and first != second:
        raise ValueError(f"sampling_rate is {first} and, in `audio_kwargs`, {second}; give one of them.")
    return second if first is None else first


def _known_times(clips: list[Clip]) -> list[list[float]]:
    """The times of every clip's frames."""
    rows = []
    for clip in clips:
        if clip.times is None:
            raise ValueError(
                f"{clip.name}: the times of its frames are unknown; pass `fps`, `video_metadata` or `frame_times`."
            )
        rows.append(clip.times)
    return rows


def _stack_rows(rows: Sequence[Sequence[float]]) -> torch.Tensor:
    """Rows of times as `(batch, longest)` float64, filled up with NaN."""
    result = torch.full((len(rows), max(map(len, rows))), math.nan, dtype=torch.float64)
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
