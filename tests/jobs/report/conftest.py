"""Runs to make pages of, and a browser to look at them with."""

import io
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from cluster.connect import connect
from jobs.cli.launch import launch_step
from jobs.evaluation.measuring import evaluate_labels
from jobs.reporting.page import write_report
from jobs.run.directory import Run, open_run, record_run
from jobs.run.fingerprints import fingerprint_hash
from storage.location import Location
from storage.manifest import ManifestRow, write_manifest
from storage.map_store import MapStore
from storage.seed_store import SeedStore
from storage.steps import Receipt, Skipped, Step
from storage.units import Unit, plan_units

CHROMIUM = shutil.which("chromium")


@pytest.fixture(scope="session")
def finished_run(trained_run_folder, tmp_path_factory) -> Run:
    """A run with maps, seeds, evaluation and report."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    shutil.copytree(trained_run_folder, folder)
    run = open_run(str(folder))
    with connect("in-process") as connection:
        launch_step(run, connection, "maps")
        launch_step(run, connection, "seeds")
        evaluate_labels(run, connection, [], "all", ("map",), deterministic=False)
    write_report(run)
    return run


@pytest.fixture(scope="module")  # while it is open, its event loop runs in this thread, and asyncio.run fails
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture
def visit(browser):
    """Opens a run's page; at the end it must have said nothing on the console and asked for nothing but itself."""
    context = browser.new_context(viewport={"width": 1300, "height": 900})
    seen = SimpleNamespace(complaints=[], requests=[])

    def open_page(run: Run) -> Page:
        page = context.new_page()
        page.on("console", lambda message: seen.complaints.append(message.text))
        page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        page.on("dialog", lambda dialog: seen.complaints.append(dialog.message))
        page.on("request", lambda request: seen.requests.append(request.url))
        page.goto(Path((run.location / "report" / "index.html").uri).as_uri())
        return page

    yield open_page
    context.close()
    assert seen.complaints == []
    assert [url for url in seen.requests if not url.startswith("data:")] == seen.requests[:1]


@pytest.fixture
def handmade_run():
    """The function `_handmade_run`."""
    return _handmade_run


@pytest.fixture
def write_picture():
    """The function `_write_picture`."""
    return _write_picture


@pytest.fixture
def html_of():
    """A function that reads a run's page."""
    return lambda run: (run.location / "report" / "index.html").read_bytes().decode()


def _handmade_run(
    location: Location,
    rows: Sequence[ManifestRow],
    class_names: Sequence[str],
    *,
    grid: tuple[int, int] = (5, 5),
    unit_size: int = 4,
    skipped: Sequence[Skipped] = (),
    with_maps: bool = True,
) -> Run:
    """A run whose maps were not computed: every class's evidence falls off from the upper left corner."""
    run = open_run(location.uri, defaults={"unit_size": unit_size})
    write_manifest(location / "manifest.parquet", rows, class_names)
    record_run(run)
    if with_maps:
        num_slots = max(len(row.labels) for row in rows)
        maps, seeds = Step(location / "maps"), Step(location / "seeds")
        maps.open(made := {"unit_size": unit_size, "upstream": {}}, "")
        seeds.open({"unit_size": unit_size, "upstream": {"maps": fingerprint_hash(made)}}, "")
        map_store = MapStore.create(maps.location / "maps.zarr", len(rows), num_slots, grid, unit_size)
        seed_store = SeedStore.create(seeds.location / "seeds.zarr", len(rows), len(class_names), grid, unit_size)
        falling = np.outer(np.linspace(1, 0, grid[0]), np.linspace(1, 0, grid[1])).astype(np.float16)
        for unit in plan_units(len(rows), unit_size):
            classes = np.full((unit.num_images, num_slots), -1)
            for place, row in enumerate(rows[unit.start : unit.stop]):
                classes[place, : len(row.labels)] = row.labels
            maximum = np.broadcast_to(falling, (*classes.shape, *grid))
            scores = np.arange(unit.start, unit.stop)[:, None] - 2.0 + np.zeros(num_slots)
            map_store.write_unit(unit, maximum, maximum**2, scores, classes)
            labels = np.where(falling > 0.35, classes.max(axis=1)[:, None, None] + 1, 0)
            seed_store.write_unit(unit, labels)
            for step in (maps, seeds):
                step.write_receipt(_receipt(unit, rows, skipped))
    return run


def _receipt(unit: Unit, rows: Sequence[ManifestRow], skipped: Sequence[Skipped]) -> Receipt:
    ids = {row.image_id for row in rows[unit.start : unit.stop]}
    return Receipt(
        unit.index, unit.start, unit.stop, 1.0, 1.7e9, tuple(each for each in skipped if each.image_id in ids)
    )


def _write_picture(place: Location, size: tuple[int, int] = (40, 30), texture: int = 0) -> str:
    """A picture, of noise at several scales where a texture's number is given; its address."""
    pixels = np.full((size[1], size[0], 3), 128.0)
    generator = np.random.default_rng(texture)
    for scale in (4, 16, 64) if texture else ():
        noise = Image.fromarray(generator.integers(0, 255, (size[1] // scale, size[0] // scale, 3), np.uint8))
        pixels += 0.3 * (np.asarray(noise.resize(size, Image.Resampling.BICUBIC), float) - 128)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG")
    place.write_bytes(buffer.getvalue())
    return place.uri
