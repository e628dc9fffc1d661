"""Recipe native: evaluation carries the library's integers, training their values."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch.nn import functional

import intformer
from intformer.errors import CheckpointError, IntformerError
from intformer.frontend.encoder import read_encoder
from intformer.frontend.trained import RANGES_FILE
from intformer.ir.float_run import activate, by_distance, relative_scores
from intformer.qat import fake_quant, prepare
from intformer.qat.packing import pack
from intformer.qat.ranges import Ranges
from intformer.qat.simulate import Dropout, drops
from intformer.relay_ops import i_gelu
from intformer_testing import qat_batch, random_hf, sentence_dirs, small_tokenizer

TRAIN_EVAL_DB = 25  # of random models' logits: every rounding counts in them
MODELS = [
    ("bert", "sequence-classification"),
    ("bert", "token-classification"),
    ("bert", "question-answering"),
    ("roberta", "sequence-classification"),
    ("distilbert", "sequence-classification"),
    ("electra", "token-classification"),
    ("albert", "question-answering"),
    ("mpnet", "sequence-classification"),
    ("nomic_bert", "token-classification"),
    ("gte", "sequence-classification"),
    ("jina_embeddings_v3", "question-answering"),
    ("modernbert", "sequence-classification"),
    ("eurobert", "sequence-classification"),
    ("deberta-v2", "sequence-classification"),
    ("bert", "features"),
]


pytestmark = pytest.mark.usefixtures("quiet")


@pytest.fixture(scope="module")
def source(random_model):
    """Return (family, head, shape) -> directory of a random float model."""
    return lambda *given, **shape: random_model(*given, **shape)[0]


def prepared(folder, **options):
    model = prepare(folder, calibrate=random_hf.sequences(), **options)
    model.dropout = Dropout()
    return model


def inputs_of(model):
    return qat_batch.batch(pad=model.config.pad_token_id or 0)


@pytest.mark.parametrize(("family", "head"), MODELS)
def test_evaluation_is_the_integers(source, tmp_path, family, head):
    """Every value of every node, tolerance 0; and the saved directory means the same."""
    model = prepared(source(family, head)).eval()
    inputs = inputs_of(model)
    integer = model.int_model()
    wanted = integer.run(qat_batch.packed(integer, inputs).inputs())
    found = model.values(**inputs)
    assert wanted.keys() == found.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name].numpy(), array, err_msg=name)
    with torch.no_grad():
        rows = qat_batch.rows(model(**inputs), inputs["attention_mask"])
    scale = integer.meta["output_scale"]
    np.testing.assert_allclose(rows, wanted[integer.output] * scale, rtol=1e-6)

    model.save_pretrained(tmp_path)
    again = intformer.import_model(tmp_path)
    assert (again.nodes, again.values, again.output) == (
        *(integer.nodes, integer.values),
        integer.output,
    )
    for name, tensor in integer.tensors.items():
        np.testing.assert_array_equal(again.tensors[name], tensor, err_msg=name)


@pytest.mark.parametrize(
    ("family", "head", "weights"),
    [(*model, "channel") for model in MODELS] + [(*MODELS[0], "tensor"), (*MODELS[-1], "tensor")],
)
def test_training_has_the_values_of_evaluation(source, family, head, weights):
    """Rounding that falls the other way somewhere is all that sets them apart."""
    model = prepared(source(family, head), weights=weights)
    model.ranges.decay = 1.0  # both at the same ranges
    inputs = inputs_of(model)
    with torch.no_grad():
        simulated = qat_batch.rows(model.train()(**inputs), inputs["attention_mask"])
        integer = qat_batch.rows(model.eval()(**inputs), inputs["attention_mask"])
    assert qat_batch.snr_db(integer, simulated) > TRAIN_EVAL_DB


SEVERAL = ["cls", "mean_sqrt_len_tokens", "max"]


@pytest.mark.parametrize("pooling", ["mean", "max", "lasttoken", "weightedmean", SEVERAL], ids=str)
def test_pooled_embeddings(source, tmp_path, pooling):
    """Evaluation is the integers, training has their values, and a saved directory keeps both."""
    folder = Path(shutil.copytree(source("bert", "features"), tmp_path / "model"))
    sentence_dirs.old_modules(folder, "Transformer", "Pooling")
    settings = {"word_embedding_dimension": 60, "pooling_mode": pooling}
    sentence_dirs.write(folder / "1_Pooling/config.json", settings)
    model = prepared(folder)
    model.ranges.decay = 1.0
    inputs = inputs_of(model)
    with torch.no_grad():
        simulated = model.train()(**inputs).logits
        rows = model.eval()(**inputs).logits
    integer = model.int_model()
    wanted = integer.run(qat_batch.packed(integer, inputs).inputs())[integer.output]
    np.testing.assert_allclose(rows, wanted * integer.meta["output_scale"], rtol=1e-6)
    assert qat_batch.snr_db(rows.numpy(), simulated.numpy()) > TRAIN_EVAL_DB
    model.save_pretrained(tmp_path / "saved")
    again = intformer.import_model(tmp_path / "saved")
    assert again.nodes == integer.nodes and again.meta["pooling"] == integer.meta["pooling"]


@pytest.mark.parametrize(("family", "gates"), [("gte", True), ("nomic_bert", False)])
def test_which_families_drop_gated_activations(source, family, gates):
    model = prepare(source(family, "sequence-classification"))
    graph, _ = read_encoder(model.checkpoint, "sequence-classification")
    assert model.dropout.gate == gates
    assert (model.dropout.hidden, model.dropout.attention) == ((0.1, 0.0) if gates else (0.0, 0.0))
    dropped = drops(graph, replace(model.dropout, hidden=0.1))
    assert ("layer0.gate" in dropped) == gates and "layer0.ffn2" in dropped


def test_training_follows_the_integers_tap_by_tap(source):
    """Before int8 differences add up: the 16-bit values of the first layer."""
    model = prepared(source())
    taps = {}
    model.ranges.observe = lambda name, x: taps.setdefault(name, x.detach().double().numpy())
    inputs = inputs_of(model)
    model.train()(**inputs)
    integer = model.int_model()
    found = integer.run(qat_batch.packed(integer, inputs).inputs())
    for tap, name, least in (
        ("embed.norm", "embed.norm.int16", 60),
        ("layer0.qkv", "layer0.qkv", 38),
        ("layer0.context", "layer0.context", 35),
        ("layer0.sum1", "layer0.sum1", 38),
        ("layer0.norm1", "layer0.norm1.int16", 38),
        ("layer0.act", "layer0.act", 35),
        ("layer0.norm2", "layer0.norm2.int16", 35),
    ):
        real = found[name] * np.asarray(integer.values[name].scale)
        assert qat_batch.snr_db(real, taps[tap]) > least, tap


def test_saturated_products_of_3072_terms(source):
    """Ranges far too small: operands clip, K = 3072 adds up what does not."""
    model = prepared(source(ffn=3072, layers=1)).eval()
    with torch.no_grad():
        for name, buffer in model.ranges.named_buffers():
            if name.startswith("peak_"):
                buffer *= 0.02
    inputs = qat_batch.batch()
    integer = model.int_model()
    wanted = integer.run(qat_batch.packed(integer, inputs).inputs())
    found = model.values(**inputs)
    assert (np.abs(wanted["layer0.act.int8"]) == 127).mean() > 0.2
    assert np.abs(wanted["layer0.ffn2.acc"]).max() > 2**20
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name].numpy(), array, err_msg=name)


def test_the_library_computes_it(source, tmp_path):
    """`compile` takes the directory as it is; evaluation's logits are the library's."""
    model = prepared(source(layers=1)).eval()
    model.save_pretrained(tmp_path / "qat")
    library = intformer.compile(tmp_path / "qat", tmp_path / "a.so", target="x86-64")
    inputs = qat_batch.batch()
    taken = qat_batch.packed(model.int_model(), inputs).inputs()
    with torch.no_grad():
        rows = qat_batch.rows(model(**inputs), inputs["attention_mask"])
    integers = library.run(**taken)
    np.testing.assert_allclose(rows, integers * library.metadata["output_scale"], rtol=1e-6)
    assert library.metadata["training"] == {"recipe": "native", "weights": "channel"}


def test_a_saved_directory_is_a_hugging_face_model(source, tmp_path):
    folder = source()
    small_tokenizer.save(folder)
    model = prepared(folder)
    model.save_pretrained(tmp_path)
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    for name, weight in model.model.state_dict().items():
        assert torch.equal(plain.state_dict()[name], weight), name
    assert (tmp_path / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    again = prepare(tmp_path)
    inputs = qat_batch.batch()
    with torch.no_grad():
        assert torch.equal(again.eval()(**inputs).logits, model.eval()(**inputs).logits)


def test_training_learns(source):
    model = prepare(source(labels=2), calibrate=random_hf.sequences())
    inputs, labels = qat_batch.batch(), torch.tensor([0, 1, 0, 1, 1, 0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model.train()
    for _ in range(12):
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        out = model.eval()(**inputs, labels=labels)
    assert (out.logits.argmax(1) == labels).all()
    assert out.loss < 0.3


def test_padding_changes_nothing(source):
    """Nor does it cost a range: the tokens alone are seen."""
    model = prepared(source())
    labels = torch.arange(6) % 3
    found = []
    for extra in (0, 9):
        model.ranges.decay = 1.0
        model.train().zero_grad()
        out = model(**qat_batch.batch(extra=extra), labels=labels)
        out.loss.backward()
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found.append((out.logits.detach(), grads))
    (one, grads), (other, others) = found
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    for a, b in zip(grads, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_ranges_are_an_ema():
    """Worked out on paper for decay 1/2, exactly."""
    fresh, started = (Ranges({"tap": 3}, {}, decay=0.5) for _ in range(2))
    started.start({"tap": np.array([8.0, 0.0, 4.0])}, {})
    batches = [
        [[7.0, -1.0, 0.0], [-2.0, 14.0, 0.0]],  # max|x| 7, 14, 0
        [[0.0, 7.0, 28.0], [-14.0, 3.0, -1.0]],  # 14, 7, 28
        [[-21.0, 14.0, 7.0]],
    ]
    wanted = [
        ([7, 14, 0], [7.5, 7, 2]),  # m1; (m0 + m1) / 2
        ([35 / 3, 28 / 3, 56 / 3], [10.75, 7, 15]),  # (m1 + 2 m2) / 3; (m0 + m1 + 2 m2) / 4
        ([17, 12, 12], [15.875, 10.5, 11]),  # (m1 + 2 m2 + 4 m3) / 7; half of it and half of m3
    ]
    for batch, peaks in zip(batches, wanted, strict=True):
        for ranges, peak in zip((fresh, started), peaks, strict=True):
            ranges.observe("tap", torch.tensor(batch))
            assert torch.equal(ranges.peak("tap"), torch.tensor(peak, dtype=torch.float32))
    # a channel keeps its range where a batch holds no number: (7 m + 8 m) / 15
    fresh.observe("tap", torch.tensor([[torch.nan, -torch.inf, 4.0]]))
    found = fresh.peak("tap").tolist()
    assert found == pytest.approx([17, 12, (7 * 12 + 8 * 4) / 15])


def test_the_range_of_a_tensor_is_the_ema_of_its_maximum(source):
    """As in Q8BERT; the largest EMA of its channels would be less. q, k and v are three tensors."""
    batches = [[[8.0, 1.0, -2.0, 2.0, 3.0, 0.0]], [[0.0, -16.0, 2.0, 6.0, 1.0, -5.0]]]
    sizes, tensors = {"norm": 6, "layer0.qkv": 6}, {"norm": 1, "layer0.qkv": 3}
    ranges = Ranges(sizes, {}, decay=0.5, tensors=tensors)
    ranges.start({tap: np.zeros(6) for tap in ranges.taps}, {})
    for batch in batches:
        for tap in ranges.taps:
            ranges.observe(tap, torch.tensor(batch))
    assert ranges.peak("norm").tolist() == [10] * 6  # (8 / 2 + 16) / 2
    assert ranges.peak("layer0.qkv").tolist() == [10, 10, 3.5, 3.5, 3.25, 3.25]

    found = {}
    two_batches = random_hf.sequences((30,) * 40)
    for mode in ("float", "integer"):
        model = prepare(source(), calibrate=two_batches, nonlinear=mode, weights="tensor")
        found[mode] = [model.ranges.peak(tap) for tap in model.ranges.taps]
        model.train()(**qat_batch.batch())
        low, high = model.ranges.peak("layer1.qkv").unflatten(0, (3, -1)).aminmax(dim=1)
        assert torch.equal(low, high) == (mode == "float")
    more = [a.max() / b.max() for a, b in zip(found["float"], found["integer"], strict=True)]
    assert min(more) >= 1 and max(more) > 1.01


def test_training_sees_its_batches_alone(source):
    """Nothing is in the range at first, and evaluation leaves it."""
    model = prepare(source())
    model.dropout = Dropout()
    with pytest.raises(IntformerError, match=r"no range yet at embed\.norm"):
        model.eval()(**qat_batch.batch())
    inputs = qat_batch.batch()
    with torch.no_grad():
        real = model.model.eval()(**inputs, output_hidden_states=True).hidden_states[0]
        model.train()(**inputs)
    peak = model.ranges.peak("embed.norm")
    # training rounds the word rows, so that this is close and not equal
    wanted = real[inputs["attention_mask"].bool()].abs().amax(0)
    torch.testing.assert_close(peak, wanted, rtol=0.02, atol=0.02)
    with torch.no_grad():
        model.eval()(**qat_batch.batch(seed=9))
    assert torch.equal(model.ranges.peak("embed.norm"), peak)


def test_evaluation_follows_every_change(source):
    model = prepared(source()).eval()
    inputs = qat_batch.batch()
    with torch.no_grad():
        first = model(**inputs).logits
        assert model.integer() is model.integer()
        model.model.classifier.bias += 1.0
        second = model(**inputs).logits
        model.load_state_dict(prepared(source()).state_dict())
        third = model(**inputs).logits
    assert (second - first > 0.9).all()
    assert torch.equal(first, third)


def test_straight_through_gradients():
    """A product's gradients are those of the rounded operands; rounding passes them on."""
    torch.manual_seed(0)
    x, w, b = torch.randn(5, 8), torch.randn(6, 8), torch.randn(6)
    f = torch.rand(8) + 0.5
    scale = f * (x / f).abs().max() / 127
    leaves = [t.clone().requires_grad_() for t in (x, w, b)]
    fake_quant.QuantLinear.apply(*leaves, scale, f, "channel", 1, None).square().sum().backward()
    steps = (w * f).abs().amax(1, keepdim=True) / 127
    rounded = [
        t.clone().requires_grad_()
        for t in ((x / scale).round() * scale, (w * f / steps).round() * steps / f, b)
    ]
    functional.linear(*rounded).square().sum().backward()
    for leaf, one in zip(leaves, rounded, strict=True):
        torch.testing.assert_close(leaf.grad, one.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", i_gelu.FUNCTIONS)
@pytest.mark.parametrize("top", [3.0, 7.5, 40.0])
def test_gelu_is_the_integer_function(kind, top):
    """The value of the integers, and the gradient of the float function."""
    form, stretch = i_gelu.FUNCTIONS[kind]
    bits, scale = i_gelu.scale(top, kind)
    x = torch.linspace(-1.2 * top, 1.2 * top, 4001, requires_grad=True)
    found = fake_quant.gelu_bits(torch.tensor(top * stretch), form)
    assert found == bits
    y = fake_quant.IntGelu.apply(x, fake_quant.gelu_tables(form), found, kind)
    q = np.clip(np.rint(x.detach().numpy() / scale), -i_gelu.LIMIT, i_gelu.LIMIT)
    point = i_gelu.point(bits, form)
    wanted = i_gelu.reference(q.astype(np.int16)[:, None], point, form=form)[:, 0]
    far = 0 if stretch == 1 else scale * 1.01  # x times 1.702 may round to the other neighbour
    np.testing.assert_allclose(y.detach().numpy(), wanted * np.float32(scale), atol=far, rtol=0)
    y.sum().backward()
    twin = x.detach().clone().requires_grad_()
    activate(twin, kind).sum().backward()
    torch.testing.assert_close(x.grad, twin.grad)


@pytest.mark.parametrize("wrong", ["ffn1", "word row", "pooler"])
def test_what_is_no_number_reaches_the_loss(source, wrong):
    """NaN in, NaN out: no lookup fails, and no range keeps it."""
    model = prepared(source()).train()
    bert = model.model.bert
    with torch.no_grad():
        {
            "ffn1": bert.encoder.layer[0].intermediate.dense.bias,
            "word row": bert.embeddings.word_embeddings.weight,
            "pooler": bert.pooler.dense.bias,
        }[wrong].fill_(torch.nan)
    out = model(**qat_batch.batch(), labels=torch.zeros(6, dtype=torch.int64))
    assert out.loss.isnan() and out.logits.isnan().all()
    out.loss.backward()
    assert all(buffer.isfinite().all() for buffer in model.ranges.buffers())
    with pytest.raises(IntformerError, match=r"holds .* NaN"):
        model.eval()(**qat_batch.batch())


def test_attention_has_softmax_gradients():
    """Equal lengths and ragged ones, against transformers' way of masking."""
    torch.manual_seed(0)
    meta = {
        **{"position_rule": "column", "pad_token_id": 0, "vocab_size": 97},
        **{"type_vocab_size": 2, "position_count": 32},
    }
    for lengths in ((4, 4), (2, 5, 1)):
        inputs = qat_batch.batch(lengths=lengths)
        tokens = pack(meta, **inputs)
        qkv = torch.randn(sum(lengths), 24, requires_grad=True)
        fake_quant.Attention.apply(
            qkv, tokens.grid, 2, 0.0, True, None, 0.5
        ).square().sum().backward()
        twin = qkv.detach().clone().requires_grad_()
        parts = []
        for one in twin.split(lengths):
            q, k, v = one.view(len(one), 3, 2, 4).permute(1, 2, 0, 3)
            out = functional.scaled_dot_product_attention(q, k, v)
            parts.append(out.transpose(0, 1).flatten(1))
        torch.cat(parts).square().sum().backward()
        torch.testing.assert_close(qkv.grad, twin.grad, rtol=2e-3, atol=2e-3)


def test_gradient_of_a_bias_of_attention(source):
    """The bias of the graph gets the gradient of the float functions it goes through."""
    meta = prepared(source()).meta
    for lengths in ((4, 4), (2, 5, 1)):
        tokens = pack(meta, **qat_batch.batch(lengths=lengths))
        qkv, table = torch.randn(sum(lengths), 24), torch.randn(2, 9, requires_grad=True)
        bias = by_distance(table, max(lengths))
        fake_quant.Attention.apply(
            qkv, tokens.grid, 2, 0.0, True, bias, 0.5
        ).square().sum().backward()
        twin = table.detach().clone().requires_grad_()
        parts = []
        for one in qkv.split(lengths):
            q, k, v = one.view(len(one), 3, 2, 4).permute(1, 2, 0, 3)
            mask = by_distance(twin, len(one))
            out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            parts.append(out.transpose(0, 1).flatten(1))
        torch.cat(parts).square().sum().backward()
        torch.testing.assert_close(table.grad, twin.grad, rtol=3e-3, atol=3e-3)


def test_gradient_of_products_with_distances(source):
    """They depend on queries and keys, so that each sequence has its own."""
    meta = prepared(source()).meta
    lengths = (2, 5, 1)
    tokens = pack(meta, **qat_batch.batch(lengths=lengths))
    qkv, tables = torch.randn(sum(lengths), 24), torch.randn(2, 9, 2, 4)
    given = [t.detach().clone().requires_grad_() for t in (qkv, tables)]
    twins = [t.detach().clone().requires_grad_() for t in (qkv, tables)]
    at = by_distance(torch.arange(9), max(lengths))
    q, k, _ = tokens.grid.unpack(given[0]).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    bias = relative_scores(q, k, *given[1], at) * 0.5
    made = fake_quant.Attention.apply(given[0], tokens.grid, 2, 0.0, True, bias, 0.5)
    made.square().sum().backward()
    parts = []
    for one in twins[0].split(lengths):
        q, k, v = one.view(len(one), 3, 2, 4).permute(1, 2, 0, 3)
        keys, queries = (by_distance(t.permute(1, 2, 0), len(one)) for t in twins[1])
        mask = torch.einsum("hid,hdij->hij", q, keys) + torch.einsum("hjd,hdij->hij", k, queries)
        out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask * 0.5)
        parts.append(out.transpose(0, 1).flatten(1))
    torch.cat(parts).square().sum().backward()
    for ours, theirs in zip(given, twins, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=5e-3, atol=5e-3)


def test_autocast_rounds_no_operand(source):
    """int8 operands are exact in bfloat16; what it rounds is each product's result."""
    model = prepared(source())
    model.ranges.decay = 1.0
    inputs = qat_batch.batch()
    model.train()
    with torch.no_grad():
        plain = model(**inputs).logits
        with torch.autocast("cpu", torch.bfloat16):
            half = model(**inputs)
    assert half.logits.dtype == torch.float32
    assert qat_batch.snr_db(plain.numpy(), half.logits.numpy()) > 25
    loss = None
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**inputs, labels=torch.zeros(6, dtype=torch.int64)).loss
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_autocast_to_float16_changes_nothing(source):
    """Sums of its products would be infinite: 5 * 127^2 > 65504."""
    inputs, labels = qat_batch.batch(), torch.arange(6) % 3
    found = []
    for enabled in (False, True):
        model = prepared(source()).train()
        with torch.autocast("cpu", torch.float16, enabled=enabled):
            loss = model(**inputs, labels=labels).loss
        loss.backward()
        found.append([loss, *(p.grad for p in model.parameters() if p.grad is not None)])
    for plain, half in zip(*found, strict=True):
        assert plain.isfinite().all() and torch.equal(plain, half)


def test_losses_are_transformers(source):
    """The loss of given logits; integers decide the logits."""
    inputs = qat_batch.batch()
    mask = inputs["attention_mask"].bool()
    regression = prepared(source(labels=1)).eval()
    wanted = torch.randn(6)
    with torch.no_grad():
        out = regression(**inputs, labels=wanted)
        assert torch.allclose(out.loss, functional.mse_loss(out.logits[:, 0], wanted))
        tokens = prepared(source(head="token-classification")).eval()
        labels = torch.where(mask, inputs["input_ids"] % 3, -100)
        labels[0, 2] = -100
        out = tokens(**inputs, labels=labels)
        every = functional.cross_entropy(out.logits.flatten(0, 1), labels.flatten())
        assert torch.allclose(out.loss, every)
        answers = prepared(source(head="question-answering")).eval()
        start, end = torch.tensor([0, 0, 3, 1, 2, 40]), torch.tensor([1, 0, 5, 1, 2, 40])
        out = answers(**inputs, start_positions=start, end_positions=end)
        length = mask.shape[1]
        parts = [
            functional.cross_entropy(logits, at.clamp(max=length), ignore_index=length)
            for logits, at in ((out.start_logits, start), (out.end_logits, end))
        ]
        assert torch.allclose(out.loss, sum(parts) / 2)


def test_float_functions_are_for_comparison(source, tmp_path):
    model = prepared(source(), nonlinear="float")
    inputs = qat_batch.batch()
    with torch.no_grad():
        assert model.eval()(**inputs).logits.isfinite().all()
    with pytest.raises(IntformerError, match="no integer program"):
        model.int_model()
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="nonlinear"):
        intformer.import_model(tmp_path)


def test_what_cannot_be_prepared_says_so(source, tmp_path):
    with pytest.raises(CheckpointError, match="recipe 'fancy' is not known"):
        prepare(source(), recipe="fancy")
    with pytest.raises(CheckpointError, match="weights = 'row'"):
        prepare(source(), weights="row")
    with pytest.raises(CheckpointError, match="masked-lm"):
        prepare(source(head="masked-lm"))
    with pytest.raises(CheckpointError, match="sparse-embedding"):
        prepare(source(head="masked-lm"), head="sparse-embedding")
    with pytest.raises(CheckpointError, match="missing"):
        prepare(source(head="features"), head="sequence-classification")
    model = prepared(source())
    inputs = qat_batch.batch()
    with pytest.raises(IntformerError, match="97 is outside"):
        model(**{**inputs, "input_ids": torch.full_like(inputs["input_ids"], 97)})
    with pytest.raises(IntformerError, match="sequence 1 is empty"):
        mask = inputs["attention_mask"].clone()
        mask[1] = 0
        model(inputs["input_ids"], mask)


def test_a_directory_whose_ranges_do_not_fit(source, tmp_path):
    model = prepared(source())
    model.save_pretrained(tmp_path)
    for options in ({"recipe": "ibert"}, {"mode": "fixed"}, {"method": "mse"}):
        with pytest.raises(CheckpointError, match="does not go with"):
            intformer.import_model(tmp_path, **options)
    # calibration text sets the ranges anew
    model = intformer.import_model(tmp_path, calibrate=random_hf.sequences())
    assert model.meta["calibration"]["sequences"]
    other = prepared(source(layers=1))
    other.save_pretrained(tmp_path / "other")
    ranges = Path(tmp_path / "other" / RANGES_FILE).read_bytes()
    (tmp_path / RANGES_FILE).write_bytes(ranges)
    with pytest.raises(CheckpointError, match=r"range 'peak\.layer1\.qkv' is missing"):
        intformer.import_model(tmp_path)
    (tmp_path / RANGES_FILE).write_bytes(ranges[:100])
    with pytest.raises(CheckpointError, match="cannot read it"):
        intformer.import_model(tmp_path)
    (tmp_path / RANGES_FILE).unlink()
    with pytest.raises(CheckpointError, match="no such file of learned ranges"):
        intformer.import_model(tmp_path)


def test_autocast_rounds_no_integer(source):
    model = prepared(source()).eval()
    inputs = qat_batch.batch()
    plain = model.values(**inputs)
    with torch.autocast("cpu", torch.bfloat16):
        for name, value in model.values(**inputs).items():
            assert torch.equal(value, plain[name]), name
