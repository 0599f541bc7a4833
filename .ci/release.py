"""Check that a tag, the version, the changelog and the citation agree: `python .ci/release.py v0.1.0`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def problems(tag: str, version: str, changelog: str, citation: str) -> list[str]:
    """Return what must be changed before this tag can be released; the texts are those of the files."""
    found = []
    if tag != f"v{version}":
        found.append(f"the tag must be 'v{version}', as in dino_kernels/_version.py, got {tag!r}")
    heading = re.search(r"^## .*", changelog, re.MULTILINE)
    if heading is None or heading[0] != f"## {version}":
        found.append(f"CHANGELOG.md must begin with '## {version}', got {heading[0] if heading else 'no heading'!r}")
    cited = dict(re.findall(r"^(version|date-released): *(\S+)", citation, re.MULTILINE))
    if cited.get("version") != version:
        found.append(f"CITATION.cff must have 'version: {version}', got {cited.get('version')!r}")
    if "date-released" not in cited:
        found.append("CITATION.cff must have 'date-released: YYYY-MM-DD'")
    return found


def main(tag: str) -> int:
    scope: dict[str, str] = {}
    exec((ROOT / "dino_kernels/_version.py").read_text(encoding="utf-8"), scope)
    texts = ((ROOT / name).read_text(encoding="utf-8") for name in ("CHANGELOG.md", "CITATION.cff"))
    found = problems(tag, scope["__version__"], *texts)
    print("\n".join(found) if found else f"{tag} can be released")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2] or [""]))
