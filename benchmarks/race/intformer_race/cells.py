"""What is raced: contestants, and the cells (model, shape, threads, ISA level) they meet in."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

VNNI, AMX = "vnni", "amx"
BASE = "bert-base"
SHAPES = ((1, 16), (1, 128), (1, 256), (1, 384), (8, 128))  # sequences x tokens
KEY = (1, 128)
LONG = ((1, 2048), (1, 8192))
MODELS = {  # as in intformer.frontend.shapes, which the marks name
    BASE: {"layers": 12, "hidden": 768, "heads": 12, "ffn": 3072},
    "bert-large": {"layers": 24, "hidden": 1024, "heads": 16, "ffn": 4096},
    "minilm-l6": {"layers": 6, "hidden": 384, "heads": 12, "ffn": 1536},
}
LONG_MODELS = {  # gated: products that lead up to the ffn, instead of one; near: keys of a layer
    "bert-base-8192": {"layers": 12, "hidden": 768, "heads": 12, "ffn": 3072},
    "modernbert-base": {"layers": 22, "hidden": 768, "heads": 12, "ffn": 1152, "gated": 2},
}
NEAR = {"modernbert-base": (14, 129)}  # layers that read a window of keys, and how many keys
NO_MODEL = {("ctranslate2-int8", "modernbert-base")}  # which a contestant cannot convert
VOCABULARY = 30522
TARGETS = {VNNI: "cascadelake", AMX: "sapphirerapids"}  # of our libraries


@dataclass(frozen=True)
class Contestant:
    """Who races.

        program   file in contestants/
        mode      what the program is told
        computes  for people
        levels    ISA levels it is for
        role      "rival"; "ours"; "roof", which is no runtime but the peak of the int8 unit
    x
    """

    name: str
    program: str
    mode: str
    computes: str
    levels: tuple[str, ...] = (VNNI, AMX)
    role: str = "rival"
    where: str = "all"


OURS, IBERT, TORCH = "intformer", "intformer-ibert", "pytorch-fp32"
INT8 = "int8 products, rest fp32"
CONTESTANTS = {
    one.name: one
    for one in (
        Contestant(OURS, "ours", "native", "integers", role="ours"),
        Contestant(IBERT, "ours", "ibert", "integers", role="ours", where="key"),
        Contestant("openvino-int8", "ov", "int8-f32", INT8),
        Contestant("openvino-int8-bf16", "ov", "int8-bf16", "int8 products, rest bf16", (AMX,)),
        Contestant("openvino-bf16", "ov", "bf16", "bf16", (AMX,)),
        Contestant("onnxruntime-int8", "ort", "int8", INT8),
        Contestant("ctranslate2-int8", "ct2", "int8", "int8 linears, rest fp32"),
        Contestant(TORCH, "pytorch", "eager", "fp32", where="key"),
        Contestant("pytorch-compile-fp32", "pytorch", "compile", "fp32", where="key"),
        Contestant("onnxruntime-fp32", "ort", "fp32", "fp32", where="key"),
        Contestant("openvino-fp32", "ov", "f32", "fp32", where="key"),
        Contestant("vnni-peak", "roof", "vnni", "registers alone", (VNNI,), "roof"),
        Contestant("amx-peak", "roof", "amx", "tiles alone", (AMX,), "roof"),
    )
}
TEXT_CONTESTANTS = (TORCH, "openvino-int8", "onnxruntime-int8", "ctranslate2-int8")
TEXT_CONTESTANTS_AMX = ("openvino-int8-bf16", "openvino-bf16")


@dataclass(frozen=True)
class Cell:
    """Where contestants meet: `batch` sequences of `seq` tokens, `threads` threads."""

    model: str
    batch: int
    seq: int
    threads: int
    isa: str

    @property
    def shape(self) -> tuple[int, int]:
        """Sequences and tokens of each."""
        return self.batch, self.seq

    def __str__(self) -> str:
        """Return it in words."""
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.model} {self.batch}x{self.seq}, {threads}, {self.isa}"

    @property
    def macs(self) -> int:
        """Multiply-adds of every matrix product in one run, the head of two rows left out."""
        size = self.size
        hidden, tokens = size["hidden"], self.batch * self.seq
        linear = 4 * hidden**2 + (1 + size.get("gated", 1)) * hidden * size["ffn"]
        windowed, window = NEAR.get(self.model, (0, 0))
        keys = windowed * min(window, self.seq) + (size["layers"] - windowed) * self.seq
        return tokens * (size["layers"] * linear + 2 * keys * hidden) + self.batch * hidden**2

    @property
    def size(self) -> dict[str, int]:
        """What contestants are told of the model."""
        return (MODELS | LONG_MODELS)[self.model]


def default_cells(isas: Iterable[str]) -> list[Cell]:
    """Return the cells that the marks speak of: one thread, and two for BERT-base 1x128."""
    found = []
    for isa in isas:
        for model in MODELS:
            for shape in SHAPES:
                found.append(Cell(model, *shape, 1, isa))
                if (model, shape) == (BASE, KEY):
                    found.append(Cell(model, *shape, 2, isa))
    return found


def long_cells(isas: Iterable[str]) -> list[Cell]:
    """Return the cells of `--long`."""
    return [Cell(m, *shape, 1, isa) for isa in isas for m in LONG_MODELS for shape in LONG]


def contestants(cell: Cell, asked: Sequence[str] = ()) -> list[Contestant]:
    """Return who races in a cell: those asked for by name, else all that belong there."""
    key = (cell.model, cell.shape) == (BASE, KEY)
    return [
        one
        for one in CONTESTANTS.values()
        if cell.isa in one.levels
        and (one.name in asked if asked else key or one.where == "all")
        and (one.name != IBERT or cell.model == BASE)
        and (one.name, cell.model) not in NO_MODEL
    ]
