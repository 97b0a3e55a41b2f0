"""The libraries in pages are the ones that the notice names."""

import re
from hashlib import sha256
from pathlib import Path

import widestream.report
from widestream.report.figures.drawing import LIBRARIES

VENDOR = Path(widestream.report.__file__).parent / "vendor"


def test_the_notice_names_every_library_with_its_version_and_hash():
    notice = (VENDOR / "NOTICE").read_text(encoding="utf-8")
    rows = re.findall(r"^(\S+) +([\d.]+) +(BSD-3-Clause) +(\S+\.js) .* ([0-9a-f]{64})$", notice, flags=re.M)
    assert (
        [row[3] for row in rows]
        == list(LIBRARIES)
        == sorted((path.name for path in VENDOR.glob("*.js")), key=LIBRARIES.index)
    )
    for name, version, _, file, digest in rows:
        content = (VENDOR / file).read_bytes()
        assert sha256(content).hexdigest() == digest
        assert f'"{version}"'.encode() in content, f"{name} says its version"
        assert "Redistribution and use" in (VENDOR / f"LICENSE-{name}").read_text(encoding="utf-8")
