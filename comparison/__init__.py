"""Comparing finished runs; which settings may differ between arms is in `run_state/may_differ.py`."""
