"""Import the checkpoint again: is the library made from it?"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from intformer.ir.model import IntModel
from intformer.proof.finding import Finding
from intformer.proof.report import Check

MEANING = (  # the meta that decides what goes in and what integers out mean
    *("family", "recipe", "mode", "head", "labels", "problem_type", "pooling", "output_scale"),
    *("vocab_size", "type_vocab_size", "pad_token_id", "position_rule", "max_length"),
    *(
        "truncate_length",
        "score_function",
        "cross_encoder_function",
        "normalize",
        "truncate_dim",
        "prompts",
    ),
    "default_prompt",
)
OTHER_SUMS = (
    "computed by {made}, here by {here}: float32 sums differ in their last digits, and so may all "
    "that is listed; compare where the library was compiled"
)


def check_source(
    model: IntModel,
    source: str | Path,
    calibrate: str | Path | Sequence | None,
    tokenizer: str | Path | None = None,
) -> Check:
    """Import the checkpoint again, as the library's metadata says, and compare what it means.

    Compared are nodes, values (all but the origin of scales, which is prose), output, tensors, the
    meta in MEANING, and every file carried along. Nothing of the library goes into the import.
    """
    from intformer.frontend import import_model
    from intformer.passes.unread_rows import drop_unread_rows

    meta = model.meta
    imported = import_model(
        source,
        recipe=meta["recipe"],
        mode=meta.get("mode"),
        head=meta["head"],
        calibrate=calibrate,
        method=(meta.get("calibration") or {}).get("method"),
        tokenizer=tokenizer,
    )
    again = drop_unread_rows(imported)  # as compile does
    findings = different_graphs(model, again)
    for name in sorted(model.files.keys() | again.files.keys()):
        if model.files.get(name) != again.files.get(name):
            there = "differs from that of" if name in again.files else "is not in"
            there = there if name in model.files else "is missing: it is in"
            findings.append(Finding(f"files/{name}", f"{there} the source"))
    for name in sorted(model.tensors.keys() | again.tensors.keys()):
        here, there = model.tensors.get(name), again.tensors.get(name)
        if here is None or there is None:
            findings.append(Finding(name, f"only in the {'source' if here is None else 'library'}"))
        elif (here.dtype, here.shape) != (there.dtype, there.shape):
            what = f"{here.dtype} {here.shape}, source {there.dtype} {there.shape}"
            findings.append(Finding(name, what))
        elif len(wrong := np.argwhere(here != there)):
            at = tuple(int(i) for i in wrong[0])
            findings.append(Finding(name, f"{list(at)} is {here[at]}, source {there[at]}"))
    made, here = ((one.meta.get("calibration") or {}).get("computed_by") for one in (model, again))
    if findings and made and made != here:
        findings.insert(0, Finding("calibration", OTHER_SUMS.format(made=made, here=here)))
    detail = f"{len(again.nodes)} nodes, {len(again.values)} values, {len(again.tensors)} tensors"
    return Check("source", detail, findings)


def different_graphs(model: IntModel, again: IntModel) -> list[Finding]:
    """Return what differs between the graphs of a library and of its source, tensors aside."""
    here, there = described(model), described(again)
    return [
        Finding(name, f"is {short(here.get(name))}, source {short(there.get(name))}")
        for name in dict.fromkeys([*here, *there])
        if here.get(name) != there.get(name)
    ]


def described(model: IntModel) -> dict[str, object]:
    """Return name -> plain data for every part of a graph that is compared."""
    graph = json.loads(json.dumps(model.to_json()))  # tuples are lists in a library
    for value in graph["values"].values():
        del value["origin"]
    return {
        **{f"node {i}": node for i, node in enumerate(graph["nodes"])},
        **{f"value {name}": value for name, value in graph["values"].items()},
        "output": graph["output"],
        **{f"meta {key}": graph["meta"].get(key) for key in MEANING},
    }


def short(part: object) -> str:
    """Return plain data in at most 60 characters."""
    text = "absent" if part is None else json.dumps(part)
    return text if len(text) <= 60 else f"{text[:57]}..."
