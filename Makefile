# Two commands do everything from a fresh clone:
#
#   make demo    the main job, on generated data
#   make test    the tests
#
# Both set up .venv first, once. To use an environment of your own instead: make test PYTHON=python
#
# make test-without-detectron2 runs the tests in .venv-pip, with the package installed by pip alone; make
# detectron2 tries to install Detectron2 again; make docs builds docs/ as a site in site/; make lint checks the
# style; make fuzz tries random changes to input files for half an hour.

TORCH := torch==2.11.0 torchvision==0.26.0
DETECTRON2 := detectron2 @ git+https://github.com/facebookresearch/detectron2.git@02b5c4e295e990042a714712c21dc79b731e8833
INSTALL_DETECTRON2 = $(PYTHON) -m pip install --no-build-isolation '$(DETECTRON2)'

ifeq ($(origin PYTHON), undefined)
PYTHON := .venv/bin/python
SETUP := .venv/installed .venv/detectron2-tried
endif

# Two processes of one thread each: as fast as two cores allow, and no more on a large machine.
PYTEST := -m pytest -n 2 --dist loadfile --no-loadscope-reorder
test test-without-detectron2: export OMP_NUM_THREADS := 1

.PHONY: demo test test-without-detectron2 docs lint fuzz detectron2

demo: $(SETUP)
	$(PYTHON) -m maskx_d2 demo

test: $(SETUP)
	$(PYTHON) $(PYTEST)

# As a user with pip alone has it: a second environment with the wheel that is built from the sdist.
test-without-detectron2: .venv-pip/torch
	rm -rf build dist
	.venv-pip/bin/python -m pip install build twine
	.venv-pip/bin/python -m build
	.venv-pip/bin/python -m twine check --strict dist/*
	.venv-pip/bin/python -m pip install "$$(ls dist/*.whl)[test]"
	.venv-pip/bin/python -m pip install --force-reinstall --no-deps dist/*.whl
	.venv-pip/bin/python $(PYTEST)

docs: $(SETUP)
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict

lint: $(SETUP)
	$(PYTHON) -m pip install --quiet 'ruff>=0.6'
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

fuzz: $(SETUP)
	end=$$(( $$(date +%s) + 1800 )); while [ $$(date +%s) -lt $$end ]; do \
	  MASKX_D2_HYPOTHESIS=fuzz $(PYTHON) -m pytest -q -m fuzz || exit 1; done

.venv-pip/torch:
	python3 -m venv .venv-pip
	.venv-pip/bin/python -m pip install $(TORCH)
	touch $@

.venv/installed: pyproject.toml
	python3 -m venv .venv
	$(PYTHON) -m pip install $(TORCH)
	$(PYTHON) -m pip install --editable '.[test]'
	touch $@

# It is compiled against the installed torch, so it needs the build tools that pip would isolate.
.venv/detectron2-tried: | .venv/installed
	$(PYTHON) -m pip install setuptools wheel ninja
	@$(INSTALL_DETECTRON2) || { \
	  echo "Detectron2 could not be installed: its tests will be skipped, and the demo runs on torchvision."; \
	  echo "To try again: make detectron2"; }
	touch $@

detectron2: | $(firstword $(SETUP))
	$(PYTHON) -m pip install setuptools wheel ninja
	$(INSTALL_DETECTRON2)
