"""Our compiled library, by the documented call."""

import intformer
from intformer.runtime.edge import predict
from intformer_text.contestants.turns import spec, take

library = intformer.load(spec["library"])
library.set_threads(spec["threads"])
take(lambda texts: list(predict(library, texts)), intformer.__version__)
