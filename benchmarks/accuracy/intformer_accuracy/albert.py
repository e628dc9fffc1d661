"""The ALBERT of rxnmapper: mask each token of the reactions in its own package, in turn.

Its tokenizer is a regular expression over SMILES in Python code; the same expression makes a
tokenizer.json here.
"""

import re
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors

from intformer.measure.float_model import FloatModel
from intformer.runtime.edge import Edge
from intformer_accuracy.common import Bound, compiled, exact, package, say

MODEL = "models/transformers/albert_heads_8_uspto_all_1310k"
BATCH = 32
LEAST_POSITIONS = 1000
CALIBRATION = Path(__file__).parents[3] / "tests" / "data" / "reactions.txt"


def smiles_tokenizer(package_folder: Path, vocabulary: Path) -> Tokenizer:
    """Return a tokenizer by the expression in the package's smiles_utils.py."""
    text = (package_folder / "smiles_utils.py").read_text()
    pattern = re.search(r'SMI_REGEX_PATTERN = r"(.*)"', text)[1]
    ids = {token: i for i, token in enumerate(vocabulary.read_text().splitlines())}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "removed", invert=True)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(token, ids[token]) for token in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return tokenizer


def reactions(package_folder: Path) -> list[str]:
    """Return the reaction SMILES written in the package's text, atom numbers taken off.

    The order of the molecules before >> means nothing, so every rotation of it counts as well, and
    so does the reaction run backwards.
    """
    version = next(package_folder.parent.glob("rxnmapper-*.dist-info"))
    files = [version / "METADATA", *sorted(package_folder.glob("*.py"))]
    text = "\n".join(file.read_text() for file in files)
    found = []
    for reaction in re.findall(r"['\"]([^'\"\s{}]+>>[^'\"\s{}]+)['\"]", text):
        plain = re.sub(r":\d+\]", "]", reaction)
        plain = re.sub(r"\[([cnosCNOSF])(H\d?)?\]", r"\1", plain)
        before, after = plain.split(">>")
        molecules = before.split(".")
        for i in range(len(molecules)):
            rotated = ".".join(molecules[i:] + molecules[:i])
            found += [f"{rotated}>>{after}", f"{after}>>{rotated}"]
    return list(dict.fromkeys(found))


def run(data: Path, out: Path) -> list[Bound]:
    """Count where integer and FP32 name the same token first."""
    folder = package("rxnmapper")
    source = folder / MODEL
    tokenizer = smiles_tokenizer(folder, source / "vocab.txt")
    tokenizer.save(str(out / "smiles.json"))
    library = compiled(
        source, out / "albert.so", calibrate=CALIBRATION, tokenizer=out / "smiles.json"
    )
    edge = Edge.of(library)
    unknown = tokenizer.token_to_id("[UNK]")
    encoded = [edge.tokenizer.encode(reaction).ids for reaction in reactions(folder)]
    encoded = [ids for ids in encoded if unknown not in ids]
    batches = list(masked(encoded, edge.mask_id))
    model = FloatModel(source, library.metadata)
    agree = total = right = right_float = 0
    for batch, truth in batches:
        ours = library.run(**batch).argmax(1)
        rows = model.rows(batch["input_ids"], None, batch["cu_seqlens"])
        theirs = rows[batch["positions"]].argmax(1)
        agree += int((ours == theirs).sum())
        right += int((ours == truth).sum())
        right_float += int((theirs == truth).sum())
        total += len(truth)
    say("comparing with the reference")
    return [
        Bound("masked positions", total, least=LEAST_POSITIONS),
        Bound("top-1 agreement with FP32", agree / total, least=0.98),
        Bound("named right, integers", right / total),
        Bound("named right, FP32", right_float / total),
        exact(library, (batch for batch, _ in batches[:: max(1, len(batches) // 8)])),
    ]


def masked(sequences: list[list[int]], mask: int):
    """Yield (batch, true ids): every inner token of every sequence masked once."""
    cases = [(ids, at) for ids in sequences for at in range(1, len(ids) - 1)]
    for first in range(0, len(cases), BATCH):
        some = cases[first : first + BATCH]
        lengths = [len(ids) for ids, _ in some]
        offsets = np.cumsum([0, *lengths]).astype(np.int32)
        positions = offsets[:-1] + np.array([at for _, at in some], np.int32)
        flat = np.concatenate([np.array(ids, np.int32) for ids, _ in some])
        truth = flat[positions].copy()
        flat[positions] = mask
        yield (
            {
                "input_ids": flat,
                "token_type_ids": np.zeros_like(flat),
                "position_ids": np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
                "cu_seqlens": offsets,
                "positions": positions,
            },
            truth,
        )
