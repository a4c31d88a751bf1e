# `make serve` and `make test` are all a newcomer needs; the rest saves typing.
MODEL ?= story-12m
PORT ?= 8000

# Tests run a process each: one thread a process keeps them from fighting over the cores.
TEST_ENV = RAYON_NUM_THREADS=1
NEXTEST = $(shell cargo nextest --version >/dev/null 2>&1 && echo nextest run || echo test --lib --bins --tests --examples)

.PHONY: serve test build lint fetch bench

serve: build ## serve the built-in model with every optimization
	target/release/aisp-serve --model $(MODEL) --port $(PORT) --optimizations all

build:
	cargo build --release --locked -p aisp-serve -p bench-client

test: fetch lint ## everything: formatting, lints, tests, doc tests, documentation
	$(TEST_ENV) cargo $(NEXTEST) --workspace --locked
	$(TEST_ENV) cargo test --workspace --locked --doc
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --locked --no-deps --quiet

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

fetch: ## what tests need beside the sources
	scripts/get-model.sh
	scripts/get-promtool.sh

bench: build ## load the server of `make serve` from a second terminal
	target/release/bench-client --qps 50 --num-prompts 200
