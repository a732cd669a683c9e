PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python

.PHONY: demo check test test-slow leaderboard pictures report

demo: $(VENV)/installed
	$(RUN) -m eval_runners.core --sae temporal

check: $(VENV)/installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright --pythonpath $(RUN)

test: $(VENV)/installed
	$(RUN) -m pytest -n auto --maxprocesses 4 --dist loadfile

test-slow: $(VENV)/installed
	$(RUN) -m pytest -m slow

leaderboard: $(VENV)/installed
	$(RUN) -m eval_runners leaderboard $(patsubst %,--readme %,README.md $(wildcard results/*.md))

pictures: $(VENV)/installed
	$(RUN) -m eval_runners leaderboard --results results/published --model sandbox --evals core --recipe --d-sae 1024 \
		--sae refined,topk,temporal,stock:batchtopk,stock:topk,stock:matryoshka_batchtopk,stock:standard \
		--columns explained_variance_corrected --picture results/headline.png
	$(RUN) -m eval_runners leaderboard --results results/published --model sandbox --evals scaling --recipe --sae topk \
		--picture results/law-n-k.png
	$(RUN) -m eval_runners case-study --page results/examples/case_study.html --latents 111 --picture results/latent.png

report: $(VENV)/installed
	$(RUN) -m eval_runners report

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v in ((3, 11), (3, 12)) or sys.exit(f"Python 3.11 or 3.12 is needed, this is {v[0]}.{v[1]}: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet -e '.[test]'
	touch $@
