"""What a reader needs to judge a figure: machine, versions, command."""

import importlib.metadata
import os
import platform
import shlex
import sys
import time
from pathlib import Path

from intformer.backends.cpu.host import cpu_name

PACKAGES = (
    *("intformer", "numpy", "torch", "transformers", "onnx", "onnxruntime", "openvino", "nncf"),
    "ctranslate2",
)


def machine() -> dict[str, object]:
    """Return the machine and the hour."""
    flags = Path("/proc/cpuinfo").read_text().split()
    units = [name for name in ("avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16") if name in flags]
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "CPU": cpu_name(),
        "units": ", ".join(units),
        "CPUs allowed": len(os.sched_getaffinity(0)),
        "memory": f"{pages / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "started": time.strftime("%Y-%m-%d %H:%M %Z"),
        "load at the start": f"{os.getloadavg()[0]:.1f}",
    }


def versions() -> dict[str, str]:
    """Return the versions of the packages that matter, as far as they are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            pass
    return found


def command() -> str:
    """Return the command line of this process."""
    return shlex.join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])
