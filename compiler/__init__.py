"""intformer: transformer encoders as integer-only shared libraries. See README.md and docs/.

The names below are loaded when first used, so that the base install (numpy and tokenizers) can
import the package, load a library and run it without the compiler.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

PUBLIC = {  # name -> module that has it
    "import_model": "intformer.frontend",
    "compile": "intformer.pipeline",
    "load": "intformer.runtime",
    "predict": "intformer.runtime.edge",
    "embed": "intformer.offline",
    "run_server": "intformer.serve",
    "package": "intformer.ship",
    "triton_repository": "intformer.ship.triton",
    "verify": "intformer.proof.verify",
    "evaluate": "intformer.measure.accuracy",
    "train": "intformer.qat.training",
    "tune": "intformer.tuning.driver",
    "analyze": "intformer.analysis.study",
    "bench": "intformer.measure.bench",
    "TARGETS": "intformer.backends.targets",
    "IntformerError": "intformer.errors",
}
__all__ = [
    "TARGETS",
    "IntformerError",
    "analyze",
    "bench",
    "compile",
    "embed",
    "evaluate",
    "import_model",
    "load",
    "package",
    "predict",
    "run_server",
    "train",
    "triton_repository",
    "tune",
    "verify",
]

if TYPE_CHECKING:
    from intformer.analysis.study import analyze
    from intformer.backends.targets import TARGETS
    from intformer.errors import IntformerError
    from intformer.frontend import import_model
    from intformer.measure.accuracy import evaluate
    from intformer.measure.bench import bench
    from intformer.offline import embed
    from intformer.pipeline import compile
    from intformer.proof.verify import verify
    from intformer.qat.training import train
    from intformer.runtime import load
    from intformer.runtime.edge import predict
    from intformer.serve import run_server
    from intformer.ship import package
    from intformer.ship.triton import triton_repository
    from intformer.tuning.driver import tune


def __getattr__(name: str) -> object:
    """Load a public name on first use (PEP 562)."""
    if name not in PUBLIC:
        raise AttributeError(f"module 'intformer' has no attribute {name!r}")
    try:
        value = getattr(import_module(PUBLIC[name]), name)
    except ModuleNotFoundError as error:
        from intformer.errors import missing_extra

        raise missing_extra(error) from None
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Show the public names, loaded or not."""
    return sorted({*globals(), *__all__})
