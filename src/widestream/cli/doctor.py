"""`widestream doctor`: what is here, and what is missing."""

from widestream.cli.as_json import Json, print_json


def doctor(as_json: Json = False) -> None:
    """What is installed, what this machine can do, and what to install for more."""
    from itertools import groupby

    from widestream.doctor import examine

    findings = examine()
    if as_json:
        print_json(findings)
        return
    width = max(len(finding.name) for finding in findings)
    for part, rows in groupby(findings, key=lambda finding: finding.part):
        print(part)
        for row in rows:
            print(f"  {' ' if row.fine else '-'} {row.name:{width}}  {row.found}")
            if row.remedy and row.remedy != row.found:
                print(f"    {'':{width}}  {row.remedy}")
