"""`python -m prompts.check`: fails when a released template changed. Run by `make lint`."""

import sys

from prompts.render import check_lock

if problems := check_lock():
    print("\n".join(problems))
    sys.exit(1)
print("prompt lock kept")
