"""Says what a file is if it is not a picture in a supported format; its first bytes show it.

Phones write HEIC and clinics DICOM, a failed download leaves a web page, and a repository cloned without Git LFS has
pointers. The names of such files often end in ``.jpg`` or ``.png``.
"""

CONVERT = "which is not read; save it as JPEG or PNG"

_STARTS = (
    (b"\x00\x00\x00\x0cjP  ", f"a JPEG 2000 picture, {CONVERT}"),
    (b"\xff\x4f\xff\x51", f"a JPEG 2000 picture, {CONVERT}"),
    (b"\x00\x00\x00\x0cJXL ", f"a JPEG XL picture, {CONVERT}"),
    (b"\xff\x0a", f"a JPEG XL picture, {CONVERT}"),
    (b"8BPS", f"a Photoshop picture, {CONVERT}"),
    (b"\x93NUMPY", f"a numpy array, {CONVERT}"),
    (b"%PDF", f"a PDF file, {CONVERT}"),
    (b"PK\x03\x04", "a ZIP archive, not a picture; unpack it first"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the picture; run 'git lfs pull' where it came from"),
)
_HEIC = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_AVIF = (b"avif", b"avis")


def name_foreign_file(data: bytes) -> str:
    """What a file is and what to do with it, from its first bytes; "" if they do not show it."""
    for start, what in _STARTS:
        if data.startswith(start):
            return what
    if data[4:8] == b"ftyp":
        brand = data[8:12]
        kind = "an HEIC picture" if brand in _HEIC else "an AVIF picture" if brand in _AVIF else "a film"
        return f"{kind}, {CONVERT}"
    if data[128:132] == b"DICM":
        return f"a DICOM file, {CONVERT}"
    text = data[:1000].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page, not a picture; download the picture again"
    if text.startswith(b"<") and b"<svg" in text:
        return f"an SVG drawing, {CONVERT}"
    return ""
