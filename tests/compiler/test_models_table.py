"""Every family with every head, at random weights: the second table of docs/models.md.

Each case is calibrated and compared with FP32, compiled and compared with the reference, and run as
training evaluates it. A new family or head gets its rows by

    pytest tests/compiler/test_models_table.py -m "slow or not slow" --update-golden
"""

import re
from pathlib import Path

import numpy as np
import pytest
import transformers

import intformer
from intformer.frontend import import_model
from intformer.frontend.calibrated import float_outputs, outputs, snr_db
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.encoder import read_encoder
from intformer.frontend.families import FAMILIES
from intformer.ir import heads
from intformer.qat import prepare
from intformer_testing import qat_batch, random_hf
from intformer_testing.kernels import MISSING

TABLE = Path(__file__).parents[2] / "docs" / "models.md"
MARKED = re.compile(r"(<!-- heads -->\n(?:.*\n){2})((?:.*\n)*?)(<!-- end -->)")
ROW = re.compile(r"^\| `([\w-]+)` \| ([\w-]+) \| (.*) \|$", re.MULTILINE)
LENGTHS = (*random_hf.LENGTHS, 32, 8, 25)
CLOSE = 0.5  # dB: float32 sums round differently from CPU to CPU, and few integers with them
TARGET = "x86-64" if MISSING["cascadelake"] else "cascadelake"
ENDINGS = {"sentence-embedding": "Model", **random_hf.MADE_OF, **random_hf.HEADS}


def has(family: str, head: heads.Head) -> bool:
    """Say whether a family has a head, here and in transformers."""
    kind = random_hf.CLASSES[family] + ENDINGS[head.name]
    return (head.embeds or head in FAMILIES[family].heads) and hasattr(transformers, kind)


# I-BERT's ranges come with its weights, and JinaBERT is no class of transformers
ELSEWHERE = {"ibert", "jina_bert"}
NATIVE = [family for family in FAMILIES if family not in ELSEWHERE]
CASES = [(f, head.name) for f in NATIVE for head in heads.HEADS.values() if has(f, head)]


def in_short(family: str, head: str) -> bool:
    """Say whether a case runs in CI: every family and every head once, within a minute."""
    return family == "bert" or head == "features"


def body() -> str:
    """Return the rows of the table as they are written."""
    return MARKED.search(TABLE.read_text())[2]


@pytest.fixture(scope="module")
def row(request):
    """Return (family, head, cells): compares with the table, or rewrites the table at the end."""
    committed = {(family, head): cells for family, head, cells in ROW.findall(body())}
    update, found = request.config.getoption("--update-golden"), {}

    def compare(family, head, db, *cells):
        found[family, head] = " | ".join((f"{db:.1f}", *cells))
        if not update:
            wanted, *others = committed[family, head].split(" | ")
            assert others == list(cells)
            assert abs(float(wanted) - db) < CLOSE

    yield compare
    if update:
        known = {**committed, **found}
        rows = [f"| `{f}` | {h} | {known[f, h]} |\n" for f, h in CASES if (f, h) in known]
        table = MARKED.sub(lambda found: found[1] + "".join(rows) + found[3], TABLE.read_text())
        TABLE.write_text(table)


def test_every_family_is_in_the_table(request):
    assert set(NATIVE) == set(random_hf.CLASSES)
    if request.config.getoption("--update-golden"):
        return
    assert [case[:2] for case in ROW.findall(body())] == CASES


@pytest.mark.usefixtures("quiet", "one_thread")
@pytest.mark.parametrize(
    ("family", "head"),
    [pytest.param(*case, marks=[] if in_short(*case) else pytest.mark.slow) for case in CASES],
)
def test_a_row(row, tmp_path, family, head):
    made = ENDINGS[head]
    source = next(h for h, e in (random_hf.HEADS | random_hf.MADE_OF).items() if e == made)
    random_hf.save(tmp_path / "model", family, source, layers=1)
    calibrate = random_hf.sequences(LENGTHS, seed=1)
    model = import_model(tmp_path / "model", head=head, calibrate=calibrate, method="minmax")
    graph, meta = read_encoder(Checkpoint(tmp_path / "model"), head)
    inputs = batches(meta)
    db = snr_db(float_outputs(graph, inputs).astype(np.float64), outputs(model, inputs))

    library = intformer.compile(model, tmp_path / "m.so", target=TARGET)
    report = intformer.verify(library)
    assert report.ok, report
    row(family, head, db, "equal", evaluated(tmp_path / "model", head, calibrate))


def batches(meta: dict) -> list[dict]:
    """Return sequences that calibration did not see, as inputs of IntModel.run."""
    ids = random_hf.sequences(LENGTHS, seed=2)
    mask = [np.arange(max(LENGTHS)) < len(one) for one in ids]
    padded = np.stack([np.pad(one, (0, max(LENGTHS) - len(one))) for one in ids])
    wanted = np.array(mask) & (padded % 3 == 0)
    packed = intformer.runtime.edge.pack(meta, padded, np.array(mask), wanted=wanted)
    if not heads.head_of(meta).fills_masks:
        packed.positions = None
    return [packed.inputs()]


def evaluated(folder: Path, head: str, calibrate) -> str:
    """Say whether training has the head: evaluation then has the integers of the reference."""
    if heads.named(head).outputs == "words":
        return "-"
    model = prepare(folder, head=head, calibrate=calibrate).eval()
    inputs = qat_batch.batch(pad=model.config.pad_token_id or 0)
    integer = model.int_model()
    wanted = integer.run(qat_batch.packed(integer, inputs).inputs())
    for name, array in model.values(**inputs).items():
        np.testing.assert_array_equal(array.numpy(), wanted[name], err_msg=name)
    return "equal"
