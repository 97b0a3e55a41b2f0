"""The demo: the RMT and the plain transformer on the same batches of real prose, two seeds each, and a report."""

import os
from dataclasses import dataclass
from pathlib import Path

from widestream.errors import UserError
from widestream.recipe import load_recipe
from widestream.recipe.load import recipe_folder
from widestream.runs.pool import Job, run_jobs
from widestream.study.corpus import prepare_corpus

MODELS = {"rmt": "demo/rmt", "transformer": "demo/transformer"}
PROMPT = "It was a truth"
SOURCE = "bundled:prose"
TITLE = "A wider residual stream, at the beginning of training"


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoOptions:
    """What can be changed about the demo."""

    folder: Path = Path("runs/demo")
    """Everything is written here."""
    seeds: int = 2
    """Runs of each model; seed s fixes both weights and batches."""
    steps: int | None = None
    """Optimizer steps of each run; default: the recipes'."""
    workers: int | None = None
    """Runs at a time; default: one a CPU."""

    def __post_init__(self):
        for name in ("seeds", "steps", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"The demo needs at least one of --{name}, not {value}.")


def search_record() -> Path:
    """The committed record of the search for the demo's learning rates."""
    return recipe_folder() / "demo" / "search.json"


def prepare_data(folder: Path) -> Path:
    """Train the demo's tokenizer and prepare the bundled prose; what is there already is kept.

    Returns:
        The prepared folder.
    """
    return prepare_corpus(folder, SOURCE, load_recipe(MODELS["transformer"]).model.vocab_size)


def make_jobs(options: DemoOptions) -> list[Job]:
    """The demo's runs, in an order that keeps two workers equally busy."""
    jobs = []
    for seed in range(options.seeds):
        for model, recipe in MODELS.items():
            changes = (f"train.seed={seed}", f"data.seed={seed}", f"data.path={options.folder / 'data'}")
            if options.steps is not None:
                changes += (f"train.steps={options.steps}",)
            steps = load_recipe(recipe, changes).train.steps
            assert steps is not None
            folder = options.folder / f"{model}-seed{seed}"
            jobs.append(Job(recipe=recipe, changes=changes, folder=folder, steps=steps))
    return jobs


def write_samples(options: DemoOptions) -> dict[str, str]:
    """Continue the same prompt with the first run of each model; the samples join the report.

    Returns:
        The text by model.
    """
    from widestream.generate.sampling import SamplingConfig
    from widestream.runs.sample import sample_run
    from widestream.runs.write import remove_samples

    texts = {}
    for model in MODELS:
        run = options.folder / f"{model}-seed0"
        remove_samples(run)
        sample = sample_run(run, PROMPT, SamplingConfig(max_new_tokens=80, top_p=0.95), keep=True)
        texts[model] = sample.prompt + sample.text
    return texts


def run_demo(options: DemoOptions) -> Path:
    """Do all of it, or what an interrupted demo has left to do.

    Returns:
        The report's path.
    """
    from widestream.report import print_table, write_report

    prepare_data(options.folder)
    run_jobs(make_jobs(options), options.workers or os.cpu_count() or 1)
    texts = write_samples(options)
    report = options.folder / "report.html"
    record = search_record()
    comparison = write_report([options.folder], report, search=record if record.is_file() else None, title=TITLE)
    print_table(comparison)
    for model, text in texts.items():
        print(f"\n--- {model}, after {comparison.runs[0].evals[-1].tokens:,} tokens ---\n{text}")
    print(f"\nReport: {report}")
    return report
