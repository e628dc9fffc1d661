"""The fake GPU driver of fake_cuda.c: built, and put before the real one of a process."""

import os
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")


def build(folder: Path) -> Path:
    """Compile libcuda.so.1 into `folder`; return its path."""
    path = Path(folder) / "libcuda.so.1"
    command = ["cc", "-std=gnu11", "-g", "-O1", "-Wall", "-Wextra", "-fPIC", "-shared"]
    options = ["-fvisibility=hidden", f"-Wl,-soname,{path.name}", "-Wl,-Bsymbolic", "-lpthread"]
    subprocess.run([*command, SOURCE, "-o", path, *options], check=True)
    return path


def environment(driver: Path, kernels: Path | None = None, **settings: object) -> dict[str, str]:
    """Return the environment of a process that has the fake driver.

    driver    what `build` returned
    kernels   shared library with the emulated kernels
    settings  of fake_cuda.c without FAKE_CUDA_: fail="cuInit=100", gpu="8.0", memory=1000
    """
    before = os.environ.get("LD_LIBRARY_PATH")
    folders = [str(driver.parent), *([before] if before else [])]
    env = {**os.environ, "LD_LIBRARY_PATH": ":".join(folders)}
    if kernels:
        env["FAKE_CUDA_KERNELS"] = str(kernels)
    return env | {f"FAKE_CUDA_{name.upper()}": str(value) for name, value in settings.items()}
