"""Which candidate is measured next: evolution over the decisions, judged by an XGBoost model.

Every kernel's first candidate is the default rule. Then the best measured ones are changed in one
decision each, random ones are added, the cost model ranks them all and the first few are measured,
some of them at random. A space is small enough to remember what was measured: never a candidate
twice, a resumed run included.
"""

import math
import random

import numpy as np
from tvm.ir.utils import derived_object
from tvm.runtime import tensor
from tvm.s_tir.meta_schedule.cost_model import XGBModel
from tvm.s_tir.meta_schedule.feature_extractor import PyFeatureExtractor
from tvm.s_tir.meta_schedule.search_strategy import MeasureCandidate, PySearchStrategy

from intformer.passes.form import Decisions
from intformer.tuning.records import FAILED, Key
from intformer.tuning.workload import candidate, decided, meant

POPULATION = 128  # candidates that the cost model ranks for one batch
ELITE = 4  # measured candidates that are changed
GREEDY = 0.75  # share of a batch that the cost model picks, the rest is random
WARM_UP = 48  # results before the cost model is asked
FEATURE_NAMES = (
    *("tile", "steps", "columns", "order", "chunk", "prefetch"),
    *("unroll", "rows", "keys", "heads"),
    *("depth", "warps"),
)


def key(decisions: Decisions) -> Key:
    """Return decisions as something to put in sets."""
    return tuple(sorted(decisions.items()))


@derived_object
class Search(PySearchStrategy):
    """Proposes candidates of one task.

    space     what may be decided
    default   what comes first
    measured  decisions -> seconds of an earlier run
    seed      of the random choices
    """

    def __init__(
        self,
        space: dict[str, list[int]],
        default: Decisions,
        measured: dict[Key, float],
        seed: int,
    ):
        """Start from what was measured before."""
        super().__init__()
        self.space, self.default, self.seconds = space, default, dict(measured)
        self.random = random.Random(seed)
        self.size = math.prod(len(values) for values in space.values())

    def _initialize_with_tune_context(self, context) -> None:
        self.context = context

    def pre_tuning(self, max_trials, num_trials_per_iter, design_spaces, database, cost_model):
        """Remember how many to propose at a time."""
        self.batch, self.model = num_trials_per_iter, cost_model
        self.asked = set(self.seconds)

    def post_tuning(self) -> None:
        """Nothing is held."""

    def generate_measure_candidates(self):
        """Return the next batch, None when every candidate was measured."""
        chosen = self._propose()
        if not chosen:
            return None
        self.asked |= {key(decisions) for decisions in chosen}
        return [self._candidate(decisions) for decisions in chosen]

    def notify_runner_results(self, measure_candidates, results) -> None:
        """Remember the seconds."""
        for given, result in zip(measure_candidates, results, strict=True):
            times = [float(x) for x in result.run_secs] if result.run_secs else [FAILED]
            self.seconds[key(decided(given.sch))] = float(np.mean(times))

    def clone(self):
        """Return a search that starts anew."""
        return Search(self.space, self.default, self.seconds, self.random.random())

    def _candidate(self, decisions: Decisions) -> MeasureCandidate:
        return MeasureCandidate(candidate(self.context.mod, self.space, decisions), [])

    def _propose(self) -> list[Decisions]:
        first = key(self.default)
        found = {} if first in self.asked else {first: self.default}
        if not self.space or len(self.asked) + len(found) >= self.size:
            return list(found.values())
        pool = self._population(self.asked | set(found))
        scores = self.model.predict(self.context, [self._candidate(d) for d in pool])
        ranked = [pool[i] for i in np.argsort(-scores, kind="stable")]
        while ranked and len(found) < self.batch:
            greedy = self.random.random() < GREEDY
            picked = ranked.pop(0 if greedy else self.random.randrange(len(ranked)))
            found[key(picked)] = picked
        return list(found.values())

    def _population(self, known: set[Key]) -> list[Decisions]:
        """Return candidates that are not known: neighbours of the best, then random ones."""
        pool: dict[Key, Decisions] = {}
        elite = sorted((s, k) for k, s in self.seconds.items() if s < FAILED)[:ELITE]
        for _, best in elite:
            for name, values in self.space.items():
                for value in values:
                    near = {**dict(best), name: value}
                    if key(near) not in known:
                        pool[key(near)] = near
        rest = self.size - len(known)
        for _ in range(20 * POPULATION):
            if len(pool) >= min(POPULATION, rest):
                break
            some = {name: self.random.choice(values) for name, values in self.space.items()}
            if key(some) not in known:
                pool[key(some)] = some
        return list(pool.values())


@derived_object
class Features(PyFeatureExtractor):
    """What the cost model sees of a candidate: its decisions and the size of its task."""

    def extract_from(self, context, candidates):
        """Return one row of numbers per candidate."""
        form, rows = meant(context.mod)
        size = task_features(form.data, rows)
        return [
            tensor(np.array([decision_features(decided(c.sch)) + size], np.float64))
            for c in candidates
        ]


def decision_features(decisions: Decisions) -> list[float]:
    """Return the decisions by name; -1 where a kernel has no such decision."""
    rows, vectors = divmod(decisions.get("tile", 0), 10)
    return [
        *(float(decisions.get(name, -1)) for name in FEATURE_NAMES),
        float(rows),
        float(vectors),
        float(rows * vectors),
        float(vectors * decisions.get("columns", 0)),
    ]


def task_features(form: dict, rows: int) -> list[float]:
    """Return sizes of a task: ops; log2 of rows, bytes of constants, of a row, of all rows."""
    fixed, row = 0, 0
    for shape, dtype in form["tensors"]:
        size = np.dtype(dtype).itemsize
        if any(isinstance(extent, str) for extent in shape):
            row += size * math.prod(extent for extent in shape if not isinstance(extent, str))
        else:
            fixed += size * math.prod(shape)
    return [float(len(form["calls"])), *(math.log2(n + 1) for n in (rows, fixed, row, row * rows))]


def cost_model(seed: int) -> XGBModel:
    """Return an untrained XGBoost model over our features, one for all tasks."""
    from tvm.s_tir.meta_schedule.cost_model.xgb_model import XGBConfig

    return XGBModel(
        extractor=Features(),
        config=XGBConfig(nthread=1, seed=seed),
        num_warmup_samples=WARM_UP,
        verbose_eval=0,
    )
