"""The step `classifier`: FickleNet trained on image-level labels."""

from typing import Any

from cluster.connect import Connection
from ficklenet.backbones import require_imagenet_weights
from ficklenet.classifier import FickleNet
from ficklenet.frozen_features import is_frozen
from jobs.run.config_keys import Config
from jobs.run.directory import Run
from jobs.run.fingerprints import step_fingerprint
from jobs.steps.compute import precision_name, resolved_device, resolved_precision
from jobs.training.backbone_weights import weights_hash
from jobs.training.classifier_worker import classifier_spec, new_classifier, train_worker
from jobs.training.image_list import ImageList, image_list
from jobs.training.kept_features import features_in_words
from jobs.training.plan import training_plan
from jobs.training.training_data import validation_images
from jobs.training.training_job import TrainingJob
from jobs.training.training_warnings import constant_loss, everywhere_warning, keep_best_warning, stuck_warning
from storage.manifest import Manifest

ALGORITHM_VERSION = 3


def make_job(run: Run, connection: Connection) -> TrainingJob:
    """The classifier's training.

    Raises:
        ValueError: there is no labelled image to train on, or the weights cannot be used.
    """
    config, manifest = run.config.classifier, run.manifest()
    device = resolved_device(config.device, connection, "classifier.device")
    images = _training_images(run.config, manifest)
    classifier_spec(run.config, manifest.class_names)
    if config.weights == "imagenet":
        require_imagenet_weights(config.backbone, "classifier.weights")  # the workers download them
    else:
        new_classifier(run.config, manifest.class_names)
    frozen = frozen_shape(run.config, manifest)
    num_validation = len(validation_images(manifest, run.config))
    plan = training_plan("classifier", run.config, len(images))
    counts = images.class_counts()
    constant = constant_loss(counts, len(images))
    return TrainingJob(
        plan=plan,
        worker=train_worker,
        device=device,
        fingerprint=step_fingerprint(
            run,
            "classifier",
            algorithm_version=ALGORITHM_VERSION,
            upstream=[],
            seed=run.config.seed,
            images={"input_size": run.config.images.input_size},
            weights=weights_hash(config.weights, "classifier.weights"),
            device=device,
            precision=precision_name(resolved_precision(config.precision, device)),
            **plan.fingerprint,
            **(dict[str, Any](images_are="whole") if frozen else {}),  # if any stage trains, they are random crops
        ),
        keep=config.keep,
        subject=config.backbone,
        validation=f", {num_validation:,} for validation" if num_validation else ", none for validation",
        notes=[
            everywhere_warning(manifest.class_names, counts, len(images)),
            keep_best_warning(num_validation, config),
            _features_in_words(frozen, len(images), num_validation, run.config, device) if frozen else "",
        ],
        watch=lambda metrics: stuck_warning(metrics, plan.epoch_steps, constant, config),
    )


def frozen_shape(config: Config, manifest: Manifest) -> tuple[int, int, int] | None:
    """(K, H, W) of an image's features, which are kept, if the whole backbone is frozen; else None."""
    if config.classifier.frozen_stages == 0:
        return None
    classifier = FickleNet(classifier_spec(config, manifest.class_names))
    classifier.backbone.freeze_stages(config.classifier.frozen_stages)
    return (classifier.backbone.out_channels, *classifier.spec.grid) if is_frozen(classifier.backbone) else None


def _features_in_words(
    shape: tuple[int, int, int], num_training: int, num_validation: int, config: Config, device: str
) -> str:
    """The cost of a frozen backbone, in words: its passes, and the space for their features."""
    words, are_all_kept = features_in_words("classifier", config, shape, 2 * num_training + num_validation, device)
    return f"{words} Then no image is decoded again." if are_all_kept else words


def _training_images(config: Config, manifest: Manifest) -> ImageList:
    """The training images.

    Raises:
        ValueError: there are none; or there are no validation images, but the best epoch is to be kept.
    """
    images = image_list(manifest, config.data.train_splits, without=config.data.val_splits)
    if not images:
        raise ValueError(
            f"train_ficklenet: no labelled image in the training splits {list(config.data.train_splits) or 'given'}; "
            f"the manifest has {sorted(manifest.splits())}. Set data.train_splits."
        )
    if config.classifier.keep == "best" and not validation_images(manifest, config):
        raise ValueError(
            f"classifier.keep: given 'best', but there is no labelled image in the validation splits "
            f"{list(config.data.val_splits)}. Set data.val_splits, or give 'last'."
        )
    return images
