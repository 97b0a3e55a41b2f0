"""Where layers end, for streams whose unit is the layer and not the block."""

from widestream.streams.base import Block


def layer_ends(blocks: list[Block]) -> dict[int, int]:
    """Sites behind the last block of a layer, each with the number of layers so far; site 0, the embedding, has 0."""
    last = {block.layer: site for site, block in enumerate(blocks, start=1)}
    return {0: 0} | {site: number for number, site in enumerate(last.values(), start=1)}
