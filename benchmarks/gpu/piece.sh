#!/usr/bin/env bash
# One piece of a long job on one GPU: works for at most LIMIT_SECONDS, then stops; call it again to go on.
#   benchmarks/gpu/piece.sh RESULTS_FOLDER run RECIPE [--set a.b=c ...]
#   benchmarks/gpu/piece.sh RESULTS_FOLDER study NAME --recipe RECIPE [--seeds N] [--set a.b=c ...]
# With DATA=FOLDER set, a recipe's train.parquet and test.parquet (Hugging Face image layout) are taken from there.
# Steps are kept in runs/gpu; what is finished is copied to RESULTS_FOLDER. The last lines are the table, or what is done.
set -uo pipefail
results=$1 command=$2
shift 2
limit=${LIMIT_SECONDS:-540}
python=${PYTHON:-.venv/bin/python}
data=()
[ -n "${DATA:-}" ] && data=(--set "data.train=$DATA/train.parquet" --set "data.test=$DATA/test.parquet")
timeout --signal=INT --kill-after=30 "$limit" "$python" -m noisewise "$command" "$@" --runs runs/gpu "${data[@]}"
code=$?
mkdir -p "$results" runs/gpu
(cd runs/gpu && find . -path ./store -prune -o \
    \( -name '*.json' -o -name '*.html' -o -name '*.md' -o -name '*.csv' -o -name '*.svg' -o -name 'metrics.jsonl' \) -print) |
    while read -r file; do mkdir -p "$results/$(dirname "$file")" && cp "runs/gpu/$file" "$results/$file"; done
if [ "$code" -eq 124 ] || [ "$code" -eq 130 ]; then
    folder=runs/gpu/$(basename "$1" .yaml)
    [ -f "$folder/recipe.yaml" ] && "$python" -m noisewise status "$folder"
    [ "$command" = study ] && "$python" -m noisewise study "$@" --runs runs/gpu "${data[@]}" --dry-run | grep ' cached; '
    echo "stopped at the limit; the same command goes on" && exit 0
fi
exit "$code"
