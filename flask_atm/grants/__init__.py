"""Keeps grants and renews them. Knows no Flask."""
