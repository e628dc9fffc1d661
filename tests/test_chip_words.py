"""Outside backends/ and link/ nothing asks which chip the target is: no module names one.

Read are identifiers, imported modules and strings without spaces, which code could compare with.
Prose (docstrings, comments, help, messages) is free.
"""

import ast
import re
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "compiler"
FREE = ("backends", "link")
WORDS = re.compile(
    r"x86|amd64|aarch64|arm64|armv\d|neon|sve|i8mm|risc_?v|rvv"
    r"|iced|capstone|cpuid|sse\d?|avx\w*|amx\w*|v?nni|vnni|xmm|ymm|zmm"
    r"|gpu|cuda|nvcc|nvrtc|nvptx|ptx|ptxas|sass|cubin|sm_?\d+|tensor_?cores?|nvidia",
    re.IGNORECASE,
)
# module -> the words it may say, and why
EXCEPTIONS = {
    # predicts the time of one vendor's chips from their machine code, whatever library it is given
    "measure.prediction.chips": {"cuda"},
    "measure.prediction.multiprocessor": {"cuda", "sass"},
    "measure.prediction.predict": {"cuda", "sass", "cubin"},
    "measure.prediction.trace": {"cuda", "sass"},
    # how candidates are timed on a device, behind tuning.ways; the others ask Backend.launched
    "tuning.gpu": {"gpu", "cuda", "cubin", "sass"},
    "tuning.ways": {"gpu"},
    # PyTorch's names for where a model is trained, which is not the target
    "qat.stages": {"cuda", "gpu"},
    # which extra of the package brings a module
    "errors": {"iced", "x86", "capstone"},
    # environment variables of CUDA and of its compiler, which `backends` asks for
    "knobs": {"cuda", "nvcc"},
}


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if name.split(".")[0] not in FREE:
            yield pytest.param(path, name, id=name)


def spoken(tree: ast.Module):
    """Yield (line, text) of what code names or could compare with."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if not re.search(r"\s", node.value):
                yield line, node.value
            continue
        for field in ("id", "attr", "arg", "name", "module", "asname"):
            if isinstance(text := getattr(node, field, None), str):
                yield line, text


def words(text: str) -> set[str]:
    """Return the chip words in a name: parts between punctuation, or between a and B of aB."""
    parts = re.split(r"[^A-Za-z0-9]+|(?<=[a-z])(?=[A-Z])", text)
    joined = [*parts, *map("_".join, pairwise(parts))]
    return {part.lower() for part in joined if WORDS.fullmatch(part)}


@pytest.mark.parametrize(("path", "module"), list(modules()))
def test_no_module_names_a_chip(path, module):
    allowed = EXCEPTIONS.get(module, set())
    found = [
        f"line {line}: {text!r}"
        for line, text in spoken(ast.parse(path.read_text()))
        if words(text) - allowed
    ]
    assert not found, f"{module} names a chip; ask its back end instead. {'; '.join(found)}"


def test_every_exception_is_used():
    said = {
        param.values[1]: set().union(
            *(words(text) for _, text in spoken(ast.parse(param.values[0].read_text())))
        )
        for param in modules()
    }
    for module, allowed in EXCEPTIONS.items():
        assert allowed == said.get(module), f"{module} says {sorted(said.get(module, ()))}"


@pytest.mark.parametrize(
    "text", ["for_gpu", "isGpu", "x86", "x86_64", "cuda:sm_75", "avx2", "amx-int8", "iced_x86"]
)
def test_words_are_found(text):
    assert words(text)


@pytest.mark.parametrize("text", ["scuba", "message", "classes", "transverse", "cumulative"])
def test_other_words_are_not(text):
    assert not words(text)
