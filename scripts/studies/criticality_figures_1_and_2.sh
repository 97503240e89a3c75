#!/usr/bin/env bash
# Paper K, figure 1 (correlation length, susceptibility) and figure 2 (cascades), critical temperatures over widths.
#   scripts/studies/criticality_figures_1_and_2.sh FOLDER_WITH_WIKITEXT2 [key=value ...]
# → outputs/reproduce/criticality_cpu/figures/, tables/
set -euo pipefail
exec natattn reproduce study=criticality budget="${BUDGET:-cpu}" wikitext="$1" "${@:2}"
