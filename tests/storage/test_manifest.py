import random
import tracemalloc
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from storage.location import Location
from storage.manifest import _COLUMNS, ROW_GROUP_SIZE, Manifest, ManifestRow, write_manifest

NAMES = ["cat", "dog", "sheep"]


def drawn_rows(number: int) -> list[ManifestRow]:
    full = {"height": 300, "width": 400, "split": "train", "mask_uri": "/m.png", "saliency_uri": "/s.png"}
    labels = [(), (0,), (0, 2), (0, 1, 2)]
    return [ManifestRow(f"id-{i}", f"/images/{i}.jpg", labels[i % 4], **(full if i % 2 else {})) for i in range(number)]


def test_rows_come_back_as_written(location: Location) -> None:
    rows = [*drawn_rows(5), ManifestRow("bad/../id", "", problem="its id is no name")]
    assert write_manifest(location / "manifest.parquet", iter(rows), NAMES, [8, 12, 17]) == 6
    manifest = Manifest.open(location / "manifest.parquet")
    assert (manifest.num_images, manifest.num_classes) == (6, 3)
    assert manifest.class_names == ("cat", "dog", "sheep") and manifest.class_values == (8, 12, 17)
    assert manifest.rows(0, 6) == list(manifest.iter_rows()) == rows
    assert manifest.max_labels() == 3
    assert manifest.index_of("id-3") == 3
    with pytest.raises(KeyError):
        manifest.index_of("id-99")


def test_any_range_is_read_across_row_groups(location: Location) -> None:
    rows = drawn_rows(2 * ROW_GROUP_SIZE + 100)
    write_manifest(location / "manifest.parquet", rows, NAMES)
    manifest = Manifest.open(location / "manifest.parquet")
    end = ROW_GROUP_SIZE
    for start, stop in ((0, 1), (0, end), (end - 3, end + 3), (end, end), (5, len(rows)), (len(rows) - 1, len(rows))):
        assert manifest.rows(start, stop) == rows[start:stop]
    with pytest.raises(IndexError):
        manifest.rows(0, len(rows) + 1)
    columns = [batch["image_id"] for batch in manifest.iter_columns(["image_id"])]
    assert [name for batch in columns for name in batch] == [row.image_id for row in rows]


def test_the_same_rows_give_the_same_bytes(location: Location) -> None:
    for name in ("a", "b"):
        write_manifest(location / name, drawn_rows(50), NAMES)
    assert (location / "a").read_bytes() == (location / "b").read_bytes()


def test_the_column_hash_follows_the_named_columns_only(location: Location) -> None:
    rows = drawn_rows(40)

    def column_hash(rows: list[ManifestRow], names: list[str] = NAMES, values: list[int] | None = None) -> str:
        write_manifest(location / "manifest.parquet", rows, names, values)
        return Manifest.open(location / "manifest.parquet").column_hash(["image_id", "labels"])

    plain = column_hash(rows)
    assert plain == column_hash([ManifestRow(row.image_id, "elsewhere", row.labels) for row in rows])
    assert plain != column_hash([*rows[:-1], ManifestRow(rows[-1].image_id, "", (1,))])
    assert plain != column_hash(rows[:-1])
    assert plain != column_hash(rows[::-1])
    assert plain != column_hash(rows, ["cat", "dog", "cow"])
    assert plain != column_hash(rows, NAMES, [3, 2, 1])


def test_the_column_hash_is_that_of_earlier_versions(location: Location) -> None:
    # Pinned: a relaunch by a later version must not take an unchanged manifest for another one.
    write_manifest(location / "manifest.parquet", drawn_rows(ROW_GROUP_SIZE + 1), NAMES)
    found = Manifest.open(location / "manifest.parquet").column_hash(["image_id", "labels"])
    assert found == "f1389920c0e9f0800498ef14e7882be1d0458d74aaa68e37c6b093d90e479501"


def test_a_large_manifest_needs_little_memory(tmp_path) -> None:
    place = Location.parse(str(tmp_path / "manifest.parquet"))
    rows = (ManifestRow(f"id-{i:08d}", f"/images/{i:08d}.jpg", (i % 3,)) for i in range(20_000))
    tracemalloc.start()
    write_manifest(place, rows, NAMES)
    Manifest.open(place).column_hash(["image_id", "labels"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000  # a few row groups; all rows at once would be 10 MB and more


@pytest.mark.parametrize("labels", [(3,), (-1,), (1, 0), (1, 1)])
def test_labels_that_are_no_classes_are_refused(labels: tuple[int, ...], location: Location) -> None:
    place = location / "manifest.parquet"
    with pytest.raises(ValueError, match="must be ascending class numbers below 3"):
        write_manifest(place, [ManifestRow("a", "/a.jpg", labels)], NAMES)
    assert not place.exists()


@pytest.mark.parametrize(("names", "values"), [(["a", "a"], None), (["a"], [1, 2]), (["a", "b"], [8, 8]), (["a"], [0])])
def test_class_lists_that_repeat_or_miss_values_are_refused(names, values, location: Location) -> None:
    with pytest.raises(ValueError, match="expected"):
        write_manifest(location / "manifest.parquet", [], names, values)


def test_other_files_are_not_taken_for_a_manifest(location: Location) -> None:
    with pytest.raises(FileNotFoundError, match="prepare_dataset"):
        Manifest.open(location / "absent.parquet")
    (location / "text.parquet").write_bytes(b"image,labels\n" * 10)
    with pytest.raises(ValueError, match="not a Parquet file"):
        Manifest.open(location / "text.parquet")


def test_a_flipped_bit_is_found_in_one_sentence_or_changes_nothing(tmp_path: Path) -> None:
    place = Location(str(tmp_path / "manifest.parquet"))
    write_manifest(place, drawn_rows(40), NAMES, additions=[30])
    good, chance, refused = place.read_bytes(), random.Random(0), []
    for _ in range(400):
        bad, position = bytearray(good), chance.randrange(8 * len(good))
        bad[position // 8] ^= 1 << position % 8
        place.write_bytes(bytes(bad))
        Manifest.forget()
        try:
            manifest = Manifest.open(place)
            manifest.verify()
            found = manifest.rows(0, manifest.num_images), manifest.class_names, manifest.additions
        except ValueError as error:
            refused.append(str(error))
        else:
            assert found == (drawn_rows(40), ("cat", "dog", "sheep"), (30,)), f"bit {position} of {len(good)} bytes"
    assert len(refused) > 200
    assert [sentence for sentence in refused if place.uri not in sentence or "\n" in sentence] == []


def test_a_rewritten_manifest_is_read_again(location: Location) -> None:
    for number in (3, 5):
        write_manifest(location / "manifest.parquet", drawn_rows(number), NAMES)
        assert len(Manifest.open(location / "manifest.parquet").rows(0, number)) == number


def test_unknown_columns_are_refused(location: Location) -> None:
    write_manifest(location / "manifest.parquet", drawn_rows(3), NAMES)
    with pytest.raises(ValueError, match="expected some of"):
        Manifest.open(location / "manifest.parquet").column_hash(["image", "labels"])


# Negative images


def test_negative_images_come_back_and_change_what_labels_hash_to(location: Location) -> None:
    place = location / "manifest.parquet"

    def column_hash(*rows: ManifestRow, columns: tuple[str, ...] = ("image_id", "labels")) -> str:
        write_manifest(place, rows, NAMES)
        return Manifest.open(place).column_hash(columns)

    unlabelled, negative = ManifestRow("a", "/a.jpg"), ManifestRow("a", "/a.jpg", negative=True)
    assert column_hash(unlabelled) != column_hash(negative)
    assert column_hash(unlabelled, columns=("image_id",)) == column_hash(negative, columns=("image_id",))
    assert Manifest.open(place).rows(0, 1) == [negative]
    assert next(Manifest.open(place).iter_columns(["negative"])) == {"negative": [True]}


def test_a_negative_image_has_no_labels(location: Location) -> None:
    with pytest.raises(ValueError, match="a negative image has no labels"):
        write_manifest(location / "m", [ManifestRow("a", "/a.jpg", (1,), negative=True)], NAMES)


def test_a_manifest_of_an_earlier_version_has_no_negative_images(location: Location) -> None:
    place, rows = location / "manifest.parquet", drawn_rows(3)
    write_manifest(place, rows, NAMES)
    wanted = Manifest.open(place).column_hash(["labels"])
    with place.open_input() as file:
        table = pq.read_table(file)
    with place.open_output() as file:
        pq.write_table(table.drop_columns(["negative"]), file)
    Manifest.forget()
    manifest = Manifest.open(place)
    assert manifest.rows(0, 3) == rows and manifest.column_hash(["labels"]) == wanted
    assert next(manifest.iter_columns(["image_id", "negative"]))["negative"] == [False] * 3
    assert "negative" in _COLUMNS.names


# Addresses


def test_files_of_the_run_are_found_wherever_it_lies(location: Location) -> None:
    row = ManifestRow("a", "images/a.jpg", (0,), mask_uri="masks/a.png", saliency_uri="/elsewhere/a.png")
    hashes = set()
    write_manifest(location / "draft", [row], NAMES, home=location / "here")
    for run in (location / "here", location / "there"):
        (run / "manifest.parquet").write_bytes((location / "draft").read_bytes())
        manifest = Manifest.open(run / "manifest.parquet")
        (found,) = manifest.rows(0, 1)
        assert (found.uri, found.mask_uri) == ((run / "images/a.jpg").uri, (run / "masks/a.png").uri)
        assert found.saliency_uri == "/elsewhere/a.png"
        assert next(manifest.iter_columns(["mask_uri"])) == {"mask_uri": [(run / "masks/a.png").uri]}
        assert list(manifest.iter_written_rows()) == [row]
        hashes.add(manifest.column_hash(["uri", "mask_uri"]))
    write_manifest(location / "elsewhere/manifest.parquet", [row], NAMES)
    hashes.add(Manifest.open(location / "elsewhere/manifest.parquet").column_hash(["uri", "mask_uri"]))
    assert len(hashes) == 1


def test_other_programs_read_whole_addresses(location: Location) -> None:
    write_manifest(location / "run/manifest.parquet", [ManifestRow("a", "images/a.jpg", (0,))], NAMES)
    with (location / "run/manifest.parquet").open_input() as file:
        assert pq.read_table(file)["uri"].to_pylist() == [(location / "run/images/a.jpg").uri]


def test_moved_images_are_read_at_their_new_place_and_nothing_becomes_outdated(location: Location) -> None:
    place = location / "manifest.parquet"
    rows = [ManifestRow("a", "/old/sub/a.jpg", (0,), mask_uri="/old/a.png"), ManifestRow("b", "/older/b.jpg")]
    write_manifest(place, rows, NAMES, [8, 12, 17])
    before = Manifest.open(place).column_hash(["uri", "mask_uri"])
    for new in ("/new", "s3://bucket/new"):
        written = list(Manifest.open(place).iter_written_rows())
        write_manifest(place, written, NAMES, [8, 12, 17], {"/old": new})
        manifest = Manifest.open(place)
        a, b = manifest.rows(0, 2)
        assert (a.uri, a.mask_uri, b.uri) == (f"{new}/sub/a.jpg", f"{new}/a.png", "/older/b.jpg")
        assert manifest.column_hash(["uri", "mask_uri"]) == before
        assert manifest.class_values == (8, 12, 17)


def test_each_part_has_the_hash_of_its_rows_alone(location: Location) -> None:
    rows, place = drawn_rows(2 * ROW_GROUP_SIZE), location / "manifest.parquet"
    write_manifest(place, rows[:700], NAMES)
    first = Manifest.open(place).column_hash(["image_id", "labels"])
    write_manifest(place, rows, NAMES, additions=(700, 1100))
    manifest = Manifest.open(place)
    assert manifest.parts == [(0, 700), (700, 1100), (1100, len(rows))]
    hashes = manifest.part_hashes(["image_id", "labels"])
    assert hashes[0] == first and len(set(hashes)) == 3
    write_manifest(place, [*rows[:-1], ManifestRow("other", "/o.jpg")], NAMES, additions=(700, 1100))
    assert Manifest.open(place).part_hashes(["image_id", "labels"])[:2] == hashes[:2]
    assert Manifest.open(place).part_hashes(["image_id", "labels"])[2] != hashes[2]


def test_a_manifest_that_lost_a_column_is_refused(tmp_path) -> None:
    place = Location(str(tmp_path / "manifest.parquet"))
    write_manifest(place, drawn_rows(3), NAMES)
    pq.write_table(pq.read_table(place.uri).drop(["uri"]), place.uri)
    Manifest.forget()
    with pytest.raises(ValueError, match=r"has no column uri\. Put it back from a copy"):
        Manifest.open(place)
