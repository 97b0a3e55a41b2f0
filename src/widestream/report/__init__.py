"""Matched comparisons of finished runs: tables, figures, one HTML file. Reads run folders only."""
