"""The demo: the study of that name, and what is shown of it. RMT and the plain transformer, side by side."""

from pathlib import Path

from widestream.study.corpus import find_data
from widestream.study.load import load_study
from widestream.study.run import Outcome, StudyOptions, carry_out, command_line, place_folder

PROMPT = "It was a truth"


def prepare_data(options: StudyOptions) -> Path | None:
    """Train the demo's tokenizer and prepare its text; what is there already is kept.

    Returns:
        The prepared folder.
    """
    study = load_study("demo")
    return find_data(study, place_folder(study, options))


def run_demo(options: StudyOptions) -> Path:
    """Do all of it, or what an interrupted demo has left to do.

    Returns:
        The report's path.

    Raises:
        UserError: a run did not come to its end; the others did, or are gone on with at the next call.
    """
    from widestream.study.comparison import compare_runs

    study = load_study("demo", seeds=options.seeds)
    outcome = carry_out(study, options, command_line("widestream demo", options))
    for job in outcome.jobs:
        if not job.done:
            raise job.failure
    texts = _write_samples(outcome)
    comparison, report = compare_runs(outcome)
    for model, text in texts.items():
        print(f"\n--- {model}, after {comparison.groups[0].tokens:,} tokens ---\n{text}")
    print(f"\nReport: {report}")
    return report


def _write_samples(outcome: Outcome) -> dict[str, str]:
    """Continue the same prompt with the first run of each model; the samples join the report.

    Returns:
        The text by model.
    """
    from widestream.generate.sampling import SamplingConfig
    from widestream.runs.sample import remove_samples, sample_run

    texts = {}
    for arm, job in zip(outcome.study.arms, outcome.jobs, strict=False):  # the first seed of all arms comes first
        remove_samples(job.folder)
        sample = sample_run(job.folder, PROMPT, SamplingConfig(max_new_tokens=80, top_p=0.95), keep=True)
        texts[arm.name] = sample.prompt + sample.text
    return texts
