# Works with GNU make 3.81 and later. PYTHON chooses the interpreter: make setup PYTHON=/path/to/python3.12
PYTHON ?=
CANDIDATES := $(if $(PYTHON),$(PYTHON),python3.12 python3.11 python3)
VENV_PYTHON := .venv/bin/python
SUITABLE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))

# Beside a busy process two OpenMP threads wait for each other in a loop: ten times slower.
GOMP_SPINCOUNT ?= 1000
export GOMP_SPINCOUNT

.PHONY: help setup test lint numpy2 soak reproduce app book clean

help:
	@echo "make reproduce   set up .venv, then measure, draw and run everything again, and compare"
	@echo "make app         set up .venv, then open the dashboard in the browser"
	@echo "make book        build the book, a static site, in build/book"
	@echo "make test        set up .venv, then run all tests"
	@echo "make lint        set up .venv, then run ruff over code and notebooks"
	@echo "make numpy2      set up .venv, then encode and decode a photo with numpy 2"
	@echo "make soak        set up .venv, then damage files and kill processes for an hour, and count"
	@echo "make setup       only set up .venv"
	@echo "make clean       remove .venv and caches; runs/ stays"

setup: .venv/.ready

test: setup
	$(VENV_PYTHON) -m pytest

lint: setup
	$(VENV_PYTHON) -m ruff check ainn_lib tests tools notebooks docs

# CompressAI asks for numpy < 2 but runs with numpy 2, which is put in front of .venv's own.
numpy2: setup
	rm -rf build/numpy2
	$(VENV_PYTHON) -m pip install --quiet --no-deps --target build/numpy2 "numpy>=2,<3"
	PYTHONPATH=build/numpy2 $(VENV_PYTHON) tools/smoke.py 2

# Not part of the tests: what it counts is in figures/data/soak.json.
soak: setup
	$(VENV_PYTHON) tests/soak.py

reproduce: setup
	$(VENV_PYTHON) -m ainn_lib reproduce

app: setup
	$(VENV_PYTHON) -m ainn_lib app

# The book has an environment of its own: its tools and ours need not agree on versions.
book: build/book-env/.ready build/compare/index.html
	rm -rf build/book build/book-source
	mkdir -p build/book-source
	cp -R docs notebooks figures README.md build/book-source
	mv build/book-source/docs/index.md build/book-source
	build/book-env/bin/python -m sphinx -W --keep-going -q -c docs -d build/book-source/doctrees \
	    build/book-source build/book
	cp -R build/compare build/book

# Some minutes: made again only where our files or the page's own code change.
build/compare/index.html: data/weights/student.safetensors $(wildcard data/refined/*) \
    ainn_lib/ui/compare_page.py ainn_lib/ui/stage.py ainn_lib/ui/stage.js | setup
	$(VENV_PYTHON) -m ainn_lib compare-page

build/book-env/.ready: docs/requirements.txt
	rm -rf build/book-env
	for candidate in $(CANDIDATES); do \
	    if "$$candidate" -c "$(SUITABLE)" 2>/dev/null; then \
	        "$$candidate" -m venv build/book-env; exit; fi; done; exit 1
	build/book-env/bin/python -m pip install --quiet -r docs/requirements.txt
	touch build/book-env/.ready

# .ready is written last. .begun exists while a set-up runs: where it is found, the last set-up was
# cut short, and .venv is made anew. A whole .venv of a suitable Python is kept and brought to the
# lock (a CPU-only torch in it stays).
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
