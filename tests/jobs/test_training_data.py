"""The batches of a training: decoded here or by processes of their own, from disk and from S3."""

import io

import pytest
import torch
from PIL import Image

from ficklenet.batches import addressed_batches
from ficklenet.drawing import draw_scene
from jobs.run.config_keys import Config
from jobs.training.image_list import ListedImage
from jobs.training.training_data import TrainingImages, collate, load_batches, loader_processes
from storage.errors import StorageError

CONFIG = Config.model_validate({"images": {"input_size": 33}})
CPU = torch.device("cpu")


def load(images: list[ListedImage], num_processes: int) -> list:
    addresses = addressed_batches(range(4), len(images), 3, seed=0, rank=0, world_size=1)
    dataset = TrainingImages(images, num_classes=5, config=CONFIG)
    return list(load_batches(dataset, addresses, collate, num_processes=num_processes, device=CPU))


def test_processes_of_their_own_decode_the_same_batches_in_the_same_order(location):
    images = []
    for index in range(6):
        place = location / f"scene{index}.png"
        buffer = io.BytesIO()
        Image.fromarray(draw_scene(index).image).save(buffer, "PNG")
        place.write_bytes(buffer.getvalue())  # a store's connection is open before the processes are forked
        images.append(ListedImage(f"scene{index}", place.uri, (index % 5,)))
    (location / "scene3.png").write_bytes(b"no image")
    here, there = load(images, 0), load(images, 2)
    assert len(here) == 4
    for one, other in zip(here, there, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.targets, other.targets)
        assert (one.keys, one.skipped) == (other.keys, other.skipped)
        assert torch.equal(one.weights, other.weights)
    (reason,) = {batch.skipped["scene3"] for batch in here if batch.skipped}
    assert reason and sum(float((batch.weights == 0).sum()) for batch in here) == 2  # once in each epoch


@pytest.mark.parametrize("num_processes", [0, 1])
def test_failing_store_stops_with_one_sentence(s3_environment, num_processes):
    images = [ListedImage(name, f"s3://no-such-bucket/{name}.png", (0,)) for name in "abc"]
    with pytest.raises(StorageError, match="the bucket does not exist; create it or correct the path") as caught:
        load(images, num_processes)
    assert "\n" not in str(caught.value)


def test_only_a_gpu_is_given_decoding_processes_unasked():
    assert loader_processes(None, CPU, 1) == 0
    assert loader_processes(None, torch.device("cuda"), 1) >= 1
    assert loader_processes(None, torch.device("cuda"), 10**6) == 1
    assert loader_processes(3, CPU, 1) == 3
    assert loader_processes(0, torch.device("cuda"), 1) == 0
