#!/usr/bin/env bash
# Fetch the wheels for tests/gpu/run.sh, for a machine with one NVIDIA card and no network:
#
#   tests/gpu/wheels.sh          into tests/gpu/wheels/, which travels with the checkout
#
# For CPython 3.12 on x86-64 Linux, at the versions of constraints.txt, about 33 MB. Dependencies are
# named one by one: pip would bring torch and its CUDA libraries, which the machine has.
set -euo pipefail
cd "$(dirname "$0")/../.."

python=${PYTHON:-python3}
folder=tests/gpu/wheels
most=50 # MB, with the checkout

# Direct dependencies that the machine must have, at versions of its own.
present=(
  torch torchvision pytorch-lightning torchmetrics numpy pandas matplotlib opencv-python-headless
  scipy pillow pyyaml tqdm packaging jinja2
)
# Those it lacks, each with what its import needs.
lacking=(
  albumentations albucore stringzilla simsimd
  pydantic pydantic-core annotated-types typing-inspection typing-extensions
  wandb cwevals platformdirs googleapis-common-protos opentelemetry-api opentelemetry-sdk
  opentelemetry-proto opentelemetry-semantic-conventions opentelemetry-exporter-http-transport
  opentelemetry-exporter-otlp-common opentelemetry-exporter-otlp-proto-common
  opentelemetry-exporter-otlp-proto-http
  omegaconf pycocotools pydicom simplejpeg timm safetensors
)

platforms=(manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64)
rm -rf "$folder"
"$python" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
  --implementation cp --abi cp312 --abi abi3 --abi none "${platforms[@]/#/--platform=}" \
  --constraint constraints.txt --dest "$folder" "${lacking[@]}"

size=$(($({ git ls-files -z && find "$folder" -type f -print0; } | xargs -0 du -cb | tail -n 1 | cut -f 1) / 1000000))
echo "$(find "$folder" -name '*.whl' | wc -l) wheels in $folder, $size MB with the checkout"
echo "expected on the machine: ${present[*]}"
if [ "$size" -gt "$most" ]; then
  echo "error: too large: expected at most $most MB with the checkout, got $size MB. Fix: fetch less in $0" >&2
  exit 1
fi
