# Each target sets up what it needs by itself; a second run finds it done.
PYTHON := .venv/bin/python
.PHONY: demo test lint chaos clip-gate

demo:
	@.ci/setup ffmpeg
	@$(PYTHON) -m sandbox.demo

test:
	@.ci/setup ffmpeg
	@$(PYTHON) -m pytest -n 4

lint:
	@.ci/setup
	@$(PYTHON) -m ruff check
	@$(PYTHON) -m ruff format --check
	@$(PYTHON) -m mypy --strict

# Some five minutes of everything dying at any moment; the tests run a slice of it.
chaos:
	@.ci/setup ffmpeg
	@$(PYTHON) -m bench.chaos

# How well bad clips are told from good ones; the photographs come inside two Python packages.
clip-gate:
	@.ci/setup ffmpeg
	@$(PYTHON) -m pip install -q --no-deps scikit-image==0.26.0 scikit-learn==1.9.1
	@$(PYTHON) -m bench.clip_gate
