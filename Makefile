# Everything a contributor runs. `make up` and `make test` work on a fresh Debian machine with Rust.
.PHONY: setup build up test check fix bench bench-hosts bench-memory bench-gateway bench-overload bench-backup bench-recovery bench-many torture torture-hosts fuzz model simulate package clean

SECONDS ?= 1800
SEED ?= 1
SEEDS ?= 0..10000
ROWS ?=
ARGS ?=

setup:
	@scripts/setup

build: setup
	cargo build --workspace --bins

# The whole stack on this machine, in the foreground. ARGS="--spec my.toml --data DIR"
up: build
	target/debug/everhold up $(ARGS)

# Everything but the long suites. The stacks of the end-to-end tests run one at a time by themselves.
test: setup
	@scripts/setup haproxy promtool:prometheus curl chromium etcdctl:etcd-client
	@scripts/setup-s3
	@scripts/test
	cargo test --workspace --doc

# Reads only.
check: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	scripts/cargo-deny check bans licenses sources

fix:
	cargo fmt --all
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged

# The table of outages. ROWS="kill-postmaster switchover" picks rows.
bench: setup
	cargo bench -p everhold --bench failover -- $(ROWS)

# The same on three machines, each a network namespace. Needs root. Patroni's rows stand beside ours
# after scripts/setup-patroni. OLD=FILE, an older everhold: upgrades from it, and both side by side.
OLD ?=
bench-hosts: setup
	@scripts/setup etcdctl:etcd-client
	$(if $(OLD),EVERHOLD_OLD=$(abspath $(OLD))) cargo bench -p everhold --bench hosts -- $(ROWS)

# Beside HAProxy and nginx, transactions and HTTP requests per processor-second of the proxy.
bench-gateway:
	@scripts/setup haproxy nginx:nginx-light wrk h2load:nghttp2-client pgrep:procps
	cargo run -p everhold-gateway --example bench_tcp
	cargo run -p everhold-gateway --example bench_http -- $(ROUNDS)

# Overload, a dependency that fails, clients that mean harm, and what protections cost, in ROUNDS, beside
# HAProxy. ROWS="overload cost dependency tail hostile retries" picks rows.
bench-overload:
	@scripts/setup haproxy nginx:nginx-light wrk
	cargo run -p everhold-gateway --example bench_overload -- $(ROUNDS) $(ROWS)

# Full, incremental and restore beside pgBackRest, of pgbench at SCALE, so many ROUNDS.
SCALE ?= 80
ROUNDS ?= 3
bench-backup: setup
	@scripts/setup pgbackrest
	cargo bench -p everhold-repository --bench formats -- $(SCALE) $(ROUNDS)

# What backups take of memory for each TB, seen on GB of files with holes.
bench-memory:
	cargo bench -p everhold-repository --bench memory -- $(GB)

# RTO and RPO from nothing but a repository, and what a backup costs under pgbench. ROWS as above.
bench-recovery: setup
	cargo bench -p everhold --bench recovery -- $(ROWS)

# What an agent costs when a cluster of NODES nodes and SERVICES services idles; 100 1 200 is what
# membership of 100 nodes costs.
NODES ?= 20
SERVICES ?= 10
LINKS ?= 0
bench-many: setup
	cargo bench -p everhold --bench many -- $(NODES) $(SERVICES) $(LINKS)

# Random faults for SECONDS from SEED; nothing acknowledged may be lost.
torture: setup
	cargo bench -p everhold --bench torture -- $(SECONDS) $(SEED)

# The same on three machines: hosts, cables, clocks, disks, processes.
torture-hosts: setup
	@scripts/setup etcdctl:etcd-client
	cargo bench -p everhold --bench torture -- hosts $(SECONDS) $(SEED)

# What reads HTTP, fed with random heads and bodies for SECONDS; a failure names its SEED.
fuzz:
	EVERHOLD_FUZZ_SECONDS=$(SECONDS) $(if $(filter command,$(origin SEED)),EVERHOLD_FUZZ_SEED=$(SEED)) \
		cargo test -p everhold-gateway --lib http::fuzz::for_long -- --nocapture

# The simulator over many seeds, and each rule of the protocol taken away.
simulate:
	cargo run -p everhold-sim --bin everhold-sim -- --seeds $(SEEDS)

# The exhaustive check of the protocol, with the heavy runs.
model:
	cargo run -p everhold-sim --bin model -- all deep

# A static binary and a Debian package, in target/package.
package:
	@scripts/setup dpkg-deb:dpkg lintian:lintian
	scripts/package

clean:
	cargo clean
