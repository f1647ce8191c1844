# make demo      see scenes taken apart             make lab    open the book
# make explore   drag their pieces in a browser     make book   run every notebook, keep its outputs and figures
# make test      everything that CI checks          make lint   the part of it that takes a second
# make site      the book as a web site, in _docs/html
# make wasm      compile the page's kernel anew, after a change of iodine_nb/web/kernel.c
PYTHON ?= python3
BIN := .venv/bin
NOTEBOOKS ?= nbs/*.ipynb
export MPLBACKEND ?= module://matplotlib_inline.backend_inline

.PHONY: demo explore test lint lab book site wheel wasm hooks clean
demo: .venv/ready
	$(BIN)/python tests/run_notebooks.py --fresh nbs/01_first_look.ipynb
	@echo "The figures of these scenes, as the book shows them: pics/decomposition.png pics/iterations.png pics/rooms.png pics/training.png."
	@echo "Next: make explore; or make lab, and open nbs/01_first_look.ipynb"

# The tests' processes keep the memory of a freed tensor for the next one; giving it back takes up to a tenth of their time.
KEEP := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_TOP_PAD_=67108864
test: .venv/ready lint
	@git status --porcelain > .venv/status 2>/dev/null || true
	$(BIN)/python tests/in_sync.py
	OMP_NUM_THREADS=1 $(KEEP) $(BIN)/nbdev_test --path nbs --n_workers 2 --do_print --timing
	OMP_NUM_THREADS=1 $(KEEP) $(BIN)/pytest -n 2
	@test "$$(git status --porcelain 2>/dev/null)" = "$$(cat .venv/status)" || { git status --short; \
	  echo "the tests have written files that git sees: only make book and nbdev_export may do so"; exit 1; }

lint: .venv/ready
	$(BIN)/ruff check --quiet --output-format concise nbs tests

explore: .venv/ready
	$(BIN)/iodine-nb explore

# make lab OPTIONS="--no-browser --ip 0.0.0.0"; terminals in it have the environment, and a container's root may start it
lab: .venv/ready
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) $(OPTIONS) nbs/00_contents.ipynb

book: .venv/ready
	IODINE_NB_BOOK=1 $(BIN)/python tests/run_notebooks.py $(NOTEBOOKS)
	$(BIN)/nbdev_clean

# Made of the committed notebooks and their outputs. It needs neither torch nor the library, so it has its own .venv.
site: .venv-site/ready
	.venv-site/bin/python site/build.py _docs

.venv-site/ready: pyproject.toml
	test -x .venv-site/bin/python || $(PYTHON) -m venv .venv-site
	.venv-site/bin/pip install --quiet --disable-pip-version-check \
	  $$($(PYTHON) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["site"])')
	touch $@

wheel: .venv/ready
	rm -rf build
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist .
	rm -rf build && ls dist

# The page's kernel, compiled anew after a change of kernel.c; the result is committed, so nobody else needs a compiler.
WEB := iodine_nb/web
wasm: .venv/ready
	$(BIN)/pip install --quiet --disable-pip-version-check ziglang==0.17.1
	$(BIN)/python -m ziglang cc -target wasm32-freestanding -O3 -msimd128 -s -nostdlib -fvisibility=hidden -Wl,--no-entry -Wl,--export-dynamic -o $(WEB)/kernel.wasm $(WEB)/kernel.c

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "iodine_nb needs Python 3.11 or newer; try make PYTHON=python3.11"'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(MAKE) --silent --no-print-directory hooks
	touch $@

# What nbdev_install_hooks does, but only in this checkout's own git configuration: notebooks are merged cell by cell
# (.gitattributes names the driver), and are trusted again after a merge. Without .venv git merges them as text.
hooks:
	@if git rev-parse --is-inside-work-tree >/dev/null 2>&1 && test -e .git; then \
	  git config --local merge.nbdev-merge.name "merge notebooks, and keep them whole where there is a conflict"; \
	  git config --local merge.nbdev-merge.driver \
	    'if test -x .venv/bin/nbdev_merge; then .venv/bin/nbdev_merge %O %A %B %P; else git merge-file %A %O %B; fi'; \
	  hook=$$(git rev-parse --git-path hooks/post-merge); \
	  if ! test -e "$$hook"; then mkdir -p "$$(dirname "$$hook")"; \
	    printf '#!/bin/sh\n! test -x .venv/bin/nbdev_trust || .venv/bin/nbdev_trust >/dev/null 2>&1 || true\n' \
	      > "$$hook" && chmod +x "$$hook"; fi; fi || true

clean:
	rm -rf .venv .venv-site _docs data/cache _proc build dist .pytest_cache .ruff_cache .hypothesis *.egg-info
