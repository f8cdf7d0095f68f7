"""A trained run for notebooks and other programs: its networks on one image, and the stored results of its steps.

    run = open_trained("/data/voc")
    image = run.image("2007_000032")
    maps = run.localize(image, ["person"], "2007_000032")
    labels = run.predict(image)

The functions compute in this process and write nothing. On the same device, their results equal the stored ones, bit
for bit, except for large JPEGs, whose sides are at least four times as long as the network's input. The jobs shrink
them while they read them, and the results are only nearly equal.
"""

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from ficklenet.classifier import FickleNet
from ficklenet.masks import mask_key
from ficklenet.resampling import resize_square
from ficklenet.segmenter import Segmenter
from ficklenet.threads import one_thread
from jobs.maps.map_maker import MapMaker
from jobs.maps.map_stages import MapStages
from jobs.maps.maps_job import num_slots
from jobs.notebook.acting_settings import require_acting
from jobs.notebook.arguments import (
    known_step,
    require_choice,
    require_classes,
    require_id,
    require_image,
    require_maps,
    require_path,
    require_settings,
    require_size,
    usable_device,
)
from jobs.notebook.finished_rows import (
    finished_ids,
    finished_row,
    nothing_to_measure,
    require_used,
    row_of,
    warn_if_outdated,
    warn_if_unknown,
)
from jobs.predictions.prediction_stages import PredictionStages, Predictor
from jobs.run.directory import Run, open_run
from jobs.run.origin import only_masks
from jobs.run.steps import BY_NAME
from jobs.steps.networks import require_network, require_segmenter
from storage.errors import BadImage, NotYet
from storage.images import read_image
from storage.label_values import label_dtype
from storage.manifest import Manifest, ManifestRow
from storage.map_store import ImageMaps

MAP_STEPS = ("maps", "refined")
LABEL_STEPS = ("predictions", "pseudo_labels")


@dataclass(frozen=True, repr=False)
class TrainedRun:
    """A run with trained networks; make it with `open_trained`. A network is read when it is first used.

    Attributes:
        run: the run object that the jobs use: `run.config`, `run.manifest()`, `run.maps()`, `run.seeds()`.
        device: "cpu" or "cuda".
    """

    run: Run
    device: str
    _map_makers: list[MapMaker] = field(default_factory=list, init=False, compare=False)  # one, when it is first used
    _predictors: list[Predictor] = field(default_factory=list, init=False, compare=False)

    def __repr__(self) -> str:
        return f"TrainedRun({self.run.uri!r}, device={self.device!r})"

    # Content

    @cached_property
    def image_ids(self) -> tuple[str, ...]:
        """The ids of all images, in the order of the manifest."""
        manifest = self.run.manifest()
        return tuple(name for ids in manifest.iter_image_ids(0, manifest.num_images) for name in ids.to_pylist())

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of class 0, 1, ...; label images hold class number + 1."""
        return self.run.manifest().class_names

    @property
    def classifier(self) -> FickleNet:
        """The trained classifier, on the device.

        Raises:
            NotYet: it is not trained.
        """
        return self._map_maker("classifier").model

    @property
    def network(self) -> Segmenter:
        """The trained segmentation network that `predictions.network` names, on the device; warns if it is outdated."""
        warn_if_outdated(self.run, self.run.config.predictions.network)
        return self._predictor("network").model

    def entry(self, image_id: str) -> ManifestRow:
        """The manifest's row of an image.

        Raises:
            KeyError: there is no such image.
        """
        row = row_of(self.run, image_id)
        return self.run.manifest().rows(row, row + 1)[0]

    def image(self, image_id: str) -> np.ndarray:
        """An image of the run: uint8 (H, W, 3), RGB, upright.

        Raises:
            KeyError: there is no such image. BadImage: it cannot be read.
        """
        return self.read(self.entry(image_id).uri)

    def read(self, path: str | os.PathLike[str]) -> np.ndarray:
        """An image file that need not be in the run, read as the jobs read it: uint8 (H, W, 3), RGB, upright.

        Args:
            path: a file or an s3:// address.

        Raises:
            BadImage: it cannot be read; the message names the file.
        """
        path = require_path(path)
        try:
            return read_image(path, **self.run.config.images.limits)
        except BadImage as bad:
            raise BadImage(f"{path}: {bad.reason}") from None

    # Stored results

    def path(self, step: str) -> str:
        """The folder or s3:// prefix that holds a step's results now.

        It is `<run>/<step>`, and another folder below it after `--restart STEP`. It warns if the step is outdated.

        Args:
            step: the name of a step, such as "maps", "refined", "seeds" or "predictions".

        Raises:
            ValueError: there is no such step. NotYet: it was never started.
        """
        step = known_step(step, tuple(BY_NAME), "path")
        self._require_started(step)
        warn_if_outdated(self.run, step)
        return self.run.step(step).data().uri

    def finished_ids(self, step: str) -> tuple[str, ...]:
        """The ids of the images whose results a step has stored, in the order of the manifest.

        Images that it skipped are not among them. It warns if the step is outdated.

        Args:
            step: "maps", "refined", "seeds", "pseudo_labels" or "predictions".

        Raises:
            ValueError: another step. NotYet: it was never started.
        """
        step = known_step(step, (*MAP_STEPS, "seeds", *LABEL_STEPS), "finished_ids")
        self._require_started(step)
        warn_if_outdated(self.run, step)
        return tuple(finished_ids(self.run, step))

    def stored_maps(self, image_id: str, step: str = "maps") -> ImageMaps:
        """The maps that the step "maps" or "refined" stored; warns if the step is outdated.

        Raises:
            KeyError: there is no such image. NotYet: its maps are not made yet. ValueError: another step, or the step
                skipped this image.
        """
        step = known_step(step, MAP_STEPS, "stored_maps")
        row, receipt = finished_row(self.run, step, image_id)
        warn_if_outdated(self.run, step)
        require_used(receipt, step, image_id)
        return self.run.maps(step=step).read(row)

    def stored_seeds(self, image_id: str) -> np.ndarray:
        """The seeds (h, w): 0 background, class number + 1, 255 unknown; warns if they are outdated.

        Raises:
            KeyError: there is no such image. NotYet: its seeds are not made yet. ValueError: they were skipped.
        """
        row, receipt = finished_row(self.run, "seeds", image_id)
        warn_if_outdated(self.run, "seeds")
        require_used(receipt, "seeds", image_id)
        return self.run.seeds().read(row)

    def stored_labels(self, image_id: str, step: str = "predictions") -> np.ndarray:
        """The labels (H, W) that the step "predictions" or "pseudo_labels" stored; warns if the step is outdated.

        Raises:
            KeyError: there is no such image. NotYet: its labels are not made yet. ValueError: another step, or the step
                makes no labels of this image.
        """
        step = known_step(step, LABEL_STEPS, "stored_labels")
        _, receipt = finished_row(self.run, step, image_id)
        warn_if_outdated(self.run, step)
        require_used(receipt, step, image_id)
        return self.run.labels(step).read(image_id, receipt)

    # Computing

    def localize(self, image: np.ndarray, classes: Sequence[str], image_id: str = "") -> ImageMaps:
        """The localisation maps of one image, made as in `generate_maps` with the run's settings.

        Args:
            image: uint8 (H, W, 3), RGB, of any size.
            classes: names of the classes to map.
            image_id: the random masks depend on it and the run's seed. Give the id of an image of the run to get the
                same maps as the job. For another image, leave it out; an id that the run does not have gives a
                warning.

        Returns:
            Maps on the grid of the classifier, in the order of `classes`. The map of each sample and class is divided
            by its own maximum or percentile (`maps.normalization`), so a map of a class that is not in the image is
            high somewhere too; `score` tells the two apart. The first call reads the network and compiles code, so it
            takes longer.

        Raises:
            ValueError: the run does not have one of the classes, a class is given twice, or the classes or the image
                are something else.
            NotYet: the classifier is not trained.
        """
        require_image(image, "localize")
        require_classes(classes, self.class_names, "localize")
        require_id(image_id, "localize")
        if image_id:
            warn_if_unknown(self.run, image_id)
        maker = self._map_maker("localize")
        numbers = np.array([self.class_names.index(name) for name in classes], np.int16)
        slots = np.full((1, max(len(numbers), maker.job.num_slots)), -1, np.int16)
        slots[0, : len(numbers)] = np.sort(numbers)  # as the job computes them
        places = np.searchsorted(np.sort(numbers), numbers)
        inputs = resize_square(image, self.run.config.images.input_size)[None]
        keys = [mask_key(self.run.config.seed, image_id)]
        with self._threads_of_the_jobs():
            found = maker.localize(inputs, slots, np.zeros(1, bool), keys)
        return ImageMaps(numbers, *(found[name][0].cpu().numpy()[places] for name in ("max", "mean", "score")))

    def enlarge(self, maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Maps or labels (..., h, w) on the grid of the classifier, resized to (..., *size) as in the report.

        Floats are resized bilinearly. Labels, such as seeds, are resized by nearest neighbour, because a number between
        two labels would be another class.

        Args:
            maps: floats from `localize` or from a store, or whole numbers or booleans, which are labels.
            size: (height, width), such as `image.shape[:2]`.

        Returns:
            float32 for floats; the same type for labels.

        Raises:
            ValueError: the maps have another grid, or are no array; the size is not two whole numbers from 1.
            NotYet: the classifier is not trained.
        """
        spec = require_network(self.run, "classifier", "enlarge").spec
        require_maps(maps, spec.grid, "enlarge")
        require_size(size, "enlarge")
        if maps.dtype.kind != "f":
            flat = [spec.geometry.resize_labels(labels, size) for labels in maps.reshape(-1, *spec.grid)]
            return np.array(flat, maps.dtype).reshape(*maps.shape[:-2], *size)
        return spec.geometry.resize_maps(torch.from_numpy(maps.astype(np.float32)), size).numpy()

    def predict(self, image: np.ndarray, *, refine: bool | None = None) -> np.ndarray:
        """The labels of one image, predicted as in `predict_masks` with the run's settings.

        It warns if the network is outdated.

        Args:
            image: uint8 (H, W, 3), RGB.
            refine: whether the CRF refines them; None: the value of `predictions.refine`.

        Returns:
            (H, W), uint8, uint16 above 254 classes: 0 background, class number + 1.

        Raises:
            NotYet: the network is not trained.
            ValueError: the image or `refine` is something else.
        """
        require_image(image, "predict")
        require_choice(refine, "predict")
        predictor = self._predictor("predict")
        warn_if_outdated(self.run, self.run.config.predictions.network)
        use_crf = self.run.config.predictions.refine if refine is None else refine
        with self._threads_of_the_jobs():
            logits = predictor.predict([each[None] for each in predictor.job.inputs(image)])[0]
            labels = predictor.job.label(logits, image, use_crf=use_crf)
        return labels.astype(label_dtype(len(self.class_names)))

    def _require_started(self, step: str) -> None:
        if self.run.step(step).fingerprint() is None:
            remedy = nothing_to_measure(self.run) if step == "evaluation" else ""
            remedy = only_masks(self.run) or remedy or f"Run '{self.run.step_command(step)}' first."
            raise NotYet(f"the step {step} has no results yet. {remedy}")

    def _map_maker(self, asked_by: str) -> MapMaker:
        if not self._map_makers:
            spec = require_network(self.run, "classifier", asked_by).spec
            slots = num_slots(self.run.manifest(), self.run.config)
            with self._threads_of_the_jobs():
                self._map_makers.append(MapMaker(MapStages(self.run, spec.grid, slots, self.device)))
        return self._map_makers[0]

    def _predictor(self, asked_by: str) -> Predictor:
        if not self._predictors:
            spec = require_segmenter(self.run, self.run.config.predictions.network, asked_by)
            with self._threads_of_the_jobs():
                self._predictors.append(Predictor(PredictionStages(self.run, spec, self.device)))
        return self._predictors[0]

    def _threads_of_the_jobs(self) -> AbstractContextManager[None]:
        """On a CPU one thread, because the last bits of a sum depend on the number of threads."""
        return one_thread() if self.device == "cpu" else nullcontext()


def open_trained(path: str | os.PathLike[str], settings: Sequence[str] = (), device: str = "auto") -> TrainedRun:
    """Opens a run to use its networks and to read its results; writes nothing.

    Args:
        path: a folder or an s3:// prefix.
        settings: "section.key=value" texts that change what `localize`, `predict`, `image` and `read` return; see
            `jobs.notebook.acting_settings`. Stored results do not change.
        device: "cpu", "cuda" or "auto", which is "cuda" if torch finds a GPU.

    Raises:
        ValueError: there is no run, a setting is wrong or has no effect, or the device cannot be used.
    """
    require_settings(settings)
    device = usable_device(device)
    Manifest.forget()  # images may have been added since this process read it
    run = open_run(require_path(path), None, settings)
    run.manifest()
    if settings:
        require_acting(open_run(run.uri).config, run.config)
    return TrainedRun(run, device)
