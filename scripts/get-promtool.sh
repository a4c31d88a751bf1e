#!/bin/sh
# Installs Prometheus' promtool (Debian package `prometheus`), which the metrics test runs, where apt and root are at
# hand; says so where they are not. Does nothing when it is there.
set -eu

if command -v promtool >/dev/null 2>&1; then
    echo "promtool is there"
    exit 0
fi
if command -v apt-get >/dev/null 2>&1 && [ "$(id -u)" = 0 ]; then
    { apt-get update -qq && apt-get install -y -qq --no-install-recommends prometheus; } >/dev/null 2>&1 || true
fi
command -v promtool >/dev/null 2>&1 || echo "get-promtool.sh: no promtool (Debian package prometheus): its test is skipped" >&2
