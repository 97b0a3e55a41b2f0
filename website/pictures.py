"""Pictures of a matrix stream: `python website/pictures.py` writes them to docs/assets, light and dark.

What stands in the cells is computed, by the equations of the paper (arXiv 2506.22696, section 2.2), for one token with
two data vectors: X = sum_h w^(h) (x) y^(h), then r . norm(X) with r = w^(1).
"""

from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np

ASSETS = Path(__file__).resolve().parent.parent / "docs" / "assets"
CELL = 20
THEMES = {
    "light": {"ink": "#1f2328", "line": "#8b949e", "more": "#2f6fb3", "less": "#c8693a", "soft": "#eef1f5"},
    "dark": {"ink": "#e6edf3", "line": "#7d8590", "more": "#6cb0f5", "less": "#f0955c", "soft": "#262c36"},
}
KEY_DIM, VALUE_DIM = 8, 5


@dataclass(frozen=True)
class Example:
    """The numbers of the pictures: D_k = 8, D_v = 5, R = 2."""

    keys: np.ndarray
    """w [R, D_k], of length 1 and nearly orthogonal."""
    data: np.ndarray
    """y [R, D_v]."""
    state: np.ndarray
    """X [D_k, D_v]."""
    normed: np.ndarray
    """norm(X): LayerNorm over all cells together."""
    read: np.ndarray
    """r . norm(X) [D_v] with r = w^(1)."""


def example() -> Example:
    """Always the same numbers."""
    random = np.random.default_rng(7)
    keys, data = random.normal(size=(2, KEY_DIM)), random.normal(size=(2, VALUE_DIM))
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    state = np.einsum("hk,hv->kv", keys, data)
    normed = (state - state.mean()) / np.sqrt(state.var() + 1e-6)
    return Example(keys, data, state, normed, keys[0] @ normed)


class Drawing:
    """An SVG picture in one theme's colours; places are in pixels from the upper left corner."""

    def __init__(self, theme: str, width: int, height: int, title: str):
        self.colours = THEMES[theme]
        self.size, self.title = (width, height), title
        self.parts: list[str] = []

    def cells(self, x: float, y: float, values: np.ndarray) -> None:
        """A matrix [rows, columns]: blue above zero, orange below, the stronger the farther from it."""
        largest = np.abs(values).max()
        for row, of_row in enumerate(values):
            for column, value in enumerate(of_row):
                fill = self.colours["more" if value > 0 else "less"]
                self.parts.append(
                    f'<rect x="{x + column * CELL}" y="{y + row * CELL}" width="{CELL}" height="{CELL}" '
                    f'fill="{fill}" fill-opacity="{abs(value) / largest:.2f}" stroke="{self.colours["line"]}"/>'
                )

    def box(self, x: float, y: float, width: float, height: float, text: str = "") -> None:
        """A frame with words in its middle, a line each."""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="4" fill="{self.colours["soft"]}" '
            f'stroke="{self.colours["line"]}"/>'
        )
        lines = text.split("\n")
        for number, line in enumerate(lines):
            self.words(x + width / 2, y + height / 2 + 5 + 17 * (number - (len(lines) - 1) / 2), line)

    def words(self, x: float, y: float, text: str, size: int = 13, anchor: str = "middle") -> None:
        """One line; `anchor` is start, middle or end."""
        self.parts.append(
            f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="{self.colours["ink"]}">'
            f"{escape(text)}</text>"
        )

    def arrow(self, *points: tuple[float, float]) -> None:
        """A line through points, with a head at the last."""
        path = " ".join(f"{x},{y}" for x, y in points)
        ink = self.colours["ink"]
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{ink}" marker-end="url(#head)"/>')

    def svg(self) -> str:
        """The file."""
        width, height = self.size
        head = (
            '<marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
            f'<path d="M0 0L8 4L0 8z" fill="{self.colours["ink"]}"/></marker>'
        )
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'font-family="system-ui, sans-serif" role="img"><title>{escape(self.title)}</title><defs>{head}</defs>\n'
            + "\n".join(self.parts)
            + "\n</svg>\n"
        )


def write_picture(theme: str) -> Drawing:
    """Two outer products and their sum."""
    made = example()
    drawing = Drawing(theme, 640, 250, "Two data vectors are stored under two keys")
    tall, wide = KEY_DIM * CELL, VALUE_DIM * CELL
    for head, x in enumerate((50, 270)):
        key, value = made.keys[head], made.data[head]
        name = f"⁽{'¹²'[head]}⁾"
        drawing.cells(x, 60, key[:, None])
        drawing.cells(x + 30, 30, value[None, :])
        drawing.cells(x + 30, 60, np.outer(key, value))
        drawing.words(x - 8, 60 + tall / 2, f"w{name}", anchor="end")
        drawing.words(x + 30 + wide / 2, 22, f"y{name}")
        drawing.words(x + 30 + wide / 2, 60 + tall + 20, f"w{name} ⊗ y{name}")
    drawing.words(215, 60 + tall / 2, "+", 20)
    drawing.words(435, 60 + tall / 2, "=", 20)
    drawing.cells(470, 60, made.state)
    drawing.words(470 + wide / 2, 60 + tall + 20, "X, the state")
    drawing.words(470 + wide / 2, 50, "D_v columns")
    drawing.words(470 + wide + 8, 60 + tall / 2, "D_k rows", anchor="start")
    return drawing


def read_picture(theme: str) -> Drawing:
    """A key, the normed state, and what comes of them beside what had been stored."""
    made = example()
    drawing = Drawing(theme, 640, 250, "One of the two data vectors is read with its key")
    tall, wide = KEY_DIM * CELL, VALUE_DIM * CELL
    drawing.cells(60, 40, made.state)
    drawing.words(60 + wide / 2, 30, "X")
    drawing.arrow((60 + wide + 10, 40 + tall / 2), (235, 40 + tall / 2))
    drawing.words(200, 32 + tall / 2, "norm")
    drawing.cells(260, 40, made.keys[0][:, None])
    drawing.words(260 + CELL / 2, 30, "r = w⁽¹⁾")
    drawing.cells(300, 40, made.normed)
    drawing.words(300 + wide / 2, 30, "norm(X)")
    drawing.arrow((300 + wide + 10, 40 + tall / 2), (455, 40 + tall / 2))
    drawing.words(428, 32 + tall / 2, "r · ")
    drawing.cells(475, 90, made.read[None, :])
    drawing.words(475 + wide / 2, 80, "read: r · norm(X)")
    drawing.cells(475, 160, made.data[0][None, :])
    drawing.words(475 + wide / 2, 150, "had been stored: y⁽¹⁾")
    return drawing


def layer_picture(theme: str) -> Drawing:
    """One layer of both models: what stands between stream and blocks."""
    drawing = Drawing(theme, 640, 400, "A layer of a transformer and a layer of a Residual Matrix Transformer")
    models = (
        ("Transformer: D numbers a token", 20, ("norm", "norm"), ("W_Q W_K W_V", "W_1"), ("W_O", "W_2"), "add"),
        ("RMT: D_k × D_v numbers a token", 340, ("norm", "norm"), ("keys r_Q r_K r_V", "keys r_FF, W_1"),
         ("keys w_O", "W_2, keys w_FF"), "store"),
    )  # fmt: skip
    for title, x, norms, ways_in, ways_out, verb in models:
        drawing.words(x + 130, 20, title, 14)
        drawing.arrow((x + 20, 35), (x + 20, 390))
        drawing.words(x + 12, 50, "X", anchor="end")
        for block, y in enumerate((50, 225)):
            drawing.arrow((x + 20, y), (x + 50, y), (x + 50, y + 12), (x + 70, y + 12))
            drawing.box(x + 70, y, 55, 26, norms[block])
            drawing.arrow((x + 125, y + 13), (x + 140, y + 13))
            drawing.box(x + 140, y, 130, 26, ways_in[block])
            drawing.arrow((x + 205, y + 26), (x + 205, y + 46))
            drawing.box(x + 140, y + 46, 130, 40, ("attention,\nhead by head", "GELU")[block])
            drawing.arrow((x + 205, y + 86), (x + 205, y + 106))
            drawing.box(x + 140, y + 106, 130, 26, ways_out[block])
            drawing.arrow((x + 140, y + 119), (x + 22, y + 119))
            drawing.words(x + 80, y + 113, verb)
    return drawing


def wider_picture(theme: str) -> Drawing:
    """The same RMT with twice the key axis: which parts have grown."""
    drawing = Drawing(theme, 640, 270, "Twice as many rows: state and keys grow, the matrices of the blocks do not")
    for x, rows, title in ((40, 4, "D_k = 4"), (350, 8, "D_k = 8")):
        drawing.words(x + 100, 20, title, 14)
        for number in range(2):
            drawing.box(x + 24 * number, 40, CELL, rows * CELL)
        drawing.words(x + 22, 40 + rows * CELL + 18, "keys")
        drawing.box(x + 70, 40, VALUE_DIM * CELL, rows * CELL, "state X")
        drawing.box(x + 185, 40, 80, 80, "W_1, W_2")
        drawing.words(x + 70 + VALUE_DIM * CELL / 2, 40 + rows * CELL + 18, "D_k × D_v")
    drawing.words(320, 255, "W_1 and W_2 take R data vectors of D_v numbers each, whatever D_k is")
    return drawing


PICTURES = {"write": write_picture, "read": read_picture, "layer": layer_picture, "wider": wider_picture}


def files() -> dict[Path, str]:
    """Every picture's file and what is in it."""
    return {
        ASSETS / f"matrix-{name}-{theme}.svg": draw(theme).svg() for name, draw in PICTURES.items() for theme in THEMES
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
