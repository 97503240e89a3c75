#!/usr/bin/env bash
# Two-layer models whose loss stands still and then drops, for claim K4: lines of random characters, each written twice.
#
#   scripts/train_repeats.sh
#
# Nothing predicts the first copy and all of the second is known, so that the loss falls once, when attention has learned
# to look back. Runs go to $OUTPUT (outputs/repeats), $JOBS (2) at a time, one thread each; finished ones are skipped.
# Then: natattn analyze runs='outputs/repeats/width*' sections=[curves,training]
set -euo pipefail
output=${OUTPUT:-outputs/repeats}
mkdir -p "$output"
awk 'BEGIN { srand(1); for (line = 0; line < 20000; line++) { word = ""; for (i = 0; i < 16; i++)
  word = word sprintf("%c", 35 + int(88 * rand())); print word word } }' > "$output/train.txt"
awk 'BEGIN { srand(2); for (line = 0; line < 600; line++) { word = ""; for (i = 0; i < 16; i++)
  word = word sprintf("%c", 35 + int(88 * rand())); print word word } }' > "$output/validation.txt"

run() {
  local seed=$1 folder=$output/width64_seed$1
  if grep -qs '"status": "\(finished\|diverged\)"' "$folder/run.json"; then return; fi
  if [ -e "$folder/config.yaml" ]; then
    natattn train resume="$folder" >> "$output/log.txt" 2>&1 && return
  fi
  natattn train model=natural reference=none size=pico size.n_head=4 size.context=64 tokenizer=byte tracker=off \
    data=text data.train="$output/train.txt" data.validation="$output/validation.txt" seed="$seed" optim=adamw \
    ++optim.learning_rates.hidden=0.004 train.steps="${STEPS:-1500}" train.batch_size=32 train.max_seconds=null \
    train.evaluate_every="${EVALUATE_EVERY:-20}" schedule=constant hydra.run.dir="$folder" >> "$output/log.txt" 2>&1 ||
    echo "failed: $seed" >&2
  rm -rf "$folder/checkpoints"
}
export -f run
export output OMP_NUM_THREADS=1
printf '%s\n' ${SEEDS:-1 2 3 4 5} | xargs -P "${JOBS:-2}" -n 1 bash -c 'run "$@"' _
