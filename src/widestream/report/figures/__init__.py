"""Pictures: scales, axes, charts, as SVG."""
