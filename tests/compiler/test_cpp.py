"""The C++ header, the example that uses it, and what `intformer config` says."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from tokenizers import BertWordPieceTokenizer, processors

from intformer import cli, pipeline
from intformer.backends.targets import TARGETS
from intformer.frontend import import_model
from intformer.link import build as linker
from intformer_testing import emulated, random_hf, toy
from intformer_testing.small_tokenizer import SENTENCES

ROOT = Path(__file__).parents[2]
EXAMPLE, DOCUMENT = ROOT / "examples" / "embed_text.cpp", ROOT / "docs" / "c-api.md"
STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror"]
VOCABULARY = 400
TEXTS = [
    *SENTENCES[:6],
    "Quizzical  ZEPHYRS, (unbelievably) jumped?! x7 #tag a-b",
    "supercalifragilisticexpialidocious" * 4,
    "",
]
pytestmark = pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler")


@pytest.fixture
def flags(capsys):
    """What the verb prints for a compiler."""
    assert cli.main(["config", "--cflags", "--libs"]) == 0
    return shlex.split(capsys.readouterr().out)


def compiled(folder, source, flags, standard="c++17", more=()):
    program = folder / "program"
    command = ["c++", f"-std={standard}", "-O1", *more, source, *flags, "-o", program]
    subprocess.run(command, check=True)
    return program


def output(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout, done.stderr


HEADER_PROGRAM = """
#include <cstdio>
#include "intformer.hpp"

template <typename Call> void fails(Call call) {
  try {
    call();
  } catch (const intformer::error &fault) {
    std::printf("%d %s\\n", fault.code(), fault.what());
    return;
  }
  std::puts("did not fail");
}

static void print(const intformer::rows &answer) {
  std::printf("%zux%zu:", answer.size(), answer.channels());
  for (size_t row = 0; row < answer.size(); row++)
    for (size_t i = 0; i < answer.channels(); i++) std::printf(" %d", answer[row][i]);
  std::puts("");
}

int main(int, char **argv) {
  const intformer::model model(argv[1]), copy = model, pick(argv[2]);
  intformer::batch batch;
  batch.add({1, 2, 3}).add({7, 8}, {0, 1});
  print(copy.run(batch));
  print(pick.run(intformer::batch().add({1, 2}).add({7, 8}, {0, 1}).want(1).want(0)));
  const std::string_view name = model.name(), variant = model.variant();
  std::printf("%.*s %.*s %zu\\n", static_cast<int>(name.size()), name.data(),
              static_cast<int>(variant.size()), variant.data(), model.channels());
  std::printf("%d %d %d\\n", model.metadata().front() == '{', model.section("none").has_value(),
              model.sections().size() > 5 && model.section(model.sections().front()).has_value());
  model.set_threads(3);
  std::printf("%d\\n", model.threads());
  model.set_variant();
  fails([&] { model.set_threads(5000); });
  fails([&] { model.set_variant("none"); });
  fails([&] { model.run(intformer::batch()); });
  fails([&] { model.run(intformer::batch().add({1, 50})); });
  fails([&] { model.run(intformer::batch().add({})); });
  fails([&] { intformer::batch().add({1, 2}, {0}); });
  fails([&] { intformer::batch().add({1, 2}).want(2); });
  fails([&] { intformer::batch().want(0); });
  fails([&] { intformer::model("none.so"); });
  fails([&] { intformer::model(static_cast<const intformer_api *>(nullptr)); });
}
"""


@pytest.mark.parametrize("standard", ["c++17", "c++20"])
def test_the_header(toy_library, toy_path, tmp_path, flags, standard):
    source = tmp_path / "main.cpp"
    source.write_text(HEADER_PROGRAM)
    program = compiled(tmp_path, source, flags, standard, STRICT)
    code, out, err = output(program, toy_path, toy_library("pick", rows="position"))
    assert (code, err) == (0, "")
    first, picked, *said = out.splitlines()
    ids, offsets = np.array([1, 2, 3, 7, 8]), np.array([0, 3, 5])
    want = toy.expected(0, ids, offsets, np.array([0, 0, 0, 0, 1]))
    assert first == "5x10: " + " ".join(map(str, want.ravel()))
    want = toy.expected(0, ids[[0, 1, 3, 4]], np.array([0, 2, 4]), np.array([0, 0, 0, 1]))
    assert picked == "2x10: " + " ".join(map(str, want[[3, 2]].ravel()))
    assert said == [
        *("toy x86-64 10", "1 0 1", "3", "1 5000 threads"),
        "1 variant none is unknown - this library has x86-64",
        "1 the batch is empty",
        "1 input_ids[1] is 50 - allowed are 0 to 49 (vocabulary)",
        "1 a sequence has no tokens",
        "1 1 token types for 2 tokens",
        *["1 token 2 is not in the sequence", "1 token 0 is not in the sequence"],
        "0 cannot open library - none.so",
        "0 no library",
    ]


def test_linked_into_the_program(toy_path, tmp_path, flags):
    source = tmp_path / "main.cpp"
    source.write_text(
        '#include "intformer.hpp"\n'
        'extern "C" const intformer_api *intformer_get_toy(void);\n'
        "int main() { return intformer::model(intformer_get_toy()).channels() != 10; }\n"
    )
    more = [toy_path, f"-Wl,-rpath,{toy_path.parent}"]
    assert output(compiled(tmp_path, source, [*flags, *more]))[0] == 0


def test_the_example_of_the_documents(toy_path, tmp_path, flags):
    (example,) = re.findall(r"^```cpp\n(.*?)^```$", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    source = tmp_path / "main.cpp"
    source.write_text(re.sub(r"\{101.*?102\}", "{1, 7, 8}", example))
    program = compiled(tmp_path, source, flags, more=STRICT)
    shutil.copy(toy_path, tmp_path / "my-model.so")
    done = subprocess.run([program], cwd=tmp_path, capture_output=True, text=True, check=True)
    first = toy.expected(0, np.array([1, 7, 8]), np.array([0, 3]))[0, 0]
    assert done.stdout == f"6 rows of 10 integers, the first is {first}\n"


@pytest.mark.skipif(not shutil.which("cmake"), reason="needs CMake")
def test_cmake(toy_path, tmp_path, capsys):
    assert cli.main(["config", "--cmake"]) == 0
    folder = capsys.readouterr().out.strip()
    (tmp_path / "main.cpp").write_text(
        '#include "intformer.hpp"\nint main(int, char **argv) { intformer::model m(argv[1]); }\n'
    )
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.16)\n"
        "project(test LANGUAGES C CXX)\n"
        "set(CMAKE_CXX_STANDARD 17)\n"
        "find_package(intformer REQUIRED)\n"
        "add_executable(main main.cpp)\n"
        "target_link_libraries(main intformer::intformer)\n"
    )
    build = tmp_path / "build"
    made = output("cmake", "-S", tmp_path, "-B", build, f"-Dintformer_DIR={folder}")
    assert made[0] == 0, made
    made = output("cmake", "--build", build)
    assert made[0] == 0, made
    assert output(build / "main", toy_path) == (0, "", "")


def test_all_flags_at_once(capsys):
    assert cli.main(["config"]) == 0
    names = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["cflags", "libs", "cmake"]


# ---- the example ----


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A random encoder with a WordPiece tokenizer, and that tokenizer."""
    folder = tmp_path_factory.mktemp("wordpiece")
    shape = {"hidden": 32, "heads": 1, "layers": 1, "ffn": 48, "vocab_size": VOCABULARY}
    shape["max_position_embeddings"] = 128
    random_hf.save(folder, "bert", "sequence-classification", **shape)
    tokenizer = BertWordPieceTokenizer()
    tokenizer.train_from_iterator(SENTENCES, vocab_size=VOCABULARY, show_progress=False)
    ends = [(word, tokenizer.token_to_id(word)) for word in ("[SEP]", "[CLS]")]
    tokenizer._tokenizer.post_processor = processors.BertProcessing(*ends)
    tokenizer.save(str(folder / "tokenizer.json"))
    return import_model(folder, calibrate=SENTENCES[:40], method="minmax"), tokenizer


def check_example(command, library, tokenizer, answer):
    """Compare ids with the tokenizers package, and integers with what `answer` computes."""
    for text in TEXTS:
        code, out, err = output(*command, library, text)
        assert (code, err) == (0, "")
        ids, row = ([int(word) for word in line.split()] for line in out.splitlines())
        assert ids == tokenizer.encode(text).ids
        assert row == answer(np.array(ids, np.int32), np.array([0, len(ids)], np.int32)).tolist()


def test_the_example(model, tmp_path, flags):
    library = pipeline.compile(model[0], tmp_path / "model.so", target="x86-64")
    program = compiled(tmp_path, EXAMPLE, flags, more=STRICT)
    check_example([program], library.path, model[1], lambda *one: library.run(*one)[0])
    code, out, err = output(program, library.path, "caf\u00e9")
    assert (code, out, err) == (1, "", "error: this example tokenizes ASCII text only\n")
    assert output(program)[0] == 2
    assert output(program, tmp_path / "none.so", "a")[0] == 1


@pytest.mark.slow  # builds zig's C++ library
@pytest.mark.parametrize("target", [emulated.needs("aarch64")])
def test_the_example_on_another_machine(model, tmp_path, target):
    library = pipeline.compile(model[0], tmp_path / "model.so", target=target)
    cc = linker.compiler(TARGETS[target].backend)
    cxx = ["c++" if word == "cc" else word for word in cc]
    opener, program = tmp_path / "open.o", tmp_path / "program"
    headers = f"-I{linker.SOURCES}"
    subprocess.run(
        [*cc, "-O1", "-c", linker.SOURCES / "intformer_open.c", "-o", opener], check=True
    )
    source = ["-std=c++17", "-O1", headers, EXAMPLE, opener, "-o", program]
    subprocess.run([*cxx, *source], check=True)
    emulator, root = emulated.HERE[183]

    def reference(ids, offsets):
        batch = {"input_ids": ids, "cu_seqlens": offsets}
        batch |= {"token_type_ids": 0 * ids, "position_ids": np.arange(len(ids))}
        return model[0].run({k: v.astype(np.int32) for k, v in batch.items()})[model[0].output][0]

    check_example([emulator, "-L", root, program], library.path, model[1], reference)
