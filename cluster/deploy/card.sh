#!/usr/bin/env bash
# A machine with a GPU for a few minutes, perhaps without network: measure the card, then train with the time left.
#
#   cluster/deploy/card.sh --wheels WHEELS                  # before, where there is network: download 7 MiB of wheels
#   cluster/deploy/card.sh WHEELS OUT [MINUTES [BENCH]]     # 14 minutes in all, at most 9 of them for the bench
#   NARROW=1 cluster/deploy/card.sh WHEELS OUT 4 2          # a rehearsal without a GPU
#
# The machine needs Python 3.11 or later with torch, transformers, pyarrow and numpy. What else the two commands import
# is installed from WHEELS into a temporary folder; PYTHON_VERSION=311 downloads for another Python than 3.12 (x86-64).
# No Ray, no W&B, no hub. OUT gets gpu.json and card.log, and, if time is left, the shipped denoiser of `scenes-dit`
# trained on, with its card. Each step has its time limit; what is there when the time is over is complete. BENCH=0
# leaves the bench out. The rehearsal was run; on a GPU it has not been run yet.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
PYTHON=${PYTHON:-python3}
NEEDED=(diffusers==0.42.1 google-crc32c==1.9.0 omegaconf==2.4.0 antlr4-python3-runtime==4.13.2)
LEAST=60 # seconds under which training on is not worth its start

if [ "${1:-}" = --wheels ]; then
  platforms=(manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64)
  exec "$PYTHON" -m pip download --no-deps --only-binary=:all: --implementation cp \
    --python-version "${PYTHON_VERSION:-312}" "${platforms[@]/#/--platform=}" -d "$2" "${NEEDED[@]}"
fi

wheels=${1:?the folder of the wheels} out=${2:?the output folder} minutes=${3:-14} bench=${4:-9}
seconds() { awk "BEGIN { print int(60 * ($1)) }"; }
started=$(date +%s) total=$(seconds "$minutes") bench=$(seconds "$bench")
passed() { echo $(($(date +%s) - started)); }
mkdir -p "$out"
exec > >(tee -a "$out/card.log") 2>&1
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
device=(--device cuda) narrow=()
if [ -n "${NARROW:-}" ]; then device=(--device cpu) narrow=(--narrow); fi

"$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target "$site" \
  "$wheels"/*.whl || exit 1
export PYTHONPATH="$site:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1

if [ "$bench" -gt 0 ]; then
  if [ "$bench" -gt $((total - 20)) ]; then bench=$((total - 20)); fi
  echo "measuring the card for at most $bench s"
  timeout -k 10 $((bench + 10)) "$PYTHON" -m sweeps bench gpu "${device[@]}" "${narrow[@]}" \
    --minutes "$(awk "BEGIN { print $bench / 60 }")" --out "$out/gpu.json"
  echo "the bench ended with code $? after $(passed) s"
fi

spare=$((total - $(passed) - 20))
if [ "$spare" -lt "$LEAST" ]; then
  echo "$spare s are left: too few to train"
  exit 0
fi
echo "training for $spare s"
timeout -k 5 $((spare + 10)) "$PYTHON" -m sweeps train-scenes "$site/work" "$site/trained" --network dit \
  --start shipped "${device[@]}" --minutes "$(awk "BEGIN { print $spare / 60 }")"
echo "the training ended with code $? after $(passed) s"
for file in transformer/diffusion_pytorch_model.safetensors transformer/config.json CARD.md contact.jpg; do
  if [ -f "$site/trained/dit/$file" ]; then cp "$site/trained/dit/$file" "$out/${file//\//-}"; fi
done
echo "done after $(passed) s"
