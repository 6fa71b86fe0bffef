"""A vocabulary split over processes: each has the logits of a slice of the classes.

    python examples/vocabulary_shards.py 4

Each process computes the statistics of its slice, all gather them (ten numbers a row, whatever the
vocabulary's size), and each then has the loss and its slice of the gradient: the same as one
process with all logits, which this example compares. Needs ``torch``, for ``torch.distributed``.
"""

import os
import sys
import tempfile

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

import gce
from gce import shards

ROWS, CLASSES = 16, 4 * 8192


def all_classes(options):
    """What one process with all logits would compute."""
    rng = np.random.default_rng(0)
    logits = (3 * rng.standard_normal((ROWS, CLASSES))).astype(np.float32)
    targets = rng.integers(0, CLASSES, ROWS)
    targets[::5] = -100  # padding
    return logits, targets, gce.loss_and_grad(logits, targets, **options)


def sharded(logits, targets, gamma, first_class, weight=None, label_smoothing=0.0, **options):
    """Loss and gradient of this process's slice of the logits."""
    place = {"first_class": first_class, "num_classes": CLASSES}
    shared = {"weight": weight, "label_smoothing": label_smoothing}
    own = torch.from_numpy(shards.partial_stats(logits, targets, **place, **shared))
    parts = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, own)
    stats = shards.merge(part.numpy() for part in parts)
    return shards.loss_and_grad(logits, targets, gamma, stats, **place, **shared, **options)


def work(rank, processes, meeting):
    """One process."""
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes)
    size = CLASSES // processes
    mine = slice(rank * size, (rank + 1) * size)
    gamma = np.linspace(0.0, 1.0, ROWS)
    weight = np.random.default_rng(1).uniform(0.5, 2.0, CLASSES)

    options = {"gamma": gamma, "threshold": 0.1, "weight": weight}
    logits, targets, (whole, whole_grad) = all_classes(options)
    loss, grad = sharded(logits[:, mine], targets, first_class=mine.start, **options)
    same = loss == whole and (grad == whole_grad[:, mine]).all()

    options = {**options, "label_smoothing": 0.1}
    *_, (whole, whole_grad) = all_classes(options)
    smoothed, grad = sharded(logits[:, mine], targets, first_class=mine.start, **options)
    close = abs(smoothed - whole) <= 1e-6 * whole and abs(grad - whole_grad[:, mine]).max() <= 1e-6

    said = "same bits as the whole" if same else "DIFFERENT from the whole"
    of_smoothed = "within 1e-6" if close else "DIFFERENT"
    print(
        f"process {rank}: classes {mine.start} to {mine.stop - 1}, loss {loss:.6f}, {said}; "
        f"with label smoothing: {of_smoothed}",
        flush=True,
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    processes = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    with tempfile.TemporaryDirectory() as folder:
        meeting = "file://" + os.path.join(folder, "meeting")
        mp.spawn(work, (processes, meeting), nprocs=processes)
