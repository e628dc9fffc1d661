"""How candidates for a family of chips are built and measured."""

from collections.abc import Callable
from dataclasses import dataclass

from intformer.backends.backend import Backend, TargetSpec
from intformer.backends.cpu.host import cpu_name
from intformer.errors import IntformerError
from intformer.tuning import board, build, gpu, measure
from intformer.tuning.board import Board
from intformer.tuning.remote import Remote


@dataclass(frozen=True)
class Way:
    """Functions of one way.

    ready     (target, remote, timeout) -> what provenance says of the machine; IntformerError where
              it cannot run the target
    build     (form JSON, target, decisions, folder) -> path of the compiled candidate
    here      (library, case, symbol, threads) -> seconds
    there     the same with (remote, timeout)
    in_turns  (libraries, case, symbol, threads) -> seconds of each in every turn
    Where all is measured elsewhere, here and in_turns are None.
    """

    ready: Callable
    build: Callable
    here: Callable | None
    there: Callable
    in_turns: Callable | None


def _cpu_ready(spec: TargetSpec, remote: Remote | None, timeout: float) -> dict:
    if remote:
        remote.open(timeout)
    elif missing := spec.missing_here():
        raise IntformerError(
            f"this CPU lacks {missing[0]}, which target {spec.name} needs",
            where="--target",
            hint="measure on another machine with --via or --rpc",
        )
    return {}


ON_CPU = Way(_cpu_ready, build.build, measure.here, measure.there, measure.in_turns)
ON_BOARD = Way(board.ready, board.build, None, board.there, None)
ON_DEVICE = Way(gpu.ready, gpu.build, gpu.here, gpu.there, gpu.in_turns)

SERVED = (gpu.about, gpu.holds, gpu.measured)  # what an RPC server has beside TVM's own functions


def way_for(backend: Backend, remote: Remote | Board | None) -> Way:
    """Return the way of a family on a machine."""
    if isinstance(remote, Board):
        return ON_BOARD
    return ON_DEVICE if backend.launched else ON_CPU


def machine(remote: Remote | Board | None) -> str:
    """Return what provenance says of the CPU."""
    return remote.about if remote else cpu_name()
