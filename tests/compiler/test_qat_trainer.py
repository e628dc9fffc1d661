"""What transformers.Trainer asks of a model beside its forward pass."""

import sys

import pytest
import torch
import transformers
from torch.nn.utils import parameters_to_vector
from transformers.models.ibert.quant_modules import QuantAct

from intformer.errors import IntformerError
from intformer.qat import prepare
from intformer.qat.ranges import Ranges
from intformer.qat.simulate import Dropout
from intformer_testing import qat_batch, random_hf

RECIPES = ["native", "ibert"]


pytestmark = pytest.mark.usefixtures("quiet", "one_thread")


def prepared(random_model, recipe, head="sequence-classification"):
    """A model whose output depends on parameters and tokens alone."""
    folder, _ = random_model("bert", head)
    model = prepare(folder, recipe=recipe, calibrate=random_hf.sequences())
    for module in (model, *model.modules()):
        match module:
            case torch.nn.Dropout():
                module.p = 0.0
            case QuantAct():
                module.act_range_momentum = 1.0
            case Ranges():
                module.decay = 1.0
    model.dropout = Dropout()
    return model


def rows(**targets):
    """16 sequences of 7 tokens."""
    ids = qat_batch.batch(lengths=(7,) * 16)["input_ids"]
    return [
        {"input_ids": one, **{name: values[i] for name, values in targets.items()}}
        for i, one in enumerate(ids)
    ]


def trainer(model, rows, folder, **options):
    """A Trainer as it comes, on the CPU."""
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        **options,
    )
    return transformers.Trainer(model, arguments, train_dataset=rows, eval_dataset=rows)


@pytest.mark.parametrize("recipe", RECIPES)
def test_accumulated_steps_are_one_step(random_model, tmp_path, recipe):
    """4 batches of 4 move the weights as one of 16 does."""
    moves = []
    for accumulated in (1, 4):
        model = prepared(random_model, recipe)
        before = parameters_to_vector(model.parameters()).detach()
        trainer(
            model,
            rows(labels=[i % 3 for i in range(16)]),
            tmp_path,
            max_steps=1,
            optim="sgd",
            learning_rate=1e-3,
            max_grad_norm=0,
            per_device_train_batch_size=16 // accumulated,
            gradient_accumulation_steps=accumulated,
        ).train()
        moves.append(parameters_to_vector(model.parameters()).detach() - before)
    # sums in another order may round a value to the other side
    assert torch.dist(*moves) < 0.02 * moves[0].norm()


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    ("head", "targets"),
    [
        ("sequence-classification", ("labels",)),
        ("question-answering", ("start_positions", "end_positions")),
    ],
)
def test_evaluation_has_a_loss(random_model, tmp_path, recipe, head, targets):
    """Without label_names; and it is that of the whole as one batch."""
    model = prepared(random_model, recipe, head).eval()
    examples = rows(**{name: [i % 3 for i in range(16)] for name in targets})
    found = trainer(model, examples, tmp_path).evaluate()
    with torch.no_grad():
        batch = transformers.default_data_collator(examples)
        assert found["eval_loss"] == pytest.approx(model(**batch).loss.item(), rel=1e-5)


def test_gradient_checkpointing_is_refused(random_model, tmp_path):
    model = prepared(random_model, "native")
    asked = trainer(model, rows(labels=[0] * 16), tmp_path, gradient_checkpointing=True)
    with pytest.raises(IntformerError, match="leave gradient_checkpointing out"):
        asked.train()


def test_data_parallel_is_refused(random_model, monkeypatch):
    """It copies a model to every GPU; here both copies stay on the CPU."""
    copying = sys.modules["torch.nn.parallel.replicate"]
    monkeypatch.setattr(copying, "_broadcast_coalesced_reshape", lambda them, *_, **__: [them] * 2)
    assert len(copying.replicate(torch.nn.Linear(1, 1), [0, 1])) == 2
    with pytest.raises(IntformerError, match="start a process per GPU"):
        copying.replicate(prepared(random_model, "native"), [0, 1])
