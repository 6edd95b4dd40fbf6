"""The four trainings."""
