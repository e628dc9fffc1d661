"""Intel nlp-architect's Q8BERT directories (quant_pytorch_model.bin) -> IntModel, recipe native.

Q8BERT (arXiv 1910.06188) writes quantize(x) = clamp(round(x * scale), -127, 127) with
scale = 127 / threshold: its scale multiplies, ours (threshold / 127) divides. One scale per tensor,
no channel factors. What is read, for every quantized layer P of its pytorch_transformers BERT:

    P.quantized_weight  int8    weight = quantized_weight / P._weight_scale
    P._weight_scale     float   127 / max|weight|
    P._quantized_bias   int32   bias = _quantized_bias / (P._weight_scale * 127 / P.input_thresh)
    P.input_thresh      float   EMA of max|x| of P's input
    P.output_thresh     float   the same of its output, where the layer requantizes it
    P.weight, P.bias    float   of layers that were left float, and of LayerNorm

    range of             threshold
    what a linear reads  its input_thresh; the largest of query, key and value
    layerI.qkv           output_thresh of query, key and value
    head0.act            as what the classifier reads; 1, which tanh stays below, where it has none

The residual sums have no threshold, because Q8BERT keeps them float, as it does GELU, softmax and
LayerNorm. Here they have 16 bits, and their range is a bound: residual threshold plus operand
threshold times the L1 norm of the weight row. It is loose; calibration text replaces it by what the
text shows, and is what a threshold that is absent or 0 (mode "dynamic") needs.
"""

from pathlib import Path

import numpy as np

from intformer.errors import CheckpointError
from intformer.frontend import calibrated, calibration
from intformer.frontend.calibrated import completed
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.encoder import read_encoder
from intformer.frontend.weights import load_pickle, plain_tensor
from intformer.ir import heads
from intformer.ir.graph import Graph, Linear, Node
from intformer.ir.model import IntModel
from intformer.quantize.methods import ema
from intformer.quantize.native import lower
from intformer.quantize.native.scales import neutral
from intformer.quantize.observe import Seen, observe

WEIGHTS_FILE = "quant_pytorch_model.bin"
MAX = 127
TYPES = ("int8", "uint8", "int32", "int64", "float16", "float32", "float64")
PARTS = ("query", "key", "value")
LEAST_GELU = 0.17  # GELU is above -0.17


def import_q8bert(
    checkpoint: Checkpoint, *, recipe=None, mode=None, head=None, calibrate=None, method=None
) -> IntModel:
    """Read a Q8BERT directory (arguments: import_model)."""
    where = str(checkpoint.path / WEIGHTS_FILE)
    for name, value in (("recipe", recipe), ("mode", mode), ("method", method)):
        if value is not None and (name, value) != ("recipe", "native"):
            raise CheckpointError(
                f"{name} {value!r} does not go with a Q8BERT checkpoint",
                where=where,
                hint="leave it out: its ranges were learned",
            )
    state = _State(where)
    checkpoint = checkpoint.with_weights(state.floats())
    checkpoint.config = {"model_type": "bert", **checkpoint.config}
    head = head or named_head(checkpoint)
    graph, meta = read_encoder(checkpoint, head)
    files = checkpoint.files()
    seen, about, warnings = {}, {}, []
    if calibrate is not None:
        split = calibrated.split(calibrate, files, meta)
        seen = observe(graph, calibration.batches(split.fit, meta))
        about, warnings = split.report(), split.warnings(meta, files)
    peaks = thresholds(graph, state)
    sums = "shown by calibration text" if seen else "bounds of the weights"
    for edge, size in graph.ranged().items():
        if edge in seen and (edge not in peaks or graph[edge].kind == "add"):
            peaks[edge] = ema(seen[edge].peaks)
        elif edge not in peaks:
            raise CheckpointError(
                f"no threshold sets the range of {edge}", where=where, hint=calibration.HINT
            )
        peaks[edge] = np.broadcast_to(np.float32(peaks[edge]), size)
    ranges = {edge: Seen.known(peak) for edge, peak in peaks.items()}
    origin = f"checkpoint: {WEIGHTS_FILE}, input_thresh and output_thresh; 16-bit sums: {sums}"
    model = lower(graph, ranges, neutral(graph), "ema", origin, weights="tensor")
    model.meta["warnings"] += warnings
    training = {"recipe": "q8bert", "weights": "tensor"}
    return completed(model, meta, files, None, calibration=about, training=training)


def named_head(checkpoint: Checkpoint) -> str | None:
    """Return the head by the keys, where config.json of that time names no architecture."""
    if checkpoint.config.get("architectures"):
        return None
    if "qa_outputs.weight" in checkpoint:
        return heads.QUESTION_ANSWERING.name
    if "classifier.weight" in checkpoint:
        raise CheckpointError(
            "config.json names no architecture, and 'classifier' may be of either head",
            where=str(checkpoint.path / "config.json"),
            hint=f"pass head={heads.SEQUENCE_CLASSIFICATION.name!r} or "
            f"head={heads.TOKEN_CLASSIFICATION.name!r}",
        )
    return heads.FEATURES.name


class _State:
    """The tensors of WEIGHTS_FILE, as NumPy arrays of their own types."""

    def __init__(self, where: str):
        self.where, file = where, Path(where)
        state = load_pickle(file)
        self.arrays = {key: _array(value, key, file) for key, value in state.items()}

    def number(self, key: str, above_zero: bool = False) -> float | None:
        """Return a scalar, None where it is absent or 0."""
        found = self.arrays.get(key)
        if found is None or (not above_zero and not found.any()):
            return None
        if found.size != 1 or not np.isfinite(found).all() or found.item() <= 0:
            raise CheckpointError(
                f"{key!r} = {found.tolist()} must be a number above 0", where=self.where
            )
        return float(found.item())

    def floats(self) -> dict[str, np.ndarray]:
        """Return the float weights that the integers stand for, under transformers' keys."""
        found = {}
        for key, array in self.arrays.items():
            layer, _, name = key.rpartition(".")
            if name == "quantized_weight":
                found[f"{layer}.weight"] = (array / self._scale(layer)).astype(np.float32)
            elif name == "_quantized_bias":
                threshold = self.number(f"{layer}.input_thresh")
                if threshold is None:
                    raise CheckpointError(
                        f"'{layer}.input_thresh' is absent or 0, so '{key}' has no scale",
                        where=self.where,
                        hint="was the model trained with mode ema?",
                    )
                scale = self._scale(layer) * MAX / threshold
                found[f"{layer}.bias"] = (array / scale).astype(np.float32)
            elif name in ("weight", "bias", "gamma", "beta") and array.dtype.kind == "f":
                found.setdefault(key, array.astype(np.float32))
        return found

    def _scale(self, layer: str) -> float:
        scale = self.number(f"{layer}._weight_scale", above_zero=True)
        if scale is None:
            raise CheckpointError(f"'{layer}._weight_scale' is missing", where=self.where)
        return scale

    def largest(self, *keys: str) -> float | None:
        """Return the largest of these thresholds that are there; None where none is."""
        found = [n for n in (self.number(key) for key in keys) if n is not None]
        return max(found, default=None)


def _array(tensor, key: str, file: Path) -> np.ndarray:
    tensor = plain_tensor(tensor, key, file)
    if (name := str(tensor.dtype).removeprefix("torch.")) not in TYPES:
        raise CheckpointError(f"weight {key!r} is {name}", where=str(file))
    return tensor.numpy()


def thresholds(graph: Graph, state: _State) -> dict[str, np.ndarray | float]:
    """Return edge -> range, one number or one per channel, of all that the thresholds set."""
    found: dict[str, np.ndarray | float | None] = {}
    for node in graph.of_kind("linear"):
        edge = graph.source(node.inputs[0])
        found[edge] = state.largest(*(f"{key}.input_thresh" for key in node.params.keys))
        if graph[edge].attrs.get("function") == "tanh":
            found[edge] = found[edge] or 1.0
        if any(reader.kind == "attention" for reader in graph.readers(node.name)):
            parts = [state.number(f"{key}.output_thresh") for key in node.params.keys]
            if None not in parts:
                found[node.name] = np.repeat(parts, node.channels // len(parts))
    for node in graph.of_kind("add"):
        term, stream = (graph[name] for name in node.inputs)
        top, residual = found.get(graph.source(term.inputs[0])), found.get(stream.name)
        if None not in (top, residual):
            low = least(graph[term.inputs[0]], top)
            found[node.name] = residual + reach(term.params, low, top)
    return {edge: value for edge, value in found.items() if value is not None}


def least(node: Node, top: float) -> float:
    """Return the smallest number that an edge with a range of `top` can hold."""
    if node.kind != "act":
        return -top
    return 0.0 if node.attrs["function"] == "relu" else -min(top, LEAST_GELU)


def reach(linear: Linear, low: float, high: float) -> np.ndarray:
    """Return the largest |y| of a linear layer whose inputs lie in [low, high], [N]."""
    positive = np.maximum(linear.weight, 0).sum(1, dtype=np.float64)
    negative = np.minimum(linear.weight, 0).sum(1, dtype=np.float64)
    most = positive * high + negative * low + linear.bias
    least = positive * low + negative * high + linear.bias
    return np.maximum(np.abs(most), np.abs(least))
