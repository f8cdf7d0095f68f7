"""The report's page: what it says, and how it behaves in a real browser, from a file and without a network."""

import io
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from cluster.connect import connect
from jobs.aggregate_seeds import aggregate_run
from jobs.evaluate import evaluate_seeds
from jobs.generate_maps import generate
from jobs.report import main, write_report
from jobs.report_curves import training_curves
from jobs.report_gallery import disagreement, seed_error, spread
from jobs.run import Run, open_run, record_run
from storage.location import Location
from storage.manifest import ManifestRow, write_manifest
from storage.map_store import MapStore
from storage.seed_store import SeedStore
from storage.steps import Receipt, Skipped, Step
from storage.units import Unit, plan_units

CHROMIUM = shutil.which("chromium")
HOSTILE = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"


@pytest.fixture(scope="module")
def finished_run(trained_run_folder, tmp_path_factory) -> Run:
    """A run with maps, seeds, evaluation and report."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    shutil.copytree(trained_run_folder, folder)
    run = open_run(str(folder))
    with connect("in-process") as connection:
        generate(run, connection)
        aggregate_run(run, connection)
        evaluate_seeds(run, connection, [], "all", ("map",), deterministic=False)
    write_report(run)
    return run


@pytest.fixture(scope="module")
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


def handmade_run(
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
        maps.open(made := {"unit_size": unit_size, "classifier": None}, "")
        seeds.open({"maps": made}, "")
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


def _page(run: Run) -> str:
    return (run.location / "report" / "index.html").read_bytes().decode()


def _values(page: Page, name: str) -> list[str]:
    """A datum of the shown entries, in their order on the page."""
    shown: list[str] = page.eval_on_selector_all(
        "#entries > .entry:not([hidden])", f"entries => entries.map((entry) => entry.dataset.{name})"
    )
    return shown


# What the page says


def test_report_is_one_command(finished_run, tmp_path, capsys):
    shutil.copytree(finished_run.uri, tmp_path / "run")

    main(["--run", str(tmp_path / "run"), "--images", "3"])

    assert f"{tmp_path}/run/report/index.html" in capsys.readouterr().out
    assert "A sample: 3 of the 14 images with maps" in _page(open_run(str(tmp_path / "run")))


def test_page_shows_the_figures_of_the_evaluation(finished_run):
    with connect("in-process") as connection:
        figures = evaluate_seeds(finished_run, connection, [], "all", ("map",), deterministic=False)

    record = figures[0].record(finished_run.manifest().class_names)
    for value in (record["mean_iou"], record["coverage"], record["iou"]["ring"]):
        assert f">{value:.3f}<" in _page(finished_run)


def test_same_run_gives_the_same_page(finished_run):
    before = _page(finished_run)

    write_report(finished_run)

    assert _page(finished_run) == before


def test_run_without_maps_says_which_commands_come_next(location):
    rows = [ManifestRow(f"image_{n}", f"/nowhere/{n}.jpg", (0,), split="train") for n in range(3)]
    run = handmade_run(location, rows, ["cat"], with_maps=False)

    write_report(run)

    page = _page(run)
    for job in ("train_ficklenet", "generate_maps", "aggregate_seeds", "make_pseudo_labels", "evaluate"):
        assert f"python jobs/{job}.py --run {run.uri}" in page
    assert 'id="gallery"' not in page


def test_seeds_of_maps_made_anew_since_are_outdated(finished_run, tmp_path):
    shutil.copytree(finished_run.uri, tmp_path / "run")
    changed = open_run(str(tmp_path / "run"), None, ["maps.num_samples=3"])
    with connect("in-process") as connection:
        generate(changed, connection, restart=True)
    write_report(changed)
    page = _page(changed)
    assert '<span class="state outdated">outdated</span>' in page
    assert f"python jobs/aggregate_seeds.py --run {changed.uri} --restart seeds" in page
    assert "by maps.num_samples = " in page  # how the figures were measured


def test_maps_of_an_earlier_classifier_are_outdated_and_so_is_what_was_made_of_them(finished_run, tmp_path):
    shutil.copytree(finished_run.uri, tmp_path / "run")
    complete = tmp_path / "run" / "classifier" / "complete.json"
    complete.write_text(json.dumps(json.loads(complete.read_text()) | {"sha256": "of another"}))
    run = open_run(str(tmp_path / "run"))
    write_report(run)
    assert _page(run).count('<span class="state outdated">') == 2
    assert "by an earlier classifier" in _page(run)


def test_report_of_a_run_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no manifest.*prepare_dataset"):
        write_report(open_run(str(tmp_path / "run")))


def test_negative_number_of_images_is_refused(finished_run):
    with pytest.raises(ValueError, match="--images -1"):
        write_report(finished_run, -1)


def test_image_that_several_steps_skip_is_listed_once_with_its_reason(tmp_path):
    place = Location(str(tmp_path))
    rows = [ManifestRow(f"image_{n}", _write_picture(place / f"{n}.jpg"), (0,)) for n in range(5)]
    run = handmade_run(place / "run", rows, ["cat"], skipped=[Skipped("image_3", "empty file")])

    write_report(run)

    _, _, section = _page(run).partition('id="skipped"')
    assert section.count("image_3") == 1
    assert "empty file" in section
    assert "maps, seeds" in section
    assert 'data-row="3"' not in _page(run)


def test_image_that_is_gone_keeps_its_place_and_says_so(tmp_path):
    place = Location(str(tmp_path))
    mask = _write_picture(place / "mask.jpg")  # three channels: no mask
    rows = [ManifestRow("gone", str(tmp_path / "gone.jpg"), (0,), mask_uri=mask)]
    run = handmade_run(place / "run", rows, ["cat"])

    write_report(run)

    assert "The image cannot be read any more: missing: no such file." in _page(run)
    assert "The mask cannot be read: mask has RGB pixels" in _page(run)


def test_ten_thousand_images_give_a_sample_of_a_few_megabytes(tmp_path, visit):
    """3.3 MB with these photographs of noise and two classes each; 200 of VOC's, with 209 classes, gave 2.7 MB."""
    place = Location(str(tmp_path))
    uris = [_write_picture(place / f"{n}.jpg", (500, 375), texture=n + 1) for n in range(8)]
    rows = [ManifestRow(f"image_{n:05d}", uris[n % 8], (n % 3, 3), split="train") for n in range(10_000)]
    run = handmade_run(place / "run", rows, ["a", "b", "c", "d"], grid=(41, 41), unit_size=1000)

    _, num_bytes = write_report(run)
    page = visit(run)

    assert num_bytes < 5e6
    assert "A sample: 200 of the 10,000 images with maps" in page.locator("#gallery").inner_text()
    assert page.locator("#entries > .entry").count() == 400
    assert page.locator("#entries > .entry:visible").count() == 24
    sampled = sorted(
        {int(row) for row in page.locator("#entries").evaluate("e => [...e.children].map(c => c.dataset.row)")}
    )
    assert (sampled[0], sampled[-1]) == (0, 9999)
    assert max(np.diff(sampled)) <= 51


# In the browser


def test_gallery_filters_by_class_and_split(finished_run, visit):
    page = visit(finished_run)
    total = page.locator("#entries > .entry").count()

    page.locator("#class-filter").select_option(label="ring")
    assert set(_values(page, "class")) == {"1"}
    assert 0 < len(_values(page, "class")) < total
    expect(page.locator("#count")).to_have_text(f"{len(_values(page, 'class'))} of {len(_values(page, 'class'))} shown")

    page.locator("#class-filter").select_option("")
    page.locator("#split-filter").select_option(label="val")
    assert set(_values(page, "row")) == {"12", "13"}


def test_gallery_begins_with_the_worst(finished_run, visit):
    errors = [float(value) for value in _values(visit(finished_run), "error") if value]

    assert len(errors) > 3
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(
    ("order", "name", "is_falling"),
    [
        ("score asc", "score", False),
        ("score desc", "score", True),
        ("disagreement desc", "disagreement", True),
        ("error asc", "error", False),
        ("row asc", "row", False),
    ],
)
def test_gallery_sorts(finished_run, visit, order, name, is_falling):
    page = visit(finished_run)

    page.locator("#order").select_option(order)

    values = [float(value) for value in _values(page, name) if value]
    assert len(set(values)) > 3
    assert values == sorted(values, reverse=is_falling)


def test_class_in_the_table_of_figures_leads_to_its_gallery(finished_run, visit):
    page = visit(finished_run)

    page.get_by_role("button", name="star", exact=True).click()

    assert set(_values(page, "class")) == {"0"}
    expect(page.locator("#class-filter")).to_be_focused()


def test_keyboard_alone_enlarges_walks_and_returns(finished_run, visit):
    page = visit(finished_run)
    opener = page.locator("#entries .enlarge:visible").first
    shown = page.locator("#detail-body h3")
    titles = page.locator("#entries > .entry:not([hidden]) h3").all_inner_texts()

    opener.focus()
    page.keyboard.press("Enter")
    expect(shown).to_have_text(titles[0])
    page.keyboard.press("ArrowRight")
    expect(shown).to_have_text(titles[1])
    page.keyboard.press("ArrowLeft")
    expect(shown).to_have_text(titles[0])
    page.keyboard.press("Escape")

    expect(page.locator("#detail")).to_be_hidden()
    expect(opener).to_be_focused()


def test_every_picture_has_a_text_and_every_control_a_name(finished_run, visit):
    page = visit(finished_run)

    assert page.locator("img").count() > 20
    assert page.locator("img:not([alt]), img[alt='']").count() == 0
    unnamed = "controls => controls.filter((each) => !each.labels.length && !each.innerText).length"
    assert page.eval_on_selector_all("main select, main input, main button:not([hidden])", unnamed) == 0
    assert page.evaluate("document.querySelectorAll('img').length") == page.evaluate(
        "[...document.querySelectorAll('img')].filter((each) => each.naturalWidth > 0).length"
    )


def test_maps_lie_on_the_image_corner_on_corner(finished_run, visit):
    """The centre of a map's first cell is the image's corner, so half of that cell is cut off."""
    page = visit(finished_run)

    map_box = page.locator("#entries .max img").first.bounding_box()
    frame = page.locator("#entries .max .frame").first.bounding_box()

    cell = frame["width"] / (9 - 1)  # input 65: 9 x 9 cells
    assert map_box["x"] == pytest.approx(frame["x"] - cell / 2, abs=0.6)
    assert map_box["width"] == pytest.approx(9 * cell, abs=0.6)


def test_page_reads_without_scripts(finished_run, browser):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()

    page.goto(Path((finished_run.location / "report" / "index.html").uri).as_uri())

    assert page.locator("#entries > .entry:visible").count() == page.locator("#entries > .entry").count()
    expect(page.locator("#controls")).to_be_hidden()
    context.close()


@pytest.mark.parametrize("width", [360, 800, 1600])
def test_page_fits_its_window(finished_run, visit, width):
    page = visit(finished_run)

    page.set_viewport_size({"width": width, "height": 800})

    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_names_ids_and_reasons_with_html_are_inert(tmp_path, visit):
    place = Location(str(tmp_path))
    uri = _write_picture(place / "0.jpg")
    rows = [ManifestRow(f"{HOSTILE}{n}", uri, (0, 1), split=f"'\"><b>{HOSTILE}") for n in range(3)]
    run = handmade_run(
        place / "run",
        rows,
        [HOSTILE, "a\"' onmouseover=alert(1) b"],
        skipped=[Skipped(f"{HOSTILE}1", f"</td>{HOSTILE}")],
    )

    write_report(run)
    page = visit(run)

    assert page.title() == "run \N{EN DASH} FickleNet run"
    assert page.locator("script").count() == 1
    assert page.locator("[onerror], [onmouseover], main b:has(img)").count() == 0
    assert HOSTILE in page.locator("#entries").inner_text()
    assert HOSTILE in page.locator("#skipped").inner_text()
    page.locator("#class-filter").select_option("1")
    page.locator("#entries .enlarge:visible").first.click()
    assert page.locator("#detail-body h3").inner_text().startswith("a\"' onmouseover=alert(1) b")


# What its figures mean


def test_disagreement_is_the_share_of_seeded_cells_that_the_mean_does_not_seed():
    maximum, mean = np.array([0.9, 0.8, 0.5, 0.4, 0.1]), np.array([0.6, 0.35, 0.2, 0.1, 0.1])

    assert disagreement(maximum, mean, 0.35) == pytest.approx(3 / 4)
    assert disagreement(maximum, maximum, 0.35) == 0
    assert disagreement(maximum, mean, 0.95) is None


def test_seed_error_is_one_minus_the_intersection_over_union():
    seed, truth = np.array([1, 1, 1, 0, 0], bool), np.array([0, 1, 1, 1, 0], bool)

    assert seed_error(seed, truth) == pytest.approx(1 - 2 / 4)
    assert seed_error(~seed & ~truth & False, truth & False) is None


def test_sample_is_spread_evenly_and_holds_every_image_where_there_are_few():
    assert spread(np.arange(100, 1100), 3) == [100, 599, 1099]
    assert spread(np.array([4, 8, 9]), 200) == [4, 8, 9]
    assert spread(np.array([4, 8, 9]), 0) == []


def test_curves_leave_out_what_was_not_measured():
    lines = [{"epoch": 1, "loss": 0.5, "val_map": float("nan")}, {"epoch": 2, "loss": 0.25, "val_map": 0.75}]

    loss, val_map = training_curves(lines)

    assert [point.value for point in loss.points] == [0.5, 0.25]
    assert loss.points[0].y < loss.points[1].y  # downwards
    assert [point.epoch for point in val_map.points] == [2]
    assert training_curves([]) == []
