"""Reads the XML files of VOC's ``Annotations``: the objects in an image, and the image size they were marked at."""

import codecs
import re
from dataclasses import dataclass
from xml.etree import ElementTree

from storage.text import clean_name

_DECLARED = re.compile(rb"<\?xml[^>]*encoding\s*=\s*['\"]([A-Za-z0-9._-]+)['\"]")


@dataclass(frozen=True)
class Annotation:
    """The content of one file.

    Attributes:
        names: the names of its objects, sorted, without repetitions.
        file_name: the file name of the picture; ``""`` if there is none.
        size: (height, width) as written; None if it is not a valid size.
    """

    names: tuple[str, ...]
    file_name: str
    size: tuple[int, int] | None


def parse_annotation(data: bytes) -> Annotation:
    """Read a file in any encoding. Document types are refused, because their entities can grow or read other files.

    Raises:
        ValueError: the file cannot be read; the message is only the reason.
    """
    text = _decode(data)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise ValueError("it declares a document type")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise ValueError(f"not XML ({re.sub(': line .*', '', str(error))})") from error
    names = {clean_name(element.text or "") for element in root.iterfind("object/name")} - {""}
    height, width = _pixels(root, "size/height"), _pixels(root, "size/width")
    file_name = (root.findtext("filename") or "").strip()
    return Annotation(tuple(sorted(names)), file_name, (height, width) if height and width else None)


def _decode(data: bytes) -> str:
    """Decode by the byte order mark, else by the XML declaration, else as UTF-8."""
    declared = _DECLARED.match(data.lstrip()[:200])
    encoding = declared[1].decode("ascii") if declared else "utf-8"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif data.startswith(codecs.BOM_UTF8):
        encoding = "utf-8-sig"
    try:
        return data.decode(encoding).lstrip()
    except (LookupError, UnicodeDecodeError) as error:
        raise ValueError(f"it is not text in {encoding}") from error


def _pixels(root: ElementTree.Element, path: str) -> int | None:
    text = (root.findtext(path) or "").strip()
    return int(text) if re.fullmatch(r"[1-9][0-9]{0,5}", text) else None
