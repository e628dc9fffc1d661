"""Plan + object files + data -> one shared library that needs libc, libm and libpthread alone.

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
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

import intformer
from intformer import footer
from intformer.cpu_features import CPU_FEATURES
from intformer.elf import Elf
from intformer.errors import CompileError
from intformer.memory import ROWS, assign_slots
from intformer.model import INPUTS, IntModel
from intformer.plan import BLOCK, Buffer, Plan, symbol

SOURCES = Path(__file__).parent / "c"
GLIBC_FLOOR = (2, 34)  # libraries run on this glibc and newer; the build fails if one would not
NEEDED = {"libc.so.6", "libm.so.6", "libpthread.so.0"}
HOOKS = {  # weak variables in TVM's objects that compiler/c/pool.c fills
    "__TVMBackendParallelLaunch",
    "__TVMBackendAllocWorkspace",
    "__TVMBackendFreeWorkspace",
}
ALIGN = 64
ZIG_TARGET = "x86_64-linux-gnu.2.17"
CFLAGS = [
    *("-std=gnu11", "-O2", "-fPIC", "-fvisibility=hidden", "-mgeneral-regs-only"),
    *("-ffunction-sections", "-fno-strict-aliasing", "-D__NO_INLINE__", "-Wall", "-Wextra"),
]
LDFLAGS = [
    *("-shared", "-Wl,-Bsymbolic", "-Wl,--gc-sections", "-Wl,--strip-debug", "-Wl,--as-needed"),
    *("-Wl,-z,defs", "-Wl,-z,nodelete", "-Wl,-z,noexecstack", "-Wl,-z,relro", "-Wl,-z,now"),
]
RUNTIME = ("runtime", "pool", "cpu")  # sources in compiler/c that go into every library
LIBRARIES = ["-lc", "-lm", "-lpthread"]


@dataclass(frozen=True)
class Variant:
    """The kernels of a plan for one kind of chip.

    name      of the target they were compiled for
    objects   object files made by TVM that define `__tvm_ffi_` + symbol(kernel, name) of every step
    features  LLVM names (keys of CPU_FEATURES) they need; checked before they run
    tir       scheduled TIR, xz-compressed JSON
    """

    name: str
    objects: Sequence[Path]
    features: Sequence[str] = ()
    tir: bytes = b""


@dataclass
class _Job:
    """One library to be: what `build` was given, checked."""

    plan: Plan
    variants: list[Variant]
    model: IntModel
    name: str
    limits: dict[str, int]


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
    variants  kernels, the fastest first: the first whose features a CPU has runs there
    model     graph, meta, tokenizer files, and the tensors whose SHA-256 is recorded
    path      the library to write
    target    name of the target, for the metadata
    name      C identifier of intformer_get_<name>; default: from the file name
    metadata  more keys for metadata.json
    header    also write intformer.h and intformer_open.c beside the library
    """
    path = Path(path)
    name = _identifier(name or path.name.removeprefix("lib").split(".")[0])
    variants = [replace(v, features=sorted(set(v.features))) for v in variants]
    _check_plan(plan)
    for variant in variants:
        _check_variant(plan, variant)
    limits = _limits(plan, model.meta)
    output = plan.buffers[plan.output]
    about = {
        **model.meta,
        **(metadata or {}),
        "name": name,
        "intformer": intformer.__version__,
        "abi_version": footer.ABI_VERSION,
        "target": target,
        "variants": [{"name": v.name, "cpu_features": v.features} for v in variants],
        "inputs": list(plan.inputs),
        "output": plan.output,
        "output_rows": output.rows,
        "output_channels": output.channels,
        "limits": limits,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            job = _Job(plan, variants, model, name, limits)
            done = _build_in(Path(folder), job, path.name, about)
            if header:
                for file in ("intformer.h", "intformer_open.c"):
                    shutil.copyfile(SOURCES / file, Path(folder) / file)
                    os.replace(Path(folder) / file, path.parent / file)
            os.replace(done, path)
    except OSError as error:
        raise CompileError(f"cannot write library: {error.strerror}", where=str(path)) from error
    return path


def compiler() -> list[str]:
    """Return the command of a C compiler: cc, else the ziglang package."""
    if cc := shutil.which("cc"):
        return [cc]
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc", "-target", ZIG_TARGET]
    raise CompileError(
        "no C compiler: neither `cc` on PATH nor the ziglang package",
        hint="apt install gcc, or pip install ziglang",
    )


def _identifier(text: str) -> str:
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
        raise CompileError(f"output {plan.output!r} is no int32 buffer", where="plan")


def _check_variant(plan: Plan, variant: Variant) -> None:
    if unknown := [f for f in variant.features if f not in CPU_FEATURES]:
        raise CompileError(f"unknown CPU feature {unknown[0]!r}", where=f"target {variant.name}")
    defined: set[str] = set()
    for path in variant.objects:
        symbols = Elf(path).symbols()
        defined |= {s for s, here in symbols.items() if here}
        hooks = {s for s, here in symbols.items() if here and s.startswith(("__TVM", "TVM"))}
        if hooks - HOOKS:
            raise CompileError(
                f"kernels call {min(hooks - HOOKS)}, which a library without TVM does not have",
                where=str(path),
            )
    for number, step in enumerate(plan.steps):
        if f"__tvm_ffi_{symbol(step.kernel, variant.name)}" not in defined:
            raise CompileError(
                "kernel is in no object file",
                where=f"target {variant.name}, step {number}, kernel {step.kernel}",
            )


def _limits(plan: Plan, meta: dict) -> dict[str, int]:
    """Return what the library checks input numbers against, from the model's meta."""
    try:
        first = {"column": 0, "padding": (meta.get("pad_token_id") or 0) + 1}[meta["position_rule"]]
        length = int(meta["max_length"])
        widest = max(buffer.width for buffer in plan.buffers.values())
        return {
            "vocab_size": int(meta["vocab_size"]),
            "type_vocab_size": int(meta.get("type_vocab_size") or 1),
            "first_position": first,
            "positions": first + length,
            "max_length": length,
            "max_rows": (2**31 - 1) // widest // BLOCK * BLOCK,
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
        **{f"tir/{variant.name}.json.xz": variant.tir for variant in job.variants},
        "plan.json": _to_json(_plan_json(plan)),
        "graph.json": _to_json(model.to_json()),
        "packing.json": _to_json(packing),
        "tensors.json": _to_json(tensors),
        "metadata.json": _to_json(about),
    }


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _write_blob(path: Path, sections: dict[str, bytes]) -> dict[str, tuple[int, int]]:
    """Write the sections, each aligned, and return name -> (offset, size)."""
    index: dict[str, tuple[int, int]] = {}
    with path.open("wb") as file:
        for name, data in sections.items():
            index[name] = (file.tell(), len(data))
            file.write(data)
            file.write(bytes(-file.tell() % ALIGN))
        file.write(bytes(ALIGN))  # never empty
    return index


# ---- plan.c ----


def _string(text: str) -> str:
    plain = all(" " <= c <= "~" and c not in '"\\' for c in text)
    if not plain:
        raise CompileError(f"name {text!r} has characters beyond plain ASCII", where="plan")
    return f'"{text}"'


def _array(ctype: str, name: str, rows: list[str]) -> str:
    body = ",\n".join(f"  {row}" for row in rows or ["0"])
    return f"static const {ctype} {name}[] = {{\n{body}\n}};\n"


def _numbers(values: Iterable[int]) -> str:
    return "{" + ", ".join(str(int(v)) for v in values) + "}"


def _variants_c(job: _Job) -> list[str]:
    """Return the C source of the kernel tables."""
    kernels = dict.fromkeys(step.kernel for step in job.plan.steps)
    rows, source = [], []
    for number, variant in enumerate(job.variants):
        names = {k: f"__tvm_ffi_{symbol(k, variant.name)}" for k in kernels}
        features = [
            f"{{{_string(f)}, {', '.join(str(v) for v in CPU_FEATURES[f])}}}"
            for f in variant.features
        ]
        source += [
            *(
                f"extern int32_t {n}(void *, const tvm_any *, int32_t, tvm_any *);"
                for n in names.values()
            ),
            _array("kernel_fn", f"kernels_{number}", [names[s.kernel] for s in job.plan.steps]),
            _array("plan_feature", f"features_{number}", features or ["{0, 0, 0, 0, 0, 0}"]),
        ]
        rows.append(
            f"{{{_string(variant.name)}, kernels_{number}, features_{number}, {len(features)}}}"
        )
    return [*source, _array("plan_variant", "variants", rows)]


def _plan_c(job: _Job, index: dict[str, tuple[int, int]], build_id: bytes) -> str:
    """Return the C source of the static tables that compiler/c/runtime.c walks."""
    plan, limits = job.plan, job.limits
    slot_of, slots = assign_slots(plan)
    used = dict.fromkeys(a for step in plan.steps for a in step.args)
    order = [*INPUTS, *(b for b in plan.buffers if b in used), *plan.constants]
    number = {tensor: i for i, tensor in enumerate(order)}
    tensors, shapes = [], []
    for tensor in order:
        if tensor in INPUTS:
            dtype, kind, rows, rest = "int32", "INPUT", INPUTS[tensor], "0, 0, 1, 0, 0"
        elif tensor in plan.buffers:
            b = plan.buffers[tensor]
            dtype, kind, rows = b.dtype, "BUFFER", b.rows
            rest = f"{slot_of[tensor]}, {b.width}, 3, 0, 0"
        else:
            array = plan.constants[tensor]
            dtype, kind, rows = str(array.dtype), "CONSTANT", "token"
            offset = index[f"constants/{tensor}"][0]
            shapes.append(f"static const int64_t shape_{len(shapes)}[] = {_numbers(array.shape)};")
            rest = f"0, 0, {array.ndim}, shape_{len(shapes) - 1}, {offset}"
        code, bits = re.fullmatch(r"(int|uint)(8|16|32|64)", dtype).groups()
        tensors.append(
            f"{{{_string(tensor)}, {_string(dtype)}, {kind}, {rows.upper()}, "
            f"{int(code == 'uint')}, {bits}, {rest}}}"
        )
    steps, args, outputs = [], [], []
    for step in plan.steps:
        steps.append(
            f"{{{_string(step.kernel)}, {len(args)}, {len(step.args)}, {len(outputs)}, "
            f"{len(step.outputs)}}}"
        )
        args += [str(number[a]) for a in step.args]
        outputs += [str(number[a]) for a in step.outputs]
    slot_rows = ["{{" + ", ".join(str(s.bytes[r]) for r in ROWS) + "}}" for s in slots]
    section_rows = [f"{{{_string(n)}, {at}, {size}}}" for n, (at, size) in index.items()]
    output = plan.buffers[plan.output]
    columns = [] if output.channel_map is None else [str(int(c)) for c in output.channel_map]
    return "\n".join(
        [
            "/* Generated by intformer (compiler/library.py). */",
            '#include "plan.h"',
            *shapes,
            _array("plan_tensor", "tensors", tensors),
            _array("plan_step", "steps", steps),
            _array("int32_t", "args", args),
            _array("int32_t", "outputs", outputs),
            _array("plan_slot", "slots", slot_rows),
            _array("plan_section", "sections", section_rows),
            *_variants_c(job),
            _array("int32_t", "columns", columns),
            _array("uint8_t", "build_id", [", ".join(str(b) for b in build_id)]),
            "const plan_table intformer_plan = {",
            f"  .tensors = tensors, .num_tensors = {len(tensors)},",
            f"  .steps = steps, .num_steps = {len(steps)},",
            f"  .args = args, .num_args = {len(args)}, .outputs = outputs,",
            f"  .slots = slots, .num_slots = {len(slots)},",
            f"  .sections = sections, .num_sections = {len(index)},",
            f"  .variants = variants, .num_variants = {len(job.variants)},",
            f"  .output = {number[plan.output]},",
            f"  .output_columns = {'columns' if columns else 0},",
            f"  .vocab_size = {limits['vocab_size']},",
            f"  .type_vocab_size = {limits['type_vocab_size']},",
            f"  .num_position_ids = {limits['positions']},",
            f"  .first_position = {limits['first_position']},",
            f"  .max_length = {limits['max_length']}, .max_rows = {limits['max_rows']},",
            f"  .takes_types = {int('token_type_ids' in plan.inputs)},",
            f"  .takes_positions = {int('positions' in plan.inputs)},",
            "};",
            "const intformer_api intformer_table = {",
            f"  INTFORMER_ABI_VERSION, {output.channels}, {_string(job.name)}, build_id,",
            "  if_section, if_section_name, if_output_size, if_run, if_set_threads,",
            "  if_get_threads, if_variant, if_set_variant,",
            "};",
            *(
                f'__attribute__((visibility("default"))) const intformer_api *{get}(void) '
                "{ return &intformer_table; }"
                for get in ("intformer_get", f"intformer_get_{job.name}")
            ),
            "",
        ]
    )  # fmt: skip


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
.section .note.GNU-stack,"",@progbits
"""


# ---- compiling and linking ----


def _call(command: list[str], folder: Path, what: str) -> None:
    # zig: what it keeps of our sources goes away with the folder
    env = {**os.environ, "ZIG_LOCAL_CACHE_DIR": str(folder / "zig")}
    try:
        result = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
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
    cc = compiler()
    for file in SOURCES.iterdir():
        shutil.copyfile(file, folder / file.name)
    kernels = []  # each variant's together, which is how check_machine_code tells them apart
    for path in (path for variant in job.variants for path in variant.objects):
        kernels.append(f"kernels{len(kernels)}.o")
        shutil.copyfile(path, folder / kernels[-1])
    fixed = [f"{source}.o" for source in RUNTIME]
    for source, made in zip(RUNTIME, fixed, strict=True):
        _call([*cc, *CFLAGS, "-c", f"{source}.c", "-o", made], folder, "compiling")

    def link(sections: dict[str, bytes]) -> bytes:
        index = _write_blob(folder / "blob", sections)
        inputs = [folder / f for f in ("blob", *kernels, *(f"{source}.c" for source in RUNTIME))]
        build_id = _digest(inputs, json.dumps([job.name, about["variants"], job.limits]))
        (folder / "plan.c").write_text(_plan_c(job, index, build_id))
        (folder / "blob.s").write_text(_BLOB_S.format(build_id=build_id.hex()))
        _call([*cc, *CFLAGS, "-c", "plan.c", "-o", "plan.o"], folder, "compiling")
        _call([*cc, "-c", "blob.s", "-o", "blob.o"], folder, "assembling")
        # -Xlinker: a comma in the name would end an argument of -Wl
        soname = ["-Xlinker", "-soname", "-Xlinker", file_name]
        script = ["-Wl,--version-script=exports.map", *soname, "-o", file_name]
        made = ["plan.o", *fixed, *kernels, "blob.o"]
        _call([*cc, *LDFLAGS, *script, *made, *LIBRARIES], folder, "linking")
        return build_id

    sections = _sections(job, about)
    link(dict.fromkeys(sections, b""))
    glibc = _check_linked(folder / file_name)
    sections["metadata.json"] = _to_json({**about, "glibc": f"{glibc[0]}.{glibc[1]}"})
    build_id = link(sections)
    footer.append(folder / file_name, glibc, build_id)
    return folder / file_name


def _digest(files: list[Path], more: str) -> bytes:
    digest = hashlib.sha256(more.encode())
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.digest()


def _check_linked(path: Path) -> tuple[int, int]:
    """Return the glibc floor of a linked library that needs what it may need, and no more."""
    elf = Elf(path)
    if extra := set(elf.needed()) - NEEDED:
        raise CompileError(f"library needs {min(extra)}", where="linking")
    floor = elf.glibc_floor()
    if floor > GLIBC_FLOOR:
        raise CompileError(
            f"library needs glibc {floor[0]}.{floor[1]}, newer than the promised "
            f"{GLIBC_FLOOR[0]}.{GLIBC_FLOOR[1]}",
            where="linking",
            hint="uninstall cc and use the ziglang package, or build on an older system",
        )
    return floor
