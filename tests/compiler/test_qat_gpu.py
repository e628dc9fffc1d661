"""Quantized training on a GPU; a CPU takes the same steps, so that the tests are always run."""

import numpy as np
import pytest
import torch
import transformers

import intformer
from intformer.frontend.checkpoint import Checkpoint
from intformer.qat import prepare, tasks
from intformer.qat.settings import Settings
from intformer.qat.trainer import forward_rows
from intformer.qat.training import train
from intformer_testing import qat_batch, random_hf
from intformer_testing.train_files import table

pytestmark = pytest.mark.usefixtures("quiet", "one_thread")


def needs_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device that torch can use")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cuda":
        needs_gpu()
    return request.param


@pytest.mark.parametrize("recipe", ["native", "ibert"])
def test_steps_and_integers(device, random_model, tmp_path, recipe):
    """Two steps under autocast; then the integers are the reference's, also after saving."""
    folder, _ = random_model()
    model = prepare(folder, recipe=recipe, calibrate=random_hf.sequences()).to(device)
    inputs, labels = qat_batch.batch(), torch.arange(6) % 3
    there = {name: tensor.to(device) for name, tensor in inputs.items()}
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(2):
        with torch.autocast(device, torch.bfloat16):
            loss = model(**there, labels=labels.to(device)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.isfinite()
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))

    found = model.eval().values(**there)
    model.save_pretrained(tmp_path)
    integer = intformer.import_model(tmp_path)
    wanted = integer.run(qat_batch.packed(integer, inputs).inputs())
    assert wanted.keys() == found.keys()
    for name, array in wanted.items():
        assert found[name].device.type == device
        np.testing.assert_array_equal(found[name].cpu().numpy(), array, err_msg=name)
    again = prepare(tmp_path, recipe=recipe).eval()
    with torch.no_grad():
        out = model(**there, labels=labels.to(device))
        same = again(**inputs, labels=labels)
    assert out.logits.device.type == device
    assert torch.equal(out.logits.cpu(), same.logits)
    assert out.loss.item() == pytest.approx(same.loss.item(), rel=1e-5)


@pytest.mark.gpu
def test_both_stages(tiny_encoder, tmp_path):
    """`intformer train` scores there what the saved directory scores on a CPU."""
    needs_gpu()
    data = table(tmp_path / "train.tsv")
    small = {"batch": 8, "max_length": 24, "lr": 1e-3, "qat_lr": 1e-3, "rows": 32}
    settings = Settings("sst2", epochs=1, qat_epochs=1, **small)
    result = train(tiny_encoder, data, tmp_path / "out", settings, data)
    assert result["device"] == torch.cuda.get_device_name()
    folder = tmp_path / "out" / "qat"
    config = transformers.AutoConfig.from_pretrained(folder)
    rows = tasks.Encoded(tasks.read(data, "sst2"), config, Checkpoint(folder).files(), 24)
    scores, _ = rows.score(forward_rows(prepare(folder).eval(), rows, 8))
    assert scores == pytest.approx(result["stages"]["qat"]["dev"], abs=1e-6)
