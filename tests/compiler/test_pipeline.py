"""Checkpoint to library: every family, head and odd shape, bit for bit, on every x86 target."""

import numpy as np
import pytest

import intformer
from intformer.backends import targets
from intformer.errors import CompileError
from intformer.frontend import import_model
from intformer_testing import make_ibert, random_hf
from intformer_testing.kernels import MISSING

EVERY = [
    (f, h, {}) for f in random_hf.CLASSES if f not in random_hf.TURNED for h in random_hf.HEADS
]
TURNED = [
    ("nomic_bert", "features", {}),
    ("gte", "sequence-classification", {"type_vocab_size": 0, "hidden": 64, "heads": 1}),
    ("jina_embeddings_v3", "masked-lm", {}),
    ("modernbert", "sequence-classification", {"classifier_pooling": "mean"}),
    ("modernbert", "masked-lm", {}),
    ("eurobert", "sequence-classification", {}),
]
ODD = [
    ("bert", "sequence-classification", {"hidden": 312, "heads": 12, "labels": 213}),
    ("roberta", "token-classification", {"hidden": 312, "heads": 12, "labels": 1}),
    ("bert", "sequence-classification", {"labels": 2, "activation": "relu"}),
    ("distilbert", "masked-lm", {"activation": "gelu_new"}),
    ("electra", "sequence-classification", {"activation": "gelu_pytorch_tanh"}),
    ("albert", "masked-lm", {"activation": "gelu_new", "layers": 5}),
]
SPARSE = ("bert", "sparse-embedding", {})
PORTABLE = [("bert", "sequence-classification", {}), SPARSE, ("albert", "masked-lm", {}), *ODD[:2]]
CASES = [("cascadelake", *case) for case in [*EVERY, *ODD, *TURNED, SPARSE]]
CASES += [(target, *case) for target in ("sapphirerapids", "x86-64") for case in PORTABLE]
CASES += [("x86-64", *case) for case in TURNED[:1]]
CASES += [("x86-auto", "albert", "masked-lm", {})]

IBERT = [
    *(("x86-64", "hf_compat", {"head": head}) for head in make_ibert.HEADS),
    *(("cascadelake", "hf_compat", {"head": head}) for head in make_ibert.HEADS),
    ("x86-64", "fixed", {}),
    ("cascadelake", "fixed", {}),
    ("sapphirerapids", "fixed", {}),
    ("cascadelake", "hf_compat", {"hidden": 104, "heads": 4, "ffn": 130, "labels": 3}),
    ("x86-auto", "hf_compat", {"hidden": 60, "heads": 5, "ffn": 52, "layers": 3, "types": 1}),
]


def name(case):
    return "-".join(map(str, case)).replace("'", "").replace(": ", "=")


def need(target):
    if MISSING.get(target):
        pytest.skip(f"this machine lacks {', '.join(MISSING[target])}")


@pytest.mark.parametrize("case", CASES, ids=name)
def test_library_equals_the_composed_reference(tmp_path, case):
    target, family, head, shape = case
    need(target)
    random_hf.save(tmp_path / "model", family, head, **shape)
    model = import_model(
        tmp_path / "model", head=head, calibrate=random_hf.sequences(seed=1), method="minmax"
    )
    library = intformer.compile(model, tmp_path / "m.so", target=target)
    report = intformer.verify(library)
    assert report.ok, report


@pytest.mark.parametrize("case", IBERT, ids=name)
def test_ibert_library_equals_the_composed_reference(tmp_path, case):
    target, mode, options = case
    need(target)
    make_ibert.random_model(**options).save_pretrained(tmp_path / "model")
    library = intformer.compile(
        tmp_path / "model", tmp_path / "m.so", target=target, mode=mode, calibrate=ids_and_types()
    )
    report = intformer.verify(library)
    assert report.ok, report
    assert library.metadata["recipe"] == "ibert" and library.metadata["mode"] == mode


def ids_and_types():
    rng = np.random.default_rng(1)
    return [
        (rng.integers(2, 61, n, dtype=np.int32), np.zeros(n, np.int32)) for n in (2, 3, 5, 17, 30)
    ]


def test_results_do_not_depend_on_the_batch_or_the_threads(tmp_path):
    target = "x86-64"
    random_hf.save(tmp_path / "model", "bert", "features")
    library = intformer.compile(
        tmp_path / "model",
        tmp_path / "m.so",
        target=target,
        calibrate=random_hf.sequences(seed=1),
    )
    sequences = random_hf.sequences((1, 2, 3, 5, 31, 32, 8, 9))
    rows = []
    for ids in sequences:
        rows.append(library.run(ids, np.array([0, len(ids)], np.int32)))
    offsets = np.cumsum([0, *map(len, sequences)]).astype(np.int32)
    for threads in (1, 2, 3):
        library.set_threads(threads)
        together = library.run(np.concatenate(sequences), offsets)
        np.testing.assert_array_equal(together, np.concatenate(rows))


def test_layers_of_one_shape_share_kernels(tmp_path):
    random_hf.save(tmp_path / "model", "bert", "features", layers=6)
    library = intformer.compile(
        tmp_path / "model",
        tmp_path / "m.so",
        target="x86-64",
        calibrate=random_hf.sequences(seed=1),
        dump_ir=tmp_path / "ir",
    )
    steps = [step["kernel"] for step in library.plan["steps"]]
    assert len(steps) > 6 * 6
    assert len(set(steps)) <= 10
    written = sorted(path.name for path in (tmp_path / "ir").iterdir())
    assert written[0] == "0-model.json" and written[-1] == "5-kernels.s"
    assert "vpdpbusd" not in (tmp_path / "ir" / "5-kernels.s").read_text()


def test_an_unknown_target_names_the_known_ones(tmp_path):
    with pytest.raises(CompileError, match=r"known: .*, x86-64, x86-auto"):
        intformer.compile(tmp_path, tmp_path / "m.so", target="cascadelak")
    assert not (tmp_path / "m.so").exists()


def test_the_default_target_is_this_machine(monkeypatch):
    assert targets.get("host").name == targets.host_target()
    monkeypatch.setattr("platform.machine", lambda: "s390x")
    with pytest.raises(CompileError, match="no target is for this machine, s390x"):
        targets.get("host")
    assert targets.get("cascadelake").name == "cascadelake"  # cross-compiles
