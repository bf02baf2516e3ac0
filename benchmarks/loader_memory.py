#!/usr/bin/env python3
"""
Memory of the torchvision backend's data loader with four worker processes, against torchvision's
CocoDetection, which holds pycocotools' dictionaries.

A generated file of the size of COCO's training set. What each process takes is its share of the pages
(PSS), after every worker has gone through the whole dataset, images aside; without what it takes before the
file is read. With masks of all classes, and with those of VOC's 20.
"""

import gc
import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path

from start import arguments, coco, measured

WORKERS = 4


def torchvisions(path: Path) -> Callable[[], int]:
    from torchvision.datasets import CocoDetection

    dataset = CocoDetection(str(path.parent), str(path))
    return lambda: sum(len(dataset._load_target(image_id)) for image_id in dataset.ids)


def ours(path: Path, split: str) -> Callable[[], int]:
    from maskx_d2.backends.torchvision.dataset import read_records
    from maskx_d2.data.class_splits import classes_with_masks
    from maskx_d2.data.coco_file import read_coco_file

    file = read_coco_file(path)
    with_masks = classes_with_masks(split, file.class_names)
    records = read_records(file, with_masks=with_masks, annotated_only=True)
    del file
    return lambda: sum(len(record.boxes) for record in records)


PROGRAMS = {
    "torchvision's CocoDetection": torchvisions,
    "maskx, masks of all": lambda path: ours(path, "all"),
    "maskx, masks of VOC's": lambda path: ours(path, "voc"),
}


def share_of_memory(pid: int | str = "self") -> float:
    """GiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 2**20


def work(go_through: Callable[[], int], done, ended) -> None:
    go_through()
    done.wait()
    ended.wait()


def measure(program: str, path: Path) -> dict[str, float]:
    import maskx_d2.backends.torchvision.dataset  # noqa: F401

    before = share_of_memory()
    go_through = PROGRAMS[program](path)
    gc.collect()
    context = multiprocessing.get_context("fork")
    done, ended = context.Barrier(WORKERS + 1), context.Event()
    workers = [context.Process(target=work, args=(go_through, done, ended)) for _ in range(WORKERS)]
    for worker in workers:
        worker.start()
    done.wait()
    of_workers = sum(share_of_memory(worker.pid) for worker in workers)
    total = of_workers + share_of_memory()
    ended.set()
    for worker in workers:
        worker.join()
    return {"workers": of_workers, "total": total - before}


def main() -> None:
    args = arguments(__doc__, PROGRAMS, measure)
    with tempfile.TemporaryDirectory() as folder:
        path = coco(Path(folder), args.scale)
        print(f"{path.stat().st_size / 2**20:.0f} MiB of annotations, {WORKERS} workers")
        peer = None
        for program, row in measured(__file__, PROGRAMS, path):
            peer = peer or row
            workers, total = (f"{row[k]:5.2f} GiB, {row[k] / peer[k]:.2f} x" for k in ("workers", "total"))
            print(f"{program:28} workers {workers}; with the main process {total}")


if __name__ == "__main__":
    main()
