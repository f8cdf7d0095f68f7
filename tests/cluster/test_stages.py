"""The stages of a unit, apart or together."""

from cluster.stages import Payload, Stages


def doubling() -> "Doubling":
    return Doubling()


class Doubling:
    def __call__(self, unit: Payload) -> Payload:
        return {**unit, "value": 2 * unit["value"]}


def add_one(unit: Payload) -> Payload:
    return {**unit, "value": unit["value"] + 1}


def test_stages_in_an_actor_do_what_they_do_apart() -> None:
    stages = Stages(doubling, read=add_one, write=add_one)
    together = stages.in_actors()
    assert together.read is None and together.write is None
    assert together.run(together.make_compute(), {"value": 3}) == stages.run(doubling(), {"value": 3}) == {"value": 9}
    alone = Stages(doubling)
    assert alone.in_actors() is alone
