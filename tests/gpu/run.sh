#!/usr/bin/env bash
# What holds and how fast it is on a machine with one NVIDIA card and no network, in eight minutes:
#
#   tests/gpu/wheels.sh                       beforehand, where there is a network
#   tests/gpu/run.sh [--out DIR]              all of it; DIR/results.json and a table
#   tests/gpu/run.sh --device cpu             a tiny dry run through every part, without a card
#   tests/gpu/run.sh --minutes N              end the last part after N minutes (8, with --device cpu 20)
#   tests/gpu/run.sh --films ROOT             first of all the recipe of experiments/fractures.yaml on
#                                             ROOT/table.csv (tests/gpu/films.py): three seeds
#   tests/gpu/run.sh --weights FILE           of its encoder
#
# PYTHON names the interpreter (python3). What it lacks is installed from tests/gpu/wheels into DIR.
# The parts come in the order of their worth, each within a time limit of its own: one that fails or
# is late is a row of the table, and the next one starts. Exit status: 0 done, 1 some part failed or
# did not run (named), 2 wrong arguments.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 2

python=${PYTHON:-python3} device=cuda minutes=8 slower=1 films="" weights=null
out=runs/gpu/$(date +%Y%m%d-%H%M%S)
while [ $# -gt 0 ]; do
  case "$1 ${2:-}" in
    "--device cpu") device=cpu minutes=20 slower=2 ;;
    "--out "?*) out=$2 ;;
    "--minutes "[0-9]*) minutes=$2 ;;
    "--films "?*) films=$(realpath "$2") ;;
    "--weights "?*) weights=$(realpath "$2") ;;
    *)
      echo "error: wrong argument: expected --device cpu, --out, --minutes, --films or --weights, got $1 ${2:-}. Fix: see $0" >&2
      exit 2
      ;;
  esac
  shift 2
done
if [ -n "$(ls -A "$out" 2> /dev/null)" ]; then
  echo "error: $out is in use: expected a new folder, got one with files in it. Fix: choose another --out" >&2
  exit 2
fi
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 2

export DECISION_BASIS_DEVICE=$device PYTHONPATH="$PWD:$out/site"
export NO_ALBUMENTATIONS_UPDATE=1 WANDB_MODE=disabled MPLBACKEND=Agg
if [ "$device" = cuda ]; then nvidia-smi --query-gpu=name,driver_version --format=csv,noheader > "$out/card"; fi
deadline=$((SECONDS + 60 * minutes)) failed=0

# part NAME SECONDS COMMAND...: note its status and time; the card's memory is sampled meanwhile.
part() {
  local name=$1 limit=$((slower * $2)) left=$((deadline - SECONDS)) status=0 begun=$SECONDS sampler=""
  shift 2
  if [ "$limit" -gt "$left" ]; then limit=$left; fi
  echo "== $name, at most $limit s: $*"
  if [ "$limit" -lt 5 ]; then
    status=no-time
  else
    if [ "$device" = cuda ]; then
      nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -lms 250 > "$out/$name.memory" &
      sampler=$!
    fi
    timeout --signal=INT --kill-after=10 "$limit" "$@" > "$out/$name.log" 2>&1 || status=$?
    if [ -n "$sampler" ]; then kill "$sampler" && wait "$sampler" 2> /dev/null; fi
    tail -n 3 "$out/$name.log"
  fi
  [ "$status" = 0 ] || failed=1
  printf '%s\t%s\t%s\t%s\n' "$name" "$status" $((SECONDS - begun)) "$limit" >> "$out/parts.tsv"
}

words="run.root=$out/runs logger.wandb=off trainer.accelerator=$device"
quick=() sizes=(320 160) batches=(64 16 256) workers=(8 0 4)
if [ "$device" = cpu ]; then
  words+=" data.count=80 data.image_size=64 data.batch_size=8 model.width=0.25 trainer.max_epochs=1"
  quick=(--quick model.width=0.25) sizes=(64) batches=(8 16) workers=(1 0)
fi
# training TARGET SECONDS: a target of the Makefile, on the phantom
training() {
  part "$1" "$2" make "$1" PYTHON="$python" ROOT="$out/phantom" ARGS="$words"
}
# bench ROWS SIZE BATCH WORKERS SECONDS
bench() {
  local name="bench-$1-$2px-$3-$4workers"
  part "${name//,/-}" "$5" "$python" -m experiments.bench --rows "$1" --json "$out/${name//,/-}.json" \
    "${quick[@]}" "data.image_size=$2" "data.batch_size=$3" "data.num_workers=$4" \
    "data.root=$out/bench-phantom" "run.root=$out/runs" "trainer.accelerator=$device"
}

packages=(albumentations jinja2 omegaconf packaging PIL pycocotools pydicom scipy simplejpeg tqdm wandb yaml)
missing="import sys, importlib.util; sys.exit(None in map(importlib.util.find_spec, sys.argv[1:]))"
if ! "$python" -c "$missing" "${packages[@]}"; then
  part install 60 "$python" -m pip install --quiet --no-index --no-deps --target "$out/site" tests/gpu/wheels/*.whl
fi
part packages 60 "$python" -c "import sys; [__import__(name) for name in sys.argv[1:]]" "${packages[@]}"
if [ -n "$films" ]; then
  recipe="${words/model.width=0.25/} data.contrast=none data.crop=none data.cache_dir=$out/cache model.weights=$weights"
  for seed in 0 1 2; do
    part "recipe-$seed" 240 make fractures PYTHON="$python" DATA=table ROOT="$films" RUN=recipe SEEDS="$seed" ARGS="$recipe"
  done
  part recipe 120 "$python" -m experiments.evaluate "$out"/runs/table/stage3/recipe-seed? --no-baselines
fi
part tests 200 "$python" -m pytest -m gpu tests/gpu -q -rs -W default -p no:cacheprovider -o junit_family=xunit1 --junitxml "$out/tests.xml"
bench step,stages "${sizes[0]}" "${batches[0]}" 0 90 # compiling takes most of it
for number in "${workers[@]}"; do
  bench data "${sizes[0]}" "${batches[0]}" "$number" 40
done
training data 60
training stage1 100
training stage3 120
training stage2 100
part evaluate 90 make evaluate PYTHON="$python" ROOT="$out/phantom" ARGS="run.root=$out/runs"
bench maps "${sizes[0]}" "${batches[0]}" 0 40
for size in "${sizes[@]}"; do
  for batch in "${batches[@]}"; do
    if [ "$size-$batch" != "${sizes[0]}-${batches[0]}" ]; then bench step "$size" "$batch" 0 40; fi
  done
done

"$python" tests/gpu/table.py "$out" || failed=1
exit "$failed"
