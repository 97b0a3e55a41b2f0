"""`widestream runs`: what lies on the disk is listed, tagged and removed; nothing else is touched."""

import json
import shutil

import pytest
from filelock import lock_descriptor
from typer.testing import CliRunner

from widestream.cli.app import build_app
from widestream.errors import UserError
from widestream.runs.shelf import change_tags, disk_bytes, find_below, list_runs, read_tags, remove_runs


def run(*arguments, code=0, **how):
    done = CliRunner().invoke(build_app(), ["runs", *map(str, arguments)], **how)
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


@pytest.fixture(name="shelf")
def _shelf(demo, tmp_path):
    """A copy of the demo's runs, one of them with checkpoints."""
    shutil.copytree(demo, tmp_path / "runs")
    first = find_below([tmp_path / "runs"])[0]
    for step in (2, 4, 10):
        (first / "checkpoints" / f"step_{step:08}").mkdir(parents=True)
        (first / "checkpoints" / f"step_{step:08}" / "model.safetensors").write_bytes(b"x" * 1000 * step)
    return tmp_path / "runs"


def test_a_list_has_every_run_at_any_depth_with_what_it_takes(shelf):
    rows = list_runs([shelf])
    assert len(rows) == 4
    assert {row.state for row in rows} == {"done"}
    assert all(row.loss and row.steps for row in rows)
    first = rows[0]
    assert first.checkpoints == 3
    assert first.bytes == sum(path.stat().st_size for path in find_below([shelf])[0].rglob("*") if path.is_file())
    assert json.loads(run("list", shelf, "--json"))[0]["folder"] == first.folder
    text = run("list", shelf, env={"COLUMNS": "200"})
    assert "4 runs" in text
    assert first.folder in text


def test_a_list_can_be_of_some(shelf):
    rows = list_runs([shelf])
    name = rows[0].name
    some = list_runs([shelf], only=[name])
    assert 0 < len(some) < len(rows)
    assert {row.name for row in some} == {name}
    seed = list_runs([shelf], only=["train.seed=1"])
    assert 0 < len(seed) < len(rows)
    assert list_runs([shelf], only=["nothing-*"]) == []
    assert "No run is like that" in run("list", shelf, "--only", "nothing-*")


def test_one_that_cannot_be_read_is_listed_with_what_is_wrong(shelf):
    broken = find_below([shelf])[1]
    (broken / "run.json").write_text("{")
    row = next(row for row in list_runs([shelf]) if row.folder == str(broken))
    assert row.state == "unreadable"
    assert "run.json" in row.why
    assert row.bytes > 0
    assert "run.json" in run("list", shelf)


def test_tags_are_kept_sorted_and_select(shelf):
    first, second, *_ = find_below([shelf])
    assert change_tags(first, ["paper", "best-2"]) == ("best-2", "paper")
    assert "best-2 paper new" in run("tag", first, "new").replace("best-2 new paper", "best-2 paper new")
    assert run("tag", second).strip() == "no tags"
    assert [row.folder for row in list_runs([shelf], tags=["paper", "new"])] == [str(first)]
    run("tag", first, "--remove", "new")
    assert read_tags(first) == ("best-2", "paper")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"add": ["two words"]}, "letters, digits"),
        ({"add": ["a/../b"]}, "letters, digits"),
        ({"remove": ["never"]}, "has no tag never"),
    ],
)
def test_a_wrong_tag_changes_nothing(shelf, change, message):
    first = find_below([shelf])[0]
    change_tags(first, ["kept"])
    with pytest.raises(UserError, match=message):
        change_tags(first, **change)
    assert read_tags(first) == ("kept",)


@pytest.mark.parametrize("text", ["{}", '["a", 3]', '["two words"]', "nothing"])
def test_damaged_tags_are_said_to_be(shelf, text):
    first = find_below([shelf])[0]
    (first / "tags.json").write_text(text)
    with pytest.raises(UserError, match=r"tags\.json"):
        read_tags(first)
    assert list_runs([first])[0].state == "unreadable"


def test_removing_takes_the_run_and_what_lies_beside_it(shelf):
    first, second, *_ = find_below([shelf])
    beside = first.with_name(f"{first.name}.log")
    beside.write_text("words")
    size = disk_bytes(first) + 5
    assert remove_runs([first]) == size
    assert not first.exists()
    assert not beside.exists()
    assert second in find_below([shelf])


def test_removing_checkpoints_leaves_the_newest(shelf):
    first = find_below([shelf])[0]
    assert remove_runs([first], checkpoints=True) == 6000
    assert [path.name for path in (first / "checkpoints").iterdir()] == ["step_00000010"]
    assert list_runs([first])[0].state == "done"


def test_of_a_checkpoint_on_another_disk_the_link_is_removed(shelf, tmp_path):
    first = find_below([shelf])[0]
    link = first / "checkpoints" / "step_00000002"
    link.rename(tmp_path / "moved")
    link.symlink_to(tmp_path / "moved")
    freed = 4000 + link.lstat().st_size
    assert remove_runs([first], checkpoints=True) == freed
    assert [path.name for path in (first / "checkpoints").iterdir()] == ["step_00000010"]
    assert (tmp_path / "moved" / "model.safetensors").is_file()


def test_a_run_that_trains_stays_and_so_do_the_others(shelf):
    first, second, *_ = find_below([shelf])
    with (second / "metrics.jsonl").open("ab") as file:
        assert lock_descriptor(file.fileno(), blocking=False)
        with pytest.raises(UserError, match="Another process"):
            remove_runs([first, second])
    assert first.exists()
    assert second.exists()


def test_only_runs_are_removed_and_not_without_asking(shelf, tmp_path):
    first = find_below([shelf])[0]
    for wrong in (shelf, tmp_path / "none"):
        with pytest.raises(UserError, match="no run folder"):
            remove_runs([first, wrong])
    (shelf / "link").symlink_to(first)
    with pytest.raises(UserError, match="of its own"):
        remove_runs([shelf / "link"])
    done = CliRunner().invoke(build_app(), ["runs", "remove", str(first)])
    assert isinstance(done.exception, UserError)
    assert "--yes" in str(done.exception)
    assert first.exists()
    assert "MB freed" in run("remove", first, "--yes")
    assert not first.exists()


def test_completion_can_be_installed():
    done = CliRunner().invoke(build_app(), ["--help"])
    assert "--install-completion" in done.output


def test_a_run_that_a_command_made_says_so(tmp_path):
    from widestream.model.build import build_model
    from widestream.recipe import load_recipe
    from widestream.runs.made import Made, write_made

    config = load_recipe("demo/transformer", ["model.num_layers=1", "model.num_heads=2", "model.head_dim=4"])
    made = Made(by="widen", source="elsewhere", sha256="0" * 64, settings={})
    write_made(tmp_path / "wide", config, build_model(config.model), None, made)
    (row,) = list_runs([tmp_path])
    assert (row.state, row.steps, row.loss, row.why) == ("made by widen", 0, None, None)


def test_what_is_half_removed_is_no_run(shelf, monkeypatch):
    first, *others = find_below([shelf])
    monkeypatch.setattr(shutil, "rmtree", lambda path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        remove_runs([first])
    assert find_below([shelf]) == others
