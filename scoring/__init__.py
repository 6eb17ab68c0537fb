"""How answers become grades. One file per scorer; a scorer asks through `yield` and never touches a client.

Every scorer module defines `NAME`, `VERSION`, `NEEDS` (request classes), `TEMPLATES`, `WINDOWS` (which
windows of a latent it grades on), a frozen `Config`, and

    score(subjects, windows, config) -> generator of requests, replies in, list of `Outcome` out

(and `needs(config)`, where what it asks depends on that), which grades several explanations of one latent on the same windows, so that an explanation and its
control are paired by construction and share every request that does not depend on them.
"""
