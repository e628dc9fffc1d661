"""FP32 checkpoint plus calibration text -> IntModel: reads, observes, chooses, lowers."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from intformer.errors import CheckpointError
from intformer.frontend import calibration
from intformer.frontend.checkpoint import Checkpoint
from intformer.frontend.encoder import read_encoder
from intformer.ir.float_run import run
from intformer.ir.graph import Graph
from intformer.ir.heads import head_of
from intformer.ir.model import IntModel
from intformer.progress import progress
from intformer.quantize.methods import METHODS
from intformer.quantize.native import lower
from intformer.quantize.native.scales import equalisation, neutral, on_grid
from intformer.quantize.observe import Seen
from intformer.quantize.observe import observe as watch
from intformer.runtime.edge import Edge
from intformer.runtime.texts import read_texts

JUDGED_TOKENS = 1024  # of each kind, run through the integer reference for each method
SHORT, ORDINARY, LONGEST = "short", "ordinary", "longest"  # kinds of held-out text
UNJUDGED = "minmax"  # the method where nothing is held out: it clips nothing that was seen


def import_calibrated(
    checkpoint: Checkpoint, *, recipe=None, mode=None, head=None, calibrate=None, method=None
) -> IntModel:
    """Read an FP32 encoder and calibrate it (arguments: import_model)."""
    check_options(checkpoint, recipe, mode, method)
    observed = observe(checkpoint, head, calibrate)
    if observed.held:
        tried = METHODS if method is None and undecided(observed.graph) else (method or UNJUDGED,)
        model, scores = best(observed, tried)
        method = max(scores, key=lambda name: mean(scores[name]))
    else:  # no text is left to judge on
        method, scores = method or UNJUDGED, {}
        model = observed.lower(observed.factors(), method)
    model.meta["warnings"] += observed.split.warnings(observed.meta, observed.files)
    report = {
        "method": method,
        "held_out_snr_db": {
            name: {kind: round(one, 2) for kind, one in found.items()}
            for name, found in scores.items()
        },
        "held_out_sequences": len(observed.held),
        **observed.split.report(),
    }
    return completed(model, observed.meta, observed.files, observed.mask_id, calibration=report)


def undecided(graph: Graph) -> bool:
    """Say whether a method chooses any scale of an operand: the source may have them all."""
    edges = [edge for operand in graph.operands() for edge in operand.edges]
    attended = [node.inputs[0] for node in graph.of_kind("attention")]
    return not (
        all(on_grid(graph, edge) for edge in edges)
        and all("grids" in graph[edge].attrs for edge in attended)
    )


def completed(
    model: IntModel, meta: dict, files: dict[str, bytes], mask_id: int | None, **about
) -> IntModel:
    """Give a lowered model of recipe native what its directory says of it, and its files.

    meta   of the checkpoint
    about  what else to say: calibration, training
    """
    model.meta = {
        **joined_meta(meta, model),
        "mode": None,
        "mask_token_id": mask_id,
        "tokenizer": sorted(name for name in files if name != "config.json"),
        **about,
    }
    model.files = files
    return model


def joined_meta(meta: dict, model: IntModel) -> dict:
    """Return what a directory and its lowering say, the warnings of both."""
    return {**meta, **model.meta, "warnings": [*meta["warnings"], *model.meta["warnings"]]}


def check_options(checkpoint: Checkpoint, recipe, mode, method) -> None:
    """Refuse options that an FP32 encoder does not have."""
    if recipe not in (None, "native") or mode is not None:
        wrong = f"mode {mode!r}" if mode is not None else f"recipe {recipe!r}"
        raise CheckpointError(
            f"{wrong} needs an IBert checkpoint",
            where=str(checkpoint.path),
            hint="leave it out: calibrated models use recipe native",
        )
    if method not in (None, *METHODS):
        raise CheckpointError(
            f"calibration method {method!r} is not known", hint="one of " + ", ".join(METHODS)
        )


@dataclass(frozen=True, eq=False)
class Observed:
    """An FP32 encoder and what calibration text showed of it: all that `lower` needs.

    meta       the part of IntModel.meta that comes from the checkpoint
    files      that travel with a library
    seen       tap -> what it showed
    split      the sequences that set the ranges, and those that set none
    mask_id    of the tokenizer, for a masked-LM head
    """

    graph: Graph
    meta: dict
    files: dict[str, bytes]
    seen: dict[str, Seen]
    split: calibration.Split
    mask_id: int | None

    @property
    def fit(self) -> list[calibration.Sequence]:
        """The sequences that set the ranges."""
        return self.split.fit

    @property
    def held(self) -> list[calibration.Sequence]:
        """The sequences that set no range."""
        return self.split.held

    @property
    def sequences(self) -> int:
        """How many set the ranges."""
        return len(self.fit)

    @property
    def tokens(self) -> int:
        """How many tokens are in them."""
        return sum(len(ids) for ids, _ in self.fit)

    def judged(self) -> dict[str, list[dict]]:
        """Return kind -> batches that judge a method; only kinds of which there is text."""
        kinds = {SHORT: self.split.short, ORDINARY: self.held, LONGEST: self.split.longest}
        return {
            kind: calibration.batches(sequences, self.meta, self.mask_id, JUDGED_TOKENS)[:1]
            for kind, sequences in kinds.items()
            if sequences
        }

    def batches(self, limit: int = calibration.BATCH_TOKENS) -> list[dict]:
        """Return the held-out sequences as inputs of IntModel.run, about `limit` tokens each."""
        return calibration.batches(self.held, self.meta, self.mask_id, limit)

    def factors(self, equalised: bool = True) -> dict[str, np.ndarray]:
        """Return the channel factors of every weight; all 1 without equalisation."""
        if equalised:
            return equalisation(self.graph, self.seen)
        return neutral(self.graph)

    def lower(self, factors: dict, method: str, rounded: dict | None = None) -> IntModel:
        """Lower with one method (arguments: native.lower)."""
        origin = f"calibration: {method}, {self.sequences} sequences, {self.tokens} tokens"
        return lower(self.graph, self.seen, factors, method, origin, rounded)


def observe(checkpoint: Checkpoint, head: str | None, calibrate) -> Observed:
    """Read an FP32 encoder and run calibration text through it (arguments: import_model)."""
    graph, meta = read_encoder(checkpoint, head)
    if calibrate is None:
        raise CheckpointError(
            "no activation scale: this checkpoint holds none and nothing calibrates it",
            where=str(checkpoint.path),
            hint=calibration.HINT,
        )
    files = checkpoint.files()
    divided = split(calibrate, files, meta)
    mask_id = mask_token_id(files, meta)
    rare = calibration.batches(divided.unusual, meta, mask_id) if divided.unusual else []
    seen = watch(graph, calibration.batches(divided.fit, meta, mask_id), rare)
    return Observed(graph, meta, files, seen, divided, mask_id)


def import_uncalibrated(checkpoint: Checkpoint, head: str | None = None) -> IntModel:
    """Read an FP32 graph with scales from a few random tokens: right in form, wrong in numbers.

    For what depends on shapes alone, such as tuning.
    """
    graph, meta = read_encoder(checkpoint, head)
    count = min(16, meta["max_length"])
    ids = np.random.default_rng(0).integers(0, meta["vocab_size"], count, dtype=np.int32)
    (batch,) = calibration.batches([(ids, np.zeros(count, np.int32))], meta)
    seen = watch(graph, [batch])
    model = lower(graph, seen, neutral(graph), "minmax", "calibration: minmax, 16 random tokens")
    model.meta = joined_meta(meta, model)
    return model


def split(calibrate, files: dict[str, bytes], meta: dict) -> calibration.Split:
    """Return calibration data, in any of the forms import_model takes, divided."""
    where = ""
    if isinstance(calibrate, str | Path):
        where, calibrate = str(calibrate), read_texts(calibrate)
    items = [item if isinstance(item, tuple) else (item,) for item in calibrate]
    if not items:
        raise CheckpointError("calibration text is empty", where=where, hint=calibration.HINT)
    if all(isinstance(part, str) for item in items for part in item):
        return calibration.split_texts(items, files, meta)
    found = [(ids, types[0] if types else None) for ids, *types in items]
    return calibration.split_ids(
        [calibration.checked(*one, i, meta) for i, one in enumerate(found)]
    )


def mask_token_id(files: dict[str, bytes], meta: dict) -> int | None:
    """Return the tokenizer's mask token where the head fills masks; None where it has none."""
    wanted = head_of(meta).fills_masks and "tokenizer.json" in files
    return Edge(meta, files).mask_id if wanted else None


def snr_db(wanted: np.ndarray, got: np.ndarray) -> float:
    """Return the signal-to-noise ratio of `got` against `wanted` in dB."""
    noise = float(np.square(got - wanted).sum())
    return 10 * float(np.log10(max(float(np.square(wanted).sum()), 1e-30) / max(noise, 1e-30)))


def outputs(model: IntModel, inputs: list[dict]) -> np.ndarray:
    """Return the integer reference's output for all batches, in real units, float64."""
    rows = np.concatenate([model.run(batch)[model.output] for batch in inputs])
    return rows * np.float64(model.meta["output_scale"])


def float_outputs(graph: Graph, inputs: list[dict]) -> np.ndarray:
    """Return FP32's output for all batches."""
    return np.concatenate([run(graph, batch) for batch in inputs])


def best(observed: Observed, methods) -> tuple[IntModel, dict[str, dict[str, float]]]:
    """Lower with every method; return the model of the best, and method -> kind of text -> dB.

    The best has the largest mean over the kinds.
    """
    chosen, scores = None, {}
    factors, rounded = observed.factors(), {}
    judged = observed.judged()
    wanted = {kind: float_outputs(observed.graph, inputs) for kind, inputs in judged.items()}
    for method in progress(methods, "choosing the calibration method"):
        model = observed.lower(factors, method, rounded)
        scores[method] = {
            kind: snr_db(wanted[kind], outputs(model, inputs)) for kind, inputs in judged.items()
        }
        if mean(scores[method]) >= max(map(mean, scores.values())):
            chosen = model
    return chosen, scores


def mean(found: dict[str, float]) -> float:
    """Return the mean of what a method scored on each kind of text, dB."""
    return float(np.mean(list(found.values())))
