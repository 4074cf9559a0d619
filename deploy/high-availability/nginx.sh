#!/bin/sh
# Writes the configuration in nginx/ for an NGINX that runs without a container, such as Debian's:
#   PROXIES=10.0.0.11:8888,10.0.0.12:8888 deploy/high-availability/nginx.sh /etc/nginx
#   nginx -t && systemctl reload nginx
# Remove the distribution's own site first (Debian: /etc/nginx/sites-enabled/default). Variables: PROXIES, and those that
# docker-compose.cpu.yml gives to NGINX; LISTEN, LISTEN_TLS (80, 443), ACCESS_LOG_FILE and NGINX_LOCAL_RESOLVERS. Names
# in PROXIES need NGINX 1.27.3; addresses do not. HTTPS is on if FOLDER/certs has a fullchain.pem.
set -eu
folder="${1:?usage: PROXIES=ADDRESS:PORT,... nginx.sh FOLDER}"
: "${PROXIES:?set PROXIES to the addresses of the replicas, separated by commas}"
source="$(cd "$(dirname "$0")/../../nginx" && pwd)"
. "$source/15-read-timeout.envsh"
. "$source/16-proxies.envsh"
ACCESS_LOG_FILE="${ACCESS_LOG_FILE:-/var/log/nginx/inference-proxy.log}"
NGINX_LOCAL_RESOLVERS="${NGINX_LOCAL_RESOLVERS:-$(awk '$1 == "nameserver" { print ($2 ~ /:/ ? "[" $2 "]" : $2) }' /etc/resolv.conf)}"
mkdir -p "$folder/conf.d"
for template in "$source"/templates/*.template; do
  name="$(basename "$template" .template)"
  [ "$name" != https.conf ] || [ -e "$folder/certs/fullchain.pem" ] || continue
  sed \
    -e "s|\${MAX_REQUEST_BODY_BYTES}|${MAX_REQUEST_BODY_BYTES:-67108864}|g" \
    -e "s|\${PROXY_READ_TIMEOUT_SECONDS}|$PROXY_READ_TIMEOUT_SECONDS|g" \
    -e "s|\${NGINX_LOCAL_RESOLVERS}|$(echo ${NGINX_LOCAL_RESOLVERS:-127.0.0.1})|g" \
    -e "s|\${ACCESS_LOG_PROBES}|${ACCESS_LOG_PROBES:-false}|g" \
    -e "s|\${PROXY_SERVERS}|$(echo $PROXY_SERVERS)|g" \
    -e "s|/dev/stdout|$ACCESS_LOG_FILE|g" \
    -e "s|/etc/nginx/|$folder/|g" \
    -e "s|listen 80;|listen ${LISTEN:-80};|" \
    -e "s|listen 443 |listen ${LISTEN_TLS:-443} |" \
    "$template" > "$folder/conf.d/$name.new"
  mv "$folder/conf.d/$name.new" "$folder/conf.d/$([ "$name" = default.conf ] && echo inference-proxy.conf || echo "$name")"
done
