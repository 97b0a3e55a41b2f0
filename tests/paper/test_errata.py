"""Every erratum: what it computes, and that the page says it."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from widestream.cli.app import build_app
from widestream.errors import UserError
from widestream.paper.errata import errata_page, find_erratum, list_errata
from widestream.paper.moments import Moments, linear
from widestream.paper.printed import RMT_FLOPS, RMT_FLOPS_TO_LOSS, TABLE_8, TABLE_9

PAGE = Path(__file__).parents[2] / "docs" / "errata.md"
WORDS_ONLY = {15, 16}


def values(number: int) -> dict[str, float]:
    return dict(find_erratum(f"E{number}").values)


def test_all_are_there_in_order():
    errata = list_errata()
    assert [erratum.number for erratum in errata] == list(range(1, 19))
    assert {erratum.number for erratum in errata if not erratum.values} == WORDS_ONLY
    for erratum in errata:
        assert all(len(row) == len(erratum.table[0]) for row in erratum.table)


def test_the_page_is_what_the_command_writes(tmp_path):
    out = tmp_path / "errata.md"
    result = CliRunner().invoke(build_app(), ["paper", "errata", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert out.read_bytes() == PAGE.read_bytes() == errata_page().encode("utf-8")


def test_one_on_the_terminal():
    result = CliRunner().invoke(build_app(), ["paper", "errata", "e8"])
    assert "28.8 %" in result.output
    assert "## E9" not in result.output


@pytest.mark.parametrize("name", ["E0", "E19", "one", ""])
def test_unknown_names(name):
    with pytest.raises(UserError, match="E1 to E18"):
        find_erratum(name)


def test_e1_shapes():
    found = values(1)
    assert found["206M printed"] == 155_985_984
    assert found["305M printed"] == 307_185_664
    assert found["206M meant"] == 206_199_392
    assert found["305M meant"] == 304_927_744
    assert found["printed width"] == 672
    assert (found["206M printed stream / D"], found["305M printed stream / D"]) == (48, 64)
    assert found["smallest ratio"] == pytest.approx(8 / 3)
    assert [round(found[f"{row.name} norm gains"] / 1e3) for row in TABLE_9] == [13, 51, 114, 201]


def test_e2_budgets():
    found = values(2)
    for row in (*TABLE_8, *TABLE_9[:3]):
        figure, unit = row.tokens[:-1], {"M": 1e6, "B": 1e9}[row.tokens[-1]]
        digits = len(figure.partition(".")[2])
        assert f"{found[row.name] / unit:.{digits}f}" == figure
    assert found["305M"] == pytest.approx(4.03e9, rel=2e-3)


def test_e3_e4_parameter_totals():
    assert values(3)["printed"] == 253_463_552
    assert values(3)["items"] - values(3)["printed"] == values(3)["difference"]
    assert [round(values(4)[f"{row.name} Table 7"] / 1e6, 1) for row in TABLE_8] == [29.9, 123.5, 218.4, 353.5]


def test_e5_e6_flop_totals():
    found = values(5)
    assert found["items"] - found["printed"] == found["keys"] + found["vocabulary"]
    assert (round(values(6)["found"] / 1e6, 2), round(values(6)["printed"] / 1e6, 1)) == (1.05, 102.9)


def test_e7_vocabulary():
    found = {name: round(100 * part, 1) for name, part in values(7).items()}
    assert found == {"512 VD": 94.1, "512 V": 92.2, "1024 VD": 88.8, "1024 V": 85.5}


def test_e8_reported_flops():
    found = values(8)
    assert found["RMT"] == pytest.approx(RMT_FLOPS, rel=1e-3)
    assert found["RMT to loss"] == pytest.approx(RMT_FLOPS_TO_LOSS, rel=1e-3)
    assert found["transformer, Table 7"] == pytest.approx(1.187e19, rel=1e-3)
    assert found["transformer, logits"] == pytest.approx(1.373e19, rel=1e-3)
    assert found["transformer, V D"] == pytest.approx(1.56e19, rel=1e-3)
    printed = {
        "paper: no vocabulary, keys 6 + 8L": ("28.8", "58"),
        "no vocabulary, keys 6 + 12L": ("27.8", "57.6"),
        "with logits": ("24.0", "55.3"),
        "with 4V, as Table 7": ("21.2", "53.7"),
    }
    for name, (equal, to_loss) in printed.items():
        for what, figure in (("equal tokens", equal), ("to loss", to_loss)):
            digits = len(figure.partition(".")[2])
            assert f"{100 * found[f'{name}: {what}']:.{digits}f}" == figure


def test_e9_less_than_one_percent():
    found = values(9)
    assert all(found[f"parameters, {form}, {start}"] < 0.0013 for form in ("printed", "actual") for start in (16, 64))
    assert found["FLOPs, printed, 32"] < 0.01 < found["FLOPs, items of A.2, 32"]
    assert 64 <= found["FLOPs, printed, widest"] < 128
    assert 32 <= found["FLOPs, items of A.2, widest"] < 64
    assert 100 * found["FLOPs, actual, no logits, sweep"] == pytest.approx(5.0, abs=0.06)
    assert found["sweep pair, actual"] == pytest.approx(found["sweep pair, printed"], abs=0.002)


def test_e10_variance():
    assert linear(3, 5, "xavier") == Moments(0.75, 1.25)
    found = values(10)
    matching = {
        "transformer, attention storage": (1, 1),
        "transformer, attention retrieval": (0.5, 1.5),
        "transformer, FF storage": (1.6, 0.4),
        "transformer, FF retrieval": (0.4, 1.6),
        "RMT, attention storage": (0.4, 1.6),
        "RMT, attention retrieval, q k v as one": (1.14, 0.86),
        "RMT, FF storage": (0.4, 1.6),
        "RMT, FF retrieval": (1.6, 0.4),
        "RMT, FF, if D_k were R": (1, 1),
        "into the MLP": (0.64, 0.64),
        "out of the MLP": (0.64, 0.64),
    }
    for name, (forward, backward) in matching.items():
        assert found[f"{name}, forward"] == pytest.approx(forward, abs=0.005)
        assert found[f"{name}, backward"] == pytest.approx(backward, abs=0.005)


def test_the_others():
    assert 100 * values(11)["longer"] == pytest.approx(77.4, abs=0.05)
    assert 100 * values(11)["shorter"] == pytest.approx(43.6, abs=0.05)
    assert values(11)["by step"] == pytest.approx(values(11)["longer"], abs=0.01)
    assert values(12)["tokens"] == 163_840_000
    assert {round(size / 1e6) for size in values(13).values()} == {134}
    assert {name for name, out in values(14).items() if out} == {"alpha_in outside", "alpha_out outside"}
    assert list(values(17).values()) == [6, 12, 24, 32, 48, 64]
    assert values(18)["with"] == 190_834_176
    assert [round(values(18)[name] / 1e6) for name in ("with", "without", "without, biases")] == [191, 190, 190]
