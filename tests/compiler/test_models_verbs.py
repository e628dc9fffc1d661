"""Every family with every verb, at random weights: the first table of docs/models.md.

Each cell is a verb that ran, on a directory with a tokenizer as users have it, or the reason of its
refusal; the last row is an ONNX file. A new family gets its row by

    pytest tests/compiler/test_models_verbs.py -m "slow or not slow" --update-golden
"""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

import intformer
from intformer.frontend import import_model
from intformer.frontend.families import FAMILIES
from intformer.qat.settings import Settings
from intformer_testing import (
    fake_cuda,
    gpu,
    jina_bert,
    make_ibert,
    onnx_files,
    random_hf,
    small_tokenizer,
    train_files,
)

TABLE = Path(__file__).parents[2] / "docs" / "models.md"
MARKED = re.compile(r"(<!-- verbs -->\n)(.*?)(<!-- end -->)", re.DOTALL)
TEXTS = [(text,) for text in small_tokenizer.SENTENCES[:48]]
YES = "yes"
ONNX = "ONNX file"
SOURCES = (*FAMILIES, ONNX)
PAD = {"mpnet": 1}  # its class in transformers takes positions from no other


def save(folder: Path, family: str) -> None:
    """Write a directory of one layer with a tokenizer, and two labels where it may train."""
    if family == "jina_bert":
        jina_bert.save(folder, num_hidden_layers=1)
    elif family == "ibert":
        make_ibert.random_model(vocab=random_hf.VOCABULARY, layers=1).save_pretrained(folder)
    else:
        shape = {"layers": 1, "labels": 2, "pad_token_id": PAD.get(family, 0)}
        model_type = "bert" if family == ONNX else family
        model = random_hf.save(folder, model_type, "sequence-classification", **shape)
        if family == ONNX:
            onnx_files.export(model, folder / "model.onnx")
            (folder / "model.safetensors").unlink()
    small_tokenizer.save(folder, PAD.get(family, 0))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))


@dataclass
class Case:
    """A family's directory and what was made of it."""

    family: str
    folder: Path

    @cached_property
    def source(self) -> Path:
        save(self.folder / "model", self.family)
        return self.folder / "model"

    @property
    def calibrate(self):
        return None if self.family == "ibert" else TEXTS

    @property
    def head(self):
        return "sentence-embedding" if self.family == "jina_bert" else None

    @cached_property
    def model(self):
        method = None if self.family == "ibert" else "minmax"
        return import_model(self.source, calibrate=self.calibrate, method=method, head=self.head)

    @cached_property
    def library(self):
        return intformer.compile(self.model, self.folder / "m.so", target="x86-64")


def proved(library, **how) -> None:
    report = intformer.verify(library, cases=1, **how)
    assert report.ok and all(check.ran for check in report.checks), report


# -- verbs: each does its work, and returns its cell of the table ----------------------------------


def verified(case: Case, folder: Path) -> str:
    proved(case.library, source=case.source, calibrate=case.calibrate)
    return YES


def every_x86(case: Case, folder: Path) -> str:
    """All variants in one library; those that this machine has are run."""
    library = intformer.compile(case.model, folder / "m.so", target="x86-auto")
    assert intformer.verify(library, cases=1).ok
    return YES


def tuned(case: Case, folder: Path) -> str:
    """Four candidates; the library that uses their log is proved."""
    intformer.tune(case.source, target="x86-64", trials=4, out=folder / "log", tokens=(7,))
    options = {"target": "x86-64", "tuning_logs": folder / "log"}
    proved(intformer.compile(case.model, folder / "m.so", **options))
    return YES


def t4(case: Case, folder: Path) -> str:
    library = intformer.compile(case.model, folder / "m.so", target="t4")
    gpu.verified(library, fake_cuda.build(folder), folder)
    return YES


def benched(case: Case, folder: Path) -> str:
    race = intformer.bench(case.library.path, case.source, tokens=7, seconds=0.01)
    assert race.verified and len(race.rows) == 2
    return YES


def evaluated(case: Case, folder: Path) -> str:
    """In FP32 too, whose scores differ by what quantization does."""
    task = "stsb" if case.head else "sst2"
    data = train_files.table(folder / "dev.tsv", rows=8, pairs=bool(case.head))
    found = intformer.evaluate(case.library.path, task, data, case.source)
    assert found.integer.keys() == found.float.keys() and found.changed <= found.rows == 8
    return YES


def analyzed(case: Case, folder: Path) -> str:
    found = intformer.analyze(case.source, TEXTS, head=case.head, qat_steps=1)
    assert found.snr_db > 0 and any(row.name == "embed.word.weight" for row in found.rows)
    return f"all but QAT ({'; '.join(found.untried.values())})" if found.untried else YES


def trained(case: Case, folder: Path) -> str:
    """Both stages; the result compiles to a library that is proved."""
    recipe = "ibert" if case.family == "ibert" else "native"
    settings = Settings("sst2", recipe, epochs=1, batch=16, max_length=24, precision="fp32")
    data = train_files.table(folder / "train.tsv", rows=32)
    try:
        intformer.train(case.source, data, folder / "out", settings)
    except intformer.IntformerError as error:
        return f"refused: {error.what}"
    proved(intformer.compile(import_model(folder / "out" / "qat"), folder / "m.so"))
    return YES


VERBS = {
    "`compile`, `verify --source`": verified,
    "`x86-auto`": every_x86,
    "`t4`": t4,
    "`tune`": tuned,
    "`bench --source`": benched,
    "`eval --source`": evaluated,
    "`analyze`": analyzed,
    "`train`": trained,
}
QUICK = {("modernbert", verb) for verb in VERBS}
QUICK |= {("jina_bert", verb) for verb in ("`bench --source`", "`eval --source`", "`train`")}
QUICK |= {(ONNX, verb) for verb in ("`bench --source`", "`eval --source`", "`analyze`", "`train`")}


# -- the table -------------------------------------------------------------------------------------


def committed() -> dict[tuple[str, str], str]:
    """Return (family, verb) -> cell."""
    rows = MARKED.search(TABLE.read_text())[2].splitlines()[2:]
    found = {}
    for row in rows:
        family, *cells = (cell.strip() for cell in row.strip("|").split("|"))
        found |= {(family.strip("`"), verb): cell for verb, cell in zip(VERBS, cells, strict=True)}
    return found


def shown(family: str) -> str:
    """Return the first cell of a row."""
    return family if family == ONNX else f"`{family}`"


def written(cells: dict[tuple[str, str], str]) -> None:
    """Write the table."""
    lines = [["family", *VERBS], ["---"] * (1 + len(VERBS))]
    lines += [[shown(family), *(cells[family, verb] for verb in VERBS)] for family in SOURCES]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    text = TABLE.read_text()
    TABLE.write_text(MARKED.sub(lambda found: found[1] + table + found[3], text))


@pytest.fixture(scope="module")
def cell(request):
    """Return (family, verb, cell): compares with the table, or rewrites the table at the end."""
    update, found = request.config.getoption("--update-golden"), {}

    def compare(family, verb, made):
        found[family, verb] = made
        if not update:
            assert made == committed()[family, verb]

    yield compare
    if update:
        written({**committed(), **found})


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """Return family -> Case, the same for all verbs."""
    known = {}

    def make(family):
        if family not in known:
            known[family] = Case(family, tmp_path_factory.mktemp(family))
        return known[family]

    return make


def test_every_family_is_in_the_table():
    assert list(dict.fromkeys(family for family, _ in committed())) == list(SOURCES)


def cases():
    for family in SOURCES:
        for verb in VERBS:
            marks = [] if (family, verb) in QUICK else [pytest.mark.slow]
            if verb == "`t4`":
                marks.append(gpu.needs_compiler)
            yield pytest.param(family, verb, marks=marks)


@pytest.mark.usefixtures("quiet", "one_thread")
@pytest.mark.parametrize(("family", "verb"), cases())
def test_a_verb(cell, case, tmp_path, family, verb):
    cell(family, verb, VERBS[verb](case(family), tmp_path))
