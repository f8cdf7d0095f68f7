"""Predicts masks with the trained segmentation network: a label for every pixel of some splits' images.

Reads the images and <run>/segmenter, or <run>/retrained where predictions.network says so. Writes
<run>/predictions/labels/<id>.png (0 background, class number + 1, in VOC colours) and, where the CRF refines them, what
they were before in <run>/predictions/unrefined. Reads no mask. The same command continues an interrupted run and
computes exactly the missing units.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

from cluster.connect import Connection
from cluster.fanout import Payload, Stages
from ficklenet.crf import require_pydensecrf
from jobs.command_line import job_parser, run_main
from jobs.compute import connected, resolved_device, run_stages
from jobs.dry_run import Rough, print_unit_step
from jobs.parts import units_of_splits
from jobs.prediction_stages import PredictionsJob, Predictor
from jobs.run import Run, open_run, record_run
from jobs.trained_segmenter import require_segmenter
from jobs.unit_steps import Launch, Shard, book_units
from storage.manifest import Manifest
from storage.units import Unit, parse_shard

EXAMPLES = """examples:
  python jobs/predict_masks.py --run s3://bucket/voc                                    the validation splits
  python jobs/predict_masks.py --run s3://bucket/voc --set predictions.scales=0.75,1,1.25 --set predictions.mirror=true
"""


def main(arguments: list[str]) -> None:
    parser = job_parser("predict_masks", f"{__doc__}\n{EXAMPLES}")
    parser.add_argument("--shard", metavar="I/N", default="1/1", help="only every N-th unit, from the I-th on")
    parser.add_argument("--restart", choices=["predictions"], help="delete this step's results and start it anew")
    given = parser.parse_args(arguments)
    run = open_run(given.run, given.config, given.set)
    shard = parse_shard(given.shard)
    network = run.config.predictions.network
    require_segmenter(run, run.manifest().class_names, "predict_masks", network)  # before a Ray is started
    with connected(run.config.cluster) as connection:
        predict_masks(run, connection, shard, restart=given.restart == "predictions", dry_run=given.dry_run)


def predict_masks(
    run: Run, connection: Connection, shard: Shard = (1, 1), *, restart: bool = False, dry_run: bool = False
) -> None:
    """Predicts the missing units of a run, within this launch's shard; arguments as in `generate_maps.generate`."""
    # 1. What to do
    config, manifest = run.config.predictions, run.manifest()
    if config.refine:
        require_pydensecrf()
    segmenter = require_segmenter(run, manifest.class_names, "predict_masks", config.network)
    device = resolved_device(config.device, connection)
    job = PredictionsJob(run.uri, run.config, segmenter.sha256, segmenter.spec.input_size, manifest.num_classes, device)
    units = units_to_predict(run, manifest)

    # 2. The step, made or joined
    launch = Launch(job.step, job.fingerprint(manifest), run.command("predict_masks"), units, shard, restart)
    if dry_run:
        print_unit_step("predictions", launch, run.config.cluster, connection, device, Rough())
        return
    plan = launch.begin()
    record_run(run, "predictions")

    # 3. The missing units
    stages = Stages(partial(Predictor, job), job.read, job.write)
    results = run_stages(plan.rows, stages, run.config.cluster, connection, device, job.trial)
    labels: set[int] = set()
    book_units("predictions", plan, _noting_labels(results, labels), run.config.images.max_skipped_fraction)
    if len(labels) == 1 and len(plan.missing) == len(plan.units):
        name = ("background", *manifest.class_names)[labels.pop()]
        print(
            f"predictions: every pixel is {name}. Unless that is true the network is stuck at one label: look at the "
            "seeds in the report; a lower segmenter.learning_rate or more segmenter.epochs may help."
        )


def _noting_labels(results: Iterable[Payload], labels: set[int]) -> Iterator[Payload]:
    """Hands the results on, adding the labels that occur in them to `labels`."""
    for result in results:
        labels.update(result["labels"])
        yield result


def _require_usable(manifest: Manifest, splits: Sequence[str]) -> None:
    """Refuses splits of which the manifest says that no image can be used."""
    problems = [
        problem
        for batch in manifest.iter_columns(["split", "problem"])
        for split, problem in zip(*batch.values(), strict=True)
        if split in splits
    ]
    if problems and all(problems):
        reason = f"{problems[0]}{'' if problems[0].endswith('?') else '.'}"
        raise ValueError(
            f"predict_masks: no image of the splits {', '.join(name or 'unnamed' for name in splits)} can be used "
            f"(the first: {reason}) Mend the table and prepare it anew, in another --run if steps were started."
        )


def units_to_predict(run: Run, manifest: Manifest) -> list[Unit]:
    """The units that hold an image of the predicted splits.

    Raises:
        ValueError: there is none.
    """
    splits = run.config.predicted_splits
    _require_usable(manifest, splits)
    units = units_of_splits(manifest, splits, run.config.unit_size)
    if not units:
        known = sorted({split for batch in manifest.iter_columns(["split"]) for split in batch["split"]})
        raise ValueError(
            f"predict_masks: no image in the splits {', '.join(splits)}; the manifest has "
            f"{', '.join(name or 'one without a name, --set predictions.splits=' for name in known)}. "
            "Set classifier.val_splits or, to predict images that are trained on, predictions.splits."
        )
    return units


if __name__ == "__main__":
    from jobs.predict_masks import main as imported_main  # so that workers find these classes by import

    run_main(imported_main)
