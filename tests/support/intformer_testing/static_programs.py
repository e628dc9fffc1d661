"""Programs that run a static library on batches and compare every number with the reference.

They need no C library: numbers are in their source, and what they say goes through say().
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from intformer.ir.model import INPUTS, IntModel

HEAD = """
#include <stddef.h>
#include "model.h"

void say(const char *text); /* of the machine */

static _Alignas(MODEL_ARENA_ALIGN) unsigned char arena[MODEL_ARENA_BYTES];
static int32_t out[MODEL_MAX_OUTPUT];

void say_number(long number) {
  char text[24], *at = text + sizeof text - 1;
  unsigned long rest = number < 0 ? 0UL - (unsigned long)number : (unsigned long)number;
  *at = 0;
  do *--at = (char)('0' + rest % 10), rest /= 10;
  while (rest);
  if (number < 0) *--at = '-';
  say(at);
}

static size_t equal;

/* The arena holds anything but zeros before a run. */
static int compare(const model_input *in, const int32_t *wanted, size_t count) {
  for (size_t i = 0; i < sizeof arena; i++) arena[i] = 0xA5;
  int code = model_run(in, arena, sizeof arena, out, count);
  if (code) return say(model_message(code)), 1;
  if (model_output_size(in) != count) return say("size"), 1;
  for (size_t i = 0; i < count; i++)
    if (out[i] != wanted[i]) {
      say("number "), say_number((long)i), say(" is "), say_number(out[i]);
      say(", not "), say_number(wanted[i]), say("\\n");
      return 1;
    }
  equal += count;
  return 0;
}
"""
MAIN = """
int run_cases(void) {
%s
  say_number((long)equal), say(" equal\\n");
  return 0;
}
"""
ON_LINUX = """
#include <stdio.h>
void say(const char *text) { fputs(text, stdout); }
int run_cases(void);
int main(void) { return run_cases(); }
"""


def inputs_of(model: IntModel) -> list[str]:
    """Return what a model takes of a batch."""
    used = {name for node in model.nodes for name in node.inputs} | {"input_ids", "cu_seqlens"}
    return [name for name in INPUTS if name in used]


def source(model: IntModel, batches: Iterable[dict]) -> str:
    """Return the C program: batches, what the reference makes of them, and the comparison."""
    parts, calls = [HEAD], []
    for number, batch in enumerate(batches):
        taken = {name: batch[name] for name in inputs_of(model)}
        wanted = model.run(batch)[model.output]
        fields = {"num_tokens": len(batch["input_ids"]), "batch": len(batch["cu_seqlens"]) - 1}
        fields["num_positions"] = len(taken.get("positions", ()))
        for name, numbers in taken.items():
            parts.append(_array(f"{name}_{number}", numbers))
            fields[name] = f"{name}_{number}"
        parts.append(_array(f"wanted_{number}", wanted.ravel()))
        given = ", ".join(f".{name} = {value}" for name, value in fields.items())
        parts.append(f"static const model_input input_{number} = {{{given}}};\n")
        calls.append(f"  if (compare(&input_{number}, wanted_{number}, {wanted.size})) return 1;")
    return "".join([*parts, MAIN % "\n".join(calls)])


def _array(name: str, numbers: Sequence[int]) -> str:
    values = ",".join(str(int(n)) for n in np.asarray(numbers))
    return f"static const int32_t {name}[] = {{{values}}};\n"


def write(folder: Path, text: str, machine: str = ON_LINUX) -> list[Path]:
    """Write a program and what its machine has for it; return the files to compile."""
    files = [folder / "cases.c", folder / "machine.c"]
    for file, content in zip(files, (text, machine), strict=True):
        file.write_text(content)
    return files
