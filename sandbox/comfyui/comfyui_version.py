"""As the real one tells it; what a conditioning depends on."""

__version__ = "0.27.0"
