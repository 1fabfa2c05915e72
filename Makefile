PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo

.PHONY: setup demo test clean

setup: .venv/ready

.venv/ready: requirements.txt requirements-baselines.txt requirements-ray.txt requirements-dev.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch .venv/ready

demo: setup
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
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q

clean:
	rm -rf .venv runs
