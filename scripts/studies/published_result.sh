#!/usr/bin/env bash
# The author's headline, as published and with the causal mask that it lacks.
#   scripts/studies/published_result.sh FOLDER_WITH_WIKITEXT2 [key=value ...]
# → outputs/reproduce/published_cpu/tables/published_arms.{md,tex,csv}, published_differences.*
set -euo pipefail
exec natattn reproduce study=published budget="${BUDGET:-cpu}" wikitext="$1" "${@:2}"
