"""Who may know whom: ficklenet, storage and cluster are leaves; only cluster knows Ray; jobs know all three.

Inside jobs, a room imports only the rooms before it, and nothing imports a script.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from jobs.cli.entry_point import COMMANDS

ROOT = Path(__file__).parents[2]
PACKAGES = ("cluster", "ficklenet", "jobs", "storage")
ROOMS = (  # of jobs, in order
    *("run", "steps", "maps", "training", "predictions", "evaluation", "reporting"),
    *("preparation", "exports", "notebook", "cli"),
)
FORBIDDEN = {
    "ficklenet": {"cluster", "storage", "jobs", "ray", "zarr", "fsspec", "s3fs", "pyarrow"},
    "storage": {"cluster", "ficklenet", "jobs", "ray", "torch", "torchvision"},
    "cluster": {"ficklenet", "storage", "jobs", "zarr", "fsspec", "s3fs", "torchvision"},
    "jobs": {"ray", "zarr", "fsspec", "s3fs"},
}


def imported_modules(source: str) -> Iterator[str]:
    """Top-level names of everything imported, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "write absolute imports"
            yield (node.module or "").partition(".")[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_package_imports_only_what_it_may_know(package):
    for file in sorted((ROOT / package).rglob("*.py")):
        wrong = set(imported_modules(file.read_text())) & FORBIDDEN[package]
        assert not wrong, f"{file.relative_to(ROOT)} imports {sorted(wrong)}"


def imported_rooms(source: str) -> set[str]:
    """What comes after `jobs.` in all imports."""
    modules = {node.module or "" for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)}
    modules |= {a.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import) for a in node.names}
    assert "jobs" not in modules, "import a module of jobs, not a name from it"
    return {module.split(".")[1] for module in modules if module.startswith("jobs.")}


def test_jobs_top_level_holds_scripts_alone():
    scripts = {file.stem for file in (ROOT / "jobs").glob("*.py")} - {"__init__"}
    assert scripts == set(COMMANDS.values())
    assert {folder.name for folder in (ROOT / "jobs").iterdir() if (folder / "__init__.py").exists()} == set(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_of_jobs_imports_only_earlier_rooms_and_no_script(room):
    allowed = set(ROOMS[: ROOMS.index(room) + 1])
    for file in sorted((ROOT / "jobs" / room).rglob("*.py")):
        wrong = imported_rooms(file.read_text()) - allowed
        assert not wrong, f"{file.relative_to(ROOT)} imports {sorted(wrong)}"


def test_no_script_imports_a_script():
    for file in (ROOT / "jobs").glob("*.py"):
        assert imported_rooms(file.read_text()) <= set(ROOMS), file.name


def test_a_forbidden_import_is_found_inside_a_function():
    assert "ray" in set(imported_modules("def f():\n    import ray.data\n"))
    assert "cluster" in set(imported_modules("from cluster.connect import connect\n"))


def test_the_drawing_of_the_architecture_shows_the_imports_and_no_others():
    svg = ElementTree.parse(ROOT / "docs" / "architecture.svg").getroot()
    imports = {
        package: {name for file in (ROOT / package).rglob("*.py") for name in imported_modules(file.read_text())}
        for package in PACKAGES
    }
    drawn = {element.get("id") for element in svg.iter() if element.get("class") == "import"}
    assert drawn == {
        f"{package}-{other}" for package in PACKAGES for other in imports[package] & set(PACKAGES) - {package}
    }

    rooms = [element.get("id") for element in svg.iter() if element.get("class") == "room"]
    assert rooms == [f"jobs.{room}" for room in ROOMS]

    boxes = {element.get("id"): element for element in svg.iter() if element.get("class") == "package"}
    assert set(boxes) == set(PACKAGES)
    for package, box in boxes.items():
        named = next(text.text for text in box if text.get("class") == "knows").split()
        assert set(named) <= imports[package], package
        others = set().union(*(imports[other] for other in PACKAGES if other not in (package, "jobs")))
        if package != "jobs":
            assert not set(named) & others - {"torch", "PIL"}, f"{package} is not alone in importing {named}"
