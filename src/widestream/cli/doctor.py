"""`widestream doctor`: what is here, and what is missing."""

from typing import Annotated

import typer


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """What is installed, what this machine can do, and what to install for more."""
    import json
    from dataclasses import asdict
    from itertools import groupby

    from widestream.doctor import examine

    findings = examine()
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
        return
    width = max(len(finding.name) for finding in findings)
    for part, rows in groupby(findings, key=lambda finding: finding.part):
        print(part)
        for row in rows:
            print(f"  {' ' if row.fine else '-'} {row.name:{width}}  {row.found}")
            if row.remedy and row.remedy != row.found:
                print(f"    {'':{width}}  {row.remedy}")
