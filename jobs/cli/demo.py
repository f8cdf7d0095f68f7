"""The first half of the demo: maps of drawn scenes, and a picture of them. `generate_maps.py` without --run runs it."""

from jobs.cli.launch import launch_step
from jobs.preparation.demo import prepare_demo
from jobs.reporting.contact_sheet import draw_contact_sheet
from jobs.steps.compute import connected


def run_demo(config_file: str | None = None, assignments: list[str] | None = None) -> None:
    """Makes what is missing of the demo's maps, and prints where everything is."""
    run = prepare_demo(config_file, assignments)
    with connected(run) as connection:
        launch_step(run, connection, "classifier")
        launch_step(run, connection, "maps")
    print(f"demo: a picture of the maps: {draw_contact_sheet(run, num_images=8)}")
    print(f"demo: to continue with seeds and masks, run 'python jobs/run_pipeline.py --run {run.uri}'.")
