"""How many copies of the libraries a cluster runs."""

from dataclasses import dataclass, fields

from intformer.errors import IntformerError


@dataclass(frozen=True)
class Scaling:
    """Replicas on a Ray cluster.

    ray                   deploy on the Ray cluster that runs here, instead of in this process
    min_replicas          of the libraries, each in a process of its own
    max_replicas          so many while more tokens wait
    target_queued_tokens  that wait for each replica; beyond it one more is started
    """

    ray: bool = False
    min_replicas: int = 1
    max_replicas: int = 1
    target_queued_tokens: int = 16384

    def __post_init__(self):
        """Raise IntformerError for numbers that cannot be, or that nothing would honour."""
        if not 1 <= self.min_replicas <= self.max_replicas or self.target_queued_tokens < 1:
            raise IntformerError(
                f"{self.min_replicas} to {self.max_replicas} replicas of "
                f"{self.target_queued_tokens} tokens",
                hint="min_replicas is 1 or more, max_replicas not less, target_queued_tokens 1 or "
                "more",
            )
        if not self.ray and any(getattr(self, one.name) != one.default for one in fields(self)):
            raise IntformerError("replicas without ray", hint="pass --ray, or start more servers")
