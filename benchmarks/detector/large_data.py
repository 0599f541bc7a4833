"""Read COCO files of 1, 5 and 25 million boxes: time and memory of the first start, and of later ones.

    python -m benchmarks.detector.large_data                 half an hour, 5 GB of disk
    python -m benchmarks.detector.large_data --boxes 1e6     a quick look
    python -m benchmarks.detector.large_data --publish       also write large_data.json and .png to benchmarks/results

The files are made up after Objects365: 15 boxes per image, 365 classes, boxes in no order. Every image exists, as a
link to one file. Each number is from a process of its own. Peers read the whole file into Python's objects.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.measure import machine
from benchmarks.measure.plot import large_data
from benchmarks.measure.results import LATEST, RESULTS, write_json

FILE_NAME = "large_data.json"
BOXES_PER_IMAGE = 15
CLASSES = 365
MOST_BOXES_OF_PEERS = 5_000_000
"""The peers need about 1 GB for a million boxes."""
LATER_STARTS = 3
# Linux only. Prints seconds, seconds of the processor, and the most memory.
PROGRAM = """
import json, re, sys, time
{imports}
memory = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024
start = time.perf_counter(), time.process_time(), memory()
found = {call}
seconds, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
print(json.dumps({{"seconds": seconds, "cpu_seconds": cpu, "peak_mib": memory(), "before_mib": start[2]}}))
"""
OURS = PROGRAM.format(
    imports="from dino.data import CocoIndex", call="CocoIndex.load(sys.argv[1], sys.argv[2]).boxes_per_category"
)
PEERS = {
    "json.load": PROGRAM.format(imports="", call="json.load(open(sys.argv[1]))"),
    "faster_coco_eval.COCO": PROGRAM.format(imports="from faster_coco_eval import COCO", call="COCO(sys.argv[1])"),
}


def write_data(folder: Path, boxes: int, seed: int = 0) -> Path:
    """Write a COCO file and its images; return the file. It is the same for the same arguments."""
    rng = np.random.default_rng(seed)
    count = max(1, boxes // BOXES_PER_IMAGE)
    names = [f"patch{k // 20_000}/image_{k:08}.jpg" for k in range(count)]
    for name in names:
        image = folder / "images" / name
        first = image.with_name("first.jpg")
        if not first.exists():  # a file may have some ten thousand links
            first.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (640, 480)).save(first)
        os.link(first, image)
    file = folder / "train.json"
    with file.open("w") as out:
        images = ({"id": k, "file_name": name, "width": 640, "height": 480} for k, name in enumerate(names, start=1))
        out.write('{"images": [' + ", ".join(map(json.dumps, images)) + '], "annotations": [')
        for start in range(0, boxes, 100_000):
            size = min(100_000, boxes - start)
            columns = (
                rng.integers(1, count + 1, size),
                rng.integers(1, CLASSES + 1, size),
                *(rng.uniform(low, high, size).round(2) for low, high in ((0, 500), (0, 400), (5, 130), (5, 75))),
            )
            entries = (
                f'{{"id": {k}, "image_id": {i}, "category_id": {c}, "bbox": [{x}, {y}, {w}, {h}], '
                f'"area": {w * h:.4f}, "iscrowd": 0, "isfake": 0}}'
                for k, i, c, x, y, w, h in zip(
                    range(start + 1, start + size + 1), *(column.tolist() for column in columns), strict=True
                )
            )
            out.write((", " if start else "") + ", ".join(entries))
        categories = [{"id": k, "name": f"class {k}"} for k in range(1, CLASSES + 1)]
        out.write(f'], "categories": {json.dumps(categories)}}}\n')
    return file


def measured(name: str, program: str, file: Path) -> dict[str, Any]:
    """Run a program in a new process and return its row."""
    found = subprocess.run(
        [sys.executable, "-c", program, str(file), str(file.parent / "images")], stdout=subprocess.PIPE, check=True
    )
    row = {"what": name, **json.loads(found.stdout)}
    print(f"  {name:<24}{row['seconds']:>8.2f} s{row['peak_mib']:>8.0f} MiB", flush=True)
    return row


def run(boxes: int, folder: Path) -> list[dict[str, Any]]:
    """Return the rows of one size."""
    shutil.rmtree(folder, ignore_errors=True)
    print(f"{boxes:,} boxes: writing them", flush=True)
    file = write_data(folder, boxes)
    about = {"boxes": boxes, "images": boxes // BOXES_PER_IMAGE, "megabytes": round(file.stat().st_size / 1e6)}
    rows = [measured("first start", OURS, file)]
    rows += [measured("later start", OURS, file) for _ in range(LATER_STARTS)]
    if boxes <= MOST_BOXES_OF_PEERS:
        rows += [measured(name, program, file) for name, program in PEERS.items()]
    shutil.rmtree(folder)
    return [about | row for row in rows]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--boxes", type=float, nargs="+", default=[1e6, 5e6, 25e6], metavar="N")
    parser.add_argument("--folder", type=Path, default=Path("build/large-data"), help="where the data are written")
    parser.add_argument("--publish", action="store_true", help="write the results to benchmarks/results/MACHINE")
    options = parser.parse_args()
    rows = [row for boxes in options.boxes for row in run(int(boxes), options.folder)]
    document = {"machine": machine.describe("cpu"), "large_data": rows}
    target = RESULTS / (machine.slug(document["machine"]) if options.publish else LATEST)
    write_json(target / FILE_NAME, document)
    print(f"{target / FILE_NAME}\n{large_data(document, target / 'large-data.png')}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
