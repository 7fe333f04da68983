"""Clocks and temperature of a GPU while it is measured, as nvidia-smi tells them."""

from __future__ import annotations

import shutil
import subprocess

FIELDS = {
    "clocks.sm": "SM clock",
    "clocks.mem": "memory clock",
    "temperature.gpu": "temperature",
    "power.draw": "power",
    "clocks_throttle_reasons.active": "throttled",
}
UNITS = {"temperature.gpu": " C"}
NOT_KNOWN = "clocks and temperature are not known: no nvidia-smi"


def clocks(device: int = 0) -> dict[str, str]:
    """What nvidia-smi tells of a device now; empty where there is none, or no answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, f"--id={device}", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    values = [value.strip() for value in answer.splitlines()[0].split(",")] if answer.strip() else []
    return dict(zip(FIELDS, values, strict=False))


def clocks_text(found: dict[str, str]) -> str:
    """In one line."""
    if not found:
        return NOT_KNOWN
    return ", ".join(f"{FIELDS[name]} {value}{UNITS.get(name, '')}" for name, value in found.items())
