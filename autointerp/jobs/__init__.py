"""Batch jobs: a run divided into elements that a cluster works off, and what the run folder says of them.

The files of the run folder say what is done; the queue only says what is waiting or running.
"""
