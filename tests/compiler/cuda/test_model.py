"""A whole model for a GPU: what its machine code multiplies, and both compilers on its source."""

import json
import lzma

import pytest

from intformer import cli, pipeline
from intformer.backends.cuda import code_check, toolchain
from intformer.frontend import import_model
from intformer.measure.prediction import chips, predict
from intformer.proof import code
from intformer_testing import cuda_compilers, random_hf


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A small BERT for the T4."""
    cuda_compilers.any_compiler()
    folder = tmp_path_factory.mktemp("model")
    shape = {"layers": 1, "hidden": 64, "heads": 2, "ffn": 128}  # whole tiles
    random_hf.save(folder / "m", "bert", "sequence-classification", **shape)
    model = import_model(folder / "m", calibrate=random_hf.sequences((9, 30)), method="minmax")
    return pipeline.compile(model, folder / "m.so", target="t4")


def test_products_are_those_of_the_shape(library):
    """What the machine code of a library multiplies, against rows x channels x depth."""
    batch, tokens = 8, 32  # a whole number of tiles of any size
    found = predict.Model(library, chips.CHIPS["t4"]).run(batch, tokens)
    assert [launch.kernel for launch in found] == [s["kernel"] for s in library.plan["steps"]]
    products = [launch for launch in found if launch.macs]
    kinds = {launch.kernel.rstrip("_0123456789") for launch in products}
    assert {"dense", "attention"} <= kinds
    for launch, step in zip(found, library.plan["steps"], strict=True):
        weights = [library.packing[a]["shape"] for a in step["args"] if a in library.packing]
        buffer = library.plan["buffers"][step["outputs"][0]]
        if launch.kernel.startswith("dense") and buffer["rows"] == "token":
            columns, depth = weights[0]
            assert launch.macs == batch * tokens * columns * depth


def test_its_code_passes_from_either_compiler(library):
    """The library has that of one; the source it carries goes to NVRTC, which has no C headers."""
    check = code.check_machine_code(library)
    assert check.ok, check.findings
    source = lzma.decompress(library.section("cuda/t4.cu.xz")).decode()
    built = toolchain.build(source, "sm_75", compiler=cuda_compilers.compiler("nvrtc"))
    launches = library.plan["launches"]
    detail, findings = code_check.check(built.cubin, built.ptx, "sm_75", launches, "cuda/t4")
    assert findings == [] and "SASS instructions for sm_75" in detail


def test_the_verb_predicts(library, capsys):
    command = ["bench", "--predict", "t4", str(library.path), "--shapes", "1x16,2x32"]
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert out.startswith("PREDICTION for Tesla T4") and "UNCHECKED" in out
    assert cli.main([*command, "--clock", "0.8", "--json"]) == 0
    slow = json.loads(capsys.readouterr().out)["shapes"]
    assert [(s["batch"], s["tokens"], s["ghz"]) for s in slow] == [(1, 16, 0.8), (2, 32, 0.8)]
    assert all(f"{s['batch']}x{s['tokens']}" in out for s in slow)
    assert cli.main(["bench", "--predict", "t4"]) == 1
    assert "need either a library or a shape" in capsys.readouterr().err
