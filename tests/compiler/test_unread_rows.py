"""Rows that nobody reads are not computed, and what is left computes what it did."""

import numpy as np
import pytest

import intformer
from intformer.frontend import import_model
from intformer.passes.unread_rows import drop_unread_rows
from intformer_testing import make_ibert, random_hf

IDS = [(s, np.zeros_like(s)) for s in random_hf.sequences((5, 9, 17, 2, 3, 11) * 3, seed=1)]
EVERY_TOKEN = ("features", "token-classification", "question-answering")


def batch(model):
    from intformer.frontend.calibration import pack

    return pack(IDS[:6], model.meta)


def rows_of(model, op):
    return [model.values[n.outputs[0]].rows for n in model.nodes if n.op == op]


@pytest.mark.parametrize("head", random_hf.HEADS)
@pytest.mark.parametrize("family", ["bert", "albert", "electra"])
def test_the_output_is_the_same(tmp_path, family, head):
    random_hf.save(tmp_path, family, head)
    model = import_model(tmp_path, calibrate=IDS, method="minmax")
    less = drop_unread_rows(model)
    inputs = batch(model)
    want, got = model.run(inputs), less.run(inputs)
    np.testing.assert_array_equal(got[less.output], want[model.output])
    if head in EVERY_TOKEN:
        assert less.nodes == model.nodes
        return
    kind = "position" if head == "masked-lm" else "sequence"
    # of the last layer all products but that of queries, keys and values; then those of the head
    heads = sum(rows == kind for rows in rows_of(model, "matmul"))
    assert rows_of(less, "matmul").count(kind) == heads + 3
    assert rows_of(less, "attention") == ["token"] * 2
    assert rows_of(less, "take_rows") == [kind] * 2  # the context, and the residual
    for name in got:
        if less.values[name].rows == "token":
            np.testing.assert_array_equal(got[name], want[name])


def test_a_residual_stream(tmp_path):
    """Both sums of the last layer are of the first token alone."""
    random_hf.save(tmp_path, "modernbert", "sequence-classification")
    model = import_model(tmp_path, calibrate=IDS, method="minmax")
    less = drop_unread_rows(model)
    inputs = batch(model)
    want, got = model.run(inputs)[model.output], less.run(inputs)[less.output]
    np.testing.assert_array_equal(got, want)
    assert rows_of(less, "stream_add") == ["token"] * 2 + ["sequence"] * 2
    assert rows_of(less, "gate") == ["token", "sequence"]


@pytest.mark.parametrize("mode", ["hf_compat", "fixed"])
def test_i_bert(tmp_path, mode):
    make_ibert.random_model("sequence-classification").save_pretrained(tmp_path)
    model = import_model(tmp_path, mode=mode)
    less = drop_unread_rows(model)
    ids = [(np.random.default_rng(n).integers(2, 61, n).astype(np.int32),) for n in (3, 1, 9)]
    inputs = {
        "input_ids": np.concatenate([one for (one,) in ids]),
        "token_type_ids": np.zeros(13, np.int32),
        "position_ids": np.concatenate([np.arange(2, 2 + len(one)) for (one,) in ids]),
        "cu_seqlens": np.array([0, 3, 4, 13], np.int32),
    }
    got = less.run(inputs)[less.output]
    np.testing.assert_array_equal(got, model.run(inputs)[model.output])
    assert rows_of(less, "matmul")[-2:] == ["sequence", "sequence"]
    assert rows_of(less, "matmul").count("sequence") == 5


def test_the_first_token_as_an_embedding(tmp_path):
    random_hf.save(tmp_path, "bert", "features")
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (tmp_path / "modules.json").write_text(
        '[{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},'
        ' {"idx": 1, "name": "1", "path": "1_Pooling",'
        ' "type": "sentence_transformers.models.Pooling"}]'
    )
    model = import_model(tmp_path, calibrate=IDS, method="minmax")
    less = drop_unread_rows(model)
    inputs = batch(model)
    np.testing.assert_array_equal(less.run(inputs)[less.output], model.run(inputs)[model.output])
    assert rows_of(less, "matmul").count("sequence") == 3


def test_a_library_is_proved_and_equals_the_whole_model(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    random_hf.save(source, "bert", "sequence-classification")
    model = import_model(source, calibrate=IDS, method="minmax")
    library = intformer.compile(model, tmp_path / "model.so", target="x86-64")
    report = intformer.verify(library, source, calibrate=IDS)
    assert report.ok, report.to_json()
    inputs = batch(model)
    taken = {k: v for k, v in inputs.items() if k in library.plan["inputs"] or k == "cu_seqlens"}
    np.testing.assert_array_equal(library.run(**taken), model.run(inputs)[model.output])
    # kernels of the last layer are those of the others
    kinds = [step["kernel"] for step in library.plan["steps"]]
    assert len(kinds) - len(set(kinds)) >= 5
