"""Libraries with several variants: which one runs, who may say so, and that all are equal."""

import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import intformer
from intformer import runtime
from intformer.backends.cpu.code_bytes import EXECUTABLE
from intformer.backends.targets import TARGETS, chips, host_target
from intformer.backends.x86.backend import BACKEND
from intformer.errors import LibraryError
from intformer.frontend import import_model
from intformer.link import build as library
from intformer.link.elf import Elf
from intformer.passes.unread_rows import drop_unread_rows
from intformer.proof import code, inputs, results
from intformer.proof.verify import verify
from intformer_testing import random_hf, toy
from intformer_testing.c_program import PRINT, batch_c, run_c
from intformer_testing.kernels import MISSING

SUPPORT = Path(toy.__file__).parents[1]
IDS, OFFSETS = toy.batch(0, (3, 12, 7))
NOBODY = ["avx512er"]  # a feature of Xeon Phi alone


@pytest.fixture(scope="module")
def variants(tmp_path_factory):
    """Three variants of the toy: what they compute tells which one ran."""
    folder = tmp_path_factory.mktemp("variants")

    def variant(number, name, features):
        return library.Variant(name, [toy.object_file(folder, name, number)], features)

    return [variant(2, "phi", NOBODY), variant(1, "newer", ["sse3"]), variant(0, "x86-64", [])]


@pytest.fixture(scope="module")
def path(toy_library, variants):
    return toy_library("several", variants=variants)


@pytest.fixture
def lib(path):
    loaded = runtime.load(path)
    yield loaded
    loaded.set_variant(None)


def ran(library, ids=IDS, offsets=OFFSETS):
    """Return what the variant that ran adds to the right result."""
    (more,) = np.unique(library.run(ids, offsets) - toy.expected(0, ids, offsets))
    return more


def test_the_first_that_the_cpu_has(lib):
    assert list(lib.variants) == ["phi", "newer", "x86-64"]
    assert lib.variant == "newer" and ran(lib) == 1


def test_another_one_by_name(lib):
    lib.set_variant("x86-64")
    assert lib.variant == "x86-64" and ran(lib) == 0
    for name, words in {
        "phi": "variant phi does not run here: .* lacks avx512er - .* has phi, newer, x86-64",
        "x86-65": "variant x86-65 is unknown - this library has phi, newer, x86-64",
    }.items():
        with pytest.raises(LibraryError, match=words):
            lib.set_variant(name)
        assert lib.variant == "x86-64" and ran(lib) == 0
    assert lib.refusals() == {
        "phi": "variant phi does not run here: this CPU (or the system) lacks avx512er - "
        "this library has phi, newer, x86-64",
        "newer": "",
        "x86-64": "",
    }
    assert lib.variant == "x86-64"
    lib.set_variant(None)
    assert lib.variant == "newer"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "0 newer"),
        ("newer", "0 newer"),
        ("x86-64", "0 x86-64"),
        ("phi", "3 variant phi does not run here: this CPU (or the system) lacks avx512er - "),
        ("NEWER", "1 variant NEWER is unknown - this library has phi, newer, x86-64"),
        ("n" * 5000, "1 variant nnnn"),
    ],
)
def test_the_environment_decides(path, tmp_path, name, says):
    """Also in a program without Python; a bad name is an error of every run, not of loading."""
    source = f"""
        {batch_c(IDS, OFFSETS)}
        extern const intformer_api *intformer_get_several(void);
        int main(void) {{
          const intformer_api *api = intformer_get_several();
          char err[300] = "";
          static int32_t out[1000];
          int codes[2];
          for (int i = 0; i < 2; i++) codes[i] = api->run(&input, out, 1000, err, sizeof err);
          if (codes[0] != codes[1] || strchr(err, '\\n')) return 1;
          printf("%d %s", codes[0], api->variant() ? api->variant() : err);
          return 0;
        }}
    """
    done = run_c(tmp_path, source, path, env={"INTFORMER_VARIANT": name})
    assert done.startswith(says)


def test_a_bad_environment_can_be_put_right(path):
    code = f"""
        import intformer
        library = intformer.load({str(path)!r})
        assert library.variant is None
        library.set_variant("x86-64")
        print(library.variant, library.run([1, 2], [0, 2]).shape)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**os.environ, "INTFORMER_VARIANT": "no"},
    )
    assert done.stdout == f"x86-64 (2, {toy.CHANNELS})\n", done.stderr


def test_variants_change_under_running_threads(path, tmp_path):
    """A run keeps to one variant from its first kernel to its last."""
    source = f"""
        #include <pthread.h>
        #include <stdatomic.h>
        {batch_c(IDS, OFFSETS)}
        {PRINT}
        extern const intformer_api *intformer_get_several(void);
        static const char *const names[] = {{"newer", "x86-64"}};
        static int32_t want[2][1000];
        static atomic_int stop;
        static void *work(void *unused) {{
          int32_t out[1000] = {{0}};
          while (!stop) {{
            if (intformer_get_several()->run(&input, out, 1000, NULL, 0)) return "failed";
            if (memcmp(out, want[0], sizeof out) && memcmp(out, want[1], sizeof out))
              return "mixed";
          }}
          return unused;
        }}
        int main(void) {{
          const intformer_api *api = intformer_get_several();
          pthread_t threads[3];
          void *fault;
          for (int i = 0; i < 2; i++)
            if (api->set_variant(names[i], NULL, 0) || api->run(&input, want[i], 1000, NULL, 0))
              return 1;
          for (int i = 0; i < 3; i++) pthread_create(&threads[i], NULL, work, NULL);
          for (int i = 0; i < 20000; i++) api->set_variant(names[i % 2], NULL, 0);
          stop = 1;
          for (int i = 0; i < 3; i++) {{
            pthread_join(threads[i], &fault);
            if (fault) {{ puts(fault); return 2; }}
          }}
          print(api);
          return 0;
        }}
    """
    got = np.array(run_c(tmp_path, source, path).split(), np.int64).reshape(-1, toy.CHANNELS)
    np.testing.assert_array_equal(got, toy.expected(0, IDS, OFFSETS))


@pytest.mark.skipif("amx-tile" not in BACKEND.host_features(), reason="this CPU has no AMX")
def test_without_tiles_the_next_variant_runs(toy_library, variants):
    """A process that may not use AMX: the choice falls through, asking for it is an error."""
    tiles = replace(variants[1], features=["amx-tile", "amx-int8"])
    path = toy_library("tiled", variants=[tiles, variants[2]])
    code = f"""
        import sys
        sys.path.insert(0, {str(SUPPORT)!r})
        import intformer
        from intformer_testing.deny_tiles import deny_tiles
        if len(sys.argv) > 1:
            deny_tiles()
        library = intformer.load({str(path)!r})
        print(library.variant)
        print(library.refusals()["newer"])
    """

    def printed(*arguments):
        command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    assert printed() == ["newer", ""]
    name, why = printed("deny")
    assert name == "x86-64"
    assert why.startswith("variant newer does not run here: the system refuses AMX tiles")


# ---- a whole model ----

AUTO = chips(TARGETS["x86-auto"])
HERE = [chip.name for chip in AUTO if not MISSING[chip.name]]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An odd shape: heads of 26, a head of 5 labels."""
    source = tmp_path_factory.mktemp("model")
    random_hf.save(source, "bert", "sequence-classification", hidden=312, heads=12, labels=5)
    return import_model(source, calibrate=random_hf.sequences(seed=1), method="minmax")


@pytest.fixture(scope="module")
def auto(model, tmp_path_factory):
    return intformer.compile(model, tmp_path_factory.mktemp("auto") / "m.so", target="x86-auto")


def test_the_best_variant_is_in_use(auto):
    assert list(auto.variants) == [chip.name for chip in AUTO]
    assert auto.variant == HERE[0] == host_target()
    assert [name for name, why in auto.refusals().items() if not why] == HERE


def test_all_variants_are_proved(auto):
    report = verify(auto, cases=1)
    assert report.ok, report
    results = next(check for check in report.checks if check.name == "results")
    assert f"variants {' '.join(HERE)}" in results.detail
    programs = next(check for check in report.checks if check.name == "tensor programs")
    assert programs.detail == f"{len(AUTO) * auto.metadata['kernels']} functions"


def test_all_variants_give_the_same_numbers(auto):
    rng = np.random.default_rng(0)
    batch = inputs.given(auto, inputs.random_batch(auto.metadata, [1, 9, 17, 2, 32], rng))
    before, seen = auto.variant, {}
    for name in HERE:
        auto.set_variant(name)
        seen[name] = auto.run(**batch)
    auto.set_variant(before)
    for name in HERE:
        np.testing.assert_array_equal(seen[name], seen[HERE[0]], err_msg=name)


def test_a_wrong_variant_is_named(auto, model, monkeypatch):
    run = auto.run
    wrong = HERE[-1]
    monkeypatch.setattr(auto, "run", lambda **x: run(**x) + (auto.variant == wrong))
    batches = inputs.random_batches(model.meta, 1, 0)
    (finding,) = results.check_results(auto, drop_unread_rows(model), batches, "random").findings
    assert finding.where.endswith(f", {wrong}")


def test_weights_are_there_once(auto, model, tmp_path):
    """Besides code, programs and tables nothing is there for each variant."""
    alone = intformer.compile(model, tmp_path / "m.so", target="x86-64")
    names = {n for n in auto.sections() if not n.startswith("tir/")}
    assert names == {n for n in alone.sections() if not n.startswith("tir/")}
    weights = sum(tensor.nbytes for tensor in model.tensors.values())
    kernels = sum(len(auto.section(f"tir/{name}.json.xz")) for name in auto.variants) + code_size(
        auto.path
    )
    assert auto.path.stat().st_size < 1.2 * alone.path.stat().st_size + kernels
    assert auto.path.stat().st_size < 2 * weights + kernels
    for name in auto.sections():
        if name.startswith("constants/"):
            assert auto.section(name) == alone.section(name)


def code_size(path):
    return sum(s.size for s in Elf(path).sections if s.flags & EXECUTABLE)


def test_code_of_one_variant_in_another_is_caught(auto, tmp_path):
    """The features of each variant's code are its own: AVX2 code in x86-64 is found."""
    metadata = auto.metadata
    swapped = [
        {**v, "cpu_features": [] if v["name"] == "avx2" else v["cpu_features"]}
        for v in metadata["variants"]
    ]
    auto.metadata = {**metadata, "variants": swapped}
    try:
        findings = code.check_machine_code(auto).findings
    finally:
        auto.metadata = metadata
    assert {f.what for f in findings} >= {"code uses AVX2, which variant avx2 does not ask for"}
    assert all("which variant avx2 does not ask for" in f.what for f in findings)
