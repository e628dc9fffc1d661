"""Scheduled kernels -> object files: one kernel at a time, on every core, each of them once ever.

TVM leaves the interpreter lock while LLVM works, and the objects do not depend on how many threads
there are, so threads do; a process of its own would first spend seconds on importing TVM.
"""

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import tvm

from intformer.backends.backend import TargetSpec
from intformer.backends.cpu.lowering import lowered
from intformer.backends.object_cache import ObjectCache
from intformer.errors import CompileError
from intformer.relay_ops.expr import APART

MOST_BYTES = 16 << 20  # of an object file; those of our kernels have less than one MiB


def generate(
    module: tvm.IRModule,
    spec: TargetSpec,
    folder: Path,
    cache: ObjectCache | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Write the object file of every scheduled kernel into `folder`; return their paths.

    spec    target, of a CPU
    cache   where objects are kept from one compilation to the next; None: nowhere
    tell    called with a line of text for every kernel that is compiled
    """
    kernels = {var.name_hint: function for var, function in module.functions.items()}
    paths = {name: folder / f"{name}.o" for name in kernels}
    keys = {name: key(function, spec) for name, function in kernels.items()}
    missing = []
    for name in kernels:
        known = cache.get(keys[name]) if cache else None
        if known is None:
            missing.append(name)
        else:
            write(paths[name], known)
    if not missing:
        return list(paths.values())
    chosen = {name: lowered(tvm.IRModule({name: kernels[name]}), spec.backend) for name in missing}
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        tasks = {pool.submit(_compile, chosen[n], spec, paths[n]): n for n in missing}
        try:
            for number, task in enumerate(as_completed(tasks), 1):
                task.result()
                tell(f"kernel {number}/{len(missing)}: {tasks[task]}")
        except BaseException:  # Ctrl-C included: do not go on with the rest
            pool.shutdown(cancel_futures=True)
            raise
    if cache:
        try:
            for name in missing:
                cache.put(keys[name], paths[name].read_bytes())
            cache.trim()
        except OSError as error:
            tell(f"objects are not kept: {error.strerror} - {cache.folder}")
    return list(paths.values())


def key(function: tvm.tirx.PrimFunc, spec: TargetSpec) -> str:
    """Return what decides a kernel's object, as 64 hexadecimal digits.

    The scheduled program holds its symbol; after it only TVM and LLVM write code.
    """
    llvm = tvm.get_global_func("target.llvm_version_major")()
    about = [tvm.__version__, llvm, dict(spec.tvm), tvm.ir.save_json(function)]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def assembly(module: tvm.IRModule, spec: TargetSpec) -> str:
    """Return the kernels as text."""
    parts = (
        _built(lowered(tvm.IRModule({var.name_hint: function}), spec.backend), spec).inspect_source(
            "s"
        )
        for var, function in module.functions.items()
    )
    return "\n".join(parts)


def built(module: tvm.IRModule, spec: TargetSpec) -> tvm.runtime.Module:
    """Return kernels to call from Python: what tests and measurements do."""
    return tvm.compile(lowered(module, spec.backend), target=dict(spec.tvm)).mod


def _compile(module: tvm.IRModule, spec: TargetSpec, path: Path) -> None:
    write(path, object_of(_built(module, spec)))


def object_of(built) -> bytes:
    """Return the object file of a module.

    LLVM writes to files alone and ends the process where that fails, so it gets one in memory, to
    which a limit on the size of files applies as well.
    """
    with os.fdopen(os.memfd_create("object"), "rb") as memory:
        try:
            os.ftruncate(memory.fileno(), MOST_BYTES)
        except OSError as error:
            raise CompileError(
                f"kernels need files of up to {MOST_BYTES >> 20} MiB: {error.strerror}",
                where="limit on the size of files",
                hint="see `ulimit -f`",
            ) from error
        built.write_to_file(f"/proc/self/fd/{memory.fileno()}", "o")  # empties it first
        return memory.read()


def write(path: Path, data: bytes) -> None:
    """Write an object file; raise CompileError."""
    try:
        path.write_bytes(data)
    except OSError as error:
        raise CompileError(
            f"cannot write a kernel: {error.strerror}",
            where=str(path),
            hint="free space there, or set TMPDIR to another folder",
        ) from error


def _built(module: tvm.IRModule, spec: TargetSpec):
    """Return the module of one kernel; its buffers stay apart where it has the attribute APART."""
    (function,) = module.functions.values()
    apart = APART in function.attrs
    with tvm.transform.PassContext(config={"tirx.disable_storage_rewrite": apart}):
        return tvm.compile(module, target=dict(spec.tvm)).mod
