# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Processor of the language model: texts with placeholders and the clips that stand there become its inputs.

A clip is written as its moments in order: the time, then as many `<|video|>` as the model has vectors of a frame and
as many `<|audio|>` as it has of a window, each only where that is present. So the language model reads when what was
seen and heard, and a clip may have any number of moments. Files are decoded by `CavMaeSyncProcessor`.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from transformers import AddedToken, PreTrainedTokenizerBase
from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import OmniModalProcessorMixin, TextKwargs
from transformers.utils import TensorType

from .alignment_cavmae_sync import center_times
from .auto_map_cavmae_sync import LM_AUTO_MAP, SavedWithCode
from .batching_cavmae_sync import to_batch
from .clips_lm_cavmae_sync import LoadedMedia, MediaClip, pair_clips, rate_beside, set_options, stack_media
from .configuration_lm_cavmae_sync import LM_CONFIG_VALUES
from .feature_extraction_cavmae_sync import CavMaeSyncFeatureExtractor
from .processing_cavmae_sync import CavMaeSyncProcessor
from .values_cavmae_sync import Allowed, check_values, number, optional, shown, whole
from .video_processing_cavmae_sync import CavMaeSyncVideoProcessor, is_media_source, split_frames

VIDEO_TOKEN, AUDIO_TOKEN = "<|video|>", "<|audio|>"
# A tokenizer without a length of its own has a huge one.
_LONGEST_CONTEXT = 1_000_000
# Stands for the time of a moment whose clip's length is not known yet: as many digits as any has.
_LATE_SECONDS = 99999.9

_CALL_VALUES: dict[str, Allowed] = {
    "num_frames": optional(whole(1, 1 << 16)),
    "fps": optional(number(0, 1000, above=True)),
    "max_length": optional(whole(1, 1 << 30)),
}

# Set before the template of a tokenizer that takes texts alone: contents that are lists become texts. It ends with a
# line break, which Jinja takes away (`trim_blocks`), so that what follows begins as it does by itself.
CONTENT_PRELUDE = (
    "{%- set cavmae_sync = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- if message.content is not defined or message.content is none or message.content is string -%}"
    "{%- set cavmae_sync.messages = cavmae_sync.messages + [message] -%}"
    "{%- else -%}"
    "{%- set line = namespace(text='') -%}"
    "{%- for part in message.content -%}"
    "{%- if part is string -%}{%- set line.text = line.text + part -%}"
    f"{{%- elif part.type == 'video' -%}}{{%- set line.text = line.text + '{VIDEO_TOKEN}' -%}}"
    f"{{%- elif part.type == 'audio' -%}}{{%- set line.text = line.text + '{AUDIO_TOKEN}' -%}}"
    "{%- elif part.text is defined -%}{%- set line.text = line.text + part.text -%}"
    "{%- else -%}{{- raise_exception('A content is of type ' ~ part.type ~ '; give text, video or audio.') -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- set cavmae_sync.messages = cavmae_sync.messages + [dict(message, content=line.text)] -%}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- set messages = cavmae_sync.messages %}\n"
)


class CavMaeSyncLMProcessor(SavedWithCode, OmniModalProcessorMixin):
    """Turns texts, or chats, with videos and audio into the inputs of `CavMaeSyncForConditionalGeneration`.

    In a text each `<|video|>` stands for one video and each `<|audio|>` for one clip of audio alone; `clip_text` says
    what they become. The audio of a video file is used unless a call says otherwise, without a placeholder of its own.
    `apply_chat_template` takes messages with `{"type": "video", "path": ...}` and `{"type": "audio", "path": ...}`.

    Texts are filled up on the left, so that answers follow them, unless the tokenizer was made or saved with a
    `padding_side` of its own: the constructor sets `tokenizer.padding_side`.

    Args:
        feature_extractor: A [`CavMaeSyncFeatureExtractor`], as the audio-visual model has it.
        video_processor: A [`CavMaeSyncVideoProcessor`], likewise.
        tokenizer: Of the language model, with both placeholders in it (`add_media_tokens`).
        chat_template: A Jinja template for contents that are lists. Default: the tokenizer's own, before which such
            contents are made texts with placeholders.
        tokens_per_frame: Pooled patch vectors of a frame beside its global one, as in the model's configuration: a
            square number, 0 for none.
        tokens_per_window: Those of a window, any number.
        merge_tokens: Whether all of a frame are one token, and all of a window.
        caption_prompt: What the model was trained to be asked first about every clip: it then says what is seen and
            heard at each moment, and what it said precedes the questions, in the same chat.

    Attributes:
        video_token: Placeholder of a video and of each vector of a frame.
        audio_token: Placeholder of a clip of audio alone and of each vector of a window.
        video_token_id: Its number in the vocabulary.
        audio_token_id: Likewise.

    Raises:
        ValueError: The tokenizer lacks the placeholders, or a number cannot be.
    """

    feature_extractor: CavMaeSyncFeatureExtractor
    video_processor: CavMaeSyncVideoProcessor
    tokenizer: PreTrainedTokenizerBase
    video_token = VIDEO_TOKEN
    audio_token = AUDIO_TOKEN

    def __init__(
        self,
        feature_extractor: CavMaeSyncFeatureExtractor,
        video_processor: CavMaeSyncVideoProcessor,
        tokenizer: PreTrainedTokenizerBase,
        chat_template: str | dict[str, str] | None = None,
        tokens_per_frame: int = 9,
        tokens_per_window: int = 4,
        merge_tokens: bool = False,
        caption_prompt: str | None = None,
    ) -> None:
        given = {"tokens_per_frame": tokens_per_frame, "tokens_per_window": tokens_per_window}
        given |= {"merge_tokens": merge_tokens}
        check_values(given, LM_CONFIG_VALUES)
        if chat_template is None:
            chat_template = _for_lists(getattr(tokenizer, "chat_template", None))
        super().__init__(feature_extractor, video_processor, tokenizer, chat_template=chat_template)
        lacking = _lacking(tokenizer)
        if lacking:
            raise ValueError(
                f"The tokenizer ({type(tokenizer).__name__}, {len(tokenizer)} tokens) lacks {' and '.join(lacking)}; "
                "call CavMaeSyncLMProcessor.add_media_tokens(tokenizer) first, and "
                "resize_token_embeddings(len(tokenizer)) of the language model."
            )
        if "padding_side" not in tokenizer.init_kwargs:
            tokenizer.padding_side = "left"
        self.video_token_id = tokenizer.convert_tokens_to_ids(VIDEO_TOKEN)
        self.audio_token_id = tokenizer.convert_tokens_to_ids(AUDIO_TOKEN)
        self.tokens_per_frame = tokens_per_frame
        self.tokens_per_window = tokens_per_window
        self.merge_tokens = merge_tokens
        self.caption_prompt = caption_prompt
        # Written into `processor_config.json`. Set here, so that saving changes nothing and loading gives the same.
        self.auto_map = dict(LM_AUTO_MAP)

    @staticmethod
    def add_media_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
        """Add the placeholders to a tokenizer as special tokens.

        Args:
            tokenizer: Of the language model; it is changed.

        Returns:
            How many were new. The embeddings of the language model must then be resized to `len(tokenizer)`.
        """
        tokens = [AddedToken(token, special=True, normalized=False) for token in _lacking(tokenizer)]
        if not tokens:
            return 0
        return tokenizer.add_special_tokens({"extra_special_tokens": tokens}, replace_extra_special_tokens=False)

    @property
    def model_input_names(self) -> list[str]:
        """Names of the inputs that the model takes from this processor."""
        times = ["video_times", "audio_times"]
        return ["input_ids", "attention_mask", *self._media_processor.model_input_names, *times]

    @property
    def _media_processor(self) -> CavMaeSyncProcessor:
        """Makes inputs of the audio-visual model out of a clip."""
        return CavMaeSyncProcessor(self.feature_extractor, self.video_processor)

    def clip_text(
        self,
        times: Iterable[float],
        video_present: Iterable[bool],
        audio_present: Iterable[bool],
        texts: Sequence[str | None] | None = None,
    ) -> str:
        """What stands for one clip in the text that the model reads.

        Each moment is its time, `f"{time:.1f}s"`, then `1 + tokens_per_frame` times `<|video|>` where its frame is
        present, `1 + tokens_per_window` times `<|audio|>` where its window is (each once with `merge_tokens`), and its
        text after a space, which a
        line break ends. Without pooled vectors:
        `"0.3s<|video|><|audio|>0.9s<|video|><|audio|>1.6s<|audio|>"`. Needs no media, so it serves for cached vectors
        as well.

        Args:
            times: Of the moments in seconds, `(num_moments,)`. Where a moment only fills up a clip, NaN; it is left
                out.
            video_present: Whether the frame of each is present, likewise.
            audio_present: Whether the window of each is.
            texts: What is said at each, such as subtitles; `None` or empty for nothing.

        Raises:
            ValueError: They are not of one length, a present moment has no time, or a text holds a placeholder.
        """
        moments = [float(time) for time in times]
        seen, heard = ([bool(value) for value in values] for values in (video_present, audio_present))
        said: list[str | None] = [None] * len(moments) if texts is None else list(texts)
        if not len(moments) == len(seen) == len(heard) == len(said):
            raise ValueError(
                f"A clip has {len(moments)} times, {len(seen)} frames, {len(heard)} windows and {len(said)} texts; "
                "give one of each for every moment."
            )
        parts: list[str] = []
        for place, (time, sees, hears, text) in enumerate(zip(moments, seen, heard, said, strict=True)):
            if text and (self.video_token in text or self.audio_token in text):
                raise ValueError(f"The text of moment {place} holds a placeholder of media: {text!r}; remove it.")
            if math.isfinite(time):
                parts.append(f"{time:.1f}s")
                parts.append(self.video_token * self.frame_tokens * sees)
                parts.append(self.audio_token * self.window_tokens * hears)
                parts.append(f" {text.strip()}\n" if text and text.strip() else "")
            elif sees or hears:
                raise ValueError(f"Moment {place} is present and its time is {time}; give it in seconds.")
        return "".join(parts)

    def expand(self, text: str, clip_texts: Sequence[str]) -> str:
        """A text with its placeholders replaced by what stands for the clips.

        Args:
            text: With one `<|video|>` for each video and one `<|audio|>` for each clip of audio alone.
            clip_texts: What `clip_text` gave for each, in the order of the placeholders.

        Raises:
            ValueError: There are not as many clips as placeholders.
        """
        kinds = self._placeholders(text)
        if len(kinds) != len(clip_texts):
            raise ValueError(
                f"The text has {len(kinds)} placeholders ({self.video_token}, {self.audio_token}) and there are "
                f"{len(clip_texts)} clips; give one placeholder for each: {shown(text)}."
            )
        return self._expanded([text], [kinds], [list(clip_texts)])[0][0]

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        audio: Any = None,
        audio_from_video_indices: Sequence[int | None] | None = None,
        *,
        num_frames: int | None = None,
        fps: float | None = None,
        frame_times: Any = None,
        moment_texts: Sequence[Sequence[str | None] | None] | None = None,
        start: float | Sequence[float | None] | None = None,
        end: float | Sequence[float | None] | None = None,
        sampling_rate: int | None = None,
        video_metadata: Any = None,
        load_audio_from_video: bool = True,
        max_length: int | None = None,
        padding: bool | str | None = None,
        return_tensors: str | TensorType | None = None,
        return_times: bool = False,
        return_mm_token_type_ids: bool = False,
        return_text_replacement_offsets: bool = False,
        do_sample_frames: bool | None = None,
        text_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepare one text or several, with their clips.

        Where an argument has one value per clip, clips are counted in the order of their placeholders, over all texts.

        Args:
            images: Not taken; pass images as a video, a list of frames.
            text: A text or several, with a placeholder for each clip.
            videos: Files, or decoded frames, as [`CavMaeSyncProcessor`] takes them: one, a list in the order of the
                placeholders, or one list per text. A file without pictures is one of audio alone, one without an
                audio track has no `<|audio|>`.
            audio: Clips of audio alone, for `<|audio|>` in the text: files or waveforms, in the same ways.
            audio_from_video_indices: Where each entry of `audio` belongs: `None` for a clip of audio alone, `i` for
                the audio of video i (counted over all texts). With fewer entries of `audio` than this has, the audio
                of the named videos is their files' own; videos that are not named have none.
            num_frames: Moments per clip; default: the feature extractor's.
            fps: Moments per second instead: one every `1 / fps` seconds.
            frame_times: As in [`CavMaeSyncProcessor`]: the moments in seconds from the start of each clip, or the
                times of decoded frames; a row for one clip or one row (or `None`) per clip.
            moment_texts: Per clip what is said at each moment (see `clip_text`), or `None`; it then has as many
                moments as texts, unless other arguments say how many.
            start: Where in the files the clips start, seconds (one value or one per clip); times count from there.
            end: Where they end, seconds.
            sampling_rate: Rate in Hz of waveforms in `audio` that do not bring their own.
            video_metadata: Times of decoded frames, as loaders of transformers say them: `{"fps": ...,
                "frames_indices": ...}`, one for all or one per clip.
            load_audio_from_video: Whether the audio of video files is used.
            max_length: Longest text in tokens, clips included; default: the tokenizer's. Longer ones have fewer
                moments, of every clip the same share fewer. Leave room in it for the answer.
            padding: As of a tokenizer; default: to the longest where tensors are asked for.
            return_tensors: `"pt"`, `"np"` or `None` (lists).
            return_times: Also return `frame_times` `(clips, moments)`, seconds from the start of each clip, NaN where
                a clip has fewer.
            return_mm_token_type_ids: Also return `mm_token_type_ids`: 2 for a frame's token, 3 for a window's, else 0.
            return_text_replacement_offsets: Also return where placeholders stood and what they became, per text.
            do_sample_frames: False: take decoded frames as they are, whatever `num_frames` and `fps` say.
            text_kwargs: More arguments for the tokenizer.
            kwargs: Arguments of the tokenizer, and those of [`CavMaeSyncProcessor`] that are not above.

        Returns:
            `input_ids` and `attention_mask` `(texts, tokens)`; `pixel_values_videos` `(clips with video, moments, 3,
            height, width)`, with `padding_mask_videos` `(clips with video, moments)` where a frame is absent;
            `input_values` `(clips with audio, moments, audio_length, num_mel_bins)` with `padding_mask` `(clips with
            audio, moments)`, and `window_offsets` where the feature extractor makes them. Clips are in the order of
            the text, and as many placeholders are in `input_ids` as there are vectors of what is present.

        Raises:
            ValueError: An input cannot be used (`MediaError` for files), a placeholder has no clip or a clip no
                placeholder, or a text is too long with one moment per clip.
            TypeError: An argument is unknown.
        """
        if images is not None:
            raise ValueError("This processor has no image side; pass images as `videos`, a list of frames.")
        texts = [text] if isinstance(text, str) else text
        if not isinstance(texts, list | tuple) or not texts or not all(isinstance(one, str) for one in texts):
            raise ValueError(
                f"`text` is {shown(text)}; pass a text or a list of texts, with {self.video_token} where a "
                f"video belongs and {self.audio_token} where audio alone does."
            )
        words = {name: kwargs.pop(name) for name in list(kwargs) if name in TextKwargs.__annotations__}
        words = {"return_token_type_ids": False} | words | (text_kwargs or {})
        return_tensors = words.pop("return_tensors", return_tensors)
        max_length = words.pop("max_length", max_length)
        padding = words.pop("padding", padding)
        return_mm_token_type_ids = words.pop("return_mm_token_type_ids", return_mm_token_type_ids)
        return_text_replacement_offsets = words.pop("return_text_replacement_offsets", return_text_replacement_offsets)

        kinds = [self._placeholders(one) for one in texts]
        rows = pair_clips(
            kinds,
            tokens={"video": self.video_token, "audio": self.audio_token},
            videos=videos,
            audio=audio,
            indices=audio_from_video_indices,
            load_audio=load_audio_from_video,
        )
        clips = [clip for row in rows for clip in row]
        options = {"start": start, "end": end, "video_metadata": video_metadata}
        set_options(clips, frame_times=frame_times, moment_texts=moment_texts, **options)
        check_values({"num_frames": num_frames, "fps": fps, "max_length": max_length}, _CALL_VALUES)
        if fps is not None and num_frames is not None:
            raise ValueError(f"fps is {fps} and num_frames {num_frames}; both say how many moments: give one of them.")
        own = self.feature_extractor.num_frames
        for clip in clips:
            clip.choose_count(own, num_frames=num_frames, fps=fps, rate=sampling_rate, sampled=do_sample_frames)

        limit = self.tokenizer.model_max_length if max_length is None else max_length
        known = None if limit >= _LONGEST_CONTEXT else limit
        media: list[LoadedMedia] = []
        clip_texts: list[list[str]] = []
        for place, (one, of, row) in enumerate(zip(texts, kinds, rows, strict=True)):
            length = partial(self._length, one, of, words)
            loaded, held = self._load_row(place, row, length, known, sampling_rate, kwargs)
            media += loaded
            clip_texts.append(held)
        expanded, offsets = self._expanded(list(texts), kinds, clip_texts)
        padding = return_tensors is not None and len(texts) > 1 if padding is None else padding
        if padding == "max_length" or words.get("truncation"):
            words["max_length"] = known
        tokens = self.tokenizer(expanded, padding=padding, **words)
        self._check_special_mm_tokens(expanded, tokens, modalities=["video", "audio"])
        data = dict(tokens)
        if return_text_replacement_offsets:
            data["text_replacement_offsets"] = offsets
        if return_mm_token_type_ids:
            data["mm_token_type_ids"] = self.create_mm_token_type_ids(tokens["input_ids"])
        data |= to_batch(
            stack_media(media, self.feature_extractor.outside_value, with_times=return_times), return_tensors
        )
        return BatchFeature(data, tensor_type=return_tensors, skip_tensor_conversion=self.skip_tensor_conversion)

    def apply_chat_template(  # type: ignore[override]
        self, conversation: Any, chat_template: str | None = None, *, load_audio_from_video: bool = True, **kwargs: Any
    ) -> Any:
        """As of every processor of transformers, except that the audio of videos is used unless that is refused.

        Args:
            conversation: A chat or a list of chats. A content is a text, or a list of `{"type": "text", "text": ...}`,
                `{"type": "video", "path": ...}` and `{"type": "audio", "path": ...}`, where `"path"` may as well be
                `"url"`, or `"video"` and `"audio"` for what the call takes as `videos` and `audio`.
            chat_template: Default: the processor's.
            load_audio_from_video: Whether the audio of video files is used.
            kwargs: As of transformers: `tokenize`, `add_generation_prompt`, `return_dict`, `return_tensors`,
                `return_assistant_tokens_mask`, and in `processor_kwargs` arguments of the call.

        Raises:
            ValueError: There is no template, or as in the call.
        """
        return super().apply_chat_template(
            conversation, chat_template, load_audio_from_video=load_audio_from_video, **kwargs
        )

    def _resolve_chat_template(self, chat_template: str | None) -> str:
        """The template; says what to do where there is none."""
        if chat_template is None and self.chat_template is None:
            raise ValueError(
                "There is no chat template: the tokenizer has none, and none was given to the processor. Pass "
                "`chat_template=...` (Jinja) to CavMaeSyncLMProcessor or to this call, or call the processor with a "
                f"text that has {self.video_token} in it."
            )
        return super()._resolve_chat_template(chat_template)

    def _multimodal_inputs_from_conversations(
        self, conversations: Any, audio_loading_params: dict[str, Any], load_audio_from_video: bool = True
    ) -> tuple[list[Any], list[Any], list[Any], dict[str, Any]]:
        """What chats show and let hear, one list per chat; files are left to the decoder."""
        given: dict[str, list[list[Any]]] = {"video": [], "audio": []}
        for conversation in conversations:
            for found in given.values():
                found.append([])
            for message in conversation:
                content = message.get("content")
                for part in content if isinstance(content, list | tuple) else ():
                    if isinstance(part, Mapping) and part.get("type") in given:
                        keys = (part["type"], "url", "path")
                        given[part["type"]][-1] += [part[key] for key in keys if part.get(key) is not None][:1]
        audio = given["audio"] if any(given["audio"]) else []
        return [], given["video"], audio, {"load_audio_from_video": load_audio_from_video}

    def _placeholders(self, text: str) -> list[str]:
        """The kinds of the placeholders of a text, in order, without those that are marked as plain text."""
        found = ([""] * text.count(token) for token in (self.video_token, self.audio_token))
        offsets: list[Any] = self.get_text_with_replacements([text], [], *found)[1]
        return [entry["type"] for entry in offsets[0]]

    def _expanded(
        self, texts: list[str], kinds: list[list[str]], clip_texts: list[list[str]]
    ) -> tuple[list[str], list[Any]]:
        """Texts with their clips in place, and where these stand, as transformers says it."""
        replacements: dict[str, list[str]] = {"video": [], "audio": []}
        for row, held in zip(kinds, clip_texts, strict=True):
            for kind, clip_text in zip(row, held, strict=True):
                replacements[kind].append(clip_text)
        return self.get_text_with_replacements(list(texts), [], replacements["video"], replacements["audio"])

    def _length(self, text: str, kinds: list[str], words: dict[str, Any], clip_texts: list[str]) -> int:
        """How many tokens a text has with its clips in place."""
        expanded, _ = self._expanded([text], [kinds], [clip_texts])
        return len(self.tokenizer(expanded[0], **(words | {"verbose": False, "truncation": False}))["input_ids"])

    def _load_row(
        self,
        place: int,
        row: list[MediaClip],
        length: Callable[[list[str]], int],
        limit: int | None,
        rate: int | None,
        options: dict[str, Any],
    ) -> tuple[list[LoadedMedia], list[str]]:
        """The clips of one text, of as many moments as its length allows, and what stands for them."""
        if not row:
            return [], []
        most = share = max(clip.count for clip in row)

        def counts(share: int) -> list[int]:
            return [max(1, clip.count * share // most) for clip in row]

        def too_long(share: int) -> bool:
            """Before anything is decoded: what is present is taken from headers."""
            if limit is None:
                return False
            pairs = list(zip(row, counts(share), strict=True))
            # The first saves making texts that are far too long.
            return self._least(pairs) > limit or length([self._draft(clip, count) for clip, count in pairs]) > limit

        if too_long(most):
            for clip in row:
                if not clip.is_decoded:
                    clip.measure(rate)
            share = max(1, bisect_left(range(1, most + 1), True, key=too_long))
        while True:
            loaded = [self._load(clip, count, rate, options) for clip, count in zip(row, counts(share), strict=True)]
            held = [
                self.clip_text(clip.times.tolist(), clip.video_mask, clip.audio_mask, given.texts_of(len(clip.times)))
                for clip, given in zip(loaded, row, strict=True)
            ]
            found = length(held) if limit is not None else 0
            if limit is None or found <= limit:
                return loaded, held
            if share == 1:
                own = length([""] * len(row))
                raise ValueError(
                    f"Text {place} has {own} tokens of its own and {len(row)} clips of at least {found - own} tokens "
                    f"together, one moment each; that is {found}, and {limit} are allowed. Give fewer clips or a "
                    f"shorter text, a larger max_length up to the language model's context, or use a model with a "
                    f"smaller tokens_per_frame (now {self.tokens_per_frame}) or tokens_per_window (now "
                    f"{self.tokens_per_window})."
                )
            share -= 1

    @property
    def frame_tokens(self) -> int:
        """Placeholders of a frame, as `CavMaeSyncLMConfig.frame_tokens`."""
        return 1 if self.merge_tokens else 1 + self.tokens_per_frame

    @property
    def window_tokens(self) -> int:
        """Placeholders of a window."""
        return 1 if self.merge_tokens else 1 + self.tokens_per_window

    def _least(self, counts: list[tuple[MediaClip, int]]) -> int:
        """The placeholders of clips with so many moments, and one token for each time."""
        frame, window = self.frame_tokens, self.window_tokens
        return sum(count * (1 + frame * clip.is_seen + window * clip.is_heard) for clip, count in counts)

    def _draft(self, clip: MediaClip, count: int) -> str:
        """What will stand for a clip of so many moments, at most."""
        if clip.times is not None:
            times = clip.times_of(count)
        else:
            times = [_LATE_SECONDS] * count if clip.duration is None else center_times(clip.duration, count)
        return self.clip_text(times, [clip.is_seen] * count, [clip.is_heard] * count, clip.texts_of(count))

    def _load(self, clip: MediaClip, count: int, rate: int | None, options: dict[str, Any]) -> LoadedMedia:
        """Read one clip, as `CavMaeSyncProcessor` does."""
        own_rate = rate_beside(clip.audio if clip.kind == "video" else clip.media, rate)
        call: dict[str, Any] = {"start": clip.start, "end": clip.end, "sampling_rate": own_rate}
        if clip.kind == "audio":
            call["audio"] = [clip.media]
        else:
            call["videos"], call["video_metadata"] = [clip.media], clip.video_metadata
            if clip.audio is not None:
                call["audio"] = [clip.audio]
            elif not clip.hears and is_media_source(clip.media):
                call["audio"] = [None]
        if clip.is_decoded:
            call["frame_times"] = None if clip.times is None else [clip.times]
            if count < len(split_frames(clip.media)):
                call |= {"num_frames": count, "do_sample_frames": True}
        elif clip.times is None:
            call["num_frames"] = count
        else:
            call["frame_times"] = [clip.times_of(count)]
        done = self._media_processor(**(options | call), missing="mask", return_times=True, return_tensors="pt")
        times = done["frame_times"][0].double()
        absent = torch.zeros(len(times), dtype=torch.bool)
        pixels = done["pixel_values_videos"][0] if "pixel_values_videos" in done else None
        video_mask = absent if pixels is None else done.get("padding_mask_videos", ~absent[None])[0].cpu()
        audio_mask = done["padding_mask"][0].cpu() if "padding_mask" in done else absent
        windows = {name: done[name][0] for name in ("input_values", "window_offsets") if name in done}
        return LoadedMedia(
            times,
            video_mask,
            audio_mask,
            pixels if bool(video_mask.any()) else None,
            windows | {"padding_mask": done["padding_mask"][0]} if bool(audio_mask.any()) else {},
        )


def _lacking(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Which of the placeholders are not one token each."""
    found = []
    for token in (VIDEO_TOKEN, AUDIO_TOKEN):
        number = tokenizer.convert_tokens_to_ids(token)
        tokens = tokenizer(token * 2, add_special_tokens=False)["input_ids"]
        if number is None or number == tokenizer.unk_token_id or tokens.count(number) != 2:
            found.append(token)
    return found


def _for_lists(template: Any) -> Any:
    """A tokenizer's template, or its templates by name, that takes contents that are lists."""
    if isinstance(template, Mapping):
        return {name: _for_lists(one) for name, one in template.items()}
    # The tokenizer of a saved processor has the template of the processor.
    return template if template is None or template.startswith(CONTENT_PRELUDE) else CONTENT_PRELUDE + template


__all__ = ["AUDIO_TOKEN", "CONTENT_PRELUDE", "VIDEO_TOKEN", "CavMaeSyncLMProcessor"]
