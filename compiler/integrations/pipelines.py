"""A library called as the pipelines of transformers are; needs the base install only."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import groupby
from types import GeneratorType

import numpy as np
from tokenizers import Encoding

from intformer.errors import IntformerError
from intformer.integrations.entities import STRATEGIES, Words, entities
from intformer.ir import heads
from intformer.runtime.edge import SCORE_FUNCTIONS, Edge, Packed, score_function
from intformer.runtime.edge.predict import BATCH_TOKENS
from intformer.runtime.edge.scores import softmax
from intformer.runtime.edge.stream import answered
from intformer.runtime.library import Library, load
from intformer.runtime.texts import Text

NO_EFFECT = {"batch_size": None, "truncation": True, "padding": None, "num_workers": None}


def pipeline(
    library: Library | str | os.PathLike, task: str | None = None, **options
) -> "Pipeline":
    """Return the pipeline of a library's head, see intformer.integrations."""
    library = library if isinstance(library, Library) else load(library)
    head = heads.head_of(library.metadata)
    kind = PIPELINES.get(head)
    if kind is None:
        raise IntformerError(
            f"head {head.name} has no pipeline",
            where=str(library.path),
            hint="those of " + ", ".join(one.name for one in PIPELINES) + " have; see predict()",
        )
    if task is not None and task not in kind.tasks:
        raise IntformerError(
            f"task {task!r}", where=str(library.path), hint="the library's is " + kind.tasks[0]
        )
    return kind(library, **options)


class Pipeline(ABC):
    """Answers one input or several; generators are answered one by one as they come.

    tasks    names of what it does
    options  of a call, with their defaults

    Texts are cut at the library's length, as with truncation=True.
    """

    tasks: tuple[str, ...] = ()
    options: Mapping[str, object] = {}

    def __init__(self, library: Library, **options):
        """Keep a library and the options of every call; raise IntformerError for unknown ones."""
        self.library, self.edge = library, Edge.of(library)
        self.task = self.tasks[0]
        self.given = self._known(options)

    def _known(self, options: dict) -> dict:
        """Return the options that change an answer; refuse what is not honoured."""
        for name, value in options.items():
            if name in self.options:
                continue
            if name not in NO_EFFECT or NO_EFFECT[name] not in (None, value):
                raise IntformerError(
                    f"option {name} = {value!r} is not supported",
                    hint="options: " + ", ".join(self.options),
                )
        return {name: value for name, value in options.items() if name in self.options}

    def __call__(self, inputs: object, **options) -> object:
        """Return the answer to one input, a list for a list, a generator for a generator."""
        given = self._known(options)
        settings = {**self.options, **self.given, **given}
        if isinstance(inputs, GeneratorType):
            return self.answers(inputs, settings)
        if isinstance(inputs, list):
            return list(self.answers(inputs, settings)) if inputs else []
        (answer,) = self.answers([inputs], settings)
        return self.alone(inputs, answer, given)

    def alone(self, value: object, answer: object, given: Mapping) -> object:
        """Return what a call with one input returns; `given` are the options of the call."""
        return answer

    def answers(self, inputs: Iterable, settings: Mapping) -> Iterator:
        """Yield the answer to each input; single texts and pairs may alternate."""
        decode = self.decoder(settings)
        encoding = {name: settings[name] for name in ("doc_stride",) if name in settings}
        for _, rows in groupby(map(self.row, inputs), key=len):
            yield from answered(self.library, self.edge, rows, decode, BATCH_TOKENS, **encoding)

    def row(self, value: object) -> Text:
        """Return the text or the two texts of an input."""
        if not isinstance(value, str):
            raise IntformerError(f"an input is {type(value).__name__}, not a text")
        return (value,)

    @abstractmethod
    def decoder(self, settings: Mapping) -> Callable[[Packed, np.ndarray], list]:
        """Return what makes answers of integers."""


class TextClassification(Pipeline):
    """Texts, or {"text", "text_pair"}, to {"label", "score"}; with top_k to a list of them.

    top_k              so many labels, best first; None: all
    function_to_apply  sigmoid, softmax or none, on the logits; default: the model's
    """

    tasks = ("text-classification", "sentiment-analysis")
    options = {"top_k": "", "function_to_apply": "default"}  # noqa: RUF012

    def alone(self, value: object, answer: object, given: Mapping) -> object:
        """A single text is answered by a list of one, unless the call has a top_k."""
        return [answer] if isinstance(value, str) and "top_k" not in given else answer

    def row(self, value: object) -> Text:
        """A pair is {"text", "text_pair"}, or the two of them in a list in a list."""
        if isinstance(value, dict) and {"text"} <= value.keys() <= {"text", "text_pair"}:
            pair = value.get("text_pair")  # an empty one is none, in transformers too
            return (value["text"], pair) if pair else (value["text"],)
        if isinstance(value, list) and len(value) == 1 and len(value[0]) == 2:
            return tuple(value[0])
        return super().row(value)

    def decoder(self, settings: Mapping) -> Callable[[Packed, np.ndarray], list]:
        """The best label, or the list that top_k asks for."""
        labels, top_k = self.library.metadata["labels"], settings["top_k"]
        apply = self._function(settings["function_to_apply"])

        def answer(row: np.ndarray) -> object:
            found = [
                {"label": label, "score": float(score)}
                for label, score in zip(labels, row, strict=True)
            ]
            if top_k == "":
                return found[int(row.argmax())]
            return sorted(found, key=lambda one: one["score"], reverse=True)[:top_k]

        return lambda packed, output: [
            answer(row) for row in apply(self.edge.real(output).astype(np.float64))
        ]

    def _function(self, name: str) -> Callable[[np.ndarray], np.ndarray]:
        about = self.library.metadata
        own = score_function(about["problem_type"], len(about["labels"]))
        found = {**SCORE_FUNCTIONS, "none": np.array, "default": SCORE_FUNCTIONS[own]}
        if name not in found:
            raise IntformerError(
                f"function_to_apply = {name!r}", hint="one of " + ", ".join(sorted(found))
            )
        return found[name]


class TokenClassification(Pipeline):
    """Texts to the list of their entities.

    aggregation_strategy  none: an entity per token; simple, first, average, max: grouped
    ignore_labels         that are left out
    """

    tasks = ("token-classification", "ner")
    options = {"aggregation_strategy": "none", "ignore_labels": ("O",)}  # noqa: RUF012

    def __init__(self, library: Library, **options):
        """Keep a library, its words and the options of every call."""
        super().__init__(library, **options)
        self.words = Words(self.edge)

    def decoder(self, settings: Mapping) -> Callable[[Packed, np.ndarray], list]:
        """The entities of each text."""
        strategy = str(settings["aggregation_strategy"]).lower()
        if strategy not in STRATEGIES:
            raise IntformerError(
                f"aggregation_strategy = {strategy!r}", hint="one of " + ", ".join(STRATEGIES)
            )
        labels, ignored = self.library.metadata["labels"], set(settings["ignore_labels"])

        def answer(text: str, encoding: Encoding, scores: np.ndarray) -> list[dict]:
            tokens = self.words.tokens(text, encoding, scores)
            found = entities(tokens, labels, strategy, self.words)
            key = "entity" if strategy == "none" else "entity_group"
            return [one for one in found if one[key] not in ignored]

        def decode(packed: Packed, output: np.ndarray) -> list[list[dict]]:
            scores = np.split(softmax(self.edge.real(output)), packed.cu_seqlens[1:-1])
            return [
                answer(row[0], *rest)
                for row, *rest in zip(packed.texts, packed.encodings, scores, strict=True)
            ]

        return decode


class QuestionAnswering(Pipeline):
    """{"question", "context"}, or the two as keywords, to {"score", "start", "end", "answer"}.

    doc_stride      tokens that two windows over a long document share
    max_answer_len  tokens in an answer
    """

    tasks = ("question-answering",)
    options = {"doc_stride": 128, "max_answer_len": 30}  # noqa: RUF012

    def __call__(self, inputs: object = None, *, question=None, context=None, **options) -> object:
        """Return the answer to one question; a list for several."""
        if inputs is not None:
            return super().__call__(inputs, **options)
        if isinstance(question, str) and isinstance(context, str):
            return super().__call__({"question": question, "context": context}, **options)
        questions = question if isinstance(question, list) else [question]
        contexts = context if isinstance(context, list) else [context] * len(questions)
        if isinstance(question, str):
            questions = questions * len(contexts)
        if len(questions) != len(contexts):
            raise IntformerError(f"{len(questions)} questions and {len(contexts)} contexts")
        rows = [{"question": q, "context": c} for q, c in zip(questions, contexts, strict=True)]
        return super().__call__(rows, **options)

    def row(self, value: object) -> Text:
        """A question and its context."""
        if not isinstance(value, dict) or value.keys() != {"question", "context"}:
            raise IntformerError("an input is not {'question': ..., 'context': ...}")
        return value["question"], value["context"]

    def decoder(self, settings: Mapping) -> Callable[[Packed, np.ndarray], list]:
        """The best span of each context."""
        return partial(self.edge.decode, max_answer=settings["max_answer_len"])


PIPELINES = {
    heads.SEQUENCE_CLASSIFICATION: TextClassification,
    heads.TOKEN_CLASSIFICATION: TokenClassification,
    heads.QUESTION_ANSWERING: QuestionAnswering,
}
