"""Comparison of runs: reading, measures, statistics, report, figures."""
