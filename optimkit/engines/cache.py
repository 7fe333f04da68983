"""The folder of compiled kernels: private, written atomically, never trusted blindly.

`$OPTIMKIT_CACHE_DIR`, else `$XDG_CACHE_HOME/optimkit`, else `~/.cache/optimkit`; mode 0700, refused
when somebody else owns it. A kernel's file is named by the hash of its text and of all that it
depends on. Where the folder can't be used, kernels live in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
import warnings
from functools import cache
from pathlib import Path


def folder_path() -> Path:
    """Where kernels are kept, whether or not the folder can be used."""
    own = os.environ.get("OPTIMKIT_CACHE_DIR")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "optimkit"


@cache
def _open_folder(path: Path) -> tuple[Path | None, str]:
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = path.stat()
        if hasattr(os, "getuid") and status.st_uid != os.getuid():
            return None, f"{path} belongs to another user"
        if stat.S_IMODE(status.st_mode) & 0o022:
            return None, f"{path} can be written by others (chmod 700 mends it)"
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, RuntimeError) as error:
        return None, f"{path} can't be used: {error}"
    return path, ""


def folder() -> Path | None:
    """The folder, made if needed; None where it can't be used (one warning says why)."""
    path, why = _open_folder(folder_path())
    if path is None:
        _warn_once(why)
    return path


def folder_problem() -> str:
    """Why the folder can't be used; empty if it can."""
    return _open_folder(folder_path())[1]


@cache
def _warn_once(why: str) -> None:
    warnings.warn(
        f"optimkit: compiled kernels are not kept, each process compiles again: {why}. "
        "Set OPTIMKIT_CACHE_DIR to a folder of your own",
        RuntimeWarning,
        stacklevel=2,
    )


def digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:24]


def write_atomically(path: Path, content: bytes) -> bool:
    """Write a file so that readers see all of it or none; False where that fails."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
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
