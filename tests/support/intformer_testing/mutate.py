"""Seeded damage to model directories: one file of one directory, changed in one way."""

import json
import os
import random
import struct
from pathlib import Path

VALUES = (
    *(None, True, False, 0, -1, 1, 2, 7, 2**31, 10**9, 10**18, 10**400, 1e30, -0.5, float("nan")),
    *("", "a", "../x", "/etc/passwd", "\ud800", "a\0b", "x" * 5000, "é\n\x1b[31m", "bert", "gelu"),
    *([], {}, [None], ["a"], [[]], {"a": 1}, [1] * 50, {"": ""}, {"0": "a"}),
)
RAW = (
    b"",
    b"null",
    b"[]",
    b'"text"',
    b"7",
    b"NaN",
    b"{",
    b"\xff\xfe",
    b"\xef\xbb\xbf{}",
    b"[" * 200_000,
    b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    b'{"a": ' + b"9" * 5000 + b"}",
    b'{"vocab_size": 1, "vocab_size": 2}',
)


def damage(folder: Path, rng: random.Random) -> str:
    """Change one file of the directory; return what was done."""
    file = rng.choice(sorted(file for file in folder.rglob("*") if file.is_file()))
    name, data = str(file.relative_to(folder)), file.read_bytes()
    if rng.random() < 0.05:
        return f"{name}: {_replaced(file, rng)}"
    if file.suffix == ".json":
        change = rng.choice((_json, _json, _json, _json, _raw, _bytes))
    elif file.suffix == ".safetensors":
        change = rng.choice((_header, _header, _header, _bytes))
    else:
        change = _bytes
    changed, said = change(data, rng)
    file.write_bytes(changed)
    return f"{name}: {said}"


def _replaced(file: Path, rng: random.Random) -> str:
    file.unlink()
    kind = rng.choice(("nothing", "a directory", "a pipe", "a link outside", "a link to itself"))
    if kind == "a directory":
        file.mkdir()
    elif kind == "a pipe":
        os.mkfifo(file)
    elif kind == "a link outside":
        file.symlink_to("/etc/hostname")
    elif kind == "a link to itself":
        file.symlink_to(file.name)
    return f"replaced by {kind}"


def _json(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    value, said = altered(json.loads(data), rng)
    return json.dumps(value).encode(), said


def altered(value, rng: random.Random):
    """Return a parsed JSON value with one entry changed, and what was done."""
    root = [value]
    holder, key, path = root, 0, ""
    while isinstance(holder[key], dict | list) and holder[key] and (not path or rng.random() < 0.8):
        holder = holder[key]
        key = rng.choice(sorted(holder) if isinstance(holder, dict) else range(len(holder)))
        path += f".{key}"
    kind = rng.random()
    if kind < 0.15 and holder is not root:
        del holder[key]
        return root[0], f"{path} deleted"
    if kind < 0.25 and isinstance(holder, dict):
        new = rng.choice([v for v in VALUES if isinstance(v, str)])
        holder[new] = holder.pop(key)
        return root[0], f"{path} renamed to {new[:40]!r}"
    new = rng.choice(VALUES)
    if kind < 0.35 and type(holder[key]) is int:
        new = holder[key] + rng.choice((-1, 1))
    holder[key] = new
    return root[0], f"{path} = {ascii(new)[:40]}"


def _raw(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    raw = rng.choice(RAW)
    return raw, f"{raw[:20]!r}... of {len(raw)} bytes"


def _bytes(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    kind = rng.choice(("cut", "flip", "flip", "zero", "insert"))
    at = rng.randrange(min(len(data), 4000) if rng.random() < 0.7 else len(data))
    if kind == "cut":
        return data[:at], f"cut at {at}"
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[
            at + 1 :
        ], f"bit at {at}"
    if kind == "zero":
        return data[:at] + bytes(len(data[at : at + 16])) + data[at + 16 :], f"zeros at {at}"
    return data[:at] + rng.randbytes(5) + data[at:], f"five bytes at {at}"


def _header(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Change the JSON header of a safetensors file."""
    (length,) = struct.unpack("<Q", data[:8])
    if rng.random() < 0.1:
        new = rng.choice((0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1))
        return struct.pack("<Q", new) + data[8:], f"header length {new}"
    header = json.loads(data[8 : 8 + length])
    if rng.random() < 0.4:
        key = rng.choice([key for key in header if key != "__metadata__"])
        kind = rng.choice(("BOOL", "I8", "I64", "F8_E4M3", "F16", "BF16", "F64", "C64", "X"))
        header[key]["dtype"], said = kind, f"{key} is {kind}"
        if rng.random() < 0.7:  # of a size that fits
            width = {"F64": 8, "I64": 8, "C64": 8, "F16": 2, "BF16": 2}.get(kind, 1)
            first, last = header[key]["data_offsets"]
            header[key]["shape"] = [(last - first) // width]
    else:
        header, said = altered(header, rng)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :], f"header {said}"
