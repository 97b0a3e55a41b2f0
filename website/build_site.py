"""Build the site: `python website/build_site.py [FOLDER]` (default: build/site). No network is needed for it.

Pages under docs/ are written for two readers: a code host, which shows the repository, and the site. They are copied
to build/pages, where links that leave docs/ are pointed at pages that show those files, and joined by the pages that
are made from the code: settings, commands, names in Python, what is tested. Sphinx makes the site of that folder; any
warning of it, such as one of a link that leads nowhere or of a page that no list names, is an error.
"""

import re
import shutil
import sys
from pathlib import Path

from sphinx.cmd.build import main as sphinx

from api_page import api_page
from commands_page import commands_page
from layers import draw_layers
from recipe_page import recipe_page
from repository_files import LINK, file_page, linked_files, relative_link
from tested_page import tested_page

ROOT = Path(__file__).resolve().parent.parent
CONTENTS = {
    "Start": {
        "Ten minutes on your own text": "tutorials/your-own-text",
        "How a matrix stream works": "explanation/matrix-stream",
        "Questions and answers": "questions",
    },
    "How to": {
        "Prepare text": "how-to/data",
        "Scale up": "how-to/scale-up",
        "Train on several GPUs, or machines": "how-to/many-processes",
        "Compare runs": "how-to/compare",
        "Read a report": "how-to/read-a-report",
        "Watch a run": "how-to/trackers",
        "Evaluate on tasks": "how-to/evaluate",
        "Look into a model": "how-to/lens",
        "Add a stream": "tutorials/your-own-stream",
        "Use a stream in your own model": "how-to/your-own-model",
        "Start from a pretrained model": "how-to/pretrained",
        "Export for transformers": "how-to/hugging-face",
        "Serve": "how-to/serve",
        "Choose an optimizer": "how-to/optimizers",
        "Tune small, train wide": "how-to/tuning",
        "Answer a question with a study": "how-to/studies",
        "Judge newer designs": "how-to/designs",
        "Measure your machine": "how-to/benchmarks",
    },
    "Reference": {
        "Python": "reference/python",
        "Names in Python": "reference/api",
        "Settings of a recipe": "reference/recipe",
        "Commands": "reference/commands",
        "Blocks": "reference/blocks",
        "Streams of released models": "reference/shipped-streams",
        "Run folders": "reference/run-folder",
        "JSON of the verbs": "reference/json",
        "What of these pages is tested": "reference/tested",
    },
    "Findings": {"What was measured": "findings", "Errata of the RMT paper": "errata"},
    "Inside": {"Architecture": "architecture", "Changes": "changelog"},
}
"""Every page under the heading and by the name that the site's list gives it."""
WRITTEN = {"index.md": "README.md", "changelog.md": "CHANGELOG.md"}
"""Pages that are files of the repository outside docs/."""
GENERATED = {
    "reference/api.md": api_page,
    "reference/commands.md": commands_page,
    "reference/recipe.md": recipe_page,
    "reference/tested.md": tested_page,
}
PICTURE = re.compile(r"<picture>(.*?)</picture>", re.DOTALL)
LAYERS = re.compile(r"^```mermaid\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def gather(folder: Path) -> None:
    """Write all pages of the site into a folder, which is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs" / "assets", folder / "assets")
    places = {page: f"docs/{page}" for page in _pages_of_docs()} | WRITTEN
    texts = {page: (ROOT / place).read_text(encoding="utf-8") for page, place in places.items()}
    for path in linked_files(ROOT, [ROOT / place for place in places.values()], taken=set(WRITTEN.values())):
        page = f"files/{path}.md"
        places[page], texts[page] = path, "---\norphan: true\n---\n" + file_page(ROOT, path)
    for page, text in texts.items():
        _write(folder / page, for_site(text, places[page], page))
    for page, make in GENERATED.items():
        _write(folder / page, make())
    with (folder / "index.md").open("a", encoding="utf-8") as index:
        index.write("".join(_list(heading, rows) for heading, rows in CONTENTS.items()))


def for_site(text: str, place: str, page: str) -> str:
    """A page as the site needs it: links, pictures of two themes, and the chart of the layers.

    Args:
        text: of the page.
        place: where it stands in the repository.
        page: where it stands on the site.
    """
    text = LAYERS.sub(lambda chart: draw_layers(chart[1]), PICTURE.sub(_both_themes, text))
    return LINK.sub(lambda link: relative_link(ROOT, place, page, link, WRITTEN), text)


def _pages_of_docs() -> list[str]:
    docs = ROOT / "docs"
    return sorted(str(path.relative_to(docs)) for path in docs.rglob("*.md"))


def _both_themes(picture: re.Match[str]) -> str:
    """Two images of which the theme shows one; a `<picture>` would follow the system and not the site's switch."""
    (dark,) = re.findall(r'srcset="([^"]+)"', picture[1])
    (light,) = re.findall(r'src="([^"]+)"', picture[1])
    (alt,) = re.findall(r'alt="([^"]+)"', picture[1])
    return f"![{alt}]({light}){{.only-light}}\n![{alt}]({dark}){{.only-dark}}"


def _list(heading: str, rows: dict[str, str]) -> str:
    """A part of the site's list of pages."""
    lines = "".join(f"{name} <{page}>\n" for name, page in rows.items())
    return f"\n```{{toctree}}\n:hidden:\n:caption: {heading}\n\n{lines}```\n"


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def main(out: Path) -> int:
    """Gather the pages and build the site; 0 where nothing was wrong."""
    pages = ROOT / "build" / "pages"
    gather(pages)
    options = ["--fail-on-warning", "--keep-going", "--quiet", "--fresh-env", "-c", str(ROOT / "website")]
    return sphinx([*options, "-d", str(ROOT / "build" / "doctrees"), str(pages), str(out)])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "build" / "site"))
