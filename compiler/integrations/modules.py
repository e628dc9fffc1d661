"""Modules of sentence-transformers that a compiled library stands behind."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from sentence_transformers.base.modules import Dense, InputModule

from intformer.errors import IntformerError
from intformer.ir.heads import SENTENCE_EMBEDDING, SEQUENCE_CLASSIFICATION, Head
from intformer.runtime.edge import Edge, Packed, pack
from intformer.runtime.library import Library, load

FILE = "model.so"  # in a directory that `save` writes


class Features(dict):
    """What a forward pass returns; says why there are no token embeddings."""

    def __missing__(self, key: str) -> object:
        """Raise IntformerError naming the output that was asked for."""
        raise IntformerError(
            f"output {key!r} is not computed", hint=f"the library has {', '.join(self)}"
        )


class LibraryModule(InputModule):
    """Tokenizes and runs a library; subclasses make one feature of its outputs.

    library         on the CPU or on a GPU, whatever device torch uses
    max_seq_length  tokens a text is cut to

    A copy in another process loads the library from its path.
    """

    head: Head
    config_keys = ("max_seq_length",)

    def __init__(self, library: Library | str | os.PathLike, max_seq_length: int | None = None):
        """Take a loaded library, or load one; raise IntformerError for one of another head."""
        torch.nn.Module.__init__(self)
        self.library = library if isinstance(library, Library) else load(library)
        found = self.library.metadata["head"]
        if found != self.head.name:
            raise IntformerError(
                f"head {found}, {self.head.name} is needed", where=str(self.library.path)
            )
        edge = Edge.of(self.library)
        self.max_seq_length = edge.length if max_seq_length is None else max_seq_length

    @property
    def max_seq_length(self) -> int:
        """Tokens a text is cut to."""
        return self.edge.length

    @max_seq_length.setter
    def max_seq_length(self, length: int) -> None:
        longest = self.library.metadata["max_length"]
        if not isinstance(length, int) or not 1 <= length <= longest:
            raise IntformerError(
                f"max_seq_length = {length!r}",
                where=str(self.library.path),
                hint=f"the model takes 1 to {longest} tokens",
            )
        # all channels of an embedding: SentenceTransformer truncates them itself
        changed = {"truncate_length": length, "truncate_dim": None}
        self.edge = Edge({**self.library.metadata, **changed}, self.library.files())

    @property
    def tokenizer(self):
        """The tokenizers.Tokenizer, without padding."""
        return self.edge.tokenizer

    def __getstate__(self) -> dict:
        """Return what another process needs; the library itself stays here."""
        state = {**self.__dict__, "library": None, "edge": None}
        return {"module": state, "path": str(self.library.path), "length": self.max_seq_length}

    def __setstate__(self, state: dict) -> None:
        """Load the library again."""
        super().__setstate__(state["module"])
        self.library = load(state["path"])
        self.max_seq_length = state["length"]

    def preprocess(
        self,
        inputs: Sequence[str | Sequence[str]],
        prompt: str | None = None,
        task: str | None = None,
        **options,
    ) -> dict[str, torch.Tensor]:
        """Tokenize texts or pairs; return input_ids, attention_mask and token_type_ids.

        prompt  put before each text, the first of a pair
        task    "query" or "document" where SentenceTransformer says it; changes nothing

        Each is int64 [batch, longest], padded at the right.
        """
        if options:
            raise IntformerError(
                f"option {next(iter(options))!r} is not supported", hint="leave it out"
            )
        if not inputs:
            return {}
        return _padded(self._packed(list(inputs), prompt or ""), self.library.metadata)

    def _packed(self, inputs: list, prompt: str) -> Packed:
        return self.edge.encode(inputs, prompt=prompt)

    def _run(self, features: Mapping[str, torch.Tensor]) -> tuple[Packed, np.ndarray]:
        """Return what ran, and the library's integers, int32 [batch, channels]."""
        names = ("input_ids", "attention_mask", "token_type_ids")
        arrays = {n: features[n].cpu().numpy() for n in names if n in features}
        packed = pack(self.library.metadata, **arrays)
        return packed, self.library.run(**packed.inputs())

    def save(self, output_path: str, *args, **kwargs) -> None:
        """Write the library and the settings of this module into a folder."""
        target = Path(output_path) / FILE
        if not (target.exists() and target.samefile(self.library.path)):
            # beside it and then in its place: a library that is mapped is never written to
            part = target.with_name(f".{FILE}.part")
            shutil.copyfile(self.library.path, part)
            part.replace(target)
        self.save_config(output_path)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **options) -> "LibraryModule":
        """Load what `save` wrote; options are those of Module.load."""
        place = {
            key: options[key]
            for key in ("token", "cache_folder", "revision", "local_files_only")
            if key in options
        }
        config = cls.load_config(model_name_or_path, subfolder, **place)
        path = cls.load_file_path(model_name_or_path, FILE, subfolder, **place)
        if path is None:
            raise IntformerError(f"no {FILE}", where=str(Path(model_name_or_path, subfolder)))
        return cls(path, config.get("max_seq_length"))


class LibraryEncoder(LibraryModule):
    """Texts to sentence embeddings."""

    head = SENTENCE_EMBEDDING

    def get_embedding_dimension(self) -> int:
        """Return the channels of an embedding."""
        return self.library.metadata["output_channels"]

    def forward(self, features: dict, **options) -> Features:
        """Add "sentence_embedding", float32 [batch, channels], of L2 norm 1 if the model's are."""
        packed, output = self._run(features)
        rows = torch.from_numpy(np.stack(self.edge.decode(packed, output)))
        return Features(features, sentence_embedding=rows.to(features["input_ids"].device))


class LibraryScorer(LibraryModule, Dense):
    """Pairs of texts to scores. A Dense, because CrossEncoder asks one for the number of labels."""

    head = SEQUENCE_CLASSIFICATION
    module_output_name = "scores"

    @property
    def out_features(self) -> int:
        """The number of labels."""
        return self.library.metadata["output_channels"]

    def get_config_dict(self) -> dict:
        """Return the settings of this module, which are not those of a Dense."""
        return InputModule.get_config_dict(self)

    def _packed(self, inputs: list, prompt: str) -> Packed:
        if all(isinstance(row, str) for row in inputs):
            return self.edge.encode(inputs, prompt=prompt)
        if any(isinstance(row, str) or len(row) != 2 for row in inputs):
            raise IntformerError("some inputs are not pairs", hint="each is a pair of texts")
        texts, pairs = zip(*inputs, strict=True)
        return self.edge.encode(texts, pairs, prompt=prompt)

    def forward(self, features: dict, **options) -> Features:
        """Add "scores", logits, float32 [batch, labels]."""
        _, output = self._run(features)
        rows = torch.from_numpy(self.edge.real(output))
        return Features(features, scores=rows.to(features["input_ids"].device))


def _padded(packed: Packed, metadata: dict) -> dict[str, torch.Tensor]:
    lengths = np.diff(packed.cu_seqlens)
    mask = np.arange(lengths.max()) < lengths[:, None]
    ids = np.full(mask.shape, metadata["pad_token_id"] or 0, np.int64)
    types = np.zeros(mask.shape, np.int64)
    ids[mask], types[mask] = packed.input_ids, packed.token_type_ids
    arrays = {"input_ids": ids, "attention_mask": mask.astype(np.int64), "token_type_ids": types}
    return {name: torch.from_numpy(array) for name, array in arrays.items()}
