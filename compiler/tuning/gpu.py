"""Candidates for a GPU: form -> machine code, and its seconds on a GPU, here or behind RPC.

What `build` and `measure` do for CPUs. Launches are recorded and run as one, as compiled libraries
do, so no time of Python is in the figures.
"""

import ctypes
import hashlib
import json
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import tvm

import intformer
from intformer.backends import targets
from intformer.backends.cuda import codegen, toolchain
from intformer.backends.cuda.backend import CudaTarget
from intformer.backends.cuda.code import capability
from intformer.backends.cuda.device import Device, DeviceError
from intformer.backends.cuda.sass_check import NO_SPILLS
from intformer.backends.object_cache import ObjectCache
from intformer.errors import CompileError, IntformerError
from intformer.ir.constants import BLOCK
from intformer.ir.plan import COUNTS, Launch, grid_size
from intformer.link.build import GPU_TILE
from intformer.passes.form import Decisions, Form
from intformer.tuning.measure import (
    BATCH_SECONDS,
    BATCHES,
    KEPT,
    TURN_SECONDS,
    TURNS,
    Case,
    cached_case,
)
from intformer.tuning.remote import NAMES, Remote

SYMBOL = "kernel"
TILE = GPU_TILE // BLOCK  # buffers have a multiple of so many row blocks
MOST_COPIES = 256  # of constants: small ones too leave a cache of 60 MB


def ready(spec: CudaTarget, remote: Remote | None, timeout: float) -> dict:
    """Return the GPU to tune on and the compiler; IntformerError where there is none that fits."""
    compiler = toolchain.find()
    where = f"--target {spec.name}"
    told = json.loads(_about(remote, timeout) if remote else about())
    if "missing" in told:
        raise IntformerError(
            f"tuning for a GPU needs one: {told['missing']}",
            where=where,
            hint="run the same command on a machine with that GPU, or reach one with --rpc",
        )
    (major, minor), wanted = told["capability"], capability(spec.arch)
    if major != wanted[0] or minor < wanted[1]:
        raise IntformerError(
            f"{told['name']} is sm_{major}{minor}, which does not run machine code for {spec.arch}",
            where=where,
            hint="tune on a GPU of that kind, or for the target of this one",
        )
    return {"gpu": told["name"], "cuda": compiler.version}


def about() -> str:
    """Return JSON: name and capability of the GPU here, or what is missing; our version."""
    try:
        device = Device()
        told = {"name": device.name, "capability": device.capability}
    except IntformerError as error:
        told = {"missing": error.what}
    return json.dumps({**told, "version": intformer.__version__})


def _about(remote: Remote, timeout: float) -> str:
    """Return what a machine says about itself; IntformerError where it is not like this one."""
    session, told = remote.open(timeout), "{}"
    try:
        told = session.get_function(NAMES + "about")()
    except AttributeError:  # a server of TVM alone
        pass
    theirs = json.loads(told).get("version")
    if theirs != intformer.__version__:
        raise IntformerError(
            f"the machine with key {remote.key!r} has intformer {theirs or 'nowhere'}; here is "
            f"{intformer.__version__}",
            where=f"--rpc {remote.host}:{remote.port}",
            hint="install this version there, and start `intformer rpc-server`",
        )
    return told


def build(
    form: str, target: str, decisions: Decisions, objects: str, compile: Callable = toolchain.build
) -> str:
    """Compile one kernel; return the path of a file: its launch as a line of JSON, its cubin.

    form     canonical JSON
    objects  folder of what was compiled before and of the result
    compile  (source, arch, cache) -> toolchain.Built
    """
    spec, folder = targets.get(target), Path(objects)
    versions = [(None, decisions)]
    made = Form(form).scheduled(spec, versions)
    functions, (launch,) = spec.backend.functions(SYMBOL, versions, made)
    source = codegen.source(tvm.IRModule(functions), spec.arch)
    built = compile(source, spec.arch, ObjectCache(folder))
    usage = built.usage.get(launch.function)
    if usage and usage.spill_stores and Form(form).name.startswith(NO_SPILLS):
        raise CompileError(f"registers spill: {usage.spill_stores} bytes of a thread")
    data = json.dumps(asdict(launch)).encode() + b"\n" + built.cubin
    path = folder / f"{hashlib.sha256(data).hexdigest()}.gpu"
    if not path.exists():
        part = path.with_suffix(".part")
        part.write_bytes(data)
        part.replace(path)
    return str(path)


def here(library: str, path: str, symbol: str, threads: int) -> list[float]:
    """Check a kernel on the GPU and return the seconds of its fastest batches.

    path             of a Case
    symbol, threads  of kernels for CPUs
    """
    with _case_on_device(path) as (arguments, stack):
        kernel = _Kernel(arguments, library, stack)
        kernel.check()
        kernel.record(BATCH_SECONDS)
        return sorted(kernel.batch() for _ in range(BATCHES))[:KEPT]


def there(
    library: str, path: str, symbol: str, threads: int, remote: Remote, timeout: float
) -> list[float]:
    """Check a kernel on the GPU of a remote machine and return the seconds as `here` does."""
    session = remote.session(timeout)
    name, case = Path(library).name, Path(path).name
    if not session.get_function(NAMES + "holds")(case):
        session.upload(path, case)
    session.upload(library, name)
    try:
        return json.loads(session.get_function(NAMES + "measured")(name, case))
    finally:
        session.remove(name)


def holds(name: str) -> bool:
    """Say whether a file is in the folder of this session."""
    return Path(name).is_file()


def measured(library: str, case: str) -> str:
    """Return what `here` does as JSON."""
    return json.dumps(here(library, case, SYMBOL, 1))


def in_turns(libraries: list[str], path: str, symbol: str, threads: int) -> list[list[float]]:
    """Check kernels on the GPU and return the seconds of each in every turn, see measure."""
    with _case_on_device(path) as (arguments, stack):
        kernels = [_Kernel(arguments, library, stack) for library in libraries]
        for kernel in kernels:
            kernel.check()
            kernel.record(TURN_SECONDS)
        turns = [[kernel.batch() for kernel in kernels] for _ in range(TURNS)]
        return [list(times) for times in zip(*turns, strict=True)]


@contextmanager
def _case_on_device(path: str):
    """Yield a case in the memory of the GPU, and what frees all of that."""
    with ExitStack() as stack:
        try:
            yield _Arguments(_device(), cached_case(path), stack), stack
        except DeviceError:
            stack.pop_all()  # the process ends: after a fault the driver frees nothing
            raise


_devices: list[Device] = []  # of the measuring process, once it is in use


def _device() -> Device:
    if not _devices:
        device = Device()
        device.use()
        _devices.append(device)
    return _devices[0]


class _Arguments:
    """A case in the memory of the GPU.

    copies  pointers of the parameters: several where a layer's constants would not stay in a cache
    """

    def __init__(self, device: Device, case: Case, stack: ExitStack):
        """Allocate until the stack is closed, and copy."""
        self.device, self.case = device, case
        self.values: list[ctypes.c_uint64] = []  # what the copies point to
        self.addresses = [self._put(array, stack) for array in case.arguments]
        counts = self._put(case.counts, stack)
        size = sum(case.arguments[i].nbytes for i in case.constants)
        number = min(MOST_COPIES, -(-2 * device.cache // size)) if size else 1
        self.copies = [self._parameters([*self.addresses, counts])]
        for _ in range(number - 1):
            other = {i: self._put(case.arguments[i], stack) for i in case.constants}
            addresses = [other.get(i, address) for i, address in enumerate(self.addresses)]
            self.copies.append(self._parameters([*addresses, counts]))

    def _put(self, array: np.ndarray, stack: ExitStack) -> int:
        size = array.nbytes
        if array.ndim == 3 and array.shape[1] == BLOCK:
            size = size // len(array) * -(-len(array) // TILE) * TILE
        address = self.device.allocate(size)
        stack.callback(self.device.call, "cuMemFree_v2", address)
        self.device.write(address, array)
        return address

    def _parameters(self, addresses: list[int]):
        values = [ctypes.c_uint64(address) for address in addresses]
        self.values += values
        return (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))


class _Kernel:
    """A candidate on the GPU."""

    def __init__(self, arguments: _Arguments, path: str, stack: ExitStack):
        """Load it until the stack is closed."""
        head, _, cubin = Path(path).read_bytes().partition(b"\n")
        launch = Launch(**json.loads(head))
        self.arguments, self.device, self.stack = arguments, arguments.device, stack
        module = self.device.load(cubin)
        stack.callback(self.device.call, "cuModuleUnload", module)
        self.function = self.device.function(module, launch.function)
        counts = dict(zip(COUNTS[:-1], arguments.case.counts.tolist(), strict=True))
        self.grid, self.threads = grid_size(launch.grid, counts), launch.threads

    def check(self) -> None:
        """Run it once and compare."""
        case, addresses = self.arguments.case, self.arguments.addresses
        for index in case.expected:  # another candidate may have left the right result there
            self.device.write(addresses[index], case.arguments[index])
        self._start(1)
        self.device.wait()
        case.check({i: self.device.read(addresses[i], case.arguments[i]) for i in case.expected})

    def record(self, seconds: float) -> None:
        """Record a batch of launches: all copies, and about so many seconds."""
        copies = len(self.arguments.copies)
        self._record(copies)
        self.batch()
        self._record(max(copies, round(seconds / max(self.batch(), 1e-7))))
        self.batch()  # the first run of what was recorded takes longer

    def batch(self) -> float:
        """Return the seconds of a launch, over the batch."""
        start = time.perf_counter()
        self.device.run(self.recorded)
        return (time.perf_counter() - start) / self.launches

    def _record(self, launches: int) -> None:
        self.launches = launches
        self.recorded = self.device.recorded(lambda: self._start(launches))
        self.stack.callback(self.device.call, "cuGraphExecDestroy", self.recorded)

    def _start(self, launches: int) -> None:
        copies = self.arguments.copies
        for number in range(launches):
            pointers = copies[number % len(copies)]
            self.device.launch(self.function, self.grid, self.threads, pointers)
