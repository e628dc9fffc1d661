"""What a server takes on."""

from dataclasses import dataclass, fields

from intformer.errors import IntformerError


@dataclass(frozen=True)
class Limits:
    """Bounds of a server; each number is above 0.

    max_batch_tokens         tokens of a run, or one sequence where that is longer
    max_concurrent_requests  at a time; more are answered 429
    max_client_batch_size    texts in a request
    max_body_bytes           of a request
    max_wait                 seconds until what is queued has run, by the pace so far; requests that
                             would wait longer are answered 429
    timeout                  seconds a request may take, and its body to arrive
    auto_truncate            cut texts that are too long, unless a request says otherwise
    """

    max_batch_tokens: int = 1024
    max_concurrent_requests: int = 512
    max_client_batch_size: int = 32
    max_body_bytes: int = 2_000_000
    max_wait: float = 60.0
    timeout: float = 60.0
    auto_truncate: bool = False

    def __post_init__(self):
        """Raise IntformerError for a number that is not above 0."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "auto_truncate" and not value > 0:
                raise IntformerError(f"{field.name} = {value}", hint="a number above 0 is needed")
