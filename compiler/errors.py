"""The errors a user sees: what is wrong (with the value), where, and what to do."""

from importlib.util import find_spec

EXTRAS = {  # module -> extra that brings it
    name: "compiler"
    for name in (
        *("tvm", "tvm_ffi", "torch", "transformers", "safetensors", "rich", "iced_x86"),
        *("capstone", "ziglang"),
        *("xgboost", "psutil", "cloudpickle", "tornado"),
    )
} | {
    "accelerate": "qat",
    "matplotlib": "qat",
    "onnx": "onnx",
    "pyarrow": "embed",
    "sentence_transformers": "sentence-transformers",
    "fastapi": "serve",
    "uvicorn": "serve",
    "prometheus_client": "serve",
    "ray": "ray",
}
MOST_SHOWN = 600  # characters of one part of an error; values in it come from files


class IntformerError(Exception):
    """Any error the user can fix. Printed as one line, exit code 1.

    what   the fault, with the offending value
    where  file, checkpoint key, argument or op ("" where there is none)
    hint   the next thing to do ("" where there is none)
    """

    def __init__(self, what: str, *, where: str = "", hint: str = ""):
        """Keep the three parts apart, so that the CLI can print them as JSON too.

        Line breaks become spaces, and other characters that a terminal would act on are escaped.
        """
        self.what, self.where, self.hint = map(_one_line, (what, where, hint))
        parts = (self.what, self.where, self.hint)
        super().__init__(" - ".join(part for part in parts if part))


def _one_line(text: str) -> str:
    text = " ".join(text.splitlines()).strip()
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    if len(text) <= MOST_SHOWN:
        return text
    half = MOST_SHOWN // 2  # a traceback of another program says at its end what is wrong
    return f"{text[: half - 5]} ... {text[-half:]}"


class CheckpointError(IntformerError):
    """A checkpoint that cannot be read, is not supported, or holds unusable numbers."""


class RangeError(IntformerError):
    """An integer that could leave its type; names the op."""


class CompileError(IntformerError):
    """Lowering, code generation or linking failed."""


class LibraryError(IntformerError):
    """A compiled library that cannot be loaded or refuses its input.

    code  of a run that failed, as in intformer.h: 4 is no memory, 6 no usable GPU; 0 elsewhere
    """

    code = 0


def missing_extra(error: ModuleNotFoundError) -> IntformerError:
    """Return the error that names the extra to install; raise any other missing module again."""
    extra = EXTRAS.get((error.name or "").split(".")[0])
    if extra is None:
        raise error
    return IntformerError(
        f"{error.name} is not installed", hint=f"pip install 'intformer[{extra}]'"
    )


def installed(module: str) -> bool:
    """Tell whether a module can be imported, without importing it."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def require(*modules: str) -> None:
    """Raise the error of `missing_extra` unless all these modules are installed."""
    for name in modules:
        if not installed(name):
            raise missing_extra(ModuleNotFoundError(name=name))
