"""Static libraries: every number equals the reference, limits hold, nothing else is needed."""

import re
import subprocess

import numpy as np
import pytest

from intformer import cli, pipeline
from intformer.backends.targets import TARGETS
from intformer.errors import CompileError
from intformer.ir.constants import BLOCK, READ_AHEAD
from intformer.link import build as linker
from intformer.proof.inputs import random_batch, random_batches
from intformer_testing import emulated, golden_models, random_hf, small_tokenizer, static_programs
from intformer_testing.libc import needs_zig
from intformer_testing.small_tokenizer import SENTENCES

CASES = golden_models.cases()
FIRST, PICKED = "native/bert/sequence-classification", "native/albert/masked-lm"
POOLINGS = "native/bert/sentence-embedding by three poolings"  # a constant of a size of its own
FAST = {FIRST, PICKED, POOLINGS, "native/deberta-v2/features"}
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-O1"]
TARGET = "x86-64"
pytestmark = [
    needs_zig,
    pytest.mark.skipif(bool(TARGETS[TARGET].missing_here()), reason="needs an x86-64 CPU"),
]


def batches_of(model):
    """Batches of several sequences, the longest among them."""
    return random_batches(model.meta, 2, seed=0)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Compiles a golden model: (case, target, limits) -> library and model."""
    known = {}

    def make(case, target=TARGET, **limits):
        key = case, target, *limits.items()
        if key not in known:
            folder = tmp_path_factory.mktemp("static")
            model = pipeline.pruned(CASES[case](folder))
            if not limits:
                tokens = max(len(b["input_ids"]) for b in batches_of(model))
                limits = {"max_tokens": tokens, "max_sequences": 8}
                if "positions" in static_programs.inputs_of(model):
                    limits["max_positions"] = max(len(b["positions"]) for b in batches_of(model))
            path = folder / "libmodel.a"
            library = pipeline.compile(model, path, target=target, static=True, **limits)
            known[key] = library, model
        return known[key]

    return make


def compiled(folder, library, *sources, cc=("cc",)):
    """Compile a program with a library; return its path."""
    program = folder / "program"
    command = [*cc, *STRICT, *sources, library.path, f"-I{library.path.parent}", "-o", program]
    subprocess.run(command, check=True, env=linker.compiler_files_in(folder))
    return program


def output(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout


def check(folder, library, model, *emulator, cc=("cc",)):
    sources = static_programs.write(folder, static_programs.source(model, batches_of(model)))
    code, said = output(*emulator, compiled(folder, library, *sources, cc=cc))
    assert code == 0, said
    assert int(said.removesuffix(" equal\n")) == sum(
        model.run(batch)[model.output].size for batch in batches_of(model)
    )


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[] if c in FAST else [pytest.mark.slow]) for c in CASES]
)
def test_models_equal_the_reference(made, tmp_path, case):
    check(tmp_path, *made(case))


@pytest.mark.parametrize("target", [emulated.needs("aarch64"), emulated.needs("aarch64-dotprod")])
@pytest.mark.parametrize("case", [FIRST, PICKED])
def test_on_another_machine(made, tmp_path, case, target):
    backend = TARGETS[target].backend
    emulator, root = emulated.HERE[backend.elf_machine]
    command = [emulator, "-cpu", "max", "-L", root]
    check(tmp_path, *made(case, target), *command, cc=linker.compiler(backend))


def test_one_object_with_two_functions_of_others(made):
    library, _ = made(FIRST)
    said = output("nm", "--undefined-only", library.path)[1].split()
    assert said[0] == "model.o:" and {*said[1:]} == {"U", "memcpy", "memset"}
    sections = output("readelf", "--section-headers", "--wide", library.path)[1]
    found = re.findall(r"(\.[\w.]+) +(?:PROGBITS|NOBITS) +\w+ +\w+ +(\w+) \w+ +(\w*)", sections)
    assert any(name.startswith(".rodata") and "W" not in flags for name, _, flags in found)
    assert not [name for name, size, flags in found if "W" in flags and int(size, 16)]


def test_the_example(made, tmp_path):
    library, model = made(FIRST)
    assert output(compiled(tmp_path, library, library.example)) == (0, shown(model))
    text = library.header.read_text()
    assert re.findall(r"#define \w+_ARENA_BYTES (\d+)", text) == [str(library.arena_bytes)]
    assert "@" not in text + library.example.read_text()


def shown(model):
    """What the example prints: tokens 1 to 4."""
    batch = random_batch(model.meta, [4], np.random.default_rng(0))
    batch |= {"input_ids": np.arange(1, 5, dtype=np.int32), "positions": np.int32([0])}
    batch["token_type_ids"] *= 0
    numbers = model.run(batch)[model.output].ravel()
    return f"{numbers.size} integers: {' '.join(map(str, numbers[:8]))}\n"


def test_defaults_and_two_models_in_one_program(made, tmp_path):
    library, model = made(PICKED, max_sequences=2)
    assert vars(library.limits) == {"token": 64, "sequence": 2, "position": 2}
    other = pipeline.compile(model, tmp_path / "other.a", target=TARGET, static=True)
    assert vars(other.limits) == {"token": 32, "sequence": 1, "position": 1}
    assert other.arena_bytes < library.arena_bytes
    text = other.example.read_text().replace("int main", "int other_main")
    renamed, main = tmp_path / "other_main.c", tmp_path / "main.c"
    renamed.write_text(text)
    text = library.example.read_text().replace(
        "int main(void) {", "int main(void) {\n other_main();"
    )
    main.write_text("int other_main(void);\n" + text)
    sources = [main, renamed, other.path, f"-I{tmp_path}"]
    assert output(compiled(tmp_path, library, *sources)) == (0, shown(model) * 2)


REFUSED = """
#include <stdio.h>
#include "model.h"
static _Alignas(MODEL_ARENA_ALIGN) unsigned char arena[MODEL_ARENA_BYTES + 1];
static int32_t out[MODEL_MAX_OUTPUT], ids[41], three[] = {0, 1, 2, 3}, two[] = {0, 2, 2, 4};
static int32_t back[] = {0, 3, 1}, short_[] = {0, 1};
static const model_input good = {2, 1, 1, ids, (const int32_t[]){0, 2}, NULL, NULL, ids};
#define TRY(...) do { \\
    model_input in = good; void *at = arena; size_t size = sizeof arena, room = %d; \\
    __VA_ARGS__; int code = model_run(&in, at, size, out, room); \\
    printf("%%d %%s\\n", code, model_message(code)); } while (0)
int main(void) {
  TRY((void)0);
  TRY(in.input_ids = NULL);
  TRY(at = NULL);
  TRY(at = arena + 1);
  TRY(size = MODEL_ARENA_BYTES - 1);
  TRY(in.num_tokens = 0);
  TRY(in.batch = -1);
  TRY(in.num_tokens = 41);
  TRY(in.batch = 3; in.cu_seqlens = three);
  TRY(in.num_positions = 3);
  TRY(in.num_positions = -1);
  TRY(in.positions = NULL);
  TRY(room--);
  TRY(in.cu_seqlens = short_);
  TRY(in.batch = 2; in.num_tokens = 1; in.cu_seqlens = back);
  TRY(in.batch = 2; in.cu_seqlens = two);
  TRY(in.num_tokens = 33; in.cu_seqlens = (const int32_t[]){0, 33});
  TRY(ids[1] = -1);
  TRY(ids[1] = 1 << 20);
  TRY(ids[1] = 0; in.token_type_ids = (const int32_t[]){0, 2});
  TRY(in.position_ids = (const int32_t[]){0, 1 << 20});
  TRY(in.positions = (const int32_t[]){2});
  printf("%%d %%s %%s\\n", model_run(NULL, arena, sizeof arena, out, 1), model_message(-1),
         model_message(99));
  model_input many = good;
  many.num_positions = 3;
  printf("%%d\\n%%d\\n", (int)model_output_size(NULL), (int)model_output_size(&many));
  return 0;
}
"""


def test_limits_and_bad_input_are_refused_by_name(made, tmp_path):
    library, model = made(PICKED, max_tokens=40, max_sequences=2, max_positions=2)
    (tmp_path / "main.c").write_text(REFUSED % model.values[model.output].channels)
    code, said = output(compiled(tmp_path, library, tmp_path / "main.c"))
    assert code == 0
    assert [line.partition(" - ")[0] for line in said.splitlines()] == [
        "0 ok",
        "1 an input pointer is NULL",
        *["2 the arena is NULL, not aligned to MODEL_ARENA_ALIGN or below MODEL_ARENA_BYTES"] * 3,
        *["3 no token or no sequence"] * 2,
        "4 more tokens than MODEL_MAX_TOKENS",
        "5 more sequences than MODEL_MAX_SEQUENCES",
        "6 more positions than MODEL_MAX_POSITIONS",
        *["7 no positions"] * 2,
        "8 out is smaller than model_output_size()",
        *["9 cu_seqlens does not rise from 0 to num_tokens"] * 3,
        "10 a sequence has more than MODEL_MAX_LENGTH tokens",
        *["11 a token id is not in the vocabulary"] * 2,
        "12 a token type is not one of the model's",
        "13 a position id is not in the position table",
        "14 a position is not one of this run's tokens",
        "1 unknown code unknown code",
        "0",
        "0",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "model.so"}, "a static library is called NAME.a - .*model.so - -o libmodel.a"),
        ({"static": False}, "a shared library is not called .a - .*libmodel.a - add --static"),
        ({"static": False, "output": "a.so", "max_tokens": 3}, "limits .* - --max-tokens"),
        ({"check": True}, "--check goes with shared libraries"),
        ({"header": True}, "--header goes with shared libraries"),
        ({"target": "x86-auto"}, "no static library for it: .* name one of sapphirerapids"),
        ({"target": "sapphirerapids"}, "no static library for it: AMX tiles .* - target sapph"),
        ({"target": "t4"}, "no static library for it: its kernels are launched on a device"),
        ({"max_tokens": 0}, "0 is not between 1 and .* - --max-tokens"),
        (
            {"max_tokens": 9, "max_sequences": 2**31},
            "2147483648 is not between 1 and .* - --max-sequences",
        ),
        ({"max_tokens": 2, "max_sequences": 3}, "3 sequences have more than 2 tokens"),
        ({"max_tokens": 2**31}, "2147483648 is not between 1 and .* - --max-tokens"),
        ({"max_positions": 1}, "this model is not asked for positions - --max-positions"),
    ],
)
def test_what_does_not_go_together_is_refused(made, tmp_path, options, message):
    _, model = made(FIRST)
    options = {"static": True, "target": TARGET, "output": "libmodel.a"} | options
    path = tmp_path / options.pop("output")
    with pytest.raises(CompileError, match=message):
        pipeline.compile(model, path, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["inspect", "verify", "run"])
def test_verbs_say_what_a_static_library_is(made, capsys, verb):
    library, _ = made(FIRST)
    more = ["--text", "a"] if verb == "run" else []
    assert cli.main([verb, str(library.path), *more]) == 1
    assert "a static library has code and weights alone" in capsys.readouterr().err


def test_the_command(tmp_path, capsys):
    folder = tmp_path / "source"
    folder.mkdir()
    random_hf.save(folder, "bert", "sequence-classification")
    small_tokenizer.save(folder)
    (tmp_path / "texts.txt").write_text("\n".join(SENTENCES[:20]))
    command = ["compile", str(folder), "-o", str(tmp_path / "libtiny.a"), "--static"]
    command += ["--target", TARGET, "--max-tokens", "16", "--max-sequences", "2"]
    command += ["--calibrate", str(tmp_path / "texts.txt"), "--method", "minmax"]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert "a run takes 16 tokens, 2 sequences at most, and an arena of" in said
    assert {file.name for file in tmp_path.iterdir()} == {
        *("source", "texts.txt", "libtiny.a", "tiny.h", "tiny_example.c")
    }


def test_a_number_that_two_files_know():
    text = (linker.SOURCES / "plan.h").read_text()
    assert f"BLOCK = {BLOCK}, READ_AHEAD = {READ_AHEAD}," in text
