"""Sends what explainers and scorers ask for, and remembers what is finished."""
