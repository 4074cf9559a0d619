#!/bin/sh
# Run by the image before NGINX starts: disables HTTPS if there is no certificate.
[ -e /etc/nginx/certs/fullchain.pem ] || rm -f /etc/nginx/conf.d/https.conf
