"""Numbers and lists as people read them."""

import math
import re
import sys
from collections.abc import Sequence
from statistics import fmean

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_UNSEEN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_SIGNS = {chr(code): chr(0x2400 + code) for code in range(32)} | {"\x7f": "\N{SYMBOL FOR DELETE}"}


def count(value: float) -> str:
    """Three digits and a unit: 1640000 -> 1.64M."""
    for size, unit in _UNITS:
        if abs(value) >= 0.9995 * size:
            return f"{three(value / size)}{unit}"
    return three(value)


def three(value: float) -> str:
    """Three significant digits, never in exponent form, no needless zeros behind the point for whole numbers."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    digits = max(0, 2 - math.floor(math.log10(abs(value) * 1.0005)))
    text = f"{value:.{digits}f}"
    return text.rstrip("0").rstrip(".") if float(text) == int(float(text)) and "." in text else text


def flops(value: float) -> str:
    """Scientific form: 4.97e18 -> 4.97×10¹⁸."""
    if value == 0:
        return "0"
    exponent = math.floor(math.log10(abs(value)))
    mantissa = f"{value / 10**exponent:.2f}"
    if mantissa == "10.00":
        mantissa, exponent = "1.00", exponent + 1
    return f"{mantissa}×{power(10.0**exponent)}"


def power(value: float) -> str:
    """A power of ten: 1e18 -> 10¹⁸."""
    return f"10{str(round(math.log10(value))).translate(_SUPERSCRIPT)}"


def duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 2 h 05 min, 3 d 4 h."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


AMOUNTS = {"tokens": count, "flops": flops, "wall_s": duration}
"""How amounts of a resource are written."""


LONG = 1e6
"""From here on a loss is written as a power of ten: that of a run which explodes may have hundreds of digits."""


def loss(value: float) -> str:
    """Three decimals; scientific form where that is a long number."""
    return (f"{value:.3f}" if abs(value) < LONG else flops(value)).replace("-", "−")


def perplexity(loss: float) -> str:
    """exp(loss): two decimals, a power of ten where that is a long number, inf beyond a float."""
    if loss > math.log(sys.float_info.max):
        return "inf"
    value = math.exp(loss)
    return f"{value:.2f}" if value < LONG else flops(value)


def spread(values: Sequence[float]) -> str:
    """Mean of losses, and the lowest and highest where there are several."""
    mean = loss(fmean(values))
    return mean if len(values) == 1 else f"{mean} ({loss(min(values))}–{loss(max(values))})"


def signed(value: float) -> str:
    """Three decimals with a sign, four for differences under 0.01, scientific form for long numbers."""
    if abs(value) >= LONG:
        return f"{'+' if value > 0 else ''}{flops(value)}".replace("-", "−")
    text = f"{value:+.{4 if abs(value) < 0.01 else 3}f}".replace("-", "−")
    return text.replace("−", "").replace("+", "") if float(f"{value:.4f}") == 0 else text


def size(value: float) -> str:
    """A difference without its sign."""
    return signed(abs(value)).lstrip("+")


def interval(low: float | None, high: float | None) -> str:
    """Both ends of an interval, or a dash."""
    return "–" if low is None or high is None else f"{signed(low)} to {signed(high)}"


def p_value(p: float | None) -> str:
    """A p-value in two digits, or a dash: 0.013."""
    return "–" if p is None else "below 0.001" if p < 0.001 else f"{p:.2g}"


def percent(ratio: float) -> str:
    """A ratio as a percentage: 0.712 -> 71 %, 1.8 -> 180 %."""
    return f"{100 * ratio:.{0 if ratio >= 0.1 else 1}f}\N{NO-BREAK SPACE}%"


def memory(value: float) -> str:
    """Bytes in MiB or GiB."""
    return f"{value / 2**30:.2f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"


def listing(items: list[str]) -> str:
    """a, b and c."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def visible(words: str) -> str:
    """Words with signs in place of characters that pages and terminals swallow or obey; samples may hold any."""
    if words.isprintable():  # nearly all are, and this is the fast way to know
        return words
    return _UNSEEN.sub(lambda match: _SIGNS.get(match[0], "\N{REPLACEMENT CHARACTER}"), words)
