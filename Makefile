# make demo   predict real cells with the model of the package, then train one on synthetic cells: all in runs/demo
# make test   the whole test suite          make lint   ruff, mypy, clang-format
# make docs   the documentation as a site in build/site, links checked      make notebooks   run docs/notebooks
# make wheel  a wheel in dist/              make cuda   compile the CUDA kernels too (needs nvcc, no GPU)
# make compilers   compile the CPU kernels with each compiler that is installed
# make cpu-sets   the op tests with each instruction set that the processor has
# make gpu    all that needs an NVIDIA GPU: build, tests, sanitizers, benchmarks; DRY=1 tries the steps on the CPU
# make sanitize   the op tests under AddressSanitizer and UBSan, each instruction set
# make formats   install the libraries of microscopes' formats and test them     make imports   which package imports which
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
SOURCES := setup.py $(wildcard csrc/*.* csrc/*/*.*)
CPP := $(SOURCES:setup.py=) $(wildcard tests/csrc/*.h tests/csrc/*.cpp)
DEMO := runs/demo
DIST := dist
VECTORISED := tests/ops/test_nms.py tests/ops/test_roi_align.py tests/ops/test_conv3x3.py tests/ops/test_group_norm.py

FORMATS := tests/data/test_microscopes.py tests/data/test_ome_zarr.py tests/data/test_levels.py \
	tests/data/test_pixel_size.py tests/export/test_zarr_labels.py

.PHONY: demo test docs notebooks formats compilers lint format wheel cuda cpu-sets sanitize gpu imports clean

# torch and torchvision are installed together, so that pip finds a matching pair.
$(VENV)/.installed: pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet torch torchvision
	$(PY) -m pip install --quiet setuptools wheel ninja pybind11
	MASKRCNN_CUDA=0 $(PY) -m pip install --quiet --no-build-isolation --editable '.[dev]'
	touch $@

$(VENV)/.built: $(VENV)/.installed $(SOURCES)
	$(PY) setup.py build_ext --inplace
	touch $@

demo: $(VENV)/.built
	rm -rf $(DEMO)
	$(PY) infer.py --images maskrcnn/pretrained/examples --out $(DEMO)/nuclei --format overlay labels csv
	@ls -l $(DEMO)/nuclei/overlays
	$(PY) -m maskrcnn.data.synthetic $(DEMO)/data --train 96 --test 12 --size 192 --seed 0
	$(PY) train.py --data $(DEMO)/data --out $(DEMO) --depth 18 --stages 3 --pyramid-channels 128 --box-hidden 512 --crop 128 \
		--epochs 20 --lr 5e-4 --val-every 20 --mask-loss bce+dice --val-fraction 0.15 --roi-batch-per-image 96 \
		--roi-positive-fraction 0.15
	$(PY) infer.py --checkpoint $(DEMO)/best.pt --data $(DEMO)/data
	@ls -l $(DEMO)/loss.png $(DEMO)/metrics.jsonl $(DEMO)/submission.zip $(DEMO)/overlays

# A worker that crashes ends the run with the test's name: pytest-xdist 3.8 waits forever for one that replaces it.
test: $(VENV)/.built
	OMP_NUM_THREADS=1 $(PY) -m pytest --numprocesses 2 --dist loadfile --max-worker-restart 0 \
		--ignore tests/csrc/test_compilers.py

# The extra docs alone: installing the package with it would build the kernels again.
$(VENV)/.docs: $(VENV)/.installed
	$(PY) -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
		print(*project['optional-dependencies']['docs'], sep='\n')" > $(VENV)/docs.txt
	$(PY) -m pip install --quiet --requirement $(VENV)/docs.txt
	touch $@

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --config-file docs/site/mkdocs.yml
	@echo "build/site/index.html"

# In copies, which hold the new outputs then: cp build/notebooks/*.ipynb docs/notebooks/ shows them on the site.
notebooks: $(VENV)/.built $(VENV)/.docs
	rm -rf build/notebooks && mkdir -p build/notebooks && cp docs/notebooks/*.ipynb build/notebooks
	$(PY) -m pytest --nbmake --nbmake-timeout 600 --overwrite build/notebooks

formats: $(VENV)/.built
	MASKRCNN_CUDA=0 $(PY) -m pip install --quiet --no-build-isolation --editable '.[formats]'
	$(PY) -m pytest $(FORMATS)

compilers: $(VENV)/.installed
	$(PY) -m pytest -rs tests/csrc/test_compilers.py

lint: $(VENV)/.installed
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/clang-format --dry-run --Werror $(CPP)

format: $(VENV)/.installed
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(VENV)/bin/clang-format -i $(CPP)

# The op tests with the CPU kernels under AddressSanitizer and UBSan, with each instruction set that the processor has;
# the normal library is rebuilt afterwards.
SANITIZED = LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1
sanitize: $(VENV)/.installed
	rm -f maskrcnn/lib/libmaskrcnn_cpu.so $(VENV)/.built
	MASKRCNN_SANITIZE=1 MASKRCNN_CUDA=0 $(PY) setup.py build_ext --inplace
	status=0; $(SANITIZED) $(PY) -m pytest tests/ops || status=$$?; \
	for set in baseline avx2; do MASKRCNN_CPU=$$set $(SANITIZED) $(PY) -m pytest $(VECTORISED) || status=$$?; done; \
	rm -f maskrcnn/lib/libmaskrcnn_cpu.so; exit $$status

# Those that the best one hides: baseline code and AVX2.
cpu-sets: $(VENV)/.built
	MASKRCNN_CPU=baseline $(PY) -m pytest $(VECTORISED)
	MASKRCNN_CPU=avx2 $(PY) -m pytest $(VECTORISED)

cuda: $(VENV)/.installed
	MASKRCNN_CUDA=1 $(PY) setup.py build_ext --inplace

gpu: $(VENV)/.installed
	$(PY) -m benchmarks.gpu $(if $(DRY),--dry)

imports: $(VENV)/.installed
	@$(PY) -m tests.imports

# PyTorch's and CUDA's libraries are not copied into it. It is tagged with the oldest glibc that has what it needs.
REPAIR := repair --exclude 'libtorch*' --exclude 'libc10*' --exclude 'libcuda*' --exclude 'libcudart*'
wheel: $(VENV)/.installed
	rm -rf build/wheel
	$(PY) -m pip wheel . --no-deps --no-build-isolation --wheel-dir build/wheel
ifeq ($(shell uname),Linux)
	PATH="$(abspath $(VENV))/bin:$$PATH" $(PY) -m auditwheel $(REPAIR) --wheel-dir $(DIST) build/wheel/*.whl
else
	mkdir -p $(DIST) && cp build/wheel/*.whl $(DIST)
endif

clean:
	rm -rf build dist maskrcnn/lib maskrcnn/*.so *.egg-info
