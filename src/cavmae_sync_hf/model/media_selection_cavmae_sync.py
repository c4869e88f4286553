# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Which tracks of a file are read: those that a player plays, or the audio track that was asked for.

A player plays the tracks that are marked as default, and the first one where several or none are. Cover images are
streams to FFmpeg, but no tracks; a track for people who cannot see or hear, or a commentary, comes after the others.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

try:
    import av
    import av.stream
except ImportError:
    av = None  # type: ignore[assignment]

# ISO 639: two letters (639-1), three letters (639-2/T), and the bibliographic code (639-2/B) where it is another.
_LANGUAGES = """
aa:aar ab:abk ae:ave af:afr ak:aka am:amh an:arg ar:ara as:asm av:ava ay:aym az:aze ba:bak be:bel bg:bul bi:bis bm:bam
bn:ben bo:bod:tib br:bre bs:bos ca:cat ce:che ch:cha co:cos cr:cre cs:ces:cze cu:chu cv:chv cy:cym:wel da:dan
de:deu:ger dv:div dz:dzo ee:ewe el:ell:gre en:eng eo:epo es:spa et:est eu:eus:baq fa:fas:per ff:ful fi:fin fj:fij
fo:fao fr:fra:fre fy:fry ga:gle gd:gla gl:glg gn:grn gu:guj gv:glv ha:hau he:heb hi:hin ho:hmo hr:hrv ht:hat hu:hun
hy:hye:arm hz:her ia:ina id:ind ie:ile ig:ibo ii:iii ik:ipk io:ido is:isl:ice it:ita iu:iku ja:jpn jv:jav ka:kat:geo
kg:kon ki:kik kj:kua kk:kaz kl:kal km:khm kn:kan ko:kor kr:kau ks:kas ku:kur kv:kom kw:cor ky:kir la:lat lb:ltz lg:lug
li:lim ln:lin lo:lao lt:lit lu:lub lv:lav mg:mlg mh:mah mi:mri:mao mk:mkd:mac ml:mal mn:mon mr:mar ms:msa:may mt:mlt
my:mya:bur na:nau nb:nob nd:nde ne:nep ng:ndo nl:nld:dut nn:nno no:nor nr:nbl nv:nav ny:nya oc:oci oj:oji om:orm or:ori
os:oss pa:pan pi:pli pl:pol ps:pus pt:por qu:que rm:roh rn:run ro:ron:rum ru:rus rw:kin sa:san sc:srd sd:snd se:sme
sg:sag si:sin sk:slk:slo sl:slv sm:smo sn:sna so:som sq:sqi:alb sr:srp ss:ssw st:sot su:sun sv:swe sw:swa ta:tam te:tel
tg:tgk th:tha ti:tir tk:tuk tl:tgl tn:tsn to:ton tr:tur ts:tso tt:tat tw:twi ty:tah ug:uig uk:ukr ur:urd uz:uzb ve:ven
vi:vie vo:vol wa:wln wo:wol xh:xho yi:yid yo:yor za:zha zh:zho:chi zu:zul
"""
_THREE_LETTERS = {
    code: codes[1] for codes in (entry.split(":") for entry in _LANGUAGES.split()) for code in (codes[0], *codes[2:])
}
_UNKNOWN = ("", "und", "mul", "mis", "zxx")


@dataclass(frozen=True)
class AudioTrack:
    """An audio track of a file, as its header describes it.

    Attributes:
        number: Among the audio tracks, counted from 0: what `audio_track` takes.
        language: Code as the file has it, such as `"deu"`; empty where it does not say.
        title: Empty where there is none.
        codec: FFmpeg's name; empty where FFmpeg cannot decode it.
        channels: 0 where the header does not say.
        sampling_rate: Hz, 0 where the header does not say.
        is_default: Whether it is the one that is read where none is asked for.
    """

    number: int
    language: str
    title: str
    codec: str
    channels: int
    sampling_rate: int
    is_default: bool

    def __str__(self) -> str:
        facts = [
            self.language or "no language",
            f'"{self.title}"' if self.title else "",
            self.codec or "unknown codec",
        ]
        if self.channels:
            facts.append(f"{self.channels} channel{'s' if self.channels != 1 else ''}")
        facts.append("default" if self.is_default else "")
        return f"{self.number} ({', '.join(filter(None, facts))})"


def check_audio_track(value: Any) -> int | str | None:
    """The choice of an audio track: a number from 0 on, a language code, or `None`.

    Raises:
        ValueError: It is none of these.
    """
    if value is None or isinstance(value, str) and re.fullmatch(r"[A-Za-z]{2,8}([-_][A-Za-z0-9]+)*", value):
        return value
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < 0:
        raise ValueError(
            f"audio_track is {value!r}; it must be the number of an audio track, counted from 0, or a language code "
            "such as 'de' or 'deu'."
        )
    return value


def same_language(one: str, other: str) -> bool:
    """Whether two codes (ISO 639-1 or -2, or longer tags such as `de-CH`) name the same language."""
    return _three_letters(one) == _three_letters(other)


def _three_letters(code: str) -> str:
    first = re.split("[-_]", code.strip().lower())[0]
    return _THREE_LETTERS.get(first, first)


def select_streams(
    container: Any, audio_track: int | str | None = None, meant: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """The video stream and the audio stream of an open container that are its tracks.

    Args:
        container: PyAV's.
        audio_track: Number or language of the audio track; default: the one that a player plays.
        meant: Number among all streams of the video or the audio stream, where the source says it.

    Returns:
        The streams by `"video"` and `"audio"`, as far as there are such.
    """
    found = {}
    videos = _ranked(container, "video")
    if videos:
        found["video"] = videos[0]
    audio = _ranked(container, "audio", found.get("video"))
    if isinstance(audio_track, str):
        audio = [stream for stream in audio if same_language(stream.language or "und", audio_track)]
    elif audio_track is not None:
        asked = list(container.streams.audio)[audio_track : audio_track + 1]
        audio = [stream for stream in asked if _is_usable(stream)]
    if audio:
        found["audio"] = audio[0]
    for kind, index in (meant or {}).items():
        stream = container.streams[index] if index < len(container.streams) else None
        is_chosen = kind == "audio" and audio_track is not None
        if stream is not None and stream.type == kind and _is_usable(stream) and not is_chosen:
            found[kind] = stream
    return found


def list_audio_tracks(container: Any) -> tuple[AudioTrack, ...]:
    """All audio tracks of an open container, in order."""
    default = select_streams(container).get("audio")
    tracks = []
    for number, stream in enumerate(container.streams.audio):
        codec, metadata = stream.codec_context, dict(stream.metadata)
        # Writers of mp4 files that have no title give their own name.
        handler = metadata.get("handler_name", "")
        title = metadata.get("title") or ("" if re.search("handler|core media", handler.lower()) else handler)
        language = stream.language or ""
        tracks.append(
            AudioTrack(
                number=number,
                language="" if language in _UNKNOWN else language,
                title="".join(letter for letter in title if letter.isprintable()).strip(),
                codec="" if codec is None else codec.name,
                channels=0 if codec is None else codec.channels,
                sampling_rate=0 if codec is None else codec.sample_rate,
                is_default=stream is default,
            )
        )
    return tuple(tracks)


def is_described(stream: Any) -> bool:
    """Whether its size or its sampling rate is known, which FFmpeg finds out from its first packets."""
    codec = stream.codec_context
    return bool(codec.width if stream.type == "video" else codec.sample_rate)


def _is_usable(stream: Any) -> bool:
    """Whether there is a decoder, and it is no cover image."""
    cover = av.stream.Disposition.attached_pic in stream.disposition
    return stream.codec_context is not None and stream.time_base is not None and not cover


def _ranked(container: Any, kind: str, video: Any = None) -> list[Any]:
    """The usable streams of a kind, the one that a player plays first."""
    kinds = av.stream.Disposition
    special = kinds.hearing_impaired | kinds.visual_impaired | kinds.comment | kinds.descriptions | kinds.clean_effects
    special |= kinds.karaoke | kinds.lyrics | kinds.dependent | kinds.timed_thumbnails | kinds.still_image
    streams = [stream for stream in getattr(container.streams, kind) if _is_usable(stream)]
    several = len(streams) > 1
    best = container.streams.best
    # Only transport streams hold several programs, which do not belong together. FFmpeg's best stream for another one
    # is of the same program.
    programs = several and video is not None and container.format.name == "mpegts"

    def rank(stream: Any) -> tuple[bool, ...]:
        apart = programs and best(kind, stream).index != best(kind, video).index
        # The tracks of mp4 files tell how many frames they have; a video of one frame is no more than an image.
        is_empty = any(other.frames for other in streams) and stream.frames <= (kind == "video")
        is_other = kinds.default not in stream.disposition
        return not is_described(stream), is_empty, apart, is_other, bool(stream.disposition & special)

    return sorted(streams, key=rank) if several else streams


__all__ = ["AudioTrack", "check_audio_track", "is_described", "list_audio_tracks", "same_language", "select_streams"]
