#!/usr/bin/env bash
# Every study on a Slurm cluster, 32 jobs at a time: run it where sbatch is known; it waits for the jobs, and can be
# started again after an interruption.
#   pip install 'natattn[slurm]'
#   scripts/studies/ledger_on_slurm.sh FOLDER_WITH_WIKITEXT2 PARTITION [key=value ...]
set -euo pipefail
exec natattn reproduce study=all budget="${BUDGET:-gpu}" wikitext="$1" hydra/launcher=submitit_slurm \
  hydra.launcher.partition="$2" hydra.launcher.gpus_per_node=1 hydra.launcher.cpus_per_task=8 \
  hydra.launcher.timeout_min=240 hydra.launcher.array_parallelism=32 "${@:3}"
