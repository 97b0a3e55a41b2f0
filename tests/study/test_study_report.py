"""The page of studies, made from runs alone: the paper's number, ours, interval, scale, and every run's folder."""

import json
import math
import shutil
from types import SimpleNamespace

import pytest

from study_runs import finish, write_run, write_study
from widestream.cli import main
from widestream.errors import UserError
from widestream.report.stats.fits import curvature, fit_by_seed, fit_power_law, slope, slope_of
from widestream.runs.pool import Job
from widestream.study import run
from widestream.study.archive import opened, pack_results
from widestream.study.page import studies_page
from widestream.study.page.analyses import study_section
from widestream.study.page.ladder import saved
from widestream.study.page.results import ArmResult, contrast, load_result
from widestream.study.page.sections import at_equal_tokens
from widestream.study.page.studies_page import write_studies
from widestream.study.run import StudyOptions, run_study


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Carries out a study without training and reads its result."""
    monkeypatch.setattr(run, "run_jobs", finish)

    def made(name="mine", **changes):
        path = write_study(tmp_path / f"{name}.yaml", **changes)
        return load_result(run_study(str(path), StudyOptions(folder=tmp_path / "runs", workers=1)))

    return made


PLAIN = {"recipe": "study/cpu/transformer"}
LADDER = {
    "reference": "transformer 1",
    "search": None,
    "seeds": 3,
    "analysis": {"kind": "ladder", "reference": "transformer"},
    "arms": {
        f"{family} {size}": {
            "recipe": f"study/cpu/{family}",
            "group": family,
            "set": {"model.num_layers": size, "optimizer.lr": 0.01},
        }
        for family in ("transformer", "rmt")
        for size in (1, 2, 3)
    },
}


def test_power_laws_and_slopes_are_found_again():
    law = fit_power_law({x: 3 * x**-0.1 for x in (1e3, 1e4, 1e5)})
    assert law.exponent == pytest.approx(0.1)
    assert law(1e4) == pytest.approx(3 * 1e4**-0.1)
    assert law.log_where(law(777.0)) == pytest.approx(math.log(777.0))
    assert fit_power_law({1e3: 2.0, 1e4: 2.1}).log_where(1.9) is None, "the loss rises"
    assert slope_of([(0, 1), (1, 3), (2, 5)]) == pytest.approx(2)
    assert fit_by_seed([(1e3, {(0, 0): 2.0}), (1e3, {(0, 0): 1.9})]) == {}, "one x"
    assert curvature([(x, 1 + 2 * x + 0.5 * x * x) for x in (0, 1, 3, 4)]) == pytest.approx(0.5)
    seeds = [(0, 0), (1, 1), (2, 2)]
    straight = slope([(x, {seed: 5 - 0.1 * math.log2(x) + seed[0] for seed in seeds}) for x in (4, 8, 16, 64)])
    assert straight is not None
    assert straight.per_doubling.mean == pytest.approx(-0.1)
    assert straight.bend is not None
    assert straight.bend.mean == pytest.approx(0, abs=1e-12)
    assert straight.falling
    assert slope([(4, {(0, 0): 1.0}), (8, {(1, 1): 1.0})]) is None, "no seed in common"


def test_differences_are_taken_seed_by_seed_at_equal_tokens_flops_time_and_parameters(make):
    arms = {
        "transformer": {"recipe": "study/cpu/transformer"},
        "small": {"recipe": "study/cpu/transformer", "set": {"model.num_layers": 2}},
        "rmt": {"recipe": "study/cpu/rmt", "set": {"model.num_layers": 3}},
    }
    result = make(arms=arms, seeds=3, analysis={"parameters": ["transformer", "small"]})
    one = contrast(result, "rmt", "transformer")
    assert one is not None
    assert set(one.at_equal) == {"tokens", "flops", "wall_s", "parameters"}
    assert one.at_equal["tokens"].method == "paired"
    assert one.at_equal["tokens"].n == 3
    mine, theirs, small = (result.arms[name].losses for name in ("rmt", "transformer", "small"))
    share = math.log(3 / 2) / math.log(4 / 2)
    wanted = [mine[s] - small[s] ** (1 - share) * theirs[s] ** share for s in mine]
    assert one.at_equal["parameters"].mean == pytest.approx(sum(wanted) / 3)
    other = contrast(result, "small", "transformer")
    assert other is not None
    assert "parameters" not in other.at_equal, "a size of the reference's own line has nothing to be compared with"
    assert contrast(make("bare", arms=arms), "rmt", "transformer").at_equal.get("parameters") is None


def test_sentences_come_from_the_intervals(make):
    result = make(seeds=3)
    wide = contrast(result, "rmt key_dim=16", "transformer")
    assert wide is not None
    assert at_equal_tokens(wide).startswith("rmt key_dim=16 is 0.2")
    assert "better than transformer (95" in at_equal_tokens(wide)
    same = contrast(result, "transformer", "transformer")
    assert same is not None
    assert at_equal_tokens(same).startswith("No difference seen between")
    single = make("single", seeds=1)
    alone = contrast(single, "rmt key_dim=16", "transformer")
    assert alone is not None
    assert "may be chance" in at_equal_tokens(alone)


def test_the_ladder_tells_what_is_needed_to_equal_loss(make):
    section = study_section(make("ladder", **LADDER))
    tables = {table.title: table for table in section.tables}
    assert len(tables["Rung by rung"].rows) == 3
    exponents = [float(row[tables["Power laws"].columns.index("ours")]) for row in tables["Power laws"].rows]
    assert all(0 < value < 0.2 for value in exponents)
    assert len(section.charts) == 2, "all runs have the same tokens"
    assert sum("do not overlap" in answer for answer in section.answers) == 2, "rmt is far better: not extrapolated"


def test_the_ladder_reads_off_what_both_families_were_measured_at():
    def rung(family, size, loss):
        runs = [SimpleNamespace(seeds=(seed, seed)) for seed in range(3)]
        group = SimpleNamespace(runs=runs, finals=[loss + 0.001 * seed for seed in range(3)])
        arm = ArmResult(name=f"{family} {size}", entry={"group": family, "runs": []}, group=group)
        return SimpleNamespace(losses=arm.losses, entry=arm.entry, count=lambda what: size, lost="", group=None)

    plain = [rung("transformer", size, 5 * size**-0.1) for size in (1e3, 1e4, 1e5)]
    half = [rung("rmt", size, 5 * (2 * size) ** -0.1) for size in (1e3, 1e4, 1e5)]
    told, row = saved(plain, half, "parameters")
    assert "50" in row[3]
    assert "reaches" in told
    alike, _ = saved(plain, plain, "parameters")
    assert alike.startswith("No difference seen")


def test_a_sweep_tells_slope_and_bend(make):
    analysis = {"kind": "sweep", "lines": [{"title": "D_k", "x": "stream_size", "groups": ["rmt"]}]}
    arms = {
        "transformer": {"recipe": "study/cpu/transformer"},
        "rmt": {"recipe": "study/cpu/rmt", "grid": {"model.stream.key_dim": [4, 8, 16]}},
    }
    section = study_section(make("sweep", analysis=analysis, arms=arms, seeds=3))
    assert section.answers[0].startswith("rmt: −0.0")
    assert "for every doubling of the stream" in section.answers[0]
    slopes = next(table for table in section.tables if table.title == "Slopes")
    assert slopes.rows[0][1] == "falls at every step"


def test_race_and_lead_compare_whole_curves(make):
    printed = {"tokens": 0.41, "flops": 0.58, "parameters": 0.25, "wall_s": -0.044, "loss": [3.02, 2.91]}
    arms = {"transformer": {"recipe": "study/cpu/transformer"}, "rmt": {"recipe": "study/cpu/rmt"}}
    section = study_section(make("race", analysis={"kind": "race", "printed": printed}, arms=arms, seeds=3))
    rows = {row[0]: row for row in section.tables[0].rows}
    assert rows["tokens saved"][1] == "41 %"
    assert 0 < float(rows["tokens saved"][2].split()[0]) < 100
    assert rows["held-out loss at equal tokens"][1].startswith("−0.11")
    arms |= {f"{name} long": arm | {"set": {"train.steps": 32}} for name, arm in list(arms.items())}
    pairs = [["transformer", "rmt"], ["transformer long", "rmt long"]]
    lead = study_section(make("lead", analysis={"kind": "lead", "pairs": pairs}, arms=arms, seeds=3))
    assert any("from the short runs to the long ones" in answer.lower() for answer in lead.answers)
    assert lead.tables[1].rows[-1][1] == "1"


def test_the_page_names_every_run_and_command_and_what_went_wrong(make, tmp_path):
    result = make(seeds=2)
    lost = result.folder / result.record["arms"][0]["runs"][1]["folder"] / "metrics.jsonl"
    lost.unlink()
    out = tmp_path / "studies.html"
    sections = write_studies([result.folder], out)
    html = out.read_text()
    assert [section.key for section in sections] == ["mine-cpu"]
    for arm in result.record["arms"]:
        for one in arm["runs"]:
            assert one["folder"] in html
    assert "transformer, seed 1:" in html
    assert "is missing" in html
    assert html.count("<h2>") == 1
    assert "<h1>Studies</h1>" in html
    assert "not printed" not in html
    assert "Table 7" not in html
    write_studies([result.folder], out, ["mine", "resources"])
    assert "Table 7" in out.read_text()
    with pytest.raises(UserError, match="Unknown results 'lost'"):
        write_studies([result.folder], out, ["lost"])


def test_studies_that_are_not_carried_out_yet_are_shown_as_what_they_are(make, tmp_path):
    result = make(seeds=2)
    path = result.folder / "mine.study.json"
    record = json.loads(path.read_text())
    for arm in record["arms"]:
        for one in arm["runs"]:
            one["status"] = "unfinished"
            (result.folder / one["folder"] / "done.json").unlink(missing_ok=True)
    path.write_text(json.dumps(record))
    section = study_section(load_result(path))
    assert section.answers == []
    assert sum("unfinished" in note for note in section.notes) == 6
    assert "no run is finished" in section.scale
    with pytest.raises(UserError, match="holds no results"):
        studies_page.find_sections([tmp_path / "runs"])


def diverge(result, arm, seed, step=8):
    """Leave a run as training does whose loss is not finite any more."""
    entry = result.arms[arm].entry["runs"][seed]
    folder = result.folder / entry["folder"]
    rows = [line for line in (folder / "metrics.jsonl").open() if json.loads(line)["step"] <= step]
    (folder / "metrics.jsonl").write_text("".join(rows))
    (folder / "done.json").unlink()
    (folder / f"nonfinite_step_{step + 1}.safetensors").touch()


def test_a_diverged_seed_is_a_result_and_nothing_is_claimed_from_the_others(make, tmp_path):
    result = make(seeds=3)
    diverge(result, "rmt key_dim=4", 2)
    [section] = write_studies([result.folder], tmp_path / "page.html")
    assert section.answers[0] == "rmt key_dim=4: 1 of 3 seeds diverged (seed 2 at step 9)."
    assert any(
        line.startswith("No difference between rmt key_dim=4 and transformer is claimed") for line in section.answers
    )
    assert any("(2 of 3 seeds)" in line for line in section.answers)
    assert any(line.startswith("rmt key_dim=16 is") for line in section.answers), "the others are compared as before"
    [table] = [table for table in section.tables if table.title == "Differences in held-out loss"]
    assert table.rows[0][1:3] == ("not claimed", "–")
    [(caption, _)] = section.charts
    assert "none is shown, for rmt key_dim=4" in caption
    arms = {row[0]: row for row in section.details[0].rows}
    assert arms["rmt key_dim=4"][-2:] == ("2 of 3", "seed 2 diverged")


def test_an_arm_whose_seeds_all_diverged_is_shown(make):
    result = make(seeds=2)
    for seed in range(2):
        diverge(result, "rmt key_dim=16", seed)
    section = study_section(load_result(result.folder / "mine.study.json"))
    words = "rmt key_dim=16: all 2 seeds diverged (seed 0 at step 9, seed 1 at step 9); rmt key_dim=16 has no figure."
    assert section.answers[0] == words


def test_a_size_whose_seeds_all_diverged_leaves_fits_without_a_claim(make):
    result = make("ladder", **LADDER)
    for seed in range(3):
        diverge(result, "rmt 3", seed)
    section = study_section(load_result(result.folder / "ladder.study.json"))
    assert not any("to equal loss" in line or "reaches" in line for line in section.answers)
    assert any("is read off over training FLOPs" in line and "rmt 3: all 3 seeds" in line for line in section.answers)
    [laws] = [table for table in section.tables if table.title == "Power laws"]
    assert [row[4] for row in laws.rows] == ["3", "3", "2 of 3", "2 of 3"]
    lines = {"kind": "sweep", "lines": [{"title": "L", "x": "num_layers", "groups": ["transformer", "rmt"]}]}
    result = load_result(result.folder / "ladder.study.json")
    result.record["analysis"] = lines
    swept = study_section(result)
    assert any(note.startswith("rmt: no slope is claimed (rmt 3: all 3 seeds diverged") for note in swept.notes)
    assert [row[0] for table in swept.tables if table.title == "Slopes" for row in table.rows] == ["L: transformer"]


def test_nothing_is_read_off_between_sizes_of_which_a_seed_diverged(make):
    arms = {
        "transformer": {"recipe": "study/cpu/transformer"},
        "small": {"recipe": "study/cpu/transformer", "set": {"model.num_layers": 2}},
        "rmt": {"recipe": "study/cpu/rmt", "set": {"model.num_layers": 3}},
    }
    result = make(arms=arms, seeds=3, search=None, analysis={"parameters": ["transformer", "small"]})
    diverge(result, "small", 2)
    one = contrast(load_result(result.folder / "mine.study.json"), "rmt", "transformer")
    assert one is not None
    assert set(one.at_equal) == {"tokens", "flops", "wall_s"}


def test_arms_of_different_length_say_where_they_are_compared_and_stand_apart(make):
    lengths = {"short": 8, "same": 16, "long": 64}
    arms = {"base": {"recipe": "study/cpu/transformer"}} | {
        name: {"recipe": "study/cpu/transformer", "set": {"train.steps": steps, "model.num_layers": 2 + number}}
        for number, (name, steps) in enumerate(lengths.items())
    }
    section = study_section(make(arms=arms, seeds=3, search=None, reference="base"))
    assert " than base after 16.4k tokens (95" in section.answers[0]
    assert " than base (95" in section.answers[1]
    assert " than base after 32.8k tokens (95" in section.answers[2]
    [(caption, forest)] = section.charts
    assert caption.endswith("All after 32.8k tokens; not shown: short")
    assert forest.names == ("same", "long")


def test_rungs_of_unequal_ladders_do_not_stand_side_by_side(make):
    arms = {name: arm for name, arm in LADDER["arms"].items() if name != "rmt 1"}
    section = study_section(make("ladder", **LADDER | {"arms": arms}))
    assert "Rung by rung" not in [table.title for table in section.tables]
    assert "rmt and transformer have different numbers of sizes: none stand side by side." in section.notes


def test_an_arm_of_which_one_seed_is_done_is_told_as_that(make):
    result = make(arms={"a": PLAIN, "b": PLAIN | {"set": {"model.num_layers": 2}}}, search=None, reference="a")
    shutil.rmtree(result.folder / result.arms["b"].entry["runs"][1]["folder"])
    section = study_section(load_result(result.folder / "mine.study.json"))
    assert section.answers[0].startswith("b against a: ")
    assert section.answers[0].endswith(" nats, one seed of b, which may be chance.")


def test_a_diverged_seed_leaves_fits_without_a_claim(make):
    result = make("ladder", **LADDER)
    diverge(result, "rmt 2", 1)
    section = study_section(load_result(result.folder / "ladder.study.json"))
    assert "rmt 2: 1 of 3 seeds diverged (seed 1 at step 9)." in section.answers
    assert not any("to equal loss" in line or "reaches" in line for line in section.answers)
    assert any(answer.startswith("Nothing is read off over training FLOPs") for answer in section.answers)


def test_a_damaged_record_leaves_the_other_sections_whole(make, tmp_path):
    result = make(seeds=2)
    record = json.loads((result.folder / "mine.study.json").read_text())
    misspelt = {"title": "T", "x": "num_layrs", "groups": ["rmt"]}
    damaged = {
        "a": "{",
        "b": "[1, 2]",
        "c": "null",
        "d": json.dumps(record | {"arms": [1]}),
        "e": json.dumps(record | {"analysis": {"kind": "sweep", "lines": [misspelt]}}),
        "f": json.dumps(record | {"reference": "nobody"}),
        "g": json.dumps(record | {"analysis": {"kind": "unheard of"}}),
        "h": json.dumps(record | {"analysis": None}),
        "i": json.dumps(record | {"arms": [record["arms"][0] | {"runs": None}]}),
        "j": json.dumps(record | {"arms": [record["arms"][0] | {"trials": [None]}]}),
        "k": json.dumps(record | {"arms": [record["arms"][0] | {"runs": [{"seed": 0, "folder": 3}]}]}),
    }  # fmt: skip
    for name, text in damaged.items():
        (result.folder / f"{name}.study.json").write_text(text)
    sections = write_studies([result.folder], tmp_path / "page.html")
    notes = {section.name: section.notes for section in sections if section.scale == "Not shown."}
    assert set(notes) == set(damaged)
    assert all(note.startswith("Not shown: ") for [note] in notes.values())
    assert not any("Error" in note for name in "abcdhijk" for note in notes[name]), "these are told in a sentence"
    [whole] = [section for section in sections if section.name == "mine"]
    assert whole.answers == study_section(result).answers


def test_the_page_of_a_study_in_its_search(make):
    result = make(seeds=2)
    path = result.folder / "mine.study.json"
    record = json.loads(path.read_text())
    for arm in record["arms"]:
        arm["runs"] = []
        arm["trials"][0]["status"] = "unfinished"
        arm["trials"][0]["loss"] = None
    path.write_text(json.dumps(record))
    section = study_section(load_result(path))
    assert any(note.startswith("Learning rates are being searched: ") for note in section.notes)
    [rates] = [table for table in section.details if table.title == "Learning rates"]
    assert len(rates.rows) == 3


def test_a_ladder_of_equal_tokens_and_a_sweep_of_one_size_say_so(make):
    equal = {name: arm | {"set": arm["set"] | {"train.steps": 16}} for name, arm in LADDER["arms"].items()}
    section = study_section(make("ladder", **LADDER | {"arms": equal}))
    assert "All sizes of a family have the same training tokens: there is no power law over them." in section.answers
    assert any("non-embedding parameters" in row[1] for table in section.tables for row in table.rows)
    captions = {table.title: table.caption for table in section.tables}
    assert captions["Rung by rung"].startswith("All after the same number of tokens. Difference")
    result = make(seeds=2)
    result.record["analysis"] = {"kind": "sweep", "lines": [{"title": "T", "x": "num_layers", "groups": ["rmt"]}]}
    assert "rmt: no line, for its finished runs have one num_layers only." in study_section(result).notes


def test_a_ladder_of_ones_own_has_no_word_of_the_paper_and_one_seed_may_be_chance(make):
    section = study_section(make("ladder", **LADDER | {"seeds": 1}))
    words = [*section.answers, *(table.caption for table in section.tables), *map(str, section.tables)]
    assert not any("Figure" in word or "paper" in word for word in words)
    assert all(answer.endswith("one seed, which may be chance.") for answer in section.answers if "takes" in answer)
    assert ", 1 seed. Data" in section.scale


def test_results_are_packed_without_checkpoints_and_reported_from_the_archive(make, tmp_path):
    result = make(seeds=2)
    checkpoint = result.folder / result.record["arms"][0]["runs"][0]["folder"] / "checkpoints" / "step_16"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"0" * 1000)
    archive = tmp_path / "mine.tar.xz"
    runs = pack_results(result.folder, archive)
    assert runs == len(list((result.folder / "runs").iterdir()))
    with opened(archive) as folders:
        assert not list(folders[0].rglob("*.safetensors"))
        sections = studies_page.find_sections(folders)
        again = study_section(load_result(folders[0] / "mine.study.json"))
    assert again.answers == study_section(result).answers == sections[0].answers
    (tmp_path / "kept").mkdir()
    shutil.copy(archive, tmp_path / "kept")
    (tmp_path / "kept" / "other.json").write_text('{"something": "else"}')
    with opened(tmp_path / "kept") as folders:
        assert [one.key for one in studies_page.find_sections(folders)] == ["mine-cpu"]
    with pytest.raises(UserError, match=r"must end in \.tar\.xz"):
        pack_results(result.folder, tmp_path / "mine.zip")
    with pytest.raises(UserError, match="no study"):
        pack_results(tmp_path, archive)
    archive.write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be unpacked"), opened(archive):
        pass
    with pytest.raises(UserError, match="does not exist"), opened(tmp_path / "none"):
        pass


def test_the_command_says_which_runs_do_not_count(make, tmp_path, monkeypatch, capsys):
    result = make()
    folder = result.folder / result.record["arms"][0]["runs"][0]["folder"]
    rows = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(rows.replace("{", "(", 1))
    monkeypatch.setattr(
        "sys.argv", ["widestream", "study", "report", "--runs", str(result.folder), "--out", "page.html"]
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main()
    assert "seed 0: unreadable: Line 1 of" in capsys.readouterr().out


def test_runs_made_by_hand_in_a_jobs_folder_count(tmp_path):
    job = Job(recipe="study/cpu/rmt", changes=("train.steps=4", "train.eval_every=2"), folder=tmp_path / "run", steps=4)
    write_run(job)
    assert job.done


def test_a_record_that_lacks_a_part_is_told(tmp_path):
    (tmp_path / "moments.json").write_text('{"bench": "study moments"}')
    [section] = studies_page.find_sections([tmp_path])
    assert section.notes == ["Not shown: The record moments lacks 'command'; measure again, or remove it."]
