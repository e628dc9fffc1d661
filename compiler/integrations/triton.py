"""A library as a model of Triton's Python backend: `intformer triton` writes what loads it.

The requests of a dynamic batch run together, without padding: their tokens are one sequence after
the other, and the accumulated counts of tokens are the library's cu_seqlens.
"""

import json
from pathlib import Path

import numpy as np
import triton_python_backend_utils as backend

from intformer.errors import IntformerError
from intformer.runtime.edge import Edge, Packed, pack
from intformer.runtime.edge.packed import together
from intformer.runtime.library import load

LIBRARY = "library.so"  # in the folder of a version; model.so would be taken for the module
TEXTS, ARRAYS = ("text", "pair"), ("input_ids", "attention_mask", "token_type_ids")


class TritonPythonModel:
    """What the backend calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the library of this version."""
        self.library = load(Path(args["model_repository"], args["model_version"], LIBRARY))
        self.edge = Edge.of(self.library)
        (output,) = json.loads(args["model_config"])["output"]
        self.output = output["name"]

    def execute(self, requests: list) -> list:
        """Answer the requests of a batch; one that cannot be answered gets an error of its own."""
        asked = [self._asked(request) for request in requests]
        good = [one for one in asked if isinstance(one, Packed)]
        try:
            found = iter(self._answers(good))
        except IntformerError:  # one is to blame: each by itself
            found = map(self._alone, good)
        return [self._response(next(found) if isinstance(one, Packed) else one) for one in asked]

    def _asked(self, request) -> Packed | IntformerError:
        """Return the sequences of a request."""
        given = {one.name(): one.as_numpy() for one in request.inputs()}
        try:
            if given.keys() <= set(TEXTS) and "text" in given:
                columns = [_strings(given[name]) for name in TEXTS if name in given]
                return self.edge.encode(*columns)
            if given.keys() <= set(ARRAYS) and "input_ids" in given:
                return pack(self.library.metadata, **given)
            raise IntformerError(
                f"inputs {', '.join(given)}", hint="send text and pair, or input_ids and its masks"
            )
        except IntformerError as error:
            return error

    def _answers(self, asked: list[Packed]) -> list[np.ndarray]:
        """Return float32 [sequences, channels] for each, of one run of all."""
        if not asked:
            return []
        output = self.library.run(**together([one.inputs() for one in asked]))
        rows = np.split(output, np.cumsum([one.cu_seqlens.size - 1 for one in asked])[:-1])
        return [self._real(*one) for one in zip(asked, rows, strict=True)]

    def _alone(self, asked: Packed) -> np.ndarray | IntformerError:
        try:
            return self._answers([asked])[0]
        except IntformerError as error:
            return error

    def _real(self, asked: Packed, output: np.ndarray) -> np.ndarray:
        answers = self.edge.decode(asked, output)
        if self.edge.head.embeds:
            return np.stack(answers)
        return np.array([list(one["scores"].values()) for one in answers], np.float32)

    def _response(self, answer: np.ndarray | IntformerError):
        if isinstance(answer, IntformerError):
            what = " - ".join(part for part in (answer.what, answer.hint) if part)
            return backend.InferenceResponse(error=backend.TritonError(what))
        return backend.InferenceResponse([backend.Tensor(self.output, answer)])


def _strings(array: np.ndarray) -> list[str]:
    try:
        return [text.decode() for text in array.reshape(-1)]
    except UnicodeDecodeError:
        raise IntformerError("a text is not UTF-8") from None
