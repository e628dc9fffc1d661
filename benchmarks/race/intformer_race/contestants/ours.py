"""Our compiled library, on packed tokens."""

import numpy as np

import intformer
from intformer.runtime import load
from intformer_race.contestants import protocol

library = load(protocol.spec["library"])
library.set_threads(protocol.spec["threads"])
texts = protocol.sequences()
ids = np.concatenate(texts).astype(np.int32)
offsets = np.cumsum([0, *map(len, texts)], dtype=np.int32)
meta = library.metadata
protocol.serve(
    lambda: library.run(ids, offsets),
    {"version": intformer.__version__, "target": meta["target"], "recipe": meta["recipe"]},
    lambda rows: rows[0] * meta["output_scale"],
)
