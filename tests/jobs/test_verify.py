"""Damage of stored results: found by verify and by whoever reads, and repaired into the same bytes."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.connect import connect
from jobs import verify
from jobs.cli.launch import launch_step
from jobs.evaluation.measuring import evaluate_labels
from jobs.reporting.contact_sheet import draw_contact_sheet
from jobs.reporting.page import write_report
from jobs.reporting.run_status import run_status, status_lines
from jobs.run.directory import open_run
from jobs.steps.makers import makers
from storage.errors import Damaged
from storage.manifest import Manifest, write_manifest
from storage.receipts import Receipt


def results_of(run) -> dict[str, bytes]:
    """Everything that the unit steps stored, but for the receipts, which hold times."""
    folders = [Path(run.data(name).uri) for name in ("maps", "predictions") if run.step(name).fingerprint()]
    files = [file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file): file.read_bytes() for file in files if file.parent.name not in ("done", "drivers")}


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def test_a_run_that_was_not_touched_is_sound(predicted_run, capsys):
    verify.main(["--run", predicted_run.uri])
    text = capsys.readouterr().out
    assert "verify: maps: 4 finished units checked, sound." in text
    assert "verify: predictions: 1 finished unit checked, sound." in text
    verify.main(["--run", predicted_run.uri, "--step", "maps", "--sample", "2"])
    assert "verify: maps: 2 finished units checked, sound." in capsys.readouterr().out


def test_damage_is_named_by_readers_and_by_verify_and_repaired_into_the_same_bytes(predicted_run, capsys):
    undisturbed = results_of(predicted_run)
    maps, predictions = (Path(predicted_run.data(name).uri) for name in ("maps", "predictions"))
    flip(maps / "maps.zarr/max/c/1/0/0/0")
    (maps / "maps.zarr/score/c/3/0").unlink()
    flip(maps / "maps.zarr/mean/zarr.json")
    flip(maps / "done/000002.json")
    next(iter((predictions / "labels").glob("*.png"))).unlink()
    with pytest.raises(ValueError, match=r"verify: the run is damaged\. Run 'python jobs/verify.py .*--repair'"):
        verify.main(["--run", predicted_run.uri])
    text = capsys.readouterr().out
    for name in (
        "max/c/1/0/0/0: ",
        "score/c/3/0: the file is missing",
        "mean/zarr.json: ",
        "000002.json: cannot be read",
    ):
        assert name in text
    assert "verify: predictions: 1 finished unit checked, 1 object damaged in 1 unit." in text

    verify.main(["--run", predicted_run.uri, "--repair"])
    assert results_of(predicted_run) == undisturbed
    verify.main(["--run", predicted_run.uri])
    assert "damaged" not in capsys.readouterr().out.rpartition("repaired")[2]


def test_results_without_the_record_of_their_start_are_not_sound(seeded_run, capsys):
    Path(seeded_run.uri, "maps", "step.json").unlink()
    for flags in ([], ["--step", "maps", "--repair"]):
        with pytest.raises(ValueError, match=r"maps/step\.json: missing.* --restart maps'"):
            verify.main(["--run", seeded_run.uri, *flags])
    with (
        connect("in-process") as connection,
        pytest.raises(ValueError, match=r"maps/step\.json: missing.* 'python jobs/generate_maps.py .*--restart maps'"),
    ):
        launch_step(seeded_run, connection, "maps")
    lines = status_lines(run_status(open_run(seeded_run.uri)))
    line = next(each for each in lines if each.startswith("maps: "))
    assert line.startswith("maps: record lost")
    advice = lines[lines.index(line) + 1]
    assert re.fullmatch(r"  put its step\.json back from a copy, or compute again: .*--restart maps", advice)


def test_a_training_without_the_record_of_its_start_is_not_continued(seeded_run):
    Path(seeded_run.uri, "classifier", "step.json").unlink()
    with (
        connect("in-process") as connection,
        pytest.raises(ValueError, match=r"classifier/step\.json: missing.*--restart classifier'"),
    ):
        launch_step(seeded_run, connection, "classifier")


def test_a_lost_array_description_is_counted_and_a_small_run_needs_no_ray(seeded_run, monkeypatch, capsys):
    monkeypatch.setattr("cluster.connect._start", lambda *_: pytest.fail("Ray was started"))
    place = Path(seeded_run.uri, "seeds", "seeds.zarr", "label", "zarr.json")
    whole = place.read_bytes()
    place.unlink()
    with pytest.raises(ValueError, match=r"verify: the run is damaged"):
        verify.main(["--run", seeded_run.uri])
    assert "1 object damaged in 1 array description." in capsys.readouterr().out
    verify.main(["--run", seeded_run.uri, "--repair"])
    assert "verify: seeds: repaired 1 array description." in capsys.readouterr().out
    assert place.read_bytes() == whole


def test_damage_of_one_file_does_not_hide_that_of_others(predicted_run, capsys):
    run = Path(predicted_run.uri)
    (run / "maps/step.json").write_bytes(b"{}")
    (run / "classifier/metrics.jsonl").write_bytes(b'{"epoch": ')
    (run / "segmenter/model.pt").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"segmenter/model\.pt: not the file that the training wrote"):
        verify.main(["--run", predicted_run.uri])
    printed = capsys.readouterr().out
    assert "verify: predictions: 1 finished unit checked, sound." in printed
    assert re.search(r"^verify: .*maps/step\.json: damaged", printed, re.MULTILINE)
    assert re.search(r"^verify: .*classifier/metrics\.jsonl: damaged", printed, re.MULTILINE)


def test_a_run_without_results_is_not_said_to_be_sound(trained_run, capsys):
    verify.main(["--run", trained_run.uri, "--step", "maps"])
    assert "verify: nothing was checked: no results of maps in" in capsys.readouterr().out


def test_units_that_are_computed_again_have_the_stored_bytes(predicted_run, capsys):
    before = results_of(predicted_run)
    verify.main(["--run", predicted_run.uri, "--recompute", "2"])
    text = capsys.readouterr().out
    assert "verify: maps: 2 units computed again, the same bytes." in text
    assert "verify: predictions: 1 unit computed again, the same bytes." in text
    assert results_of(predicted_run) == before


def test_outdated_steps_are_not_computed_again_and_the_others_are(seeded_run, capsys):
    with connect("in-process") as connection:
        launch_step(open_run(seeded_run.uri, None, ["maps.num_samples=4"]), connection, "maps", restart=True)
    capsys.readouterr()
    verify.main(["--run", seeded_run.uri, "--recompute", "1"])
    text = capsys.readouterr().out
    assert "verify: maps: 1 unit computed again, the same bytes." in text
    assert re.search(r"verify: seeds: not computed again, because it is outdated; to redo it: .*--restart seeds", text)


def test_a_machine_that_computes_other_bytes_is_named(finished_maps_run, monkeypatch, capsys):
    monkeypatch.setattr("jobs.maps.backbone_passes.normalize", lambda images: images.float() / 100)  # other code
    with pytest.raises(ValueError, match="this machine computes other results than those stored"):
        verify.main(["--run", finished_maps_run.uri, "--step", "maps", "--recompute", "1"])
    text = capsys.readouterr().out
    assert "verify: maps: 1 unit computed again, 1 unit with results that differ." in text
    assert "other bytes in maps.zarr/max/c/" in text and "this process is" in text
    with pytest.raises(ValueError, match=r"cannot be computed again here.*maps\.num_samples: \d+ -> 7"):
        verify.main(["--run", finished_maps_run.uri, "--step", "maps", "--recompute", "1", "--set=maps.num_samples=7"])


def test_a_deleted_prediction_does_not_lower_the_metrics(predicted_run):
    next(iter(Path(predicted_run.data("predictions").uri, "labels").glob("*.png"))).unlink()
    with connect("in-process") as connection, pytest.raises(Damaged, match=r"the file is missing.*verify.*--repair"):
        evaluate_labels(predicted_run, connection, ["val"], None, ("image",), deterministic=False)


def test_results_are_not_read_by_a_manifest_in_another_order(seeded_run):
    place = seeded_run.location / "manifest.parquet"
    manifest = Manifest.open(place)
    write_manifest(place, [*manifest.iter_rows()][::-1], manifest.class_names)
    run = open_run(seeded_run.uri)
    with connect("in-process") as connection:
        for read in (
            lambda: run_status(run),
            lambda: write_report(run),
            lambda: draw_contact_sheet(run, 1),
            lambda: evaluate_labels(run, connection, [], None, ("map",), deterministic=False),
            lambda: launch_step(run, connection, "pseudo_labels"),
            run.maps,
            run.seeds,
        ):
            with pytest.raises(ValueError, match="was made for other images or classes"):
                read()


def test_units_of_another_code_are_named(finished_maps_run, capsys):
    step = finished_maps_run.step("maps")
    receipt = step.receipts(with_objects=True)[0]
    step.write_receipt(replace(receipt, code="0123456789ab"))
    with connect("in-process") as connection:
        launch_step(finished_maps_run, connection, "maps")
    text = capsys.readouterr().out
    assert "maps: another version of the code or of its packages computed 1 finished unit (0123456789ab" in text
    lines = "\n".join(status_lines(run_status(finished_maps_run)))
    assert "  computed by different code or packages, with the same algorithm version: 1 unit by 0123456789ab" in lines


def test_units_of_other_packages_are_named_with_the_versions_that_differ():
    receipts = [Receipt(n, n, n + 1, 1.0, 1.0, code="0123456789ab", packages=f"numpy 2.{n}, torch 3.0") for n in (1, 2)]
    assert makers(receipts) == {"0123456789ab with numpy 2.1": 1, "0123456789ab with numpy 2.2": 1}
    assert list(makers(receipts[:1])) == ["0123456789ab"] and makers([replace(receipts[0], code="")]) == {}


def test_a_changed_header_of_a_run_is_found_by_its_seal(finished_maps_run):
    place = Path(finished_maps_run.uri) / "run.json"
    place.write_text(re.sub(r"(\d),", "7,", place.read_text(), count=1))
    with pytest.raises(ValueError, match=r"run\.json: damaged, .*its bytes have changed.*delete its entries"):
        open_run(finished_maps_run.uri)


@pytest.mark.parametrize("body", ["", "{", "[]", "{}", '{"config": null}'])
def test_a_damaged_header_of_a_run_is_one_sentence(body, finished_maps_run):
    (Path(finished_maps_run.uri) / "run.json").write_text(body)
    with pytest.raises(ValueError, match=r"run\.json: damaged, .*Put it back from a copy"):
        open_run(finished_maps_run.uri)


@pytest.mark.parametrize(
    ("section", "key", "value"), [("maps", "of_tomorrow", 1), ("maps", "num_samples", 0), ("images", "input_size", 64)]
)
def test_a_header_of_another_version_is_called_by_its_name(section, key, value, finished_maps_run):
    with pytest.raises(ValueError, match=rf"^{section}\.{key}: "):  # a slip of the launch is not the file's
        open_run(finished_maps_run.uri, None, [f"{section}.{key}={value}"])
    place = Path(finished_maps_run.uri) / "run.json"
    header = json.loads(place.read_text())
    header["config"][section][key] = value
    place.write_text(json.dumps({"config": header["config"]}))  # as an earlier version wrote it, without a seal
    with pytest.raises(ValueError, match=rf"run\.json: {section}\.{key}: .*If another version of the program wrote"):
        open_run(finished_maps_run.uri)


@pytest.mark.parametrize("name", ["classifier/complete.json", "classifier/metrics.jsonl", "maps/step.json"])
def test_damaged_records_are_one_sentence_each(name, finished_maps_run):
    place = Path(finished_maps_run.uri) / name
    whole = place.read_bytes() if place.exists() else json.dumps({"epoch": 1}).encode() + b"\n"
    for body in (b"", b"{}", whole[: len(whole) // 2]):
        if name.endswith(".jsonl") and body in (b"", b"{}"):
            continue  # no line; and a line without an end, as the half is
        place.write_bytes(body)
        with pytest.raises(ValueError, match=rf"{place.name}: damaged, ") as refusal:
            run_status(finished_maps_run)
        assert "\n" not in str(refusal.value)


def interrupt(*_):
    raise KeyboardInterrupt


def done_folder(run, name: str) -> Path:
    return Path(run.data(name).uri, "done")


def test_a_missing_unit_that_later_steps_read_is_damage_and_repaired(seeded_run, capsys):
    undisturbed = results_of(seeded_run)
    (done_folder(seeded_run, "maps") / "000001.json").unlink()  # as a repair of an earlier version that stopped left it
    for flags in ([], ["--step", "maps"]):
        with pytest.raises(ValueError, match=r"verify: the run is damaged\. Run 'python jobs/verify.py .*--repair'"):
            verify.main(["--run", seeded_run.uri, *flags])
        text = capsys.readouterr().out
        assert "maps: 3 finished units checked, 1 of 4 units is missing, although later steps read it (seeds)." in text
    verify.main(["--run", seeded_run.uri, "--repair"])
    assert "verify: maps: repaired 1 missing unit." in capsys.readouterr().out
    assert results_of(seeded_run) == undisturbed
    verify.main(["--run", seeded_run.uri])
    assert "verify: maps: 4 finished units checked, sound." in capsys.readouterr().out


def test_units_that_are_only_not_computed_yet_are_no_damage(finished_maps_run, seeded_run, capsys):
    (done_folder(finished_maps_run, "maps") / "000003.json").unlink()  # as if the launch had been stopped
    verify.main(["--run", finished_maps_run.uri, "--repair"])
    assert "maps: 3 finished units checked, sound; 1 of 4 units is not computed yet." in capsys.readouterr().out
    with connect("in-process") as connection:  # the seeds are of the maps before
        job = open_run(seeded_run.uri, None, ["maps.num_samples=4"])
        launch_step(job, connection, "maps", restart=True)
    (done_folder(seeded_run, "maps") / "000003.json").unlink()
    verify.main(["--run", seeded_run.uri])
    assert "maps: 3 finished units checked, sound; 1 of 4 units is not computed yet." in capsys.readouterr().out


def test_a_repair_that_stopped_is_finished_by_the_same_command(predicted_run, monkeypatch, capsys):
    undisturbed = results_of(predicted_run)
    flip(done_folder(predicted_run, "predictions") / "000003.json")  # no later step was made from the predictions
    with monkeypatch.context() as patch:
        patch.setattr("jobs.cli.launch.launch_step", interrupt)
        with pytest.raises(KeyboardInterrupt):
            verify.main(["--run", predicted_run.uri, "--repair"])
    capsys.readouterr()
    with pytest.raises(ValueError, match="verify: the run is damaged"):
        verify.main(["--run", predicted_run.uri])
    assert "000003.json: a repair of this unit was not finished" in capsys.readouterr().out
    verify.main(["--run", predicted_run.uri, "--repair"])
    assert results_of(predicted_run) == undisturbed
    verify.main(["--run", predicted_run.uri])
    assert "verify: predictions: 1 finished unit checked, sound." in capsys.readouterr().out


def test_a_damaged_network_stops_only_the_repair_of_steps_that_need_it(predicted_run, capsys):
    undisturbed = results_of(predicted_run)
    network = Path(predicted_run.uri, "classifier/model.pt")
    whole = network.read_bytes()
    network.write_bytes(b"other")
    flip(Path(predicted_run.data("maps").uri, "maps.zarr/max/c/1/0/0/0"))
    next(iter(Path(predicted_run.data("predictions").uri, "labels").glob("*.png"))).unlink()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"classifier/model\.pt: not the file that the training wrote"):
            verify.main(["--run", predicted_run.uri, "--repair"])
        text = capsys.readouterr().out
        assert "verify: maps: 4 finished units checked, 1 object damaged in 1 unit." in text
        assert "verify: maps: not repaired; the reason is below." in text
        assert re.search(
            r"not everything could be repaired\. .* then run 'python jobs/verify.py .*--repair' again", text
        )
    assert "verify: predictions: 1 finished unit checked, sound." in text  # the first repair had repaired it
    network.write_bytes(whole)
    verify.main(["--run", predicted_run.uri, "--repair"])
    assert "verify: maps: repaired 1 unit." in capsys.readouterr().out
    assert results_of(predicted_run) == undisturbed
