#!/usr/bin/env bash
# Base images for tests, without a registry: bootstraps root file systems of
# Debian into .cache/base and builds the images of all languages into
# .cache/images, where tests look for them (HEARTH_TEST_IMAGES names another
# directory). Images that are there stay, unless their guests are not those of
# bin/hearth, which has to be built before. Needs what scripts/base-images.sh
# needs.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/env.sh

store=${HEARTH_TEST_IMAGES:-$PWD/.cache/images}
base=$PWD/.cache/base
if ! [ -x bin/hearth ]; then
	echo "error: there is no bin/hearth" >&2
	echo "hint: make build" >&2
	exit 1
fi

missing=$(bin/hearth images list --images-dir "$store" -o json | python3 -c '
import json, sys
there = {i["language"] for i in json.load(sys.stdin) if i["current"]}
print(*(l for l in ("python", "nodejs", "provided") if l not in there))')
[ -n "$missing" ] || exit 0

scripts/base-images.sh "$base"
step "building base images: $missing"
for language in $missing; do
	bin/hearth images build "$language" --images-dir "$store" --base "$base/$language.tar"
done
bin/hearth images prune --images-dir "$store"
