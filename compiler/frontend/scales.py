"""From observed ranges to scales: clipping methods and channel equalisation. Float, compile time.

A matmul operand x [rows, K] is stored as int8 with one scale per channel, s * f[k]; f moves into
the weight's columns (W * f), so the matmul is exact in f and costs nothing at run time. The
producer (LayerNorm, GELU, attention) applies s * f through its per-channel requantize table.
f is what SmoothQuant (arXiv 2211.10438) migrates, with its strength searched per matmul.
"""

import numpy as np

from intformer.frontend.calibration import Seen

METHODS = ("ema", "minmax", "percentile", "mse")
EMA_DECAY = 0.9
PERCENTILE = 99.99
CLIPS = np.linspace(1.0, 0.3, 29)  # fractions of the peak that "mse" tries
STRENGTHS = (0.25, 0.4, 0.5, 0.6, 0.75, 1.0)  # of equalisation; none is tried too
SEARCH_ROWS = 256
TINY = 1e-30


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
    return np.maximum(top, max(float(top.max()), TINY) * 1e-4)


def equalise(seen: list[Seen], weight: np.ndarray) -> np.ndarray:
    """Return f [K], positive: the channel factors with the least expected output error.

    seen    the operand at every place that multiplies with this weight (one, or one per
            repetition of a shared layer)
    weight  float32 [N, K]

    The error is predicted, not measured: operand rounding weighted by each column's energy, plus
    weight rounding (uniform, one 12th of a step squared) weighted by each channel's energy.
    """
    x = np.maximum.reduce([s.peaks.max(0) / max(float(s.peaks.max()), TINY) for s in seen])
    w = np.abs(weight).max(0)
    x = np.maximum(x, max(float(x.max()), TINY) * 1e-4)
    w = np.maximum(w, max(float(w.max()), TINY) * 1e-4)
    candidates = [np.ones_like(x)] + [x**a / w ** (1 - a) for a in STRENGTHS]
    columns = np.square(weight, dtype=np.float32).sum(0)

    def error(f: np.ndarray) -> float:
        steps = np.abs(weight * f).max(1) / 127
        total, importance = 0.0, columns * np.square(f)
        for s in seen:
            rows = s.rows[:SEARCH_ROWS] / f
            total += clip_error(rows, float((s.peaks / f).max()), importance)
            total += float(np.square(rows).mean(0).sum() * np.square(steps).sum() / 12)
        return total

    f = min(candidates, key=error)
    return (f / np.exp(np.log(f).mean())).astype(np.float64)
