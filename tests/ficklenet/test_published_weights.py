"""State dicts inside checkpoints, prefixes, and what is refused with what was found."""

import pytest
import torch
from torch import nn

from ficklenet.published_weights import matched_in_order, unwrap_state_dict

STATE = {"conv.weight": torch.ones(2, 1), "conv.bias": torch.zeros(2)}


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "epoch": 7, "optimizer": {"lr": 1.0}},
        {"model": {f"module.{name}": value for name, value in STATE.items()}, "args": None},
        {"model_state_dict": {f"_orig_mod.module.{name}": value for name, value in STATE.items()}},
        {"model": {"state_dict": STATE}},
    ],
)
def test_the_state_dict_is_found_and_stripped(content):
    found = unwrap_state_dict(content)
    assert list(found) == list(STATE) and all(found[name] is STATE[name] for name in STATE)


def test_a_prefix_that_not_every_name_has_is_part_of_the_names():
    mixed = {"module.weight": torch.ones(1), "head.weight": torch.ones(1)}
    assert list(unwrap_state_dict(mixed)) == list(mixed)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "contains a list, not names with weights"),
        (nn.Linear(1, 1), "contains a Linear"),
        ({1: torch.ones(1)}, "contains a dict, not names"),
        ({}, "contains nothing, but names with weights are expected"),
        ({"epoch": 3, "loss": 0.5, "conv.weight": torch.ones(1)}, r"contains epoch \(int\), loss \(float\), but"),
        ({"student": STATE, "teacher": STATE}, r"contains student \(dict\), teacher \(dict\)"),
        ({"model": STATE, "state_dict": STATE}, r"several state dicts \(state_dict, model\)"),
    ],
)
def test_anything_else_is_refused_with_what_was_found(content, message):
    with pytest.raises(ValueError, match=message):
        unwrap_state_dict(content)


def test_weights_in_the_same_order_take_the_networks_names():
    wanted = nn.Linear(1, 2).state_dict()
    found = matched_in_order({"a": torch.ones(2, 1), "b": torch.zeros(2)}, wanted)
    assert list(found) == ["weight", "bias"] and found["weight"].sum() == 2
    with pytest.raises(ValueError, match=r"a has shape \(2,\), but weight in its place has \(2, 1\)"):
        matched_in_order({"a": torch.zeros(2), "b": torch.ones(2, 1)}, wanted)
    with pytest.raises(ValueError, match="1 given, but this network has 2"):
        matched_in_order({"a": torch.ones(2, 1)}, wanted)
