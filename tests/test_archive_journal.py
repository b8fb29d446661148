"""Journals: the longest run of valid lines, and what is refused."""

from __future__ import annotations

import pytest

from fastcap.archive import journal
from fastcap.archive.journal import (
    FileRecord,
    GroupRecord,
    Journal,
    WriterInfo,
    group_line,
    parse_journal,
    total_line,
    writer_line,
)
from fastcap.archive.ranges import as_ranges

INFO = WriterInfo("abc", 3, 1, 4711, "hôst 😀")


def group(number: int, samples: tuple[tuple[int, int], ...] = ((0, 4),)) -> GroupRecord:
    files = (
        FileRecord("000000-000.safetensors", 4200, 0, 2**32 - 1, ("a", "text")),
        FileRecord("000000-001.safetensors", 9000, 7, 1, ("π",)),
    )
    return GroupRecord(number, samples, {"text": 12}, files)


LINES = [writer_line(INFO), *(group_line(group(i)) for i in range(3)), total_line(12)]


def test_what_is_written_is_read() -> None:
    found = parse_journal([b"".join(LINES)], "here")
    assert found == Journal(INFO, [group(0), group(1), group(2)], 12, len(b"".join(LINES)))
    assert (found.groups[0].n_samples, found.groups[0].n_bytes) == (4, 13_200)


@pytest.mark.parametrize("n_lines", range(6))
def test_a_journal_ends_with_its_last_valid_line(n_lines: int) -> None:
    content = b"".join(LINES[:n_lines])
    torn = LINES[n_lines][:-1] if n_lines < 5 else b"0"
    for tail in (b"", torn, torn[:20], b"\0" * 700, b"no line\n"):
        found = parse_journal([content + tail], "here")
        assert found.n_bytes == len(content)
        assert found.is_torn == bool(tail)
        assert not found.is_damaged
        assert len(found.groups) == max(0, min(n_lines - 1, 3))
        assert (found.info is None) == (n_lines == 0)


def test_valid_lines_behind_an_invalid_one_are_not_read_and_are_noticed() -> None:
    for bad in (LINES[1][:-1] + b"x\n", b"\n", LINES[1][1:]):
        found = parse_journal([LINES[0] + bad + LINES[2]], "here")
        assert (found.groups, found.n_bytes) == ([], len(LINES[0]))
        assert found.is_damaged
    assert found.describe_damage() == (
        f"its line at byte {len(LINES[0])} is not as it was written, and valid lines follow: "
        "groups from there on are not read, and their files are kept"
    )


@pytest.mark.parametrize("n_bytes", [1, 7, 100, 1000])
def test_it_does_not_matter_how_a_journal_is_cut_into_blocks(n_bytes: int) -> None:
    for content in (b"".join(LINES), LINES[0] + b"x\n\n" + LINES[1], LINES[0] + LINES[1][:-1]):
        blocks = [memoryview(content)[i : i + n_bytes] for i in range(0, len(content), n_bytes)]
        assert parse_journal(blocks, "here") == parse_journal([content], "here")


def test_nothing_is_read_behind_a_piece_that_is_longer_than_any_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal, "LINE_LIMIT", len(LINES[1]))
    long = b"x" * len(LINES[1])
    blocks = iter([LINES[0], LINES[1], long, long, b"\n", LINES[2]])
    found = parse_journal(blocks, "here")
    assert found.n_bytes == len(LINES[0] + LINES[1])
    assert (found.is_torn, found.is_damaged) == (True, False)
    assert list(blocks) == [b"\n", LINES[2]]
    monkeypatch.setattr(journal, "LINE_LIMIT", len(LINES[1]) - 1)
    assert parse_journal(LINES, "here").n_bytes == len(LINES[0])


def test_the_last_total_counts() -> None:
    found = parse_journal([*LINES, total_line(11)], "here")
    assert found.n_total == 11


@pytest.mark.parametrize(
    ("samples", "ranges"),
    [
        ([], ()),
        ([5], ((5, 6),)),
        ([0, 1, 2], ((0, 3),)),
        ([2, 1, 0], ((2, 3), (1, 2), (0, 1))),
        ([7, 8, 0, 1, 9], ((7, 9), (0, 2), (9, 10))),
        ([3, 3], ((3, 4), (3, 4))),
    ],
    ids=range(6),
)
def test_ids_as_ranges_keep_their_order(
    samples: list[int], ranges: tuple[tuple[int, int], ...]
) -> None:
    assert as_ranges(samples) == ranges
