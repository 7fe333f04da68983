"""The folder of compiled kernels: private, written atomically, never trusted blindly.

`$OPTIMKIT_CACHE_DIR`, else `$XDG_CACHE_HOME/optimkit`, else `~/.cache/optimkit`; mode 0700, refused when
somebody else owns it or can write to it. A kernel's file is named by the hash of its text and of all that it
depends on, and begins with a checksum. A folder that is read-only or full is read, and one warning says that
nothing is added; without a folder kernels live in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
import time
import warnings
from functools import cache
from pathlib import Path

_PREFIX = ".new-"
_STALE = 3600.0  # seconds after which an unfinished file belongs to a process that was killed


def folder_path() -> Path:
    """Where kernels are kept, whether or not the folder can be used."""
    own = os.environ.get("OPTIMKIT_CACHE_DIR")
    if own:
        return Path(os.path.expanduser(own))
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "optimkit"


@cache
def _open_folder(path: Path) -> str:
    """Why a folder can't be trusted, after it was made if needed; empty if it can."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
    except OSError as error:
        return f"{path} can't be used: {error}"
    if hasattr(os, "getuid") and status.st_uid != os.getuid():
        return f"{path} belongs to another user"
    if hasattr(os, "getuid") and stat.S_IMODE(status.st_mode) & 0o022:
        return f"{path} can be written by others (chmod 700 mends it)"
    _sweep(path)
    return ""


def _sweep(path: Path) -> None:
    """Delete what killed processes left unfinished."""
    with contextlib.suppress(OSError):
        for left in path.glob(f"{_PREFIX}*"):
            if time.time() - left.stat().st_mtime > _STALE:
                left.unlink()


def folder() -> Path | None:
    """The folder, made if needed; None where it can't be trusted (one warning says why)."""
    path = folder_path()
    why = _open_folder(path)
    if why:
        _warn_once(why)
    return None if why else path


def folder_problem() -> str:
    """Why kernels can't be kept in the folder; empty if they can."""
    path = folder_path()
    try:
        why = _open_folder(path)
        if not why:
            with tempfile.TemporaryFile(dir=path):
                pass
    except OSError as error:
        return f"{path} can't be written: {error}"
    return why


@cache
def _warn_once(why: str) -> None:
    warnings.warn(
        f"optimkit: compiled kernels are not kept, each process compiles again: {why}. "
        "Set OPTIMKIT_CACHE_DIR to a folder of your own",
        RuntimeWarning,
        stacklevel=2,
    )


def keep(name: str, content: bytes) -> None:
    """Write a file for later processes; one warning where that fails."""
    path = folder()
    if path is not None and not write_atomically(path / name, _checksum(name, content) + content):
        _warn_once(f"{path} is read-only, or full")


def kept(name: str) -> bytes | None:
    """What was kept under this very name; None if there is nothing, or not what was written."""
    path = folder()
    try:
        found = (path / name).read_bytes() if path is not None else b""
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

    path = folder()
    logging.getLogger("optimkit").info(
        "compiling kernels, which takes some tenths of a second for each rule and dtype, %s",
        f"once: they are kept in {path}" if path is not None else "in every process: they can't be kept",
    )


def digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:24]


def write_atomically(path: Path, content: bytes) -> bool:
    """Write a file so that readers see all of it or none; False where that fails."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=_PREFIX)
    except OSError:
        return False
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(name)
        return False
    return True
