# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""SyncWorld: a synthetic world of real mp4 files in which it is known what sounds, when and where.

`make_world` makes a split, `load_syncworld` and `read_truth` read it back, `find_truth` finds what is known about the
clips of a set made from it, `contact_sheet` and `preview_page` show it.
"""

from .build import WorldSummary, make_world
from .preview import contact_sheet, preview_page
from .scene import PRESETS, WorldOptions, sample_scene, sounding_class_sets
from .truth import OPTIONS_NAME, find_truth, load_syncworld, read_truth, sounding_boxes, temporal_partners, truth_at
from .voices import CLASS_NAMES

__all__ = [
    "CLASS_NAMES",
    "OPTIONS_NAME",
    "PRESETS",
    "WorldOptions",
    "WorldSummary",
    "contact_sheet",
    "find_truth",
    "load_syncworld",
    "make_world",
    "preview_page",
    "read_truth",
    "sample_scene",
    "sounding_boxes",
    "sounding_class_sets",
    "temporal_partners",
    "truth_at",
]
