"""Times as people write them are read and written in one format."""

import csv

import pytest

from cavmae_sync_hf import CavMaeSyncError
from cavmae_sync_hf.data.clock import format_clock, parse_clock
from cavmae_sync_hf.data.sources import read_source


@pytest.mark.parametrize(
    ("seconds", "digits", "text"),
    [
        (0.0, 1, "0:00.0"),
        (9.96, 1, "0:10.0"),
        (59.96, 1, "1:00.0"),
        (3723.44, 1, "1:02:03.4"),
        (3599.99, 1, "1:00:00.0"),
        (65.4, 0, "1:05"),
        (3725.0, 0, "1:02:05"),
    ],
)
def test_times__are_written_and_read_back(seconds, digits, text):
    assert format_clock(seconds, digits) == text
    assert parse_clock(text) == round(seconds, digits)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("80", 80),
        ("80.5", 80.5),
        (" 1:20 ", 80),
        ("1:20.25", 80.25),
        ("1:02:03.5", 3723.5),
        (".5", 0.5),
        ("90:00", 5400),
    ],
)
def test_times__in_their_spellings(text, seconds):
    assert parse_clock(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "soon", "1:75", "1:2:3:4", "-1", "nan", "inf", "1e3", "80s", "1:60:00", "٣", "1,5"]
)
def test_times__that_are_none_are_refused_in_one_sentence(text):
    with pytest.raises(ValueError) as caught:
        parse_clock(text)
    assert str(caught.value) == f"{text!r} is no time; write seconds such as 80.5, or 1:20, or 1:02:03.5."


def test_lists__take_them_too(tmp_path):
    def write(start: str) -> None:
        with open(tmp_path / "list.csv", "w", newline="") as file:
            csv.writer(file).writerows([("path", "start", "end"), ("a.mp4", start, "1:01:30.5")])

    write("1:20")
    (record,) = read_source(tmp_path / "list.csv").records
    assert (record.start, record.end) == (80.0, 3690.5)
    write("1:75")
    with pytest.raises(CavMaeSyncError, match="row 1 has the start '1:75'; times are seconds, such as 80.5, or 1:20"):
        read_source(tmp_path / "list.csv")
