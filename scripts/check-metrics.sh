#!/bin/sh
# Checks /metrics with Prometheus' own `promtool check metrics`. Installs promtool (Debian package `prometheus`) where
# that is possible; says so and passes where it is not. With a URL, checks that server instead of the test's.
set -eu

if ! command -v promtool >/dev/null 2>&1; then
    if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends prometheus; } >/dev/null 2>&1 || true
    fi
fi
if ! command -v promtool >/dev/null 2>&1; then
    echo "check-metrics: promtool is not installed (Debian package prometheus): the check is skipped" >&2
    exit 0
fi
if [ $# -gt 0 ]; then
    curl -fsS "$1/metrics" | promtool check metrics
else
    cargo test -q --locked -p aisp-serve --test metrics
fi
