"""Every setting of the configuration and of the processors says which values it takes, and refuses all others."""

import dataclasses
import math
from typing import Any

import pytest
from transformers.configuration_utils import PreTrainedConfig

from cavmae_sync_hf import CavMaeSyncConfig, CavMaeSyncProcessor
from cavmae_sync_hf.model.configuration_cavmae_sync import CONFIG_VALUES
from cavmae_sync_hf.model.configuration_text_cavmae_sync import (
    TEXT_CONFIG_VALUES,
    CavMaeSyncTextDualEncoderConfig,
)
from cavmae_sync_hf.model.feature_extraction_cavmae_sync import FEATURE_VALUES, CavMaeSyncFeatureExtractor
from cavmae_sync_hf.model.values_cavmae_sync import check_values
from cavmae_sync_hf.model.video_processing_cavmae_sync import VIDEO_VALUES, CavMaeSyncVideoProcessor
from helpers.tiny import tiny_config

# What no setting of any kind takes, but for those that may be none.
NONSENSE: dict[str, Any] = {
    "none": None, "text": "nonsense", "list": [], "mapping": {}, "nested": [[1]], "NaN": math.nan,
    "infinite": math.inf, "negative": -(10**9), "huge": 10**9, "beyond floats": 10**400,
}  # fmt: skip
# Any text may be the name of these.
_NAMES = {"audio_encoder_source", "video_encoder_source"}
TABLES = {"config": CONFIG_VALUES, "text": TEXT_CONFIG_VALUES, "feature": FEATURE_VALUES, "video": VIDEO_VALUES}
FIELDS = [(table, name) for table, values in TABLES.items() for name in values]
# Where files come from, and classes that do the work: transformers' own, which it checks itself.
_BOOKKEEPING = {"auto_map", "feature_extractor_type", "video_processor_type", "processor_class"}


def make(table: str, **settings: Any) -> Any:
    if table == "config":
        return tiny_config(**settings)
    if table == "text":
        return CavMaeSyncTextDualEncoderConfig(**settings)
    return (CavMaeSyncFeatureExtractor if table == "feature" else CavMaeSyncVideoProcessor)(**settings)


def test_every_setting__has_its_values():
    processor = CavMaeSyncProcessor.from_config(tiny_config())
    own = {field.name for field in dataclasses.fields(CavMaeSyncConfig)}
    inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    assert ((own - inherited) | {"num_labels"}) - {"audio_encoder_config", "video_encoder_config"} == set(
        CONFIG_VALUES
    )
    own = {field.name for field in dataclasses.fields(CavMaeSyncTextDualEncoderConfig)}
    assert own - inherited - {"av_config", "text_config"} == set(TEXT_CONFIG_VALUES)
    assert set(processor.feature_extractor.to_dict()) - _BOOKKEEPING <= set(FEATURE_VALUES)
    assert set(processor.video_processor.to_dict()) - _BOOKKEEPING <= set(VIDEO_VALUES)


def test_every_default__is_allowed():
    processor = CavMaeSyncProcessor.from_config(CavMaeSyncConfig())
    for saved, table in (
        (CavMaeSyncConfig().to_dict(), CONFIG_VALUES),
        (processor.feature_extractor.to_dict(), FEATURE_VALUES),
        (processor.video_processor.to_dict(), VIDEO_VALUES),
    ):
        assert [name for name, allowed in table.items() if name in saved and not allowed(saved[name])] == []


@pytest.mark.parametrize(("table", "name"), FIELDS)
def test_nonsense__is_refused_with_what_is_allowed(table, name):
    allowed = TABLES[table][name]
    for kind, value in NONSENSE.items():
        if (value is None and allowed(None)) or (kind == "text" and name in _NAMES):
            continue
        with pytest.raises(ValueError, match=rf"`{name}` is .*; it must be ") as caught:
            check_values({name: value}, {name: allowed})
        said = str(caught.value)
        assert allowed.words in said and "\n" not in said and len(said) < 400, kind


@pytest.mark.parametrize(("table", "name"), FIELDS)
def test_numbers_beyond_all_use__make_nothing(table, name):
    """In Python as in files; a configuration tells wrong types in transformers' words."""
    for value in (-(10**9), 10**9, math.nan):
        with pytest.raises(Exception, match="size" if name == "crop_size" else name):
            make(table, **{name: value})


@pytest.mark.parametrize("name", [name for name, allowed in CONFIG_VALUES.items() if allowed(1) and not allowed(True)])
def test_true__is_no_number(name):
    with pytest.raises(ValueError, match=rf"`{name}` is True"):
        check_values({name: True}, CONFIG_VALUES)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"sampling_rate": 44111}, "`sampling_rate` is 44111; it must be a multiple of 100 Hz"),
        ({"mean": [1.0, 2.0]}, "`mean` is"),
        ({"std": 0}, "above 0"),
        ({"image_std": (0.2, 0.0, 0.2)}, "a list of three such"),
        ({"image_mean": [0.5, 0.5]}, "a list of three such"),
        ({"size": {"longest_edge": 9}}, 'it must be {"shortest_edge": N}'),
        ({"crop_size": {"height": 0, "width": 9}}, 'it must be {"height": N, "width": N}'),
    ],
)
def test_processors__name_what_they_take(settings, says):
    table = "feature" if set(settings) <= set(FEATURE_VALUES) else "video"
    with pytest.raises(ValueError) as caught:
        make(table, **settings)
    assert says in str(caught.value)


def test_positions__of_too_many_patches_are_refused_with_what_fits():
    with pytest.raises(Exception, match="`image_size` is 8192.*67,108,864 patches.*use larger ones"):
        CavMaeSyncConfig(image_size=8192, patch_size=1)
