"""A library that is served: texts of requests to integers, with the limits checked."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from contextvars import ContextVar
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from intformer.ir.heads import HEADS, Head, head_of
from intformer.runtime.edge import Edge, Packed, hf_positions
from intformer.runtime.library import Library
from intformer.serve.engine import Engine
from intformer.serve.faults import Fault
from intformer.serve.limits import Limits
from intformer.serve.metrics import Metrics

CHARACTERS = 250  # for each token of the longest text, at most; longer text is not looked at
Row = str | Sequence[str] | Sequence[int]  # a text, (text, pair), or token ids


@dataclass
class Work:
    """What a request has cost, for the access log."""

    model: str = "-"
    sequences: int = 0
    tokens: int = 0


work: ContextVar[Work] = ContextVar("work")
deadline: ContextVar[float] = ContextVar("deadline")


class Served:
    """A library, its tokenizer and its engine.

    name  by which requests ask for it
    """

    def __init__(
        self, name: str, library: Library, limits: Limits, metrics: Metrics, pool: Executor
    ):
        """Start the engine."""
        self.name, self.library, self.limits = name, library, limits
        self.edge, self.head = Edge.of(library), head_of(library.metadata)
        self.metrics, self._pool = metrics, pool
        self._whole = Tokenizer.from_str(self.edge.tokenizer.to_str())  # cuts nothing
        self._whole.no_truncation()
        self._whole.encode_special_tokens = self.edge.tokenizer.encode_special_tokens
        self.engine = Engine(library, limits.max_batch_tokens, metrics, name, limits.max_wait)

    async def outputs(
        self, rows: Sequence[Row], *, truncate: bool | None = None, prompt_name: str | None = None
    ) -> tuple[Packed, np.ndarray]:
        """Return what was encoded and the library's integers for it.

        truncate  cut what is too long; None: as the server is set
        """
        self.engine.check()  # before it costs anything
        cut = self.limits.auto_truncate if truncate is None else truncate
        began = time.monotonic()
        packed = await self.in_pool(self.encoded, rows, cut, prompt_name)
        done = time.monotonic()
        about = work.get()
        about.model, about.sequences = self.name, about.sequences + packed.cu_seqlens.size - 1
        about.tokens += packed.input_ids.size
        job = self.engine.submit(packed, deadline.get())
        output = await asyncio.wrap_future(job.future)
        end = time.monotonic()
        self.metrics.computed(done - began, job.started - job.queued, end - job.started)
        return packed, output

    async def in_pool(self, function, *args):
        """Run a function beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, function, *args)

    def encoded(self, rows: Sequence[Row], cut: bool, prompt_name: str | None) -> Packed:
        """Return sequences, one per row; raise Fault for what is empty, too much or too long."""
        self.check_count(len(rows))
        if any(not isinstance(row, str) and (not row or isinstance(row[0], int)) for row in rows):
            if prompt_name is not None:
                raise Fault("Validation", "token ids take no prompt")
            return self._of_ids(rows, cut)
        columns = list(zip(*((r,) if isinstance(r, str) else tuple(r) for r in rows), strict=True))
        for text in (text for column in columns for text in column):
            self.check_text(text, cut)
        packed = self.edge.encode(*columns, prompt_name=prompt_name)
        if self.head.answers_questions:  # documents that are too long become several windows
            self.check_count(packed.cu_seqlens.size - 1)
        elif not cut and any(e.overflowing for e in packed.encodings):
            raise Fault("Validation", f"a text has more than {self.edge.length} tokens")
        return packed

    def check_count(self, count: int) -> None:
        """Raise Fault unless a request may have so many inputs."""
        if not count:
            raise Fault("Empty", "`inputs` cannot be empty")
        most = self.limits.max_client_batch_size
        if count > most:
            raise Fault("Validation", f"batch size {count} > maximum allowed batch size {most}")

    def check_together(self, texts: Sequence[str]) -> None:
        """Raise Fault for more characters than can be looked at."""
        most = CHARACTERS * self.edge.length
        if sum(map(len, texts)) > most:
            raise Fault("Validation", f"the texts have more than {most} characters together")

    def check_text(self, text: str, cut: bool = False) -> None:
        """Raise Fault for a text that is empty, has a NUL or cannot be looked at."""
        if not text:
            raise Fault("Empty", "`inputs` cannot be empty")
        if "\0" in text:
            raise Fault("Validation", "a text has a NUL character")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Fault("Validation", "a text has a lone surrogate") from None
        most = CHARACTERS * self.edge.length
        if len(text) > most and not (cut or self.head.answers_questions):
            raise Fault("Validation", f"a text has more than {most} characters")

    def tokens(self, texts: Sequence[str], prompt: str, special: bool) -> list[list[dict]]:
        """Return what text-embeddings-inference says of the tokens of texts, uncut."""
        found = []
        for text in texts:
            whole = prompt + text
            encoding = self._whole.encode(whole, add_special_tokens=special)
            found.append(
                [
                    {
                        "id": number,
                        "text": token if is_special else whole[start:stop],
                        "special": bool(is_special),
                        "start": None if is_special else start,
                        "stop": None if is_special else stop,
                    }
                    for number, token, is_special, (start, stop) in zip(
                        encoding.ids,
                        encoding.tokens,
                        encoding.special_tokens_mask,
                        encoding.offsets,
                        strict=True,
                    )
                ]
            )
        return found

    def texts(self, rows: Sequence[Sequence[int]], skip_special: bool) -> list[str]:
        """Return the texts of token ids."""
        return [self.edge.tokenizer.decode(row, skip_special_tokens=skip_special) for row in rows]

    def prompt_of(self, name: str | None) -> str:
        """Return the text of a prompt, see Edge.prompt."""
        return self.edge.prompt(None, name)

    def _of_ids(self, rows: Sequence[Sequence[int]], cut: bool) -> Packed:
        """Pack token ids as they are: what /tokenize returns has the answer of the text."""
        about = self.library.metadata
        sequences = []
        for row in rows:
            if isinstance(row, str) or not row:
                raise Fault("Validation", "token ids and texts, or no ids, in one request")
            if not 0 <= min(row) <= max(row) < about["vocab_size"]:
                raise Fault("Validation", f"token ids are 0 to {about['vocab_size'] - 1}")
            if len(row) > self.edge.length and not cut:
                raise Fault("Validation", f"more than {self.edge.length} token ids")
            sequences.append(np.array(row[: self.edge.length], np.int32))
        rule, pad = about["position_rule"], about["pad_token_id"]
        flat = np.concatenate(sequences)
        return Packed(
            input_ids=flat,
            cu_seqlens=np.cumsum([0, *map(len, sequences)]).astype(np.int32),
            token_type_ids=np.zeros_like(flat),
            position_ids=np.concatenate([hf_positions(s[None], rule, pad)[0] for s in sequences]),
        )

    def close(self) -> None:
        """Finish what was taken."""
        self.engine.close()


class Models:
    """The served libraries by name."""

    def __init__(self, served: Sequence[Served]):
        """Keep them in order."""
        self.all = {one.name: one for one in served}

    @property
    def pressed(self) -> bool:
        """Whether every library has more to do than may wait."""
        return all(one.engine.pressed for one in self.all.values())

    def named(self, name: str) -> Served:
        """Return a library; raise Fault for a name that is not served."""
        if name not in self.all:
            raise Fault("NotFound", f"no such model; served: {', '.join(self.all)}")
        return self.all[name]

    def any(self, name: str | None) -> Served:
        """Return the library that a request asks for, or the only one."""
        return self.get(name, "a model", *HEADS.values())

    def get(self, name: str | None, what: str, *heads: Head) -> Served:
        """Return the library that a request asks for, or the only one that has one of these heads.

        what  such a model, for errors
        """
        fit = [one for one in self.all.values() if one.head in heads]
        if name is not None:
            one = self.named(name)
            if one not in fit:
                raise Fault("Backend", f"model is not {what}")
            return one
        if not fit:
            raise Fault("Backend", f"model is not {what}")
        if len(fit) > 1:
            names = ", ".join(one.name for one in fit)
            raise Fault("Validation", f"several models fit; pass `model`, one of {names}")
        return fit[0]
