"""Around a compiled library: text to packed tokens, integer outputs to answers.

The library computes integers from integers. What stays in float is here, after it: one
multiplication by the output scale, softmax, the L2 norm. Needs numpy and tokenizers.
"""

import json
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from weakref import WeakKeyDictionary

import numpy as np
from tokenizers import Encoding, Tokenizer

from intformer.errors import IntformerError, LibraryError
from intformer.runtime import Library

MAX_ANSWER = 30  # tokens in an answer of question answering
DOC_STRIDE = 128  # tokens that two windows over a long document share
SETTINGS_FILE = "tokenizer_settings.json"  # how a library's tokenizer is called, see Edge
ENCODING = ("doc_stride", "prompt", "prompt_name")  # options of predict that Edge.encode takes
PROMPTED = ("sentence-embedding", "sequence-classification")  # heads that take prompts


@dataclass
class Packed:
    """Sequences one after the other, as Library.run takes them.

    input_ids, token_type_ids, position_ids  int32 [n]
    cu_seqlens                               int32 [sequences + 1]
    positions   int32 [p], tokens whose rows are wanted (masked LM), else None
    encodings   of the tokenizer, one per sequence; empty where no text was encoded
    texts       what was encoded: (text,) or (text, pair)
    text_of     which text each sequence is of; a long document has several
    """

    input_ids: np.ndarray
    cu_seqlens: np.ndarray
    token_type_ids: np.ndarray
    position_ids: np.ndarray
    positions: np.ndarray | None = None
    encodings: list[Encoding] = field(default_factory=list)
    texts: list[tuple[str, ...]] = field(default_factory=list)
    text_of: list[int] = field(default_factory=list)

    def inputs(self) -> dict[str, np.ndarray]:
        """Return the arguments of Library.run and the inputs of IntModel.run."""
        names = ("input_ids", "cu_seqlens", "token_type_ids", "position_ids")
        found = {name: getattr(self, name) for name in names}
        return found if self.positions is None else {**found, "positions": self.positions}


def hf_positions(input_ids: np.ndarray, rule: str, pad: int | None) -> np.ndarray:
    """Return the positions Hugging Face gives padded ids, int32 [batch, seq].

    rule  "column": 0, 1, .. by column (BERT, also under left padding);
          "padding": ids that are not `pad` count from pad + 1, a pad id has pad (RoBERTa:
          create_position_ids_from_input_ids)
    """
    if rule == "column":
        return np.broadcast_to(np.arange(input_ids.shape[1], dtype=np.int32), input_ids.shape)
    real = input_ids != pad
    return (np.cumsum(real, 1) * real + pad).astype(np.int32)


def pack(
    metadata: dict,
    input_ids: np.ndarray,
    attention_mask: np.ndarray | None = None,
    token_type_ids: np.ndarray | None = None,
    position_ids: np.ndarray | None = None,
    wanted: np.ndarray | None = None,
) -> Packed:
    """Pack Hugging Face's padded arrays, each [batch, seq]: masked tokens go, positions stay.

    metadata        of the library (position_rule, pad_token_id)
    attention_mask  0 where a token is to be dropped; default: none
    token_type_ids  default 0
    position_ids   default: those Hugging Face would compute before masking
    wanted          true where a row is to be computed (masked LM)
    """
    ids = np.asarray(input_ids)
    if ids.ndim != 2 or not np.issubdtype(ids.dtype, np.integer):
        raise IntformerError(f"input_ids is {ids.dtype} {list(ids.shape)}, not [batch, seq]")

    def same_shape(name: str, array) -> np.ndarray:
        array = np.asarray(array)
        if array.shape != ids.shape:
            raise IntformerError(f"{name} is {list(array.shape)}, input_ids {list(ids.shape)}")
        return array

    mask = np.ones(ids.shape, bool)
    if attention_mask is not None:
        mask = same_shape("attention_mask", attention_mask).astype(bool)
    if position_ids is None:
        places = hf_positions(ids, metadata["position_rule"], metadata["pad_token_id"])
    else:
        places = same_shape("position_ids", position_ids)
    lengths = mask.sum(1)
    if not lengths.all():
        raise IntformerError(
            f"sequence {int(np.argmin(lengths))} is empty: all its tokens are masked",
            where="attention_mask",
            hint="drop it from the batch",
        )
    types = np.zeros(ids.shape, np.int32)
    if token_type_ids is not None:
        types = same_shape("token_type_ids", token_type_ids)
    positions = None
    if wanted is not None:
        positions = np.flatnonzero(same_shape("wanted", wanted)[mask]).astype(np.int32)
    return Packed(
        input_ids=ids[mask].astype(np.int32),
        cu_seqlens=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32),
        token_type_ids=types[mask].astype(np.int32),
        position_ids=places[mask].astype(np.int32),
        positions=positions,
    )


class Edge:
    """Tokenizer and decoder of one model. May be used by several threads at once.

    metadata     of the library, or IntModel.meta
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
        self.metadata = metadata
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
        texts = [_text(one, "text", i) for i, one in enumerate(_texts(texts, "texts"), first)]
        if pairs is not None:
            pairs = [_text(one, "pair", i) for i, one in enumerate(_texts(pairs, "pairs"), first)]
        if not texts:
            raise IntformerError("no texts")
        if pairs is not None and len(pairs) != len(texts):
            raise IntformerError(f"{len(texts)} texts and {len(pairs)} pairs")
        head = self.metadata["head"]
        if head == "question-answering" and pairs is None:
            raise IntformerError("question answering needs a document for each question")
        if head == "sentence-embedding" and pairs is not None:
            raise IntformerError("a pair of texts", hint="embed them one by one")
        texts = [before + text for text in texts]
        rows = list(zip(texts, pairs, strict=True)) if pairs is not None else [(t,) for t in texts]
        packed = self._packed(rows, *self._encodings(rows, doc_stride))
        if head == "masked-lm":
            packed.positions = np.flatnonzero(packed.input_ids == self.mask_id).astype(np.int32)
            if not packed.positions.size:
                raise IntformerError(
                    "no mask token in the text",
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
        head, prompts = self.metadata["head"], self.metadata.get("prompts", {})
        if text is None and name is None:
            name = self.metadata.get("default_prompt")
            return prompts[name] if name is not None else ""
        if head not in PROMPTED:
            raise IntformerError(f"head {head} takes no prompt", hint="leave it out")
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
        rows = [(_text(one, "text", i),) for i, one in enumerate(_texts(texts, "texts"))]
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
            return tokenizer.encode_batch([r if len(r) == 2 else r[0] for r in rows])
        except Exception as error:  # tokenizers raises plain Exception
            raise IntformerError(
                f"cannot tokenize: {error}",
                hint="" if stride is None else "a question must leave room for its document",
            ) from error

    def _encodings(self, rows: list[tuple], doc_stride: int) -> tuple[list[Encoding], list[int]]:
        windows = self.metadata["head"] == "question-answering"
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

    def decode(self, packed: Packed, output: np.ndarray, **options) -> list:
        """Return one answer per text (per sequence where `packed` comes from arrays).

        output   what Library.run returned for `packed`, int32 [rows, channels]
        options  top_k (masked LM, default 5); max_answer (question answering, default 30 tokens)

        sentence-embedding       float32 [channels], of L2 norm 1 if metadata["normalize"]
        features                 float32 [tokens, channels]
        sequence-classification  {"label", "score", "scores": {label: score}}; scores are
                                 metadata["score_function"] of the logits, in float64
        token-classification     [{"token", "label", "score", "start", "end"}], no special tokens
        question-answering       {"answer", "score", "start", "end"}
        masked-lm                per mask: [{"token", "id", "score"}], best first
        """
        decoders = {
            "sentence-embedding": self._embeddings,
            "features": self._features,
            "sequence-classification": self._classes,
            "token-classification": self._tokens,
            "question-answering": self._answers,
            "masked-lm": self._fillings,
        }
        head = self.metadata["head"]
        if head in ("token-classification", "question-answering") and not packed.encodings:
            raise IntformerError(
                f"decoding {head} needs the text", hint="pack with Edge.encode, not from arrays"
            )
        return decoders[head](packed, self.real(output), **options)

    def _embeddings(self, packed: Packed, rows: np.ndarray) -> list[np.ndarray]:
        if self.metadata.get("normalize", True):  # without the key: always, in older libraries
            rows = l2_normalised(rows)
        return list(rows[:, : self.metadata.get("truncate_dim")])

    def _features(self, packed: Packed, rows: np.ndarray) -> list[np.ndarray]:
        return np.split(rows, packed.cu_seqlens[1:-1])

    def _classes(self, packed: Packed, rows: np.ndarray) -> list[dict]:
        labels = self.metadata["labels"]
        named = self.metadata.get("score_function") or score_function(
            self.metadata.get("problem_type"), len(labels)
        )
        scores = SCORE_FUNCTIONS[named](rows.astype(np.float64))
        best = rows.argmax(1)
        return [
            {
                "label": labels[top],
                "score": float(row[top]),
                "scores": {label: float(s) for label, s in zip(labels, row, strict=True)},
            }
            for top, row in zip(best, scores, strict=True)
        ]

    def _tokens(self, packed: Packed, rows: np.ndarray) -> list[list[dict]]:
        labels = self.metadata["labels"]
        scores = softmax(rows)
        answers = []
        for first, encoding in zip(packed.cu_seqlens, packed.encodings, strict=False):
            answers.append(
                [
                    {
                        "token": encoding.tokens[i],
                        "label": labels[scores[first + i].argmax()],
                        "score": float(scores[first + i].max()),
                        "start": encoding.offsets[i][0],
                        "end": encoding.offsets[i][1],
                    }
                    for i, special in enumerate(encoding.special_tokens_mask)
                    if not special
                ]
            )
        return answers

    def _answers(
        self, packed: Packed, rows: np.ndarray, max_answer: int = MAX_ANSWER
    ) -> list[dict]:
        spans: dict[int, list[tuple]] = {i: [] for i in range(len(packed.texts))}
        for number, encoding in enumerate(packed.encodings):
            start, end = packed.cu_seqlens[number : number + 2]
            inside = np.array([s == 1 for s in encoding.sequence_ids])
            for span in answer_spans(rows[start:end, 0], rows[start:end, 1], inside, max_answer):
                score, first, last = span
                place = (encoding.offsets[first][0], encoding.offsets[last][1])
                spans[packed.text_of[number]].append((score, *place))
        return [self._answer(packed.texts[i], found) for i, found in spans.items()]

    def _answer(self, texts: tuple[str, ...], spans: list[tuple]) -> dict:
        if not spans:
            return {"answer": "", "score": 0.0, "start": 0, "end": 0}
        # windows overlap: the same span counts once, with its best score
        best: dict[tuple[int, int], float] = {}
        for score, start, end in spans:
            best[start, end] = max(score, best.get((start, end), -np.inf))
        (start, end), _ = top = max(best.items(), key=lambda item: item[1])
        share = 1 / np.exp(np.array(list(best.values())) - top[1]).sum()
        text = texts[1][start:end]
        start += len(text) - len(text.lstrip())
        text = text.strip()
        return {"answer": text, "score": float(share), "start": start, "end": start + len(text)}

    def _fillings(self, packed: Packed, rows: np.ndarray, top_k: int = 5) -> list[list[list[dict]]]:
        scores = softmax(rows)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :top_k]
        answers: list[list[list[dict]]] = [[] for _ in packed.cu_seqlens[1:]]
        sequences = np.searchsorted(packed.cu_seqlens, packed.positions, side="right") - 1
        for row, sequence in enumerate(sequences):
            answers[sequence].append(
                [
                    {
                        "token": self.tokenizer.id_to_token(int(i)),
                        "id": int(i),
                        "score": float(scores[row, i]),
                    }
                    for i in order[row]
                ]
            )
        return answers


def answer_spans(
    start: np.ndarray, end: np.ndarray, inside: np.ndarray, max_answer: int
) -> Iterator[tuple[float, int, int]]:
    """Yield (start logit + end logit, first token, last token) of every possible answer.

    start, end  float [tokens], logits of one window
    inside      bool [tokens], true in the document
    """
    where = np.flatnonzero(inside)
    for first in where:
        last = where[(where >= first) & (where < first + max_answer)]
        yield from zip(
            (start[first] + end[last]).tolist(),
            [int(first)] * len(last),
            last.tolist(),
            strict=True,
        )


def softmax(rows: np.ndarray) -> np.ndarray:
    """Return the softmax along the last axis."""
    e = np.exp(rows - rows.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(rows: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-x)), without overflow and exact to the last bits in both tails."""
    return np.exp(-np.logaddexp(0, -rows))


SCORE_FUNCTIONS = {"softmax": softmax, "sigmoid": sigmoid, "identity": np.array}


def score_function(problem_type: str | None, labels: int) -> str:
    """Return the key of SCORE_FUNCTIONS that transformers' text-classification pipeline applies."""
    if problem_type == "regression":
        return "identity"
    return "sigmoid" if labels == 1 or problem_type == "multi_label_classification" else "softmax"


def l2_normalised(rows: np.ndarray) -> np.ndarray:
    """Return rows of Euclidean length 1; a zero row stays zero."""
    length = np.sqrt(np.square(rows, dtype=np.float64).sum(-1, keepdims=True))
    return (rows / np.maximum(length, np.finfo(np.float32).tiny)).astype(np.float32)


_EDGES: WeakKeyDictionary[Library, Edge] = WeakKeyDictionary()
_EDGES_LOCK = threading.Lock()


def _texts(texts: Iterable[str], what: str) -> Iterator:
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


def predict(
    library: Library,
    texts: Iterable[str],
    pairs: Iterable[str] | None = None,
    *,
    batch: int = 32,
    **options,
) -> Iterator:
    """Yield the answer for each text in order, running `batch` texts at a time.

    library       as load() returns it
    texts, pairs  any iterables of strings, read as far as a batch needs; pairs has as many as texts
    options       doc_stride, prompt and prompt_name of Edge.encode, and those of Edge.decode
    """
    texts = _texts(texts, "texts")
    pairs = None if pairs is None else _texts(pairs, "pairs")
    if batch < 1:
        raise IntformerError(f"batch = {batch}", hint="at least 1 text is run at a time")
    return _answers(library, Edge.of(library), texts, pairs, batch, options)


def _answers(
    library: Library,
    edge: Edge,
    texts: Iterator[str],
    pairs: Iterator[str] | None,
    batch: int,
    options: dict,
) -> Iterator:
    encoding = {name: options.pop(name) for name in ENCODING if name in options}
    first = 0
    while True:
        some = list(islice(texts, batch))
        others = None if pairs is None else list(islice(pairs, max(len(some), 1)))
        if others is not None and len(others) != len(some):
            few, many = ("pairs", "texts") if len(others) < len(some) else ("texts", "pairs")
            count = first + min(len(some), len(others))
            raise IntformerError(f"{count} {few}, but more {many}", hint="each text has one pair")
        if not some:
            return
        packed = edge.encode(some, others, first=first, **encoding)
        yield from edge.decode(packed, library.run(**packed.inputs()), **options)
        first += len(some)
