#!/usr/bin/env bash
# Everything that needs a GPU, in the order of its worth: the tests and short runs (together), then, with the machine to
# themselves, the CUDA half of the benchmarks.
#     bash scripts/check_cuda.sh FOLDER [tests] [runs] [bench]
# Writes tests.txt, runs.txt, bench.txt and errors.txt there, each as it comes. LIMIT=560 are the seconds for all of it;
# what does not fit is cut short. DEVICE=cpu tries the runs without a GPU; ONLY=WORD takes those whose options hold it.
set -uo pipefail
folder=$(realpath "${1:?usage: check_cuda.sh FOLDER [tests] [runs] [bench]}")
parts="${*:2}"
parts=" ${parts:-tests runs bench} "
deadline=$(($(date +%s) + ${LIMIT:-560}))
cd "$(dirname "$0")/.."
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" DEVICE=${DEVICE:-cuda}
scratch=$(mktemp -d)
export folder scratch deadline

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader

# The seconds that are left, at most $1; never 0, which timeout takes for no limit.
left() {
  local rest=$((deadline - $(date +%s)))
  echo $((rest < 1 ? 1 : rest < $1 ? rest : $1))
}

one_run() { # options, at most this many seconds
  local log code name last
  log=$(mktemp "$scratch/run.XXXX")
  # shellcheck disable=SC2086
  OMP_NUM_THREADS=2 TORCHINDUCTOR_COMPILE_THREADS=2 timeout -k 10 "$(left "$2")" python3 -m natattn train \
    train.steps=40 train.evaluate_every=20 train.device="$DEVICE" tracker=off hydra.run.dir="$log.folder" $1 > "$log" 2>&1
  code=$?
  name="exit $code | $1"
  last=$(grep 'step 40' "$log" | tail -n 1)
  echo "$name | $(cut -c1-200 <<< "${last:-$(tail -n 1 "$log")}")" | tee -a "$folder/runs.txt"
  if ((code)); then
    { echo "== $name"; tail -n 60 "$log"; } >> "$folder/errors.txt"
  fi
}
export -f left one_run

tests() {
  local workers=()
  python3 -c "import xdist" 2> /dev/null && workers=(-n 4)
  OMP_NUM_THREADS=2 timeout -k 10 "$(left 200)" python3 -m pytest -q -p no:cacheprovider "${workers[@]}" \
    tests/test_cuda.py > "$folder/tests.txt" 2>&1
  tail -n 40 "$folder/tests.txt" | cut -c1-300
}

runs() {
  local compiled="precision=bf16 train.compile=true" options
  one_run "experiment=quick train.steps=60" 90 # fills the cache of the text for the others
  {
    # The benchmarks' own size first: it takes longest, and leaves them what it has compiled.
    echo "size=small train.batch_size=16 $compiled optim=aif"
    for options in natural_muon fisher_muon muon aif adamw; do echo "$compiled optim=$options"; done
    echo "size=pico seeds=2 optim=natural_muon"
    echo "train.activation_checkpointing=true optim=natural_muon"
    echo "train.activation_checkpointing=true $compiled optim=aif"
    echo "train.activation_checkpointing=true model=natural_gradient optim=fisher_adam"
    echo "task=vision optim=natural_muon"
    echo "task=multimodal optim=fisher_muon"
  } | grep -- "${ONLY:-}" | xargs -P "${JOBS:-6}" -d '\n' -I{} bash -c 'one_run "$1" "$2"' _ {} 180
}

if [[ $parts == *" tests "* ]]; then tests & fi
if [[ $parts == *" runs "* ]]; then runs & fi
wait
echo "tests and runs: $SECONDS s"
if [[ $parts == *" bench "* ]]; then
  for part in train optim seeds growth attention; do
    timeout -k 10 "$(left 200)" python3 scripts/bench.py "$part" --device cuda 2>> "$folder/errors.txt" |
      tee -a "$folder/bench.txt"
    echo "exit ${PIPESTATUS[0]}, $SECONDS s" | tee -a "$folder/bench.txt"
  done
fi
rm -rf "$scratch"
