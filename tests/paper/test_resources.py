"""The closed forms against the models themselves, against the paper's sizes, and against themselves at odd shapes."""

import dataclasses
import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from models import tiny
from widestream.model.costs import summarize
from widestream.paper.figure_1 import STREAM_SIZES, costs, figure_1, models, resources_record, write_chart
from widestream.paper.printed import GPT2_MEDIUM, RMT_MEDIUM, RMT_SMALL, TABLE_8, TABLE_9
from widestream.paper.resources import RMT, Transformer, checkpoint_balance, growth, widest_doubling
from widestream.recipe import load_recipe
from widestream.recipe.model import ModelConfig

ASSETS = [Path(__file__).parents[2] / "docs" / "assets" / f"figure-1-{theme}.svg" for theme in ("light", "dark")]
ODD = RMT(L=3, D_k=5, D_v=8, R=4, F=24, V=50, N=7)
ODD_PLAIN = Transformer(L=3, D=20, H=4, D_h=8, F=24, V=50, N=7)


def closed_form(config: ModelConfig) -> Transformer | RMT:
    sizes = {"L": config.num_layers, "F": config.mlp_dim, "V": config.vocab_size, "N": config.context}
    if config.stream.kind == "vector":
        return Transformer(D=config.embed_dim, H=config.num_heads, D_h=config.head_dim, **sizes)
    return RMT(D_k=config.stream.key_dim, D_v=config.head_dim, R=config.num_heads, **sizes)


def same_costs(model: Transformer | RMT, config: ModelConfig) -> None:
    found = summarize(config)
    assert model.parameters == found.parts
    assert model.total_parameters == found.total_parameters
    assert model.flops == found.flops
    assert model.forward_flops == found.forward_flops
    assert model.stream_size == found.stream_size
    assert model.saved_states == found.stream_bytes["saved"]
    assert model.saved_writes == found.stream_bytes.get("saved as writes")


@pytest.mark.parametrize("row", [*TABLE_8, *TABLE_9], ids=lambda row: row.name)
def test_the_recipes_of_the_paper_have_the_shapes_of_its_tables(row):
    kind = "rmt" if isinstance(row.model, RMT) else "transformer"
    assert closed_form(load_recipe(f"paper/{kind}-{row.name.lower()}").model) == row.model
    printed = float(row.name.removesuffix("M"))
    assert abs(row.model.counted_parameters / 1e6 - printed) < 0.02 * printed


@pytest.mark.parametrize("name", ["transformer-49m", "rmt-46m"])
def test_closed_forms_are_what_the_models_of_the_paper_have(name):
    config = load_recipe(f"paper/{name}").model
    same_costs(closed_form(config), config)


@pytest.mark.parametrize(
    "config",
    [
        tiny("vector", positions="learned"),
        tiny("vector", positions="learned", width=20, num_layers=3, head_dim=6),
        tiny("matrix", positions="learned"),
        tiny({"kind": "matrix", "key_dim": 9}, positions="learned", num_layers=1, num_heads=3, mlp_dim=17, context=5),
    ],
    ids=["vector", "vector, D is not H D_h", "matrix", "matrix, odd"],
)
def test_closed_forms_at_other_shapes(config):
    same_costs(closed_form(config), config)


def test_counts_to_the_unit():
    exact = [49_410_816, 162_522_624, 263_927_552, 405_440_512, 45_886_848, 134_239_872, 206_199_392, 304_927_744]
    assert [row.model.counted_parameters for row in (*TABLE_8, *TABLE_9)] == exact


@pytest.mark.parametrize("model", [RMT_MEDIUM, RMT_SMALL, ODD])
def test_items_of_the_appendix(model):
    R, D_k, D_v, L, V, N, F = model.R, model.D_k, model.D_v, model.L, model.V, model.N, model.F
    items = sum(model.parameter_items.values())
    assert items == R * (D_k * (6 * L + 3) + D_v * (2 * L * F + 2 * V + N)) == model.counted_parameters
    assert items - model.printed_parameters == R * D_k + V * R * D_v
    # Items count softmax, and words and positions as products with the vocabulary.
    flops = sum(model.flop_items.values())
    assert flops == model.paper_flops(3)
    assert flops - model.forward_flops == 3 * L * N * R + 4 * V * R * D_v
    table_7 = 6 * R * D_k * D_v * (1 + L) + R * (4 * V * D_v + L * (4 * N * D_v + 3 * N + 4 * D_v * F))
    assert model.printed_flops == table_7


@pytest.mark.parametrize("model", [GPT2_MEDIUM, ODD_PLAIN])
def test_table_7_of_the_transformer(model):
    L, D, V, N, H, D_h, F = model.L, model.D, model.V, model.N, model.H, model.D_h, model.F
    assert model.printed_flops == 4 * (V + L * D * (2 * D_h * H + F) + L * (N * D_h * H + Fraction(3, 4) * N * H))
    assert model.paper_flops(1) - model.forward_flops == 3 * L * N * H
    assert model.counted_parameters - model.printed_parameters == D * (V + N)


@pytest.mark.parametrize(("start", "keys_and_4v", "printed"), [(16, 0.73, 0.37), (32, 1.44, 0.74), (64, 2.84, 1.47)])
def test_a_stream_twice_as_large(start, keys_and_4v, printed):
    model = dataclasses.replace(RMT_MEDIUM, D_k=start)
    assert 100 * growth(lambda m: m.paper_flops(2), model, 2 * start) == pytest.approx(keys_and_4v, abs=0.006)
    assert 100 * growth(lambda m: m.printed_flops, model, 2 * start) == pytest.approx(printed, abs=0.006)


@pytest.mark.parametrize("model", [RMT_MEDIUM, RMT_SMALL])
@pytest.mark.parametrize("count", [lambda m: m.forward_flops, lambda m: m.printed_flops, lambda m: m.total_parameters])
def test_the_widest_doubling_is_the_widest(model, count):
    widest = widest_doubling(count, model)
    half = widest // 2
    assert widest % 2 == 0
    assert growth(count, dataclasses.replace(model, D_k=half), widest) < 0.01
    assert growth(count, dataclasses.replace(model, D_k=half + 1), widest + 2) >= 0.01


def test_the_widest_doubling_is_strictly_less():
    # 99 + D_k: from 1 to 2 is exactly one percent more, and so not less.
    assert widest_doubling(lambda m: 99 + m.D_k, RMT_MEDIUM) == 0
    assert widest_doubling(lambda m: 100 + m.D_k, RMT_MEDIUM) == 2


def test_memory():
    assert GPT2_MEDIUM.cache_bytes() == RMT_MEDIUM.cache_bytes() == 24 * 2 * 1024 * 2
    assert RMT_MEDIUM.saved_writes == dataclasses.replace(RMT_MEDIUM, D_k=512).saved_writes
    assert GPT2_MEDIUM.training_bytes == 16 * (405_440_512 + 49 * 1024)
    extra = 2 * (GPT2_MEDIUM.total_parameters - RMT_MEDIUM.total_parameters) - 2 * (4096 - 1024)
    assert GPT2_MEDIUM.decoding_bytes(512) - RMT_MEDIUM.decoding_bytes(512) == extra
    tokens = checkpoint_balance(GPT2_MEDIUM, RMT_MEDIUM)
    totals = [m.training_bytes + tokens * m.checkpoint_bytes() for m in (GPT2_MEDIUM, RMT_MEDIUM)]
    assert totals[0] == pytest.approx(totals[1], rel=1e-12)


def test_figure_1_shows_what_the_paper_says():
    for curves in figure_1().values():
        for points in curves.values():
            assert [x for x, _ in points] == list(STREAM_SIZES)
        by_name = {name: dict(points) for name, points in curves.items()}
        assert by_name["transformer"][8192] / by_name["transformer"][4096] > 1.9
        assert by_name["RMT"][8192] / by_name["RMT"][512] < 1.07
    assert models(4096)[1] == RMT_MEDIUM


def test_the_chart_and_the_record(tmp_path):
    for path, shown in zip(write_chart(tmp_path / "figure-1"), ASSETS, strict=True):
        text = path.read_text(encoding="utf-8")
        assert text == shown.read_text(encoding="utf-8")  # widestream paper resources --chart docs/assets/figure-1
        assert text.count('stroke-width="2.5"') == 4
        assert "NaN" not in text
    record = json.loads(json.dumps(resources_record()))
    assert record["models"]["rmt-305M"]["parameters"]["itemised"] == 304_927_744
    assert record["models"]["transformer-49M"]["flops_per_token"]["actual"] == 64_549_632
    assert costs(GPT2_MEDIUM)["training_bytes"]["stream_writes_per_token"] is None


def test_arithmetic_needs_no_torch(tmp_path):
    code = (
        "import sys; from widestream.cli import main\n"
        f"sys.argv = ['widestream', 'paper', 'resources', '--chart', {str(tmp_path / 'f')!r}]\n"
        "try: main()\nexcept SystemExit: pass\nprint('MODULES', *sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "305,128,448" in result.stdout  # the 305M RMT with its norm gains
    assert {"torch", "numpy"}.isdisjoint(result.stdout.partition("MODULES")[2].split())
    assert (tmp_path / "f-dark.svg").exists()
