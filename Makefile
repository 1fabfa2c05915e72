PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo

PIP := $(BIN)/pip install --quiet --disable-pip-version-check
TYPECHECK := .typecheck
SITE := .site

.PHONY: setup demo test lint typecheck docs clean

setup: .venv/ready-dev

# What `make demo` needs.
.venv/ready: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(PIP) -r requirements.txt
	touch .venv/ready

# What the tests need besides.
.venv/ready-dev: .venv/ready requirements-baselines.txt requirements-ray.txt requirements-video.txt requirements-dev.txt
	$(PIP) -r requirements-dev.txt
	touch .venv/ready-dev

demo: .venv/ready
	$(BIN)/python train_rl.py --run-dir $(DEMO) --overwrite --total-timesteps 2000000
	$(BIN)/python evaluate.py $(DEMO) pretrained/corridor-transformer_xl.safetensors pretrained/corridor-none.safetensors \
		--json $(DEMO)/evaluation.json --plot $(DEMO)/evaluation.png
	$(BIN)/python visualize.py $(DEMO) --seed 3 --env-kwargs '{"min_length": 100}' --episodes 3 --out $(DEMO)/memory.html --png $(DEMO)/memory.png
	@echo
	@echo "Everything lies in $(DEMO):"
	@echo "  memory.html          what it remembered, episode by episode: open it in a browser (memory.png: a figure)"
	@echo "  policy.safetensors   the trained policy"
	@echo "  progress.csv         the training's figures      evaluation.png   the comparison as a plot (evaluation.json: all figures)"
	@echo "Next:"
	@echo "  $(BIN)/tensorboard --logdir $(DEMO)"
	@echo "  $(BIN)/python visualize.py $(DEMO) --seed 4"
	@echo "  $(BIN)/python train_rl.py --memory transformer_xl --window 64 --seed 2"

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

lint: setup
	$(BIN)/ruff check .

# In a folder laid out as the package is installed, since a type checker does not follow the checkout's __path__.
typecheck: setup
	rm -rf $(TYPECHECK)
	$(PIP) --no-deps --no-build-isolation --target $(TYPECHECK) .
	cp -r train_rl.py train_sequence.py evaluate.py visualize.py benchmarks $(TYPECHECK)
	cp pyproject.toml $(TYPECHECK)
	cd $(TYPECHECK) && ../$(BIN)/pyright --pythonpath ../$(BIN)/python

# The documentation as a site, with warnings as errors. The variable silences a notice of the theme's makers.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir $(SITE)
	@echo "The site: $(SITE)/index.html. With its search: $(BIN)/mkdocs serve"

clean:
	rm -rf .venv runs $(TYPECHECK) $(SITE)
