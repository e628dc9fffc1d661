"""The C tables of a library, decoded from the mapped file: do they say what its JSON says?

The structures are those of compiler/link/c/plan.h and intformer.h on a 64-bit little-endian
machine.
"""

import ctypes
from collections.abc import Iterator
from ctypes import c_bool, c_int32, c_int64, c_uint8, c_uint32, c_uint64

from intformer.backends import targets
from intformer.ir.model import INPUTS
from intformer.ir.plan import COUNTS, Buffer, Launch, Plan, Step
from intformer.link import build as linker
from intformer.passes.memory import ROWS, block_bytes
from intformer.proof.finding import Finding
from intformer.proof.report import Check
from intformer.runtime import LibraryFile
from intformer.runtime.image import EXECUTE, Image

KINDS = ("input", "buffer", "constant")
POINTER = c_uint64


def _struct(named: str, /, **fields: type) -> type[ctypes.Structure]:
    return type(named, (ctypes.LittleEndianStructure,), {"_fields_": list(fields.items())})


API = _struct(
    "intformer_api",
    size=c_uint32,
    abi_version=c_uint32,
    output_channels=c_uint32,
    name=POINTER,
    build_id=POINTER,
    functions=POINTER * 11,
)
TABLE = _struct(
    "plan_table",
    size=c_uint32,
    zero=c_uint32,
    api=POINTER,
    blob=POINTER,
    blob_size=c_uint64,
    tensors=POINTER,
    num_tensors=c_int32,
    steps=POINTER,
    num_steps=c_int32,
    launches=POINTER,
    num_launches=c_int32,
    args=POINTER,
    num_args=c_int32,
    outputs=POINTER,
    slots=POINTER,
    num_slots=c_int32,
    variants=POINTER,
    num_variants=c_int32,
    output=c_int32,
    output_columns=POINTER,
    vocab_size=c_int32,
    type_vocab_size=c_int32,
    num_position_ids=c_int32,
    first_position=c_int32,
    max_length=c_int32,
    max_rows=c_int32,
    takes_types=c_bool,
    takes_positions=c_bool,
)
TENSOR = _struct(
    "plan_tensor",
    name=POINTER,
    dtype=POINTER,
    kind=c_uint32,
    rows=c_uint32,
    code=c_uint8,
    bits=c_uint8,
    slot=c_int32,
    width=c_int32,
    ndim=c_int32,
    shape=POINTER,
    offset=c_uint64,
)
STEP = _struct(
    "plan_step",
    name=POINTER,
    first_arg=c_int32,
    num_args=c_int32,
    first_output=c_int32,
    num_outputs=c_int32,
    first_launch=c_int32,
    num_launches=c_int32,
)
LAUNCH = _struct(
    "plan_launch",
    function=POINTER,
    limit=c_int64,
    rows=c_uint32,
    grid=c_int32 * 9,
    threads=c_int32,
    shared=c_int32,
)
VARIANT = _struct(
    "plan_variant",
    name=POINTER,
    kernels=POINTER,
    features=POINTER,
    num_features=c_int32,
    major=c_int32,
    minor=c_int32,
    portable=c_bool,
    offset=c_uint64,
)
FEATURE = _struct(
    "plan_feature",
    name=POINTER,
    leaf=c_uint32,
    subleaf=c_uint32,
    reg=c_int32,
    bit=c_int32,
    xcr0=c_uint32,
)


class Reader:
    """Reads structures of C from a library's image."""

    def __init__(self, library: LibraryFile):
        """Read the two tables at whose head the library starts."""
        self.image: Image = library.image
        self.table = self.rows(TABLE, library.table, 1)[0]
        self.api = self.rows(API, library.api, 1)[0]

    def rows(self, kind: type, address: int, count: int) -> list:
        """Return `count` structures or numbers from an address."""
        size = ctypes.sizeof(kind)
        if not 0 <= count <= 1 << 20:
            raise self.image.fault(f"a table of {count} entries")
        raw = self.image.read(address, size * count) if count else b""
        return [kind.from_buffer_copy(raw, i * size) for i in range(count)]

    def numbers(self, kind: type, address: int, count: int) -> list[int]:
        """Return `count` plain numbers from an address."""
        return [number.value for number in self.rows(kind, address, count)]

    def text(self, address: int) -> str | None:
        """Return the string at an address; None for NULL."""
        return self.image.string(address) if address else None


def check_table(library: LibraryFile) -> Check:
    """Compare the tables that the code runs by with plan.json, metadata.json and graph.json."""
    meta = library.graph()["meta"]
    findings = [*different_meta(library.metadata, meta)]
    plan = plan_of(library.plan)
    read = Reader(library)
    limits = linker.limits(plan, meta)
    expected = {**said(library, plan), **{f"limit {name}": n for name, n in limits.items()}}
    found = described(library, read)
    for name in dict.fromkeys([*expected, *found]):
        if expected.get(name) != found.get(name):
            what = f"is {found.get(name)!r} in the C table, {expected.get(name)!r} in its metadata"
            findings.append(Finding(name, what))
    for name, number in limits.items():
        if (stated := library.metadata.get("limits", {}).get(name)) != number:
            findings.append(Finding(f"limit {name}", f"metadata says {stated}, the model {number}"))
    if not findings:
        findings += [*bad_slots(read, plan), *bad_kernels(read)]
    detail = f"{len(expected)} entries"
    return Check("C table", detail, findings)


def different_meta(metadata: dict, meta: dict) -> Iterator[Finding]:
    """Yield keys of metadata.json that are neither the model's own nor added by the linker."""
    for key in sorted({*metadata, *meta} - linker.BUILD_KEYS):
        if metadata.get(key) != meta.get(key) or (key in metadata) != (key in meta):
            here, there = metadata.get(key), meta.get(key)
            yield Finding(f"metadata {key}", f"is {here!r}, {there!r} in the graph")


def plan_of(data: dict) -> Plan:
    """Return the Plan that plan.json describes, without constants."""
    launches = {
        kernel: [Launch(**{**v, "grid": tuple(map(tuple, v["grid"]))}) for v in versions]
        for kernel, versions in data["launches"].items()
    }
    return Plan(
        steps=[Step(s["kernel"], tuple(s["args"]), tuple(s["outputs"])) for s in data["steps"]],
        buffers={name: Buffer(name, **about) for name, about in data["buffers"].items()},
        constants={},
        output=data["output"],
        inputs=tuple(data["inputs"]),
        launches=launches,
    )


def said(library: LibraryFile, plan: Plan) -> dict[str, object]:
    """Return name -> plain data of every table entry, by the JSON that the library carries."""
    metadata = library.metadata
    used = {a for step in plan.steps for a in step.args}
    output = plan.buffers[plan.output]
    columns = output.channel_map
    entries: dict[str, object] = {
        "name": metadata["name"],
        "abi_version": [library.footer.abi, metadata["abi_version"]],
        "build_id": library.footer.build_id.hex(),
        "output": [plan.output, output.channels, None if columns is None else list(columns)],
        "output_channels": metadata["output_channels"],
        "output_rows": [metadata["output_rows"], metadata["output"], metadata["inputs"]],
        "takes": ["token_type_ids" in plan.inputs, "positions" in plan.inputs],
    }
    entries |= {f"tensor {name}": ["input", "int32", rows] for name, rows in INPUTS.items()}
    entries |= {
        f"tensor {b.name}": ["buffer", b.dtype, b.rows, b.width]
        for b in plan.buffers.values()
        if b.name in used
    }
    for name, about in library.packing.items():
        at = library.index.get(f"constants/{name}", (None,))[0]
        entries[f"tensor {name}"] = ["constant", about["dtype"], list(about["shape"]), at]
    for number, step in enumerate(plan.steps):
        launches = [
            [v.function, v.limit, v.rows, [list(axis) for axis in v.grid], v.threads, v.shared]
            for v in plan.launches.get(step.kernel, [])
        ]
        entries[f"step {number}"] = [step.kernel, list(step.args), list(step.outputs), launches]
    family, forms = targets.of_machine(library.image.machine, str(library.path)), []
    for variant in metadata["variants"]:
        carried = targets.of_variant(variant, family).carried_forms(variant)
        if not carried:
            features = [[f, *family.probes.get(f, ())] for f in variant["cpu_features"]]
            forms.append([variant["name"], features])
        for form in carried:
            at = library.index.get(form.section, (None,))[0]
            forms.append([form.name, [*form.capability], form.portable, at])
    return {**entries, "variants": forms}


def described(library: LibraryFile, read: Reader) -> dict[str, object]:
    """Return the same as `said`, by the C tables."""
    table, api, text = read.table, read.api, read.text
    tensors = read.rows(TENSOR, table.tensors, table.num_tensors)
    names = [text(t.name) for t in tensors]
    args = read.numbers(c_int32, table.args, table.num_args)
    steps = read.rows(STEP, table.steps, table.num_steps)
    count = sum(step.num_outputs for step in steps)
    outputs = read.numbers(c_int32, table.outputs, count)
    launches = [
        described_launch(read, v) for v in read.rows(LAUNCH, table.launches, table.num_launches)
    ]
    output = tensors[table.output] if 0 <= table.output < len(tensors) else TENSOR()
    columns = (
        read.numbers(c_int32, table.output_columns, api.output_channels)
        if table.output_columns
        else None
    )
    rows = [*ROWS, *["?"] * 3]
    entries: dict[str, object] = {
        "name": text(api.name),
        "abi_version": [api.abi_version, api.abi_version],
        "build_id": read.image.read(api.build_id, 32).hex(),
        "output": [text(output.name), api.output_channels, columns],
        "output_channels": api.output_channels,
        "output_rows": [rows[output.rows % 6], text(output.name), list(library.plan["inputs"])],
        "takes": [table.takes_types, table.takes_positions],
        "limit vocab_size": table.vocab_size,
        "limit type_vocab_size": table.type_vocab_size,
        "limit first_position": table.first_position,
        "limit positions": table.num_position_ids,
        "limit max_length": table.max_length,
        "limit max_rows": table.max_rows,
    }
    for name, t in zip(names, tensors, strict=True):
        kind = KINDS[t.kind] if t.kind < 3 else "?"
        about = [kind, text(t.dtype)]
        if (text(t.dtype) or "").strip("uint") != str(t.bits) or t.code != (
            about[1] or ""
        ).startswith("u"):
            about.append(f"code {t.code}, {t.bits} bits")
        if kind == "constant":
            about += [read.numbers(c_int64, t.shape, t.ndim), t.offset]
        else:
            about += [rows[t.rows % 6], *([t.width] if kind == "buffer" else [])]
        entries[f"tensor {name}"] = about

    def named(numbers: list[int]) -> list[str | None]:
        return [names[n] if 0 <= n < len(names) else f"tensor number {n}" for n in numbers]

    for number, s in enumerate(steps):
        entries[f"step {number}"] = [
            text(s.name),
            named(args[s.first_arg : s.first_arg + s.num_args]),
            named(outputs[s.first_output : s.first_output + s.num_outputs]),
            launches[s.first_launch : s.first_launch + s.num_launches],
        ]
    forms = []
    for v in read.rows(VARIANT, table.variants, table.num_variants):
        if not v.kernels:
            forms.append([text(v.name), [v.major, v.minor], v.portable, v.offset])
            continue
        features = read.rows(FEATURE, v.features, v.num_features)
        asked = [[text(f.name), f.leaf, f.subleaf, f.reg, f.bit, f.xcr0] for f in features]
        forms.append([text(v.name), asked])
    return {**entries, "variants": forms}


def described_launch(read: Reader, launch: ctypes.Structure) -> list:
    """Return a version of a kernel that is launched as plain data."""
    grid = [[launch.grid[i], launch.grid[i + 1], launch.grid[i + 2]] for i in (0, 3, 6)]
    named = [[COUNTS[c] if 0 <= c < len(COUNTS) else c, d, f] for c, d, f in grid]
    limit = None if launch.limit == 2**63 - 1 else launch.limit
    rows = ROWS[launch.rows] if launch.rows < 3 else launch.rows
    return [read.text(launch.function), limit, rows, named, launch.threads, launch.shared]


def bad_slots(read: Reader, plan: Plan) -> Iterator[Finding]:
    """Yield buffers that do not fit their slot of the arena, or share it while both are in use."""
    table = read.table
    slots = read.rows(c_uint64 * 3, table.slots, table.num_slots)
    slot = {
        read.text(t.name): t.slot
        for t in read.rows(TENSOR, table.tensors, table.num_tensors)
        if t.kind == KINDS.index("buffer")
    }
    used: dict[str, list[int]] = {}
    for number, step in enumerate(plan.steps):
        for name in step.args:
            if name in slot:
                used.setdefault(name, []).append(number)
    used[plan.output].append(len(plan.steps))
    for name, number in slot.items():
        buffer = plan.buffers[name]
        if not 0 <= number < len(slots):
            yield Finding(f"buffer {name}", f"is in slot {number} of {len(slots)}")
        elif slots[number][ROWS.index(buffer.rows)] < block_bytes(buffer):
            yield Finding(f"buffer {name}", f"does not fit into slot {number}")
    spans = sorted((slot[n], min(steps), max(steps), n) for n, steps in used.items())
    busy = {}  # slot -> (last step that uses it, buffer)
    for number, first, last, name in spans:
        until, before = busy.get(number, (-1, ""))
        if first <= until:
            what = f"shares slot {number} with {before} while both are in use"
            yield Finding(f"buffer {name}", what)
        busy[number] = max(busy.get(number, (-1, "")), (last, name))


def bad_kernels(read: Reader) -> Iterator[Finding]:
    """Yield functions of the tables that do not lie in executable code."""
    table = read.table
    listed = (read.api.size - API.functions.offset) // ctypes.sizeof(POINTER)  # less in older ones
    functions = [("function of the C table", list(read.api.functions)[:listed])]
    for v in read.rows(VARIANT, table.variants, table.num_variants):
        if v.kernels:
            kernels = read.numbers(c_uint64, v.kernels, table.num_steps)
            functions.append((f"kernel of {read.text(v.name)}", kernels))
    for what, addresses in functions:
        for address in addresses:
            if not read.image.segment_at(address).flags & EXECUTE:
                yield Finding(what, f"at {address:#x} is not code")
