"""Checkpoint formats, one file each: `recognise(folder)`, `read(folder)`, and `write(sae, folder)` where we write it."""
