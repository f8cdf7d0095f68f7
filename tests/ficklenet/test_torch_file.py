"""A flipped bit in a stored network is found: torch.load alone would take it as another weight."""

import io

import pytest
import torch

from ficklenet.torch_file import changed_part, load_whole


def written(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def test_a_whole_file_is_read():
    content = load_whole(written({"weight": torch.arange(5.0), "about": {"epoch": 3}}))
    assert torch.equal(content["weight"], torch.arange(5.0)) and content["about"] == {"epoch": 3}


def test_a_flipped_bit_anywhere_is_found_or_changes_no_value():
    weights = torch.linspace(0, 1, 200)
    data = written({"weight": weights})
    found = 0
    for place in range(len(data)):
        try:
            content = load_whole(flipped(data, place))
        except ValueError:
            found += 1
        else:  # in a header's date or in the gap before an entry
            assert torch.equal(content["weight"], weights)
    assert found > 800  # at least all bytes of the weights


def test_torch_alone_takes_a_flipped_bit_for_another_weight():
    """The reason for the checks of this module; if it fails, torch compares the checksums itself."""
    data = written({"weight": torch.linspace(0, 1, 200)})
    place = data.index(torch.linspace(0, 1, 200).numpy().tobytes()) + 402  # the high bits of the hundredth weight
    content = torch.load(io.BytesIO(flipped(data, place)), weights_only=True)
    assert not torch.equal(content["weight"], torch.linspace(0, 1, 200))
    assert "have changed" in str(changed_part(flipped(data, place)))


@pytest.mark.parametrize("data", [b"", b"text", written([1])[:-30]])
def test_another_file_is_one_sentence(data):
    with pytest.raises(ValueError, match=r"^it is no whole file of torch\.save"):
        load_whole(data)
