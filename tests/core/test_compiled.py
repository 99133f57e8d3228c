"""Compiled code that processes share."""

from __future__ import annotations

import importlib.util
import os
import threading

import pytest
from filelock import FileLock

from gpnsf.core.counts.compiled import compiled


@pytest.fixture
def twice(tmp_path):
    """Compiles a function of a file of its own, as a new process would; and the file."""
    path = tmp_path / "code.py"
    path.write_text("def twice(x):\n    return 2 * x\n")
    part = tmp_path / "part.py"
    part.write_text("")

    def again():
        spec = importlib.util.spec_from_file_location("code_of_a_test", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return compiled(fastmath=(), parts=(str(part),))(module.twice)

    return again, part


def kept(dispatcher):
    """How often code was read from disk, and how often not."""
    return sum(dispatcher.stats.cache_hits.values()), sum(dispatcher.stats.cache_misses.values())


def test_code_is_kept_for_the_next_process(twice):
    again, _ = twice
    assert again()(21) == 42
    second = again()
    assert second(21) == 42
    assert kept(second) == (1, 0)


def test_code_is_compiled_again_where_a_part_has_changed(twice):
    again, part = twice
    again()(21)
    part.write_text("more")
    os.utime(part, (1, 1))
    second = again()
    assert second(21) == 42
    assert kept(second) == (0, 1)


def test_one_process_at_a_time_writes(twice):
    again, _ = twice
    first = again()
    with FileLock(f"{first._cache._cache_file._index_path}.lock"):
        work = threading.Thread(target=first, args=(21,))
        work.start()
        work.join(1.0)
        assert work.is_alive()  # it has its code, and waits to write
    work.join(20.0)
    assert not work.is_alive()
    assert kept(first) == (0, 1)


def test_processes_that_know_nothing_of_each_other_keep_both_codes(twice):
    again, _ = twice
    first, second = again(), again()
    assert (first(21), second(1.5)) == (42, 3.0)
    third = again()
    assert (third(21), third(1.5)) == (42, 3.0)
    assert kept(third) == (2, 0)


def test_a_disk_without_room_costs_only_time(twice, monkeypatch):
    again, _ = twice
    first = again()
    full = lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    monkeypatch.setattr(first._cache._cache_file, "_save_data", full)
    assert first(21) == 42


def test_code_that_cannot_be_kept_on_disk_is_compiled_all_the_same():
    home: dict = {}
    exec("def twice(x):\n    return 2 * x", home)  # no file, hence no place beside it
    assert compiled(fastmath=())(home["twice"])(21) == 42
