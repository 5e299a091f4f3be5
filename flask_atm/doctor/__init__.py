"""What ``flask atm doctor`` looks at. Each check says what it found, and what cures it."""
