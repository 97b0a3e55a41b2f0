"""Sections of measurements that are no grid of runs: each is read from its own JSON record."""

from typing import Any

from widestream.report.studies.sections import Section


def record_section(name: str, record: dict[str, Any]) -> Section | None:
    """The section of a record by what it measured; None for a record of something else."""
    return None
