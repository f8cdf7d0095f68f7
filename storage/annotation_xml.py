"""The XML files of VOC's ``Annotations``: which objects an image shows, and the size they were marked at."""

import codecs
import re
from dataclasses import dataclass
from xml.etree import ElementTree

from storage.text import clean_name

_DECLARED = re.compile(rb"<\?xml[^>]*encoding\s*=\s*['\"]([A-Za-z0-9._-]+)['\"]")


@dataclass(frozen=True)
class Annotation:
    """What one file says.

    Attributes:
        names: of its objects, sorted, each once.
        file_name: of the picture, ``""`` where it says none.
        size: (height, width) as written; None where it is no size.
    """

    names: tuple[str, ...]
    file_name: str
    size: tuple[int, int] | None


def parse_annotation(data: bytes) -> Annotation:
    """Read a file, whatever its encoding; document types, and so entities that grow or read files, are refused.

    Raises:
        ValueError: the reason alone.
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
    """By the byte order mark, else by the declaration, else as UTF-8."""
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
