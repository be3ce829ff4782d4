#!/usr/bin/env bash
# CIFAR-10 quality on one GPU, in pieces: each call works for at most LIMIT_SECONDS, then stops; call it again to go on.
#   benchmarks/gpu/cifar10.sh DATA_FOLDER RESULTS_FOLDER [--set a.b=c ...]
# DATA_FOLDER holds train.parquet and test.parquet (Hugging Face image layout). The last lines are the table so far.
set -uo pipefail
data=$1 results=$2
shift 2
limit=${LIMIT_SECONDS:-540}
python=${PYTHON:-.venv/bin/python}
timeout --signal=INT --kill-after=30 "$limit" "$python" -m noisewise run recipes/cifar10.yaml --runs runs/gpu \
    --set "data.train=$data/train.parquet" --set "data.test=$data/test.parquet" "$@"
code=$?
"$python" -m noisewise status runs/gpu/cifar10
mkdir -p "$results"
for name in results.json report.html metrics.jsonl plan.json; do
    [ -f "runs/gpu/cifar10/$name" ] && cp "runs/gpu/cifar10/$name" "$results/"
done
[ "$code" -eq 124 ] || [ "$code" -eq 130 ] && echo "stopped at the limit; the same command goes on" && exit 0
exit "$code"
