# Everything runs from .venv, which `make setup` creates. `make` alone lists the targets.

VENV := .venv
SETUP := scripts/setup.sh
CIFAR10 := $(or $(SENTEI_CIFAR10),build/cifar10)
PYTEST := $(VENV)/bin/python -m pytest -rs --numprocesses auto --dist worksteal
REQUIREMENTS := pyproject.toml constraints.txt $(SETUP)

define LINT
$(VENV)/bin/ruff check .
$(VENV)/bin/ruff format --check .
$(VENV)/bin/mypy
endef

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help packages setup setup-train demo check test test-train test-long bare accuracy pruning training-speed lint docs area networks zoo performance ulx3s-12f ulx3s-25f ulx3s-45f ulx3s-85f boards resources bridge superres clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9 -]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

packages:
	@$(SETUP) packages

$(VENV)/.installed-dev: $(REQUIREMENTS) | packages
	@$(SETUP) python dev
	@touch $@

$(VENV)/.installed-train: $(REQUIREMENTS) $(VENV)/.installed-dev
	@$(SETUP) python dev,train
	@touch $@

setup: $(VENV)/.installed-dev ## install what is needed: Debian packages, and Python packages into .venv

setup-train: $(VENV)/.installed-train ## add the training packages (PyTorch)

demo: setup ## classify pictures on the simulated SoC; result in build/demo
	$(VENV)/bin/sentei demo

check: setup ## check style and types, and run the tests that need no simulator, in a minute
	$(LINT)
	$(PYTEST) -m "not long and not hardware" --ignore tests/train

test: setup ## check style and types, and run every test, in some minutes (those of the training code: test-train)
	$(LINT)
	$(PYTEST) --ignore tests/train

test-train: setup-train ## run the training tests, which need PyTorch
	$(PYTEST) tests/train

test-long: setup ## the whole of the random campaigns, for a night
	$(PYTEST) -m long --ignore tests/train

bare: ## run the demo on minimal Debians, 12 and 13, in some minutes each (needs root and debootstrap): reports/bare-machine.json
	scripts/bare.sh reports/bare-machine.json bookworm trixie

accuracy: setup ## accuracy of the CIFAR-10 models, all test images (CIFAR10=folder of its binary version): reports/accuracy.json
	$(VENV)/bin/sentei accuracy models/resnet*-c10-*.onnx --data cifar10 --folder $(CIFAR10) \
		--compare 200 --simulate 20 --json reports/accuracy.json

pruning: setup-train ## what aligned blocks, distillation and sizes are worth on ResNet-8, in some hours: reports/pruning.md
	$(VENV)/bin/python scripts/pruning.py --folder $(CIFAR10) --float build/train/resnet8-cifar10/float-2.pt \
		--dense models/resnet8-c10-dense.onnx --output reports/pruning.md

training-speed: setup-train ## epochs a second on this machine, in some minutes: reports/training.md
	$(VENV)/bin/python scripts/training.py --output reports/training.md

lint: setup ## check style, format and types
	$(LINT)

area: setup ## measure the engine's area on an ECP5, block by block, in some minutes
	$(VENV)/bin/python -m sentei.boards.ecp5.area --json build/area/area.json

ulx3s-12f ulx3s-25f ulx3s-45f ulx3s-85f: setup ## bitstream for a ULX3S, in 6 to 30 minutes: build/ulx3s-12F, ...
	$(VENV)/bin/python scripts/boards.py --only ulx3s-$(shell echo $(@:ulx3s-%=%) | tr f F) --output reports/boards.json

boards: setup ## bitstreams for all boards with an ECP5, in some hours: reports/boards.json
	$(VENV)/bin/python scripts/boards.py --output reports/boards.json

resources: setup ## cells of the Xilinx boards' SoCs by yosys, in some minutes: reports/boards.json
	$(VENV)/bin/python -m sentei.boards.xilinx.estimate pynq_z2 arty_a7 --report reports/boards.json

bridge: setup ## 1,000 inferences over the serial bridge to a simulated SoC, and as many over a bad line: reports/bridge.json
	PYTHONPATH=tests $(VENV)/bin/python scripts/bridge.py models/fmnist-ninth.onnx --output reports/bridge.json

superres: setup ## enlarge a photograph with a network of others on the simulated SoC: build/superres/result.jpg
	$(VENV)/bin/python scripts/superres.py

networks: setup ## MobileNet, ResNet-18, YOLO, U-Net and others on the simulated engine, in some minutes: reports/networks.json
	$(VENV)/bin/python scripts/networks.py --output reports/networks.json

zoo: setup ## try networks of others (SENTEI_ZOO=folder of .onnx files): reports/zoo.json, in some minutes
	$(VENV)/bin/python scripts/zoo.py $(or $(SENTEI_ZOO),$(error SENTEI_ZOO must name a folder of .onnx files)) --output reports/zoo.json

performance: setup ## cycles of the CIFAR-10 models and of a sweep over layers: reports/performance.md, in some minutes
	$(VENV)/bin/python scripts/performance.py models/resnet*-c10-*.onnx --output reports/performance.md

docs: setup ## write docs/registers.md again from overlay/, and the tables of docs/models.md
	$(VENV)/bin/python docs/generate.py

clean: ## remove what was built; keeps .venv
	rm -rf build .pytest_cache .hypothesis .ruff_cache .mypy_cache
	find . -name .venv -prune -o -name __pycache__ -type d -print | xargs -r rm -rf
