"""Embed parquet files on a Ray cluster: what `intformer embed` does on one machine.

    python -P examples/ray_embed.py model.so texts/ vectors/ --column text --workers 4

Needs `pip install 'ray[data]' 'intformer[embed]'`. The library lies at the same path on every
machine; each worker loads it once.
"""

import argparse

import ray

from intformer.offline import Embedder


def embedded(library: str, rows: ray.data.Dataset, column: str, workers: int, cpus: int):
    """Return the rows with their vectors; each worker has `cpus` threads."""
    return rows.map_batches(
        Embedder,
        fn_constructor_args=(library, column),
        fn_constructor_kwargs={"threads": cpus},
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=cpus,
        batch_size=1024,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("library", help="compiled library of head sentence-embedding")
    parser.add_argument("texts", help="parquet file or folder")
    parser.add_argument("vectors", help="folder to write")
    parser.add_argument("--column", default="text", help="of the texts")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--cpus", type=int, default=1, help="of a worker")
    args = parser.parse_args()
    rows = ray.data.read_parquet(args.texts)
    embedded(args.library, rows, args.column, args.workers, args.cpus).write_parquet(args.vectors)


if __name__ == "__main__":
    main()
