"""The integer ops, one file each: meaning (NumPy reference), range analysis, TVM definition."""

from intformer.relay_ops import (
    add,
    add_bias,
    attention,
    attention_bias,
    attention_ibert,
    embed,
    i_gelu,
    i_gelu_ibert,
    i_layernorm,
    i_layernorm_ibert,
    i_tanh,
    matmul,
    max_pool,
    mean_pool,
    relu,
    requantize,
    requantize16,
    rescale,
    residual_add,
    take_rows,
)
from intformer.relay_ops.op import IntOp

# in the order a model meets them
OPS: dict[str, IntOp] = {
    "embed": embed.OP,
    "i_layernorm": i_layernorm.OP,
    "i_layernorm_ibert": i_layernorm_ibert.OP,
    "matmul": matmul.OP,
    "requantize": requantize.OP,
    "rescale": rescale.OP,
    "add_bias": add_bias.OP,
    "attention": attention.OP,
    "attention_bias": attention_bias.OP,
    "attention_ibert": attention_ibert.OP,
    "residual_add": residual_add.OP,
    "add": add.OP,
    "i_gelu": i_gelu.OP,
    "requantize16": requantize16.OP,
    "i_gelu_ibert": i_gelu_ibert.OP,
    "relu": relu.OP,
    "take_rows": take_rows.OP,
    "mean_pool": mean_pool.OP,
    "max_pool": max_pool.OP,
    "i_tanh": i_tanh.OP,
}
