"""What has to stand before anything is launched: a device that answers, a context in each thread, no capture under way."""

from __future__ import annotations

import threading
from typing import Any


def refuse_capture() -> None:
    """Raise if the current stream is being captured: making buckets allocates, uploads and compiles."""
    import cupy

    if cupy.cuda.get_current_stream().is_capturing():
        raise RuntimeError(
            "the first step, and the first after a change of structure, can't be captured in a CUDA graph: it allocates and "
            "compiles; run one step with these arrays before the capture"
        )


class _Contexts(threading.local):
    """Of each thread: the devices that it has a context of."""

    def __init__(self) -> None:
        self.devices: set[int] = set()


_contexts = _Contexts()


def ready_thread(device: int) -> None:
    """Let this thread launch on a device, which is the current one: CuPy does so in its own launches, not in the driver's."""
    if device not in _contexts.devices:
        import cupy

        cupy.cuda.runtime.memGetInfo()
        _contexts.devices.add(device)


def check_device(device: Any) -> Any:
    """Raise ValueError if the device of an array is not there any more."""
    import cupy

    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise ValueError(f"the parameters are on {device}, but no CUDA device answers any more: {error}") from error
    if device.id >= count:
        raise ValueError(f"the parameters are on {device}, which is gone: there are {count} devices; move them with cupy")
    return device
