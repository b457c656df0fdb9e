"""What came in place of a JPEG, PNG or WebP: another kind of file, or what a host says instead of
sending one.
"""

from __future__ import annotations

import re

from ltx.text import one_line

HEAD_BYTES = 4096
PICTURE_HEADS = (b"\x89PNG", b"\xff\xd8", b"RIFF")
ISO_BRANDS = (
    (re.compile(rb"avi[fs]"), "an AVIF picture"),
    (re.compile(rb"hei[cxms]|hev[cxm]|mif1|msf1"), "a HEIC picture"),
    (re.compile(rb"crx "), "a camera's raw file"),
    (re.compile(rb""), "a video"),
)
MAGIC = (
    (b"GIF8", "a GIF"),
    (b"II*\0", "a TIFF or a camera's raw file"),
    (b"MM\0*", "a TIFF or a camera's raw file"),
    (b"BM", "a BMP"),
    (b"\0\0\1\0", "an ICO"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (b"8BPS", "a Photoshop file"),
    (b"%PDF-", "a PDF"),
    (b"PK\3\4", "a ZIP archive"),
    (b"\x1aE\xdf\xa3", "a video"),
)
PAGE = re.compile(r"<(!doctype html|html|head|body|title|meta|script)\b", re.IGNORECASE)
TITLE = re.compile(r"<title[^>]*>\s*([^<]*)", re.IGNORECASE)
# Buckets answer so: S3, R2, Google Cloud Storage, Azure.
XML_ERROR = re.compile(r"<Error>.*?<Code>([^<]*)", re.DOTALL)


def name_file(head: bytes) -> str:
    """A kind of file that a customer may have sent, by its first bytes; '' for an unknown one."""
    if head[4:8] == b"ftyp":
        # The major brand, and the compatible ones behind its version.
        brands = head[8:12] + head[16 : int.from_bytes(head[:4])]
        return next(name for brand, name in ISO_BRANDS if brand.search(brands))
    if b"<svg" in head[:1024].lower():
        return "an SVG drawing"
    return next((name for magic, name in MAGIC if head.startswith(magic)), "")


def name_answer(head: bytes, encoding: str = "") -> str:
    """What a host says instead of sending a file, by the first bytes; '' when it is a file.

    encoding: the answer's Content-Encoding; none was asked for.
    """
    if not head:
        return "nothing"
    if head.startswith(PICTURE_HEADS) or name_file(head):
        return ""
    if head.startswith(b"\x1f\x8b"):
        encoding = "gzip"
    if encoding not in ("", "identity"):
        return f"a packed answer ({one_line(encoding, 20)})"
    return name_text(head)


def name_text(head: bytes) -> str:
    """A text's kind and what it begins with; '' for what is no text."""
    text = head.decode(errors="replace").removesuffix("\ufffd").strip("\ufeff \t\r\n")
    if re.search(r"[\0-\x08\x0e-\x1f\ufffd]", text):
        return ""
    if error := XML_ERROR.search(text):
        return f"an XML error ({one_line(error[1], 80)})"
    if PAGE.search(text[:1024]):
        title = TITLE.search(text)
        return f"a web page ({one_line(title[1], 80)})" if title else "a web page"
    kind = {"<": "an XML document", "{": "JSON", "[": "JSON"}.get(text[:1], "a text")
    return f"{kind} ({one_line(text, 80)})"
