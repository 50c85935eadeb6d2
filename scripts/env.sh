# Sourced by the scripts in the root of the repository: finds Go where
# scripts/setup.sh or a usual installation put it.
export PATH="$PWD/.cache/go/bin:$PATH:/usr/local/go/bin"
step() { printf '\n==> %s (%ds)\n' "$*" "$SECONDS"; }
