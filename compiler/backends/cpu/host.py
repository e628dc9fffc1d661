"""What Linux tells of this machine's CPU."""

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")


def cpuinfo() -> dict[str, str]:
    """Return the fields of /proc/cpuinfo, of the first CPU that has them; {} where it is not."""
    fields: dict[str, str] = {}
    try:
        for line in CPUINFO.read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    except OSError:
        return {}
    return fields


def cpu_name() -> str:
    """Return the CPU's own name, with family and model: virtual machines hide the name."""
    fields = cpuinfo()
    if not fields:
        return platform.processor() or platform.machine()
    numbers = "/".join(fields.get(k, "?") for k in ("cpu family", "model", "stepping"))
    return f"{fields.get('model name', platform.machine())} (family/model/stepping {numbers})"
