"""Loads and runs a compiled library: dlopen, and its table of C functions."""

import ctypes
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np

from intformer import knobs
from intformer.errors import LibraryError
from intformer.runtime import footer
from intformer.runtime.file import LibraryFile

_CODE_HINTS = {3: "see `intformer targets`"}  # INTFORMER_CPU; other messages carry their own
_INT32 = np.iinfo(np.int32)
_OBSERVER = ctypes.CFUNCTYPE(
    None,
    ctypes.c_void_p,
    ctypes.c_int32,
    ctypes.c_char_p,
    ctypes.c_void_p,
    ctypes.c_int64,
    ctypes.c_int64,
    ctypes.c_char_p,
)
Observer = Callable[[int, str, np.ndarray], None]


class _Input(ctypes.Structure):
    _fields_ = (
        ("num_tokens", ctypes.c_int32),
        ("batch", ctypes.c_int32),
        ("num_positions", ctypes.c_int32),
        ("input_ids", ctypes.c_void_p),
        ("cu_seqlens", ctypes.c_void_p),
        ("token_type_ids", ctypes.c_void_p),
        ("position_ids", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("observer", _OBSERVER),
        ("user", ctypes.c_void_p),
    )


class _Api(ctypes.Structure):
    _fields_ = (  # as of ABI 6; a later library has more behind them
        ("size", ctypes.c_uint32),
        ("abi_version", ctypes.c_uint32),
        ("output_channels", ctypes.c_uint32),
        ("name", ctypes.c_char_p),
        ("build_id", ctypes.POINTER(ctypes.c_uint8 * 32)),
        (
            "section",
            ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_size_t)),
        ),
        ("section_name", ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_size_t)),
        ("output_size", ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.POINTER(_Input))),
        (
            "run",
            ctypes.CFUNCTYPE(
                ctypes.c_int,
                ctypes.POINTER(_Input),
                ctypes.c_void_p,
                ctypes.c_size_t,
                ctypes.c_char_p,
                ctypes.c_size_t,
            ),
        ),
        ("set_threads", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)),
        ("get_threads", ctypes.CFUNCTYPE(ctypes.c_int)),
        ("variant", ctypes.CFUNCTYPE(ctypes.c_char_p)),
        (
            "set_variant",
            ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t),
        ),
        ("device", ctypes.CFUNCTYPE(ctypes.c_char_p)),
        (  # since ABI 5
            "checksums",
            ctypes.CFUNCTYPE(
                None, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p
            ),
        ),
        ("run_alone", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)),  # since ABI 6
    )


# bytes of the table of earlier libraries, by ABI
_SIZES = {4: _Api.checksums.offset, 5: _Api.run_alone.offset}


def load(path: str | os.PathLike, *, run: bool = True) -> "Library":
    """Check and load a compiled library.

    run  False: to read it, so that a missing GPU is no error before `Library.run`; and the process
         may still fork, while True opens the driver of a GPU
    """
    library = Library(path, whole=False).open()
    if run and library.on_device:
        library.set_variant(None)
    return library


def _copied(path: Path, build_id: bytes) -> "Library":
    library = Library(path)
    if library.footer.build_id != build_id:
        raise LibraryError("is another library than the one that was copied", where=str(path))
    return library


class Library(LibraryFile):
    """A compiled model that runs. Stays loaded until the process ends; usable from several threads.

    Its code is loaded at the first call that needs it; what LibraryFile has is read from the file.
    """

    @cached_property
    def _api(self) -> _Api:
        if self.foreign:
            raise LibraryError(
                self.foreign,
                where=str(self.path),
                hint="copy it to such a machine, or compile with --target host",
            )
        api = _open(self.path, self.footer)
        if threads := knobs.threads():
            _set_threads(api, threads)
        self._check_data(api)
        return api

    def _check_data(self, api: _Api) -> None:
        """Check what is left to check of the file, with the instructions its code has for that."""
        parts, self._unchecked = self._unchecked, footer.Parts()
        if not parts.size:
            return
        data = np.frombuffer(self._data, np.uint8, parts.size, parts.start)
        found = np.empty(parts.crcs.size, np.uint32)
        api.checksums(data.ctypes.data, parts.size, footer.PART, found.ctypes.data)
        if wrong := np.flatnonzero(found != parts.crcs).tolist():
            start = parts.start + wrong[0] * footer.PART
            raise footer.altered(
                str(self.path), f"bytes {start} to {start + footer.PART} have another checksum"
            )

    def __reduce__(self) -> tuple:
        """A copy in another process loads the file from its path."""
        return _copied, (self.path, self.footer.build_id)

    def open(self) -> "Library":
        """Load the code now; return the library. Raises LibraryError where it does not load."""
        _ = self._api
        return self

    @property
    def threads(self) -> int:
        """Threads of one run."""
        return self._api.get_threads()

    def set_threads(self, threads: int) -> None:
        """Set the threads of one run; 0 = as affinity and the cgroup quota allow (default)."""
        _set_threads(self._api, threads)

    @property
    def runs_alone(self) -> bool:
        """Whether the library has `run_alone`: libraries before ABI 6 do not."""
        return self.footer.abi >= 6

    def run_alone(self, alone: bool = True) -> None:
        """Let runs of the calling thread use no other thread, until told otherwise."""
        if code := self._api.run_alone(alone):
            raise LibraryError("not enough memory", hint=_CODE_HINTS.get(code, ""))

    @property
    def device(self) -> str | None:
        """Name of the GPU that runs the library; None on a CPU, and where no GPU runs it."""
        name = self._api.device()
        return None if name is None else name.decode()

    @property
    def variant(self) -> str | None:
        """The variant in use; None if this CPU runs none, which `run` says more about."""
        name = self._api.variant()
        return None if name is None else name.decode()

    def set_variant(self, name: str | None) -> None:
        """Run this variant from now on; None: the one INTFORMER_VARIANT names, or the fastest."""
        error = ctypes.create_string_buffer(1024)
        wanted = None if name is None else name.encode()
        if self._api.set_variant(wanted, error, ctypes.sizeof(error)):
            raise LibraryError(error.value.decode(), where=str(self.path))

    def refusals(self) -> dict[str, str]:
        """Return why each variant does not run here, "" where it does; tries them in turn."""
        if self.foreign:
            return dict.fromkeys(self.variants, self.foreign)
        before, why = self.variant, {}
        for name in self.variants:
            try:
                self.set_variant(name)
                why[name] = ""
            except LibraryError as error:
                why[name] = error.what
        if before is not None:
            self.set_variant(before)
        return why

    def run(
        self,
        input_ids: np.ndarray,
        cu_seqlens: np.ndarray,
        token_type_ids: np.ndarray | None = None,
        position_ids: np.ndarray | None = None,
        positions: np.ndarray | None = None,
        observer: Observer | None = None,
    ) -> np.ndarray:
        """Compute a batch of packed sequences.

        input_ids       [n] token ids of all sequences, without padding
        cu_seqlens      [batch + 1] offsets: sequence i is input_ids[cu_seqlens[i]:cu_seqlens[i+1]]
        token_type_ids  [n], default 0
        position_ids    [n], default counted from the model's first position
        positions       [p] token indices whose rows are wanted (masked LM)
        observer        called as observer(step, buffer name, physical array [rows, width]) after
                        each step; the array is valid during the call
        result          int32 [rows, channels]; rows are tokens, sequences or positions
        """
        arrays = {
            "input_ids": _int32("input_ids", input_ids),
            "cu_seqlens": _int32("cu_seqlens", cu_seqlens),
            "token_type_ids": _int32("token_type_ids", token_type_ids),
            "position_ids": _int32("position_ids", position_ids),
            "positions": _int32("positions", positions),
        }
        tokens = arrays["input_ids"].size
        for name in ("token_type_ids", "position_ids"):
            if arrays[name] is not None and arrays[name].size != tokens:
                raise LibraryError(f"{arrays[name].size} {name} for {tokens} input_ids")
        failed: list[BaseException] = []
        call = _Input(
            num_tokens=tokens,
            batch=arrays["cu_seqlens"].size - 1,
            num_positions=0 if arrays["positions"] is None else arrays["positions"].size,
            observer=_wrap(observer, failed) if observer else _OBSERVER(),
            **{name: a.ctypes.data for name, a in arrays.items() if a is not None},
        )
        size = self._api.output_size(ctypes.byref(call))
        out = np.empty((size // self._api.output_channels, self._api.output_channels), np.int32)
        error = ctypes.create_string_buffer(1024)
        code = self._api.run(
            ctypes.byref(call), out.ctypes.data, out.size, error, ctypes.sizeof(error)
        )
        if failed:
            raise failed[0]
        if code:
            fault = LibraryError(
                error.value.decode(), where=str(self.path), hint=_CODE_HINTS.get(code, "")
            )
            fault.code = code
            raise fault
        return out


def _set_threads(api: _Api, threads: int) -> None:
    if not 0 <= threads <= 1024 or api.set_threads(threads):
        raise LibraryError(f"{threads} threads", hint="a number from 0 to 1024 is needed")


def _int32(name: str, values: np.ndarray | None) -> np.ndarray | None:
    if values is None:
        return None
    array = np.asarray(values)
    if array.ndim != 1 or not (np.issubdtype(array.dtype, np.integer) or not array.size):
        raise LibraryError(
            f"{name} is {array.dtype} {list(array.shape)}", hint="a row of integers is needed"
        )
    if array.size and not _INT32.min <= array.min() <= array.max() <= _INT32.max:
        raise LibraryError(f"{name} has numbers beyond 32 bits")
    return np.ascontiguousarray(array, np.int32)


def _wrap(observer: Observer, failed: list[BaseException]) -> _OBSERVER:
    """Return the C callback. ctypes swallows exceptions, so the first is kept for the caller."""

    def call(_user, step, buffer, data, rows, width, dtype) -> None:
        if failed:
            return
        try:
            dtype = np.dtype(dtype.decode())
            raw = (ctypes.c_uint8 * (rows * width * dtype.itemsize)).from_address(data)
            observer(step, buffer.decode(), np.frombuffer(raw, dtype).reshape(rows, width))
        except BaseException as error:
            failed.append(error)

    return _OBSERVER(call)


def _open(path: Path, about: footer.Footer) -> _Api:
    where = str(path)
    have = _glibc()
    if have is not None and have < about.glibc:
        raise LibraryError(
            f"library needs glibc {about.glibc[0]}.{about.glibc[1]}, this system has "
            f"{have[0]}.{have[1]}",
            where=where,
            hint="compile it with the ziglang package in place of cc",
        )
    # dlopen() answers with the library it already has under this name, even if the file has been
    # replaced since: another spelling of the path makes it look again
    folder = path.absolute().parent
    for dots in range(64):
        try:
            loaded = ctypes.CDLL(f"{folder}/{'./' * dots}{path.name}")
        except OSError as error:
            raise LibraryError(f"cannot load library: {error}", where=where) from None
        loaded.intformer_get.restype = ctypes.POINTER(_Api)
        api = loaded.intformer_get().contents
        if bytes(api.build_id.contents) != about.build_id:
            continue
        least = _SIZES.get(about.abi, ctypes.sizeof(_Api))
        if api.size < least:
            raise LibraryError(
                f"its table has {api.size} bytes, {least} expected",
                where=where,
                hint="compile the model again",
            )
        return api
    raise LibraryError("an older library is loaded under this path", where=where)


def _glibc() -> tuple[int, int] | None:
    """Return the version of this process's glibc; None under another C library."""
    try:
        major, minor = os.confstr("CS_GNU_LIBC_VERSION").split()[1].split(".")[:2]
        return int(major), int(minor)
    except (AttributeError, ValueError, OSError):
        return None
