"""The benchmark of chips that are not here: counts are exact, code is read, jumps lead nowhere."""

import shutil
from pathlib import Path

import pytest

from intformer.backends.targets import TARGETS
from intformer_edge import chips, emulator
from intformer_edge.pieces import Piece, Profile
from intformer_testing import emulated

TURNS = 12345
SOURCE = f"""
#include <unistd.h>
int main(void) {{
  for (int i = 0; i < 3; i++) {{
    long left = {TURNS}, sum = 0;
    if (i) getppid();
    __asm__ volatile("1: add %1, %1, #3\\n subs %0, %0, #1\\n b.ne 1b\\n"
                     : "+r"(left), "+r"(sum)::"cc");
  }}
  return 0;
}}
"""
needs_llvm = pytest.mark.skipif(
    not shutil.which("llvm-mca-19"), reason="this machine lacks llvm-mca-19 (package llvm-19)"
)


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    """What the second of three equal loops executed."""
    folder = tmp_path_factory.mktemp("edge")
    source = folder / "loop.c"
    source.write_text(SOURCE)
    program = emulator.compiled(folder, str(source), TARGETS["aarch64"].backend)
    return emulator.counted(folder / "counts", 183, program, [program])


@needs_llvm
@pytest.mark.parametrize("target", [emulated.needs("aarch64")])
def test_a_loop_is_counted(profile, target):
    loop = profile.pieces[0]
    assert loop.instructions == 3 and loop.bytes == 12
    # the first turn may belong to the code before the loop
    assert TURNS - 1 <= loop.runs <= TURNS
    assert 3 * (TURNS - 1) <= profile.executed < 3 * TURNS + 200
    assert [line.split()[0] for line in profile.code[loop]] == ["add", "subs", "b.ne"]
    assert profile.mnemonics()["subs"] in (TURNS, TURNS + 1)
    assert profile.owners()[loop] == "main"
    cycles = chips.total(profile, "neoverse-n1")
    assert 0.9 * TURNS < cycles < 2 * TURNS


def test_pieces_belong_to_files(tmp_path):
    counts = tmp_path / "counts"
    counts.write_text(
        "4100 8 2 10\n9000 4 1 5\n1000-2000 r-xp 00000010 08:01 7 /a/lib.so\n"
        "2000-3000 r-xp 00000000 08:01 8 /a/other.so\n"
    )
    found = Profile(counts, Path("/a/lib.so"), 183)
    assert found.pieces == [Piece(0x10 + 4, 8, 2, 10)]
    assert found.elsewhere == 5 and found.executed == 25


@needs_llvm
def test_a_loop_of_products_has_its_share():
    products = [f"sdot v{8 + i}.4s, v0.16b, v1.16b" for i in range(16)]
    assert chips.share("neoverse-n1", products, "sdot") == pytest.approx(1, abs=0.02)
    half = [*products, *(f"sqrdmulh v{8 + i}.8h, v0.8h, v1.8h" for i in range(16))]
    assert chips.share("neoverse-n1", half, "sdot") < 0.6


@pytest.mark.parametrize(
    ("line", "read"),
    [
        ("b.ne #-124", "b.ne  ."),
        ("cbnz x3, #8", "cbnz x3, ."),
        ("tbz w1, #3, #-40", "tbz w1, #3, ."),
        ("jne -20", "jne  ."),
        ("add x1, x2, x3", "add x1, x2, x3"),
        ("bic v1.8h, #128, lsl #8", "bic v1.8h, #128, lsl #8"),
    ],
)
def test_jumps_have_no_distance(line, read):
    assert chips._anywhere(line) == read
