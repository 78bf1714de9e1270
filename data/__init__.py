"""Tables: what a Parquet table is, how its rows become arrays and back, who trains on which row, and where output goes.

Neither torch nor MLflow; only scan.py and shard.py need Ray.
"""
