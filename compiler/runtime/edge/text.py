"""Text to packed tokens, and the way back: one Edge per model."""

import json
import threading
from collections.abc import Iterable, Iterator
from weakref import WeakKeyDictionary

import numpy as np
from tokenizers import Encoding, Tokenizer

from intformer.errors import IntformerError, LibraryError
from intformer.ir import heads
from intformer.runtime.edge import answers
from intformer.runtime.edge.packed import Packed, hf_positions
from intformer.runtime.edge.scores import SIMILARITIES
from intformer.runtime.library import Library

DOC_STRIDE = 128  # tokens that two windows over a long document share
SETTINGS_FILE = "tokenizer_settings.json"  # how a library's tokenizer is called, see Edge


class Edge:
    """Tokenizer and decoder of one model. May be used by several threads at once.

    metadata     of the library, or IntModel.meta
    head         the head it names
    tokenizer    tokenizers.Tokenizer, without padding, cutting at the model's truncate_length
    sends_types  whether token types are those of the tokenizer; else they are 0
    mask_id      id of the mask token; None where the tokenizer has none

    SETTINGS_FILE holds what transformers decides outside of tokenizer.json, a JSON object:
    token_type_ids (bool: sends_types), truncation_side ("right" or "left"), split_special_tokens
    (bool: special tokens in a text are plain text), mask_token (str or null). A key that is absent
    has the value of a plain BERT tokenizer.
    """

    def __init__(self, metadata: dict, files: dict[str, bytes]):
        """Make the tokenizer from the files carried along (Library.files, IntModel.files)."""
        self.metadata, self.head = metadata, heads.head_of(metadata)
        if "tokenizer.json" not in files:
            raise LibraryError(
                "the model carries no tokenizer",
                hint="tokenize elsewhere and pass ids, or compile with --tokenizer",
            )
        try:
            settings = json.loads(files.get(SETTINGS_FILE, b"{}"))
            self.sends_types = settings.get("token_type_ids", True)
            self._direction = settings.get("truncation_side", "right")
            self._split_special = settings.get("split_special_tokens", False)
        except (ValueError, AttributeError) as error:
            raise LibraryError(f"cannot read {SETTINGS_FILE}: {error}") from error
        self._text = files["tokenizer.json"]
        self.length = metadata.get("truncate_length") or metadata["max_length"]
        self.tokenizer = self._tokenizer(strategy="longest_first")
        self._windows: dict[int, Tokenizer] = {}  # by stride; their settings never change
        self._lock = threading.Lock()
        named = (settings.get("mask_token"), "[MASK]", "<mask>")
        ids = (self.tokenizer.token_to_id(token) for token in named if token)
        self.mask_id = next((number for number in ids if number is not None), None)

    @classmethod
    def of(cls, library: Library) -> "Edge":
        """Return the edge of a loaded library, made at the first call."""
        with _EDGES_LOCK:
            edge = _EDGES.get(library)
            if edge is None:
                edge = _EDGES[library] = cls(library.metadata, library.files())
            return edge

    def _tokenizer(self, **truncation) -> Tokenizer:
        try:
            tokenizer = Tokenizer.from_str(self._text.decode())
        except Exception as error:  # tokenizers raises plain Exception
            raise LibraryError(f"cannot read tokenizer.json: {error}") from error
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = self._split_special
        try:
            tokenizer.enable_truncation(self.length, direction=self._direction, **truncation)
        except Exception as error:
            raise LibraryError(f"cannot cut texts at {self.length} tokens: {error}") from error
        return tokenizer

    def _stride(self, question: str, doc_stride: int) -> int:
        """Return the tokens two windows share: `doc_stride`, or less, so that each moves on."""
        used = len(self.tokenizer.encode(question, add_special_tokens=False).ids)
        room = self.length - self.tokenizer.num_special_tokens_to_add(True) - used
        stride = min(doc_stride, self.length // 3)
        while stride and 2 * stride > room:  # in halves: each stride has a tokenizer of its own
            stride //= 2
        return stride

    def _window_tokenizer(self, stride: int) -> Tokenizer:
        """Return the tokenizer that cuts a long document into windows sharing `stride` tokens."""
        with self._lock:
            if stride not in self._windows:
                self._windows[stride] = self._tokenizer(strategy="only_second", stride=stride)
            return self._windows[stride]

    # ---- text to tokens ----

    def encode(
        self,
        texts: Iterable[str],
        pairs: Iterable[str] | None = None,
        *,
        doc_stride: int = DOC_STRIDE,
        first: int = 0,
        prompt: str | None = None,
        prompt_name: str | None = None,
    ) -> Packed:
        """Tokenize and pack; one sequence per text, cut at the model's truncate_length.

        texts       sentences; questions for question answering
        pairs       second sentences; documents for question answering, where a long one becomes
                    several windows
        doc_stride  tokens two windows share
        first       number of texts[0] in error messages
        prompt      text to put before each text (not before pairs); "" for none
        prompt_name one of the model's prompts instead; neither: its default prompt
        """
        before = self.prompt(prompt, prompt_name)
        if before and not self.metadata.get("pools_prompt", True):
            raise IntformerError(
                f"prompt {before!r}: the model's pooling leaves prompts out, a library does not",
                hint="embed texts without a prompt",
            )
        texts = [_text(one, "text", i) for i, one in enumerate(texts_of(texts, "texts"), first)]
        if pairs is not None:
            pairs = [_text(one, "pair", i) for i, one in enumerate(texts_of(pairs, "pairs"), first)]
        if not texts:
            raise IntformerError("no texts")
        if pairs is not None and len(pairs) != len(texts):
            raise IntformerError(f"{len(texts)} texts and {len(pairs)} pairs")
        if self.head.answers_questions and pairs is None:
            raise IntformerError("question answering needs a document for each question")
        if self.head.pairs == heads.NEVER and pairs is not None:
            raise IntformerError("a pair of texts", hint="embed them one by one")
        texts = [before + text for text in texts]
        rows = list(zip(texts, pairs, strict=True)) if pairs is not None else [(t,) for t in texts]
        packed = self._packed(rows, *self._encodings(rows, doc_stride))
        if self.head.fills_masks:
            packed.positions = np.flatnonzero(packed.input_ids == self.mask_id).astype(np.int32)
            masks = np.diff(np.searchsorted(packed.positions, packed.cu_seqlens))
            if not masks.all():
                raise IntformerError(
                    f"no mask token in text {first + int(masks.argmin())}",
                    hint=f"write {self.tokenizer.id_to_token(self.mask_id)} where a word is missing"
                    if self.mask_id is not None
                    else "the tokenizer has none",
                )
        return packed

    def prompt(self, text: str | None = None, name: str | None = None) -> str:
        """Return what is put before each text: `text`, the prompt called `name`, or the default.

        Raises IntformerError for both at once, a name that the model does not have, and a head
        that takes no prompts.
        """
        prompts = self.metadata.get("prompts", {})
        if text is None and name is None:
            name = self.metadata.get("default_prompt")
            return prompts[name] if name is not None else ""
        if not self.head.prompts:
            raise IntformerError(f"head {self.head.name} takes no prompt", hint="leave it out")
        if text is not None and name is not None:
            raise IntformerError(
                f"prompt {text!r} and prompt_name {name!r}", hint="pass one of them"
            )
        if text is not None:
            return _text(text, "prompt", 0)
        if name not in prompts:
            named = ", ".join(map(repr, prompts)) or "none"
            raise IntformerError(f"the model has no prompt {name!r}", hint=f"its prompts: {named}")
        return prompts[name]

    def sequences(self, rows: Iterable[tuple[str, ...]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return (ids, types), int32 [length] each, of every (text,) or (text, pair).

        Each becomes one sequence for every head, also for question answering; the model's default
        prompt is put before each text.
        """
        rows = [tuple(_text(part, "text", i) for part in row) for i, row in enumerate(rows)]
        before = self.prompt()
        rows = [(before + row[0], *row[1:]) for row in rows]
        return [(np.array(e.ids, np.int32), self._types(e)) for e in self._batch(rows)]

    def encode_masked(self, texts: Iterable[str]) -> Packed:
        """Tokenize and pack texts for masked LM with the last token that is no special one masked.

        Masking comes after cutting at truncate_length, so that every text has its mask.
        """
        if self.mask_id is None:
            raise IntformerError(
                "the tokenizer has no mask token", hint="masked LM needs one to mask texts with"
            )
        rows = [(_text(one, "text", i),) for i, one in enumerate(texts_of(texts, "texts"))]
        packed = self._packed(rows, *self._encodings(rows, DOC_STRIDE))
        last = [
            max((i for i, special in enumerate(e.special_tokens_mask) if not special), default=0)
            for e in packed.encodings
        ]
        packed.positions = (packed.cu_seqlens[:-1] + last).astype(np.int32)
        packed.input_ids[packed.positions] = self.mask_id
        return packed

    def _batch(self, rows: list[tuple], stride: int | None = None) -> list[Encoding]:
        """Tokenize (text,) or (text, pair) rows; with a stride: into windows over the pairs."""
        tokenizer = self.tokenizer if stride is None else self._window_tokenizer(stride)
        try:
            if len(rows) == 1:  # without the threads of encode_batch
                return [tokenizer.encode(*rows[0])]
            return tokenizer.encode_batch([r if len(r) == 2 else r[0] for r in rows])
        except Exception as error:  # tokenizers raises plain Exception
            raise IntformerError(
                f"cannot tokenize: {error}",
                hint="" if stride is None else "a question must leave room for its document",
            ) from error

    def _encodings(self, rows: list[tuple], doc_stride: int) -> tuple[list[Encoding], list[int]]:
        windows = self.head.answers_questions
        if windows:
            found = [self._batch([row], self._stride(row[0], doc_stride))[0] for row in rows]
        else:
            found = self._batch(rows)
        groups = [[e, *e.overflowing] if windows else [e] for e in found]
        text_of = [i for i, group in enumerate(groups) for _ in group]
        return [e for group in groups for e in group], text_of

    def _types(self, encoding: Encoding) -> np.ndarray:
        """Return the token types of one sequence, int32 [length]."""
        if not self.sends_types:
            return np.zeros(len(encoding.ids), np.int32)
        types = np.array(encoding.type_ids, np.int32)
        count = self.metadata.get("type_vocab_size")
        if count is not None and types.size and types.max() >= max(count, 1):
            raise IntformerError(
                f"the tokenizer gives token type {types.max()}, the model has {count} "
                "(config key 'type_vocab_size')",
                hint="a pair needs a tokenizer without 'token_type_ids' in its model_input_names",
            )
        return types

    def _packed(self, rows: list[tuple], encodings: list[Encoding], text_of: list[int]) -> Packed:
        rule, pad = self.metadata["position_rule"], self.metadata["pad_token_id"]
        ids = [np.array(e.ids, np.int32) for e in encodings]
        if empty := [i for i, sequence in zip(text_of, ids, strict=True) if not sequence.size]:
            raise IntformerError(f"text {empty[0]} has no tokens", hint="drop it")
        flat = np.concatenate(ids)
        types = np.concatenate([self._types(e) for e in encodings])
        return Packed(
            input_ids=flat,
            cu_seqlens=np.cumsum([0, *map(len, ids)]).astype(np.int32),
            token_type_ids=types,
            position_ids=np.concatenate([hf_positions(i[None], rule, pad)[0] for i in ids]),
            encodings=encodings,
            texts=rows,
            text_of=text_of,
        )

    # ---- integers to answers ----

    def real(self, output: np.ndarray) -> np.ndarray:
        """Return integer outputs in real units, float32 [rows, channels]."""
        return (output * np.asarray(self.metadata["output_scale"])).astype(np.float32)

    def similarity(self, a, b) -> np.ndarray:
        """Compare embeddings as the model's directory says (metadata["similarity"]).

        a, b    rows of vectors, [n, channels] and [m, channels], as `decode` returns them
        Returns float32 [n, m]: more is more alike; distances are negative.
        """
        named = self.metadata.get("similarity")
        if named is None:
            raise IntformerError(f"head {self.head.name} has no similarity function")
        a, b = (np.asarray(rows, np.float32) for rows in (a, b))
        return SIMILARITIES[named](a, b)

    def decode(self, packed: Packed, output: np.ndarray, **options) -> list:
        """Return one answer per text (per sequence where `packed` comes from arrays).

        output   what Library.run returned for `packed`, int32 [rows, channels]
        options  of the head's answers; these and the answers are described at answers.decode
        """
        return answers.decode(self, packed, output, **options)


_EDGES: WeakKeyDictionary[Library, Edge] = WeakKeyDictionary()
_EDGES_LOCK = threading.Lock()


def texts_of(texts: Iterable[str], what: str) -> Iterator:
    """Return an iterator over many texts; a single one is refused."""
    if isinstance(texts, str | bytes):
        raise IntformerError("a single text", hint="pass a list of texts")
    try:
        return iter(texts)
    except TypeError:
        kind = type(texts).__name__
        raise IntformerError(f"{what} is {kind}, not a list of texts") from None


def _text(value: object, what: str, number: int) -> str:
    """Return one text as a plain str, or raise an error that gives its number."""
    if not isinstance(value, str):
        raise IntformerError(f"{what} {number} is {type(value).__name__}, not a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise IntformerError(
            f"{what} {number} has a lone surrogate, U+{ord(value[error.start]):04X}, "
            f"at character {error.start}",
            hint="read the text with errors='replace'",
        ) from None
    return str(value)
