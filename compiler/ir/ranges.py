"""Range analysis: no integer of a model can leave its type, whatever the input.

Intervals go through the ops' own `bounds`, which hold the lemmas. Every compile checks.
"""

from intformer.errors import RangeError
from intformer.ir.model import INPUTS, IntModel
from intformer.relay_ops import OPS
from intformer.relay_ops.interval import Interval


def check(model: IntModel) -> dict[str, Interval]:
    """Return where every activation can be, by value name; one interval per value or per channel.

    Raises RangeError naming the op and the value it makes.
    """
    lengths = Interval.of(1, model.meta["max_length"])
    anything = Interval.of(0, 2**31 - 1)  # ids and positions: the library checks them
    seen = {name: lengths if name == "cu_seqlens" else anything for name in INPUTS}
    seen |= model.tensors
    for node in model.nodes:
        where = f"{node.op} {node.outputs[0]}"
        try:
            result = OPS[node.op].bounds(*(seen[name] for name in node.inputs), **node.attrs)
            results = result if isinstance(result, tuple) else (result,)
            for name, interval in zip(node.outputs, results, strict=True):
                seen[name] = interval.fits(model.values[name].dtype, where, name)
        except RangeError as error:
            raise RangeError(error.what, where=where, hint=error.hint) from error
    return {name: seen[name] for name in model.values}
