"""ONNX Runtime's library for ARM under the emulator, with the INT8 graph of `make bench`."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from intformer.frontend.shapes import SHAPES, random_model

VERSION = "1.31.1"
RACE = Path(__file__).parents[2] / "race"
CPUINFO = """processor\t: {number}
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc \
dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

"""


def library(folder: Path) -> Path:
    """Return ONNX Runtime for ARM: out of its wheel, which is downloaded if it is not there."""
    path = folder / f"onnxruntime/capi/libonnxruntime.so.{VERSION}"
    if not path.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", folder]
        command += ["--only-binary", ":all:", "--platform", "manylinux_2_28_aarch64"]
        subprocess.run([*command, f"onnxruntime=={VERSION}"], check=True)
        with zipfile.ZipFile(next(folder.glob("onnxruntime-*aarch64.whl"))) as wheel:
            wheel.extract(str(path.relative_to(folder)), folder)
    return path


def graph(folder: Path, shape: str, tokens: int) -> Path:
    """Return the INT8 graph, made by the contestant of `make bench` where it is not there."""
    path = folder / "rivals" / shape / "ort-int8.onnx"
    if not path.exists():
        about = SHAPES[shape]
        source = folder / "sources" / shape
        source.mkdir(parents=True, exist_ok=True)
        spec = {"mode": "int8", "model": shape, "source": str(random_model(shape, source))}
        spec |= {"heads": about["num_attention_heads"], "hidden": about["hidden_size"]}
        spec |= {"vocab": about["vocab_size"], "threads": 1, "batch": 1, "seq": tokens}
        contestant = RACE / "intformer_race/contestants/ort.py"
        env = {
            **os.environ,
            "RACE_CACHE": str(folder / "rivals"),
            "PYTHONPATH": os.pathsep.join([str(RACE)]),
        }
        command = [sys.executable, contestant, json.dumps(spec)]
        subprocess.run(command, env=env, stdin=subprocess.DEVNULL, check=True)
    return path


def root(folder: Path, libraries: Path) -> Path:
    """Return a folder that the emulator looks into first: it reads /proc/cpuinfo of a Cortex-A76.

    This machine's own says nothing that it understands.
    """
    path = folder / "root"
    (path / "proc").mkdir(parents=True, exist_ok=True)
    if not (path / "lib").exists():
        (path / "lib").symlink_to(libraries / "lib")
    cpus = range(os.cpu_count())
    text = "".join(CPUINFO.format(number=number) for number in cpus)
    (path / "proc/cpuinfo").write_text(text)
    return path
