"""Runs every step of a prepared run in order, with one configuration, in one Ray: from labels to masks and figures.

A step that is complete says so and costs nothing; the first one that cannot be completed stops the pipeline with its
reason, and the same command continues there. With --demo it draws a small data set first.
"""

from collections.abc import Callable

from cluster.connect import Connection
from cluster.words import plural
from jobs.aggregate_seeds import aggregate_run
from jobs.backbone_weights import fetch_imagenet_weights
from jobs.command_line import job_parser, run_main
from jobs.compute import connected
from jobs.config import Config
from jobs.contact_sheet import draw_contact_sheet
from jobs.demo import prepare_demo
from jobs.evaluate import evaluate_seeds
from jobs.generate_maps import generate
from jobs.make_pseudo_labels import make_pseudo_labels
from jobs.parts import measurable_splits
from jobs.predict_masks import predict_masks, units_to_predict
from jobs.report import write_report
from jobs.retrain_segmentation import require_something_to_teach, retrain_segmenter
from jobs.run import Run, open_run
from jobs.segmentation_worker import segmentation_plan
from jobs.train_ficklenet import train_classifier
from jobs.train_segmentation import check_images, require_start_weights, train_segmenter
from jobs.training_job import require_workers
from storage.errors import NotYet
from storage.units import plan_units

STEPS: tuple[tuple[str, Callable[..., object]], ...] = (  # each takes a run, a connection and dry_run
    ("classifier", train_classifier),
    ("maps", generate),
    ("seeds", aggregate_run),
    ("pseudo-labels", make_pseudo_labels),
    ("segmenter", train_segmenter),
    ("predictions", predict_masks),
)

EXAMPLES = """examples:
  python jobs/run_pipeline.py --demo
  python jobs/run_pipeline.py --run /data/voc --dry-run
  python jobs/run_pipeline.py --run s3://bucket/voc --set classifier.weights=s3://bucket/vgg16.pt
"""


def steps_of(config: Config) -> list[tuple[str, Callable[..., object]]]:
    """The pipeline's steps; retraining is one of them where its network is to predict."""
    steps = list(STEPS)
    if config.predictions.network == "retrained":
        steps.insert(-1, ("retrained", retrain_segmenter))
    return steps


def main(arguments: list[str]) -> None:
    parser = job_parser("run_pipeline", f"{__doc__}\n{EXAMPLES}", run_required=False)
    parser.add_argument("--demo", action="store_true", help="on drawn scenes, in ~/ficklenet-demo")
    given = parser.parse_args(arguments)
    if given.demo == (given.run is not None):
        raise ValueError("run_pipeline: give --run PATH of a prepared run, or --demo.")
    if given.demo and given.dry_run:
        raise ValueError("run_pipeline: --dry-run goes with --run; the demo's run is ~/ficklenet-demo/run.")
    run = prepare_demo(given.config, given.set) if given.demo else open_run(given.run, given.config, given.set)
    run.manifest()  # refused before a Ray is started
    with connected(run.config.cluster) as connection:
        (foretell if given.dry_run else run_pipeline)(run, connection)


def run_pipeline(run: Run, connection: Connection) -> None:
    """Every step, its figures where the manifest names masks, and the report."""
    require_possible(run)
    config, steps = run.config.segmenter, steps_of(run.config)
    if config.weights == "imagenet" and (connection.is_to_start or connection.in_process) and _is_to_train(run):
        print(f"pipeline: ImageNet weights of {config.backbone} are fetched where they are not here yet.", flush=True)
        fetch_imagenet_weights(config.backbone, "segmenter.weights")  # by hours sooner than its training would
    for number, (name, step) in enumerate(steps, start=1):
        print(f"pipeline: step {number} of {len(steps)}, {name}", flush=True)
        step(run, connection)
    measured = measurable_splits(run.manifest(), run.config)
    if not measured:
        print("pipeline: no figures, as no image to report on has a mask.")
    for splits in measured:
        evaluate_seeds(run, connection, splits, None, ("image",), deterministic=False)
    print(f"pipeline: a picture of the maps: {draw_contact_sheet(run, num_images=8)}")
    print(f"pipeline: look at {write_report(run)[0]}")


def require_possible(run: Run) -> None:
    """Refuses, before hours of training, what a later step would refuse.

    Raises:
        ValueError: nothing to predict, or nothing that the segmentation network can learn or begin with.
    """
    manifest, config = run.manifest(), run.config
    units_to_predict(run, manifest)
    if config.predictions.network == "retrained":
        require_something_to_teach(config)
    require_workers(config.cluster, segmentation_plan(config, check_images(config, manifest)))
    if config.segmenter.weights != "classifier":  # which is trained first
        require_start_weights(run, manifest)


def _is_to_train(run: Run) -> bool:
    return not (run.location / "segmenter" / "complete.json").exists()


def foretell(run: Run, connection: Connection) -> None:
    """Says what each step would do; of one that builds on what is not there yet, on how much.

    Raises:
        ValueError: the pipeline would stop there.
    """
    require_possible(run)
    manifest, steps = run.manifest(), steps_of(run.config)
    for number, (name, step) in enumerate(steps, start=1):
        print(f"pipeline: step {number} of {len(steps)}, {name}", flush=True)
        try:
            step(run, connection, dry_run=True)
        except NotYet:
            print(f"{name}, dry run: {_extent(run, name)}, once the steps above are done; a dry run then tells more.")
    measured = (", ".join(split or "unnamed" for split in splits) for splits in measurable_splits(manifest, run.config))
    figures = "".join(f"figures of {splits}, " for splits in measured)
    without = "" if figures else "no figures, as no image to report on has a mask, "
    print(f"pipeline: then {figures}{without}the contact sheet and the report.")


def _extent(run: Run, name: str) -> str:
    """How much a step is to do."""
    manifest = run.manifest()
    if name in ("segmenter", "retrained"):
        plan = segmentation_plan(run.config, check_images(run.config, manifest))
        return f"{plural(plan.epochs, 'epoch')} of {plan.epoch_in_words}"
    is_prediction = name == "predictions"
    units = units_to_predict(run, manifest) if is_prediction else plan_units(manifest.num_images, run.config.unit_size)
    return f"{plural(len(units), 'unit')} ({plural(sum(unit.num_images for unit in units), 'image')})"


if __name__ == "__main__":
    from jobs.run_pipeline import main as imported_main  # so that workers find these classes by import

    run_main(imported_main)
