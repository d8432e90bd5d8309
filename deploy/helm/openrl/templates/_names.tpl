{{- define "openrl.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 30 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}{{ .Release.Name | trunc 30 | trimSuffix "-" }}
{{- else -}}{{ printf "%s-%s" .Release.Name $name | trunc 30 | trimSuffix "-" }}{{- end -}}
{{- end -}}
{{- end -}}

{{/* What a selector may hold: it can never change. Called with a dict: root, component, pool (may be empty). */}}
{{- define "openrl.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- with .pool }}
openrl.dev/pool: {{ . }}
{{- end }}
{{- end -}}

{{- define "openrl.labels" -}}
{{ include "openrl.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Called with a dict: image, tag (used where the image has neither tag nor digest). */}}
{{- define "openrl.image" -}}
{{- $name := .image.repository -}}
{{- with .image.registry }}{{ $name = printf "%s/%s" . $name }}{{ end -}}
{{- if .image.digest -}}
{{ $name }}{{ with .image.tag }}:{{ . }}{{ end }}@{{ .image.digest }}
{{- else -}}
{{ $name }}:{{ .image.tag | default .tag }}
{{- end -}}
{{- end -}}

{{/* The first dict, with what the second has in its place at every depth; false, 0 and "" count too. */}}
{{- define "openrl.merge" -}}
{{- $out := deepCopy .base -}}
{{- range $key, $value := .over -}}
{{- if and (kindIs "map" $value) (kindIs "map" (get $out $key)) -}}
{{- $_ := set $out $key (include "openrl.merge" (dict "base" (get $out $key) "over" $value) | fromJson) -}}
{{- else -}}
{{- $_ := set $out $key $value -}}
{{- end -}}
{{- end -}}
{{- toJson $out -}}
{{- end -}}

{{/* JSON: pools by name, each complete. */}}
{{- define "openrl.pools" -}}
{{- $out := dict -}}
{{- range $name, $pool := .Values.pools | default (dict "default" dict) -}}
{{- $merged := include "openrl.merge" (dict "base" $.Values.poolDefaults "over" ($pool | default dict)) | fromJson -}}
{{- if $merged.enabled -}}{{- $_ := set $out $name $merged -}}{{- end -}}
{{- end -}}
{{- toJson $out -}}
{{- end -}}

{{/* JSON: all models with their directories. */}}
{{- define "openrl.models" -}}
{{- $out := list -}}
{{- range .Values.models -}}
{{- $path := .path -}}
{{- $source := .source | default dict -}}
{{- if not $path -}}
{{- $path = printf "/cache/models/%s" ($source.catalog | default (.name | replace "/" "--")) -}}
{{- end -}}
{{- $out = append $out (dict "name" .name "path" $path "source" $source) -}}
{{- end -}}
{{- toJson (dict "models" $out) -}}
{{- end -}}

{{- define "openrl.kubeVersion" -}}
{{ .Values.kubeVersion | default .Capabilities.KubeVersion.Version }}
{{- end -}}
