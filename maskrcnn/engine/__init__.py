"""The training loop, its data, validation and run folder."""
