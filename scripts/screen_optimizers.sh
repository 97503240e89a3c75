#!/usr/bin/env bash
# Every optimizer at four learning rates, one seed, size nano, WikiText-2 valid→test in bytes: a first look, no study.
#
#   scripts/screen_optimizers.sh FOLDER_WITH_WIKITEXT2 [OPTIMIZER ...]
#
# The rate is that of the hidden matrices; embeddings and vectors keep AdamW's 1e-2 (sgd has one rate for all). Runs go
# to $OUTPUT (outputs/screening), $JOBS (2) at a time, one thread each. What is finished is skipped and what broke off is
# resumed, so that it can be stopped and started at will. $RATES, $SEEDS (0), $STEPS (600), $EXTRA overrides and $TAG, a
# word that tells runs with them apart, make other studies of it. Give relative folders: the runs keep their names.
# `python scripts/screening_table.py` makes the table.
set -euo pipefail
text=$1
shift
output=${OUTPUT:-outputs/screening}
steps=${STEPS:-600}
seeds=${SEEDS:-0}
evaluate_every=${EVALUATE_EVERY:-100}
extra=${EXTRA:-}
rates=${RATES:-0.0015 0.004 0.01 0.025}
sgd_rates=${SGD_RATES:-0.1 0.3 1 3}
optimizers=${*:-adamw aif aif_blend aif_update critical fa_adam fisher_adam fisher_muon multiscale muon muon_aif \
  muon_per_head natural_muon newton_muon sgd soap soap_muon whitened_muon}
mkdir -p "$output"
head -c 120000 "$text/test.txt" > "$output/test_120k.txt"

run() {
  local optimizer=$1 rate=$2 seed=$3 folder
  folder=$output/${optimizer}${TAG:-}_${rate}_seed$seed
  if grep -qs '"status": "\(finished\|diverged\)"' "$folder/run.json"; then return; fi
  if [ -e "$folder/config.yaml" ]; then
    natattn train resume="$folder" >> "$output/log.txt" 2>&1 && return
  fi
  local rate_key="++optim.learning_rates.hidden=$rate"
  if [ "$optimizer" = sgd ]; then rate_key="optim.learning_rate=$rate"; fi
  # shellcheck disable=SC2086
  natattn train model=natural reference=none size=nano tokenizer=byte tracker=off data=text \
    data.train="$text/valid.txt" data.validation="$output/test_120k.txt" seed="$seed" optim="$optimizer" "$rate_key" \
    train.steps="$steps" train.batch_size=8 train.max_seconds=null train.evaluate_every="$evaluate_every" \
    train.checkpoint_every=200 hydra.run.dir="$folder" $extra >> "$output/log.txt" 2>&1 ||
    echo "failed: $optimizer $rate $seed" >&2
  rm -rf "$folder/checkpoints" "$folder/arms"
}
export -f run
export text output steps evaluate_every extra TAG OMP_NUM_THREADS=1

for optimizer in $optimizers; do
  grid=$rates
  if [ "$optimizer" = sgd ]; then grid=$sgd_rates; fi
  for rate in $grid; do
    for seed in $seeds; do echo "$optimizer $rate $seed"; done
  done
done | xargs -P "${JOBS:-2}" -n 3 bash -c 'run "$@"' _
