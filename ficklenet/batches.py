"""Addressed training data: the number of a global step decides its images, for any number of workers.

There is no sampler with a state. To resume a training or to change its number of workers, only the step is needed.
"""

import hashlib
from collections.abc import Iterator
from functools import lru_cache

import numpy as np


def steps_per_epoch(num_images: int, batch_size: int) -> int:
    """The number of whole batches in an epoch, at least 1; the images that are left out differ between epochs."""
    return max(1, num_images // batch_size)


def keyed_generator(seed: int, *address: int | str) -> np.random.Generator:
    """A random generator that depends only on the seed and its address; it is the same in every process.

    Args:
        seed: the run's seed.
        address: the purpose of the random numbers, such as ("augmentation", epoch, image_id).
    """
    digest = hashlib.blake2b(repr((seed, *address)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def batch_indices(step: int, num_images: int, batch_size: int, seed: int) -> np.ndarray:
    """The images of a global step: a slice of a permutation that depends on (seed, epoch).

    Args:
        step: global step, counted from 0 over all epochs.
        num_images: length of the training list.
        batch_size: images per step, of all workers together.
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

    The shares of all ranks together are the batch that a single worker would have.
    """
    for step in steps:
        epoch = step // steps_per_epoch(num_images, batch_size)
        share = batch_indices(step, num_images, batch_size, seed)[rank::world_size]
        yield [(epoch, int(position)) for position in share]


@lru_cache(maxsize=2)  # the current and the next epoch, because a permutation of millions takes time
def _epoch_order(epoch: int, num_images: int, seed: int) -> np.ndarray:
    order = keyed_generator(seed, "order", epoch).permutation(num_images)
    order.setflags(write=False)
    return order
