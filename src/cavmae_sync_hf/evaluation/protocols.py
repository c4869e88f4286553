# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""The rules under which metrics are measured. A protocol is data: what is compared, how, on which list.

A result names its protocol with its version; whatever changes a value changes the version. A protocol that was
changed for one run carries the change in its name (`"clips, strategy mean"`).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from ..metrics.similarity import STRATEGIES
from ..model.errors_cavmae_sync import EvaluationError

# How a patch's share in what sounds is told.
MAPS = ("relevance", "local", "occlusion", "dense", "cosine")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """What all protocols say.

    Args:
        name: How it is asked for.
        version: Changes whenever the same model and data would give other values.
        summary: One line for people.
        source: Where the rules come from.
        alignment: `"time"` or `"reference"`; `None` leaves the processor's.
        num_frames: Moments per clip; `None` leaves the processor's.
    """

    name: str
    version: str = "1"
    summary: str = ""
    source: str = "this package"
    alignment: str | None = None
    num_frames: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a results file."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class RetrievalProtocol(Protocol):
    """How audio looks for video, and back.

    Args:
        strategy: How two clips are compared, see `clip_similarity`.
        frames: `"all"`, or `"middle"`: one frame, the one after the first half of them, with its window.
        ks: Values of k for the recall.
        ties: Where a true match stands among equals, see `rank_metrics`.
        needs_ids: Whether the protocol is defined on a list of clips, which the user gives.
        published_clips: Length of that list where it was published.
    """

    strategy: str = "diagonal_mean"
    frames: Literal["all", "middle"] = "all"
    ks: tuple[int, ...] = (1, 5, 10)
    ties: str = "expected"
    needs_ids: bool = False
    published_clips: int | None = None


@dataclass(frozen=True, kw_only=True)
class ClassificationProtocol(Protocol):
    """How a classifier is scored.

    Args:
        scoring: `"labels"`: the labels of the data; `"vggsounder"`: annotations that say which label is heard, which
            seen, and which both.
        inputs: What the model is given, in turn: `"av"` both, `"a"` audio alone, `"v"` video alone.
        ks: Values of k for hits (and, with annotations, for all metrics of the k best guesses).
        classes: Classes of the benchmark; a model with another number is refused.
        background_music: False leaves out clips that the annotations say have background music; `None` keeps all.
    """

    scoring: Literal["labels", "vggsounder"] = "labels"
    inputs: tuple[str, ...] = ("av",)
    ks: tuple[int, ...] = (5,)
    classes: int | None = None
    background_music: bool | None = None


@dataclass(frozen=True, kw_only=True)
class LocalizationProtocol(Protocol):
    """How maps of what sounds in frames are scored.

    Args:
        truth: `"syncworld"`: boxes of what sounds, from a SyncWorld; `"masks"`: a table of images, audio and masks.
        maps: As `method` of `localize`: `"local"`, `"relevance"`, `"occlusion"`, `"dense"`, or `"cosine"` of the
            audio's embedding with every patch's.
        pooling: With masks, `"maps"`: average precision of every map, and one threshold for all of them;
            `"classes"`: both over all pixels of a class, then the mean over classes.
        tolerance: Pixels outside a box at which pointing still counts.
        threshold: Share of a map's range above which a pixel belongs to the object (boxes).
        thresholds: How many are tried (masks).
    """

    truth: Literal["syncworld", "masks"] = "syncworld"
    maps: Literal["relevance", "local", "occlusion", "dense", "cosine"] = "occlusion"
    pooling: Literal["maps", "classes"] = "maps"
    tolerance: float = 0.0
    threshold: float = 0.5
    thresholds: int = 20


@dataclass(frozen=True, kw_only=True)
class SyncProtocol(Protocol):
    """How the sense for what belongs together in time is scored.

    Args:
        truth: `"shifts"`: every clip against its own audio, shifted; `"offsets"`: clips in sync, whose offset is to
            be found; `"labels"`: clips labelled as in sync or not.
        min_shift: Smallest shift in seconds; `None`: a fifth of the clips' length, 2 s at most.
        moments: Which moments of a clip count: `"all"`; `"loud"`: those from the first to the last that is within
            30 dB of the clip's loudest; `"captions"`: from the first to the last that a caption with a span says.
        max_offset: Largest offset tried, seconds (`"offsets"`).
        seconds: So much of the middle of the moments that count is used; `None`: all (`"offsets"`).
        score: With labels, what a clip's `auc` is of: `"mean"`, `"minimum"`, `"p10"`, `"median"` or `"z_score"`; the
            others are reported beside it.
    """

    truth: Literal["shifts", "offsets", "labels"] = "shifts"
    min_shift: float | None = None
    moments: Literal["all", "loud", "captions"] = "all"
    max_offset: float = 0.6
    seconds: float | None = None
    score: str = "mean"


TEXT_PROTOCOL = Protocol(
    name="text",
    version="2",
    summary="texts against all clips of the data; of SyncWorld in wordings of training and in others",
)

P = TypeVar("P", bound=Protocol)


def _by_name(*protocols: P) -> Mapping[str, P]:
    return MappingProxyType({protocol.name: protocol for protocol in protocols})


_SYNC_CODE = "retrieval evaluation of CAV-MAE Sync (Araujo et al., CVPR 2025)"
_CAVMAE_CODE = "retrieval evaluation of CAV-MAE (Gong et al., ICLR 2023)"
# Five clips of each of VGGSound's 309 classes.
_VGGSOUND_CLIPS = 1545

_SYNC_LIST = RetrievalProtocol(
    name="cav-mae-sync", source=_SYNC_CODE, alignment="reference", num_frames=16, needs_ids=True
)
# CAV-MAE stores ten frames of a clip and retrieves with the sixth, against the whole audio.
_CAVMAE_LIST = RetrievalProtocol(
    name="cav-mae", source=_CAVMAE_CODE, alignment="reference", num_frames=10, frames="middle", needs_ids=True
)

RETRIEVAL_PROTOCOLS: Mapping[str, RetrievalProtocol] = _by_name(
    RetrievalProtocol(name="clips", summary="every clip of the data against every other"),
    replace(
        _SYNC_LIST,
        name="cav-mae-sync-vggsound",
        summary="16 moments as published, diagonal mean, the 1,545-clip list of VGGSound",
        published_clips=_VGGSOUND_CLIPS,
    ),
    replace(
        _SYNC_LIST,
        name="cav-mae-sync-audioset",
        summary="16 moments as published, diagonal mean, the retrieval list of AudioSet's evaluation set",
    ),
    replace(
        _CAVMAE_LIST,
        name="cav-mae-vggsound",
        summary="one frame against the whole audio, the 1,545-clip list of VGGSound",
        published_clips=_VGGSOUND_CLIPS,
    ),
    replace(
        _CAVMAE_LIST,
        name="cav-mae-audioset",
        summary="one frame against the whole audio, the retrieval list of AudioSet's evaluation set",
    ),
)

_FINE_TUNED = ClassificationProtocol(
    name="fine-tuned",
    source="fine-tuning evaluation of CAV-MAE (Gong et al., ICLR 2023): ten frames, predictions averaged",
    alignment="reference",
    num_frames=10,
)
CLASSIFICATION_PROTOCOLS: Mapping[str, ClassificationProtocol] = _by_name(
    ClassificationProtocol(name="clips", summary="the labels of the data; moments ensembled by the model"),
    replace(_FINE_TUNED, name="audioset", summary="AudioSet's 527 classes, mean average precision", classes=527),
    replace(_FINE_TUNED, name="vggsound", summary="VGGSound's 309 classes, accuracy", classes=309),
    ClassificationProtocol(
        name="vggsounder",
        summary="VGGSound's test clips with all labels, heard or seen; modality confusion",
        source="VGGSounder (Zverev, Wiedemer et al., ICCV 2025), clips without background music",
        scoring="vggsounder",
        inputs=("av", "a", "v"),
        ks=(1, 3, 5, 10),
        background_music=False,
    ),
)

LOCALIZATION_PROTOCOLS: Mapping[str, LocalizationProtocol] = _by_name(
    LocalizationProtocol(
        name="syncworld",
        summary="boxes of what sounds at every moment, maps by occlusion; chance and other audio beside",
    ),
    LocalizationProtocol(name="masks", summary="audio-prompted segmentation, map by map", truth="masks"),
    LocalizationProtocol(
        name="ade20k-sound",
        summary="audio-prompted segmentation by cosines, mAP and mIoU over classes, pixels of a class pooled",
        source="sound-prompted segmentation on ADE20K (DenseAV, Hamilton et al., CVPR 2024)",
        truth="masks",
        maps="cosine",
        pooling="classes",
    ),
)

SYNC_PROTOCOLS: Mapping[str, SyncProtocol] = _by_name(
    SyncProtocol(
        name="shifted",
        version="2",
        summary="true alignment against shifted audio (2 s or more; a fifth of clips below 10 s), and the same with "
        "another clip's audio",
    ),
    SyncProtocol(
        name="offsets",
        summary="the offset of clips in sync, found among -0.6 to 0.6 s, where they are loud; and by another clip's "
        "audio",
        truth="offsets",
        moments="loud",
    ),
    SyncProtocol(name="labelled", summary="clips labelled as in sync or not, one threshold", truth="labels"),
)

PROTOCOLS: Mapping[str, Mapping[str, Protocol]] = MappingProxyType(
    {
        "retrieval": RETRIEVAL_PROTOCOLS,
        "classification": CLASSIFICATION_PROTOCOLS,
        "localization": LOCALIZATION_PROTOCOLS,
        "sync": SYNC_PROTOCOLS,
    }
)


def find_protocol(protocol: str | P, known: Mapping[str, P]) -> P:
    """A protocol by its name, or the protocol itself.

    Raises:
        EvaluationError: There is none of this name.
    """
    if not isinstance(protocol, str):
        return protocol
    if protocol not in known:
        raise EvaluationError(f"There is no protocol {protocol!r} here; choose one of {', '.join(known)}.")
    return known[protocol]


def modify(protocol: P, **changes: Any) -> P:
    """A protocol with other settings, which its name then says; `None` changes nothing.

    Raises:
        EvaluationError: A setting has an impossible value.
    """
    given = {key: value for key, value in changes.items() if value is not None and value != getattr(protocol, key)}
    if "strategy" in given and given["strategy"] not in STRATEGIES:
        raise EvaluationError(f"`strategy` is {given['strategy']!r}; choose one of {', '.join(STRATEGIES)}.")
    if given.get("maps", "cosine") not in MAPS:
        raise EvaluationError(f"`maps` is {given['maps']!r}; choose one of {', '.join(MAPS)}.")
    wrong = sorted(set(given.get("inputs", ())) - {"av", "a", "v"})
    if wrong:
        raise EvaluationError(f"The input {wrong[0]!r} is none; choose among av, a and v.")
    if not given:
        return protocol
    words = (
        f"{key.replace('_', ' ')} {'+'.join(value) if isinstance(value, tuple) else value}"
        for key, value in sorted(given.items())
    )
    return replace(protocol, name=", ".join((protocol.name, *words)), **given)
