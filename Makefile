# Each target sets up what it needs by itself; a second run finds it done.
PYTHON := .venv/bin/python
# Hundreds of short processes run the same code: it is compiled once, whatever the machine prefers.
export PYTHONDONTWRITEBYTECODE :=
.PHONY: demo sandbox test lint bench chaos hostile clip-gate

demo:
	@.ci/setup ffmpeg
	@$(PYTHON) -m sandbox.demo

# A page to try it on, http://127.0.0.1:8765/, until Ctrl-C.
sandbox:
	@.ci/setup ffmpeg
	@$(PYTHON) -m sandbox.studio

test:
	@.ci/setup ffmpeg browser
	@$(PYTHON) -m pytest -n 9 --dist loadgroup --no-loadscope-reorder

lint:
	@.ci/setup
	@$(PYTHON) -m ruff check
	@$(PYTHON) -m ruff format --check
	@$(PYTHON) -m mypy --strict
	@.venv/bin/lint-imports

bench:
	@.ci/setup ffmpeg
	@$(PYTHON) -m bench.overhead

# Some five minutes of everything dying at any moment; the tests run a slice of it.
chaos:
	@.ci/setup ffmpeg
	@$(PYTHON) -m bench.chaos

# Some minutes of hostile jobs, pictures and peers; the tests run a slice of it.
hostile:
	@.ci/setup ffmpeg
	@$(PYTHON) -m bench.hostile

# How well bad clips are told from good ones; the photographs come inside two Python packages.
clip-gate:
	@.ci/setup ffmpeg
	@$(PYTHON) -m pip install -q --no-deps scikit-image==0.26.0 scikit-learn==1.9.1
	@$(PYTHON) -m bench.clip_gate
