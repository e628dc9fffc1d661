"""Plan + kernels + data -> one shared library that needs libc, libm and libpthread alone.

A library for GPUs opens the NVIDIA driver when it first runs; no CUDA library is linked.

Everything is checked and linked beside the destination and renamed last: either a whole library
is there afterwards, or nothing.
"""

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

import intformer
from intformer import scratch
from intformer.backends import targets
from intformer.backends.backend import Backend
from intformer.errors import CompileError, installed
from intformer.ir.constants import BLOCK
from intformer.ir.model import INPUTS, ROWS, IntModel
from intformer.ir.plan import Buffer, Plan, Variant
from intformer.link import plan_c
from intformer.link.elf import Elf
from intformer.passes.memory import bytes_per_row
from intformer.runtime import footer
from intformer.runtime.file import ENTRY, INDEX, INDEX_MAGIC, find_data
from intformer.runtime.image import Image

SOURCES = Path(__file__).parent / "c"
HEADERS = ("intformer.h", "intformer.hpp", "intformer_open.c")  # for users
GLIBC_FLOOR = (2, 34)  # libraries run on this glibc and newer; the build fails if one would not
NEEDED = {"libc.so.6", "libm.so.6", "libpthread.so.0"}
GPU_TILE = 128  # rows: GPU_TILE of plan.h
GPU_GRID = 65535  # blocks of a grid in its second and third dimension
CFLAGS = [
    *("-std=gnu11", "-O2", "-fPIC", "-fvisibility=hidden"),
    *("-ffunction-sections", "-fno-strict-aliasing", "-D__NO_INLINE__", "-Wall", "-Wextra"),
    "-U_FORTIFY_SOURCE",  # whose functions musl does not have
]
LDFLAGS = [
    *("-shared", "-Wl,-Bsymbolic", "-Wl,--gc-sections", "-Wl,--as-needed"),
    *("-Wl,-z,defs", "-Wl,-z,nodelete", "-Wl,-z,noexecstack", "-Wl,-z,relro", "-Wl,-z,now"),
]
CC_LDFLAGS = ["-nostartfiles", "-Wl,-z,separate-code", "-Wl,--strip-debug"]
ZIG_LDFLAGS = ["-Wl,-T,zig.ld"]  # zig takes --strip-debug for -s: symbols name what verify reads
BUILD_KEYS = {  # of metadata.json that are not the model's; `warnings` joins those of both
    *("name", "intformer", "abi_version", "target", "variants", "inputs", "output", "output_rows"),
    *("output_channels", "limits", "bytes_per_row", "glibc", "kernels", "steps", "tuning"),
    "warnings",
}
LIBRARIES = ["-lc", "-lm", "-lpthread"]


@dataclass
class _Job:
    """One library to be: what `build` was given, checked."""

    plan: Plan
    variants: list[Variant]
    model: IntModel
    name: str
    limits: dict[str, int]
    backend: Backend


def build(
    plan: Plan,
    variants: Sequence[Variant],
    model: IntModel,
    path: Path,
    *,
    target: str,
    name: str | None = None,
    metadata: dict | None = None,
    header: bool = False,
) -> Path:
    """Link the library and return its path.

    plan      steps, buffers, packed constants
    variants  kernels, the fastest first: the first that fits a CPU or GPU runs there
    model     graph, meta, tokenizer files, and the tensors whose SHA-256 is recorded
    path      the library to write
    target    name of the target, see backends.targets
    name      C identifier of intformer_get_<name>; default: from the file name
    metadata  more keys for metadata.json
    header    also write HEADERS beside the library
    """
    path = Path(path)
    name = identifier(name or path.name.removeprefix("lib").split(".")[0])
    variants = [replace(v, features=sorted(set(v.features))) for v in variants]
    _check_plan(plan)
    backend = targets.get(target).backend
    for variant in variants:
        backend.check_variant(plan, variant)
    checked = limits(plan, model.meta)
    output = plan.buffers[plan.output]
    about = {
        **model.meta,
        **(metadata or {}),
        "name": name,
        "intformer": intformer.__version__,
        "abi_version": footer.ABI_VERSION,
        "target": target,
        "variants": [
            {"name": v.name, "cpu_features": v.features, "arch": v.arch} for v in variants
        ],
        "inputs": list(plan.inputs),
        "output": plan.output,
        "output_rows": output.rows,
        "output_channels": output.channels,
        "limits": checked,
        "bytes_per_row": bytes_per_row(plan),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch.folder(path.parent, path.name) as folder:
            job = _Job(plan, variants, model, name, checked, backend)
            done = _build_in(Path(folder), job, path.name, about)
            if header:
                for file in HEADERS:
                    shutil.copyfile(SOURCES / file, Path(folder) / file)
                    os.replace(Path(folder) / file, path.parent / file)
            os.replace(done, path)
    except OSError as error:
        raise CompileError(f"cannot write library: {error.strerror}", where=str(path)) from error
    return path


def compiler(backend: Backend | None = None) -> list[str]:
    """Return the command of a C compiler: cc, else the ziglang package.

    backend  whose libraries it makes; None: for this machine. cc makes code for its own machine
    """
    backend = backend or targets.host()
    cc = shutil.which("cc")
    if cc and (backend is None or backend.code.runs_here()):
        return [cc]
    if importlib.util.find_spec("ziglang"):
        triple = ["-target", backend.zig_triple] if backend else []
        return [sys.executable, "-m", "ziglang", "cc", *triple]
    if cc:
        raise CompileError(
            f"no C compiler for {backend.code.machines[0]}: `cc` makes code for this machine",
            hint="pip install ziglang",
        )
    raise CompileError(
        "no C compiler: neither `cc` on PATH nor the ziglang package",
        hint="apt install gcc, or pip install ziglang",
    )


def musl_compiler(backend: Backend) -> list[str]:
    """Return the command of zig as the C compiler of programs for a machine with musl."""
    if not importlib.util.find_spec("ziglang"):
        raise CompileError("no C compiler for musl", hint="pip install ziglang")
    triple = backend.code.zig_triple.partition("-gnu")[0] + "-musl"
    return [sys.executable, "-m", "ziglang", "cc", "-target", triple]


def missing_tools(backend: Backend) -> list[str]:
    """Return what this machine lacks to make libraries of a back end."""
    lacks = [name for name in ("tvm", *backend.packages) if not installed(name)]
    try:
        compiler(backend)
    except CompileError:
        lacks.append("a C compiler for it")
    return lacks + backend.missing_compiler()


def compiler_files_in(folder: Path) -> dict[str, str]:
    """Return an environment in which a C compiler keeps all it writes in a folder."""
    return {**os.environ, "TMPDIR": str(folder), "ZIG_LOCAL_CACHE_DIR": str(folder / "zig")}


def identifier(text: str) -> str:
    """Return the C identifier that a text becomes."""
    name = re.sub(r"\W", "_", text, flags=re.ASCII)
    if not name or name[0].isdigit():
        name = f"m{name}"
    return name


def _check_plan(plan: Plan) -> None:
    known = {*INPUTS, *plan.buffers, *plan.constants}
    for number, step in enumerate(plan.steps):
        where = f"step {number}, kernel {step.kernel}"
        if unknown := [a for a in (*step.args, *step.outputs) if a not in known]:
            raise CompileError(f"unknown argument {unknown[0]!r}", where=where)
        if used := [a for a in step.args if a in INPUTS and a not in plan.inputs]:
            raise CompileError(f"{used[0]!r} is missing in plan.inputs", where=where)
    output = plan.buffers.get(plan.output)
    if output is None or output.dtype != "int32":
        raise CompileError(f"output {plan.output!r} is not an int32 buffer", where="plan")


def limits(plan: Plan, meta: dict) -> dict[str, int]:
    """Return what the library checks input numbers against, from the model's meta."""
    try:
        first = {"column": 0, "padding": (meta.get("pad_token_id") or 0) + 1}[meta["position_rule"]]
        length = int(meta["max_length"])
        # kernels count numbers in int32, those that are launched bytes
        launched, buffers = bool(plan.launches), plan.buffers.values()
        widest = max(b.width * (np.dtype(b.dtype).itemsize if launched else 1) for b in buffers)
        tile = GPU_TILE if launched else BLOCK
        rows = (2**31 - 1) // widest
        for *_, last in plan.launches.values():  # the version without a limit
            for of, divisor, factor in last.grid[1:]:
                if of in ROWS:
                    rows = min(rows, max(tile, GPU_GRID // factor * divisor))
        return {
            "vocab_size": int(meta["vocab_size"]),
            "type_vocab_size": int(meta.get("type_vocab_size") or 1),
            "first_position": first,
            "positions": first + length,
            "max_length": length,
            "max_rows": rows // tile * tile,
        }
    except KeyError as error:
        raise CompileError(f"missing or unknown {error}", where="meta of the model") from None


# ---- data carried along ----


def _plan_json(plan: Plan) -> dict:
    def buffer(b: Buffer) -> dict:
        channel_map = None if b.channel_map is None else np.asarray(b.channel_map).tolist()
        return {
            "dtype": b.dtype,
            "rows": b.rows,
            "width": b.width,
            "channels": b.channels,
            "zero_point": b.zero_point,
            "channel_map": channel_map,
        }

    return {
        "steps": [
            {"kernel": s.kernel, "args": list(s.args), "outputs": list(s.outputs)}
            for s in plan.steps
        ],
        "launches": {kernel: [asdict(v) for v in vs] for kernel, vs in plan.launches.items()},
        "buffers": {name: buffer(b) for name, b in plan.buffers.items()},
        "inputs": list(plan.inputs),
        "output": plan.output,
    }


def _to_json(data: dict) -> bytes:
    return json.dumps(data, sort_keys=True, separators=(",", ":")).encode()


def _sections(job: _Job, about: dict) -> dict[str, bytes]:
    plan, model = job.plan, job.model

    packing = {
        name: {
            "dtype": str(array.dtype),
            "shape": list(array.shape),
            "packing": plan.packing.get(name),
        }
        for name, array in plan.constants.items()
    }
    tensors = {
        name: {
            "dtype": str(array.dtype),
            "shape": list(array.shape),
            "sha256": hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest(),
        }
        for name, array in model.tensors.items()
    }
    return {
        **{f"constants/{name}": _bytes(array) for name, array in plan.constants.items()},
        **{f"files/{name}": data for name, data in model.files.items()},
        **_code_sections(job.variants),
        "plan.json": _to_json(_plan_json(plan)),
        "graph.json": _to_json(model.to_json()),
        "packing.json": _to_json(packing),
        "tensors.json": _to_json(tensors),
        "metadata.json": _to_json(about),
    }


def _code_sections(variants: Sequence[Variant]) -> dict[str, bytes]:
    sections = {}
    for variant in variants:
        sections[f"tir/{variant.name}.json.xz"] = variant.tir
        sections |= variant.carried
    return sections


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _write_blob(
    path: Path, sections: dict[str, bytes], align: int
) -> tuple[dict[str, tuple[int, int]], int]:
    """Write the index and the sections, each aligned; return name -> (offset, size), and all bytes.

    A zero byte follows each section: the driver reads PTX as a C string.
    """
    head = INDEX.size + ENTRY.size * len(sections)
    names = b"".join(name.encode() + b"\0" for name in sections)
    at = _aligned(head + len(names), align)
    index: dict[str, tuple[int, int]] = {}
    for name, data in sections.items():
        index[name] = (at, len(data))
        at = _aligned(at + len(data) + 1, align)
    with path.open("wb") as file:
        file.write(INDEX.pack(INDEX_MAGIC, len(sections)))
        for name, (offset, size) in index.items():
            file.write(ENTRY.pack(head, offset, size))
            head += len(name.encode()) + 1
        file.write(names)
        for name, data in sections.items():
            file.write(bytes(index[name][0] - file.tell()))
            file.write(data)
        file.write(bytes(at - file.tell()))
    return index, at


def _aligned(size: int, align: int) -> int:
    return -(-size // align) * align


_BLOB_S = """\
# {build_id}: zig caches objects by the text of their source and does not look into .incbin
.section .rodata.intformer_blob,"a",@progbits
.balign 4096
.globl intformer_blob
.hidden intformer_blob
.type intformer_blob,@object
intformer_blob:
.incbin "blob"
.size intformer_blob,.-intformer_blob
# where readers of the file find plan_table: runtime/file.py
.section .note.intformer,"a",@note
.balign 4
.long 10, 8, 1
.asciz "intformer"
.balign 4
.quad intformer_plan - .
.section .note.GNU-stack,"",@progbits
"""


# ---- compiling and linking ----


def call(command: list[str], folder: Path, what: str) -> None:
    """Run a C compiler in a folder; raise CompileError with what it says is wrong.

    what  it does, for the error
    """
    try:
        result = subprocess.run(
            command, cwd=folder, env=compiler_files_in(folder), capture_output=True, text=True
        )
    except OSError as error:
        raise CompileError(
            f"cannot start the C compiler: {error.strerror}",
            where=command[0],
            hint="is it the program of this system, and allowed to run?",
        ) from error
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        fault = next((line for line in lines if "error" in line or "undefined" in line), None)
        reason = fault or (lines[-1] if lines else f"exit code {result.returncode}")
        raise CompileError(f"{what} failed: {reason.strip()}", where=command[0])


def _build_in(folder: Path, job: _Job, file_name: str, about: dict) -> Path:
    """Compile and link in `folder`; return the finished file in it.

    Linked twice: the glibc floor is read from a first library, without the data, and written into
    the metadata of the second.
    """
    cc, cflags = compiler(job.backend), [*CFLAGS, *job.backend.code.cflags]
    for file in SOURCES.iterdir():
        shutil.copyfile(file, folder / file.name)
    kernels = []  # each variant's together, which is how check_machine_code tells them apart
    for path in (path for variant in job.variants for path in variant.objects):
        kernels.append(f"kernels{len(kernels)}.o")
        shutil.copyfile(path, folder / kernels[-1])
    runtime = job.backend.runtime
    fixed = [f"{source}.o" for source in runtime]
    for source, made in zip(runtime, fixed, strict=True):
        call([*cc, *cflags, "-c", f"{source}.c", "-o", made], folder, "compiling")

    def link(sections: dict[str, bytes]) -> tuple[bytes, dict[str, tuple[int, int]]]:
        index, size = _write_blob(folder / "blob", sections, job.backend.align)
        inputs = [folder / f for f in ("blob", *kernels, *(f"{source}.c" for source in runtime))]
        build_id = digest(inputs, json.dumps([job.name, about["variants"], job.limits]))
        tables = plan_c.source(
            job.plan,
            job.variants,
            job.backend,
            name=job.name,
            limits=job.limits,
            index=index,
            blob_size=size,
            build_id=build_id,
        )
        (folder / "plan.c").write_text(tables)
        (folder / "blob.s").write_text(_BLOB_S.format(build_id=build_id.hex()))
        call([*cc, *cflags, "-c", "plan.c", "-o", "plan.o"], folder, "compiling")
        call([*cc, "-c", "blob.s", "-o", "blob.o"], folder, "assembling")
        # -Xlinker: a comma in the name would end an argument of -Wl
        soname = ["-Xlinker", "-soname", "-Xlinker", file_name]
        script = ["-Wl,--version-script=exports.map", *soname, "-o", file_name]
        made = ["plan.o", *fixed, *kernels, "blob.o"]
        flags = [*LDFLAGS, *(ZIG_LDFLAGS if "ziglang" in cc else CC_LDFLAGS)]
        call([*cc, *flags, *script, *made, *LIBRARIES], folder, "linking")
        return build_id, index

    sections = _sections(job, about)
    link(dict.fromkeys(sections, b""))
    glibc = check_linked(folder / file_name, NEEDED | job.backend.code.needed)
    sections["metadata.json"] = _to_json({**about, "glibc": f"{glibc[0]}.{glibc[1]}"})
    build_id, index = link(sections)
    footer.append(folder / file_name, glibc, build_id, _read_later(folder / file_name, index))
    return folder / file_name


def _read_later(path: Path, index: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    """Return where in a linked file the sections lie that loading it does not read: start, bytes.

    Those are all but metadata.json, the last.
    """
    image = Image(memoryview(path.read_bytes()), str(path))
    _, _, blob, _ = find_data(image)
    segment = image.segment_at(blob)
    start = min(at for at, _ in index.values())
    end = index["metadata.json"][0]
    return segment.offset + blob - segment.vaddr + start, end - start


def digest(files: list[Path], more: str) -> bytes:
    """Return the SHA-256 of a text and of files."""
    found = hashlib.sha256(more.encode())
    for path in files:
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.digest()


def check_linked(path: Path, allowed: set[str]) -> tuple[int, int]:
    """Return the glibc floor of a linked file that needs no other libraries than it may."""
    elf = Elf(path)
    if extra := set(elf.needed()) - allowed:
        raise CompileError(f"{path.name} needs {min(extra)}", where="linking")
    floor = elf.glibc_floor()
    if floor > GLIBC_FLOOR:
        raise CompileError(
            f"{path.name} needs glibc {floor[0]}.{floor[1]}, newer than the promised "
            f"{GLIBC_FLOOR[0]}.{GLIBC_FLOOR[1]}",
            where="linking",
            hint="uninstall cc and use the ziglang package, or build on an older system",
        )
    return floor
