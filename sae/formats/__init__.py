"""Checkpoint formats, one file each: `LOOKS_FOR`, `recognise(folder)`, `read(folder)`, `write(sae, folder)`."""
