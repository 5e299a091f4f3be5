"""Speaks to authorization servers and APIs. Knows no Flask, no store."""
