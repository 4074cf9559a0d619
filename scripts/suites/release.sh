# shellcheck shell=bash
# Builds the release and tries its wheel in a bare virtual environment: `inference-proxy demo` answers a request.
folder="$(mktemp -d)"
trap 'kill "${demo-}" 2>/dev/null || true; rm -r "$folder"' EXIT
python="$(find_python)"

"$python" -m venv "$folder/build"
"$folder/build/bin/pip" install --quiet --disable-pip-version-check build twine
"$folder/build/bin/python" -m build --outdir "$folder/dist" . # the source archive, and the wheel out of that
"$folder/build/bin/twine" check --strict "$folder"/dist/*

"$python" -m venv "$folder/user"
export PATH="$folder/user/bin:$PATH" XDG_CACHE_HOME="$folder/cache" PIP_CACHE_DIR="${PIP_CACHE_DIR:-$HOME/.cache/pip}"
wheel="$(echo "$folder"/dist/*.whl)"
pip install --quiet --disable-pip-version-check "${wheel}[demo]"
cd "$folder" # away from the sources
inference-proxy --version

port="$(free_port)"
PORT="$port" inference-proxy demo > log 2>&1 &
demo="$!"
until grep -qs 'curl -N' log; do
  kill -0 "$demo" 2>/dev/null || { cat log; fail "the demo ended"; }
  sleep 0.5
done
grep -o 'curl -N.*' log | bash > answer 2> /dev/null
curl --silent --fail --header 'Accept: text/html' "http://127.0.0.1:$port/" | grep -o 'dashboard/page/[a-z/_]*[.][a-z]*' > files
while read -r file; do curl --silent --fail --output /dev/null "http://127.0.0.1:$port/$file" || fail "the wheel lacks $file"; done < files
[[ -s files ]] || fail "the wheel has no page"
kill -TERM "$demo"
wait "$demo" || { cat log; fail "the demo ended with $?"; }
unset demo
tail -n 2 answer | grep -q 'data: \[DONE\]' || { cat answer log; fail "no whole answer"; }
echo "The release is good: $(basename "$wheel")"
