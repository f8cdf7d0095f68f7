import pytest

from jobs.run.config import resolve_config
from jobs.run.config_keys import Config, config_keys, training_worker_range


def test_an_output_stride_of_another_backbone_is_refused_with_its_key():
    with pytest.raises(ValueError, match=r"segmenter\.output_stride: given 16, allowed: 8 for the backbone vgg16"):
        resolve_config({}, None, ["segmenter.output_stride=16"])


def test_defaults_are_the_papers():
    config = Config()
    assert config.maps.num_samples == 200
    assert (config.classifier.drop_rate, config.classifier.batch_size) == (0.9, 10)


def test_file_is_laid_over_the_record_and_assignments_over_the_file(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text("[maps]\nnum_samples = 50\npercentile = 80.0\n")
    recorded = {"seed": 3, "maps": {"num_samples": 10, "max_classes": 2}}
    config = resolve_config(recorded, str(file), ["maps.percentile=70"])
    assert (config.seed, config.maps.max_classes, config.maps.num_samples, config.maps.percentile) == (3, 2, 50, 70)


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("maps.num_sample=3", "maps.num_sample: unknown key. Did you mean maps.num_samples?"),
        ("seed.theta=0.5", "seed.theta: unknown key. Did you mean seeds.theta?"),
        ("mapz=3", "mapz: unknown key. Did you mean maps?"),
        ("maps.num_samples=0", "maps.num_samples: given 0, allowed: whole numbers from 1."),
        ("maps.num_samples=many", "maps.num_samples: given 'many', allowed: whole numbers from 1."),
        ("maps.num_samples=3.5", "maps.num_samples: given 3.5, allowed: whole numbers from 1."),
        ("maps.num_samples=1e400", "maps.num_samples: given inf, allowed: finite whole numbers from 1."),
        ("seeds.theta=high", "seeds.theta: given 'high', allowed: numbers from 0 to 1."),
        ("seeds.theta=2", "seeds.theta: given 2, allowed: numbers from 0 to 1."),
        ("classifier.drop_rate=1", "classifier.drop_rate: given 1, allowed: numbers from 0 to below 1."),
        ("classifier.learning_rate=0", "classifier.learning_rate: given 0, allowed: numbers above 0."),
        ("predictions.mirror=maybe", "predictions.mirror: given 'maybe', allowed: true or false."),
        ("predictions.mirror=[]", "predictions.mirror: given [], allowed: true or false."),
        ("segmenter.dilations=6,x", "segmenter.dilations: given 'x', allowed: a list of whole numbers from 1."),
        ("segmenter.dilations=[]", "segmenter.dilations: given [], allowed: a list of one or more."),
        ("data.val_splits=3", "data.val_splits: given 3, allowed: a list, separated by commas."),
        ("classifier.weights=3", "classifier.weights: given 3, allowed: text."),
        ("maps=3", "maps: given 3, allowed: a section of keys; set one of them, as in maps.num_samples=100."),
        ("maps.normalization=mean", "maps.normalization: given 'mean', allowed: 'max' or 'percentile'."),
        ("classifier.kernel_size=4", "classifier.kernel_size: given 4, allowed: odd numbers."),
        (
            'classifier={frozen_stages=4, weights="none"}',
            "classifier.frozen_stages: given 4 with classifier.weights=none, so random weights would never be trained; "
            "set frozen_stages to 0, or give weights.",
        ),
        (
            'segmenter={frozen_stages=1, weights="none"}',
            "segmenter.frozen_stages: given 1 with segmenter.weights=none, so random weights would never be trained; "
            "set frozen_stages to 0, or give weights.",
        ),
        (
            "cluster.training_workers=8..2",
            "cluster.training_workers: given '8..2', allowed: a number from 1, or a range such as 2..8.",
        ),
        (
            "segmenter.weights=classifier",
            "segmenter.weights: given 'classifier', allowed only if both backbones are the same, but "
            "segmenter.backbone is vgg16 and classifier.backbone is resnet101; give other weights.",
        ),
        (
            "images.input_size=320",
            "images.input_size: given 320, allowed: a multiple of 8 plus 1, such as 321, for the backbone resnet101.",
        ),
        (
            "maps.num_samples",
            "--set maps.num_samples: write section.key=value, for example --set maps.num_samples=100.",
        ),
    ],
)
def test_wrong_assignment_is_refused_in_one_sentence(assignment, sentence):
    with pytest.raises(ValueError) as refusal:
        resolve_config({"classifier": {"backbone": "resnet101"}}, None, [assignment])
    assert str(refusal.value) == sentence


def test_true_is_no_number(tmp_path):
    (tmp_path / "file.toml").write_text("[seeds]\ntheta = true\n")
    with pytest.raises(ValueError, match=r"^seeds\.theta: given 'true', allowed: numbers from 0 to 1"):
        resolve_config({}, str(tmp_path / "file.toml"), [])


def test_false_means_false():
    assert resolve_config({}, None, ["cluster.autoscaling=False"]).cluster.autoscaling is False
    assert resolve_config({}, None, ["cluster.autoscaling=true"]).cluster.autoscaling is True


def test_names_may_be_given_separated_by_commas():
    assert resolve_config({}, None, ["data.val_splits=val,test"]).data.val_splits == ("val", "test")


@pytest.mark.parametrize(("given", "workers"), [("3", (3, 3)), ("2..8", (2, 8))])
def test_training_workers_are_a_number_or_a_range(given, workers):
    assert training_worker_range(resolve_config({}, None, [f"cluster.training_workers={given}"]).cluster) == workers


def test_a_file_is_read_from_a_folder_and_from_s3_and_a_missing_one_is_refused_by_name(location):
    (location / "own_data.toml").write_bytes(b"[maps]\nnum_samples = 7")
    assert resolve_config({}, (location / "own_data.toml").uri, []).maps.num_samples == 7
    with pytest.raises(ValueError, match=rf"own_dta.toml: no such file. Did you mean {location}/own_data.toml\?"):
        resolve_config({}, (location / "own_dta.toml").uri, [])


def test_missing_or_broken_file_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        resolve_config({}, str(tmp_path / "absent.toml"), [])
    (tmp_path / "broken.toml").write_text("maps = [")
    with pytest.raises(ValueError, match="zero: not a TOML file"):
        resolve_config({}, "/dev/zero", [])
    with pytest.raises(ValueError, match="not a TOML file"):
        resolve_config({}, str(tmp_path / "broken.toml"), [])


def test_configuration_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Config().seed = 3


def test_every_key_survives_the_record():
    config = Config()
    assert resolve_config(config.model_dump(mode="json"), None, []) == config
    assert "maps.num_samples" in config_keys()
    assert "seed" in config_keys()
