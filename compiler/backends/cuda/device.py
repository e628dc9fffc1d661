"""A GPU of this machine, through its driver: to run kernels one by one, and to time them.

Compiled libraries do not use this: they have the C code in c/cuda*.c.
"""

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_ulonglong, c_void_p

import numpy as np

from intformer.errors import IntformerError

LIBRARY = "libcuda.so.1"  # comes with the driver
MAJOR, MINOR, CACHE = 75, 76, 38  # CU_DEVICE_ATTRIBUTE_*; CACHE: bytes of the second level
OWN_STREAM = 1  # CU_STREAM_NON_BLOCKING
THIS_THREAD = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
P = ctypes.POINTER
PARAMETERS = {
    "cuInit": (c_uint,),
    "cuGetErrorName": (c_int, P(c_char_p)),
    "cuDeviceGetCount": (P(c_int),),
    "cuDeviceGet": (P(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (P(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (P(c_void_p), c_int),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuModuleLoadDataEx": (P(c_void_p), c_char_p, c_uint, c_void_p, c_void_p),
    "cuModuleGetFunction": (P(c_void_p), c_void_p, c_char_p),
    "cuModuleUnload": (c_void_p,),
    "cuMemAlloc_v2": (P(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemcpyHtoD_v2": (c_uint64, c_void_p, c_size_t),
    "cuMemcpyDtoH_v2": (c_void_p, c_uint64, c_size_t),
    "cuStreamCreate": (P(c_void_p), c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, P(c_void_p)),
    "cuGraphInstantiateWithFlags": (P(c_void_p), c_void_p, c_ulonglong),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphExecDestroy": (c_void_p,),
    "cuLaunchKernel": (c_void_p, *[c_uint] * 7, c_void_p, P(c_void_p), c_void_p),
}


class DeviceError(RuntimeError):
    """A call of the driver failed. After a fault of a kernel, so do all others of the process."""


class Device:
    """The first GPU that is visible. Nothing is allocated on it before `use`.

    name        what the driver calls it
    capability  (major, minor)
    cache       bytes of its second-level cache
    """

    def __init__(self):
        """Open the driver; IntformerError where there is none, or no GPU."""
        try:
            self.driver = ctypes.CDLL(LIBRARY)
            for name, parameters in PARAMETERS.items():
                getattr(self.driver, name).argtypes = parameters
        except (OSError, AttributeError) as error:
            raise IntformerError(f"no NVIDIA driver ({error})") from None
        number, count = c_int(), c_int()
        try:
            self.call("cuInit", 0)
            self.call("cuDeviceGetCount", byref(count))
            if not count.value:
                raise IntformerError("no GPU is visible: see nvidia-smi and CUDA_VISIBLE_DEVICES")
            self.call("cuDeviceGet", byref(number), 0)
            self.number = number.value
            self.capability = self._attribute(MAJOR), self._attribute(MINOR)
            self.cache = self._attribute(CACHE)
            name = ctypes.create_string_buffer(256)
            self.call("cuDeviceGetName", name, len(name), self.number)
            self.name = name.value.decode(errors="replace")
        except DeviceError as error:
            raise IntformerError(f"the NVIDIA driver finds no GPU: {error}") from None

    def _attribute(self, which: int) -> int:
        value = c_int()
        self.call("cuDeviceGetAttribute", byref(value), which, self.number)
        return value.value

    def call(self, name: str, *arguments) -> None:
        """Call the driver; DeviceError where it says no."""
        if code := getattr(self.driver, name)(*arguments):
            text = c_char_p()
            self.driver.cuGetErrorName(code, byref(text))
            raise DeviceError(f"{name}: {(text.value or b'unknown error').decode()} ({code})")

    def _made(self, name: str, *arguments) -> c_void_p:
        """Call what makes something and takes the place for it as its first argument."""
        made = c_void_p()
        self.call(name, byref(made), *arguments)
        return made

    def use(self) -> None:
        """Take the GPU for this thread, until the process ends."""
        self.call("cuCtxPushCurrent_v2", self._made("cuDevicePrimaryCtxRetain", self.number))
        self.stream = self._made("cuStreamCreate", OWN_STREAM)

    def load(self, cubin: bytes) -> c_void_p:
        """Load machine code; return the module."""
        return self._made("cuModuleLoadDataEx", cubin, 0, None, None)

    def function(self, module: c_void_p, name: str) -> c_void_p:
        """Return a kernel of a module."""
        return self._made("cuModuleGetFunction", module, name.encode())

    def allocate(self, size: int) -> int:
        """Return the address of so many bytes, which hold anything."""
        address = c_uint64()
        self.call("cuMemAlloc_v2", byref(address), size)
        return address.value

    def write(self, address: int, array: np.ndarray) -> None:
        """Copy an array to the GPU."""
        array = np.ascontiguousarray(array)
        self.call("cuMemcpyHtoD_v2", address, array.ctypes.data, array.nbytes)
        self.call("cuStreamSynchronize", None)  # our stream does not wait for this one

    def read(self, address: int, like: np.ndarray) -> np.ndarray:
        """Return what the GPU holds there, in the shape and type of another array."""
        array = np.empty_like(like, order="C")
        self.call("cuMemcpyDtoH_v2", array.ctypes.data, address, array.nbytes)
        return array

    def launch(self, function: c_void_p, grid: Sequence[int], threads: int, pointers) -> None:
        """Start a kernel, or record it.

        pointers  of its parameters; must stay until the kernel, or what it is recorded in, is done
        """
        size = (*grid, threads, 1, 1)
        self.call("cuLaunchKernel", function, *size, 0, self.stream, pointers, None)

    def wait(self) -> None:
        """Wait for all that was started."""
        self.call("cuStreamSynchronize", self.stream)

    def recorded(self, start) -> c_void_p:
        """Return the launches that `start()` makes as one thing to run."""
        self.call("cuStreamBeginCapture_v2", self.stream, THIS_THREAD)
        start()
        graph = c_void_p()
        self.call("cuStreamEndCapture", self.stream, byref(graph))
        try:
            return self._made("cuGraphInstantiateWithFlags", graph, 0)
        finally:
            self.call("cuGraphDestroy", graph)

    def run(self, recorded: c_void_p) -> None:
        """Run what was recorded, to its end."""
        self.call("cuGraphLaunch", recorded, self.stream)
        self.wait()
