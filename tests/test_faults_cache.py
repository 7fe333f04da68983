"""Faults of the kernel cache: cold, warm, damaged, shared by processes, and in folders that can't be used (row 41)."""

from __future__ import annotations

import multiprocessing
import os
import re
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
from test_faults_processes import forks_allowed, needs_llvm, ones, run

import optimkit
from optimkit import SGD
from optimkit.engines import disk as cache

STEP = """
import sys
import numpy as np, optimkit
w = np.ones(4, np.float32)
optimkit.SGD(w, lr=0.25, momentum=0.5).step(np.ones(4, np.float32))
assert w.tolist() == [0.75] * 4
print(optimkit.counters.compiles, optimkit.counters.cache_hits)
"""


def kernels(folder):
    return sorted(folder.glob("*.o"))


@needs_llvm
def test_row_41_a_cache_that_is_cold_warm_or_corrupt(tmp_path):
    folder = tmp_path / "cache"

    def step():
        done = run(STEP, OPTIMKIT_CACHE_DIR=str(folder))
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return tuple(map(int, done.stdout.split()))

    compiles, hits = step()
    assert compiles == len(kernels(folder)) >= 1
    assert hits == 0
    assert step() == (0, compiles)
    assert folder.stat().st_mode & 0o777 == 0o700
    whole = {path: path.read_bytes() for path in kernels(folder)}
    for path, content in whole.items():
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    assert step() == (compiles, 0)
    assert all(path.stat().st_size > 100 for path in whole), "the damaged files were replaced"


@needs_llvm
def test_row_41_two_processes_that_start_at_once(tmp_path):
    environment = {"OPTIMKIT_CACHE_DIR": str(tmp_path / "cache")}
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: run(STEP, **environment), range(2)))
    assert [(each.returncode, each.stderr) for each in done] == [(0, "")] * 2
    assert not list((tmp_path / "cache").glob(".new-*"))
    count = len(kernels(tmp_path / "cache"))
    assert run(STEP, **environment).stdout == f"0 {count}\n"


@needs_llvm
def test_row_41_settings_of_numba_change_nothing(tmp_path):
    found = []
    for folder, settings in (("plain", {}), ("set", {"NUMBA_OPT": "0", "NUMBA_DISABLE_JIT": "1", "NUMBA_CPU_NAME": "generic"})):
        done = run(STEP, OPTIMKIT_CACHE_DIR=str(tmp_path / folder), **settings)
        assert (done.returncode, done.stderr) == (0, "")
        found.append({path.name: path.read_bytes() for path in kernels(tmp_path / folder)})
    assert found[0]
    assert found[0] == found[1]


def test_row_41_damaged_files_are_no_kernels(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTIMKIT_CACHE_DIR", str(tmp_path / "cache"))
    cache.keep("a.o", b"code of a")
    path = cache.folder().path / "a.o"
    content = path.read_bytes()
    for damage in (b"", content[:20], content[:32], content[:-1], content + b"0", bytes([content[0] ^ 1]) + content[1:]):
        path.write_bytes(damage)
        assert cache.kept("a.o") is None
    path.unlink()
    path.mkdir()
    assert cache.kept("a.o") is None


def test_row_41_a_file_counts_only_under_its_own_name(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTIMKIT_CACHE_DIR", str(tmp_path / "cache"))
    cache.keep("a.o", b"code of a")
    assert cache.kept("a.o") == b"code of a"
    folder = cache.folder().path
    (folder / "b.o").write_bytes((folder / "a.o").read_bytes())
    assert cache.kept("b.o") is None
    assert cache.kept("c.o") is None


def forget_kernels():
    """Kernels in memory, as they are when a process starts."""
    from optimkit.engines.cpu import kernels

    kernels._compiled.clear()
    cache._warn_once.cache_clear()


def cold_step(started):
    forget_kernels()
    started.wait()
    w = ones(4)
    SGD(w, lr=0.25).step(ones(4))
    os._exit(0 if w.tolist() == [0.75] * 4 else 1)


@needs_llvm
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_row_41_eight_processes_that_start_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTIMKIT_CACHE_DIR", str(tmp_path / "cache"))
    context = multiprocessing.get_context("fork")
    started = context.Barrier(8)
    processes = [context.Process(target=cold_step, args=(started,)) for _ in range(8)]
    with forks_allowed():
        for process in processes:
            process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * 8
    assert not list((tmp_path / "cache").glob(".new-*"))
    forget_kernels()
    before = optimkit.counters.compiles
    SGD(ones(4), lr=0.25).step(ones(4))
    assert optimkit.counters.compiles == before, "what they left is whole"


def full(*args, **kwargs):
    raise OSError(28, "No space left on device")


@needs_llvm
@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("a file is in its place", "can't be used: .*Not a directory"),
        ("others may write", "can be written by others .chmod 700 mends it."),
        ("others own it", "belongs to another user"),
        ("full", "is read-only, or full"),
    ],
)
def test_row_41_a_folder_that_cannot_be_used_gives_one_warning(tmp_path, monkeypatch, trouble, message):
    folder = tmp_path / "cache"
    monkeypatch.setenv("OPTIMKIT_CACHE_DIR", str(folder))
    if trouble == "a file is in its place":
        folder.write_text("")
    elif trouble == "others may write":
        folder.mkdir()
        folder.chmod(0o777)
    elif trouble == "others own it":
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    else:
        monkeypatch.setattr(os, "replace", full)
    forget_kernels()
    before = optimkit.counters.compiles
    w = ones(4)
    with pytest.warns(RuntimeWarning, match=f"each process compiles again: .*{message}.*Set OPTIMKIT_CACHE_DIR") as told:
        SGD(w, lr=0.25).step(ones(4))
    assert len(told) == 1
    assert w.tolist() == [0.75] * 4
    assert optimkit.counters.compiles > before
    assert trouble == "a file is in its place" or not list(folder.iterdir()), "nothing is left behind"
    assert cache.folder_problem()
    cache._warn_once.cache_clear()


def test_row_41_a_read_only_folder_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTIMKIT_CACHE_DIR", str(tmp_path / "cache"))
    cache.keep("a.o", b"code")
    monkeypatch.setattr(os, "replace", full)
    cache._warn_once.cache_clear()
    assert cache.kept("a.o") == b"code"
    with pytest.warns(RuntimeWarning, match="is read-only, or full"):
        cache.keep("b.o", b"code")
    cache.keep("c.o", b"code")  # says nothing more


def test_row_41_what_killed_processes_left_is_swept(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    old, new = folder / ".new-old", folder / ".new-now"
    old.write_bytes(b"half")
    new.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    monkeypatch.setenv("OPTIMKIT_CACHE_DIR", str(folder))
    assert cache.folder().path == folder
    assert (old.exists(), new.exists()) == (False, True)


def test_row_41_where_the_folder_is(monkeypatch):
    monkeypatch.delenv("OPTIMKIT_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert str(cache.folder_path()) == "/somewhere/optimkit"
    monkeypatch.setenv("OPTIMKIT_CACHE_DIR", "~/kernels")
    assert cache.folder_path().is_absolute()


# ---- what others could have put there


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTIMKIT_CACHE_DIR", str(tmp_path / "cache"))
    cache._open_folder.cache_clear()
    cache._warn_once.cache_clear()
    yield tmp_path / "cache"
    cache._open_folder.cache_clear()
    cache._warn_once.cache_clear()


needs_owners = pytest.mark.skipif(not cache._PRIVATE, reason="this system has no owners and modes of files")


def plant(folder, how):
    """What an attacker may have left in a folder that was open once: whole, with the right checksum."""
    cache.keep("a.o", b"code")
    path = folder / "a.o"
    content = path.read_bytes()
    if how == "a file that others can write":
        path.chmod(0o666)
    elif how == "a file of another user":
        os.chown(path, 12345, 12345)
    elif how == "a link":
        other = folder.parent / "elsewhere"
        other.write_bytes(content)
        path.unlink()
        path.symlink_to(other)
    elif how == "a pipe, which nobody writes":
        path.unlink()
        os.mkfifo(path)
    elif how == "a folder":
        path.unlink()
        path.mkdir()


@needs_owners
@pytest.mark.parametrize(
    "how",
    ["a file that others can write", "a file of another user", "a link", "a pipe, which nobody writes", "a folder"],
)
def test_what_others_may_have_written_is_no_kernel(folder, how):
    if how == "a file of another user" and os.getuid() != 0:
        pytest.skip("only root gives files away")
    plant(folder, how)
    assert cache.kept("a.o") is None
    if how != "a folder":
        cache.keep("a.o", b"compiled anew")
        assert cache.kept("a.o") == b"compiled anew"


@needs_owners
def test_files_stay_those_of_the_folder_that_was_opened(folder):
    """Whatever its path leads to later: another folder is not the one that was checked."""
    cache.keep("a.o", b"ours")
    folder.rename(folder.parent / "moved")
    folder.mkdir(mode=0o700)
    (folder / "a.o").write_bytes(cache._checksum("a.o", b"theirs") + b"theirs")
    assert cache.kept("a.o") == b"ours"


@needs_owners
@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        ("a parent that others can write", r"\S+/open, on the way to \S+, can be written by others"),
        ("a parent of another user", r"\S+/theirs, on the way to \S+, belongs to another user"),
        ("a link", r"is a link; name the folder that it leads to"),
        ("a parent that is a link into what others can write", r"\S+/open, on the way to \S+, can be written by others"),
        ("relative", r"kernels/here is no absolute path"),
        ("no home", r"~/.cache/optimkit is no absolute path"),
        ("a relative home", r"~/.cache/optimkit is no absolute path"),
        ("a relative XDG_CACHE_HOME", r"caches/optimkit is no absolute path"),
    ],
)
@pytest.mark.parametrize("strict", [False, True])
def test_a_folder_that_others_could_replace_is_not_used(folder, tmp_path, monkeypatch, trouble, message, strict, caplog):
    monkeypatch.chdir(tmp_path)
    path = str(folder)
    if trouble == "a parent that others can write":
        (tmp_path / "open").mkdir()
        (tmp_path / "open").chmod(0o777)
        path = str(tmp_path / "open" / "cache")
    elif trouble == "a parent of another user":
        if os.getuid() != 0:
            pytest.skip("only root gives folders away")
        (tmp_path / "theirs").mkdir()
        os.chown(tmp_path / "theirs", 12345, 12345)
        path = str(tmp_path / "theirs" / "deep" / "cache")
    elif trouble == "a link":
        (tmp_path / "there").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "there")
    elif trouble == "a parent that is a link into what others can write":
        (tmp_path / "open" / "in").mkdir(parents=True)
        (tmp_path / "open").chmod(0o777)
        (tmp_path / "link").symlink_to(tmp_path / "open" / "in")
        path = str(tmp_path / "link" / "cache")
    elif trouble == "relative":
        path = "kernels/here"
    else:
        path = ""
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setenv("HOME", "" if trouble == "no home" else "here")
        if "XDG" in trouble:
            monkeypatch.setenv("XDG_CACHE_HOME", "caches")
    monkeypatch.setenv("OPTIMKIT_CACHE_DIR", path)
    if strict:  # where warnings are errors, it is told to the logger
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cache.keep("a.o", b"code")
        assert re.search(message, caplog.records[0].message)
    else:
        with pytest.warns(RuntimeWarning, match=message) as told:
            cache.keep("a.o", b"code")
        assert len(told) == 1
    assert cache.kept("a.o") is None
    assert not list(tmp_path.rglob("*.o"))


@needs_owners
def test_a_parent_that_the_own_group_can_write_is_trusted_where_nobody_else_is_in_it(folder, tmp_path, monkeypatch):
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours").chmod(0o775)
    monkeypatch.setenv("OPTIMKIT_CACHE_DIR", str(tmp_path / "ours" / "cache"))
    for private in (False, True):
        cache._open_folder.cache_clear()
        cache._warn_once.cache_clear()
        monkeypatch.setattr(cache, "_is_private_group", lambda number, private=private: private)
        assert bool(cache.folder_problem()) != private


def test_a_folder_that_was_deleted_is_made_again(folder):
    cache.keep("a.o", b"code")
    (folder / "a.o").unlink()
    folder.rmdir()
    assert cache.kept("a.o") is None
    cache.keep("a.o", b"code")
    cache.keep("a.o", b"code")
    assert cache.kept("a.o") == b"code"


def test_what_was_not_used_for_longest_goes_where_there_is_too_much(folder, monkeypatch):
    monkeypatch.setattr(cache, "MOST_BYTES", 10 * (100 + 32))
    for number in range(10):
        cache.keep(f"{number}.o", bytes(100))
        os.utime(folder / f"{number}.o", (1e9 + number,) * 2)
    assert cache.kept("0.o") == bytes(100)  # used: the last to go
    for number in range(10, 14):
        cache.keep(f"{number}.o", bytes(100))
    left = {int(path.stem) for path in folder.glob("*.o")}
    assert left == {0, *range(5, 14)}
