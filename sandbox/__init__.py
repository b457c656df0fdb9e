"""Everything the worker talks to, in miniature, as real processes on this machine."""
