"""Writers and readers made by hand that a model does not have: a sentence, wherever they are used."""

import pytest
import torch

from lens_passes import seen_of
from widestream.errors import UserError
from widestream.lens import Reader, Writer, attribute, cut, edit, flow, patch, silence

PLACES = [
    ("matrix", Writer(1, "attention", 0, 9)),
    ("matrix", Writer(2, "mlp", 0, 9)),
    ("matrix", Writer(2, "mlp", 0, -1)),
    ("vector", Writer(1, "attention", 0, 9)),
    ("vector", Writer(2, "mlp", 0, 0)),
]


@pytest.mark.parametrize(("kind", "place"), PLACES, ids=str)
def test_a_vector_that_a_writer_does_not_have(kind, place):
    seen = seen_of(kind)
    with pytest.raises(UserError, match=rf"There is no writer {place.name} at site {place.site}"):
        flow(seen, writers=[place])
    with pytest.raises(UserError, match=rf"There is no writer {place.name}"):
        attribute(seen, 3, writers=[place])
    for one in (silence(place), cut(place, seen.readers()[-1])):
        with torch.no_grad(), edit(seen.model, one), pytest.raises(UserError, match=rf"There is no {place.name} in"):
            seen.model(seen.tokens)
    with pytest.raises(UserError, match=rf"There is no {place.name} in this model: there is (one|vectors 0 to)"):
        patch(place, seen)


@pytest.mark.parametrize(
    ("kind", "place"), [("matrix", Reader(0, "attention", 0, "q", 9)), ("vector", Reader(1, "mlp", 0, "x", 0))]
)
def test_a_vector_that_a_reader_does_not_have(kind, place):
    seen = seen_of(kind)
    with pytest.raises(UserError, match=f"There is no reader {place.name}"):
        flow(seen, readers=[place])
    with pytest.raises(UserError, match=rf"There is no {place.name} in"):
        patch(place, seen)
    with (
        torch.no_grad(),
        edit(seen.model, cut(seen.writers()[0], place)),
        pytest.raises(UserError, match=rf"There is no {place.name} in"),
    ):
        seen.model(seen.tokens)


def test_a_site_or_a_block_that_is_not_there():
    seen = seen_of("vector")
    for place in (Writer(99, "mlp", 49), Writer(1, "mlp", 0), Reader(0, "attention", 0, "q")):
        with pytest.raises(UserError, match=f"There is no .* {place.name} at site {place.site}"):
            flow(seen, **{"readers" if isinstance(place, Reader) else "writers": [place]})
