"""Files under a slightly different name than a source writes."""

import unicodedata

import pytest

from storage.location import Location
from storage.spelling import Names

NFC, NFD = (unicodedata.normalize(form, "Kühe") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("there", "written"),
    [
        (f"{NFD}.jpg", f"{NFC}.jpg"),
        (f"{NFC}.jpg", f"{NFD}.jpg"),
        (f"{NFD}/{NFD}.jpg", f"{NFC}/{NFC}.jpg"),
        ("IMG_1.JPG", "img_1.jpg"),
        ("a b.jpeg", "a b"),
    ],
)
def test_one_file_that_fits_is_found(there: str, written: str, location: Location) -> None:
    (location / there).write_bytes(b"1")
    (location / "other.png").write_bytes(b"1")
    assert Names().existing((location / written).uri) == (location / there).uri


@pytest.mark.parametrize("there", [["a.JPG", "A.jpg"], ["a.png"], [], ["sub/a.jpg"]])
def test_several_or_none_are_not_guessed(there: list[str], location: Location) -> None:
    for name in there:
        (location / name).write_bytes(b"1")
    assert Names().existing((location / "a.jpg").uri) is None


def test_each_folder_is_listed_once(location: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    (location / "1.JPG").write_bytes(b"1")
    listed: list[str] = []
    names_of = Location.list_names
    monkeypatch.setattr(Location, "list_names", lambda self: listed.append(self.uri) or names_of(self))
    names = Names()
    for _ in range(5):
        assert names.existing((location / "1.jpg").uri)
    assert len(listed) == len(set(listed)) and listed
