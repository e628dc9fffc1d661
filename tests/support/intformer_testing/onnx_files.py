"""ONNX files of small random models, as torch exports them."""

import inspect
import warnings

import torch

AXES = {0: "batch", 1: "sequence"}


class Listed(torch.nn.Module):
    """A model of transformers that returns a tuple of tensors."""

    def __init__(self, model, names):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors):
        found = self.model(**dict(zip(self.names, tensors, strict=True)), return_dict=True)
        return tuple(value for value in found.values() if isinstance(value, torch.Tensor))


def inputs_of(model):
    """Return the names of what a model takes."""
    known = inspect.signature(model.forward).parameters
    wanted = ("input_ids", "attention_mask", "token_type_ids")
    taken = [name for name in wanted if name in known]
    return taken if model.config.model_type != "mpnet" else taken[:2]


def export(model, file, names=None, opset=17, dynamo=False, attention="sdpa", optimize=True):
    """Write a model as an ONNX file; returns the names of its inputs."""
    model.set_attn_implementation(attention)
    names = names or inputs_of(model)
    ids = torch.randint(5, model.config.vocab_size, (2, 6))
    tensors = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "token_type_ids": torch.zeros_like(ids),
    }
    args = tuple(tensors[name] for name in names)
    wrapped = Listed(model.eval(), names).eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        outputs = [f"output{i}" for i in range(len(wrapped(*args)))]
        more = {"dynamic_axes": {name: AXES for name in (*names, *outputs)}}
        if dynamo:
            batch, length = torch.export.Dim("batch"), torch.export.Dim("sequence", max=30)
            shapes = (tuple({0: batch, 1: length} for _ in args),)
            more = {"dynamic_shapes": shapes}
        torch.onnx.export(
            wrapped,
            args,
            str(file),
            input_names=names,
            output_names=outputs,
            opset_version=opset,
            dynamo=dynamo,
            **({"optimize": optimize} if dynamo else {}),
            **more,
        )
    return names
