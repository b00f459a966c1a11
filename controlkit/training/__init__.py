"""How the embedded models are trained: `python -m controlkit.training.embedded`."""
