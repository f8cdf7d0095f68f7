"""The step `maps`: its units, its stages and everything that changes its results."""

from cluster.connect import Connection
from cluster.fanout import Stages
from ficklenet.localizer import samplers_for
from jobs.maps.backbone_passes import BackbonePasses
from jobs.maps.map_stages import MapStages
from jobs.maps.stored_geometry import geometry_attributes
from jobs.run.config_keys import Config
from jobs.run.directory import MAPS, Run
from jobs.run.fingerprints import step_fingerprint
from jobs.steps.compute import precision_name, resolved_device
from jobs.steps.networks import require_network
from jobs.steps.unit_driver import UnitStepJob
from jobs.steps.unit_dry_run import CostEstimate
from storage.manifest import Manifest
from storage.map_store import MapStore
from storage.units import plan_units

ALGORITHM_VERSION = 4  # raise it when code between an image's bytes and its stored maps changes results


def make_job(run: Run, connection: Connection) -> UnitStepJob:
    """N stochastic Grad-CAMs per image and class, made with the run's classifier and folded to maximum and mean.

    Raises:
        NotYet: there is no trained classifier.
        ValueError: the classifier was trained for other classes or another size.
    """
    manifest, config = run.manifest(), run.config
    classifier = require_network(run, "classifier", "generate_maps")
    stages = MapStages(
        run=run,
        grid=classifier.spec.grid,
        num_slots=num_slots(manifest, config),
        device=resolved_device(config.maps.device, connection, "maps.device"),
    )
    passes = BackbonePasses.of(config.maps, stages.device)
    fingerprint = step_fingerprint(
        run,
        "maps",
        algorithm_version=ALGORITHM_VERSION,
        upstream=["classifier"],
        seed=config.seed,
        images=config.images.limits,
        device=stages.device,
        precision=precision_name(passes.precision),
        batch_size=passes.batch_size,
        sampler=samplers_for(stages.device)[0],
    )
    return UnitStepJob(
        title="maps",
        step=stages.step,
        fingerprint=fingerprint,
        units=plan_units(manifest.num_images, config.unit_size),
        stages=Stages(stages.make_compute, stages.read, stages.write),
        command=run.step_command("maps"),
        device=stages.device,
        create=lambda data: MapStore.create(
            data / MAPS,
            manifest.num_images,
            stages.num_slots,
            stages.grid,
            config.unit_size,
            attributes={"class_names": list(manifest.class_names), **geometry_attributes(classifier.spec.geometry)},
        ),
        trial=stages.trial,
        cost=_cost(manifest, stages),
    )


def num_slots(manifest: Manifest, config: Config) -> int:
    """The largest number of mapped classes of an image."""
    predicted = min(config.maps.max_classes, manifest.num_classes) if config.maps.classes == "predicted" else 1
    return max(manifest.max_labels(), predicted)


def _cost(manifest: Manifest, stages: MapStages) -> CostEstimate:
    """Per image: two float16 maps for each label."""
    labels_per_image = manifest.num_labels() / max(1, manifest.num_images)
    return CostEstimate(bytes=labels_per_image * 4 * stages.grid[0] * stages.grid[1])
