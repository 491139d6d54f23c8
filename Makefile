# `make demo` and `make test` do all the set-up on a fresh machine; the second time they are quick.
#
#   FORMAT  layout of the demo's data: kitti (the default), nuscenes or waymo
#   TORCH   what pip installs as PyTorch, for example TORCH='torch==2.11.0 --index-url …' for a build with CUDA
#   PYTHON  the interpreter that makes .venv
#   TESTS_AT_ONCE  processes that `make test` shares the test files among, of up to 2 GB each
#
# `make gpu-check` runs on a GPU what only a GPU can tell, and writes it to a file. With VENV=none it takes the packages
# that PYTHON has, and needs no network; STEPS="tests ops" chooses among its steps.

PYTHON ?= python3
TESTS_AT_ONCE ?= 2
FUZZ_SECONDS ?= 300
TORCH ?= torch==2.13.0
VENV := .venv
MMDET3D := .venv-mmdet3d
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
NATIVE_SOURCES := $(shell find ops -type f)
# The demo is for a first look: it compiles for CUDA only where there is a GPU.
DEMO_NATIVE := $(if $(wildcard /dev/nvidia0),$(VENV)/.native,$(VENV)/.native_cpu)
DEMO := runs/demo
DEMO_DATA := data/demo
DEMO_FRAME := $(DEMO_DATA)/test/training/velodyne/000044.bin
FRAMES_train := 200
SEED_train := 0
FRAMES_test := 50
SEED_test := 1

# Drives in the layouts of nuScenes and Waymo: a quarter of the scenes is held out.
FORMAT ?= kitti
DRIVES_nuscenes := --scenes 24 --frames 8
DRIVES_waymo := --scenes 48 --frames 4

.PHONY: demo demo-kitti demo-nuscenes demo-waymo test asan fuzz kills gpu-check mmdet3d install docs lint format clean system

# Simulated street scenes → training → test on scenes of another seed → pictures. Each step is a command that stands
# by itself; make leaves out those whose result is there.
demo: demo-$(FORMAT)

demo-kitti: $(DEMO)/best.ckpt $(DEMO_DATA)/test/simulation.json
	$(BIN)/python -m pcdet_ext prepare kitti --root $(DEMO_DATA)/test --splits all --database
	$(BIN)/python -m pcdet_ext test $(DEMO)/best.ckpt data.root=$(DEMO_DATA)/test --split all --out $(DEMO)/results
	$(BIN)/python -m pcdet_ext visualize $(DEMO)/best.ckpt $(DEMO_FRAME) --out $(DEMO)/scene.html
	$(BIN)/python -m pcdet_ext visualize $(DEMO)/best.ckpt $(DEMO_FRAME) --out $(DEMO)/map.png
	@echo "Look at $(DEMO)/map.png, open $(DEMO)/scene.html in a browser."

$(DEMO_DATA)/%/simulation.json: | $(VENV)/.run $(DEMO_NATIVE)
	$(BIN)/python -m pcdet_ext simulate --format kitti --frames $(FRAMES_$*) --seed $(SEED_$*) --out $(@D)

$(DEMO)/best.ckpt: configs/kitti/demo.yaml $(DEMO_DATA)/train/simulation.json
	$(BIN)/python -m pcdet_ext prepare kitti --root $(DEMO_DATA)/train
	$(BIN)/python -m pcdet_ext train kitti/demo data.root=$(DEMO_DATA)/train --out $(DEMO) --resume

demo-nuscenes demo-waymo: demo-%: runs/demo_%/best.ckpt
	$(BIN)/python -m pcdet_ext test $< --out runs/demo_$*/results
	$(BIN)/python -m pcdet_ext visualize $< --frame 0 --out runs/demo_$*/map.png
	$(BIN)/python -m pcdet_ext visualize $< --frames 0:12 --out runs/demo_$*/tour.html
	@echo "Look at runs/demo_$*/map.png, open runs/demo_$*/tour.html in a browser."

.PRECIOUS: data/demo_%/simulation.json runs/demo_%/best.ckpt
data/demo_%/simulation.json: | $(VENV)/.run $(DEMO_NATIVE)
	$(BIN)/python -m pcdet_ext simulate --format $* $(DRIVES_$*) --val-fraction 0.25 --out $(@D)

runs/demo_%/best.ckpt: configs/%/demo.yaml data/demo_%/simulation.json
	$(BIN)/python -m pcdet_ext prepare $* --root data/demo_$* --workers 2
	$(BIN)/python -m pcdet_ext train $*/demo data.root=data/demo_$* --out $(@D) --resume

# Where mmdetection3d cannot be had, its tests skip, and say so.
test: $(VENV)/.dev $(VENV)/.native
	-@$(MAKE) --no-print-directory mmdet3d
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(TESTS_AT_ONCE) --dist loadfile

# Trainings that are killed at random moments, continued, and compared with one that was not.
KILLS ?= 50
kills: $(VENV)/.dev $(VENV)/.native_cpu
	OMP_NUM_THREADS=1 $(BIN)/python tests/robustness/kills.py --kills $(KILLS)

# TORCH must be a build with CUDA where .venv is made anew.
gpu-check: $(if $(filter none,$(VENV)),,$(VENV)/.dev)
	$(if $(filter none,$(VENV)),$(PYTHON),$(BIN)/python) benchmarks/gpu_check.py $(if $(STEPS),--steps $(STEPS))

# Damaged files for every reader, for FUZZ_SECONDS in all; tests/fuzz/campaign.py --help tells more.
fuzz: $(VENV)/.dev $(VENV)/.native_cpu
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/campaign.py --seconds $(FUZZ_SECONDS)

# The operations' tests with native code that watches its own memory.
asan: $(VENV)/.dev
	OMP_NUM_THREADS=2 $(BIN)/python tests/asan/run.py

# mmdetection3d for the tests of the plugin: an environment that borrows torch and all else that it can from .venv.
mmdet3d: $(MMDET3D)/.ready
$(MMDET3D)/.ready: tests/plugins/mmdet3d.txt | $(VENV)/.dev
	@echo "Installing mmdetection3d into $(MMDET3D): up to a minute …"
	rm -rf $(MMDET3D)
	$(BIN)/python -m venv --without-pip $(MMDET3D)
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' > $(MMDET3D)/borrowed.pth
	mv $(MMDET3D)/borrowed.pth "$$($(MMDET3D)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	$(PIP) --python $(MMDET3D)/bin/python install --no-deps -r $<
	touch $@

install: $(VENV)/.run $(VENV)/.native
	$(BIN)/python -m pcdet_ext info

# The documentation as a site in build/site, which needs no network; broken links and anchors are errors.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "Open build/site/index.html in a browser."

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist *.egg-info pcdet_ext/ops/*.so

# System libraries that Open3D loads; installed where we may, named where not.
system:
	@sh tools/system_libraries.sh

# What a user runs: torch first, at the wanted version, so that nothing else pulls another build of it.
$(VENV)/.run: setup.py pyproject.toml | system
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing PyTorch into $(VENV): $(TORCH), a minute or more …"
	$(PIP) install $(TORCH)
	@echo "Installing this library and the packages that it needs: a minute or more …"
	$(PIP) install 'setuptools>=77' wheel
	PCDET_EXT_CUDA=0 PCDET_EXT_REQUIRE_NATIVE=$(REQUIRE_NATIVE) $(PIP) install --no-build-isolation -e '.[vis,train]'
	touch $@

# And what the tests need on top.
$(VENV)/.dev: $(VENV)/.run
	@echo "Installing what the tests need: up to a minute …"
	PCDET_EXT_CUDA=0 $(PIP) install --no-build-isolation -e '.[dev]'
	touch $@

$(VENV)/.docs: $(VENV)/.run
	@echo "Installing what makes the documentation: up to a minute …"
	PCDET_EXT_CUDA=0 $(PIP) install --no-build-isolation -e '.[docs]'
	touch $@

$(VENV)/.native_cpu: setup.py $(NATIVE_SOURCES) | $(VENV)/.run
	@echo "Compiling the native operations for the CPU: up to a minute …"
	PCDET_EXT_CUDA=0 $(BIN)/python setup.py -q build_ext --inplace
	touch $@

# For CUDA too, where nvcc is found.
$(VENV)/.native: setup.py $(NATIVE_SOURCES) | $(VENV)/.run
	@echo "Compiling the native operations, for CUDA too where nvcc is found: up to some minutes …"
	$(BIN)/python setup.py -q build_ext --inplace
	touch $@
