"""A model's live parameters, read by the same code that reads a checkpoint's files."""

import torch

from intformer.errors import CheckpointError
from intformer.frontend.checkpoint import Checkpoint


class LiveCheckpoint(Checkpoint):
    """A directory's configuration with the parameters of a torch model.

    `tensor` returns them as they are, so that gradients flow to them.
    """

    def __init__(self, checkpoint: Checkpoint, module: torch.nn.Module):
        """Take the configuration of `checkpoint` and the parameters of `module`."""
        self.root = checkpoint.root
        self.path, self.tokenizer, self.config = (
            checkpoint.path,
            checkpoint.tokenizer,
            checkpoint.config,
        )
        self.weights = checkpoint.weights  # what is known about the directory's own
        self._parameters = dict(module.named_parameters(remove_duplicate=False))

    def __contains__(self, key: str) -> bool:
        """Say whether there is such a parameter."""
        return key in self._parameters

    def keys(self):
        """Return all keys."""
        return self._parameters.keys()

    def tensor(self, key: str, shape=None) -> torch.Tensor:
        """Return a parameter; its shape was checked when the directory was read."""
        if key not in self._parameters:
            raise CheckpointError(f"weight {key!r} is missing", where=str(self.path))
        return self._parameters[key]

    def zeros(self, count: int) -> torch.Tensor:
        """Return zeros [count] beside the parameters."""
        return torch.zeros(count, device=next(iter(self._parameters.values())).device)

    def join(self, arrays: list[torch.Tensor]) -> torch.Tensor:
        """Return weights one below the other."""
        return torch.cat(arrays)
