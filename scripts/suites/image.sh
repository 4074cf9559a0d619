# shellcheck shell=bash
# Builds the image with buildah and tries it: health check, user, SIGTERM. Needs root, buildah and curl, and no Docker.
# Argument: the Dockerfile's base image, if not its own
# Prints what a download of the image adds to a download of its base image, and how large the base image is.
export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot
readonly image=localhost/inference-proxy-test
port="$(free_port)"

words() { # $1: a list in the image's configuration, one word a line
  buildah inspect --type image --format "{{range .Docker.Config.$1}}{{println .}}{{end}}" "$image" | sed '/^$/d'
}

# Docker's image format, because the OCI format has no health check.
buildah bud --format docker --network host ${1:+--build-arg "BASE=$1"} --tag "$image" .
folder="$(mktemp -d)"
echo "== size"
buildah push --quiet "$image" "dir:$folder"
# buildah makes one layer of all that the Dockerfile adds.
"$(find_python)" - "$folder/manifest.json" <<'END' || fail "the image is too large"
import json, sys
sizes = [layer["size"] / 1e6 for layer in json.load(open(sys.argv[1]))["layers"]]
print(f"compressed: {sum(sizes[:-1]):.1f} MB of the base image, and {sizes[-1]:.1f} MB on top")
sys.exit(sizes[-1] > 40)
END
rm -r "$folder"

container="$(buildah from "$image")"
trap 'buildah rm "$container" >/dev/null' EXIT

in_container() { buildah run --network host --env "PORT=$port" "$container" -- "$@"; }

echo "== user"
user="$(in_container python -c 'import os; print(os.getuid(), os.getgid())')"
[[ "$user" == "10001 10001" ]] || fail "runs as $user"

echo "== no compiler"
in_container sh -c '! command -v cc && ! command -v gcc && ! command -v make' || fail "there is one"

echo "== health check fails before the start"
mapfile -t check < <(words Healthcheck.Test)
[[ "${check[0]}" == CMD ]] || fail "the health check needs a shell"
check=("${check[@]:1}")
if in_container "${check[@]}" 2>/dev/null; then fail "is healthy without the proxy"; fi

echo "== health check passes after the start"
mapfile -t command < <(words Cmd)
log="$(mktemp)"
# shellcheck disable=SC2016 # the container's shell expands these
buildah run --network host --env "PORT=$port" --env BACKENDS=http://127.0.0.1:9 "$container" -- \
  sh -c 'echo "$$"; exec "$@"' sh "${command[@]}" >"$log" 2>&1 &
runner="$!"
for _ in $(seq 60); do
  if in_container "${check[@]}" 2>/dev/null; then healthy=yes; break; fi
  sleep 0.5
done
[[ "${healthy-}" == yes ]] || { cat "$log"; fail "never became healthy"; }
curl -fsS "http://127.0.0.1:$port/health"; echo

echo "== SIGTERM ends it with 0"
kill -TERM "$(head -n 1 "$log")" # buildah's chroot has the processes of this machine
wait "$runner" || { cat "$log"; fail "exit code $?"; }
rm "$log"
echo "The image is good."
