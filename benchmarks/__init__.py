"""What flask-atm costs, as ratios in one run: ``python benchmarks/run.py``."""
