"""How answers become grades. One file per scorer; a scorer asks through `yield` and never touches a client.

Every scorer module defines `NAME`, `VERSION`, `NEEDS` (request classes), `TEMPLATES`, `WINDOWS` (which
windows of a latent it grades on), a frozen `Config`, and

    score(subjects, windows, config) -> generator of requests, replies in, list of `Outcome` out

which grades several explanations of one latent on the same windows, so that an explanation and its control are paired
by construction and share every request that does not depend on them. Where what it asks depends on its options, it also
defines `needs(config)`; arguments of `score` beyond these three are filled in by name from what the pipeline knows.
"""
