"""Addressed training data: a global step names its images, whatever the number of workers.

Not a sampler with state: resume and resize need only the step number.
"""

import hashlib
from collections.abc import Iterator
from functools import lru_cache

import numpy as np


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """Whole batches of an epoch; the images left over differ from epoch to epoch. At least 1."""
    return max(1, num_images // batch_size)


def keyed_generator(seed: int, *address: int | str) -> np.random.Generator:
    """A random generator that is a function of its address, the same in every process.

    Args:
        seed: the run's seed.
        address: what is drawn for, for example ("augmentation", epoch, image_id).
    """
    digest = hashlib.blake2b(repr((seed, *address)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def batch_indices(step: int, num_images: int, batch_size: int, seed: int) -> np.ndarray:
    """Images of a global step: a slice of the permutation keyed (seed, epoch).

    Args:
        step: global step, 0-based, counted over all epochs.
        num_images: length of the training list.
        batch_size: images per step over all workers.
        seed: the run's seed.

    Returns:
        int64 (min(batch_size, num_images),) positions in the training list.
    """
    epoch, step_in_epoch = divmod(step, steps_per_epoch(num_images, batch_size))
    return _epoch_order(epoch, num_images, seed)[step_in_epoch * batch_size :][:batch_size]


def addressed_batches(
    steps: range, num_images: int, batch_size: int, seed: int, rank: int, world_size: int
) -> Iterator[list[tuple[int, int]]]:
    """One rank's share of each step as (epoch, position) addresses: every world_size-th image of the batch.

    The shares of all ranks together are the batch of one worker.
    """
    for step in steps:
        epoch = step // steps_per_epoch(num_images, batch_size)
        share = batch_indices(step, num_images, batch_size, seed)[rank::world_size]
        yield [(epoch, int(position)) for position in share]


@lru_cache(maxsize=2)  # the epoch that is read and, ahead of it, the next: a permutation of millions takes a while
def _epoch_order(epoch: int, num_images: int, seed: int) -> np.ndarray:
    order = keyed_generator(seed, "order", epoch).permutation(num_images)
    order.setflags(write=False)
    return order
