"""The C of a static library: the templates of bare/, filled in for one model."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import intformer
from intformer.ir.model import INPUTS, IntModel
from intformer.ir.plan import Buffer, Plan, Step, symbol
from intformer.link import build as linker
from intformer.link.arena import Arena

if TYPE_CHECKING:
    from intformer.backends.cpu.plain import PlainKernel

TEMPLATES = Path(__file__).parent / "bare"
PUBLIC = ("run", "output_size", "message")  # functions, after NAME_
COUNTS = {"token": "tokens", "sequence": "sequences", "position": "positions"}  # of compute()
FIELDS = {"token": "num_tokens", "sequence": "batch", "position": "num_positions"}
EXAMPLE_TOKENS = 4


def sources(
    plan: Plan,
    kernels: "Mapping[str, PlainKernel]",
    model: IntModel,
    arena: Arena,
    weights: Mapping[str, int],
    *,
    name: str,
    target: str,
    archive: str,
) -> dict[str, str]:
    """Return the header, the example and model.c by file name.

    weights  constant -> its first byte
    name     C identifier that all names start with
    """
    checked, output, limits = (
        linker.limits(plan, model.meta),
        plan.buffers[plan.output],
        arena.limits,
    )
    scale = model.meta.get("output_scale")
    facts = {
        **{"name": name, "NAME": name.upper(), "target": target, "archive": archive},
        "version": intformer.__version__,
        "scale": f" (real value = number * {scale!r})" if isinstance(scale, float) else "",
        "max_tokens": limits.token,
        "max_sequences": limits.sequence,
        "max_positions": limits.position,
        "max_length": min(checked["max_length"], limits.token),
        "channels": output.channels,
        "row": {"position": "position that is asked for"}.get(output.rows, output.rows),
        "rows": FIELDS[output.rows],
        "max_output": vars(limits)[output.rows] * output.channels,
        "arena_bytes": arena.bytes,
        "align": arena.align,
        "last_token": checked["vocab_size"] - 1,
        "last_type": checked["type_vocab_size"] - 1 if "token_type_ids" in plan.inputs else 0,
        "last_position_id": checked["positions"] - 1,
        "first_position": checked["first_position"],
        "input_at": ", ".join(str(arena.at[tensor]) for tensor in INPUTS),
        "output_at": arena.at[plan.output],
        **_output(output),
        **_steps(plan, kernels, arena, weights, name),
        **_sample(checked, arena),
    }
    files = {f"{name}.h": "model.h", f"{name}_example.c": "example.c", "model.c": "model.c"}
    return {file: filled(template, facts) for file, template in files.items()}


def filled(template: str, facts: Mapping[str, object]) -> str:
    """Return a file of bare/ with its @words@ replaced."""
    text = (TEMPLATES / template).read_text()
    return re.sub(r"@(\w+)@", lambda found: str(facts[found[1]]), text)


def _sample(checked: Mapping[str, int], arena: Arena) -> dict[str, object]:
    """Return the input of the example."""
    count = min(EXAMPLE_TOKENS, checked["max_length"], arena.limits.token)
    ids = [(1 + i) % checked["vocab_size"] for i in range(count)]
    return {"ids": ", ".join(map(str, ids)), "count": count}


def _output(output: Buffer) -> dict[str, object]:
    """Return how rows of the output buffer become the caller's."""
    if output.channel_map is None:
        return {
            "width": output.width,
            "columns": "",
            "copy": "memcpy(out, from, sizeof *out * CHANNELS);",
        }
    columns = ", ".join(str(int(c)) for c in output.channel_map)
    return {
        "width": output.width,
        "columns": f"static const int16_t columns[] = {{{columns}}};",
        "copy": "for (int i = 0; i < CHANNELS; i++) out[i] = from[columns[i]];",
    }


def _steps(
    plan: Plan,
    kernels: "Mapping[str, PlainKernel]",
    arena: Arena,
    weights: Mapping[str, int],
    name: str,
) -> dict[str, str]:
    """Return the declarations of kernels, and the calls."""

    def pointer(tensor: str) -> str:
        return (
            f"{name}_weights + {weights[tensor]}"
            if tensor in weights
            else f"arena + {arena.at[tensor]}"
        )

    def size(step: Step, argument: int, dimension: int) -> str:
        tensor = step.args[argument]
        if tensor in plan.constants:
            return str(plan.constants[tensor].shape[dimension])
        if tensor in INPUTS:
            return COUNTS[INPUTS[tensor]] + (" + 1" if tensor == "cu_seqlens" else "")
        return f"{plan.buffers[tensor].rows}_blocks"

    declared, calls = {}, []
    for step in plan.steps:
        kernel = kernels[symbol(step.kernel, name)]
        parts = ["const void *"] * len(step.args) + ["int32_t"] * len(kernel.sizes) + ["void *"]
        declared[kernel.symbol] = f"void {kernel.symbol}({', '.join(parts)});"
        given = [*map(pointer, step.args), *(size(step, *at) for at in kernel.sizes)]
        calls.append(f"  {kernel.symbol}({', '.join(given)}, arena + {arena.scratch});")
    return {"kernels": "\n".join(declared.values()), "steps": "\n".join(calls)}
