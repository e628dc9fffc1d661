r"""An imported I-BERT model beside transformers' own quantized forward, tensor by tensor.

    PYTHONPATH=tests/support python -m intformer_testing.ibert_compare \
        CHECKPOINT TSV [--mode fixed] [--rows 64]

transformers simulates integers in float32. Three comparisons tell apart where it differs:

free      our integers from our own previous ones, theirs from theirs: what a user sees
local     each step of ours from *their* previous integers: what one step's rounding does
float64   both again with their modules run in float64 (scales, weights and biases rounded to
          float32 as before): a difference that vanishes there came from float32
"""

import argparse
import contextlib
import json
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from transformers import (
    IBertForMaskedLM,
    IBertForQuestionAnswering,
    IBertForSequenceClassification,
    IBertForTokenClassification,
    IBertModel,
)
from transformers.models.ibert import quant_modules

from intformer.frontend import calibration
from intformer.frontend.calibrated import split
from intformer.frontend.ibert import read
from intformer.ir.model import IntModel
from intformer.relay_ops import OPS
from intformer.runtime.texts import read_texts

CLASSES = {
    "features": IBertModel,
    "sequence-classification": IBertForSequenceClassification,
    "token-classification": IBertForTokenClassification,
    "question-answering": IBertForQuestionAnswering,
    "masked-lm": IBertForMaskedLM,
}
LAYER_VALUES = {  # value below layerI. -> modules below encoder.layer.I whose outputs it is
    "qkv": [f"attention.self.{part}_activation" for part in ("query", "key", "value")],
    "context": ["attention.self.output_activation"],
    "sum1": ["attention.output.ln_input_act"],
    "norm1": ["attention.output.output_activation"],
    "ffn_in": ["pre_intermediate_act"],
    "gelu": ["intermediate.output_activation"],
    "act": ["pre_output_act"],
    "sum2": ["output.ln_input_act"],
    "norm2": ["output.output_activation"],
}


FIRST = ("embed.", "layer0.")  # what no leaked scale has touched


def value_modules(layers: int) -> dict[str, list[str]]:
    """Return value name -> QuantAct modules (below the base model) that compute it."""
    found = {
        "embed.sum": ["embeddings.embeddings_act1"],
        "embed.norm": ["embeddings.output_activation"],
    }
    for i in range(layers):
        for name, modules in LAYER_VALUES.items():
            found[f"layer{i}.{name}"] = [f"encoder.layer.{i}.{module}" for module in modules]
    return found


def load(source: Path, head: str) -> torch.nn.Module:
    """Return transformers' model in eval mode."""
    return CLASSES[head].from_pretrained(source).eval()


@contextlib.contextmanager
def float64(model: torch.nn.Module):
    """Run the quantized modules in float64.

    Scales, weights, biases and the constants of GELU and softmax keep the float32 rounding they
    have there, so that only sums, products, quotients and roots of activations change.
    """
    scale, quantize = (
        quant_modules.symmetric_linear_quantization_params,
        quant_modules.linear_quantize,
    )
    erf, exp = quant_modules.IntGELU.int_erf, quant_modules.IntSoftmax.int_exp
    own = [m for m in model.modules() if isinstance(m, quant_modules.IntLayerNorm)]

    def rounded_scale(*args, **kwargs):
        return scale(*args, **kwargs).float().double()

    def rounded_quantize(x, scale, zero_point, inplace=False):
        return quantize(x.float(), scale.float(), zero_point.float()).double()

    def rounded_erf(self, x_int, scale):
        return erf(self, x_int, (scale * self.k).float() / self.k)

    def rounded_exp(self, x_int, scale):
        return exp(self, x_int, scale.float())

    def hook(module, _, output):
        x, scale = output
        rounded = scale.float().double()
        return x / scale * rounded, rounded

    kinds = (quant_modules.QuantLinear, quant_modules.IntGELU, quant_modules.IntLayerNorm)
    hooks = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, kinds)]
    for norm in own:
        norm.dim_sqrt = None  # a cached float32 tensor
    try:
        with (
            mock.patch.object(quant_modules, "symmetric_linear_quantization_params", rounded_scale),
            mock.patch.object(quant_modules, "linear_quantize", rounded_quantize),
            mock.patch.object(quant_modules.IntGELU, "int_erf", rounded_erf),
            mock.patch.object(quant_modules.IntSoftmax, "int_exp", rounded_exp),
        ):
            yield model.double()
    finally:
        for handle in hooks:
            handle.remove()
        for norm in own:
            norm.dim_sqrt = None
        model.float()


class Captured:
    """What one quantized forward of transformers gave.

    values   name -> integers [tokens, channels] of the real tokens, packed
    logits   the model's output, [batch, labels] or [tokens, channels], packed
    ones     softmax outputs that were 256/256
    """

    def __init__(
        self, model: torch.nn.Module, batch: list[tuple[np.ndarray, np.ndarray]], pad: int
    ):
        """Run `batch` of (ids, types) sequences padded to the longest."""
        base = getattr(model, "ibert", model)
        longest = max(len(ids) for ids, _ in batch)
        ids = torch.full((len(batch), longest), pad)
        types, mask = torch.zeros_like(ids), torch.zeros_like(ids)
        for i, (one, kinds) in enumerate(batch):
            ids[i, : len(one)] = torch.from_numpy(one)
            types[i, : len(one)] = torch.from_numpy(kinds)
            mask[i, : len(one)] = 1
        real = mask.bool()
        outputs, hooks = {}, []

        def keep(path):
            def hook(module, args, output):
                x, scale = output
                outputs[path] = torch.round(x.double() / scale.double())[real].long().numpy()

            return hook

        def count(module, args, output):
            self.ones += int(((output[0] == 1) & real[:, None, :, None]).sum())

        modules = value_modules(len(base.encoder.layer))
        for paths in modules.values():
            for path in paths:
                hooks.append(base.get_submodule(path).register_forward_hook(keep(path)))
        self.ones = 0
        for layer in base.encoder.layer:
            hooks.append(layer.attention.self.softmax.register_forward_hook(count))
        try:
            with torch.no_grad():
                output = model(ids, attention_mask=mask, token_type_ids=types)
        finally:
            for hook in hooks:
                hook.remove()
        self.values = {
            name: np.concatenate([outputs[path] for path in paths], axis=1)
            for name, paths in modules.items()
        }
        if "start_logits" in output:
            logits = torch.stack([output.start_logits, output.end_logits], dim=-1)
        else:
            logits = output.logits if "logits" in output else output.last_hidden_state
        self.logits = (logits[real] if logits.ndim == 3 else logits).double().numpy()


def local_run(model: IntModel, inputs: dict, theirs: dict[str, np.ndarray]) -> dict:
    """Run every node on transformers' integers wherever they are known; return our results."""
    seen, ours = {**model.tensors, **inputs}, {}
    for node in model.nodes:
        result = OPS[node.op].reference(*(seen[name] for name in node.inputs), **node.attrs)
        results = result if isinstance(result, tuple) else (result,)
        for name, array in zip(node.outputs, results, strict=True):
            ours[name] = array
            seen[name] = theirs[name].astype(array.dtype) if name in theirs else array
    return ours


class Tally:
    """Differing elements, per key."""

    def __init__(self):
        """Start at zero."""
        self.count: dict[str, list[int]] = {}

    def add(self, key: str, ours: np.ndarray, theirs: np.ndarray) -> None:
        """Count one tensor."""
        gap = np.abs(ours.astype(np.int64) - theirs)
        total = self.count.setdefault(key, [0, 0, 0])
        total[0] += gap.size
        total[1] += int((gap != 0).sum())
        total[2] = max(total[2], int(gap.max(initial=0)))

    def equal(self, prefixes: tuple[str, ...]) -> float:
        """Return the share of equal elements of all tensors whose names start so."""
        totals = [total for key, total in self.count.items() if key.startswith(prefixes)]
        return 1 - sum(total[1] for total in totals) / sum(total[0] for total in totals)

    def figures(self) -> dict:
        """Return key -> {elements, different, largest}."""
        names = ("elements", "different", "largest")
        return {
            key: dict(zip(names, total, strict=True)) for key, total in sorted(self.count.items())
        }


def float_head(hf: torch.nn.Module, features: np.ndarray) -> np.ndarray:
    """Return what transformers' float classification head makes of real features [batch, C]."""
    with torch.no_grad():
        return hf.classifier(torch.from_numpy(features).float()[:, None]).double().numpy()


def compare(source: Path, texts, *, mode="hf_compat", calibrate=None, size=16, steps=True) -> dict:
    """Compare an imported checkpoint with transformers' quantized forward on `texts`.

    texts  sentences, pairs or token ids, as import_model takes calibration text
    steps  also the local comparison, in float32 and float64 (three times the work)
    return figures, JSON-able; logit differences are over the spread (largest minus smallest) of
           transformers' logits
    """
    model = read(source, mode=mode, calibrate=calibrate)
    meta = model.meta
    hf = load(source, meta["head"])
    divided = split(texts, model.files, meta)
    rows = divided.fit + divided.held
    rows.sort(key=lambda row: len(row[0]))
    kinds = ("float32", "float64") if steps else ("float32",)
    free, local = ({kind: Tally() for kind in kinds} for _ in range(2))
    logits = {kind: [] for kind in ("ours", "head", *kinds)}
    ones = 0
    last = f"layer{meta['layers'] - 1}.norm2"
    for start in range(0, len(rows), size):
        batch = rows[start : start + size]
        inputs = calibration.pack(batch, meta)
        if meta["head"] == "masked-lm":
            inputs["positions"] = np.arange(len(inputs["input_ids"]), dtype=np.int32)
        values = model.run(inputs)
        logits["ours"].append(values[model.output] * meta["output_scale"])
        if meta["head"] == "sequence-classification":
            first = values[last][inputs["cu_seqlens"][:-1]] * model.values[last].scale
            logits["head"].append(float_head(hf, first))
        for kind in kinds:
            with float64(hf) if kind == "float64" else contextlib.nullcontext(hf) as theirs:
                run = Captured(theirs, batch, meta["pad_token_id"])
            logits[kind].append(run.logits)
            ones += run.ones if kind == "float32" else 0
            for name, array in run.values.items():
                free[kind].add(name, values[name], array)
            if steps:
                results = local_run(model, inputs, run.values)
                for name, array in run.values.items():
                    local[kind].add(name, results[name], array)
    logits = {kind: np.concatenate(parts) for kind, parts in logits.items() if parts}
    theirs = logits["float32"]
    spread = float(theirs.max() - theirs.min())

    def against(one: np.ndarray, other: np.ndarray) -> dict:
        gap = np.abs(one - other) / spread
        return {
            "label agreement": float((one.argmax(1) == other.argmax(1)).mean()),
            "largest logit difference / spread": float(gap.max()),
            "mean logit difference / spread": float(gap.mean()),
        }

    figures = {
        "mode": mode,
        "rows": len(rows),
        "tokens": sum(len(ids) for ids, _ in rows),
        "logit spread": spread,
        **against(logits["ours"], theirs),
        "softmax outputs of 256": ones,
    }
    if "head" in logits:  # the float head on our features: what is left is the head's quantization
        figures |= _prefixed("head: ", against(logits["ours"], logits["head"]))
    if steps:
        figures |= _prefixed("float64: ", against(logits["ours"], logits["float64"]))
        figures |= _prefixed("float32 to float64: ", against(theirs, logits["float64"]))
        figures |= {f"local{_suffix(kind)}": local[kind].figures() for kind in kinds}
    for kind in kinds:
        groups = {"free": free, "local": local} if steps else {"free": free}
        for group, tallies in groups.items():
            for part, prefixes in {"layer 0": FIRST, "all layers": ("",)}.items():
                figures[f"{part}: equal elements, {group}{_suffix(kind)}"] = tallies[kind].equal(
                    prefixes
                )
    return figures | {f"free{_suffix(kind)}": free[kind].figures() for kind in kinds}


def _prefixed(prefix: str, figures: dict) -> dict:
    return {prefix + name: value for name, value in figures.items()}


def _suffix(kind: str) -> str:
    return "" if kind == "float32" else ", float64"


def main() -> None:
    """Print the figures for the sentences of a TSV."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("tsv", type=Path)
    parser.add_argument("--mode", default="hf_compat")
    parser.add_argument("--rows", type=int, default=None, help="the first ROWS sentences (all)")
    parser.add_argument("--no-steps", action="store_true", help="leave out the local comparison")
    args = parser.parse_args()
    torch.set_num_threads(1)
    texts = read_texts(args.tsv)[: args.rows]
    figures = compare(args.source, texts, mode=args.mode, steps=not args.no_steps)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
