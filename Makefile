# `make serve` and `make test` are all a newcomer needs; the rest saves typing.
MODEL ?= story-12m
PORT ?= 8000

# Tests run a process each: one thread a process keeps them from fighting over the cores.
TEST_ENV = RAYON_NUM_THREADS=1
NEXTEST = $(shell cargo nextest --version >/dev/null 2>&1 && echo nextest run || echo test --lib --bins --tests --examples)

# A CUDA compiler that is there, or one from PyPI; nothing of it needs a GPU.
CUDA_ENV = env=$$(scripts/cuda-toolkit.sh target/cuda) && eval "$$env"
CUDA_BINS = aisp-serve/cuda,aisp/cuda

.PHONY: serve test build lint fetch bench sanitize cuda cuda-links test-cuda

serve: build ## serve the built-in model with every optimization
	target/release/aisp-serve --model $(MODEL) --port $(PORT) --optimizations all

build:
	cargo build --release --locked -p aisp-serve -p bench-client

cuda: ## the same binaries with CUDA, for sm_80, sm_89, sm_90a and newer
	$(CUDA_ENV) && cargo build --release --locked -p aisp-serve -p aisp -p bench-client --features $(CUDA_BINS)

cuda-links: ## CUDA compiles and links, for one card, and no binary depends on its libraries
	$(CUDA_ENV) && CUDA_ARCHS=90a cargo build --workspace --bins --locked --features $(CUDA_BINS)
	! ldd target/debug/aisp-serve | grep -E 'libcu|libnv'

test-cuda: fetch ## what needs an NVIDIA GPU
	$(CUDA_ENV) && libs=$$(scripts/cuda-libs.sh) && eval "$$libs" && \
	  cargo test --release --locked -p aisp-engine --features aisp-engine/cuda --test cuda -- --ignored --nocapture --test-threads=1

test: fetch lint cuda-links ## everything: formatting, lints, tests, doc tests, documentation; that CUDA links
	$(TEST_ENV) cargo $(NEXTEST) --workspace --locked
	$(TEST_ENV) cargo test --workspace --locked --doc
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --locked --no-deps --quiet

sanitize: ## the kernels' tests under AddressSanitizer, which the stable compiler has but does not offer
	RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address $(TEST_ENV) cargo test --locked -p aisp-kernels --lib \
	  --target $$(rustc -vV | sed -n 's/^host: //p')

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

fetch: ## what tests need beside the sources
	scripts/get-model.sh
	scripts/get-promtool.sh

bench: build ## load the server of `make serve` from a second terminal
	target/release/bench-client --qps 50 --num-prompts 200
