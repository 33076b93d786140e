"""Running an ablation: a folder of runs, each a process of its own, and a table that shows how far they are."""
