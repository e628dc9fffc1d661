"""Modules of sentence-transformers with weights: Dense and LayerNorm of the embedding.

As sentence_transformers/base/modules/dense.py and .../sentence_transformer/modules/layer_norm.py of
version 6.2 read them. Their weights lie in a folder of their own.
"""

from dataclasses import dataclass

from intformer.frontend.json_object import JsonObject
from intformer.ir.graph import Linear, Norm

EMBEDDING = "sentence_embedding"  # what modules behind the pooling read and write
FUNCTIONS = {  # activation_function -> a value of ir.graph.ACTIVATIONS; None: no activation
    "torch.nn.modules.activation.Tanh": "tanh",
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.GELU": "gelu",
    "torch.nn.modules.activation.SiLU": "silu",
    "torch.nn.modules.linear.Identity": None,
    "torch.nn.Tanh": "tanh",
    "torch.nn.ReLU": "relu",
    "torch.nn.GELU": "gelu",
    "torch.nn.SiLU": "silu",
    "torch.nn.Identity": None,
}
EPS = 1e-5  # of torch.nn.LayerNorm
KEYS = (
    *("in_features", "out_features", "bias", "activation_function"),
    *("module_input_name", "module_output_name", "use_residual"),
)


@dataclass(frozen=True)
class Dense:
    """A linear layer, and an activation.

    path      its folder, relative to the directory
    inputs    channels it reads
    outputs   channels it makes
    bias      whether it has one
    function  a value of ir.graph.ACTIVATIONS, or None
    """

    path: str
    inputs: int
    outputs: int
    bias: bool
    function: str | None

    @classmethod
    def read(cls, checkpoint, path: str) -> "Dense":
        """Read the settings of the module in a folder of a whole Checkpoint."""
        config = JsonObject.read(checkpoint.module(path), "config.json")
        config.refuse_others(KEYS)
        for key in ("module_input_name", "module_output_name"):
            if config.get(key, str, EMBEDDING) != EMBEDDING:
                raise config.refusal(key, f"a Dense module of {EMBEDDING!r} compiles")
        if config.get("use_residual", bool, False):
            raise config.refusal("use_residual", "a Dense module without a residual compiles")
        function = config.get("activation_function", str, "torch.nn.modules.activation.Tanh")
        if function not in FUNCTIONS:
            raise config.refusal("activation_function", "supported: " + ", ".join(FUNCTIONS))
        sizes = [config.required(key, int) for key in ("in_features", "out_features")]
        return cls(path, *sizes, config.get("bias", bool, True), FUNCTIONS[function])

    def weights(self, checkpoint) -> Linear:
        """Read the weights of the module."""
        module = checkpoint.module(self.path)
        weight = module.tensor("linear.weight", (self.outputs, self.inputs))
        bias = weight[:, 0] * 0
        if self.bias:
            bias = module.tensor("linear.bias", (self.outputs,))
        return Linear(weight, bias, keys=(f"{self.path}/linear",))


@dataclass(frozen=True)
class LayerNorm:
    """LayerNorm as torch makes it: over all channels, epsilon 1e-5.

    path       its folder, relative to the directory
    dimension  channels
    """

    path: str
    dimension: int
    function = None  # no activation is behind it

    @classmethod
    def read(cls, checkpoint, path: str) -> "LayerNorm":
        """Read the settings of the module in a folder of a whole Checkpoint."""
        config = JsonObject.read(checkpoint.module(path), "config.json")
        config.refuse_others(("dimension",))
        return cls(path, config.required("dimension", int))

    def weights(self, checkpoint) -> Norm:
        """Read the weights of the module."""
        module = checkpoint.module(self.path)
        shape = (self.dimension,)
        read = (module.tensor(f"norm.{name}", shape) for name in ("weight", "bias"))
        return Norm(*read, EPS, key=f"{self.path}/norm")


Module = Dense | LayerNorm
WITH_WEIGHTS = {"Dense": Dense, "LayerNorm": LayerNorm}  # class of sentence-transformers -> ours
