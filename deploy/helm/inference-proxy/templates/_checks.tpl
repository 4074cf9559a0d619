{{/* Combinations of values that a schema cannot judge. */}}
{{- define "inference-proxy.checks" -}}
{{- $secret := include "inference-proxy.secretSettings" . | fromJson -}}
{{- if not (or .Values.backends (include "inference-proxy.fleetConfigMap" .) (hasKey $secret "ANNOUNCE_KEY") .Values.settings.DYNAMIC_BACKENDS_FILE) -}}
{{- fail "The proxy has no backends: set `backends`, `fleet.content` or `fleet.existingConfigMap`, or ANNOUNCE_KEY in `secrets`, with which engines announce themselves." -}}
{{- end -}}
{{- if and .Values.fleet.content .Values.fleet.existingConfigMap -}}
{{- fail "`fleet.content` and `fleet.existingConfigMap` exclude each other: set one of them." -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled .Values.keda.proxy.enabled -}}
{{- fail "`autoscaling.enabled` and `keda.proxy.enabled` exclude each other: two autoscalers would fight over the replicas." -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (kindIs "invalid" .Values.autoscaling.targetCPUUtilizationPercentage) (kindIs "invalid" .Values.autoscaling.targetRequestsInFlight) -}}
{{- fail "`autoscaling` has no target: set `targetCPUUtilizationPercentage`, `targetRequestsInFlight` or both." -}}
{{- end -}}
{{- range $name, $scaler := dict "autoscaling" .Values.autoscaling "keda.proxy" .Values.keda.proxy -}}
{{- if gt (int $scaler.minReplicas) (int $scaler.maxReplicas) -}}
{{- fail (printf "`%s.minReplicas` (%d) is above `%s.maxReplicas` (%d)." $name (int $scaler.minReplicas) $name (int $scaler.maxReplicas)) -}}
{{- end -}}
{{- end -}}
{{- range .Values.keda.engines -}}
{{- if gt (int .minReplicas) (int .maxReplicas) -}}
{{- fail (printf "`keda.engines`: `minReplicas` (%d) of %s is above `maxReplicas` (%d)." (int .minReplicas) .name (int .maxReplicas)) -}}
{{- end -}}
{{- if and (eq (int .minReplicas) 0) (not $.Values.fleet.existingConfigMap) (not (hasKey ($.Values.fleet.content.models | default dict) .model)) -}}
{{- fail (printf "`keda.engines`: %s starts from zero, so `fleet.content.models` must name its model %s. The proxy does not know a model that neither a backend nor the fleet file names." .name .model) -}}
{{- end -}}
{{- if and (eq (int .minReplicas) 0) (ne $.Values.probes.readiness.path "/livez") -}}
{{- fail (printf "`keda.engines`: %s starts from zero, so `probes.readiness.path` must be /livez. With /readyz, no pod gets the request that would start the first engine." .name) -}}
{{- end -}}
{{- end -}}
{{- if and (or .Values.secrets.existing.settings .Values.secrets.existing.keysFile) (not .Values.secrets.existing.name) -}}
{{- fail "`secrets.existing.name` is missing: it is the Secret that has `secrets.existing.settings` and `keysFile`." -}}
{{- end -}}
{{- if and .Values.secrets.existing.name (not .Values.secrets.existing.settings) (not .Values.secrets.existing.keysFile) -}}
{{- fail (printf "`secrets.existing.settings` is empty: list which settings the Secret %s has, such as [API_KEYS, ADMIN_KEY]." .Values.secrets.existing.name) -}}
{{- end -}}
{{- range .Values.secrets.existing.settings -}}
{{- if hasKey $.Values.secrets.settings . -}}
{{- fail (printf "%s is in `secrets.settings` and in `secrets.existing.settings`: set it once." .) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.secrets.keysFile .Values.secrets.existing.keysFile -}}
{{- fail "`secrets.keysFile` and `secrets.existing.keysFile` exclude each other: set one of them." -}}
{{- end -}}
{{- if eq (int .Values.port) (int .Values.adminPort) -}}
{{- fail (printf "`port` and `adminPort` are both %d: they must differ." (int .Values.port)) -}}
{{- end -}}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) -}}
{{- fail "`httpRoute.parentRefs` is empty: name the Gateway, such as [{name: gateway, namespace: gateways}]." -}}
{{- end -}}
{{- end -}}
