{{/* Parts of pods. Those that take a dict get: root, component, pool and what is named beside. */}}

{{/* OpenShift chooses ids itself, and refuses pods that name theirs. */}}
{{- define "openrl.namesIds" -}}
{{- if not (.Capabilities.APIVersions.Has "security.openshift.io/v1") }}yes{{ end -}}
{{- end -}}

{{- define "openrl.podSecurity" -}}
runAsNonRoot: true
{{- if and (include "openrl.namesIds" .) (not (kindIs "invalid" .Values.podSecurity.runAsUser)) }}
runAsUser: {{ .Values.podSecurity.runAsUser }}
runAsGroup: {{ .Values.podSecurity.runAsUser }}
{{- end }}
{{- if and (include "openrl.namesIds" .) (not (kindIs "invalid" .Values.podSecurity.fsGroup)) }}
fsGroup: {{ .Values.podSecurity.fsGroup }}
fsGroupChangePolicy: OnRootMismatch
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "openrl.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Variables of every server process. */}}
{{- define "openrl.env" -}}
- name: HOME
  value: /tmp
- name: POD_NAME
  valueFrom:
    fieldRef: {fieldPath: metadata.name}
- name: OPENRL_LOG_LEVEL
  value: {{ .Values.logLevel }}
{{- with .Values.otlpEndpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "openrl.databaseEnv" -}}
{{- if .Values.postgres.enabled -}}
- name: POSTGRES_PASSWORD
  valueFrom:
    secretKeyRef: {name: {{ .Values.postgres.existingSecret }}, key: {{ .Values.postgres.key }}}
- name: OPENRL_STORE__URL
  value: postgresql://openrl:$(POSTGRES_PASSWORD)@{{ include "openrl.fullname" . }}-postgres.{{ .Release.Namespace }}.svc:5432/openrl
{{- else -}}
- name: OPENRL_STORE__URL
  valueFrom:
    secretKeyRef: {name: {{ .Values.database.existingSecret }}, key: {{ .Values.database.key }}}
{{- end -}}
{{- end -}}

{{- define "openrl.objectStoreEnvFrom" -}}
{{- with .Values.objectStore.existingSecret -}}
envFrom:
  - secretRef: {name: {{ . }}}
{{- end }}
{{- end -}}

{{- define "openrl.usesBlobsClaim" -}}
{{- if not .Values.objectStore.url }}yes{{ end -}}
{{- end -}}

{{/* Whether all pods must be on the node of a volume that one node can mount. */}}
{{- define "openrl.oneNode" -}}
{{- if and (include "openrl.usesBlobsClaim" .) (eq .Values.blobs.accessMode "ReadWriteOnce") }}yes
{{- else if and (eq .Values.modelCache.kind "pvc") (eq .Values.modelCache.accessMode "ReadWriteOnce") }}yes{{ end -}}
{{- end -}}

{{- define "openrl.blobsClaim" -}}
{{ .Values.blobs.existingClaim | default (printf "%s-blobs" (include "openrl.fullname" .)) }}
{{- end -}}

{{/* JSON: `affinity` with the rule of volumes for one node added. */}}
{{- define "openrl.affinity" -}}
{{- $affinity := deepCopy (.affinity | default dict) -}}
{{- if include "openrl.oneNode" .root -}}
{{- $term := dict "topologyKey" "kubernetes.io/hostname" "labelSelector" (dict "matchLabels" (dict "openrl.dev/one-node" .root.Release.Name)) -}}
{{- $pods := get $affinity "podAffinity" | default dict -}}
{{- $key := "requiredDuringSchedulingIgnoredDuringExecution" -}}
{{- $_ := set $pods $key (append (get $pods $key | default list) $term) -}}
{{- $_ := set $affinity "podAffinity" $pods -}}
{{- end -}}
{{- if .spot -}}
{{- $node := get $affinity "nodeAffinity" | default dict -}}
{{- $key := "preferredDuringSchedulingIgnoredDuringExecution" -}}
{{- $terms := get $node $key | default list -}}
{{- range $label, $value := dict "cloud.google.com/gke-spot" "true" "eks.amazonaws.com/capacityType" "SPOT" "karpenter.sh/capacity-type" "spot" "kubernetes.azure.com/scalesetpriority" "spot" -}}
{{- $terms = append $terms (dict "weight" 50 "preference" (dict "matchExpressions" (list (dict "key" $label "operator" "In" "values" (list $value))))) -}}
{{- end -}}
{{- $_ := set $node $key $terms -}}
{{- $_ := set $affinity "nodeAffinity" $node -}}
{{- end -}}
{{- toJson $affinity -}}
{{- end -}}

{{/* Where pods go; called with root, placement (nodeSelector, tolerations, affinity, spot,
     priorityClassName), gpu (whether), priorityClassName (where placement has none). */}}
{{- define "openrl.placement" -}}
{{- with .placement.priorityClassName | default .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .placement.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $tolerations := .placement.tolerations | default list }}
{{- if .gpu }}
{{- $tolerations = append $tolerations (dict "key" "nvidia.com/gpu" "operator" "Exists") }}
{{- end }}
{{- if .placement.spot }}
{{- range list "cloud.google.com/gke-spot" "kubernetes.azure.com/scalesetpriority" }}
{{- $tolerations = append $tolerations (dict "key" . "operator" "Exists") }}
{{- end }}
{{- end }}
{{- with $tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $affinity := include "openrl.affinity" (dict "root" .root "affinity" .placement.affinity "spot" .placement.spot) | fromJson }}
{{- with $affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Spread over nodes and zones as far as it goes; not where a volume holds all pods on one node. */}}
{{- define "openrl.spread" -}}
{{- if not (include "openrl.oneNode" .root) -}}
topologySpreadConstraints:
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "openrl.selector" $ | nindent 8 }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "openrl.podLabels" -}}
{{ include "openrl.labels" . }}
{{- if include "openrl.oneNode" .root }}
openrl.dev/one-node: {{ .root.Release.Name }}
{{- end }}
{{- end -}}

{{/* The probes that every part of the server answers; called with port, startupMinutes. */}}
{{- define "openrl.probes" -}}
startupProbe:
  httpGet: {path: /startupz, port: {{ .port }}}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: {{ mul (int .startupMinutes) 12 }}
readinessProbe:
  httpGet: {path: /readyz, port: {{ .port }}}
  periodSeconds: 3
  timeoutSeconds: 3
  failureThreshold: 2
livenessProbe:
  httpGet: {path: /livez, port: {{ .port }}}
  periodSeconds: 15
  timeoutSeconds: 5
  failureThreshold: 8
{{- end -}}
