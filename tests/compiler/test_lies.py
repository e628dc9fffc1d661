"""Libraries altered by hand, with a sound footer: verify must refuse each and name the reason.

One tiny library is built; every test changes bytes of it and writes the footer again.
"""

import struct
import subprocess
from pathlib import Path

import pytest

import intformer
from intformer import cli, pipeline, runtime
from intformer.errors import LibraryError
from intformer.frontend import import_model
from intformer.link.elf import Elf
from intformer.proof.table import API, TABLE, Reader
from intformer.proof.verify import verify
from intformer.runtime import LibraryFile, footer
from intformer.runtime.file import ENTRY, INDEX
from intformer_testing import random_hf, small_tokenizer

pytest.importorskip("iced_x86", reason="needs the compiler extra")
SHAPE = {"hidden": 32, "heads": 2, "layers": 1, "ffn": 48, "labels": 3, "activation": "relu"}
ADDPS, RET, NOP = b"\x0f\x58\xc1", b"\xc3", b"\x90"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A random BERT classifier with a tokenizer."""
    path = tmp_path_factory.mktemp("bert")
    random_hf.save(path, "bert", "sequence-classification", **SHAPE)
    small_tokenizer.save(path)
    return path


@pytest.fixture(scope="module")
def calibration():
    return random_hf.sequences((7, 12, 30, 3) * 4, seed=1)


@pytest.fixture(scope="module")
def sound(source, calibration, tmp_path_factory):
    """The library before anybody altered it."""
    model = import_model(source, calibrate=calibration, method="minmax")
    path = tmp_path_factory.mktemp("sound") / "sound.so"
    return pipeline.compile(model, path, target="x86-64").path


class Altered:
    """Bytes of a library, and where things are in them."""

    def __init__(self, path):
        self.file, self.elf = LibraryFile(path), Elf(path)
        self.data = bytearray(path.read_bytes()[: self.file.footer.elf])
        self.image = self.file.image
        self.dynamic = next(s for s in self.image.segments if s.type == 2)

    def offset(self, address):
        segment = self.image.segment_at(address)
        return segment.offset + address - segment.vaddr

    def put(self, layout, offset, *values):
        struct.pack_into(layout, self.data, offset, *values)

    def tag(self, tag):
        """File offset of the entry of the dynamic section."""
        number = [t for t, _ in self.image.dynamic].index(tag)
        return self.dynamic.offset + 16 * number

    def header(self, name):
        """File offset of a section header."""
        table = struct.unpack_from("<Q", self.data, 40)[0]
        return table + 64 * [s.name for s in self.elf.sections].index(name)

    def program_header(self, kind, flags=None):
        """File offset of the first program header of a type, and with these flags."""
        numbers = (
            n
            for n, s in enumerate(self.image.segments)
            if s.type == kind and flags in (None, s.flags)
        )
        return 64 + 56 * next(numbers)

    def relocation(self, number=0):
        """File offset of an entry of DT_RELA."""
        return self.offset(self.image.tag(7)) + 24 * number

    def entry(self, code):
        """Overwrite the 8 bytes of intformer_get: lea of the table, ret."""
        assert len(code) == 8
        at = self.offset(next(s.value for s in self.image.symbols if s.name == "intformer_get"))
        self.data[at : at + 8] = code

    def write(self, path):
        path.write_bytes(self.data)
        footer.append(path, self.file.footer.glibc, self.file.footer.build_id)
        return path


def table_field(name, structure=TABLE):
    def change(lie, value):
        start = lie.file.table if structure is TABLE else lie.file.api
        field = getattr(structure, name)
        lie.put(
            f"<{field.size}s",
            lie.offset(start) + field.offset,
            value.to_bytes(field.size, "little"),
        )

    return change


def dynamic_tag(old, new, value=None):
    def change(lie):
        at = lie.tag(old)
        lie.put("<Q", at, new)
        if value is not None:
            lie.put("<Q", at + 8, value)

    return change


def float_without_flag(lie):
    lie.entry(ADDPS + RET + NOP * 4)
    lie.put("<Q", lie.header(".text") + 8, 2)


def float_in_small_text(lie):
    lie.entry(ADDPS + RET + NOP * 4)
    lie.put("<Q", lie.header(".text") + 32, 16)


def float_inside_an_instruction(lie):
    """mov eax, imm32 whose bytes are addps and ret; a jump goes into it."""
    lie.entry(b"\xeb\x01" + b"\xb8" + ADDPS + RET + RET)


def float_behind_the_segment(lie):
    segment = next(s for s in lie.image.loads if s.flags & 1)
    lie.data[segment.offset + segment.filesz + 5] = 0x58


def other_library(lie):
    """A NEEDED entry with the name of whatever string comes to hand."""
    lie.put("<QQ", lie.tag(16), 1, lie.image.tag(14) + 1)


def changed_library(lie):
    lie.put("<Q", lie.tag(1) + 8, lie.image.tag(14))


def constructor(lie):
    code = next(s for s in lie.image.loads if s.flags & 1).vaddr
    lie.put("<QQ", lie.tag(16), 12, code)


def renamed_import(lie):
    """system() in place of syscall(): the names of imports are changed in place."""
    at = lie.data.index(b"\0strrchr\0") + 1
    lie.data[at : at + 7] = b"system\0"


def exported(lie):
    symbols = lie.offset(lie.image.tag(6))
    number = next(n for n, s in enumerate(lie.image.symbols, 1) if s.name == "strlen")
    code = next(s for s in lie.image.loads if s.flags & 1).vaddr
    lie.put("<HQ", symbols + 24 * number + 6, 1, code)


def ifunc(lie):
    number = next(n for n, s in enumerate(lie.image.symbols, 1) if s.name == "intformer_get")
    lie.put("<B", lie.offset(lie.image.tag(6)) + 24 * number + 4, 0x1A)


def flag(kind, old, new):
    def change(lie):
        lie.put("<I", lie.program_header(kind, old) + 4, new)

    return change


def limit_by_relocation(lie):
    """The file keeps the right number; the loader overwrites it."""
    field = TABLE.max_length
    lie.put("<Q", lie.relocation(), lie.file.table + field.offset)
    lie.put("<q", lie.relocation() + 16, 640)


def relocated_code(lie):
    lie.put("<Q", lie.relocation(), next(s for s in lie.image.loads if s.flags & 1).vaddr)


def relocation_type(kind):
    return lambda lie: lie.put("<I", lie.relocation() + 8, kind)


def no_features(lie):
    """A variant gets the name of another chip."""
    at = lie.data.index(b"\0x86-64\0")
    lie.data[at + 1 : at + 7] = b"x86-65"


def metadata(old, new):
    assert len(old) == len(new)

    def change(lie):
        at, size = lie.file.index["metadata.json"]
        start = lie.offset(lie.file.blob) + at
        text = bytes(lie.data[start : start + size])
        assert old in text
        lie.data[start : start + size] = text.replace(old, new, 1)

    return change


def swapped_arguments(lie):
    args = lie.offset(Reader(lie.file).table.args)
    one, other = struct.unpack_from("<ii", lie.data, args)
    lie.put("<ii", args, other, one)


LIES = {
    "float, .text not executable": (float_without_flag, "machine code", "float arithmetic: addps"),
    "float, .text of 16 bytes": (float_in_small_text, "machine code", "float arithmetic: addps"),
    "float in an instruction": (float_inside_an_instruction, "machine code", "arithmetic: addps"),
    "code behind the segment": (float_behind_the_segment, "machine code", "hold other bytes"),
    "NEEDED added": (other_library, "loading", "needs the library 'ound.so'"),
    "NEEDED changed": (changed_library, "loading", "needs the library 'sound.so'"),
    "RPATH": (dynamic_tag(16, 15, 1), "loading", "has RPATH"),
    "RUNPATH": (dynamic_tag(16, 29, 1), "loading", "has RUNPATH"),
    "AUDIT": (dynamic_tag(16, 0x6FFFFEFC, 1), "loading", "has AUDIT"),
    "INIT": (constructor, "loading", "has INIT"),
    "FINI": (dynamic_tag(16, 13), "loading", "has FINI"),
    "INIT_ARRAY": (dynamic_tag(16, 25), "loading", "has INIT_ARRAY"),
    "PREINIT_ARRAY": (dynamic_tag(16, 32), "loading", "has PREINIT_ARRAY"),
    "TEXTREL": (dynamic_tag(16, 22), "loading", "has TEXTREL"),
    "TEXTREL flag": (dynamic_tag(30, 30, 14), "loading", "has TEXTREL"),
    "IRELATIVE": (relocation_type(37), "loading", "is of type 37 (IFUNC"),
    "IFUNC symbol": (ifunc, "loading", "intformer_get is an IFUNC"),
    "code relocated": (relocated_code, "loading", "changes a segment that is not writable"),
    "writable code": (flag(1, 5, 7), "loading", "is writable and executable"),
    "executable stack": (flag(0x6474E551, 6, 7), "loading", "asks for an executable stack"),
    "export": (exported, "loading", "exports strlen"),
    "import": (renamed_import, "loading", "imports system"),
    "bytes appended": (lambda lie: lie.data.extend(b"more"), "loading", "belong to nothing"),
    "max_length": (lambda lie: table_field("max_length")(lie, 640), "C table", "is 640"),
    "vocab_size": (lambda lie: table_field("vocab_size")(lie, 1 << 20), "C table", "is 1048576"),
    "max_rows": (lambda lie: table_field("max_rows")(lie, 2**31 - 1), "C table", "is 2147483647"),
    "max_length by relocation": (limit_by_relocation, "C table", "is 640"),
    "channels": (
        lambda lie: table_field("output_channels", API)(lie, 2),
        "C table",
        "is 2 in the C",
    ),
    "arguments": (swapped_arguments, "C table", "in the C table"),
    "variant": (no_features, "C table", "x86-65"),
    "metadata": (metadata(b'"head":"sequence', b'"head":"Sequence'), "C table", "in the graph"),
    "metadata key": (metadata(b'"recipe":', b'"recipf":'), "C table", "'native' in the graph"),
}


def test_the_library_is_sound_before(sound, source, calibration):
    assert verify(sound, source, calibrate=calibration).ok


@pytest.mark.parametrize("lie", LIES)
def test_verify_refuses(lie, sound, tmp_path, monkeypatch):
    change, check, words = LIES[lie]
    altered = Altered(sound)
    change(altered)
    path = altered.write(tmp_path / "lie.so")
    monkeypatch.setattr(runtime.library, "_open", None)  # loading it would be a fault
    report = verify(path)
    assert not report.ok
    found = {c.name: c.findings for c in report.checks}
    assert any(words in finding.what for finding in found[check]), found
    assert [c.ran for c in report.checks if c.name in ("results", "defaults")] == [False, False]


def no_note(lie):
    lie.data[lie.data.index(b"intformer\0")] = 0x49


def index(number, value):
    def change(lie):
        lie.put("<Q", lie.offset(lie.file.blob) + INDEX.size + 8 * number, value)

    return change


def overlapping(lie):
    _, (one, _), *_ = lie.file.index.values()
    index(1, one)(lie)


REFUSED = {
    "no note": (no_note, "not an intformer library"),
    "section outside": (index(1, 1 << 40), "lies outside the data"),
    "section too long": (index(2, 1 << 60), "lies outside the data"),
    "name outside": (index(0, 1 << 40), "name lies outside the index"),
    "overlap": (overlapping, "overlaps"),
    "table elsewhere": (
        lambda lie: lie.put("<q", lie.data.index(b"intformer\0") + 12, 1 << 40),
        "is not mapped",
    ),
    "blob elsewhere": (lambda lie: table_field("blob_size")(lie, 1 << 40), "is not mapped"),
    "count of sections": (
        lambda lie: lie.put("<Q", lie.offset(lie.file.blob) + 8, 1 << 40),
        "index of its sections is damaged",
    ),
}


@pytest.mark.parametrize("lie", REFUSED)
def test_a_file_that_cannot_be_read_is_refused_in_one_line(lie, sound, tmp_path):
    change, words = REFUSED[lie]
    altered = Altered(sound)
    change(altered)
    path = altered.write(tmp_path / "lie.so")
    for read in (LibraryFile, intformer.load, verify):
        with pytest.raises(LibraryError, match=words) as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_the_entries_of_the_index_are_as_large_as_written():
    assert ENTRY.size == 24 and INDEX.size == 16


def test_a_changed_tokenizer_is_refused_with_the_source(sound, source, calibration, tmp_path):
    altered = Altered(sound)
    at, size = altered.file.index["files/tokenizer.json"]
    start = altered.offset(altered.file.blob) + at
    text = bytes(altered.data[start : start + size])
    altered.data[start : start + size] = text.replace(b'"the"', b'"teh"', 1)
    path = altered.write(tmp_path / "lie.so")
    assert verify(path, run=False).ok  # nothing to compare with
    report = verify(path, source, calibrate=calibration, run=False)
    (check,) = [check for check in report.checks if not check.ok]
    assert [finding.where for finding in check.findings] == ["files/tokenizer.json"]


@pytest.fixture
def foreign(tmp_path):
    """A library of somebody else with a sound footer; loading it leaves a file behind."""
    mark, code = tmp_path / "executed", tmp_path / "a.c"
    code.write_text(
        "#include <stdio.h>\n"
        '__attribute__((constructor)) static void f(void) { fclose(fopen("'
        f'{mark}", "w")); }}\n'
        "const void *intformer_get(void) { return 0; }\n"
    )
    path = tmp_path / "foreign.so"
    subprocess.run(["cc", "-shared", "-fPIC", code, "-o", path], check=True)
    footer.append(path, (2, 2), bytes(32))
    return path, mark


@pytest.mark.parametrize(
    "command",
    [("inspect",), ("verify",), ("verify", "--no-run"), ("run", "--text", "a"), ("bench",)],
    ids=" ".join,
)
def test_a_foreign_library_is_one_line_and_does_not_run(foreign, command, capsys):
    path, mark = foreign
    assert cli.main([command[0], str(path), *command[1:]]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: not an intformer library")
    assert not mark.exists()


def test_reading_does_not_load(sound, monkeypatch, capsys):
    def refuse(*_):
        raise AssertionError("loaded")

    monkeypatch.setattr(runtime.library, "_open", refuse)
    assert cli.main(["inspect", str(sound)]) == 0
    assert cli.main(["verify", str(sound), "--no-run"]) == 0
    assert "Not shown: which checkpoint" in capsys.readouterr().out


def test_data_after_the_footer(sound, tmp_path):
    path = Path(tmp_path / "lie.so")
    path.write_bytes(sound.read_bytes() + b"more")
    with pytest.raises(LibraryError, match="cut short"):
        LibraryFile(path)
    path.write_bytes(sound.read_bytes() + b"more")
    footer.append(path, (2, 2), bytes(32))  # and another one behind it
    report = verify(path, run=False)
    assert any("belong to nothing" in f.what for c in report.checks for f in c.findings)
