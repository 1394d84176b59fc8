"""Unsent reports on disk: bounded, whole or not at all, and the newest always there."""

import shutil
from contextlib import ExitStack, closing
from itertools import pairwise

import pytest

from app.agent.outbox import Outbox, OutboxUnusable


@pytest.fixture
def opened():
    """Opens outboxes, and closes them with the test."""
    with ExitStack() as stack:

        def open_outbox(directory, *, max_reports=1_000, max_bytes=1_000_000):
            return stack.enter_context(closing(Outbox(directory, max_reports=max_reports, max_bytes=max_bytes)))

        yield open_outbox


def contents(outbox):
    """All reports, oldest first."""
    return [int(content) for _, content in reversed(outbox.newest(max_reports=10_000, max_bytes=1_000_000))]


def fill(outbox, count, first=0):
    for number in range(first, first + count):
        outbox.add(str(number).encode())


def test_reports_are_given_newest_first_until_dropped(opened, tmp_path):
    outbox = opened(tmp_path)
    fill(outbox, 5)

    newest = outbox.newest(max_reports=2, max_bytes=1_000)
    assert [content for _, content in newest] == [b"4", b"3"]
    outbox.drop(kept for kept, _ in newest)

    assert contents(outbox) == [0, 1, 2]
    assert len(outbox) == 3
    assert len(list(tmp_path.glob("*.json"))) == 3


def test_a_batch_ends_at_its_bytes_but_holds_at_least_one_report(opened, tmp_path):
    outbox = opened(tmp_path)
    for content in (b"a" * 50, b"b" * 60, b"c" * 200):
        outbox.add(content)

    assert [len(content) for _, content in outbox.newest(max_reports=10, max_bytes=100)] == [200]
    assert [len(content) for _, content in outbox.newest(max_reports=10, max_bytes=270)] == [200, 60]


def test_what_was_kept_is_there_after_a_restart_and_new_reports_come_after_it(opened, tmp_path):
    before = opened(tmp_path)
    fill(before, 3)
    before.close()

    outbox = opened(tmp_path)
    fill(outbox, 1, first=3)

    assert contents(outbox) == [0, 1, 2, 3]


def test_beyond_its_count_the_older_half_is_thinned_and_the_newer_half_is_whole(opened, tmp_path):
    outbox = opened(tmp_path, max_reports=100)
    fill(outbox, 1_000)

    kept = contents(outbox)
    assert 70 <= len(kept) <= 100
    assert kept[-50:] == list(range(950, 1_000))
    gaps = [later - earlier for earlier, later in pairwise(kept)]
    assert kept[0] == 0
    assert all(earlier >= later for earlier, later in pairwise(gaps[1:])), "older is coarser"
    assert len(list(tmp_path.glob("*.json"))) == len(kept)


def test_beyond_its_bytes_the_outbox_is_thinned_too(opened, tmp_path):
    outbox = opened(tmp_path, max_bytes=1_000)
    for number in range(100):
        outbox.add(f"{number:0100d}".encode())

    assert sum(path.stat().st_size for path in tmp_path.glob("*.json")) <= 1_000
    assert contents(outbox)[-5:] == [95, 96, 97, 98, 99]


@pytest.mark.parametrize("max_reports", [1, 2, 3])
def test_the_newest_report_is_kept_however_small_the_bound(opened, tmp_path, max_reports):
    outbox = opened(tmp_path, max_reports=max_reports, max_bytes=1)
    fill(outbox, 10)
    outbox.add(b"123456789")

    assert contents(outbox) == [123456789]


def test_a_file_cut_short_or_changed_is_removed_and_said_so(opened, tmp_path, caplog):
    before = opened(tmp_path)
    fill(before, 4)
    before.close()
    first, second, *_ = sorted(tmp_path.glob("*.json"))
    first.write_bytes(b"")
    second.write_bytes(b"9")

    outbox = opened(tmp_path)

    assert contents(outbox) == [2, 3]
    assert [record.message for record in caplog.records] == ["a kept report is damaged and was removed"] * 2
    assert not first.exists()
    assert not second.exists()


def test_a_file_left_half_written_by_a_kill_is_removed(opened, tmp_path):
    partial = tmp_path / "000000000007-00000000.json.partial"
    partial.write_bytes(b"{")

    assert contents(opened(tmp_path)) == []
    assert not partial.exists()


def test_a_stranger_among_the_files_is_left_alone(opened, tmp_path, caplog):
    (tmp_path / "notes.json").write_text("{}")

    outbox = opened(tmp_path)
    fill(outbox, 1)

    assert contents(outbox) == [0]
    assert (tmp_path / "notes.json").exists()
    assert "is no report" in caplog.text


def test_a_file_removed_by_somebody_else_is_skipped(opened, tmp_path):
    outbox = opened(tmp_path)
    fill(outbox, 3)
    sorted(tmp_path.glob("*.json"))[1].unlink()

    assert contents(outbox) == [0, 2]
    assert len(outbox) == 2


def test_while_the_disk_refuses_reports_are_kept_in_memory(opened, tmp_path, caplog):
    directory = tmp_path / "outbox"
    outbox = opened(directory)
    fill(outbox, 1)
    shutil.rmtree(directory)
    fill(outbox, 2, first=1)
    directory.mkdir()
    fill(outbox, 1, first=3)

    assert contents(outbox) == [1, 2, 3]
    assert len(list(directory.glob("*.json"))) == 1
    assert "reports are only kept in memory" in caplog.text
    outbox.drop(kept for kept, _ in outbox.newest(max_reports=10, max_bytes=1_000))
    assert len(outbox) == 0


def test_memory_is_bounded_while_the_disk_refuses(opened, tmp_path):
    outbox = opened(tmp_path / "outbox")
    shutil.rmtree(tmp_path / "outbox")
    fill(outbox, 700)

    assert contents(outbox) == list(range(200, 700))


def test_rejected_reports_are_put_aside_the_last_hundred(opened, tmp_path):
    outbox = opened(tmp_path)
    fill(outbox, 120)
    for kept, _ in reversed(outbox.newest(max_reports=1_000, max_bytes=1_000_000)):
        assert outbox.reject(kept).parent == tmp_path / "rejected"

    assert len(outbox) == 0
    aside = sorted((tmp_path / "rejected").iterdir())
    assert [int(path.read_bytes()) for path in aside] == list(range(20, 120))


def test_two_agents_cannot_share_a_directory(opened, tmp_path):
    first = opened(tmp_path)
    with pytest.raises(OutboxUnusable, match=r"another agent keeps its reports in .*give each its own --state-dir"):
        opened(tmp_path)
    first.close()
    opened(tmp_path)


def test_a_directory_that_cannot_be_made_is_a_sentence(opened, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutboxUnusable, match=r"cannot keep reports in .*: Not a directory"):
        opened(tmp_path / "file" / "outbox")
