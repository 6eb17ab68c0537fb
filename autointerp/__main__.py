"""`python -m autointerp` is the same as `autointerp`."""

from autointerp.cli import main

if __name__ == "__main__":
    main()
