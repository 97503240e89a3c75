#!/usr/bin/env bash
# Models of several widths for claim K1, and one width evaluated often for K4: WikiText-2 valid→test in bytes, AdamW.
#
#   scripts/train_widths.sh FOLDER_WITH_WIKITEXT2
#
# Two families, never mixed: four heads whatever the width, and heads of 32 whatever the width. The learning rate is
# 0.004·√(128/width), the initial standard deviation 0.05·√(128/width); neither was tuned beyond width 128. Runs go to
# $OUTPUT (outputs/widths), $JOBS (2) at a time, one thread each; what is finished is skipped, what broke off resumed.
# $SEEDS (1 2 3) for the widths, $FINE_SEEDS (1 2 3 4 5) for the run that is evaluated every five steps.
# Then: natattn analyze runs='outputs/widths/heads4_*' sections=[widths]
set -euo pipefail
text=$1
output=${OUTPUT:-outputs/widths}
mkdir -p "$output"
head -c 120000 "$text/test.txt" > "$output/test_120k.txt"
head -c 40000 "$text/test.txt" > "$output/test_40k.txt"

run() {
  local family=$1 width=$2 heads=$3 seed=$4 steps=$5 every=$6 validation=$7 folder rate deviation
  folder=$output/${family}_width${width}_seed$seed
  if grep -qs '"status": "\(finished\|diverged\)"' "$folder/run.json"; then return; fi
  if [ -e "$folder/config.yaml" ]; then
    natattn train resume="$folder" >> "$output/log.txt" 2>&1 && return
  fi
  rate=$(awk "BEGIN { printf \"%.5f\", 0.004 * sqrt(128 / $width) }")
  deviation=$(awk "BEGIN { printf \"%.4f\", 0.05 * sqrt(128 / $width) }")
  natattn train model=natural reference=none size=nano size.n_embd="$width" size.n_head="$heads" \
    size.initializer_range="$deviation" tokenizer=byte tracker=off data=text data.train="$text/valid.txt" \
    data.validation="$output/$validation" seed="$seed" optim=adamw ++optim.learning_rates.hidden="$rate" \
    train.steps="$steps" train.batch_size=8 train.max_seconds=null train.evaluate_every="$every" \
    train.checkpoint_every=200 hydra.run.dir="$folder" >> "$output/log.txt" 2>&1 ||
    echo "failed: $family $width $seed" >&2
  rm -rf "$folder/checkpoints"
}
export -f run
export text output OMP_NUM_THREADS=1

{
  for seed in ${SEEDS:-1 2 3}; do
    for width in 256 192 128 96 64 32; do echo "heads4 $width 4 $seed 1000 50 test_120k.txt"; done
  done
  for seed in ${FINE_SEEDS:-1 2 3 4 5}; do echo "fine 128 4 $seed 400 5 test_40k.txt"; done
  for seed in ${SEEDS:-1 2 3}; do
    for width in 256 192 128 96 64 32; do echo "dim32 $width $((width / 32)) $seed 1000 50 test_120k.txt"; done
  done
} | xargs -P "${JOBS:-2}" -n 7 bash -c 'run "$@"' _
