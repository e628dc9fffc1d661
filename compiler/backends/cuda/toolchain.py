"""CUDA C -> cubin and PTX, by nvcc where there is one, by the NVRTC library otherwise.

Both hold the same compiler. nvcc is a program that also wants gcc for its preprocessor; NVRTC is
one library of 100 MB that a package brings. Compiling needs no GPU and no driver.
"""

import ctypes
import ctypes.util
import functools
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from intformer import knobs, scratch
from intformer.backends.object_cache import ObjectCache
from intformer.errors import CompileError

# Nothing here changes what integers come out; -v makes ptxas report registers and spills.
OPTIONS = ("-std=c++17",)
PTXAS_OPTIONS = ("-O3", "-v")
INSTALL = "pip install 'intformer[cuda]', or put nvcc and gcc on PATH"
NVCC_PACKAGES = ("nvidia-cuda-nvcc",)
NVRTC_PACKAGES = ("nvidia-cuda-nvrtc-cu12", "nvidia-cuda-nvrtc")
HOMES = ("/usr/local/cuda",)  # where toolkits are when CUDA_HOME and CUDA_PATH do not say
SOURCE = "kernels.cu"  # what diagnostics call the source
# the PTX that brought a chip's own instructions: a driver takes no PTX newer than itself
PTX_VERSIONS = {"sm_75": "6.5", "sm_80": "7.0", "sm_86": "7.1", "sm_89": "7.8", "sm_90": "7.8"}
# NVRTC knows the widths of its types, but brings no C headers
STDINT = """#pragma once
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
"""
HEADERS = {"stdint.h": STDINT, "cstdint": STDINT}


@dataclass(frozen=True)
class Usage:
    """What one kernel takes of the chip, as ptxas reports it.

    registers     of a thread
    shared        static shared memory of a block, bytes
    spill_stores  bytes that each thread moves to local memory because registers ran out
    spill_loads   bytes moved back
    stack         bytes of a thread's frame in local memory
    """

    registers: int
    shared: int
    spill_stores: int
    spill_loads: int
    stack: int


@dataclass(frozen=True)
class Built:
    """A compiled CUDA source.

    cubin  machine code for one chip generation
    ptx    assembly text that the driver compiles for newer ones, UTF-8 without a final zero;
           of the version in PTX_VERSIONS
    usage  by kernel, in the order ptxas met them
    """

    cubin: bytes
    ptx: bytes
    usage: dict[str, Usage]


@dataclass(frozen=True)
class Compiler:
    """A way to compile.

    version  what to tell two compilers apart by, and what people may read
    compile  (source, arch) -> (cubin, PTX, log); raises CompileError
    """

    version: str
    compile: Callable[[str, str], tuple[bytes, bytes, str]]


def build(
    source: str, arch: str, cache: ObjectCache | None = None, *, compiler: Compiler | None = None
) -> Built:
    """Compile CUDA C that defines extern "C" kernels.

    arch      "sm_75": the cubin is for this chip generation, the PTX for compute_75
    cache     where results are kept from one compilation to the next; None: nowhere
    compiler  None takes the one that `find` finds
    """
    if not re.fullmatch(r"sm_\d{2,3}[af]?", arch):
        raise CompileError(f"arch {arch!r}", where="cuda toolchain", hint='"sm_75" is meant')
    compiler = compiler or find()
    ptx_version = PTX_VERSIONS.get(arch)
    about = ["cuda", compiler.version, OPTIONS, PTXAS_OPTIONS, arch, ptx_version, source]
    key = hashlib.sha256(json.dumps(about).encode()).hexdigest()
    if cache and (known := cache.get(key)) is not None:
        return _unpack(known)
    cubin, ptx, log = compiler.compile(source, arch)
    built = Built(cubin, _for_old_drivers(ptx.rstrip(b"\0"), arch), read_usage(log))
    if cache:
        try:
            cache.put(key, _pack(built))
            cache.trim()
        except OSError:  # a folder that cannot be written costs time, no more
            pass
    return built


def _for_old_drivers(ptx: bytes, arch: str) -> bytes:
    """Return PTX that says the oldest version it needs; compilers write their own, the newest."""
    oldest = PTX_VERSIONS.get(arch)
    return re.sub(rb"(?m)^\.version .*$", f".version {oldest}".encode(), ptx) if oldest else ptx


def find() -> Compiler:
    """Return nvcc where it is usable, else NVRTC; CompileError where there is neither."""
    if program := usable_nvcc():
        return nvcc(program)
    if library := nvrtc_library():
        return nvrtc(library)
    raise CompileError(
        "no nvcc with a gcc, and no NVRTC library", where="cuda toolchain", hint=INSTALL
    )


def usable_nvcc() -> str | None:
    """Return the path of nvcc where it has its back end and a gcc."""
    if not shutil.which("gcc") and not knobs.nvcc_host_compiler():
        return None
    return find_program("nvcc", NVCC_PACKAGES, _complete)


def find_program(
    name: str, packages: tuple[str, ...] = (), usable: Callable[[str], bool] = lambda path: True
) -> str | None:
    """Return the path of one of CUDA's programs: from PATH, CUDA_HOME, CUDA_PATH or a package."""
    places = [shutil.which(name), *(f"{home}/bin/{name}" for home in homes())]
    places += [str(path) for path in package_files(packages) if path.name == name]
    fitting = (p for p in places if p and os.access(p, os.X_OK) and usable(p))
    return next(fitting, None)


def homes() -> list[str]:
    """Return the folders where a toolkit may be."""
    return [*knobs.cuda_homes(), *HOMES]


def package_files(packages: tuple[str, ...]) -> list[Path]:
    """Return the files of those packages that are installed."""
    found = []
    for package in packages:
        try:
            distribution = importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        found += [Path(distribution.locate_file(file)) for file in distribution.files or ()]
    return found


def _complete(program: str) -> bool:
    """Tell whether nvcc has its back end beside it: its package comes without.

    A program on PATH may be a script that calls nvcc elsewhere, so only a package is judged.
    """
    if "site-packages" not in program:
        return True
    return (Path(program).parents[1] / "nvvm" / "bin" / "cicc").exists()


@functools.cache
def nvcc(program: str) -> Compiler:
    """Return nvcc as a compiler."""
    answer = subprocess.run([program, "--version"], capture_output=True, text=True)
    version = re.search(r"\bV(\d+\.\d+\.\d+)", answer.stdout)
    if answer.returncode or not version:
        raise CompileError("does not say its version", where=program, hint=INSTALL)

    def compile(source: str, arch: str) -> tuple[bytes, bytes, str]:
        with scratch.folder() as folder:
            path = Path(folder, SOURCE)
            path.write_text(source)
            generation = arch.removeprefix("sm_")
            command = [program, "-cubin", *OPTIONS, "-Xptxas", ",".join(PTXAS_OPTIONS)]
            command += ["-gencode", f"arch=compute_{generation},code=sm_{generation}"]
            # the PTX that the cubin is made from stays behind
            command += ["--keep", "--keep-dir", folder, "-o", f"{folder}/out.cubin", str(path)]
            run = subprocess.run(command, capture_output=True, text=True)
            log = (run.stdout + run.stderr).replace(f"{folder}/", "")
            if run.returncode:
                raise _refused(source, log, program)
            ptx = path.with_suffix(".ptx").read_bytes()
            return Path(folder, "out.cubin").read_bytes(), ptx, log

    return Compiler(f"nvcc {version[1]}", compile)


def nvrtc_library() -> str | None:
    """Return the path of libnvrtc, or a name that the loader knows."""
    for path in package_files(NVRTC_PACKAGES):
        if path.name.startswith("libnvrtc.so") and path.exists():
            return str(path)
    for home in homes():
        if (path := Path(home, "lib64", "libnvrtc.so")).exists():
            return str(path)
    return ctypes.util.find_library("nvrtc")


@functools.cache
def nvrtc(library: str) -> Compiler:
    """Return NVRTC as a compiler."""
    try:
        api = ctypes.CDLL(library)
        get_cubin = api.nvrtcGetCUBIN, api.nvrtcGetCUBINSize
    except (OSError, AttributeError) as error:
        raise CompileError(
            f"is no NVRTC that makes cubins: {error}", where=library, hint=INSTALL
        ) from None
    get_ptx = api.nvrtcGetPTX, api.nvrtcGetPTXSize
    get_log = api.nvrtcGetProgramLog, api.nvrtcGetProgramLogSize
    major, minor = ctypes.c_int(), ctypes.c_int()
    api.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))

    def text(get, size_of, program) -> bytes:
        size = ctypes.c_size_t()
        size_of(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        get(program, buffer)
        return buffer.raw

    def compile(source: str, arch: str) -> tuple[bytes, bytes, str]:
        program = ctypes.c_void_p()
        count = len(HEADERS)
        bodies = (ctypes.c_char_p * count)(*(body.encode() for body in HEADERS.values()))
        names = (ctypes.c_char_p * count)(*(name.encode() for name in HEADERS))
        made = api.nvrtcCreateProgram(
            ctypes.byref(program), source.encode(), SOURCE.encode(), count, bodies, names
        )
        if made:
            raise CompileError(f"error {made} of nvrtcCreateProgram", where=library)
        try:
            options = [f"--gpu-architecture={arch}", *OPTIONS]
            options += [f"--ptxas-options={option}" for option in PTXAS_OPTIONS]
            array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            failed = api.nvrtcCompileProgram(program, len(options), array)
            log = text(*get_log, program).rstrip(b"\0").decode(errors="replace")
            if failed:
                raise _refused(source, log, library)
            return text(*get_cubin, program), text(*get_ptx, program), log
        finally:
            api.nvrtcDestroyProgram(ctypes.byref(program))

    return Compiler(f"NVRTC {major.value}.{minor.value}", compile)


def _refused(source: str, log: str, program: str) -> CompileError:
    """Return the first diagnostic, with the line of the source that it names."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    first = next((line for line in lines if re.search(r"\b(error|fatal)\b", line)), "")
    first = first or (lines[0] if lines else "it fails without a word")
    where = program
    if at := re.match(rf"{re.escape(SOURCE)}\((\d+)\): *(.*)", first):
        number, first = int(at[1]), at[2]
        body = source.splitlines()
        line = body[number - 1].strip() if number <= len(body) else ""
        where = f"CUDA source, line {number}: {line[:100]}"
    return CompileError(first, where=where)


def read_usage(log: str) -> dict[str, Usage]:
    """Return what `ptxas -v` printed for each kernel."""
    found: dict[str, Usage] = {}
    parts = re.split(r"Compiling entry function '([^']+)'", log)
    for name, part in zip(parts[1::2], parts[2::2], strict=True):
        registers = re.search(r"Used (\d+) registers", part)
        frames = re.findall(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part
        )
        if not registers or not frames:
            continue
        shared = re.search(r"(\d+) bytes smem", part)
        # functions that were not inlined report after their kernel; they count with it
        stack, stores, loads = (sum(map(int, column)) for column in zip(*frames, strict=True))
        found[name] = Usage(
            int(registers[1]), int(shared[1]) if shared else 0, stores, loads, stack
        )
    return found


def _pack(built: Built) -> bytes:
    usage = {name: asdict(usage) for name, usage in built.usage.items()}
    return json.dumps([len(built.cubin), usage]).encode() + b"\n" + built.cubin + built.ptx


def _unpack(data: bytes) -> Built:
    head, _, body = data.partition(b"\n")
    size, usage = json.loads(head)
    return Built(body[:size], body[size:], {name: Usage(**u) for name, u in usage.items()})
