"""What a request is refused with: a status, and a message that quotes no text."""

from intformer.errors import IntformerError, LibraryError

STATUS = {  # type of the error, as text-embeddings-inference names it where it has it
    "Empty": 400,
    "Invalid": 400,
    "Unauthorized": 401,
    "NotFound": 404,
    "Slow": 408,
    "TooLarge": 413,
    "Validation": 422,
    "Tokenizer": 422,
    "Backend": 424,
    "Overloaded": 429,
    "Internal": 500,
    "Unhealthy": 503,
    "Timeout": 504,
}


class Fault(Exception):
    """A request that is not answered.

    kind     a key of STATUS
    message  for the client
    """

    def __init__(self, kind: str, message: str):
        """Keep both."""
        super().__init__(message)
        self.kind, self.message, self.status = kind, message, STATUS[kind]


def fault_of(error: Exception) -> Fault:
    """Return what an error of the library or of its tokenizer is for a client."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, LibraryError):
        return Fault("Backend", error.what)  # not where: a path of this machine
    if isinstance(error, IntformerError):
        parts = (error.what, error.hint)
        return Fault("Validation", " - ".join(part for part in parts if part))
    return Fault("Internal", "the server failed")


def body_of(fault: Fault, path: str) -> dict:
    """Return the JSON that says it, as the API of this path does."""
    if path.startswith("/v1/"):
        about = {"message": fault.message, "type": fault.kind, "param": None, "code": fault.status}
        return {"error": about}
    return {"error": fault.message, "error_type": fault.kind}
