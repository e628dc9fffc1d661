"""A word tokenizer for the random models: as many words of our sentences as they have ids."""

import collections
import re
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from intformer_testing import random_hf

SENTENCES = (Path(__file__).parents[2] / "data" / "sentences.txt").read_text().splitlines()
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def save(directory: Path, pad: int = 0) -> None:
    """Write tokenizer.json.

    pad  id of [PAD]; the token that has it otherwise is 0
    """
    words = collections.Counter(re.findall(r"\w+", " ".join(SENTENCES).lower()))
    known = [word for word, _ in words.most_common(random_hf.VOCABULARY - len(SPECIAL))]
    ids = {token: i for i, token in enumerate([*SPECIAL, *known])}
    ids |= {SPECIAL[pad]: 0, "[PAD]": pad}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.save(str(Path(directory) / "tokenizer.json"))
