#!/usr/bin/env bash
# Paper A, table 1: convergence, final quality, overhead and stability of attention-informed optimization.
#   scripts/studies/attention_informed_table_1.sh FOLDER_WITH_WIKITEXT2 [key=value ...]
# → outputs/reproduce/claims_cpu/tables/claims_arms.{md,tex,csv}, claims_differences.*
set -euo pipefail
exec natattn reproduce study=claims budget="${BUDGET:-cpu}" wikitext="$1" "${@:2}"
