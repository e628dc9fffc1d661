"""The command `intformer`: parses, calls the Python API, prints.

Every verb returns its result as plain data and as lines of text; --json prints the data. Heavy
imports happen inside the verb that needs them.
"""

import argparse
import json
import math
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

import intformer
from intformer import knobs, scratch
from intformer.errors import IntformerError, missing_extra

HEADS = (
    *("features", "sentence-embedding", "sequence-classification", "token-classification"),
    *("question-answering", "masked-lm"),
)
METHODS = ("ema", "minmax", "percentile", "mse")
TOKENS = (1, 16, 64, 128, 384, 1024, 4096)  # `tune` measures at these
Result = tuple[object, Iterable[str]]  # plain data, and the same as text


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 0 fine, 1 a fault named on stderr, 2 wrong usage."""
    args = parser().parse_args(argv)
    scratch.ends_by_signal()
    try:
        data, lines = args.verb(args)
        print(json.dumps(data, indent=2) if args.json else "\n".join(lines), flush=True)
        return 0 if not isinstance(data, dict) or data.get("ok", True) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `| head` has read enough
        sys.stderr.close()
        return 1
    except (IntformerError, ModuleNotFoundError, OSError, MemoryError) as error:
        fault = as_fault(error)
        if knobs.debug():
            traceback.print_exc()
        print(f"error: {fault}", file=sys.stderr)
        if args.json:
            about = {"what": fault.what, "where": fault.where, "hint": fault.hint}
            print(json.dumps({"ok": False, "error": about}, indent=2))
        return 1


def as_fault(error: Exception) -> IntformerError:
    """Return an error as what, where and hint; raise it again if it is none of ours."""
    if isinstance(error, IntformerError):
        return error
    if isinstance(error, OSError):
        what = error.strerror or str(error)
        return IntformerError(what.lower(), where=str(error.filename or ""))
    if isinstance(error, MemoryError):
        return IntformerError("not enough memory", hint="close other programs, or use less text")
    return missing_extra(error)


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return aligned columns; numbers to the right, the rest to the left."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [header, *cells]) for i in range(len(header))]

    def numeric(text: str) -> bool:
        return text[:1].isdigit() or text[:1] in "-+" or not text

    right = [bool(cells) and all(numeric(row[i]) for row in cells) for i in range(len(header))]
    return [
        "  ".join(
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ).rstrip()
        for row in [header, *cells]
    ]


class Progress:
    """Says on stderr what has started, with the seconds so far, where a person is watching."""

    def __init__(self):
        """Start the clock."""
        self.start = time.monotonic()

    def __call__(self, what: str) -> None:
        """Show one line."""
        if sys.stderr.isatty():
            print(f"[{time.monotonic() - self.start:5.1f}s] {what}", file=sys.stderr)


# ---- verbs ----


def compile_verb(args: argparse.Namespace) -> Result:
    """Checkpoint to library."""
    from intformer.pipeline import compile

    progress = Progress()
    library = compile(
        args.source,
        args.output,
        target=args.target,
        recipe=args.recipe,
        mode=args.mode,
        head=args.head,
        calibrate=args.calibrate,
        method=args.method,
        tokenizer=args.tokenizer,
        name=args.name,
        header=args.header,
        dump_ir=args.dump_ir,
        tuning_logs=args.tuning_logs,
        cache=not args.no_cache,
        progress=progress,
    )
    about = library.metadata
    data = {
        "ok": True,
        "library": str(args.output),
        "bytes": args.output.stat().st_size,
        "seconds": round(time.monotonic() - progress.start, 1),
        **{key: about.get(key) for key in ("name", "target", "recipe", "mode", "head")},
        "calibration": about.get("calibration"),
        "warnings": about.get("warnings", []),
    }
    lines = [
        f"{args.output}: {data['bytes'] / 1e6:.1f} MB, {about['head']}, recipe {about['recipe']}, "
        f"target {about['target']}, {data['seconds']} s",
        *calibration_lines(about),
        *(f"warning: {warning}" for warning in data["warnings"]),
        f"next: intformer verify {args.output}",
    ]
    return data, lines


def calibration_lines(about: dict) -> list[str]:
    """Return what calibration chose, in a line; nothing where scales came from the checkpoint."""
    calibration = about.get("calibration")
    if not calibration:
        return []
    if "held_out_snr_db" not in calibration:  # I-BERT: the checkpoint has its ranges
        counted = f"{calibration['sequences']} sequences ({calibration['tokens']} tokens)"
        return [f"calibrated on {counted}"]
    judged = "not measured, nothing was held out"
    if scores := calibration["held_out_snr_db"]:
        found = dict(scores[calibration["method"]])
        judged = f"{found.pop('ordinary')} dB on {calibration['held_out_sequences']} held-out"
        judged += " sequences" + "".join(f", {db} dB on {kind} text" for kind, db in found.items())
    least, median, most = calibration["lengths"]
    types = " and ".join(map(str, calibration["token_types"]))
    return [
        f"calibrated by {calibration['method']} on {calibration['sequences']} sequences "
        f"({calibration['tokens']} tokens, {least} to {most} in a sequence, median {median}, "
        f"token types {types}): {judged}"
    ]


def run_verb(args: argparse.Namespace) -> Result:
    """Texts to answers."""
    from intformer.runtime import load
    from intformer.runtime.edge import predict
    from intformer.runtime.texts import decoded, parse_texts, read_texts

    texts, pairs = args.text, args.pair
    if texts is None:
        if args.file == "-":
            rows = parse_texts(decoded(sys.stdin.buffer.read(), "stdin"), "stdin")
        else:
            rows = read_texts(args.file)
        texts = [row[0] for row in rows]
        pairs = [row[1] for row in rows] if rows and len(rows[0]) == 2 else None
    if not texts:
        raise IntformerError("no texts", where=args.file, hint="--text TEXT, or a line each")
    library = load(args.library)
    options = {"top_k": args.top_k} if library.metadata["head"] == "masked-lm" else {}
    if args.prompt is not None:
        options["prompt_name"] = args.prompt
    answers = list(predict(library, texts, pairs, batch=args.batch, **options))
    rows = list(zip(texts, pairs, strict=True)) if pairs else [(text,) for text in texts]
    data = [
        {"texts": list(row), "answer": plain(answer)}
        for row, answer in zip(rows, answers, strict=True)
    ]
    lines = [
        f"{shown(answer)}\t{' | '.join(row)}" for row, answer in zip(rows, answers, strict=True)
    ]
    return data, lines


def plain(answer: object) -> object:
    """Return an answer without NumPy in it."""
    return answer.tolist() if hasattr(answer, "tolist") else answer


def shown(answer: object) -> str:
    """Return an answer in a few words."""
    if hasattr(answer, "tolist"):
        flat = answer.reshape(-1)
        more = ", ..." if flat.size > 4 else ""
        return f"[{', '.join(f'{x:+.4f}' for x in flat[:4])}{more}] {list(answer.shape)}"
    if isinstance(answer, dict):
        return f"{answer.get('label', answer.get('answer'))} {answer['score']:.4f}"
    parts = [part[0] if isinstance(part, list) else part for part in answer]
    return " ".join(
        f"{p['token']}/{p['label']}" if "label" in p else f"{p['token']} {p['score']:.4f}"
        for p in parts
    )


def eval_verb(args: argparse.Namespace) -> Result:
    """Accuracy on labelled data."""
    from intformer.measure.accuracy import evaluate

    result = evaluate(
        args.library,
        args.task,
        args.data,
        args.source,
        limit=args.limit,
        batch=args.batch,
        progress=Progress(),
    )
    columns = ["metric", "integer"]
    rows = [[name, f"{value:.4f}"] for name, value in result.integer.items()]
    if result.float is not None:
        columns += ["FP32", "difference"]
        for row, name in zip(rows, result.integer, strict=True):
            difference = result.integer[name] - result.float[name]
            row += [f"{result.float[name]:.4f}", f"{difference:+.4f}"]
    lines = [f"{args.task}: {result.rows} rows, {result.tokens} tokens", *table(columns, rows)]
    if result.changed is not None:
        lines.append(f"predictions changed: {result.changed} of {result.rows}")
    return result.to_json(), lines


def train_verb(args: argparse.Namespace) -> Result:
    """Fine-tuning in FP32, then with quantization."""
    from dataclasses import fields

    from intformer.qat.training import Settings, train

    settings = Settings(**{one.name: getattr(args, one.name) for one in fields(Settings)})
    result = train(args.source, args.train, args.dev, args.output, settings, Progress())
    stages = result["stages"]
    rows = [
        (metric, *(f"{stage['dev'][metric]:.4f}" for stage in stages.values()))
        for metric in next(iter(stages.values()))["dev"]
    ]
    made = args.output / list(stages)[-1]
    lines = [
        ", ".join(f"{name} {count} rows" for name, count in result["rows"].items()),
        *(table(["dev", *stages], rows) if args.dev else []),
        f"{made}, {args.output / 'metrics.json'}, {args.output / 'curve.png'}",
    ]
    if args.nonlinear == "integer" or "qat" not in stages:  # no integer program is plain Q8BERT
        ranges = "" if "qat" in stages else f" --calibrate {args.train}"
        lines.append(f"next: intformer compile {made} -o {args.task}.so{ranges}")
    return result, lines


def analyze_verb(args: argparse.Namespace) -> Result:
    """Why accuracy is lost."""
    from intformer.analysis import report
    from intformer.analysis.study import study
    from intformer.measure.bench import command

    report.check(args.output)
    found = study(
        args.source,
        args.calibrate,
        method=args.method,
        mode=args.mode,
        head=args.head,
        tokenizer=args.tokenizer,
        rows=args.rows,
        qat_steps=args.qat_steps,
        command=command(),
        progress=Progress(),
    )
    report.write(found, args.output)
    rows = [
        (r.name, f"{r.share:.1%}", decibels(r.grid_db), decibels(r.total_db), r.cause, r.why)
        for r in found.ranked()[:10]
    ]
    tried = [
        (r.name, f"{r.snr_db:.1f}", f"{r.agreement:.4f}", r.options or "") for r in found.remedies
    ]
    tried += [(name, "", "", f"not tried: {why}") for name, why in found.untried.items()]
    lines = [
        f"output: {found.snr_db:.1f} dB against FP32, {found.agreement_of} {found.agreement:.4f}, "
        f"on {found.held_sequences} held-out sequences ({found.held_tokens} tokens)",
        "",
        *table(["tensor", "share", "grid dB", "so far dB", "cause", "why"], rows),
        "",
        *table(["scales", "SNR dB", found.agreement_of, "option of compile"], tried),
        "",
        f"{args.output}: every tensor, with plots",
    ]
    return {**found.to_json(), "report": str(args.output)}, lines


def decibels(value: float | None) -> str:
    """Return an SNR; nothing where there is none."""
    return "" if value is None else f"{value:.1f}"


def tune_verb(args: argparse.Namespace) -> Result:
    """Auto-scheduling."""
    from dataclasses import asdict

    from intformer.measure.bench import command
    from intformer.tuning.driver import tune

    start = time.monotonic()

    def progress(line: str) -> None:
        print(f"[{time.monotonic() - start:6.1f}s] {line}", file=sys.stderr, flush=True)

    report = tune(
        args.source,
        shape=args.shape,
        target=args.target,
        trials=args.trials,
        out=args.out,
        tokens=args.tokens,
        rpc=args.rpc,
        rpc_key=args.rpc_key,
        timeout=args.timeout,
        jobs=args.jobs,
        threads=args.threads,
        seed=args.seed,
        command=command(),
        progress=progress,
    )
    rows = [
        (
            *(line.kernel, line.rows, f"{line.default * 1e3:.3f}", f"{line.chosen * 1e3:.3f}"),
            f"{line.ratio:.2f}x",
            " ".join(f"{name}={value}" for name, value in line.decisions.items()),
        )
        for line in report.lines
    ]
    failed = ", ".join(f"{kind}: {count}" for kind, count in report.failures.items()) or "none"
    lines = [
        *table(["kernel", "rows", "default ms", "tuned ms", "ratio", "decisions"], rows),
        "",
        f"{report.trials} candidates measured; failed in this run: {failed}",
        f"next: intformer compile SRC -o LIB --target {report.target} --tuning-logs {report.logs}",
    ]
    return asdict(report), lines


def rpc_server_verb(args: argparse.Namespace) -> NoReturn:
    """Measuring for others."""
    from intformer.tuning.remote import serve

    serve(args.tracker, args.key, args.host, args.port, partial(print, file=sys.stderr, flush=True))


def verify_verb(args: argparse.Namespace) -> Result:
    """Proof that a library is integer-only and exact."""
    from intformer.proof.verify import verify
    from intformer.runtime.texts import read_texts

    report = verify(
        args.library,
        args.source,
        calibrate=args.calibrate,
        tokenizer=args.tokenizer,
        texts=read_texts(args.texts)[: args.limit] if args.texts else (),
        cases=args.cases,
        seed=args.seed,
        run=not args.no_run,
        progress=Progress(),
    )
    lines = []
    for check in report.checks:
        mark = ("ok  " if check.ok else "FAIL") if check.ran else "----"
        lines.append(f"{mark}  {check.name}: {check.detail}")
        lines += [f"        {where}: {what}" for where, what in check.findings[:10]]
        if len(check.findings) > 10:
            lines.append(f"        and {len(check.findings) - 10} more (--json shows all)")
    lines += [report.scope, verified_line(report)]
    return report.to_json(), lines


def verified_line(report) -> str:
    """Return the verdict in a line; what did not run is named."""
    unrun = " and ".join(dict.fromkeys(check.name for check in report.checks if not check.ran))
    if report.ok:
        return f"verified, except {unrun}" if unrun else "verified"
    if all(check.ok or not check.ran for check in report.checks):
        return f"NOT verified: {unrun} did not run here - --no-run leaves them out"
    return "NOT verified"


def inspect_verb(args: argparse.Namespace) -> Result:
    """What a library says of itself."""
    from intformer.runtime import LibraryFile

    library = LibraryFile(args.library)
    graph = library.graph()
    about = {k: v for k, v in library.metadata.items() if k not in ("labels", "variants")}
    kernels: dict[str, int] = {}
    for step in library.plan["steps"]:
        kernels[step["kernel"]] = kernels.get(step["kernel"], 0) + 1
    ops: dict[str, int] = {}
    for node in graph["nodes"]:
        ops[node["op"]] = ops.get(node["op"], 0) + 1
    data = {
        "library": str(args.library),
        "bytes": Path(args.library).stat().st_size,
        "metadata": library.metadata,
        "not_run_here": not_run_here(library),
        "ops": ops,
        "kernels": kernels,
        "values": graph["values"],
    }
    lines = [f"{args.library}: {data['bytes'] / 1e6:.1f} MB"]
    about["tuning"] = ", ".join(
        f"{chip} tuned {found['tuned']}/{found['kernels']} ({found['logs']})"
        for chip, found in about.get("tuning", {}).items()
    )
    lines += table(["key", "value"], [(key, short(value)) for key, value in about.items()])
    lines += calibration_lines(about)
    lines += ["", *table(["variant", "here", "needs"], variant_rows(library, data))]
    lines += ["", *table(["op", "count"], ops.items())]
    lines += ["", *table(["kernel", "steps"], kernels.items())]
    values = graph["values"].items() if args.values else ()
    if args.values:
        rows = [(n, v["dtype"], v["rows"], short(v["scale"]), v["origin"]) for n, v in values]
        lines += ["", *table(["value", "dtype", "rows", "scale", "origin of the scale"], rows)]
    else:
        lines += ["", "scales and their origins: --values"]
    return data, lines


def not_run_here(library) -> dict[str, str]:
    """Return why variants do not run on this machine, by what the system says of its CPU."""
    from intformer.backends.x86.features import host_features

    have = host_features()
    lacks = {name: set(features) - have for name, features in library.variants.items()}
    return {name: f"this CPU lacks {', '.join(sorted(f))}" for name, f in lacks.items() if f}


def variant_rows(library, data: dict) -> list[tuple[str, str, str]]:
    """Return a line for each variant: its name, whether this CPU has what it needs, its needs."""
    rows = []
    arches = {v["name"]: v["arch"] for v in library.metadata["variants"]}
    for name, features in library.variants.items():
        here = data["not_run_here"].get(name, "runs")
        needs = " ".join(features) or "any x86-64"
        if arches[name]:
            here, needs = "not tried", f"GPU, {arches[name]} or newer"
        rows.append((name, here, needs))
    return rows


def short(value: object) -> str:
    """Return a value in at most a line."""
    if isinstance(value, list) and len(value) > 4 and all(isinstance(v, float) for v in value):
        return f"{min(value):.4g} .. {max(value):.4g}, {len(value)} channels"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def targets_verb(args: argparse.Namespace) -> Result:
    """Chips we compile for."""
    from intformer.backends.targets import TARGETS
    from intformer.backends.x86.features import host_features

    have, lacks_gpu = host_features(), _gpu_check()
    data = {
        name: {
            "title": target.title,
            "cpu_features": list(target.features),
            "variants": list(target.variants),
            "missing_here": lacks_gpu(target.arch)
            if target.arch
            else [feature for feature in target.features if feature not in have],
        }
        for name, target in TARGETS.items()
    }
    rows = []
    for name, about in data.items():
        missing = about["missing_here"]
        rows.append((name, about["title"], f"lacks {' '.join(missing)}" if missing else "runs it"))
    return data, table(["target", "what it is", "this machine"], rows)


def _gpu_check() -> Callable[[str], list[str]]:
    """Return a function of an arch: what this machine lacks to run it; newer GPUs do, too."""
    from intformer.backends.cuda.device import Device
    from intformer.ir.plan import capability

    try:
        have = Device().capability
    except IntformerError as error:
        missing = [f"a GPU: {error.what}"]
        return lambda arch: missing
    return lambda arch: [] if have >= capability(arch) else [f"a GPU with {arch} or newer"]


def ops_verb(args: argparse.Namespace) -> Result:
    """Error of every integer op against float."""
    from dataclasses import asdict

    from intformer.measure import op_errors

    progress, rows = Progress(), []
    for row in op_errors.rows():
        progress(f"{row.op}, {row.recipe}: {row.domain}")
        rows.append(row)
    data = {
        "ok": all(row.ok for row in rows),
        "rows": [{**asdict(row), "ok": row.ok} for row in rows],
    }
    header = ("op", "recipe", "swept", "measure", "error", "bound", "")
    lines = [
        (r.op, r.recipe, r.domain, r.measure, f"{r.error:.3g}", f"{r.bound:.3g}", verdict(r.ok))
        for r in rows
    ]
    return data, table(header, lines)


def verdict(ok: bool) -> str:
    """Return a word for the last column of a table."""
    return "ok" if ok else "FAIL"


def bench_verb(args: argparse.Namespace) -> Result:
    """Speed, beside PyTorch; or predicted for a GPU that is not here."""
    from intformer.measure import bench

    if args.predict:
        return predicted(args)
    races = bench.run(
        args.library,
        args.source,
        shape=args.shape,
        target=args.target,
        batch=args.batch,
        tokens=args.tokens,
        data=args.data,
        limit=args.limit,
        against=args.against,
        threads=args.threads,
        seconds=args.seconds,
        per_op=args.per_op,
        progress=Progress(),
    )
    return races.to_json(), bench_lines(races)


def predicted(args: argparse.Namespace) -> Result:
    """Predict a library, or random weights of a shape, on a GPU by its public limits."""
    from intformer.measure.bench import compile_shape
    from intformer.measure.prediction import chips, predict
    from intformer.runtime import load

    progress = Progress()
    if (args.library is None) == (args.shape is None):
        raise IntformerError("a prediction needs a library, or a shape", hint="LIB, or --shape")
    with scratch.folder() as folder:
        path = args.library
        if path is None:
            target = chips.get(args.predict).target if args.target == "host" else args.target
            path, _ = compile_shape(args.shape, target, Path(folder), progress)
        found = predict.predict(
            load(path, run=False),
            args.predict,
            args.shapes or predict.GRID,
            ghz=args.clock,
            watts=args.watts,
            progress=progress,
        )
    return found.to_json(), prediction_lines(found)


def prediction_lines(found) -> list[str]:
    """Return the tables of a prediction: the shapes, and the kernels of the first of them."""
    state = "checked against measured times" if found.checked else "UNCHECKED against any GPU"
    others = list(dict.fromkeys(who for shape in found.shapes for who in shape.published))
    rows = [
        (
            f"{shape.batch}x{shape.tokens}",
            f"{shape.milliseconds:.2f}",
            f"{shape.ghz:.2f}",
            "" if shape.watts is None else f"{shape.watts:.0f}",
            f"{shape.gaps:.2f}",
            *(f"{shape.published[who]:.2f}" if who in shape.published else "" for who in others),
        )
        for shape in found.shapes
    ]
    first = found.shapes[0]
    kernels = [
        (
            kernel.kernel,
            kernel.calls,
            f"{kernel.microseconds:.1f}",
            kernel.blocks,
            kernel.resident,
            f"{kernel.instructions:.1f}",
            f"{kernel.memory:.1f}",
            f"{kernel.cache:.1f}",
            kernel.binds,
        )
        for kernel in first.kernels
    ]
    header = ["kernel", "calls", "us", "blocks", "an SM holds"]
    header += ["instructions", "memory", "cache", "binds"]
    return [
        f"PREDICTION for {found.title} from its public limits, {state}",
        f"{found.library}; at most {found.ghz} GHz and {found.watts:g} W",
        "",
        *table(
            ["shape", "predicted ms", "GHz", "W", "of it gaps", *(f"{w}, ms" for w in others)], rows
        ),
        "",
        f"kernels of {first.batch}x{first.tokens}, microseconds of one launch",
        *table(header, kernels),
        "",
        "assumed:",
        *(f"  {line}" for line in found.assumptions),
    ]


def bench_lines(race) -> list[str]:
    """Return the tables of a race."""
    rows = [
        (row.name, f"{row.median:.2f}", f"{row.p10:.2f}", f"{row.p90:.2f}", f"{row.ratio:.2f}x")
        for row in race.rows
    ]
    lines = [
        race.title,
        "; ".join(f"{key} {value}" for key, value in race.machine.items()),
        "",
        *table(["contestant", "median ms", "p10", "p90", "ours is faster by"], rows),
    ]
    if race.ops:
        ops = [
            (
                op.name,
                op.calls,
                f"{op.milliseconds:.3f}",
                f"{100 * op.share:.1f} %",
                f"{op.bytes / 1e6:.2f}",
                f"{op.operations / 1e9:.3f}" if op.operations else "",
                f"{op.gops:.0f}" if op.gops else "",
                f"{100 * op.roof:.0f} %" if op.roof else "",
                op.bound or "",
            )
            for op in race.ops
        ]
        header = ["kernel", "calls", "ms", "share", "MB", "GOP", "GOP/s", "of roof", "bound by"]
        lines += ["", *table(header, ops)]
    if race.verified is not None:
        failed = f"NOT verified: {'; '.join(race.unverified)}"
        lines += ["", f"raced libraries: {'verified' if race.verified else failed}"]
    return lines


# ---- arguments ----


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def count_or_none(text: str) -> int:
    """Parse a whole number."""
    return 0 if text == "0" else positive(text)


def counts(text: str) -> tuple[int, ...]:
    """Parse whole numbers with commas between them."""
    return tuple(positive(part) for part in text.split(","))


def shapes(text: str) -> tuple[tuple[int, int], ...]:
    """Parse BATCHxTOKENS with commas between them."""
    found = [re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", part) for part in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text!r} is no list such as 1x128,8x256")
    return tuple((int(one[1]), int(one[2])) for one in found)


def amount(text: str) -> float:
    """Parse a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


def output_file(text: str) -> Path:
    """Parse the path of a library to write."""
    if Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"output cannot be a directory: {text}")
    return Path(text)


def parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    top = argparse.ArgumentParser(
        prog="intformer", description="Transformer encoders as integer-only shared libraries."
    )
    top.add_argument("--version", action="version", version=f"intformer {intformer.__version__}")
    verbs = top.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, function, description: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=description, description=description)
        sub.add_argument("--json", action="store_true", help="print the result as JSON")
        sub.set_defaults(verb=function)
        return sub

    sub = verb("compile", compile_verb, "make a library from a Hugging Face model directory")
    sub.add_argument("source", help="directory with config.json and weights")
    sub.add_argument("-o", "--output", type=output_file, required=True, help="library to write")
    sub.add_argument("--target", default="host", help="see `targets` (default: host, this CPU)")
    sub.add_argument(
        "--calibrate",
        metavar="FILE",
        help="a text per line, two with a tab between them, or a TSV with a header",
    )
    sub.add_argument("--recipe", choices=("native", "ibert"), help="(default: what SRC calls for)")
    sub.add_argument("--mode", choices=("hf_compat", "fixed"), help="scales of an IBert checkpoint")
    sub.add_argument("--head", choices=HEADS, help="(default: what the directory says)")
    sub.add_argument(
        "--method",
        choices=METHODS,
        help="of calibration (default: the best on held-out text)",
    )
    sub.add_argument("--tokenizer", metavar="FILE", help="a tokenizer.json to carry instead")
    sub.add_argument("--name", help="of intformer_get_NAME() (default: from the file name)")
    sub.add_argument("--header", action="store_true", help="write the C files beside it")
    sub.add_argument("--dump-ir", type=Path, metavar="DIR", help="write the module of each phase")
    sub.add_argument(
        "--tuning-logs",
        default="packaged",
        metavar="DIR|none",
        help="what `tune` wrote (default: what comes with intformer)",
    )
    sub.add_argument("--no-cache", action="store_true", help="compile every kernel anew")

    sub = verb("train", train_verb, "fine-tune, then train with quantization; goes on after a kill")
    sub.add_argument("source", help="directory of a pretrained encoder")
    sub.add_argument(
        "--task",
        required=True,
        help="sst2, stsb, ..., classification, token-classification or question-answering",
    )
    sub.add_argument("--train", required=True, metavar="FILE", help="labelled rows")
    sub.add_argument("--dev", metavar="FILE", help="labelled rows, scored once by each stage")
    sub.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="to make")
    sub.add_argument("--recipe", choices=("native", "ibert"), default="native")
    sub.add_argument(
        "--nonlinear",
        choices=("integer", "float"),
        default="integer",
        help="softmax, GELU, LayerNorm (float, with --weights tensor: Q8BERT)",
    )
    sub.add_argument("--weights", choices=("channel", "tensor"), default="channel", help="scales")
    for option, kind, default, text in (
        ("--epochs", count_or_none, 3, "of the FP32 stage; 0: SRC is fine-tuned"),
        ("--qat-epochs", count_or_none, 1, "with quantization; 0: none"),
        ("--lr", float, 5e-5, "learning rate of the FP32 stage"),
        ("--qat-lr", float, 2e-5, "learning rate with quantization"),
        ("--batch", positive, 16, "sequences in a step"),
        ("--max-length", positive, 128, "tokens in a sequence"),
        ("--seed", int, 0, "of everything by chance"),
        ("--patience", positive, 4, "evaluations without a better score before a stage ends"),
    ):
        sub.add_argument(option, type=kind, default=default, help=f"{text} (default: {default})")
    sub.add_argument("--rows", type=positive, help="training rows to take by chance (default: all)")
    sub.add_argument("--distill", action="store_true", help="learn from the FP32 model too")
    sub.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16"),
        default="auto",
        help="of matrix products in training (default: bf16 where the hardware has it)",
    )

    sub = verb("run", run_verb, "answer texts: --text, a file, or lines on stdin")
    sub.add_argument("library")
    sub.add_argument("--text", action="append", help="a text; may be repeated")
    sub.add_argument("--pair", action="append", help="second text (document) of each --text")
    sub.add_argument("--file", default="-", help="a text a line, two with a tab (default: stdin)")
    sub.add_argument("--batch", type=positive, default=32, help="texts a batch (default: 32)")
    sub.add_argument("--top-k", type=positive, default=5, help="masked LM (default: 5)")
    sub.add_argument("--prompt", metavar="NAME", help="prompt of the model put before each text")

    sub = verb("eval", eval_verb, "accuracy on labelled data, beside the FP32 source")
    sub.add_argument("library")
    sub.add_argument("--task", required=True, help="sst2, stsb, mrpc, rte, cola, qnli, mnli, ...")
    sub.add_argument("--data", required=True, metavar="TSV", help="idx label sentence[1 sentence2]")
    sub.add_argument("--source", metavar="SRC", help="directory of the FP32 model")
    sub.add_argument("--limit", type=positive, help="rows to take (default: all)")
    sub.add_argument("--batch", type=positive, default=32, help="texts a batch (default: 32)")

    sub = verb("analyze", analyze_verb, "show where accuracy is lost and what helps, as HTML")
    sub.add_argument("source", help="directory with config.json and weights")
    sub.add_argument(
        "--calibrate",
        metavar="FILE",
        required=True,
        help="a text per line, two with a tab between them, or a TSV with a header",
    )
    sub.add_argument(
        "-o", "--output", type=output_file, required=True, metavar="HTML", help="report to write"
    )
    sub.add_argument(
        "--method", choices=METHODS, help="of calibration (default: the best on held-out text)"
    )
    sub.add_argument("--rows", type=positive, help="of FILE, evenly spread (default: all)")
    sub.add_argument(
        "--qat-steps",
        type=count_or_none,
        default=60,
        metavar="N",
        help="training steps with quantization to try, without labels; 0: none (default: 60)",
    )
    sub.add_argument("--mode", choices=("hf_compat", "fixed"), help="scales of an IBert checkpoint")
    sub.add_argument("--head", choices=HEADS, help="(default: what the directory says)")
    sub.add_argument("--tokenizer", metavar="FILE", help="a tokenizer.json to use instead")

    sub = verb("bench", bench_verb, "race PyTorch FP32; times per kernel")
    sub.add_argument("library", nargs="?", help="a library; or use --shape")
    sub.add_argument("--source", metavar="SRC", help="directory of the FP32 model to race")
    sub.add_argument("--shape", help="compile and race random weights: bert-base, minilm-l6, ...")
    sub.add_argument("--target", default="host", help="for --shape (default: host)")
    sub.add_argument("--batch", type=positive, default=1, help="sequences (default: 1)")
    sub.add_argument("--tokens", type=positive, default=128, help="in each (default: 128)")
    sub.add_argument("--data", metavar="TSV", help="real inputs instead: the first --limit rows")
    sub.add_argument("--limit", type=positive, default=32, help="rows of --data (default: 32)")
    sub.add_argument("--against", action="append", default=[], metavar="LIB", help="race it too")
    sub.add_argument("--threads", type=positive, default=1, help="of everybody (default: 1)")
    sub.add_argument("--seconds", type=positive, default=10, help="a contestant (default: 10)")
    sub.add_argument("--per-op", action="store_true", help="time every step, not every kernel")
    sub.add_argument(
        "--predict", metavar="CHIP", help="predict it on a GPU instead: t4, a100, h100 or h200"
    )
    sub.add_argument(
        "--shapes",
        type=shapes,
        help="of a prediction: sequences x tokens (default: 1,2,4,8 x 128,256)",
    )
    sub.add_argument("--clock", type=amount, metavar="GHZ", help="of a prediction (default: boost)")
    sub.add_argument("--watts", type=amount, help="power cap of a prediction (default: the chip's)")

    sub = verb(
        "tune", tune_verb, "search schedules for the kernels of a model; goes on after a kill"
    )
    sub.add_argument("source", nargs="?", help="model directory; or use --shape")
    sub.add_argument("--shape", help="a well-known shape: bert-base, minilm-l6, ...")
    sub.add_argument("--target", default="host", help="see `targets` (default: host, this CPU)")
    sub.add_argument("--trials", type=positive, required=True, help="candidates to measure in all")
    sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the logs")
    sub.add_argument(
        "--tokens",
        type=counts,
        default=TOKENS,
        metavar="N,N,...",
        help=f"to tune for (default: {','.join(map(str, TOKENS))})",
    )
    sub.add_argument("--rpc", metavar="HOST:PORT", help="measure on machines of this TVM tracker")
    sub.add_argument("--rpc-key", metavar="KEY", help="of these machines")
    sub.add_argument("--timeout", type=positive, default=60, help="seconds to build or to measure")
    sub.add_argument("--jobs", type=positive, help="processes that build (default: one per CPU)")
    sub.add_argument("--threads", type=positive, default=1, help="of the kernels (default: 1)")
    sub.add_argument("--seed", type=int, default=0, help="of the search (default: 0)")

    sub = verb("rpc-server", rpc_server_verb, "offer this machine, its GPU too, to `tune --rpc`")
    sub.add_argument("--tracker", required=True, metavar="HOST:PORT", help="a TVM RPC tracker")
    sub.add_argument("--key", required=True, help="what machines of this kind are asked for by")
    sub.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)"
    )
    sub.add_argument("--port", type=positive, default=9091, help="the first to try (default: 9091)")

    sub = verb("verify", verify_verb, "prove that a library is integer-only and exact")
    sub.add_argument("library")
    sub.add_argument("--source", metavar="SRC", help="import this again and compare the integers")
    sub.add_argument("--calibrate", metavar="FILE", help="calibration text of that import")
    sub.add_argument("--tokenizer", metavar="FILE", help="tokenizer.json of that import")
    sub.add_argument("--texts", metavar="FILE", help="real inputs to run as well")
    sub.add_argument("--limit", type=positive, default=64, help="texts to take (default: 64)")
    sub.add_argument("--cases", type=positive, default=2, help="random batches (default: 2)")
    sub.add_argument("--seed", type=int, default=0, help="of the random batches (default: 0)")
    sub.add_argument(
        "--no-run", action="store_true", help="read the file alone, as without the GPU it is for"
    )

    sub = verb("inspect", inspect_verb, "show what a library says of itself")
    sub.add_argument("library")
    sub.add_argument("--values", action="store_true", help="list every scale and its origin")

    verb("targets", targets_verb, "list targets and what this machine lacks for them")
    verb("ops", ops_verb, "error of every integer op against float")
    return top
