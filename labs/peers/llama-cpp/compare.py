#!/usr/bin/env python3
"""Does aisp answer as llama.cpp does? Greedy tokens of 20 English prompts and the perplexity of a text, same file.

    cargo build --release -p aisp-serve && cargo build --release -p aisp-engine --example perplexity
    labs/peers/llama-cpp/setup.sh DIR
    labs/peers/llama-cpp/compare.py DIR/llama/bin MODEL.gguf TEXT_FILE

Tokens may part where the two best logits are within 0.05 nat, for arithmetic differs; perplexity within 0.3 %. On a file
of quantized weights both engines round activations to 8 bits, and tokens part at up to what that rounding moves them:
`rounding.py` measures it. The file that `llama-quantize --allow-requantize MODEL.gguf EXACT.gguf F32` makes has the
same weights without that rounding: there every answer must be equal.
"""
import json
import pathlib
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

NEAR_TIE_NAT = 0.05
PERPLEXITY_SHARE = 0.003
ANSWER_TOKENS = 64
ROOT = pathlib.Path(__file__).resolve().parents[3]
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "Water boils at a temperature of",
    "The three primary colours are",
    "My grandmother always said that",
    "To make a good cup of tea, first",
    "The sun rises in the east because",
    "In the year 1969, the first people",
    "A prime number is a number that",
    "The old man opened the door and saw",
    "Dear Sir or Madam, I am writing to",
    "The quick brown fox",
    "Photosynthesis is the process by which",
    "Three friends went to the mountains, and",
    "The best way to learn a language is",
    "When the rain finally stopped,",
    "Computers work with numbers, so",
    "She looked at the map again and",
    "The difference between a frog and a toad is",
    "Yesterday I went to the market to buy",
]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def post(port, path, body):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as response:
        return json.load(response)


def start(command, port, ready):
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}{ready}", timeout=5)
            return process
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
        if process.poll() is not None:
            sys.exit(f"{command[0]} ended with {process.returncode}")
    sys.exit(f"{command[0]} did not become ready")


def compare_tokens(peer_bin, model):
    ours_port, theirs_port = free_port(), free_port()
    servers = [
        start([ROOT / "target/release/aisp-serve", "--model", model, "--port", str(ours_port)], ours_port, "/ready"),
        start(
            [peer_bin / "llama-server", "-m", model, "--port", str(theirs_port), "-t", "1", "-c", "2048", "-np", "1",
             "-ctk", "f32", "-ctv", "f32", "-fa", "off"],
            theirs_port,
            "/health",
        ),
    ]
    try:
        outcomes = [compare_prompt(ours_port, theirs_port, prompt) for prompt in PROMPTS]
    finally:
        for server in servers:
            server.terminate()
    equal = outcomes.count("equal")
    near = outcomes.count("near tie")
    print(f"greedy: {equal} of {len(PROMPTS)} equal over {ANSWER_TOKENS} tokens, {near} part at a near tie")
    return equal + near == len(PROMPTS)


def compare_prompt(ours_port, theirs_port, prompt):
    ids = post(ours_port, "/tokenize", {"prompt": prompt})["tokens"]
    theirs = post(
        theirs_port,
        "/completion",
        {"prompt": ids, "n_predict": ANSWER_TOKENS, "temperature": 0, "return_tokens": True, "cache_prompt": False},
    )["tokens"]
    choice = post(
        ours_port,
        "/v1/completions",
        {"prompt": ids, "max_tokens": ANSWER_TOKENS, "temperature": 0, "logprobs": 2, "return_token_ids": True},
    )["choices"][0]
    ours = choice["token_ids"]
    for at, (a, b) in enumerate(zip(ours, theirs)):
        if a != b:
            best = sorted(choice["logprobs"]["top_logprobs"][at].values(), reverse=True)
            gap = best[0] - best[1]
            kind = "near tie" if gap <= NEAR_TIE_NAT else "different"
            print(f"  {kind}: token {at} of {prompt!r}, the two best are {gap:.4f} nat apart")
            return kind
    return "equal"


def compare_perplexity(peer_bin, model, text):
    ours = subprocess.run(
        [ROOT / "target/release/examples/perplexity", text, model, "all,-kv-fp8,kv-f16"], capture_output=True, text=True, check=True
    ).stdout.split()
    log = subprocess.run(
        [peer_bin / "llama-perplexity", "-m", model, "-f", text, "-c", "512", "-t", "1"],
        capture_output=True,
        text=True,
        check=True,
    )
    theirs = re.search(r"Final estimate: PPL = ([0-9.]+)", log.stdout + log.stderr)
    if not theirs:
        sys.exit("llama-perplexity printed no estimate")
    a, b = float(ours[-1]), float(theirs[1])
    print(f"perplexity: aisp {a:.4f}, llama.cpp {b:.4f}, {100 * (a / b - 1):+.3f} %")
    return abs(a / b - 1) <= PERPLEXITY_SHARE


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    peer_bin, model, text = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    results = [compare_perplexity(peer_bin, model, text), compare_tokens(peer_bin, model)]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
