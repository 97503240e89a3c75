#!/usr/bin/env bash
# Paper K, table 1: its optimizer (critical) and those of paper F (fa_adam, multiscale) beside the baseline.
#   scripts/studies/criticality_table_1.sh FOLDER_WITH_WIKITEXT2 [key=value ...]
# → outputs/reproduce/claims_cpu/tables/claims_arms.{md,tex,csv}, claims_differences.*
set -euo pipefail
exec natattn reproduce study=claims budget="${BUDGET:-cpu}" wikitext="$1" 'only=[adamw,critical,fa_adam,multiscale]' "${@:2}"
