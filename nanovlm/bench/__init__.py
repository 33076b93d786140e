"""How fast an experiment trains, loads its data and generates, what memory it takes, and how it compares."""
