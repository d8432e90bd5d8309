{{/* The configuration tree as TOML: what the chart knows, then .Values.config over it. */}}
{{- define "openrl.config" -}}
{{- $full := include "openrl.fullname" . -}}
{{- $store := dict "blobs_url" (.Values.objectStore.url | default "file:///blobs") -}}
{{- with .Values.objectStore.endpoint }}{{ $_ := set $store "s3_endpoint" . }}{{ end -}}
{{- with .Values.objectStore.region }}{{ $_ := set $store "s3_region" . }}{{ end -}}
{{- if .Values.objectStore.allowHttp }}{{ $_ := set $store "s3_allow_http" true }}{{ end -}}
{{- $models := list -}}
{{- range (include "openrl.models" . | fromJson).models }}{{ $models = append $models (pick . "name" "path") }}{{ end -}}
{{- $pools := dict -}}
{{- range $name, $pool := include "openrl.pools" . | fromJson -}}
{{- $names := list -}}
{{- range (include "openrl.poolModels" (dict "root" $ "name" $name "pool" $pool) | fromJson).models }}{{ $names = append $names .name }}{{ end -}}
{{- $_ := set $pools $name (dict "models" $names "role" $pool.role) -}}
{{- end -}}
{{- $config := dict
  "data_dir" "/var/lib/openrl"
  "models" $models
  "pools" $pools
  "store" $store
  "gateway" (dict "host" "0.0.0.0" "port" 8000 "secret_file" "/run/secrets/openrl/gateway/gateway" "drain_delay_s" .Values.gateway.drainDelaySeconds)
  "rpc" (dict "address" (printf "tcp:%s-scheduler.%s.svc:7600" $full .Release.Namespace) "secret_file" "/run/secrets/openrl/rpc/rpc")
  "scheduler" (dict "http_address" "0.0.0.0:9090" "patch_deletion_cost" .Values.scheduler.patchDeletionCost)
  "worker" (dict "http_address" "0.0.0.0:9090")
-}}
{{- include "openrl.merge" (dict "base" $config "over" .Values.config) | fromJson | toToml -}}
{{- end -}}
