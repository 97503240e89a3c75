#!/usr/bin/env bash
# The grid of claim K3, N·d = C·√(L·H(x)): heads × head_dim at a fixed number of parameters, several context lengths,
# and grammars of several entropies (0.53, 1.15 and 3.0 nats/token, known exactly).
#
#   scripts/train_head_grid.sh
#
# Two layers, 320,000 parameters in all, embeddings included: what attention does not use goes to the MLP. 1,024 tokens
# a step, 300 steps, learning rate 0.01·√(32/width), not tuned by cell. Runs go to $OUTPUT (outputs/head_grid), $JOBS
# (2) at a time, one thread each; what is finished is skipped. $SEEDS (1), $RULES (2 32 4), $HEADS (2 8).
# Then: natattn analyze runs='outputs/head_grid/*' sections=[scaling]
set -euo pipefail
output=${OUTPUT:-outputs/head_grid}
parameters=320000
vocabulary=369 # of the tokenizer that is trained on these grammars
mkdir -p "$output"

run() {
  local rules=$1 context=$2 width=$3 heads=$4 seed=$5 folder inner rate deviation
  folder=$output/rules${rules}_context${context}_width${width}_heads${heads}_seed$seed
  if grep -qs '"status": "\(finished\|diverged\)"' "$folder/run.json"; then return; fi
  if [ -e "$folder/config.yaml" ]; then
    natattn train resume="$folder" >> "$output/log.txt" 2>&1 && return
  fi
  inner=$(((parameters - (vocabulary + context) * width - 8 * width * width) / (4 * width)))
  rate=$(awk "BEGIN { printf \"%.5f\", 0.01 * sqrt(32 / $width) }")
  deviation=$(awk "BEGIN { printf \"%.4f\", 0.05 * sqrt(128 / $width) }")
  natattn train model=natural reference=none size=pico size.n_embd="$width" size.n_head="$heads" \
    size.n_inner="$inner" size.context="$context" size.initializer_range="$deviation" data=grammar \
    data.rules="$rules" data.train_tokens=400000 data.validation_tokens=20000 data.test_tokens=0 tokenizer=bpe \
    tracker=off seed="$seed" optim=adamw ++optim.learning_rates.hidden="$rate" train.steps=300 \
    train.batch_size=$((1024 / context)) train.max_seconds=null train.evaluate_every=150 \
    hydra.run.dir="$folder" >> "$output/log.txt" 2>&1 || echo "failed: $folder" >&2
  rm -rf "$folder/checkpoints" "$folder/arms"
}
export -f run
export output parameters vocabulary OMP_NUM_THREADS=1

for seed in ${SEEDS:-1}; do
  for rules in ${RULES:-2 32 4}; do
    for context in 32 256 128 64; do
      for width in 16 32 64 96 128 160; do
        for heads in ${HEADS:-2 8}; do echo "$rules $context $width $heads $seed"; done
      done
    done
  done
done | xargs -P "${JOBS:-2}" -n 5 bash -c 'run "$@"' _
