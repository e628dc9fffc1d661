"""What the loader would do with a library: map it, and nothing else.

Read are the program headers and the dynamic section, as the loader reads them. A library may need
libc, libm and libpthread, import the functions listed in c/imports.txt and export its two entries.
Nothing in it may run when it is loaded.
"""

from collections.abc import Iterator

from intformer.backends import targets
from intformer.backends.cpu.backend import CpuBackend
from intformer.link import build as linker
from intformer.proof.finding import Finding
from intformer.proof.report import Check
from intformer.runtime import LibraryFile
from intformer.runtime.image import (
    DT_NEEDED,
    EXECUTE,
    PAGE,
    PT_GNU_STACK,
    PT_INTERP,
    RELATIVE,
    WRITE,
    Image,
)

NEEDED = {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2"}
# what the sources in compiler/c call, and what compilers add to it
FUNCTIONS = set((linker.SOURCES / "imports.txt").read_text().split())
# tags of the dynamic section that say where tables are, or are checked below
HARMLESS = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14, 16, 20, 23, 24, 30}
HARMLESS |= {0x6FFFFEF5, 0x6FFFFFF0, 0x6FFFFFF9, 0x6FFFFFFB, 0x6FFFFFFE, 0x6FFFFFFF}
TAGS = {
    **{12: "INIT", 13: "FINI", 15: "RPATH", 17: "REL", 22: "TEXTREL", 25: "INIT_ARRAY"},
    **{26: "FINI_ARRAY", 29: "RUNPATH", 32: "PREINIT_ARRAY", 36: "RELR", 0x7FFFFFFD: "AUXILIARY"},
    **{0x7FFFFFFF: "FILTER", 0x6FFFFEFC: "AUDIT", 0x6FFFFEFB: "DEPAUDIT"},
}
DT_SONAME, DT_FLAGS, DT_FLAGS_1 = 14, 30, 0x6FFFFFFB
FLAGS, FLAGS_1 = 0x2 | 0x8, 0x1 | 0x8  # SYMBOLIC, BIND_NOW; NOW, NODELETE
IFUNC = 10  # symbol type
LOOSE = {".symtab", ".strtab", ".shstrtab", ".comment"}  # sections that are not mapped


def check_loading(library: LibraryFile) -> Check:
    """Return what loading the file would do beyond mapping it; nothing of it is loaded here."""
    image = library.image
    family = targets.of_machine(image.machine, str(library.path))
    findings = [
        *segments(image),
        *dynamic(image, family),
        *relocations(image, family),
        *symbols(library, family),
        *stray_bytes(image, family),
    ]
    if (floor := glibc_floor(image)) != library.footer.glibc:
        said = ".".join(map(str, library.footer.glibc))
        findings.append(Finding("footer", f"glibc {said}, the symbols need {floor[0]}.{floor[1]}"))
    detail = f"{len(image.loads)} segments, {len(image.symbols)} dynamic symbols"
    return Check("loading", detail, findings)


def segments(image: Image) -> Iterator[Finding]:
    """Yield segments that run code or map memory in ways that a library has no need of."""
    end = 0
    stacks = [segment for segment in image.segments if segment.type == PT_GNU_STACK]
    if not stacks or stacks[0].flags & EXECUTE:
        yield Finding("segments", "asks for an executable stack")
    for segment in image.segments:
        if segment.type == PT_INTERP:
            yield Finding("segments", "names a program interpreter")
    for number, segment in enumerate(image.loads):
        where = f"segment {number}"
        if segment.flags & WRITE and segment.flags & EXECUTE:
            yield Finding(where, "is writable and executable")
        if segment.flags & EXECUTE and segment.memsz != segment.filesz:
            yield Finding(where, "is executable beyond the bytes of the file")
        if segment.vaddr // PAGE * PAGE < end:
            yield Finding(where, "overlaps the segment before it")
        if (segment.vaddr - segment.offset) % PAGE:
            yield Finding(where, "address and file offset do not lie alike in a page")
        end = -(-(segment.vaddr + segment.memsz) // PAGE) * PAGE


def dynamic(image: Image, family: CpuBackend) -> Iterator[Finding]:
    """Yield entries of the dynamic section that a library has no need of."""
    tags, needed = [tag for tag, _ in image.dynamic], NEEDED | family.needed
    for tag, value in image.dynamic:
        if tag == DT_NEEDED and (name := image.name(value)) not in needed:
            yield Finding("dynamic section", f"needs the library {name!r}")
        elif tag not in HARMLESS:
            yield Finding("dynamic section", f"has {TAGS.get(tag, f'the unknown tag {tag:#x}')}")
        elif tag != DT_NEEDED and tags.count(tag) > 1:
            yield Finding("dynamic section", f"has the tag {tag:#x} twice")
        elif tag == DT_FLAGS and value & 4:
            yield Finding("dynamic section", "has TEXTREL")
        elif (tag == DT_FLAGS and value & ~FLAGS) or (tag == DT_FLAGS_1 and value & ~FLAGS_1):
            yield Finding("dynamic section", f"has flags {value:#x}")


def relocations(image: Image, family: CpuBackend) -> Iterator[Finding]:
    """Yield relocations that run code or change what is not data."""
    known = {RELATIVE.get(image.machine), *family.imported}
    for entry in image.relocations:
        where = f"relocation at {entry.address:#x}"
        if entry.type not in known:
            yield Finding(where, f"is of type {entry.type} (IFUNC, TLS and others are not used)")
        if not image.segment_at(entry.address, 8).flags & WRITE:
            yield Finding(where, "changes a segment that is not writable")


def symbols(library: LibraryFile, family: CpuBackend) -> Iterator[Finding]:
    """Yield exports beside the two entries, and imports that are not on the list."""
    backends = [targets.of_variant(v, family) for v in library.metadata["variants"]]
    allowed = FUNCTIONS.union(*(backend.imports for backend in backends))
    entries = {"intformer_get", f"intformer_get_{library.metadata.get('name')}"}
    exported = set()
    for name, info, section, *_ in library.image.symbols:
        if info & 15 == IFUNC:
            yield Finding("dynamic symbols", f"{name} is an IFUNC: choosing it runs code")
        if section:
            exported.add(name)
        elif name not in allowed:
            yield Finding("dynamic symbols", f"imports {name}")
    for name in sorted(exported ^ entries):
        yield Finding("dynamic symbols", f"{'exports' if name in exported else 'lacks'} {name}")


def stray_bytes(image: Image, family: CpuBackend) -> Iterator[Finding]:
    """Yield bytes that belong to no segment, header or table of symbols."""
    data = image.data
    spans = [(0, 64 + 56 * len(image.segments))]
    spans += [(s.offset, s.offset + s.filesz) for s in image.loads]
    table = int.from_bytes(data[40:48], "little")
    size, count, names = (int.from_bytes(data[at : at + 2], "little") for at in (58, 60, 62))
    if count and size == 64 and names < count and table + size * count <= len(data):
        spans.append((table, table + size * count))
        headers = [data[table + i * size : table + (i + 1) * size] for i in range(count)]
        text = int.from_bytes(headers[names][24:32], "little")
        for header in headers:
            name, _ = (int.from_bytes(header[at : at + 4], "little") for at in (0, 4))
            offset, length = (int.from_bytes(header[at : at + 8], "little") for at in (24, 32))
            shown = bytes(data[text + name : text + name + 64]).split(b"\0")[0].decode("latin1")
            if shown in LOOSE | family.loose_sections:
                spans.append((offset, offset + length))
    end = 0
    for start, stop in [*sorted(spans), (len(data), len(data))]:
        if start > end and any(data[end:start]):
            yield Finding("file", f"bytes {end} to {start} belong to nothing in it")
        end = max(end, stop)
    if end > len(data):
        yield Finding("file", "a table of its symbols lies outside")
    if image.data[16:18] != b"\3\0":
        yield Finding("file", "is not a shared library")


def glibc_floor(image: Image) -> tuple[int, int]:
    """Return the oldest glibc (major, minor) that has every version asked for."""
    numbers = [v[6:].split(".") for v in image.versions() if v.startswith("GLIBC_2")]
    return max(((int(n[0]), int(n[1])) for n in numbers), default=(2, 0))
