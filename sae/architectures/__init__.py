"""One file per architecture: its config, its encoder rule, its loss. Found by file name."""
