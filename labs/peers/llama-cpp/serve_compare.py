#!/usr/bin/env python3
"""aisp-serve and llama-server under the same load, in turns; and each with another process busy on one core.

    cargo build --release -p aisp-serve -p bench-client
    labs/peers/llama-cpp/setup.sh DIR
    labs/peers/llama-cpp/serve_compare.py DIR/llama/bin MODEL.gguf

Closed loop of 8 clients, prompts of 81 tokens, 128 tokens out, all cores; KV in f16 on both sides. Prints medians.
"""
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

from compare import ROOT, free_port, start

ROUNDS = 3
CLIENTS = 8


def servers(peer_bin, model, threads):
    ours, theirs = free_port(), free_port()
    begin = time.monotonic()
    ours_process = start([ROOT / "target/release/aisp-serve", "--model", model, "--port", str(ours), "--optimizations",
                          "all,-kv-fp8,kv-f16", "--max-num-seqs", "8", "--max-model-len", "2048"], ours, "/ready")
    between = time.monotonic()
    theirs_process = start([peer_bin / "llama-server", "-m", model, "--port", str(theirs), "-t", str(threads), "-c",
                            "16384", "--parallel", str(CLIENTS)], theirs, "/health")
    print(f"start to ready: aisp {between - begin:.2f} s, llama.cpp {time.monotonic() - between:.2f} s (polled every 0.2 s)")
    return {"aisp": (ours, ours_process), "llama.cpp": (theirs, theirs_process)}


def rss_mib(process):
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) // 1024 for line in status if line.startswith(("VmRSS", "VmHWM"))}


def load(port, num_prompts):
    with tempfile.TemporaryDirectory() as folder:
        result = pathlib.Path(folder) / "result.json"
        # It exits with 1 when requests failed; how many is in the result.
        client = subprocess.run(
            [ROOT / "target/release/bench-client", "--base-url", f"http://127.0.0.1:{port}", "--max-concurrency",
             str(CLIENTS), "--num-prompts", str(num_prompts), "--input-len", "81", "--output-len", "128", "--ignore-eos",
             "--save-result", str(result)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        if not result.exists():
            sys.exit(client.stderr.strip())
        return json.loads(result.read_text())


def measure(running, num_prompts):
    figures = {name: [] for name in running}
    for round_idx in range(ROUNDS):
        names = list(running) if round_idx % 2 == 0 else list(running)[::-1]
        for name in names:
            figures[name].append(load(running[name][0], num_prompts))
    medians = {}
    for name, results in figures.items():
        keys = ("output_throughput", "p50_ttft_ms", "median_ttft_ms", "p99_itl_ms", "failed")
        medians[name] = {key: statistics.median(r[key] for r in results) for key in keys if key in results[0]}
        print(f"  {name:10} " + ", ".join(f"{key} {value:.1f}" for key, value in medians[name].items()))
    return medians


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    cores = sorted(os.sched_getaffinity(0))
    running = servers(pathlib.Path(sys.argv[1]), sys.argv[2], len(cores))
    try:
        print("idle", {name: rss_mib(process) for name, (_, process) in running.items()})
        print("quiet")
        quiet = measure(running, 32)
        print("after", {name: rss_mib(process) for name, (_, process) in running.items()})
        print("another process busy on one core")
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"],
                                preexec_fn=lambda: os.sched_setaffinity(0, {cores[-1]}))
        try:
            contended = measure(running, 16)
        finally:
            busy.kill()
    finally:
        for _, process in running.values():
            process.terminate()
    share = {name: contended[name]["output_throughput"] / quiet[name]["output_throughput"] for name in running}
    slower = {name: contended[name]["p99_itl_ms"] / quiet[name]["p99_itl_ms"] for name in running}
    print("kept under contention", share)
    print("ITL p99 under contention over quiet", slower)
    print("aisp over llama.cpp, quiet:", quiet["aisp"]["output_throughput"] / quiet["llama.cpp"]["output_throughput"])


if __name__ == "__main__":
    main()
