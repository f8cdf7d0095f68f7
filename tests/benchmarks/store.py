"""What storing maps costs: bytes, writing and random reading, the project's store beside files and other layouts.

    python tests/benchmarks/store.py                       # 512 images of sampled maps of drawn features
    python tests/benchmarks/store.py --run /data/voc       # the maps of a finished run

Every row stores the same maps, max and mean, of images with one to three classes. "npy" is one file per image with a
pickled dict of the real classes only, as IRN's steps hand their maps on (theirs are float32, and hold a second copy at
image size, which is left out here). Reads take one image at random, its files in the page cache; the project's store
also syncs each shard to disk when it writes, and checks what it reads for lost shards.
"""

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
import zarr
from machine import describe
from zarr.codecs import BloscCodec, ZstdCodec

from ficklenet.folding import Normalization
from ficklenet.head import StochasticHead
from ficklenet.localizer import localize
from storage.location import Location
from storage.map_store import MapStore, UnitMaps
from storage.units import Unit, plan_units

UNIT_SIZE = 64


class Layout(Protocol):
    """A way of storing maps in a folder that is there and empty."""

    def write_unit(self, unit: Unit, maps: UnitMaps) -> None: ...

    def read(self, index: int) -> object: ...

    def read_unit(self, unit: Unit) -> object: ...


class ProjectStore:
    """`storage.map_store`, as it is."""

    def __init__(self, folder: Path, maps: UnitMaps, unit_size: int = UNIT_SIZE) -> None:
        num_images, num_slots, *grid = maps.max.shape
        location = Location(str(folder / "maps.zarr"))
        self._store = MapStore.create(location, num_images, num_slots, (grid[0], grid[1]), unit_size)

    def write_unit(self, unit: Unit, maps: UnitMaps) -> None:
        self._store.write_unit(unit, maps.max, maps.mean, maps.score, maps.classes)

    def read(self, index: int) -> object:
        return self._store.read(index)

    def read_unit(self, unit: Unit) -> object:
        return self._store.read_unit(unit)


class ZarrLayout:
    """Bare float16 arrays of max and mean with another codec, chunk or shard."""

    def __init__(
        self, folder: Path, maps: UnitMaps, codec: object, images_per_chunk: int = 1, is_sharded: bool = True
    ) -> None:
        group = zarr.create_group(store=str(folder / "maps.zarr"))
        item = maps.max.shape[1:]
        self._arrays = [
            group.create_array(
                name,
                shape=maps.max.shape,
                dtype="float16",
                chunks=(images_per_chunk, *item),
                shards=(UNIT_SIZE, *item) if is_sharded else None,
                compressors=codec,
                fill_value=np.nan,
            )
            for name in ("max", "mean")
        ]

    def write_unit(self, unit: Unit, maps: UnitMaps) -> None:
        for array, values in zip(self._arrays, (maps.max, maps.mean), strict=True):
            array[unit.start : unit.stop] = values.astype(np.float16)

    def read(self, index: int) -> object:
        return [array[index] for array in self._arrays]

    def read_unit(self, unit: Unit) -> object:
        return [array[unit.start : unit.stop] for array in self._arrays]


class NpyFiles:
    """A pickled dict in an .npy file per image."""

    def __init__(self, folder: Path, dtype: str) -> None:
        self._folder, self._dtype = folder, dtype

    def write_unit(self, unit: Unit, maps: UnitMaps) -> None:
        for offset, classes in enumerate(maps.classes):
            is_real = classes >= 0
            content = {
                "keys": classes[is_real],
                "max": maps.max[offset, is_real].astype(self._dtype),
                "mean": maps.mean[offset, is_real].astype(self._dtype),
            }
            np.save(self._folder / f"image_{unit.start + offset:06d}.npy", content)  # type: ignore[arg-type]

    def read(self, index: int) -> object:
        return np.load(self._folder / f"image_{index:06d}.npy", allow_pickle=True).item()

    def read_unit(self, unit: Unit) -> object:
        return [self.read(index) for index in range(unit.start, unit.stop)]


LAYOUTS: dict[str, Callable[[Path, UnitMaps], Layout]] = {
    "the store: zstd 1, an image a chunk, 64 a shard": ProjectStore,
    "the store, 256 a shard": lambda folder, maps: ProjectStore(folder, maps, unit_size=256),
    ".npy files, float32 (IRN)": lambda folder, maps: NpyFiles(folder, "float32"),
    ".npy files, float16": lambda folder, maps: NpyFiles(folder, "float16"),
    "zarr, uncompressed": lambda folder, maps: ZarrLayout(folder, maps, None),
    "zarr, zstd 1": lambda folder, maps: ZarrLayout(folder, maps, ZstdCodec(level=1)),
    "zarr, zstd 5": lambda folder, maps: ZarrLayout(folder, maps, ZstdCodec(level=5)),
    "zarr, blosc zstd 1, shuffled": lambda folder, maps: ZarrLayout(
        folder, maps, BloscCodec(cname="zstd", clevel=1, shuffle="shuffle")
    ),
    "zarr, blosc lz4, bit-shuffled": lambda folder, maps: ZarrLayout(
        folder, maps, BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle")
    ),
    "zarr, zstd 1, 16 images a chunk": lambda folder, maps: ZarrLayout(
        folder, maps, ZstdCodec(level=1), images_per_chunk=16
    ),
    "zarr, zstd 1, 64 images a chunk": lambda folder, maps: ZarrLayout(
        folder, maps, ZstdCodec(level=1), images_per_chunk=UNIT_SIZE, is_sharded=False
    ),
    "zarr, zstd 1, an image a file": lambda folder, maps: ZarrLayout(
        folder, maps, ZstdCodec(level=1), is_sharded=False
    ),
}


class Cost(NamedTuple):
    """Of one layout, by time on the wall."""

    kilobytes: float  # per image and class
    write: float  # ms per image, median over units
    read: float  # ms per image, images at random
    read_unit: float  # ms per image, unit by unit
    num_files: int


def main() -> None:
    options = parse_options()
    maps = stored_maps(options.run) if options.run else sampled_maps(options.images)
    num_maps = int((maps.classes >= 0).sum())
    print(describe("numpy", "zarr"))
    print(f"{len(maps.classes)} images, {num_maps} maps of {maps.max.shape[2]} x {maps.max.shape[3]}, max and mean\n")
    print(
        "layout | KB per image and class | write ms per image | random read ms per image | images per s | "
        "unit read ms per image | files"
    )
    print(" | ".join(["---"] * 7))
    for name, make in LAYOUTS.items():
        folder = Path(tempfile.mkdtemp(prefix="store-", dir=options.folder))
        try:
            unit_size = 256 if "256" in name else UNIT_SIZE
            cost = measure(make(folder, maps), folder, maps, num_maps, options.reads, unit_size)
        finally:
            shutil.rmtree(folder)
        reads = f"{cost.read:.2f} | {1e3 / cost.read:,.0f} | {cost.read_unit:.2f}"
        print(f"{name} | {cost.kilobytes:.2f} | {cost.write:.2f} | {reads} | {cost.num_files}", flush=True)


def measure(layout: Layout, folder: Path, maps: UnitMaps, num_maps: int, num_reads: int, unit_size: int) -> Cost:
    writes, units = [], plan_units(len(maps.classes), unit_size)
    for unit in units:
        part = UnitMaps(*(values[unit.start : unit.stop] for values in (maps.classes, maps.max, maps.mean, maps.score)))
        start = time.perf_counter()
        layout.write_unit(unit, part)
        writes.append((time.perf_counter() - start) / unit.num_images)
    indices = np.random.default_rng(0).integers(0, len(maps.classes), num_reads)
    layout.read(0)
    start = time.perf_counter()
    for index in indices:
        layout.read(int(index))
    read = (time.perf_counter() - start) / num_reads
    start = time.perf_counter()
    for unit in units:
        layout.read_unit(unit)
    read_unit = (time.perf_counter() - start) / len(maps.classes)
    files = [file for file in folder.rglob("*") if file.is_file()]
    size = sum(file.stat().st_size for file in files)
    return Cost(size / num_maps / 1e3, 1e3 * statistics.median(writes), 1e3 * read, 1e3 * read_unit, len(files))


def sampled_maps(num_images: int) -> UnitMaps:
    """Maps that 200 samples fold to, of smooth features at paper size: as noisy and as saturated as real ones."""
    torch.manual_seed(0)
    num_channels, num_classes, grid = 64, 20, 41
    head = StochasticHead(num_channels, num_classes, 9)
    generator = np.random.default_rng(0)
    classes = np.full((num_images, 3), -1, np.int64)
    for row in classes:
        count = generator.choice([1, 2, 3], p=[0.65, 0.25, 0.1])
        row[:count] = np.sort(generator.permutation(num_classes)[:count])
    parts = []
    for index in range(num_images):
        coarse = torch.randn(1, num_channels, 8, 8)
        features = torch.nn.functional.interpolate(coarse, (grid, grid), mode="bicubic", align_corners=True).relu()
        parts.append(
            localize(
                features,
                head,
                torch.from_numpy(classes[index : index + 1]),
                [index],
                num_samples=200,
                drop_rate=0.9,
                normalization=Normalization("percentile", 90.0),
            )
        )
    max_maps, mean_maps, score = (
        torch.cat([getattr(part, name) for part in parts]).numpy() for name in ("max_BSHW", "mean_BSHW", "score_BS")
    )
    return UnitMaps(classes.astype(np.int16), max_maps, mean_maps, score)


def stored_maps(run: str) -> UnitMaps:
    """All maps of a finished run; those of one of a few thousand images fit into memory."""
    store = MapStore.open(Location(run) / "maps" / "maps.zarr")
    units = [store.read_unit(unit) for unit in plan_units(store.num_images, store.unit_size)]
    names = ("classes", "max", "mean", "score")
    arrays = [np.concatenate([getattr(unit, name) for unit in units]) for name in names]
    return UnitMaps(*(array.astype(np.float32) if array.dtype == np.float16 else array for array in arrays))


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Bytes, writing and random reading of maps, by layout.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--run", help="a run with finished maps, instead of sampled ones")
    parser.add_argument("--images", type=int, default=512, help="images with sampled maps")
    parser.add_argument("--reads", type=int, default=1000, help="random reads of one image")
    parser.add_argument("--folder", help="where to store; default: the temporary folder")
    return parser.parse_args()


if __name__ == "__main__":
    main()
