#!/bin/sh
# Run by the image before NGINX starts: HTTPS only with a certificate.
[ -e /etc/nginx/certs/fullchain.pem ] || rm -f /etc/nginx/conf.d/https.conf
