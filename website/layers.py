"""The chart of the layers in the architecture page, without a library that would come from the network."""

import html
import re


def draw_layers(chart: str) -> str:
    """A Mermaid flowchart that is one chain, as a list."""
    labels = dict(re.findall(r'^ *(\w+)\["([^"]+)"\]$', chart, re.MULTILINE))
    (chain,) = re.findall(r"^ *(\w+(?: --> \w+)+)$", chart, re.MULTILINE)
    rows = "".join(f"<li>{html.escape(labels[name])}</li>" for name in chain.split(" --> "))
    return f'<ol class="layers">{rows}</ol>\n'
