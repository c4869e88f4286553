"""Damaged files end in a `MediaError` or are read, whatever is damaged (`make test-fuzz` runs thousands)."""

import pytest

from fuzz.damage import CLIPS, run, write_originals


@pytest.mark.slow
@pytest.mark.parametrize("container", CLIPS)
def test_damage__only_media_errors(container, tmp_path):
    originals = write_originals(tmp_path)
    variants = [(container, number) for number in range(60)]
    outcomes = [(number, outcome) for _, number, outcome in run(originals, variants, 0, tmp_path)]
    assert [(number, outcome.kind, outcome.reason) for number, outcome in outcomes if outcome.kind != "value"] == []
