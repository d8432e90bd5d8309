{{/* What follows from the values of a pool. All are called with a dict: root, name, pool. */}}

{{- define "openrl.hasGpu" -}}
{{- if or (gt (int .pool.gpu.count) 0) (include "openrl.claimTemplate" .) }}yes{{ end -}}
{{- end -}}

{{/* A worker beside a vLLM server computes nothing: the image for CPUs does. */}}
{{- define "openrl.poolImage" -}}
{{- $kind := ternary "cuda" "cpu" (and (eq .pool.kind "openrl") (ne (include "openrl.hasGpu" .) "")) -}}
{{- include "openrl.image" (dict "image" .pool.image "tag" (printf "%s-%s" .root.Chart.AppVersion $kind)) -}}
{{- end -}}

{{/* JSON: the models of a pool; names that `models` does not have are refused. */}}
{{- define "openrl.poolModels" -}}
{{- $all := (include "openrl.models" .root | fromJson).models -}}
{{- $out := list -}}
{{- range $model := $all -}}
{{- if or (not $.pool.models) (has $model.name $.pool.models) }}{{ $out = append $out $model }}{{ end -}}
{{- end -}}
{{- if and .pool.models (ne (len $out) (len (uniq .pool.models))) -}}
{{- fail (printf "pools.%s.models names a model that is not in models" .name) -}}
{{- end -}}
{{- toJson (dict "models" $out) -}}
{{- end -}}

{{- define "openrl.claimTemplate" -}}
{{- if .pool.gpu.claimTemplateName -}}{{ .pool.gpu.claimTemplateName }}
{{- else if .pool.gpu.deviceClassName -}}{{ include "openrl.fullname" .root }}-pool-{{ .name }}{{- end -}}
{{- end -}}

{{- define "openrl.poolResources" -}}
{{- $resources := deepCopy .pool.resources -}}
{{- if include "openrl.claimTemplate" . -}}
{{- $_ := set $resources "claims" (list (dict "name" "gpu")) -}}
{{- else if gt (int .pool.gpu.count) 0 -}}
{{- range list "requests" "limits" -}}
{{- $_ := set $resources . (set (get $resources . | default dict) $.pool.gpu.resource (int $.pool.gpu.count)) -}}
{{- end -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{- define "openrl.poolPriority" -}}
{{- if .root.Values.priorityClasses.create -}}
{{ include "openrl.fullname" .root }}-{{ ternary "train" "sample" (eq .pool.role "train") }}
{{- end -}}
{{- end -}}

{{/* Refuses what would fail later, or lose work. */}}
{{- define "openrl.checkPool" -}}
{{- if not (regexMatch "^[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?$" .name) -}}
{{- fail (printf "pools.%s: a name has at most 20 small letters, digits and dashes" .name) -}}
{{- end -}}
{{- if lt (int .pool.terminationGracePeriodSeconds) (add 10 (int .pool.drainSeconds)) -}}
{{- fail (printf "pools.%s: terminationGracePeriodSeconds must be at least 10 more than drainSeconds" .name) -}}
{{- end -}}
{{- if and (include "openrl.claimTemplate" .) (semverCompare "<1.32.0-0" (include "openrl.kubeVersion" .root)) -}}
{{- fail (printf "pools.%s.gpu: claims of devices need Kubernetes 1.32 or later; set gpu.resource" .name) -}}
{{- end -}}
{{- if eq .pool.kind "vllm" -}}
{{- if ne .pool.role "sample" -}}{{- fail (printf "pools.%s: a pool of kind vllm has the role sample" .name) -}}{{- end -}}
{{- if ne 1 (len (include "openrl.poolModels" . | fromJson).models) -}}
{{- fail (printf "pools.%s: a pool of kind vllm has one model" .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
