"""Makes localisation maps: N stochastic Grad-CAMs per image and class, folded to maximum and mean.

Reads <run>/manifest.parquet and <run>/classifier, writes <run>/maps. The same command continues an interrupted
run and computes exactly the missing units. Without --run it runs the built-in demo: draws a data set, trains a
small classifier on it, makes its maps and a picture of them.
"""

from functools import partial

from cluster.connect import Connection
from cluster.fanout import Stages
from jobs.command_line import job_parser, run_main
from jobs.compute import connected, resolved_device, run_stages
from jobs.config import Config
from jobs.dry_run import Rough, print_unit_step
from jobs.map_stages import MapMaker, MapsJob
from jobs.run import Run, open_run, record_run
from jobs.trained_classifier import require_classifier
from jobs.unit_steps import Launch, Shard, book_units
from storage.manifest import Manifest
from storage.map_store import MapStore
from storage.units import parse_shard, plan_units

EXAMPLES = """examples:
  python jobs/generate_maps.py                                      the demo
  python jobs/generate_maps.py --run /data/voc                      a prepared and trained run
  python jobs/generate_maps.py --run s3://bucket/voc --shard 1/4    every fourth unit of it
  ray job submit --working-dir . -- python jobs/generate_maps.py --run s3://bucket/voc
"""


def main(arguments: list[str]) -> None:
    parser = job_parser("generate_maps", f"{__doc__}\n{EXAMPLES}", run_required=False)
    parser.add_argument("--shard", metavar="I/N", default="1/1", help="only every N-th unit, from the I-th on")
    parser.add_argument("--restart", choices=["maps"], help="delete this step's results and start it anew")
    given = parser.parse_args(arguments)
    if given.run is None:
        if given.restart or given.dry_run or given.shard != "1/1":
            raise ValueError("--shard, --restart and --dry-run go with --run; the demo's run is ~/ficklenet-demo/run.")
        from jobs.demo import run_demo  # which runs every job, this one too

        run_demo(given.config, given.set)
        return
    run = open_run(given.run, given.config, given.set)
    shard = parse_shard(given.shard)
    if given.restart and shard != (1, 1):
        raise ValueError("--restart deletes every shard's maps: launch it without --shard, then the shards without it.")
    require_classifier(run, run.manifest().class_names)  # before a Ray is started
    with connected(run.config.cluster) as connection:
        generate(run, connection, shard, restart=given.restart == "maps", dry_run=given.dry_run)


def generate(
    run: Run, connection: Connection, shard: Shard = (1, 1), *, restart: bool = False, dry_run: bool = False
) -> None:
    """Computes the missing units of a run's maps, within this launch's shard.

    Args:
        connection: where to work.
        shard: (i, n): every n-th unit from the i-th on.
        restart: delete what the step has and begin anew.
        dry_run: say what would be done, and do nothing.
    """
    # 1. What to do follows from the manifest, the classifier and the configuration alone.
    manifest = run.manifest()
    classifier = require_classifier(run, manifest.class_names)
    job = MapsJob(
        run_uri=run.uri,
        config=run.config,
        classifier_hash=classifier.sha256,
        grid=classifier.spec.grid,
        num_slots=num_slots(manifest, run.config),
        device=resolved_device(run.config.maps.device, connection),
    )
    units = plan_units(manifest.num_images, run.config.unit_size)

    # 2. The step and its arrays are made, or joined, before any worker writes.
    launch = Launch(job.step, job.fingerprint(manifest), run.command("generate_maps"), units, shard, restart)
    if dry_run:
        print_unit_step("maps", launch, run.config.cluster, connection, job.device, _rough(manifest, job))
        return
    plan = launch.begin()
    MapStore.create(
        job.store_location,
        manifest.num_images,
        job.num_slots,
        job.grid,
        run.config.unit_size,
        attributes={"class_names": list(manifest.class_names)},
    )
    record_run(run, "maps")

    # 3. The missing units stream through the cluster; receipts come back.
    stages = Stages(partial(MapMaker, job), job.read, job.write)
    results = run_stages(plan.rows, stages, run.config.cluster, connection, job.device, job.trial)
    book_units("maps", plan, results, run.config.images.max_skipped_fraction)


def _rough(manifest: Manifest, job: MapsJob) -> Rough:
    """One CPU's time for an image's VGG-16 pass, 1.0 s at 321 x 321; two float16 maps for each of its labels."""
    is_measured = job.device == "cpu" and job.config.classifier.backbone == "vgg16"
    seconds = 1.05 * (job.config.images.input_size / 321) ** 2 if is_measured else None
    return Rough(seconds, bytes=manifest.num_labels() / max(1, manifest.num_images) * 4 * job.grid[0] * job.grid[1])


def num_slots(manifest: Manifest, config: Config) -> int:
    """The most classes that any image has mapped."""
    predicted = min(config.maps.max_classes, manifest.num_classes) if config.maps.classes == "predicted" else 1
    return max(manifest.max_labels(), predicted)


if __name__ == "__main__":
    from jobs.generate_maps import main as imported_main  # so that workers find these classes by import

    run_main(imported_main)
