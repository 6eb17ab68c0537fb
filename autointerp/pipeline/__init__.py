"""The stages of a run, each resumable: train, collect, explain, score."""
