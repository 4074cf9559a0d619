#!/usr/bin/env bash
# Builds a release in dist/: source archive, wheel, software bill of materials (CycloneDX) and checksums.
# The same commit gives the same files. Fails if the image's packages lack a wheel for one of its two architectures.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/venv.sh

readonly tools='build>=1.3,<2 twine>=7,<8 cyclonedx-bom>=7.2,<8'
if [[ "$(cat .venv-release/installed 2>/dev/null)" != "$tools" ]]; then
  "$(find_python)" -m venv --clear .venv-release
  # shellcheck disable=SC2086 # one argument for each tool
  .venv-release/bin/pip install --quiet --disable-pip-version-check $tools
  echo "$tools" > .venv-release/installed
fi
export PATH="$PWD/.venv-release/bin:$PATH" PIP_DISABLE_PIP_VERSION_CHECK=1
SOURCE_DATE_EPOCH="$(git log -1 --format=%ct)" # the time of all files in the archives
export SOURCE_DATE_EPOCH

rm -rf dist
python -m build --outdir dist . # the source archive, and the wheel from it
twine check --strict dist/*

folder="$(mktemp -d)"
trap 'rm -r "$folder"' EXIT
for machine in x86_64 aarch64; do
  echo "== wheels of requirements.txt for $machine"
  pip download --quiet --no-deps --require-hashes --only-binary :all: --python-version 3.13 \
    --platform "manylinux2014_$machine" --platform "manylinux_2_17_$machine" --platform "manylinux_2_28_$machine" \
    --dest "$folder/$machine" --requirement requirements.txt
done

echo "== bill of materials"
wheel="$(echo dist/*.whl)"
readonly materials="${wheel%-py3-none-any.whl}.cdx.json"
python -m venv --without-pip "$folder/image"
pip --python "$folder/image/bin/python" install --quiet --require-hashes --only-binary :all: --requirement requirements.txt
cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file "$folder/materials" "$folder/image/bin/python"
# cyclonedx-py does not know a version that pyproject.toml calls dynamic.
python - "$folder/materials" "${wheel#*-}" > "$materials" << 'END'
import json, sys
materials = json.load(open(sys.argv[1]))
materials["metadata"]["component"]["version"] = sys.argv[2].split("-")[0]
json.dump(materials, sys.stdout, indent=1)
END

(cd dist && sha256sum -- * > SHA256SUMS && cat SHA256SUMS)
