#!/usr/bin/env bash
# Does an attention-informed optimizer beat tuned Muon and AdamW? The six best of the screening, with placebos.
#   scripts/studies/optimizers.sh FOLDER_WITH_WIKITEXT2 [key=value ...]
# → outputs/reproduce/optimizers_cpu/tables/optimizers_arms.{md,tex,csv}, optimizers_differences.*
set -euo pipefail
exec natattn reproduce study=optimizers budget="${BUDGET:-cpu}" wikitext="$1" "${@:2}"
