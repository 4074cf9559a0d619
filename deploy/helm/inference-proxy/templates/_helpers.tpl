{{- define "inference-proxy.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 47 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 47 characters, so that `-recording-rules` fits into the 63 of a DNS label. */}}
{{- define "inference-proxy.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 47 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 47 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 47 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "inference-proxy.selectorLabels" -}}
app.kubernetes.io/name: {{ include "inference-proxy.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: proxy
{{- end -}}

{{- define "inference-proxy.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "inference-proxy.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "inference-proxy.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "inference-proxy.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "inference-proxy.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* A number without an exponent: Helm reads numbers as floats, and prints 67108864 as 6.7108864e+07. */}}
{{- define "inference-proxy.value" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) -}}
{{- int64 . -}}
{{- else -}}
{{- . -}}
{{- end -}}
{{- end -}}

{{/* One setting in seconds, or its default: (list . "DRAIN_GRACE_SECONDS" 5) */}}
{{- define "inference-proxy.seconds" -}}
{{- $value := index (index . 0).Values.settings (index . 1) -}}
{{- if kindIs "invalid" $value -}}{{ index . 2 }}{{- else -}}{{ $value }}{{- end -}}
{{- end -}}

{{- define "inference-proxy.terminationSeconds" -}}
{{- $grace := include "inference-proxy.seconds" (list . "DRAIN_GRACE_SECONDS" 5) | float64 -}}
{{- $timeout := include "inference-proxy.seconds" (list . "DRAIN_TIMEOUT_SECONDS" 300) | float64 -}}
{{- add (int64 .Values.shutdown.preStopSeconds) (int64 (ceil (addf $grace $timeout))) 60 -}}
{{- end -}}

{{/* Longer than the proxy needs, so that its own reply comes first: the queue, two backends one after the other, or an
     idle WebSocket, and a minute. As in nginx/15-read-timeout.envsh. */}}
{{- define "inference-proxy.readTimeoutSeconds" -}}
{{- $all := include "inference-proxy.seconds" (list . "BACKEND_TIMEOUT_SECONDS" 300) -}}
{{- $first := include "inference-proxy.seconds" (list . "BACKEND_FIRST_BYTE_TIMEOUT_SECONDS" $all) | float64 -}}
{{- $pause := include "inference-proxy.seconds" (list . "BACKEND_STREAM_IDLE_TIMEOUT_SECONDS" $all) | float64 -}}
{{- $queue := include "inference-proxy.seconds" (list . "QUEUE_TIMEOUT_SECONDS" 30) | float64 -}}
{{- $idle := include "inference-proxy.seconds" (list . "WEBSOCKET_IDLE_TIMEOUT_SECONDS" 300) | float64 -}}
{{- $reply := addf $queue (mulf 2 (maxf $first $pause)) -}}
{{- $websocket := ternary 86400.0 $idle (eq $idle 0.0) -}}
{{- add (int64 (floor (maxf $reply $websocket))) 61 -}}
{{- end -}}

{{- define "inference-proxy.bodyBytes" -}}
{{- include "inference-proxy.value" (.Values.settings.MAX_REQUEST_BODY_BYTES | default 67108864.0) -}}
{{- end -}}

{{- define "inference-proxy.adminPortName" -}}
{{- ternary "http" "admin" (kindIs "invalid" .Values.adminPort) -}}
{{- end -}}

{{- define "inference-proxy.scheme" -}}
{{- ternary "https" "http" (ne .Values.tls.secretName "") -}}
{{- end -}}

{{- define "inference-proxy.createsSecret" -}}
{{- if or .Values.secrets.settings .Values.secrets.keysFile -}}yes{{- end -}}
{{- end -}}

{{/* The Secret of each setting that comes from one, as JSON: {NAME: secret} */}}
{{- define "inference-proxy.secretSettings" -}}
{{- $created := include "inference-proxy.fullname" . -}}
{{- $found := dict -}}
{{- range $name := .Values.secrets.existing.settings -}}
{{- $_ := set $found $name $.Values.secrets.existing.name -}}
{{- end -}}
{{- range $name, $value := .Values.secrets.settings -}}
{{- $_ := set $found $name $created -}}
{{- end -}}
{{- $found | toJson -}}
{{- end -}}

{{/* Where the file of keys is, as JSON: {secret, key}, or {} without one. */}}
{{- define "inference-proxy.keysFileSecret" -}}
{{- if .Values.secrets.keysFile -}}
{{- dict "secret" (include "inference-proxy.fullname" .) "key" "keys.yaml" | toJson -}}
{{- else if .Values.secrets.existing.keysFile -}}
{{- dict "secret" .Values.secrets.existing.name "key" .Values.secrets.existing.keysFile | toJson -}}
{{- else -}}
{{- dict | toJson -}}
{{- end -}}
{{- end -}}

{{- define "inference-proxy.fleetConfigMap" -}}
{{- if .Values.fleet.existingConfigMap -}}
{{- .Values.fleet.existingConfigMap -}}
{{- else if .Values.fleet.content -}}
{{- include "inference-proxy.fullname" . -}}-fleet
{{- end -}}
{{- end -}}

{{/* The rules and alerts expect a job whose name begins so. */}}
{{- define "inference-proxy.job" -}}
{{- if .Values.serviceMonitor.job -}}
{{- .Values.serviceMonitor.job -}}
{{- else if hasPrefix "inference-proxy" .Release.Name -}}
{{- .Release.Name -}}
{{- else -}}
inference-proxy-{{ .Release.Name }}
{{- end -}}
{{- end -}}

{{/* The pod of `helm test`, for a NetworkPolicy. */}}
{{- define "inference-proxy.testPeer" }}
- podSelector:
    matchLabels:
      app.kubernetes.io/instance: {{ .Release.Name }}
      app.kubernetes.io/component: test
{{- end }}

{{/* One trigger of a ScaledObject: (list . query threshold) */}}
{{- define "inference-proxy.prometheusTrigger" }}
{{- $keda := (index . 0).Values.keda }}
- type: prometheus
  metricType: AverageValue
  metadata:
    serverAddress: {{ $keda.prometheusAddress | quote }}
    query: {{ index . 1 | quote }}
    threshold: {{ index . 2 | quote }}
    activationThreshold: "0"
    {{- /* Without an answer of Prometheus, KEDA reports an error and keeps the replicas. */}}
    ignoreNullValues: "false"
    {{- with $keda.authentication.modes }}
    authModes: {{ . | quote }}
    {{- end }}
  {{- with $keda.authentication.triggerAuthentication }}
  authenticationRef: {name: {{ . }}}
  {{- end }}
{{- end }}
