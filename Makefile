# Two commands on a fresh machine: `make demo` and `make test`. Both install what they need first.
# Builds go to CARGO_TARGET_DIR when it is set.

KIT := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)/release/lockstep-kit
TORTURER := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)/release/lockstep-torture
SOAKER := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)/release/lockstep-soak
LOCKSTEP := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)/release/lockstep
# FULL=1: OpenSearch instead of the embedded index.
FULL ?=
DEMO ?=
# TORTURE='--minutes 60 --seed 7', '--contestants lockstep,debezium' to do the same to Debezium, or '--only keys/black-hole --seed 4711' for one cell: see `--help`.
TORTURE ?=
# SOAK='--minutes 5 --sinks kafka,redis-json', or '--purchases 500' for purchases over two clusters: see `--help`.
SOAK ?=

.PHONY: demo test test-features torture soak bench lint audit docs install-test

demo:
	tests/kit/install postgres redis kafka $(if $(FULL),opensearch)
	cargo build --release -p lockstep -p lockstep-kit
	$(KIT) run --with pg15,pg17,redis,kafka$(if $(FULL),$(comma)opensearch) -- sh -c '\
		exec env LOCKSTEP_LOG_FORMAT="$${LOCKSTEP_LOG_FORMAT:-text}" $(LOCKSTEP) demo \
		--orders-url "$${LOCKSTEP_TEST_PG15_URL%/*}/orders" \
		--inventory-url "$${LOCKSTEP_TEST_PG17_URL%/*}/inventory" \
		--redis-url "$$LOCKSTEP_TEST_REDIS_URL" --kafka "$$LOCKSTEP_TEST_KAFKA" \
		$(if $(FULL),--opensearch-url "$$LOCKSTEP_TEST_OPENSEARCH_URL") $(DEMO)'

test: install-test
	cargo build --workspace --all-targets
	cargo run -q -p lockstep-kit -- run -- cargo test --workspace --no-fail-fast
	cargo test --manifest-path examples/acme-sink/Cargo.toml

# What a plain build leaves out: traces, TLS to Kafka, and the command of the example.
test-features:
	tests/kit/install postgres redis kafka
	cargo test -p lockstep --features otel --test otel
	cargo test -p lockstep-sink-kafka --features kafka-ssl-static --test broker encrypted
	cargo build --manifest-path examples/acme-sink/Cargo.toml --features command

# A server that cannot be had here is no failure but where CI=true: the run names the tests that it leaves out.
install-test:
	tests/kit/install --if-possible all

torture:
	tests/kit/install postgres redis kafka opensearch rabbitmq $(if $(findstring debezium,$(TORTURE)),debezium)
	cargo build --release -p lockstep -p lockstep-torture
	$(TORTURER) $(TORTURE)

soak:
	tests/kit/install postgres redis kafka opensearch $(if $(findstring --purchases,$(SOAK)),managers)
	cargo build --release -p lockstep -p lockstep-torture -p lockstep-buyer
	$(SOAKER) $(SOAK)

bench:
	tests/kit/install postgres redis kafka rabbitmq registry
	cargo build --release -p lockstep-benches
	cargo run --release -q -p lockstep-benches -- $(BENCH)

lint:
	cargo fmt --all --check
	cargo fmt --manifest-path examples/acme-sink/Cargo.toml --check
	cargo clippy --workspace --all-targets --features lockstep/otel -- -D warnings
	@if cargo tree --workspace --edges normal,build -i aws-lc-sys >/dev/null 2>&1; then \
		echo 'aws-lc-sys is in the tree; one TLS provider (ring) is enough' >&2; exit 1; fi

# Installs cargo-deny when it is not there. Fetches the database of advisories.
audit:
	@command -v cargo-deny >/dev/null || cargo install --locked cargo-deny
	cargo deny --locked check

# The site of the documentation, in docs/ of the build folder. mdbook is built once, and kept outside the checkout.
MDBOOK_VERSION := 0.4.52
MDBOOKS := $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/lockstep-kit/mdbook-$(MDBOOK_VERSION)

docs:
	[ -x $(MDBOOKS)/bin/mdbook ] || cargo install mdbook --locked --version $(MDBOOK_VERSION) --no-default-features --features search --root $(MDBOOKS)
	MDBOOK=$(MDBOOKS)/bin/mdbook docs/build $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)/docs

comma := ,
