"""The folder of compiled kernels: private, bounded, written atomically, and never trusted blindly.

    keep("name.o", code)      # for later processes
    kept("name.o")            # the same bytes, or None

`$OPTIMKIT_CACHE_DIR`, else `$XDG_CACHE_HOME/optimkit`, else `~/.cache/optimkit`. What is read from there runs in this process,
so nobody else may have written it: the folder is opened once, by no link, must belong to this user and be closed to
others (0700), as must each file; and no directory on the way to it may be one that others can change. A file is named
by the hash of its text and of all that it depends on, and begins with a checksum: bytes, and no objects. Files that were not
used for longest go when there are too many. A folder that can't be trusted, or written, costs one warning; kernels
then live in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

MOST_BYTES = 1 << 28  # in the folder
_PREFIX = ".new-"
_STALE = 3600.0  # seconds after which an unfinished file belongs to a process that was killed
_OTHERS = 0o022  # who else may write
_PRIVATE = hasattr(os, "getuid") and os.open in os.supports_dir_fd  # owners and modes mean something
_PLAIN = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def folder_path() -> Path:
    """Where kernels are kept, whether or not the folder can be used."""
    own = os.environ.get("OPTIMKIT_CACHE_DIR")
    return _expanded(own) if own else _expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "optimkit"


def _expanded(path: str) -> Path:
    """A path whose "~" is replaced, where it stands for an absolute one: `HOME` may be empty, or "."."""
    home = path.startswith("~/") and os.name == "posix" and not os.path.isabs(os.environ.get("HOME", "/"))
    return Path(path if home else os.path.expanduser(path))


class _Folder(NamedTuple):
    """An open folder: files are reached from it, whatever its path leads to by now."""

    path: Path
    handle: int | None  # None where a system can't open folders

    def open(self, name: str, flags: int) -> int:
        if self.handle is None:
            return os.open(self.path / name, flags | _PLAIN, 0o600)
        return os.open(name, flags | _PLAIN, 0o600, dir_fd=self.handle)

    def read(self, name: str) -> bytes:
        """The content of a file of ours; an OSError where there is none."""
        handle = self.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with open(handle, "rb") as file:
            status = os.fstat(handle)
            why = _distrust(status) if stat.S_ISREG(status.st_mode) else "is no file"
            if why:
                raise PermissionError(f"{name} {why}")
            with contextlib.suppress(OSError):
                os.utime(handle if os.utime in os.supports_fd else self.path / name)  # it was used
            return file.read()

    def write(self, name: str, content: bytes) -> None:
        """Write a file so that readers see all of it or none; an OSError where that fails."""
        unfinished = _unfinished()
        handle = self.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            with open(handle, "wb") as file:
                file.write(content)
            os.replace(self._at(unfinished), self._at(name), **self._from("src_dir_fd", "dst_dir_fd"))
        except OSError:
            with contextlib.suppress(OSError):
                self.delete(unfinished)
            raise

    def delete(self, name: str) -> None:
        os.unlink(self._at(name), **self._from("dir_fd"))

    def sweep(self) -> None:
        """Delete what killed processes left unfinished, and what was not used for longest where there is too much."""
        files = []
        with contextlib.suppress(OSError), os.scandir(self.path if self.handle is None else self.handle) as found:
            for entry in found:
                with contextlib.suppress(OSError):  # another process sweeps too
                    files.append((entry.name, entry.stat(follow_symlinks=False)))
        files.sort(key=lambda named: named[1].st_mtime)
        excess = sum(status.st_size for _, status in files) - MOST_BYTES
        for name, status in files:
            stale = name.startswith(_PREFIX) and time.time() - status.st_mtime > _STALE
            if stale or excess > 0:
                with contextlib.suppress(OSError):
                    self.delete(name)
                excess -= status.st_size

    def _at(self, name: str) -> str:
        return name if self.handle is not None else str(self.path / name)

    def _from(self, *names: str) -> dict[str, int]:
        return {} if self.handle is None else dict.fromkeys(names, self.handle)


def _unfinished() -> str:
    return f"{_PREFIX}{os.getpid()}-{os.urandom(8).hex()}"


def _distrust(status: os.stat_result) -> str:
    """Why what lies in a folder or file may be somebody else's; empty if it can only be ours."""
    if not _PRIVATE:
        return ""
    if status.st_uid != os.getuid():
        return "belongs to another user"
    return "can be written by others (chmod 700 mends it)" if stat.S_IMODE(status.st_mode) & _OTHERS else ""


def _directories(path: Path) -> Iterator[str]:
    """The directories that decide where a path leads, those on the way of links too."""
    at, rest, links = "/", list(path.parts[:0:-1]), 0
    while rest:
        yield at
        part = rest.pop()
        further = os.path.normpath(os.path.join(at, part)) if part != ".." else os.path.dirname(at)
        if not os.path.islink(further):
            at = further
            continue
        links += 1
        if links > 40:
            raise OSError(f"{path} goes in circles")
        target = os.readlink(further)
        at = "/" if os.path.isabs(target) else at
        rest += [part for part in Path(target).parts[::-1] if part != "/"]


def _foreign(path: Path) -> str:
    """Which directory others could use to put another folder in the place of this one; empty for none."""
    for directory in _directories(path) if _PRIVATE else ():
        try:
            status = os.stat(directory)
        except FileNotFoundError:
            return ""  # it will be ours
        mode = stat.S_IMODE(status.st_mode)
        if status.st_uid not in (0, os.getuid()):
            return f"{directory}, on the way to {path}, belongs to another user"
        if mode & _OTHERS and not mode & stat.S_ISVTX and not (mode & _OTHERS == 0o020 and _is_private_group(status.st_gid)):
            return f"{directory}, on the way to {path}, can be written by others"
    return ""


def _is_private_group(number: int) -> bool:
    """Whether a group is the one that many systems make for each user, with nobody else in it."""
    import grp
    import pwd

    try:
        group, name = grp.getgrgid(number), pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return False
    return group.gr_name == name and set(group.gr_mem) <= {name}


@cache
def _open_folder(path: Path) -> tuple[_Folder | None, str]:
    """A folder, made if needed; or why it can't be trusted."""
    if not path.is_absolute():
        return None, f"{path} is no absolute path"
    handle = None
    try:
        why = _foreign(path)
        if why:
            return None, why
        for directory in (*reversed(path.parents), path):
            if not directory.exists():
                directory.mkdir(mode=0o700, exist_ok=True)
        if path.is_symlink():
            return None, f"{path} is a link; name the folder that it leads to"
        if _PRIVATE:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | _PLAIN)
        status = os.stat(path) if handle is None else os.fstat(handle)
    except OSError as error:
        return None, f"{path} can't be used: {error}"
    why = _distrust(status) if stat.S_ISDIR(status.st_mode) else "is no folder"
    if why:
        if handle is not None:
            os.close(handle)
        return None, f"{path} {why}"
    folder = _Folder(path, handle)
    folder.sweep()
    return folder, ""


def folder() -> _Folder | None:
    """The folder, made if needed; None where it can't be trusted (one warning says why)."""
    found, why = _open_folder(folder_path())
    if why:
        _warn_once(why)
    return found


def folder_problem() -> str:
    """Why kernels can't be kept in the folder; empty if they can."""
    found, why = _open_folder(folder_path())
    if found is not None:
        try:
            name = _unfinished()
            found.write(name, b"")
            found.delete(name)
        except OSError as error:
            return f"{found.path} can't be written: {error}"
    return why


@cache
def _warn_once(why: str) -> None:
    """A warning, which does not become an error: a step is as good without the folder."""
    told = (
        f"optimkit: compiled kernels are not kept, each process compiles again: {why}. "
        "Set OPTIMKIT_CACHE_DIR to a folder of your own"
    )
    try:
        warnings.warn(told, RuntimeWarning, stacklevel=2)
    except RuntimeWarning:  # where warnings are errors
        import logging

        logging.getLogger("optimkit").warning(told)


def keep(name: str, content: bytes) -> None:
    """Write a file for later processes; one warning where that fails."""
    found = folder()
    if found is None:
        return
    try:
        found.write(name, _checksum(name, content) + content)
    except FileNotFoundError:  # the folder was deleted since it was opened: make another
        _open_folder.cache_clear()
    except OSError:
        _warn_once(f"{found.path} is read-only, or full")
    else:
        found.sweep()


def kept(name: str) -> bytes | None:
    """What was kept under this very name; None if there is nothing, or not what was written, or not by us."""
    folder_ = folder()
    try:
        found = folder_.read(name) if folder_ is not None else b""
    except OSError:
        return None
    checksum, content = found[:32], found[32:]
    return content if checksum == _checksum(name, content) else None


def _checksum(name: str, content: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\0" + content).digest()


@cache
def say_compiling() -> None:
    """Say once in a process that it is slower to start, since it compiles."""
    import logging  # takes a tenth of a start without compiling, which does not need it

    found = folder()
    logging.getLogger("optimkit").info(
        "compiling kernels, which takes some tenths of a second for each rule and dtype, %s",
        f"once: they are kept in {found.path}" if found is not None else "in every process: they can't be kept",
    )


def digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:24]
