"""The results that are kept in lab/: one page of all studies, every number with its run."""

import json
from pathlib import Path

import pytest

from widestream.study.archive import opened
from widestream.study.load import study_names
from widestream.study.page import studies_page

LAB = Path(__file__).parent.parent.parent / "lab"


@pytest.mark.slow
def test_the_page_of_the_kept_results_has_every_study_and_every_run():
    with opened(LAB) as folders:
        sections = studies_page.find_sections(folders)
        names = {section.name for section in sections}
        kept = {*study_names()} - {"demo", "zoo"}  # whose evidence is notes and rows of metrics
        assert {"resources", "moments", "mup", "tune", *kept} <= names
        html = studies_page.studies_page(sections)
        assert not [folder for folder in folders if folder != LAB and str(folder) in html]
        paths = [path for folder in folders for path in folder.glob("*.study.json")]
        assert len(paths) == len(kept)
        for path in paths:
            record = json.loads(path.read_text())
            for arm in record["arms"]:
                for run in (*arm["trials"], *arm["runs"]):
                    folder = path.parent / run["folder"]
                    assert run["status"] != "done" or (folder / "metrics.jsonl").is_file()
                for run in arm["runs"]:
                    assert run["folder"] in html
