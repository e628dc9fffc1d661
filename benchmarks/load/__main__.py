"""`make load DATA=DIR`: servers under load over loopback, ours beside other runtimes.

    python benchmarks/load DATA [--models minilm-l6,bert-base] [--contestants ours,onnx,openvino]
                           [--threads N] [--seconds N] [--soak MINUTES] [--quick]

DATA/imdb/dev.tsv and DATA/stsb/dev.tsv have the texts. Each server is asked for its capacity, then
at 50, 80 and 100 % of it in an open loop. Ours also gets five times its capacity, and with --soak a
mixed load whose every answer is compared with the answer to the request alone. The contestants run
in the same application, which batches for all of them. Models go to out/load, tables to
out/records.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "records"))

import intformer_records as records

from intformer_load import models, rival, rivals, steps
from intformer_load.servers import running

OUT = Path("out/load")
SOAKED = 0.7  # of capacity
SHARES = tuple(f"p50 / p99 at {share:.0%}, ms" for share in steps.SHARES)
COLUMNS = ("server", "capacity, answers/s", *SHARES, "generator late by, ms")
PRESSED = (
    *(
        "ours",
        "`--max-wait`, s",
        f"answers/s at {steps.OVERLOAD}x",
        "p50 / p99, ms",
        "refused",
        "within, ms (p99)",
    ),
    *("neither", f"soak at {SOAKED:.0%}: answers / wrong / failed", "memory, MB"),
)


def arguments() -> argparse.Namespace:
    top = argparse.ArgumentParser(
        prog="python benchmarks/load", description=__doc__.splitlines()[0]
    )
    top.add_argument("data", type=Path)
    top.add_argument("--models", type=words, default=list(models.MODELS))
    top.add_argument("--contestants", type=words, default=["ours", *rivals.RUNTIMES])
    top.add_argument("--threads", type=int, default=1, help="that compute, of every server")
    top.add_argument("--seconds", type=float, default=20, help="of each step")
    top.add_argument("--soak", type=float, default=0, metavar="MINUTES")
    top.add_argument("--quick", action="store_true", help="3 seconds of each step, MiniLM-L6 alone")
    args = top.parse_args()
    if args.quick:
        args.seconds, args.models = 3, ["minilm-l6"]
    return args


def words(text: str) -> list[str]:
    return text.split(",")


def milliseconds(volley) -> str:
    return f"{1000 * volley.quantile(0.5):.1f} / {1000 * volley.quantile(0.99):.1f}"


def measured(args: argparse.Namespace, model: str, bodies: list[dict], pressed: list) -> Iterator:
    """Yield the row of each contestant; append ours under pressure."""
    folder = OUT / model
    library = models.library(model, folder)
    texts = [body["inputs"] for body in bodies]
    for name in args.contestants:
        other = None if name == "ours" else models.rival(name, model, folder, texts)
        with running(name, library, other, args.threads, "--auto-truncate") as (base, _):
            found = steps.curve(base, bodies, args.seconds)
            late = max(volley.late for volley in found.volleys)
            times = [milliseconds(volley) for volley in found.volleys]
            yield [f"{model}, {name}", f"{found.capacity:.1f}", *times, f"{1000 * late:.0f}"]
        if name == "ours":
            pressed.append([model, *under_pressure(args, library, bodies, found)])


def under_pressure(args, library: Path, bodies: list[dict], found: steps.Curve) -> list[str]:
    """Overload our server, and soak it where asked for; return the cells of PRESSED.

    It lets requests wait as long as 99 of 100 did at its capacity.
    """
    wait, capacity = f"{found.volleys[-1].quantile(0.99):.2f}", found.capacity
    options = ("--auto-truncate", "--max-wait", wait)
    with running("ours", library, None, args.threads, *options) as (base, pid):
        steps.warm(base, bodies, args.seconds)
        volley = steps.overload(base, bodies, capacity, args.seconds)
        soak = steps.soak(base, pid, bodies, SOAKED * capacity, args.soak) if args.soak else None
    refused = [shot for shot in volley.shots if shot.status == 429]
    other = len(volley.shots) - len(refused) - len(volley.answered)
    cells = [wait, f"{volley.rate:.1f}", milliseconds(volley), str(len(refused))]
    cells += [f"{1000 * volley.quantile(0.99, 429):.1f}", str(other)]
    if soak is None:
        return [*cells, "", ""]
    memory = f"{soak.memory[0]:.0f} to {soak.memory[-1]:.0f}, at most {max(soak.memory):.0f}"
    return [*cells, f"{soak.answers} / {soak.wrong} / {soak.failed}", memory]


def main() -> None:
    args = arguments()
    bodies, rows, pressed = models.bodies(args.data), [], []
    for model in args.models:
        for row in measured(args, model, bodies, pressed):
            print(" | ".join(row), flush=True)
            rows.append(row)
        for row in pressed:
            print(" | ".join(row), flush=True)
    options = [word for word in sys.argv[1:] if word != str(args.data)]
    command = records.made_with("make load DATA=DIR", "LOAD", options)
    for name, columns, table in (("load", COLUMNS, rows), ("load-pressed", PRESSED, pressed)):
        path = records.write(name, command, columns, table)
        print(f"{path}; `make results` takes it over")


if __name__ == "__main__":
    if sys.argv[1:2] == ["rival"]:
        rival.main(sys.argv[2:])
    else:
        main()
