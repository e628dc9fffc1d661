"""JSON of long answers, made beside the event loop."""

import json


def rendered(value: object) -> bytes:
    """Return JSON; of lists of lists each row by itself.

    The encoder keeps the interpreter for as long as it is called: between rows others get it.
    """
    if isinstance(value, list) and value and isinstance(value[0], list):
        return b"[" + b",".join(map(rendered, value)) + b"]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
