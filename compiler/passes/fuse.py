"""Fusion: chains of ops that become one kernel, as Relax patterns.

    matmul + what is elementwise behind it (bias, requantize, GELU, ReLU, tanh)
    residual add + LayerNorm (+ requantize)
Attention is one op from the start: its scores never leave the kernel.
"""

import tvm
from tvm import relax
from tvm.relax.dpl import is_op, wildcard

from intformer.passes.to_relax import PREFIX
from intformer.relay_ops import OPS

R = "requantize"
CHAINS = {  # longest first: the first that fits is taken
    "dense_gelu": [
        ("matmul", "rescale", "i_gelu", "requantize16"),
        ("matmul", "rescale", "i_gelu", "rescale"),
        ("matmul", "rescale", "i_gelu"),
        ("matmul", "i_gelu_ibert", R),
        ("matmul", "i_gelu_ibert"),
    ],
    "dense_tanh": [("matmul", R, "i_tanh", R)],
    "dense_relu": [("matmul", "relu", "rescale")],
    "dense_add": [("matmul", "rescale", "stream_add")],
    "dense": [
        ("matmul", "rescale"),
        ("matmul", R, "add_bias", R),
        ("matmul", R, R),
        ("matmul", "add_bias", R),
        ("matmul", R),
        ("matmul",),
    ],
    "add_layernorm": [
        ("add", "i_layernorm"),
        ("residual_add", "i_layernorm_ibert", R),
        ("residual_add", "i_layernorm_ibert"),
    ],
    "layernorm": [
        ("i_layernorm",),
        ("i_stream_norm",),
        ("i_layernorm_ibert", R),
        ("i_layernorm_ibert",),
    ],
}


def fuse(module: tvm.IRModule) -> tvm.IRModule:
    """Group the chains into private functions with the attribute "Composite"."""
    patterns = [
        (name, *_pattern(chain), _hidden) for name, chains in CHAINS.items() for chain in chains
    ]
    return relax.transform.FuseOpsByPattern(patterns, bind_constants=False)(module)


def _pattern(chain: tuple[str, ...]) -> tuple:
    """Return the pattern of a chain and those of its ops, first to last."""
    value, links = wildcard(), {}
    for number, op in enumerate(chain):
        rest = [wildcard() for _ in range(OPS[op].arity - 1)]
        value = links[str(number)] = is_op(f"{PREFIX}{op}")(value, *rest)
    return value, links


def _hidden(match: relax.transform.PatternCheckContext) -> bool:
    """Every value inside the chain is read by the next op alone."""
    *inside, _ = (match.annotated_expr[key] for key in sorted(match.annotated_expr))
    variables = (match.value_to_bound_var[expr] for expr in inside)
    return all(len(match.var_usages[var]) == 1 for var in variables)
