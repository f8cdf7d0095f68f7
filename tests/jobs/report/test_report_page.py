"""How the report's page behaves in a real browser, from a file and without a network."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from jobs.reporting.page import write_report
from storage.location import Location
from storage.manifest import ManifestRow
from storage.steps import Skipped

HOSTILE = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"


def _values(page: Page, name: str) -> list[str]:
    """A datum of the shown entries, in their order on the page."""
    shown: list[str] = page.eval_on_selector_all(
        "#entries > .entry:not([hidden])", f"entries => entries.map((entry) => entry.dataset.{name})"
    )
    return shown


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


def test_a_click_on_a_picture_says_what_it_shows(finished_run, visit):
    page = visit(finished_run)
    for place, words in (("#lead", "some sample finds a class"), ("#entries", "largest value that the class has")):
        page.locator(f"{place} .strip").first.click()
        expect(page.locator("#detail-body")).to_contain_text(words)
        page.keyboard.press("Escape")
    assert words not in page.locator("#entries").inner_text()


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


def test_page_reads_without_scripts(finished_run, browser, html_of):
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


def test_names_ids_and_reasons_with_html_are_inert(tmp_path, visit, handmade_run, write_picture):
    place = Location(str(tmp_path))
    uri = write_picture(place / "0.jpg")
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
