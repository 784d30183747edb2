"""What a split of face shards leaks, and what finding it costs.

    python benchmarks/audit.py SHARDS [--fingerprints FILE] [--search 20000 1000000]

SHARDS is a folder of Parquet shards of the faces table (ageray prepare). Fingerprints the audit of
the default split (seeded, 10 % for the test, validation counted with the training), near-identical
pairs by the distance of their hashes with and without confirmation by thumbnails, images a second
on one core, and with --search the seconds of a search among so many hashes (repeated from those
found, with bits flipped at random).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ageray.audit import audit, fingerprints, near_duplicates
from ageray.data import protocols
from ageray.experiment import Protocol

LIGHT = ("key", "age", "subject", "group", "gender", "dataset")
FINGERPRINTS = {"digest": pa.string(), "phash": pa.uint64(), "thumbnail": pa.binary()}


def load_or_compute_fingerprints(shards: Path) -> pa.Table:
    """The shards' light columns with each image's fingerprint."""
    tables = []
    started = time.process_time()
    for file in sorted(shards.glob("*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(512):
            results = list(map(fingerprints, batch.column("image").to_pylist()))
            columns = {name: batch.column(name) for name in LIGHT}
            for name, kind in FINGERPRINTS.items():
                columns[name] = pa.array([getattr(result, name) for result in results], kind)
            tables.append(pa.table(columns))
    rows = pa.concat_tables(tables)
    rate = rows.num_rows / (time.process_time() - started)
    print(f"fingerprints: {rows.num_rows:,} images, {rate:.0f} a CPU-second (decoding included)")
    return rows


def parts(table: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Training (with validation) and test rows of the default split."""
    chosen = protocols.split(table, Protocol()).parts
    tested = pa.compute.is_in(table["key"], pa.array(chosen["test"], pa.string()))
    return table.filter(pa.compute.invert(tested)), table.filter(tested)


def show(table: pa.Table) -> None:
    """The audit of the split."""
    train, test = parts(table)
    started = time.process_time()
    findings = audit(train, test)
    print(f"audit: {time.process_time() - started:.2f} CPU-seconds")
    for line in findings.lines():
        print(f"  {line}")
    alone = audit(train.drop_columns("thumbnail"), test.drop_columns("thumbnail"))
    near, unsure = findings.near_identical, alone.near_identical
    counts = f"{unsure['across']} test images by hash alone, {near['across']} with thumbnails"
    print(f"near-identical across the split: {counts}")
    for example in findings.conflicts["near"]["examples"][:5]:
        print("  {} is {:g}, {} is {:g}".format(*example))


def pairs_by_distance(table: pa.Table) -> None:
    """All pairs below the limit, by distance, and how many are confirmed and differ in age."""
    hashes, ages = table["phash"].to_numpy(), table["age"].to_numpy()
    thumbnails = (
        np.frombuffer(b"".join(table["thumbnail"].to_pylist()), np.uint8)
        .reshape(len(hashes), -1)
        .astype(np.float32)
    )
    thumbnails -= thumbnails.mean(1, keepdims=True)
    thumbnails /= np.maximum(np.linalg.norm(thumbnails, axis=1, keepdims=True), 1e-6)
    found = []
    for start in range(0, len(hashes), 64):
        distance = np.bitwise_count(hashes[start : start + 64, None] ^ hashes)
        mine, other = np.nonzero(distance < near_duplicates.NEAR + 2)
        apart = mine + start < other
        found.append(np.stack([mine + start, other, distance[mine, other]], 1)[apart])
    pairs = np.concatenate(found)
    alike = np.einsum("pk,pk->p", thumbnails[pairs[:, 0]], thumbnails[pairs[:, 1]]) >= near_duplicates.ALIKE
    gap = np.abs(ages[pairs[:, 0]] - ages[pairs[:, 1]])
    print(
        f"{'distance':>9}{'pairs':>8}{'confirmed':>11}{'of those, ages differ':>24}{'by years, median':>18}"
    )
    for distance in np.unique(pairs[:, 2]):
        sure = (pairs[:, 2] == distance) & alike
        differ = gap[sure & (gap > 0)]
        median = f"{np.median(differ):.0f}" if len(differ) else ""
        print(
            f"{distance:>9}{(pairs[:, 2] == distance).sum():>8}{sure.sum():>11}{len(differ):>24}{median:>18}"
        )


def search(table: pa.Table, sizes: list[int]) -> None:
    """Seconds of a search among `size` hashes by a tenth as many (at least 20,000)."""
    rng = np.random.default_rng(0)
    hashes = table["phash"].to_numpy()
    thumbnails = np.frombuffer(b"".join(table["thumbnail"].to_pylist()), np.uint8).reshape(len(hashes), -1)

    def drawn(count: int) -> near_duplicates.Fingerprints:
        """Each hash with 8 random bits flipped, so that it is as far from its origin as from
        strangers, but as clustered.
        """
        rows = rng.integers(0, len(hashes), count)
        flips = np.bitwise_or.reduce(np.uint64(1) << rng.integers(0, 64, (count, 8), dtype=np.uint64), axis=1)
        return near_duplicates.Fingerprints(hashes[rows] ^ flips, thumbnails[rows])

    for size in sizes:
        among, searched = drawn(size), drawn(max(size // 10, min(size, 20_000)))
        started = time.process_time()
        found = near_duplicates.nearest_in(searched, among)
        seconds = time.process_time() - started
        count = f"{(found >= 0).sum():,} found"
        print(f"search: {len(searched):,} among {size:,}: {seconds:.1f} CPU-seconds, {count}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", type=Path, help="folder of Parquet shards")
    parser.add_argument(
        "--fingerprints", type=Path, help="keep the fingerprints in this file, and use it if it is there"
    )
    parser.add_argument(
        "--search", type=int, nargs="*", default=[], help="time a search among so many hashes"
    )
    given = parser.parse_args()
    if given.fingerprints and given.fingerprints.exists():
        table = pq.read_table(given.fingerprints)
    else:
        table = load_or_compute_fingerprints(given.shards)
        if given.fingerprints:
            pq.write_table(table, given.fingerprints)
    show(table)
    pairs_by_distance(table)
    search(table, given.search)


if __name__ == "__main__":
    main()
