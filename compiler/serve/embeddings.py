"""Integers of an embedding library become the vectors that a request asks for."""

import numpy as np

from intformer.runtime.edge import l2_normalised
from intformer.serve.faults import Fault
from intformer.serve.served import Row, Served


def rows_of(inputs: object) -> tuple[list[Row], bool]:
    """Return the texts or ids of a request, and whether it is a batch."""
    if isinstance(inputs, str):
        return [inputs], False
    if inputs and all(isinstance(one, int) for one in inputs):
        return [inputs], False
    return list(inputs), True


async def embedded(
    model: Served,
    inputs: list[Row],
    *,
    normalize: bool = True,
    dimensions: int | None = None,
    truncate: bool | None = None,
    prompt_name: str | None = None,
) -> tuple[np.ndarray, int]:
    """Return vectors, float32 [rows, dimensions], and the tokens of all rows.

    dimensions  leading channels that are kept; None: as many as the model keeps
    normalize   bring what is kept to Euclidean length 1
    """
    most = model.library.metadata["output_channels"]
    keep = dimensions or model.library.metadata.get("truncate_dim") or most
    if dimensions is not None and not 1 <= dimensions <= most:
        raise Fault("Validation", f"`dimensions` is 1 to {most}")
    packed, output = await model.outputs(inputs, truncate=truncate, prompt_name=prompt_name)
    rows = model.edge.real(output)[:, :keep]
    return (l2_normalised(rows) if normalize else rows), packed.input_ids.size
