#!/usr/bin/env python3
"""How far do 8-bit activations carry aisp and llama.cpp from exact arithmetic, and from each other?

    cargo build --release -p aisp-serve
    labs/peers/llama-cpp/setup.sh DIR
    DIR/llama/bin/llama-quantize --allow-requantize MODEL.gguf EXACT.gguf F32
    labs/peers/llama-cpp/rounding.py DIR/llama/bin MODEL.gguf EXACT.gguf

EXACT.gguf holds the values of MODEL.gguf as plain f32: both engines then multiply without rounding activations. Every
prompt is continued greedily by llama.cpp on MODEL.gguf; at each token of that text all four are asked for the distance
in nat between llama.cpp's two best tokens. What they answer differs only by rounding.
"""
import pathlib
import statistics
import sys

from compare import PROMPTS, ROOT, free_port, post, start

ANSWER_TOKENS = 64
TOP = 20


def start_ours(model):
    port = free_port()
    return port, start([ROOT / "target/release/aisp-serve", "--model", model, "--port", str(port)], port, "/ready")


def start_theirs(peer_bin, model):
    port = free_port()
    command = [peer_bin / "llama-server", "-m", model, "--port", str(port), "-t", "1", "-c", "2048", "-np", "1",
               "-ctk", "f32", "-ctv", "f32", "-fa", "off"]
    return port, start(command, port, "/health")


def their_next(port, ids):
    answer = post(port, "/completion", {"prompt": ids, "n_predict": 1, "temperature": 0, "n_probs": TOP,
                                        "cache_prompt": True, "return_tokens": True})
    return {entry["id"]: entry["logprob"] for entry in answer["completion_probabilities"][0]["top_logprobs"]}


def our_rows(port, ids):
    choice = post(port, "/v1/completions", {"prompt": ids, "max_tokens": 1, "temperature": 0, "logprobs": TOP,
                                            "echo": True})["choices"][0]
    return choice["logprobs"]["top_logprobs"]


def report(name, differences):
    squares = statistics.fmean(d * d for d in differences)
    worst = max(abs(d) for d in differences)
    beyond = sum(abs(d) > 0.05 for d in differences) / len(differences)
    print(f"{name:42} rms {squares ** 0.5:.4f} nat, worst {worst:.3f}, over 0.05 nat {100 * beyond:.0f} %")


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    peer_bin, model, exact = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    running = {
        "aisp": start_ours(model),
        "aisp exact": start_ours(exact),
        "llama.cpp": start_theirs(peer_bin, model),
        "llama.cpp exact": start_theirs(peer_bin, exact),
    }
    port = {name: entry[0] for name, entry in running.items()}
    gaps = {name: [] for name in running}
    try:
        for prompt in PROMPTS:
            ids = post(port["aisp"], "/tokenize", {"prompt": prompt})["tokens"]
            text = post(port["llama.cpp"], "/completion", {"prompt": ids, "n_predict": ANSWER_TOKENS, "temperature": 0,
                                                           "return_tokens": True, "cache_prompt": False})["tokens"]
            whole = ids + text
            pieces = {}
            ours = {name: our_rows(port[name], whole) for name in ("aisp", "aisp exact")}
            for at in range(len(ids), len(whole)):
                theirs = {name: their_next(port[name], whole[:at]) for name in ("llama.cpp", "llama.cpp exact")}
                best, second = sorted(theirs["llama.cpp"], key=theirs["llama.cpp"].get, reverse=True)[:2]
                if any(token not in theirs["llama.cpp exact"] for token in (best, second)):
                    continue
                words = [piece_of(port["aisp"], token, pieces) for token in (best, second)]
                # Part of a character has no text of its own: such tokens cannot be told apart in our answer.
                if any("\ufffd" in word or word not in row[at] for row in ours.values() for word in words):
                    continue
                for name, row in ours.items():
                    gaps[name].append(row[at][words[0]] - row[at][words[1]])
                for name, row in theirs.items():
                    gaps[name].append(row[best] - row[second])
            print(f"  {len(gaps['aisp'])} places after {prompt!r}", flush=True)
    finally:
        for _, process in running.values():
            process.terminate()
    for a, b in [("aisp exact", "llama.cpp exact"), ("llama.cpp", "llama.cpp exact"), ("aisp", "aisp exact"),
                 ("aisp", "llama.cpp")]:
        report(f"{a} - {b}", [x - y for x, y in zip(gaps[a], gaps[b])])


def piece_of(port, token, pieces):
    if token not in pieces:
        pieces[token] = post(port, "/detokenize", {"tokens": [token]})["prompt"]
    return pieces[token]


if __name__ == "__main__":
    main()
