"""Explainers, one file each, found by file name. Sans-I/O: they yield requests and are sent replies.

An explainer module defines `NAME`, `NEEDS`, `TEMPLATES`, a frozen `Config`, and
`explain(record, config) -> generator of requests, replies in, Proposal out`; and `needs(config)`, where what it asks
depends on that.
"""
