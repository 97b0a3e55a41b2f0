import pytest

from widestream.report import formats


@pytest.mark.parametrize(
    ("value", "loss", "signed"),
    [
        (1e300, "1.00×10³⁰⁰", "+1.00×10³⁰⁰"),
        (-2.5e7, "−2.50×10⁷", "−2.50×10⁷"),
        (813.47, "813.470", "+813.470"),
        (0.0, "0.000", "0.0000"),
    ],
)
def test_losses_of_runs_that_explode_are_no_rows_of_digits(value, loss, signed):
    assert (formats.loss(value), formats.signed(value)) == (loss, signed)
