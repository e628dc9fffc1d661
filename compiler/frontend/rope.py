"""Rotary positions by config.json: the table of angles, computed in float64.

What transformers writes is `rope_parameters` ({"rope_theta", "rope_type", ...}); older files have
`rope_theta` and `rope_scaling`. Kinds whose table depends on the length of a text are refused,
where that can happen: "dynamic" changes nothing up to max_position_embeddings. "ntk" is that of the
hub's GTE, a larger base and a smaller frequency.
"""

import numpy as np

from intformer.errors import CheckpointError
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.folder import shown
from intformer.ir.graph import Rotary

PARAMETERS, SCALING, THETA = "rope_parameters", "rope_scaling", "rope_theta"
KINDS = ("default", "linear", "dynamic")
HUB_KINDS = (*KINDS, "ntk")  # of GTE
KNOWN = {"rope_theta", "rope_type", "type", "factor"}  # of a dict of parameters
PARTIAL = "partial_rotary_factor"
WHOLE = "all channels of a head must be turned"


def rotary(theta: float, head_dim: int, rows: int, factor: float = 1.0) -> Rotary:
    """Return the table of positions 0..rows - 1: angle = position / (factor theta^(2 j / d))."""
    frequencies = float(theta) ** (-np.arange(0, head_dim, 2) / head_dim) / factor
    angles = np.arange(rows)[:, None] * frequencies
    return Rotary(np.cos(angles), np.sin(angles))


def read(
    checkpoint: Checkpoint, theta: float, head_dim: int, rows: int, kinds: tuple[str, ...] = KINDS
) -> Rotary:
    """Return the table that config.json describes.

    theta     base where config.json does not say
    head_dim  channels of a head; even
    rows      positions
    kinds     that are known
    """
    where = str(checkpoint.path / "config.json")
    given = [key for key in (PARAMETERS, SCALING) if checkpoint.config.get(key)]
    if len(given) == 2:
        raise CheckpointError(
            f"config keys {PARAMETERS!r} and {SCALING!r} say the same",
            where=where,
            hint="remove one of them",
        )
    key = given[0] if given else PARAMETERS
    about = checkpoint.setting(key, dict, {})
    theta = checkpoint.setting(THETA, float, theta)
    return of(about, theta, head_dim, rows, key, where, kinds)


def of(
    about: dict,
    theta: float,
    head_dim: int,
    rows: int,
    key: str,
    where: str,
    kinds: tuple[str, ...] = KINDS,
) -> Rotary:
    """Return the table of one dict of parameters.

    theta  base where the dict does not say
    key    of config.json that holds the dict, for errors
    where  config.json
    kinds  that are known
    """
    if head_dim % 2:
        raise CheckpointError(f"heads of {head_dim} channels have no rotary pairs", where=where)

    def refuse(name: str, value, hint: str):
        message = f"config key '{key}.{name}' = {shown(value)} is not supported"
        raise CheckpointError(message, where=where, hint=hint)

    kind = about.get("rope_type", about.get("type", "default"))
    if kind not in kinds:
        refuse("rope_type", kind, "supported: " + ", ".join(kinds))
    if about.get(PARTIAL, 1) != 1:
        refuse(PARTIAL, about[PARTIAL], WHOLE)
    for name in about.keys() - KNOWN - {PARTIAL}:
        refuse(name, about[name], "known: " + ", ".join(sorted(KNOWN)))
    theta, factor = about.get(THETA, theta), about.get("factor", 1.0)
    for name, value in ((THETA, theta), ("factor", factor)):
        if type(value) not in (int, float) or not 0 < value < np.inf:
            refuse(name, value, "it is a number above 0")
    if kind == "ntk" and factor < 1:  # the hub's code leaves the frequencies as they are
        refuse("factor", factor, "it is 1 or more")
    if kind == "linear":
        return rotary(theta, head_dim, rows, factor)
    if kind == "ntk":
        return rotary(theta * factor, head_dim, rows, factor ** (2 / head_dim))
    return rotary(theta, head_dim, rows)
