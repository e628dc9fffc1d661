"""ONNX files: what the graph read from them gives is what ONNX Runtime gives."""

import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import transformers
from onnx import TensorProto, helper, numpy_helper

from intformer.backends.targets import host_target
from intformer.errors import CheckpointError
from intformer.frontend import calibration, import_model, opened
from intformer.frontend.encoder import read_encoder
from intformer.frontend.onnx import program
from intformer.frontend.onnx.checkpoint import OnnxCheckpoint
from intformer.ir.float_run import run
from intformer_testing import onnx_files, random_hf, sentence_dirs

LENGTHS = (5, 1, 17, 3)
CLOSE = 1e-4
EXPORTS = [  # family, head, attention of transformers, opset, exporter of torch.export
    ("bert", "question-answering", "eager", 14, False),
    ("distilbert", "sequence-classification", "sdpa", 17, False),
    ("camembert", "features", "eager", 12, False),
    ("mpnet", "features", "sdpa", 17, False),
    ("albert", "masked-lm", "sdpa", 14, False),
]
SLOW = [
    ("bert", "features", "sdpa", 17, False),
    ("bert", "masked-lm", "sdpa", 17, False),
    ("distilbert", "token-classification", "sdpa", 17, False),
    ("roberta", "sequence-classification", "sdpa", 17, False),
    ("electra", "token-classification", "eager", 17, False),
    ("bert", "features", "sdpa", 18, True),
    ("distilbert", "sequence-classification", "eager", 20, True),
    ("roberta", "masked-lm", "sdpa", 18, True),
    ("mpnet", "features", "sdpa", 18, True),
]
CASES = [*EXPORTS, *(pytest.param(*one, marks=pytest.mark.slow) for one in SLOW)]


def saved(folder, family, head, **how):
    """A directory with config.json and model.onnx."""
    model = random_hf.save(folder, family, head)
    (folder / "model.safetensors").unlink()
    onnx_files.export(model, folder / "model.onnx", **how)
    return model


def runtime_rows(file, ids, types=None, output=0, pad=0):
    """Run ONNX Runtime on one padded batch; returns an output's rows of every sequence."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    longest = max(map(len, ids))
    batch = np.full((len(ids), longest), pad)
    mask, kinds = np.zeros_like(batch), np.zeros_like(batch)
    for i, one in enumerate(ids):
        batch[i, : len(one)], mask[i, : len(one)] = one, 1
        if types is not None:
            kinds[i, : len(one)] = types[i]
    feeds = {"input_ids": batch, "attention_mask": mask, "token_type_ids": kinds}
    names = {one.name for one in session.get_inputs()}
    found = session.run(None, {k: v for k, v in feeds.items() if k in names})
    rows = found[output]
    if rows.shape[:2] != mask.shape:
        return rows.reshape(len(ids), -1)
    if len(found) == 2 and found[1].shape == mask.shape:  # starts and ends
        rows = np.stack(found, -1)
    return rows[mask == 1]


def batch_of(meta, seed=0):
    rng = np.random.default_rng(seed)
    ids = random_hf.sequences(LENGTHS, seed)
    kinds = [rng.integers(0, meta["type_vocab_size"], len(one), dtype=np.int32) for one in ids]
    return ids, kinds, calibration.pack(list(zip(ids, kinds, strict=True)), meta)


@pytest.mark.parametrize(("family", "head", "attention", "opset", "dynamo"), CASES)
def test_graph_equals_onnx_runtime(tmp_path, family, head, attention, opset, dynamo):
    saved(tmp_path, family, head, attention=attention, opset=opset, dynamo=dynamo)
    graph, meta = read_encoder(opened(tmp_path), head)
    assert (meta["head"], meta["family"]) == (head, family)
    ids, kinds, batch = batch_of(meta)
    wanted = runtime_rows(tmp_path / "model.onnx", ids, kinds, pad=meta["pad_token_id"])
    if head == "masked-lm":
        wanted = wanted[batch["positions"]]
    assert np.abs(run(graph, batch) - wanted).max() < CLOSE * np.abs(wanted).max()


@pytest.mark.parametrize(("family", "head"), [("bert", "masked-lm"), ("mpnet", "features")])
def test_graph_equals_that_of_the_weights(tmp_path, family, head):
    """Same nodes, same names, same numbers as from the checkpoint that was exported."""
    model = random_hf.save(tmp_path, family, head)
    wanted, meta = read_encoder(opened(tmp_path), head)
    (tmp_path / "model.safetensors").unlink()
    onnx_files.export(model, tmp_path / "model.onnx")
    graph, ours = read_encoder(opened(tmp_path), head)
    own = {"warnings": 0, "source_integers": 0, "source_scales": 0}
    assert ours | own == meta | own
    assert [(n.kind, n.name, n.inputs, n.stem, n.attrs) for n in graph.nodes] == [
        (n.kind, n.name, n.inputs, n.stem, {k: v for k, v in n.attrs.items() if v})
        for n in wanted.nodes
    ]
    _, _, batch = batch_of(meta)
    assert np.abs(run(graph, batch) - run(wanted, batch)).max() < CLOSE


def test_names_mean_nothing(tmp_path):
    """Every node, initializer and inner value called by a number."""
    saved(tmp_path, "bert", "token-classification")
    graph, meta = read_encoder(opened(tmp_path))
    file = tmp_path / "model.onnx"
    model = onnx.load(file)
    kept = {one.name for one in (*model.graph.input, *model.graph.output)} | {""}
    names = {}

    def new(name):
        return name if name in kept else names.setdefault(name, f"v{len(names)}")

    for node in model.graph.node:
        node.name = ""
        node.input[:], node.output[:] = map(new, node.input), map(new, node.output)
    for one in model.graph.initializer:
        one.name = new(one.name)
    del model.graph.value_info[:]
    onnx.save(model, file)
    again, _ = read_encoder(opened(tmp_path))
    _, _, batch = batch_of(meta)
    np.testing.assert_array_equal(run(again, batch), run(graph, batch))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    saved(folder, "bert", "features", opset=12, attention="eager")
    return folder


@pytest.fixture
def copied(exported, tmp_path):
    """Return a directory with the file, and a function that changes the file."""
    folder = tmp_path / "copied"
    shutil.copytree(exported, folder)

    def change(function):
        model = onnx.load(folder / "model.onnx")
        function(model)
        onnx.save(model, folder / "model.onnx")
        return folder

    return change


def nodes_of(model, op):
    return [node for node in model.graph.node if node.op_type == op]


def constant(model, name):
    """Return the node or initializer that holds a constant, and its tensor."""
    for one in model.graph.initializer:
        if one.name == name:
            return one
    (node,) = (node for node in model.graph.node if node.output[0] == name)
    return node.attribute[0].t


def refused(folder, *words):
    with pytest.raises(CheckpointError) as caught:
        read_encoder(opened(folder))
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert "model.onnx" in str(caught.value)


def test_a_mask_that_hides_real_tokens_is_refused(copied):
    """1 - mask times -3.4e38 becomes 1 - mask times +3.4e38: padding gets all attention."""

    def change(model):
        for one in (
            *model.graph.initializer,
            *(n.attribute[0].t for n in nodes_of(model, "Constant")),
        ):
            array = numpy_helper.to_array(one)
            if array.dtype == np.float32 and array.size == 1 and array.min() < -1e30:
                one.CopyFrom(numpy_helper.from_array(-array, one.name))

    refused(copied(change), "other than a padding mask", "node '")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_window_wider_than_any_probe_is_refused(tmp_path, attention):
    model = random_hf.save(tmp_path, "bert", "features")
    (tmp_path / "model.safetensors").unlink()
    whole = model.forward

    def windowed(input_ids, attention_mask, token_type_ids, **more):
        at = torch.arange(input_ids.shape[1])
        seen = (attention_mask[:, None, None] > 0) & ((at[:, None] - at).abs() <= 20)
        mask = torch.where(seen, 0.0, -1e9)
        return whole(input_ids, attention_mask=mask, token_type_ids=token_type_ids, **more)

    model.forward = windowed
    file = tmp_path / "model.onnx"
    names = ["input_ids", "attention_mask", "token_type_ids"]
    onnx_files.export(model, file, names, attention=attention)
    refused(tmp_path, "attention of 32 tokens leaves some out")


def test_positions_that_stop_beyond_the_probes_are_refused(tmp_path):
    model = random_hf.save(tmp_path, "bert", "features")
    (tmp_path / "model.safetensors").unlink()
    whole = model.forward

    def stopping(input_ids, attention_mask, token_type_ids, **more):
        at = torch.arange(input_ids.shape[1]).clamp(max=20)[None]
        kinds = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        return whole(input_ids, position_ids=at, **kinds, **more)

    model.forward = stopping
    names = ["input_ids", "attention_mask", "token_type_ids"]
    onnx_files.export(model, tmp_path / "model.onnx", names, attention="eager")
    refused(tmp_path, "does not count the positions of 32 tokens")


def test_another_activation_is_refused_by_node(copied):
    def change(model):
        for node in nodes_of(model, "Erf"):
            node.op_type = "Tanh"

    refused(copied(change), "elementwise function", "supported: gelu", "MatMul")


def test_an_unknown_operator_is_refused_by_node(copied):
    def change(model):
        nodes_of(model, "Erf")[1].op_type = "Softplus"

    refused(copied(change), "not understood here", "Softplus", "layer.1")


def test_operators_of_onnx_runtime_are_refused_by_node(copied):
    def change(model):
        node = nodes_of(model, "Softmax")[0]
        node.op_type, node.domain, node.name = "SkipLayerNormalization", "com.microsoft", "fused_3"
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))

    refused(copied(change), "com.microsoft.SkipLayerNormalization", "'fused_3'", "export the model")


def test_scores_with_another_scale_are_read(copied):
    """Whatever attention divides by instead of sqrt(head_dim) goes into the queries' weights."""

    def change(model):
        node = next(n for n in nodes_of(model, "Mul") if "MatMul" in n.input[0] or "scal" in n.name)
        tensor = constant(model, node.input[1])
        tensor.CopyFrom(
            numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(0.5), tensor.name)
        )

    folder = copied(change)
    graph, meta = read_encoder(opened(folder))
    ids, kinds, batch = batch_of(meta)
    wanted = runtime_rows(folder / "model.onnx", ids, kinds)
    assert np.abs(run(graph, batch) - wanted).max() < CLOSE * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("modernbert", ("position table", "rotary", "tok_embeddings")),
        pytest.param("nomic_bert", ("position table", "rotary"), marks=pytest.mark.slow),
        pytest.param("gte", ("position table", "rotary"), marks=pytest.mark.slow),
        pytest.param("jina_embeddings_v3", ("position table", "rotary"), marks=pytest.mark.slow),
        pytest.param("eurobert", ("input_layernorm",), marks=pytest.mark.slow),
        ("deberta-v2", ("layer.0/attention",)),
    ],
)
def test_families_that_are_read_from_directories_alone(tmp_path, family, words):
    """Rotary positions, RMS norms, disentangled attention: a node of them is named."""
    saved(tmp_path, family, "features", attention="eager")
    refused(tmp_path, "node '", "compile the directory", *words)


class Double(torch.nn.Module):
    """Two classifiers over one encoder, or one of them twice."""

    def __init__(self, folder, same):
        super().__init__()
        self.first = random_hf.save(folder, "bert", "sequence-classification")
        (folder / "model.safetensors").unlink()
        self.same, self.config = same, self.first.config
        self.other = torch.nn.Linear(60, 3)

    def set_attn_implementation(self, kind):
        self.first.set_attn_implementation(kind)

    def forward(self, input_ids, attention_mask, token_type_ids, return_dict):
        kinds = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        hidden = self.first.bert(input_ids, **kinds)[1]
        logits = self.first.classifier(hidden)
        return {"a": logits, "b": logits + 0 if self.same else self.other(hidden)}


@pytest.mark.parametrize("same", [False, True])
def test_two_outputs_of_one_head(tmp_path, same):
    """Other numbers are refused by the names of both; the same numbers are one answer."""
    model = Double(tmp_path, same)
    onnx_files.export(model, tmp_path / "model.onnx")
    if same:
        _, meta = read_encoder(opened(tmp_path))
        assert (meta["head"], meta["output_channels"]) == ("sequence-classification", 3)
    else:
        refused(tmp_path, "'output0', 'output1' all give 'sequence-classification'", "alone")


def test_the_hidden_states_of_all_layers_are_the_last(copied, exported):
    """Whatever their order: an output in front gives what the first layer gives."""

    def change(model):
        norms = [n for n in nodes_of(model, "Add") if "LayerNorm/Add_1" in n.output[0]]
        inner = next(n.output[0] for n in norms if "layer.0/output" in n.output[0])
        model.graph.output.insert(0, helper.make_tensor_value_info(inner, TensorProto.FLOAT, None))

    graph, meta = read_encoder(opened(copied(change)))
    wanted, _ = read_encoder(opened(exported))
    _, _, batch = batch_of(meta)
    np.testing.assert_array_equal(run(graph, batch), run(wanted, batch))


@pytest.mark.parametrize("name", ["position_ids", "head_mask"])
def test_other_inputs_are_refused(copied, name):
    def change(model):
        value = helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        model.graph.input.append(value)

    refused(copied(change), f"input {name!r} is not supported")


def test_fixed_lengths_are_refused(copied):
    def change(model):
        for value in model.graph.input:
            value.type.tensor_type.shape.dim[1].dim_value = 128

    refused(copied(change), "[None, 128]", "dynamic axes")


def test_a_shape_that_would_fill_memory_is_refused(copied):
    def change(model):
        shape = numpy_helper.from_array(np.array([1 << 20, 1 << 20]), "huge")
        model.graph.initializer.append(shape)
        node = helper.make_node("ConstantOfShape", ["huge"], ["filled"], name="filler")
        model.graph.node.append(node)
        model.graph.node.append(helper.make_node("Identity", ["filled"], ["extra"]))
        model.graph.output.append(helper.make_tensor_value_info("extra", TensorProto.FLOAT, None))

    refused(copied(change), "makes more than", "'filler'")


@pytest.mark.parametrize(
    ("x", "shape"), [((1, 1, 512, 512), (1, 1, 512, 512)), ((3, 1), (2, 1, 4)), ((5,), (1,))]
)
def test_numbers_of_expand_are_those_of_the_broadcast(x, shape):
    made = program.MADE["Expand"](np.zeros(x, bool), np.array(shape))
    assert made == np.broadcast_to(np.zeros(x, bool), np.broadcast_shapes(x, shape)).size


def test_config_of_another_model_is_refused(copied):
    folder = copied(lambda model: None)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_hidden_layers": 3}))
    with pytest.raises(CheckpointError, match=r"num_hidden_layers.* = 3, the ONNX file has 2"):
        read_encoder(opened(folder))


def test_a_head_that_the_file_lacks_is_refused(exported):
    with pytest.raises(CheckpointError, match=r"no head 'token-classification'.*it has: features"):
        read_encoder(opened(exported), "token-classification")


def test_damaged_files_are_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"\xff" * 100)
    refused(tmp_path, "not an ONNX file")


def external(folder, location):
    """Put the weights beside the file."""
    model = onnx.load(folder / "model.onnx")
    onnx.save(
        model,
        folder / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=100,
    )
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for one in model.graph.initializer:
        for entry in one.external_data:
            if entry.key == "location":
                entry.value = location
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def test_weights_beside_the_file_are_read(copied, exported):
    folder = copied(lambda model: None)
    external(folder, "weights.bin")
    graph, meta = read_encoder(opened(folder))
    _, _, batch = batch_of(meta)
    np.testing.assert_array_equal(run(graph, batch), run(read_encoder(opened(exported))[0], batch))
    data = (folder / "weights.bin").read_bytes()
    (folder / "weights.bin").write_bytes(data[:1000])
    with pytest.raises(CheckpointError, match="beyond the end"):
        read_encoder(opened(folder))


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd", "absent.bin"])
def test_weights_elsewhere_are_refused(copied, location):
    folder = copied(lambda model: None)
    external(folder, location)
    refused(folder, location)


def test_which_file(exported, tmp_path):
    """model.onnx or the only one; in a folder onnx the directory above has what belongs to it."""
    inner = tmp_path / "onnx"
    inner.mkdir()
    shutil.copy(exported / "model.onnx", inner / "model_int8.onnx")
    shutil.copy(exported / "config.json", tmp_path)
    for source in (tmp_path, inner / "model_int8.onnx"):
        found = opened(source)
        assert isinstance(found, OnnxCheckpoint)
        assert found.config["model_type"] == "bert"
        assert found.path == tmp_path
    shutil.copy(exported / "model.onnx", inner / "model_fp16.onnx")
    with pytest.raises(CheckpointError, match="2 ONNX files: onnx/model_fp16"):
        opened(tmp_path)
    shutil.copy(exported / "model.onnx", inner)
    assert opened(tmp_path).file_path.name == "model.onnx"
    with pytest.raises(CheckpointError, match="no such ONNX file"):
        opened(tmp_path / "absent.onnx")


def test_a_file_alone(exported, tmp_path):
    """Without config.json the file says everything but the names of classes."""
    shutil.copy(exported / "model.onnx", tmp_path)
    graph, meta = read_encoder(opened(tmp_path / "model.onnx"))
    assert (meta["family"], meta["head"], meta["hidden"], meta["heads"]) == (
        "onnx",
        "features",
        60,
        4,
    )
    assert meta["warnings"] == ["ONNX outputs that are left out: output1"]
    assert opened(tmp_path).files() == {}
    assert graph.output == "layer1.norm2"


# -- integers of the file --------------------------------------------------------------------------


def integers_of(model):
    """Return name -> array of the initializers that are integers of weights."""
    arrays = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    return {name: a for name, a in arrays.items() if a.ndim == 2 and a.dtype in (np.int8, np.uint8)}


def products(folder, op):
    """Return the weights [N, K] of the file's products of an operator, and their scales."""
    model = onnx.load(folder / "model.onnx")
    arrays = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    names = [node.input[1] for node in nodes_of(model, op) if node.input[1] in arrays]
    return [(arrays[n].T, arrays[n.replace("_quantized", "_scale")]) for n in names]


def imported(folder):
    sequences = random_hf.sequences((9, 4, 12, 30, 7) * 4, seed=1)
    return import_model(folder, calibrate=sequences, method="minmax")


@pytest.mark.parametrize("per_channel", [False, True])
def test_dynamic_quantization_keeps_its_weights(tmp_path, per_channel):
    """As optimum makes it: MatMulInteger, the embeddings with a zero point."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    saved(tmp_path, "bert", "token-classification", opset=14)
    file = tmp_path / "model.onnx"
    quantize_dynamic(file, file, weight_type=QuantType.QInt8, per_channel=per_channel)
    model = imported(tmp_path)
    wanted = products(tmp_path, "MatMulInteger")
    names = [f"layer{i}.{name}" for i in (0, 1) for name in ("qkv", "out", "ffn1", "ffn2")]
    found = [model.tensors[f"{name}.weight"] for name in (*names, "head0")]
    assert len(wanted) == 6 * 2 + 1
    np.testing.assert_array_equal(
        np.concatenate(found[:1]), np.concatenate([w for w, _ in wanted[:3]])
    )
    for mine, theirs in zip(found[1:4], wanted[3:6], strict=True):
        np.testing.assert_array_equal(mine, theirs[0])
    np.testing.assert_array_equal(found[-1], wanted[-1][0])
    scale = model.values["head0.acc"].scale
    ratio = np.asarray(scale) / np.ravel(wanted[-1][1])
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-6)
    own = integers_of(onnx.load(file))["model.bert.embeddings.word_embeddings.weight_quantized"]
    np.testing.assert_array_equal(model.tensors["embed.word.weight"], own.astype(np.int16) - 128)
    assert model.meta["source_integers"] == {"kept": 11, "of": 12}
    close(model, tmp_path, least_db=15)


def close(model, folder, least_db):
    """The integer program against ONNX Runtime."""
    ids, kinds, batch = batch_of(model.meta, seed=3)
    wanted = runtime_rows(folder / "model.onnx", ids, kinds)
    found = model.run(batch)[model.output] * model.meta["output_scale"]
    noise = np.square(found - wanted).sum() / np.square(wanted).sum()
    assert -10 * np.log10(noise) > least_db


def test_unsigned_weights_whose_zero_point_does_not_fit_are_refused(tmp_path):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    saved(tmp_path, "bert", "features", opset=14)
    file = tmp_path / "model.onnx"
    quantize_dynamic(file, file, weight_type=QuantType.QUInt8)
    with pytest.raises(CheckpointError, match=r"MatMul_\d+_quantized.*zero point.*beyond int8"):
        read_encoder(opened(tmp_path))


@pytest.mark.parametrize(
    "form", ["Cast, Mul", "Cast, Sub, Mul", "DequantizeLinear", "DequantizeLinear, Transpose"]
)
def test_weight_only_quantization_keeps_its_weights(exported, tmp_path, form):
    """Float products with weights that the file computes from integers, a scale per channel."""
    model = onnx.load(exported / "model.onnx")
    arrays = {one.name: one for one in model.graph.initializer}
    kept, made = [], []
    for node in nodes_of(model, "MatMul"):
        name = node.input[1]
        if name not in arrays:
            continue
        weight = numpy_helper.to_array(arrays[name]).T
        scale = np.abs(weight).max(1) / np.float32(127)
        integers = np.rint(weight / scale[:, None]).astype(np.int8)
        kept.append(integers)
        model.graph.initializer.remove(arrays[name])
        made += weight_only(model, form, name, integers, scale)
    for node in reversed(made):
        model.graph.node.insert(0, node)
    file = tmp_path / "model.onnx"
    for entry in model.opset_import:
        entry.version = max(entry.version, 13)
    onnx.save(modern(model), file)
    shutil.copy(exported / "config.json", tmp_path)
    model = imported(tmp_path)
    for layer in (0, 1):
        q, k, v, *others = kept[6 * layer : 6 * layer + 6]
        qkv = model.tensors[f"layer{layer}.qkv.weight"]
        np.testing.assert_array_equal(qkv, np.concatenate([q, k, v]))
        for name, wanted in zip(("out", "ffn1", "ffn2"), others, strict=True):
            np.testing.assert_array_equal(model.tensors[f"layer{layer}.{name}.weight"], wanted)
    assert model.meta["source_integers"] == {"kept": 8, "of": 11}
    close(model, tmp_path, least_db=15)


def modern(model):
    """Axes of Squeeze and Unsqueeze as opset 13 has them."""
    for i, node in enumerate(model.graph.node):
        if node.op_type in ("Squeeze", "Unsqueeze", "ReduceSum") and node.attribute:
            axes = numpy_helper.from_array(np.array(node.attribute[0].ints), f"axes{i}")
            model.graph.initializer.append(axes)
            node.input.append(axes.name)
            del node.attribute[:]
    return model


def weight_only(model, form, name, integers, scale):
    """Return the nodes that make the weight `name` [K, N] of integers [N, K]."""
    turned = form.endswith("Transpose")
    array = integers if turned else integers.T
    factor = scale if form.startswith("Deq") else scale[None]
    for part, value in ((f"{name}_q", array), (f"{name}_s", factor)):
        model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), part))
    if form.startswith("Cast"):
        less = f"{name}_f"
        nodes = [helper.make_node("Cast", [f"{name}_q"], [less], to=TensorProto.FLOAT)]
        if "Sub" in form:  # a zero point of 0
            model.graph.initializer.append(numpy_helper.from_array(np.float32(0), f"{name}_z"))
            nodes.append(helper.make_node("Sub", [less, f"{name}_z"], [f"{name}_l"]))
            less = f"{name}_l"
        return [*nodes, helper.make_node("Mul", [less, f"{name}_s"], [name])]
    out = f"{name}_t" if turned else name
    axis = 0 if turned else 1
    nodes = [helper.make_node("DequantizeLinear", [f"{name}_q", f"{name}_s"], [out], axis=axis)]
    return nodes + ([helper.make_node("Transpose", [out], [name])] if turned else [])


# -- static quantization ---------------------------------------------------------------------------


class Readings:
    """Calibration data of onnxruntime.quantization."""

    def __init__(self, names):
        self.names, self.left = names, iter(random_hf.sequences((9,) * 20, seed=1))

    def get_next(self):
        ids = next(self.left, None)
        if ids is None:
            return None
        ids = ids[None].astype(np.int64)
        mask, types = np.ones_like(ids), np.zeros_like(ids)
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        return {name: feeds[name] for name in self.names}


def static(folder, family, activations="QInt8", **how):
    """A directory with a statically quantized file, as onnxruntime writes it."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    model = random_hf.save(folder, family, "token-classification")
    (folder / "model.safetensors").unlink()
    file = folder / "model.onnx"
    names = onnx_files.export(model, file)
    quantize_static(
        file,
        file,
        Readings(names),
        quant_format=QuantFormat.QDQ,
        activation_type=getattr(QuantType, activations),
        weight_type=QuantType.QInt8,
        **how,
    )


def grids_of(folder):
    """Return value -> (scale, zero point from -128 to 127) of all that the file rounds."""
    model = onnx.load(folder / "model.onnx")
    arrays = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    found = {}
    for node in nodes_of(model, "QuantizeLinear"):
        scale, zero = (arrays[name] for name in node.input[1:])
        found[node.input[0]] = float(scale), int(zero) - (128 if zero.dtype == np.uint8 else 0)
    return found


@pytest.mark.parametrize(
    ("family", "activations", "symmetric"),
    [("distilbert", "QInt8", False), ("bert", "QUInt8", False), ("distilbert", "QInt8", True)],
)
def test_static_quantization_keeps_integers_and_scales(tmp_path, family, activations, symmetric):
    options = {"ActivationSymmetric": symmetric}
    static(tmp_path, family, activations, per_channel=True, extra_options=options)
    grids = grids_of(tmp_path)
    assert symmetric == all(zero == 0 for _, zero in grids.values())
    model = imported(tmp_path)
    for value, wanted in operand_grids(grids).items():
        scale, zero = model.values[value].scale, wanted[1]
        assert np.allclose(scale, wanted[0], rtol=1e-6), value
        assert f"zero point {zero}" in model.values[value].origin
    keys, values = np.split(np.broadcast_to(model.values["layer0.qkv"].scale, 180), 3)[1:]
    at = next(name for name in grids if "layer.0" in name and name.endswith("Transpose_1_output_0"))
    np.testing.assert_allclose(values, grids[at][0], rtol=1e-6)
    assert np.ptp(keys) == 0
    assert model.meta["source_scales"]["kept"] == 13
    wanted = products_of_qdq(tmp_path)
    np.testing.assert_array_equal(model.tensors["head0.weight"], wanted[-1])
    np.testing.assert_array_equal(model.tensors["layer1.qkv.weight"], np.concatenate(wanted[6:9]))
    graph, _ = read_encoder(opened(tmp_path))
    _, _, batch = batch_of(model.meta, seed=3)
    noise = model.run(batch)[model.output] * model.meta["output_scale"] - run(graph, batch)
    assert np.square(noise).sum() < 10**-2.5 * np.square(run(graph, batch)).sum()  # 25 dB
    if activations == "QInt8":  # of u8 and s8, ONNX Runtime's sums saturate on some CPUs
        close(model, tmp_path, least_db=20)


def operand_grids(grids):
    """Return value of our program -> the grid that the file has there."""
    norms = [grid for name, grid in grids.items() if "LayerNormalization" in name]
    ends = ("act/Mul_1_output_0", "act_fn/Mul_1_output_0", "activation/Mul_1_output_0")
    acts = [grid for name, grid in grids.items() if name.endswith(ends)]
    assert (len(norms), len(acts)) == (5, 2), list(grids)
    names = ["embed.norm", "layer0.norm1", "layer0.norm2", "layer1.norm1", "layer1.norm2"]
    found = {f"{name}.int8": grid for name, grid in zip(names, norms, strict=True)}
    return found | {f"layer{i}.act.int8": grid for i, grid in enumerate(acts)}


def products_of_qdq(folder):
    """Return the integers [N, K] of the file's weights of products, in its order."""
    model = onnx.load(folder / "model.onnx")
    arrays = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    made = {node.output[0]: node.input[0] for node in nodes_of(model, "DequantizeLinear")}
    names = [made.get(node.input[1]) for node in nodes_of(model, "MatMul")]
    return [arrays[name].T for name in names if name in arrays]


def test_operands_are_the_integers_of_the_file(tmp_path):
    """What ONNX Runtime has behind its first QuantizeLinear of a LayerNorm, number by number."""
    static(tmp_path, "distilbert", op_types_to_quantize=["Gather", "MatMul"])
    model = imported(tmp_path)
    file = tmp_path / "model.onnx"
    changed = onnx.load(file)
    node = next(n for n in nodes_of(changed, "QuantizeLinear") if "LayerNorm" in n.input[0])
    inner = helper.make_tensor_value_info(node.output[0], TensorProto.INT8, None)
    del changed.graph.output[:]
    changed.graph.output.append(inner)
    onnx.save(changed, file)
    ids, _, batch = batch_of(model.meta, seed=3)
    theirs = runtime_rows(file, ids).astype(int)
    ours = model.run(batch)["embed.norm.int8"].astype(int)
    assert np.abs(ours - theirs).max() <= 1
    assert (ours == theirs).mean() > 0.98
    assert np.abs(theirs).max() > 100


@pytest.mark.slow
def test_a_static_model_is_exact_when_compiled(tmp_path):
    """Zero points in the kernels: behind GELU, in LayerNorm, in attention."""
    from intformer import compile

    static(tmp_path, "bert")
    model = imported(tmp_path)
    library = compile(model, tmp_path / "m.so", target=host_target())
    _, _, batch = batch_of(model.meta, seed=3)
    np.testing.assert_array_equal(library.run(**batch), model.run(batch)[model.output])
    assert "rescale_0" not in library.plan["buffers"]
    assert sum(step["kernel"].startswith("dense_gelu") for step in library.plan["steps"]) == 2


def changed_static(folder, function):
    static(folder, "distilbert")
    model = onnx.load(folder / "model.onnx")
    arrays = {one.name: one for one in model.graph.initializer}
    function(model, arrays)
    onnx.save(model, folder / "model.onnx")


def test_a_pair_of_two_scales_is_refused(tmp_path):
    def change(model, arrays):
        made = {n.output[0]: n for n in nodes_of(model, "QuantizeLinear")}
        pairs = [n for n in nodes_of(model, "DequantizeLinear") if n.input[0] in made]
        node = next(n for n in pairs if "LayerNorm" in n.name)
        model.graph.initializer.append(numpy_helper.from_array(np.float32(0.5), "other"))
        node.input[1] = "other"

    changed_static(tmp_path, change)
    refused(tmp_path, "another scale than was applied", "QuantizeLinear", "LayerNorm")


def test_16_bit_activations_are_refused(tmp_path):

    def change(model, arrays):
        node = next(n for n in nodes_of(model, "QuantizeLinear") if "LayerNorm" in n.name)
        zero = arrays[node.input[2]]
        wide = numpy_helper.to_array(zero).astype(np.int16)
        zero.CopyFrom(numpy_helper.from_array(wide, zero.name))

    changed_static(tmp_path, change)
    refused(tmp_path, "activations of int16", "only of 8 bits", "LayerNorm")


def test_fused_integer_operators_are_refused_by_node(tmp_path):
    """The format QOperator: QLinearMatMul and the like."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    model = random_hf.save(tmp_path, "distilbert", "features")
    (tmp_path / "model.safetensors").unlink()
    file = tmp_path / "model.onnx"
    names = onnx_files.export(model, file)
    quantize_static(
        file,
        file,
        Readings(names),
        quant_format=QuantFormat.QOperator,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
    )
    with pytest.raises(CheckpointError, match=r"is not understood.*node"):
        read_encoder(opened(tmp_path))


def test_modules_of_sentence_transformers_are_read(tmp_path):
    """Poolings side by side and a Dense module behind the file, as behind the weights."""
    st = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer import modules

    plain = sentence_dirs.plain(tmp_path / "plain")
    parts = [
        modules.Transformer(str(plain)),
        modules.Pooling(60, pooling_mode=("cls", "mean")),
        modules.LayerNorm(120),
        modules.Dense(120, 8),
        modules.Normalize(),
    ]
    folder = tmp_path / "saved"
    st.SentenceTransformer(modules=parts, device="cpu").save(str(folder))
    wanted, meta = read_encoder(opened(folder))
    auto = transformers.AutoModel.from_pretrained(folder)
    onnx_files.export(auto, folder / "model.onnx")
    (folder / "model.safetensors").unlink()
    graph, ours = read_encoder(opened(folder))
    assert ours["pooling"] == meta["pooling"] == "first+mean"
    assert ours["normalize"] is meta["normalize"] is True
    _, _, batch = batch_of(meta)
    assert run(graph, batch).shape == (4, 8)
    assert np.abs(run(graph, batch) - run(wanted, batch)).max() < CLOSE
