"""A data set for Hugging Face's `datasets`: `data/<split>/<unit>.parquet`, and README.md, which names the splits.

Columns: image_id, file_name, image and mask (both as the bytes of a picture), labels (the classes in the mask). Values
of a mask are 0 for background, class number + 1, and 255 (16-bit: 65535) for unknown; the schema names the classes.
https://huggingface.co/docs/datasets/repository_structure
"""

import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jobs.exports.labelled_image import Classes, Exported, LabelledImage, WholeExport
from storage.image_bytes import whole_file
from storage.label_folder import encode_label_png
from storage.names import safe_name

_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def export_image(image: LabelledImage) -> Exported:
    """The image's row, with its picture as it is stored.

    Raises:
        BadImage: the picture cannot be read.
    """
    found = [int(label) - 1 for label in np.unique(image.labels) if 0 < label <= len(image.classes.names)]
    name = image.file_name.rpartition("/")[2]
    row = {
        "image_id": image.image_id,
        "file_name": image.file_name,
        "image": {"bytes": whole_file(image.uri), "path": name},
        "mask": {"bytes": encode_label_png(image.labels), "path": f"{safe_name(image.image_id)}.png"},
        "labels": found,
    }
    return Exported(record={"split": split_name(image.split), "row": row})


def export_unit(records: Sequence[Mapping[str, Any]], unit_name: str, classes: Classes) -> Exported:
    """The files of a unit's rows, one for each split, and how many rows each has."""
    rows = defaultdict(list)
    for record in records:
        rows[record["split"]].append(record["row"])
    files = {f"data/{split}/{unit_name}.parquet": _table(some, classes) for split, some in rows.items()}
    return Exported(files, [{"split": split, "num_rows": len(some)} for split, some in rows.items()])


def _table(rows: list[dict[str, Any]], classes: Classes) -> bytes:
    schema = pa.schema(
        [
            ("image_id", pa.string()),
            ("file_name", pa.string()),
            ("image", _PICTURE),
            ("mask", _PICTURE),
            ("labels", pa.list_(pa.int64())),
        ],
        metadata={"huggingface": json.dumps({"info": {"features": _features(classes)}})},
    )
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema), buffer, compression="none", row_group_size=100)
    return buffer.getvalue()


def _features(classes: Classes) -> dict[str, Any]:
    """The columns as `datasets` describes them."""
    text = {"dtype": "string", "_type": "Value"}
    labels = {"feature": {"names": list(classes.names), "_type": "ClassLabel"}, "_type": "List"}
    return {
        "image_id": text,
        "file_name": text,
        "image": {"_type": "Image"},
        "mask": {"_type": "Image"},
        "labels": labels,
    }


def split_name(split: str) -> str:
    """A split's name as `datasets` allows it: letters, digits and underscores."""
    return re.sub(r"\W", "_", split, flags=re.ASCII) or "all"


def finish(export: WholeExport) -> None:
    """Writes README.md, whose head says which files are which split."""
    counts = Counter[str]()
    for record in export.records():
        counts[record["split"]] += record["num_rows"]
    files = "".join(f"  - split: {split}\n    path: data/{split}/*.parquet\n" for split in counts)
    numbered = [*enumerate(["background", *export.classes.names])]
    names = "".join(f"| {number} | {name} |\n" for number, name in numbered)
    text = (
        f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n\n"
        "Values of the masks; 255 (65535 in 16-bit masks) means unknown.\n\n"
        f"| value | class |\n|---|---|\n{names}"
    )
    (export.out / "README.md").write_bytes(text.encode())
