"""How long trainings are: small sets get more epochs, and every schedule in epochs is stretched with them."""

import pytest

from ficklenet.classifier_training import learning_rate_at
from jobs.training.plan import Plan


def plan(
    num_images: int, *, batch_size: int = 10, epochs: int = 15, min_steps: int = 400, validate_every: int = 1
) -> Plan:
    return Plan("classifier", "classifier", num_images, batch_size, epochs, min_steps, validate_every, 5.0, 0.5)


def test_a_small_set_is_trained_until_it_has_had_enough_steps_and_says_so():
    small = plan(32)
    assert (small.epoch_steps, small.epochs, small.steps) == (3, 134, 402)
    assert small.raise_in_words == (
        "32 images in batches of 10: 15 epochs would be 45 steps, so 134 epochs = 402 steps are trained. "
        "To change this, set classifier.min_steps (now 400); with 1 the configured epochs are trained."
    )
    assert small.fingerprint == {"raised_epochs": 134}


@pytest.mark.parametrize("given", [plan(10_582), plan(32, min_steps=1), plan(32, epochs=134)])
def test_a_set_with_enough_steps_is_trained_for_the_configured_epochs(given):
    assert given.epochs == given.configured_epochs
    assert given.raise_in_words == "" and given.fingerprint == {}
    assert [given.schedule_epoch(step) for step in range(0, given.steps, given.epoch_steps)] == [*range(given.epochs)]
    assert given.stretch == 1


def test_a_set_smaller_than_a_batch_is_one_step():
    tiny = plan(7, batch_size=20, min_steps=50)
    assert (tiny.step_images, tiny.epoch_steps, tiny.epochs) == (7, 1, 50)
    assert tiny.epoch_in_words == "1 step of 7 images"
    assert tiny.raise_in_words.startswith("7 images in batches of 7: 15 epochs would be 15 steps, so 50 epochs")


def test_the_learning_rate_is_halved_as_often_as_in_the_configured_epochs():
    small = plan(32, epochs=20)
    rates = [learning_rate_at(small.schedule_epoch(step), 1.0, 10) for step in range(small.steps)]
    assert set(rates) == {1.0, 0.5}
    assert rates.count(1.0) == rates.count(0.5) == small.steps / 2


def test_validations_are_as_many_as_in_the_configured_epochs():
    small = plan(32, validate_every=5)
    assert small.stretch == 9  # 134 of 15
    assert small.validate_every == 45
