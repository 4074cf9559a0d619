# shellcheck shell=bash
# Builds the release and tries its wheel as a new user: with pip in a bare virtual environment, with uvx and with pipx.
# `inference-proxy demo` answers a request. Also compares the bill of materials with requirements.txt.
scripts/release.sh
folder="$(mktemp -d)"
trap 'kill "${demo-}" 2>/dev/null || true; rm -r "$folder"' EXIT
python="$(find_python)"
wheel="$(echo "$PWD"/dist/*.whl)"

echo "== the bill of materials names the packages of requirements.txt, and no others"
(cd dist && sha256sum --check --quiet SHA256SUMS)
.venv-release/bin/python - > "$folder/locked" <<'END'
import re
from packaging.requirements import Requirement
for line in re.findall(r"^[\w.-]+==[^\\\n]*", open("requirements.txt").read(), re.MULTILINE):
    requirement = Requirement(line)
    if requirement.marker is None or requirement.marker.evaluate():
        print(f"{requirement.name}{requirement.specifier}".lower().replace("_", "-"))
END
sort --output "$folder/locked" "$folder/locked"
"$python" -c 'import json, sys; [print(c["name"] + "==" + c["version"]) for c in json.load(sys.stdin)["components"]]' \
  < dist/*.cdx.json | tr '[:upper:]_' '[:lower:]-' | sort > "$folder/named"
[[ -s "$folder/named" ]] || fail "the bill of materials is empty"
diff "$folder/locked" "$folder/named" || fail "the bill of materials differs from requirements.txt"

"$python" -m venv "$folder/user"
export PATH="$folder/user/bin:$PATH" XDG_CACHE_HOME="$folder/cache" PIP_CACHE_DIR="${PIP_CACHE_DIR:-$HOME/.cache/pip}"
pip install --quiet --disable-pip-version-check "${wheel}[demo]"
cd "$folder" # away from the sources
version="$(inference-proxy --version)"
[[ "$wheel" == *"-${version##* }-"* ]] || fail "the wheel says that it is $version"

echo "== uvx and pipx start the wheel"
grep -oE "(uvx --from|pipx run --spec) '\.\[demo\]' inference-proxy" "$OLDPWD/README.md" > "$folder/commands"
[[ "$(wc -l < "$folder/commands")" == 2 ]] || fail "the README has no commands for uvx and pipx"
"$python" -m venv "$folder/starters"
"$folder/starters/bin/pip" install --quiet --disable-pip-version-check uv pipx
export PIPX_HOME="$folder/pipx"
# The README's commands, with the wheel in place of the folder.
while read -r command; do
  command="${command//.\[demo\]/$wheel[demo]} --version"
  [[ "$(PATH="$folder/starters/bin:$PATH" bash -c "$command" < /dev/null)" == "$version" ]] || fail "fails: $command"
done < "$folder/commands"

echo "== the demo answers"
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
