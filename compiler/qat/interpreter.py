"""IntModel in torch: every integer of IntModel.run, faster, and on a GPU where there is one."""

import torch

from intformer.ir.model import IntModel
from intformer.qat import integer_ops, integer_ops_ibert
from intformer.relay_ops import OPS as INT_OPS

OPS = {**integer_ops.OPS, **integer_ops_ibert.OPS}


class TorchModel:
    """An IntModel whose constants are on one device.

    model   what it runs
    device  where
    """

    def __init__(self, model: IntModel, device: torch.device | str = "cpu"):
        """Move the constants; weights of products become float32, which their product needs.

        Tables that rows are looked up in stay as narrow as they are.
        """
        self.model, self.device = model, torch.device(device)
        kept = {name for node in model.nodes if INT_OPS[node.op].lookup for name in node.inputs}
        weights = {node.inputs[1] for node in model.nodes if node.op == "matmul"}
        self.tensors, self.weights = {}, {}
        for name, array in model.tensors.items():
            found = torch.from_numpy(array).to(self.device)
            if name in weights:
                self.weights[name] = found.float()
            if name not in weights or name in kept:
                self.tensors[name] = found if name in kept else found.long()

    @torch.no_grad()
    def run(self, inputs: dict[str, torch.Tensor], keep: bool = False) -> dict[str, torch.Tensor]:
        """Return the output, or all values with keep, by name: int64 [rows, channels].

        inputs  as IntModel.run takes them, int64 tensors on the device
        """
        with torch.autocast(self.device.type, enabled=False):  # it would round the integers
            return self._run(inputs, keep)

    def _run(self, inputs, keep):
        seen = {**self.tensors, **inputs}
        last = {name: i for i, node in enumerate(self.model.nodes) for name in node.inputs}
        values = self.model.values
        for i, node in enumerate(self.model.nodes):
            args = [
                self.weights[name] if node.op == "matmul" and place == 1 else seen[name]
                for place, name in enumerate(node.inputs)
            ]
            result = OPS[node.op](*args, **node.attrs)
            results = result if isinstance(result, tuple) else (result,)
            seen.update(zip(node.outputs, results, strict=True))
            if not keep:
                for name in node.inputs:
                    if name in values and last[name] == i and name != self.model.output:
                        seen.pop(name, None)
        return {name: seen[name] for name in values if name in seen}
