"""JinaBERT v2 as published (arXiv 2310.19923, 2108.12409), in float: transformers has no class.

Parameters have the keys of the published checkpoints.
"""

import json
import math

import torch
from safetensors.torch import save_file
from torch import nn

from intformer_testing import random_hf

CONFIG = {
    "model_type": "bert",
    "architectures": ["JinaBertModel"],
    "auto_map": {
        "AutoConfig": "jinaai/jina-bert-implementation--configuration_bert.JinaBertConfig",
        "AutoModel": "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel",
    },
    "vocab_size": random_hf.VOCABULARY,
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 72,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "pad_token_id": 0,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "feed_forward_type": "geglu",
    "position_embedding_type": "alibi",
    "emb_pooler": "mean",
}


class Part(nn.Module):
    """Modules under the names they have in the checkpoint."""

    def __init__(self, /, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


def slopes(heads):
    """A geometric series for a power of two; else that below, and odd steps of the next one."""

    def series(n):
        start = 2.0 ** -(2.0 ** -(math.log2(n) - 3))
        return [start ** (i + 1) for i in range(n)]

    if math.log2(heads).is_integer():
        return series(heads)
    below = 2 ** int(math.log2(heads))
    return series(below) + series(2 * below)[::2][: heads - below]


def layer(c):
    """One layer."""
    h, eps = c["hidden_size"], c["layer_norm_eps"]
    own = Part(query=nn.Linear(h, h), key=nn.Linear(h, h), value=nn.Linear(h, h))
    output = Part(dense=nn.Linear(h, h), LayerNorm=nn.LayerNorm(h, eps))
    mlp = Part(
        gated_layers=nn.Linear(h, 2 * c["intermediate_size"], bias=False),
        wo=nn.Linear(c["intermediate_size"], h),
        layernorm=nn.LayerNorm(h, eps),
    )
    return Part(attention=Part(self=own, output=output), mlp=mlp)


class JinaBert(nn.Module):
    """The encoder; a forward pass takes one sequence."""

    def __init__(self, **changes):
        super().__init__()
        self.about = c = {**CONFIG, **changes}
        h = c["hidden_size"]
        self.embeddings = Part(
            word_embeddings=nn.Embedding(c["vocab_size"], h),
            token_type_embeddings=nn.Embedding(c["type_vocab_size"], h),
            LayerNorm=nn.LayerNorm(h, c["layer_norm_eps"]),
        )
        layers = nn.ModuleList([layer(c) for _ in range(c["num_hidden_layers"])])
        self.encoder = Part(layer=layers)

    def forward(self, ids, types):
        """Last hidden state [length, hidden]."""
        embeddings, heads = self.embeddings, self.about["num_attention_heads"]
        x = embeddings.word_embeddings(ids) + embeddings.token_type_embeddings(types)
        x = embeddings.LayerNorm(x)
        at = torch.arange(len(ids))
        distance = (at[None, :] - at[:, None]).abs()
        bias = -torch.tensor(slopes(heads))[:, None, None] * distance
        for one in self.encoder.layer:
            own, output = one.attention.get_submodule("self"), one.attention.output
            q, k, v = (
                part(x).unflatten(-1, (heads, -1)).transpose(0, 1)
                for part in (own.query, own.key, own.value)
            )
            scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias
            context = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
            x = output.LayerNorm(output.dense(context) + x)
            gated, other = one.mlp.gated_layers(x).chunk(2, -1)
            y = one.mlp.wo(nn.functional.gelu(gated) * other)
            x = one.mlp.layernorm(y + x)
        return x


def save(folder, seed=0, **changes):
    """Write a random model as published; return it."""
    torch.manual_seed(seed)
    model = JinaBert(**changes).eval()
    random_hf.randomise(model)
    write(folder, model)
    return model


def write(folder, model):
    """Write the directory of a model."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.about))
    save_file(model.state_dict(), folder / "model.safetensors")
