"""From observed ranges to scales: clipping methods and channel equalisation. Float, compile time.

A matmul operand x [rows, K] is stored as int8 with one scale per channel, s * f[k]; f moves into
the weight's columns (W * f), so the matmul is exact in f and costs nothing at run time. The
producer (LayerNorm, GELU, attention) applies s * f through its per-channel requantize table.
f is what SmoothQuant (arXiv 2211.10438) migrates, with its strength searched per matmul.
"""

import numpy as np

from intformer.quantize.observe import Seen

METHODS = ("ema", "minmax", "percentile", "mse")
EMA_DECAY = 0.9
PERCENTILE = 99.99
CLIPS = np.linspace(1.0, 0.3, 29)  # fractions of the peak that "mse" tries
STRENGTHS = (0.5, 0.65, 0.75, 0.85, 0.92, 1.0)  # of equalisation; none is tried too
SEARCH_ROWS = 128
BLOCK_ROWS = 32  # of a weight at a time: temporaries stay in the second-level cache
SMALLEST = 1e-4  # of the largest channel: what a dead channel is taken for
TINY = 1e-20  # stands for 0 where something is divided by it


def ema(peaks: np.ndarray) -> np.ndarray:
    """Return the bias-corrected exponential moving average over batches, [batches, ...] -> [...].

    m <- EMA_DECAY * m + (1 - EMA_DECAY) * peak, divided by 1 - EMA_DECAY^batches (Adam's
    correction), so that few batches are not pulled to zero.
    """
    n = len(peaks)
    weights = (1 - EMA_DECAY) * EMA_DECAY ** np.arange(n - 1, -1, -1) / (1 - EMA_DECAY**n)
    return np.tensordot(weights, peaks, axes=1)


def clip_error(rows: np.ndarray, peak: float, importance: np.ndarray | float = 1.0) -> float:
    """Return the importance-weighted squared error of int8 rounding with this peak."""
    scale = max(peak, TINY) / 127
    error = np.clip(np.rint(rows / scale), -127, 127) * scale - rows
    return float((np.square(error).mean(0) * importance).sum())


def peak(seen: Seen, method: str, f=1.0, importance: np.ndarray | float = 1.0) -> float:
    """Return the |x / f| that int8's 127 stands for, over all channels.

    f           the equalisation of each channel, [K] or 1
    importance  what an error in each channel of x / f costs ("mse" only), [K] or 1
    """
    top = float((seen.peaks / f).max())
    if method == "ema":
        return float(ema((seen.peaks / f).max(1)))
    if method == "percentile":
        return float(np.percentile(np.abs(seen.rows / f), PERCENTILE)) or top
    if method == "mse":
        rows = seen.rows[:SEARCH_ROWS] / f
        errors = [clip_error(rows, top * c, importance) for c in CLIPS]
        return float(top * CLIPS[int(np.argmin(errors))])
    return top


def row_peaks(weight: np.ndarray, f: np.ndarray | float) -> np.ndarray:
    """Return the largest |weight[n, k] f[k]| of every row, float64 [N]."""
    return np.concatenate([np.abs(weight[r] * f).max(1) for r in _blocks(weight)])


def round_rows(weight: np.ndarray, f: np.ndarray | float, steps: np.ndarray, dtype) -> np.ndarray:
    """Return weight[n, k] f[k] / steps[n], rounded to integers of `dtype`, [N, K]."""
    out = np.empty(weight.shape, dtype)
    for r in _blocks(weight):
        out[r] = np.rint(weight[r] * f / steps[r, None])
    return out


def _blocks(weight: np.ndarray) -> list[slice]:
    return [slice(i, i + BLOCK_ROWS) for i in range(0, len(weight), BLOCK_ROWS)]


def channel_peaks(seen: Seen, method: str) -> np.ndarray:
    """Return the |x| that 127 stands for in each channel, [C], all positive."""
    top = seen.peaks.max(0)
    if method == "ema":
        top = ema(seen.peaks)
    if method == "percentile":
        top = np.percentile(np.abs(seen.rows), PERCENTILE, axis=0)
    if method == "mse":
        rows, best = seen.rows[:SEARCH_ROWS], np.full(top.shape, np.inf)
        highest = top
        for c in CLIPS:
            scale = np.maximum(highest * c, TINY) / 127
            error = np.square(np.clip(np.rint(rows / scale), -127, 127) * scale - rows).mean(0)
            top = np.where(error < best, highest * c, top)
            best = np.minimum(best, error)
    return np.maximum(top, max(float(top.max()), TINY) * SMALLEST)


def equalise(seen: list[Seen], weight: np.ndarray) -> np.ndarray:
    """Return f [K], positive: the channel factors with the least error of the matmul's output.

    seen    the operand at every place that multiplies with this weight (one, or one per
            repetition of a shared layer)
    weight  float32 [N, K]

    f = peak_x^a / peak_w^(1 - a), and a is searched: both operands are rounded to int8 as they will
    be and the error of the product is measured on sampled rows.
    """
    x = np.maximum.reduce([s.peaks.max(0) / max(float(s.peaks.max()), TINY) for s in seen])
    w = np.abs(weight).max(0) / max(float(np.abs(weight).max()), TINY)
    x, w = np.maximum(x, SMALLEST), np.maximum(w, SMALLEST)
    candidates = [np.ones_like(x)] + [x**a / w ** (1 - a) for a in STRENGTHS]
    wanted = [s.rows[:SEARCH_ROWS] @ weight.T for s in seen]
    energy = [max(float(np.square(want).sum()), TINY) for want in wanted]

    def error(f: np.ndarray) -> float:
        steps = np.maximum(row_peaks(weight, f), TINY) / 127
        rounded = round_rows(weight, f, steps, np.float32).T
        total = 0.0
        for s, want, whole in zip(seen, wanted, energy, strict=True):
            step = max(float((s.peaks / f).max()), TINY) / 127
            rows = np.rint(s.rows[:SEARCH_ROWS] / (f * step))
            found = (rows @ rounded) * (steps * step)
            total += float(np.square(found - want).sum()) / whole
        return total

    f = min(candidates, key=error)
    return (f / np.exp(np.log(f).mean())).astype(np.float64)
