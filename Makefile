# Works with GNU make 3.81 and later. PYTHON chooses the interpreter: make setup PYTHON=/path/to/python3.12
PYTHON ?=
CANDIDATES := $(if $(PYTHON),$(PYTHON),python3.12 python3.11 python3)
VENV_PYTHON := .venv/bin/python
SUITABLE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))

.PHONY: help setup test reproduce app clean

help:
	@echo "make reproduce   set up .venv, then run every notebook and draw every figure again"
	@echo "make app         set up .venv, then open the dashboard in the browser"
	@echo "make test        set up .venv, then run all tests"
	@echo "make setup       set up .venv alone"
	@echo "make clean       remove .venv and caches; runs/ stays"

setup: .venv/.ready

test: setup
	$(VENV_PYTHON) -m pytest

reproduce: setup
	$(VENV_PYTHON) -m ainn_lib.reproduce

app: setup
	$(VENV_PYTHON) -m ainn_lib.app

# .ready is written last. .begun is there while a set-up is under way: where one is found, the set-up before was cut short,
# and .venv is made anew. A whole .venv of a suitable Python is kept and brought to the lock (a CPU-only torch in it stays).
.venv/.ready: requirements.lock pyproject.toml
	@rm -f .venv/.ready
	@if [ -e .venv/.begun ] || ! $(VENV_PYTHON) -c "$(SUITABLE)" 2>/dev/null || \
	    ! $(VENV_PYTHON) -m pip --version >/dev/null 2>&1; then \
	    found=; \
	    for candidate in $(CANDIDATES); do \
	        if "$$candidate" -c "$(SUITABLE)" 2>/dev/null; then found=$$candidate; break; fi; \
	    done; \
	    if [ -z "$$found" ]; then \
	        echo "Python 3.11 or 3.12 is needed; tried: $(CANDIDATES). Name one: make setup PYTHON=/path/to/python3.12" >&2; \
	        exit 1; \
	    fi; \
	    mkdir -p .venv && touch .venv/.begun && rm -rf .venv/* && \
	    "$$found" -m venv .venv; \
	fi
	@touch .venv/.begun
	$(VENV_PYTHON) -m pip install -r requirements.lock
	$(VENV_PYTHON) -m pip install --no-deps --no-build-isolation -e .
	@mv .venv/.begun .venv/.ready

clean:
	rm -rf .venv build *.egg-info .pytest_cache .hypothesis .ruff_cache
	find . \( -path ./.git -o -path ./runs \) -prune -o \
	    -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
