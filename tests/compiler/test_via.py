"""A library that a command runs in place of this process: the same numbers, the same errors."""

import os

import numpy as np
import pytest

from intformer.errors import IntformerError, LibraryError
from intformer.proof.verify import verify
from intformer.proof.via import Via
from intformer_testing import toy

COMMAND = "nice -n 1"
IDS, OFFSETS = toy.batch(5, (3, 12, 1))


@pytest.fixture(scope="module")
def via(toy_path):
    return Via(toy_path, COMMAND).open()


def test_numbers_and_shown_values(via, toy_path):
    rng = np.random.default_rng(0)
    types = rng.integers(0, toy.TYPES, IDS.size)
    places = rng.integers(0, toy.LENGTH, IDS.size)
    shown = {}
    got = via.run(IDS, OFFSETS, types, places, observer=lambda _, n, a: shown.update({n: a}))
    np.testing.assert_array_equal(got, toy.expected(0, IDS, OFFSETS, types, places))
    assert list(shown) == ["e", "twice", "positive", "scaled"]
    np.testing.assert_array_equal(shown["twice"], 2 * shown["e"])
    np.testing.assert_array_equal(via.logical("scaled", shown["scaled"]), got)
    np.testing.assert_array_equal(via.run(IDS, OFFSETS), toy.expected(0, IDS, OFFSETS))


def test_requested_rows(toy_library):
    via = Via(toy_library("pick", rows="position"), COMMAND)
    wanted = np.array([15, 0, 0, 7])
    got = via.run(IDS, OFFSETS, positions=wanted)
    np.testing.assert_array_equal(got, toy.expected(0, IDS, OFFSETS)[wanted])


def test_threads_and_variants(via):
    via.set_threads(3)
    assert via.threads == 3
    with pytest.raises(LibraryError, match="2000 threads"):
        via.set_threads(2000)
    assert via.variant == "x86-64" and via.refusals() == {"x86-64": ""}
    with pytest.raises(LibraryError, match="variant none is unknown"):
        via.set_variant("none")
    via.set_variant(None)
    assert via.variant == "x86-64" and via.device is None


def test_an_error_is_the_librarys_and_the_next_run_is_right(via):
    with pytest.raises(LibraryError, match=r"input_ids\[1\] is -1 - allowed are 0 to 49") as caught:
        via.run(np.array([1, -1]), np.array([0, 2]))
    assert caught.value.code == 1
    np.testing.assert_array_equal(via.run(IDS, OFFSETS), toy.expected(0, IDS, OFFSETS))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("true", "'true' does not run the library: exit code 0"),
        ("sh -c 'echo mine >&2; exit 3'", "does not run the library: mine"),
        ("sh -c 'kill -9 $$'", "does not run the library: signal 9"),
        ("sh -c 'echo what; sleep 9'", "does not run the library"),
        ("/none/emulator", "cannot start '/none/emulator': No such file or directory"),
        ("'", "is not a command: No closing quotation - --via"),
    ],
)
def test_commands_that_run_nothing(toy_path, command, words):
    with pytest.raises(LibraryError) as caught:
        Via(toy_path, command).open()
    assert words in str(caught.value)


def test_a_process_that_dies(toy_path):
    via = Via(toy_path, COMMAND).open()
    os.kill(via._process.pid, 9)
    for _ in range(2):
        with pytest.raises(LibraryError, match="does not run the library: signal 9"):
            via.run(IDS, OFFSETS)


def test_a_library_that_it_refuses(toy_path, tmp_path):
    via = Via(toy_path, COMMAND)
    via.path = tmp_path / "none.so"
    with pytest.raises(LibraryError, match="cannot open library"):
        via.open()


def test_not_with_no_run(toy_path):
    with pytest.raises(IntformerError, match="--via runs the library, --no-run does not"):
        verify(toy_path, run=False, via=COMMAND)
