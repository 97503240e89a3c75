#!/usr/bin/env bash
# Everything that needs a GPU, in the order of its worth: the tests, short runs, the CUDA half of the benchmarks.
#     bash scripts/check_cuda.sh FOLDER [tests] [runs] [bench]     # writes tests.txt, runs.txt and bench.txt there
set -uo pipefail
folder=$(realpath "${1:?usage: check_cuda.sh FOLDER [tests] [runs] [bench]}")
parts="${*:2}"
parts=" ${parts:-tests runs bench} "
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
if [[ $parts == *" tests "* ]]; then
  timeout 200 python3 -m pytest -q -p no:cacheprovider tests/test_cuda.py > "$folder/tests.txt" 2>&1
  tail -n 40 "$folder/tests.txt" | cut -c1-300
fi
if [[ $parts == *" runs "* ]]; then
  runs=$(mktemp -d)
  for options in "experiment=quick optim=aif" "optim=natural_muon precision=bf16 train.compile=true" \
    "task=vision optim=natural_muon" "task=multimodal optim=fisher_muon" "size=pico seeds=2 optim=natural_muon" \
    "optim=fisher_adam train.activation_checkpointing=true model=natural_gradient"; do
    # shellcheck disable=SC2086
    timeout 90 python3 -m natattn train $options train.device=cuda tracker=off train.steps=40 \
      train.evaluate_every=20 hydra.run.dir="$runs/$RANDOM" > "$runs/log" 2>&1
    code=$?
    last=$(grep '^step 40' "$runs/log" || tail -n 1 "$runs/log" | cut -c1-300)
    echo "exit $code | $options | $last" | tee -a "$folder/runs.txt"
  done
fi
if [[ $parts == *" bench "* ]]; then
  python3 scripts/bench.py --device cuda --only floor optim seeds growth attention --output "$folder/bench.txt"
fi
