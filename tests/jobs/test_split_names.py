"""A key that names a split which no image has is refused, unless it is a usual name."""

import tomllib
from pathlib import Path

import pytest

from ficklenet.drawing import DRAWN_CLASS_NAMES
from jobs import predict_masks, run_pipeline, train_ficklenet, train_segmentation
from jobs.preparation.prepare import prepare
from jobs.run.config_keys import Config
from jobs.run.directory import open_run
from jobs.run.split_names import require_known_splits

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
SPLITS = ["rest", "train", "val"]


def config_of(key: str, *splits: str) -> Config:
    section, _, name = key.partition(".")
    return Config.model_validate({section: {name: list(splits)}})


@pytest.mark.parametrize(
    "key", ["data.train_splits", "data.val_splits", "segmenter.strong_splits", "predictions.splits"]
)
def test_a_split_that_no_image_has_is_refused_with_those_that_there_are(key):
    with pytest.raises(ValueError) as refused:
        require_known_splits(config_of(key, "train", "rset"), SPLITS)
    sentence = f"{key}: no image is in the split 'rset'; the manifest has rest, train, val. Did you mean 'rest'?"
    assert str(refused.value) == sentence
    require_known_splits(config_of(key, "train", "rest"), SPLITS)


def test_images_without_a_split_are_named_as_such():
    with pytest.raises(ValueError, match=r"'corrected'; the manifest has images without a split, train\.$"):
        require_known_splits(config_of("predictions.splits", "corrected"), ["train", ""])
    require_known_splits(config_of("predictions.splits", ""), ["train", ""])


@pytest.mark.parametrize("name", ["train", "val", "valid", "validation", "test", "train2017", "val2017", "test-dev"])
def test_usual_names_may_be_absent_because_configurations_are_shared(name):
    require_known_splits(config_of("predictions.splits", "rest", name), ["rest"])


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.name)
@pytest.mark.parametrize("splits", [[""], ["train"], ["photos"]])
def test_the_shipped_configurations_fit_data_sets_without_a_validation_split(example, splits):
    require_known_splits(Config.model_validate(tomllib.loads(example.read_text())), splits)


def test_only_the_keys_that_a_step_reads_are_checked():
    require_known_splits(config_of("segmenter.strong_splits", "rset"), SPLITS, ["classifier", "predictions"])


@pytest.mark.parametrize("key", ["data.train_splits", "predictions.splits"])
def test_the_preparation_refuses_it_and_writes_nothing(key, drawn_images, tmp_path):
    run = open_run(str(tmp_path / "run"), None, [f"{key}=trian,val"])
    with pytest.raises(ValueError, match=rf"^{key}: no image is in the split 'trian'; .* Did you mean 'train'\?$"):
        prepare(run, drawn_images, DRAWN_CLASS_NAMES)
    assert not (tmp_path / "run" / "manifest.parquet").exists()


@pytest.mark.parametrize(
    ("job", "key"),
    [
        (run_pipeline, "predictions.splits"),
        (train_ficklenet, "data.train_splits"),
        (train_segmentation, "segmenter.strong_splits"),
        (predict_masks, "predictions.splits"),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--dry-run"]], ids=["launch", "dry run"])
def test_the_pipeline_and_the_steps_refuse_it(job, key, flags, trained_run):
    with pytest.raises(ValueError, match=rf"^{key}: no image is in the split 'trian'; .* Did you mean 'train'\?(\n|$)"):
        job.main(["--run", trained_run.uri, *flags, "--set", f"{key}=train,trian"])
