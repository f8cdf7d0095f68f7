import json
from pathlib import Path

import pytest

from storage.location import Location
from storage.records import is_seal_broken, read_json, read_json_lines, seal


@pytest.mark.parametrize("indent", [None, 1])
def test_every_flipped_bit_of_a_sealed_record_is_found(indent: int | None, tmp_path: Path) -> None:
    place, path = Location(str(tmp_path / "step.json")), tmp_path / "step.json"
    content = {"fingerprint": {"a": [1, "ä"]}, "start_id": "0123"}
    good = seal(content, indent=indent)
    path.write_bytes(good)
    assert read_json(place, "a record").items() >= content.items()
    assert not is_seal_broken(good)
    for bit in range(8 * len(good)):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"step\.json: damaged, cannot be read as a record"):
            read_json(place, "a record")


def test_a_record_without_a_seal_has_none_to_break(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"config": {}}))
    assert read_json(Location(str(tmp_path / "run.json")), "a record") == {"config": {}}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b'{"a": ', "not JSON: "),
        (b"[]", "it contains a list, expected an object"),
        (b"null", "it contains a NoneType"),
        (b"\xff\xff", "not JSON text"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_damaged_file_is_one_sentence_with_its_name_and_the_remedy(body: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(body)
    with pytest.raises(ValueError, match=r"run\.json: damaged, cannot be read as the configuration \(") as refusal:
        read_json(Location(str(tmp_path / "run.json")), "the configuration", "Use another run.")
    assert reason in str(refusal.value)
    assert str(refusal.value).endswith("Use another run.")
    assert "\n" not in str(refusal.value)


def test_lines_are_read_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    place = Location(str(tmp_path / "metrics.jsonl"))
    assert read_json_lines(place, "metrics") == []
    place.write_bytes(b'{"epoch": 1}\n{"epoch": 2}\n')
    assert read_json_lines(place, "metrics") == [{"epoch": 1}, {"epoch": 2}]
    for body in (
        b'{"epoch": 1}\n{"epo\n{"epoch": 3}\n',
        b'{"epoch": 1}\n{"epo',
        b'{"epoch": 1}\n{"epoch": 2}',
        b"{}\n\n",
    ):
        place.write_bytes(body)
        with pytest.raises(ValueError, match=r"metrics\.jsonl: damaged, cannot be read as metrics \(line 2\)"):
            read_json_lines(place, "metrics")
