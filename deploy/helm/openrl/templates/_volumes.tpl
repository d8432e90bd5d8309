{{/* Volumes that several kinds of pods have, and the init container that fills the model cache. */}}

{{/* Called with root, cache, blobs, noConfig (whether), secrets (names out of `secrets`), scratchSize. */}}
{{- define "openrl.volumes" -}}
{{- $root := .root -}}
- name: tmp
  emptyDir: {}
- name: data
  emptyDir: {sizeLimit: {{ .scratchSize | default "20Gi" }}}
{{- if not .noConfig }}
- name: config
  configMap: {name: {{ include "openrl.fullname" $root }}-config}
{{- end }}
{{- range .secrets }}
- name: {{ . }}-secret
  secret:
    secretName: {{ (get $root.Values.secrets .).existingSecret }}
    defaultMode: 0440
    items:
      - {key: {{ (get $root.Values.secrets .).key }}, path: {{ . }}}
{{- end }}
{{- if and .blobs (include "openrl.usesBlobsClaim" $root) }}
- name: blobs
  persistentVolumeClaim: {claimName: {{ include "openrl.blobsClaim" $root }}}
{{- end }}
{{- if .cache }}
- name: cache
  {{- with $root.Values.modelCache }}
  {{- if eq .kind "pvc" }}
  persistentVolumeClaim: {claimName: {{ .existingClaim | default (printf "%s-models" (include "openrl.fullname" $root)) }}}
  {{- else if eq .kind "ephemeral" }}
  ephemeral:
    volumeClaimTemplate:
      spec:
        accessModes: [ReadWriteOnce]
        {{- with .storageClassName }}
        storageClassName: {{ . }}
        {{- end }}
        resources:
          requests: {storage: {{ .size }}}
  {{- else }}
  emptyDir: {sizeLimit: {{ .size }}}
  {{- end }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "openrl.mounts" -}}
{{- $root := .root -}}
- {name: tmp, mountPath: /tmp}
- {name: data, mountPath: /var/lib/openrl}
- {name: config, mountPath: /etc/openrl, readOnly: true}
{{- range .secrets }}
- {name: {{ . }}-secret, mountPath: /run/secrets/openrl/{{ . }}, readOnly: true}
{{- end }}
{{- if and .blobs (include "openrl.usesBlobsClaim" $root) }}
- {name: blobs, mountPath: /blobs}
{{- end }}
{{- if .cache }}
- {name: cache, mountPath: /cache, readOnly: true}
{{- end }}
{{- end -}}

{{/* Fetches what has a source and is not there; called with root, models, metadataOnly (gateways read no weights). */}}
{{- define "openrl.fetchModels" -}}
{{- $root := .root -}}
{{- $metadataOnly := .metadataOnly -}}
{{- $fetched := list -}}
{{- range .models }}{{ if .source }}{{ $fetched = append $fetched . }}{{ end }}{{ end -}}
{{- with $fetched }}
initContainers:
  {{- range $index, $model := . }}
  - name: fetch-model-{{ $index }}
    image: {{ include "openrl.image" (dict "image" $root.Values.image "tag" $root.Chart.AppVersion) }}
    imagePullPolicy: {{ $root.Values.image.pullPolicy }}
    {{- if .source.catalog }}
    command: [openrl, models, fetch, {{ .source.catalog | quote }}, --dir, /cache/models]
    {{- else if $metadataOnly }}
    command: [hf, download, {{ .source.huggingface | quote }}, --revision, {{ .source.revision | default "main" | quote }}, --local-dir, {{ .path | quote }}, --include, "*.json"]
    {{- else }}
    command:
      - sh
      - -ec
      - test -f "$0/.fetched" || { hf download "$1" --revision "$2" --local-dir "$0" && touch "$0/.fetched"; }
      - {{ .path | quote }}
      - {{ .source.huggingface | quote }}
      - {{ .source.revision | default "main" | quote }}
    {{- end }}
    env:
      - {name: HOME, value: /tmp}
      - {name: HF_HOME, value: /tmp/hf}
      {{- if and .source.huggingface $root.Values.huggingface.existingSecret }}
      - name: HF_TOKEN
        valueFrom:
          secretKeyRef: {name: {{ $root.Values.huggingface.existingSecret }}, key: {{ $root.Values.huggingface.key }}}
      {{- end }}
    resources:
      requests: {cpu: 100m, memory: 512Mi}
      limits: {memory: 2Gi}
    securityContext:
      {{- include "openrl.containerSecurity" $root | nindent 6 }}
    volumeMounts:
      - {name: tmp, mountPath: /tmp}
      - {name: cache, mountPath: /cache}
  {{- end }}
{{- end }}
{{- end -}}
