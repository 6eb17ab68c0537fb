"""Checkpoint formats, one file each: `LOOKS_FOR`, `recognise(path)`, `read(path)` and, for some, `write(sae, folder)`.

A path is a folder or one of the format's files in it. Modules with a leading underscore are what formats share.
"""
