"""Checkpoint and calibration text -> Analysis: everything the report shows, as plain data."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from intformer.analysis.costs import costs, run
from intformer.analysis.rows import Row, activation, weight
from intformer.analysis.tensors import compare, to_db
from intformer.analysis.weights import weights
from intformer.errors import CheckpointError, IntformerError
from intformer.frontend import Q8BERT_FILE, calibrated, calibration, opened
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.encoder import read_encoder
from intformer.frontend.ibert import MODES, import_ibert
from intformer.frontend.onnx.checkpoint import OnnxCheckpoint
from intformer.frontend.trained import import_trained, is_integer, is_trained
from intformer.ir.graph import Graph
from intformer.ir.heads import head_of
from intformer.ir.model import IntModel
from intformer.measure.accuracy import pearson
from intformer.progress import progress as bar
from intformer.quantize.methods import METHODS
from intformer.runtime.texts import read_texts

BATCH_TOKENS = 512  # run at a time: every value of the model is kept for one batch
JUDGED_TOKENS = 2048  # of the held-out text, compared tensor by tensor
COST_TOKENS = 512  # of these, run once for every tensor

LEARNED = "no --calibrate"
QAT_STEPS = 60  # of a training that is tried as a remedy

Say = Callable[[str], None]


@dataclass
class Remedy:
    """One way to choose scales, judged on held-out text.

    name       what it is
    options    of `intformer compile`; None: it has none for this
    snr_db     of the integer program's output against FP32
    agreement  see Analysis
    chosen     the one that the rest of the report is about
    steps      of training behind it
    """

    name: str
    options: str | None
    snr_db: float
    agreement: float
    chosen: bool
    steps: int = 0


@dataclass
class Analysis:
    """What `intformer analyze` found. SNRs are in dB; every one is measured on held-out text.

    source, command  as given
    model            family, head, recipe, mode, layers, hidden, ... of IntModel.meta
    choice           what the scales come from: the method, or the mode of an IBert checkpoint
    sequences, tokens            that set ranges
    held_sequences, held_tokens  that everything is measured on
    snr_db           of the integer program's output
    agreement        of the integer program with FP32, 0..1 and what it counts
    error            root mean square error of the output over that of FP32's output
    rows             every tensor, in the order of execution
    parts            kind of tensor -> share of the sum of all tensors' errors at the output
    cost_db          on cost_tokens of the held-out tokens: "sum" of the tensors' errors, FP32 with
                     all tensors "rounded" at once, and the integer "program"
    remedies         the best first
    untried          remedy -> why it could not be tried
    warnings         of the import
    """

    source: str
    command: str
    model: dict
    choice: str
    sequences: int
    tokens: int
    held_sequences: int
    held_tokens: int
    snr_db: float
    agreement: float
    agreement_of: str
    error: float
    rows: list[Row]
    parts: dict[str, float]
    cost_tokens: int
    cost_db: dict[str, float | None]
    remedies: list[Remedy]
    untried: dict[str, str]
    warnings: list[str]

    def ranked(self) -> list[Row]:
        """Return the tensors, the one that costs most at the output first."""
        return sorted(self.rows, key=lambda row: -row.share)

    def to_json(self) -> dict:
        """Return plain data; the tensors ranked."""
        return {"ok": True, **asdict(self), "rows": [asdict(row) for row in self.ranked()]}


@dataclass
class Subject:
    """What is compared: a float encoder, its integer program, held-out inputs.

    fit     sequences that set ranges
    inputs  held-out ones
    """

    graph: Graph
    model: IntModel
    fit: list[calibration.Sequence]
    inputs: list[dict]
    choice: str
    remedies: list[Remedy]
    untried: dict[str, str] = field(default_factory=dict)


def analyze(
    source: str | Path,
    calibrate: str | Path | Sequence,
    output: str | Path | None = None,
    *,
    method: str | None = None,
    mode: str | None = None,
    head: str | None = None,
    tokenizer: str | Path | None = None,
    rows: int | None = None,
    qat_steps: int = QAT_STEPS,
    command: str = "",
    progress: Say = lambda what: None,
) -> Analysis:
    """Compare FP32 and integers on held-out calibration text; optionally write an HTML report.

    source, calibrate, method, mode, head, tokenizer  as import_model takes them
    output    HTML report to write; None: no report
    rows      of the calibration text to take, evenly spread; None: what import_model takes
    qat_steps of a training that is tried as a remedy, see try_training; 0: none
    command   to name in the report
    progress  called with what starts now
    Raises CheckpointError: an unsuitable source, or too little text; IntformerError: an output
    that cannot be written.
    """
    if output is not None:
        from intformer.analysis import report

        report.check(Path(output))
    checkpoint = opened(source, tokenizer=tokenizer)
    if checkpoint.file(Q8BERT_FILE):
        raise CheckpointError(
            "a Q8BERT directory holds integers and no FP32 weights to compare them with",
            where=str(checkpoint.path / Q8BERT_FILE),
            hint="analyze the FP32 model that it was trained from",
        )
    texts = read_texts(calibrate) if isinstance(calibrate, str | Path) else calibrate
    texts = list(texts)
    if rows is not None and rows < len(texts):
        texts = [texts[i] for i in np.linspace(0, len(texts) - 1, rows).astype(int)]
    if len(texts) < calibration.HELD_OUT:
        raise too_few(len(texts))
    progress("calibrating, and judging every method on held-out text")
    kind = None if isinstance(checkpoint, OnnxCheckpoint) else checkpoint.setting("model_type", str)
    read = ibert if kind == "ibert" else fp32
    subject = read(checkpoint, texts, method, mode, head)
    if qat_steps:
        progress(f"training with quantization for {qat_steps} steps")
        try_training(checkpoint, subject, qat_steps)
    progress("comparing tensor by tensor")
    found = measured(subject, str(source), command, progress)
    if output is not None:
        report.write(found, Path(output))
    return found


def too_few(count: int) -> CheckpointError:
    """Return the error for text of which nothing could be held out."""
    return CheckpointError(
        f"{count} different rows of calibration text, {calibration.HELD_OUT} are the least: every "
        f"{calibration.HELD_OUT}th is held out to judge on",
        hint="give more text, or a larger --rows",
    )


def fp32(checkpoint: Checkpoint, texts: list, method, mode, head) -> Subject:
    """Calibrate a float encoder in every way; the subject is what `compile` would take."""
    calibrated.check_options(checkpoint, None, mode, method)
    seen = calibrated.observe(checkpoint, head, texts)
    if not seen.held:
        raise too_few(seen.split.distinct)
    inputs = judged(seen.batches(BATCH_TOKENS))
    wanted = calibrated.float_outputs(seen.graph, inputs)
    remedies, models = [], {}
    ways = [(equalised, m) for equalised in (True, False) for m in METHODS]
    factors = {equalised: seen.factors(equalised) for equalised in (True, False)}
    rounded: dict[bool, dict] = {True: {}, False: {}}
    for equalised, name in bar(ways, "trying calibration methods"):
        model = seen.lower(factors[equalised], name, rounded[equalised])
        model.meta = calibrated.joined_meta(seen.meta, model)
        title = f"{name}, channels {'equalised' if equalised else 'not equalised'}"
        options = f"--method {name}" if equalised else None
        remedies.append(remedy(title, options, seen.meta, inputs, wanted, model))
        if equalised:
            models[name] = model, remedies[-1]
    ranged = not isinstance(checkpoint, OnnxCheckpoint) and is_trained(checkpoint)
    if ranged and is_integer(checkpoint):
        model = import_trained(checkpoint, head=head)
        title = "ranges learned in training"
        remedies.append(remedy(title, LEARNED, seen.meta, inputs, wanted, model))
        models[None] = model, remedies[-1]  # what `compile` takes unless told to calibrate
    elif method is None:  # learned ranges of float functions are no integer program's
        method = max(models, key=lambda name: models[name][1].snr_db)
    model, chosen = models[method]
    chosen.chosen = True
    return Subject(seen.graph, model, seen.fit, inputs, chosen.name, remedies)


def ibert(checkpoint: Checkpoint, texts: list, method, mode, head) -> Subject:
    """Import an IBert checkpoint in both modes; its ranges come from training."""
    mode = mode or MODES[0]
    import_ibert(checkpoint, mode=mode, head=head, method=method)  # refuses what cannot be
    graph, meta = read_encoder(checkpoint, head)
    files = checkpoint.files()
    split = calibrated.split(texts, files, meta)
    if not split.held:
        raise too_few(split.distinct)
    mask_id = calibrated.mask_token_id(files, meta)
    inputs = judged(calibration.batches(split.held, meta, mask_id, BATCH_TOKENS))
    wanted = calibrated.float_outputs(graph, inputs)
    remedies, found = [], None
    for each in bar(MODES, "trying both modes"):
        model = import_ibert(checkpoint, mode=each, head=head, calibrate=split.fit)
        title, options = f"scales of the checkpoint, mode {each}", f"--mode {each}"
        remedies.append(remedy(title, options, meta, inputs, wanted, model))
        if each == mode:
            found, remedies[-1].chosen = model, True
    return Subject(graph, found, split.fit, inputs, f"mode {mode}", remedies)


def try_training(checkpoint: Checkpoint, subject: Subject, steps: int) -> None:
    """Add a remedy: train quantized, without labels, to give FP32's outputs on the text of ranges.

    It is judged as the others are, against FP32 as it was; no sequence that it is judged on is
    trained on. Where it cannot be, subject.untried says why.
    """
    from intformer.qat.self_distill import self_distilled

    title = f"QAT without labels, {steps} steps"
    meta = subject.model.meta
    try:
        fit = subject.fit  # no sequence of it is held out
        model = self_distilled(checkpoint.path, subject.graph, meta, fit, steps).int_model()
        wanted = calibrated.float_outputs(subject.graph, subject.inputs)
        found = remedy(title, None, meta, subject.inputs, wanted, model)
    except (IntformerError, OSError, ValueError, RuntimeError) as error:  # transformers', torch's
        said = str(error).strip() or type(error).__name__
        subject.untried[title] = getattr(error, "what", said.splitlines()[0])
        return
    subject.remedies.append(replace(found, steps=steps))


def judged(inputs: list[dict]) -> list[dict]:
    """Return the first JUDGED_TOKENS or so of held-out inputs."""
    return taken(inputs, JUDGED_TOKENS)


def taken(inputs: list[dict], tokens: int) -> list[dict]:
    """Return as many batches from the front as `tokens` hold, one at least."""
    ends = np.cumsum([len(batch["input_ids"]) for batch in inputs])
    return inputs[: max(1, int((ends <= tokens).sum()))]


def remedy(name: str, options: str | None, meta: dict, inputs, wanted, model: IntModel) -> Remedy:
    """Judge one integer model against FP32's output."""
    got = calibrated.outputs(model, inputs)
    share, _ = agreement(meta, inputs, wanted, got)
    return Remedy(name, options, calibrated.snr_db(wanted, got), share, False)


def agreement(meta: dict, inputs: list[dict], wanted, got) -> tuple[float, str]:
    """Return how far two outputs [rows, C] say the same, 0..1, and what that counts."""
    head = head_of(meta)
    if head.answers_questions:
        lengths = np.concatenate([np.diff(batch["cu_seqlens"]) for batch in inputs])
        ends = pairwise(np.cumsum([0, *lengths]).tolist())
        same = [(wanted[a:b].argmax(0) == got[a:b].argmax(0)).all() for a, b in ends]
        return float(np.mean(same)), "answers with the same start and end"
    if head.outputs == "vectors":
        norms = np.sqrt(np.square(wanted).sum(1) * np.square(got).sum(1))
        return float(np.mean((wanted * got).sum(1) / np.maximum(norms, 1e-30))), "mean cosine"
    if wanted.shape[1] == 1:
        return pearson(wanted[:, 0].astype(np.float64), got[:, 0]), "correlation of the scores"
    what = "tokens" if head.outputs == "words" else "labels"
    return float(np.mean(wanted.argmax(1) == got.argmax(1))), f"same {what}"


def measured(subject: Subject, source: str, command: str, progress: Say) -> Analysis:
    """Compare tensor by tensor and price every tensor at the output."""
    graph, model, inputs = subject.graph, subject.model, subject.inputs
    tallies, real, integers = compare(graph, model, inputs)
    got = integers * np.float64(model.meta["output_scale"])
    snr = calibrated.snr_db(real, got)
    share, counted = agreement(model.meta, inputs, real, got)

    progress("what each tensor costs at the output")
    stored, some = weights(graph, model), taken(inputs, COST_TOKENS)
    noise, rounded, signal = costs(graph, some, tallies, stored)
    total = sum(noise.values())
    rows = [weight(one, noise[one.name + ".weight"], total, signal) for one in stored]
    rows += [activation(one, noise[one.watch.name], total, signal) for one in tallies]
    rows = in_order(rows, model)
    parts: dict[str, float] = {}
    for row in rows:
        parts[row.part] = parts.get(row.part, 0.0) + row.share
    count = len(run(graph, some, []))
    left = float(np.square(got[:count] - real[:count]).sum())
    return Analysis(
        source=source,
        command=command,
        model={
            key: model.meta.get(key)
            for key in ("family", "head", "recipe", "mode", "layers", "hidden", "heads", "ffn")
        },
        choice=subject.choice,
        sequences=len(subject.fit),
        tokens=sum(len(ids) for ids, _ in subject.fit),
        held_sequences=sum(len(batch["cu_seqlens"]) - 1 for batch in inputs),
        held_tokens=sum(len(batch["input_ids"]) for batch in inputs),
        snr_db=snr,
        agreement=share,
        agreement_of=counted,
        error=10 ** (-snr / 20),
        rows=rows,
        parts=dict(sorted(parts.items(), key=lambda item: -item[1])),
        cost_tokens=sum(len(batch["input_ids"]) for batch in some),
        cost_db={
            "sum": to_db(signal, total),
            "rounded": to_db(signal, rounded),
            "program": to_db(signal, left),
        },
        remedies=sorted(subject.remedies, key=lambda each: -each.snr_db),
        untried=subject.untried,
        warnings=list(model.meta.get("warnings", ())),
    )


def in_order(rows: list[Row], model: IntModel) -> list[Row]:
    """Return the rows where they are executed: a weight before what it makes."""
    at = {}
    for i, node in enumerate(model.nodes):
        for name in (*node.inputs, *node.outputs):
            at.setdefault(name, i)
        for name in node.outputs:
            at[name] = i + 0.5
    return sorted(rows, key=lambda row: at[row.name.partition(" ")[0]])
