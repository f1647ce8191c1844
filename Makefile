# make demo      see scenes taken apart             make lab    open the book
# make explore   drag their pieces in a browser     make book   run every notebook and keep its outputs
# make test      everything that CI checks
PYTHON ?= python3
BIN := .venv/bin
export MPLBACKEND ?= module://matplotlib_inline.backend_inline

.PHONY: demo explore test lab book clean
demo: .venv/ready
	$(BIN)/python tests/run_notebooks.py --fresh nbs/05_first_look.ipynb
	@echo "Figures: pics/decomposition.png pics/iterations.png pics/training.png.  Next: make explore; or make lab, and open nbs/05_first_look.ipynb"

test: .venv/ready
	$(BIN)/python tests/in_sync.py
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --path nbs --n_workers 2 --do_print --timing
	$(BIN)/pytest

explore: .venv/ready
	$(BIN)/iodine-nb explore

lab: .venv/ready
	$(BIN)/jupyter lab nbs/00_contents.ipynb

book: .venv/ready
	$(BIN)/python tests/run_notebooks.py nbs/*.ipynb
	$(BIN)/nbdev_clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "iodine_nb needs Python 3.11 or newer; try make PYTHON=python3.11"'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv data/cache _proc .pytest_cache .hypothesis *.egg-info
