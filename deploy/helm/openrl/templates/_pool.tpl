{{/* Pods of pools. All are called with a dict: root, name, pool. */}}

{{/* What the pods of every kind of pool have outside of their containers; also with models, volumes. */}}
{{- define "openrl.poolPodHead" -}}
{{- $root := .root -}}
{{- $pool := .pool -}}
serviceAccountName: {{ include "openrl.fullname" $root }}
automountServiceAccountToken: false
enableServiceLinks: false
terminationGracePeriodSeconds: {{ $pool.terminationGracePeriodSeconds }}
{{- with $pool.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- include "openrl.podSecurity" $root | nindent 2 }}
{{- include "openrl.placement" (dict "root" $root "placement" $pool "gpu" (include "openrl.hasGpu" .) "priorityClassName" (include "openrl.poolPriority" .)) }}
{{- with $pool.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- if include "openrl.claimTemplate" . }}
resourceClaims:
  - {name: gpu, resourceClaimTemplateName: {{ include "openrl.claimTemplate" . }}}
{{- end }}
{{- include "openrl.fetchModels" (dict "root" $root "models" .models) }}
{{- end -}}

{{- define "openrl.poolPodSpec" -}}
{{- $models := (include "openrl.poolModels" . | fromJson).models -}}
{{- $volumes := dict "root" .root "cache" true "blobs" true "secrets" (list "rpc") "scratchSize" .pool.scratchSize -}}
{{- $more := merge (dict "models" $models "volumes" $volumes "image" (include "openrl.poolImage" .)) . -}}
{{- include "openrl.poolPodHead" $more }}
containers:
  {{- if eq .pool.kind "vllm" }}
  {{- include "openrl.workerContainer" (merge (dict "resources" (toYaml .pool.vllm.workerResources)) $more) | nindent 2 }}
  {{- include "openrl.vllmContainer" $more | nindent 2 }}
  {{- else }}
  {{- include "openrl.workerContainer" (merge (dict "resources" (include "openrl.poolResources" .)) $more) | nindent 2 }}
  {{- end }}
volumes:
  {{- include "openrl.volumes" $volumes | nindent 2 }}
  - name: shm
    emptyDir: {medium: Memory, sizeLimit: {{ .pool.shmSize }}}
{{- end -}}

{{- define "openrl.workerContainer" -}}
{{- $pool := .pool -}}
- name: worker
  image: {{ .image }}
  imagePullPolicy: {{ $pool.image.pullPolicy }}
  command:
    - openrl
    - worker
    - --config
    - /etc/openrl/openrl.toml
    - --name
    - $(POD_NAME)
    - --pool
    - {{ .name }}
    - --role
    - {{ $pool.role }}
    {{- range .models }}
    - --model
    - {{ printf "%s=%s" .name .path | quote }}
    {{- end }}
    {{- with $pool.extraArgs }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  env:
    {{- include "openrl.env" .root | nindent 4 }}
    - name: OPENRL_WORKER__DRAIN_S
      value: {{ $pool.drainSeconds | quote }}
    {{- if eq $pool.kind "vllm" }}
    - name: OPENRL_SAMPLING__ENGINE
      value: vllm
    - name: OPENRL_SAMPLING__VLLM_URLS
      value: '["http://127.0.0.1:8000"]'
    - name: OPENRL_SAMPLING__RESIDENT_ADAPTERS
      value: {{ $pool.vllm.maxCpuLoras | quote }}
    {{- end }}
    {{- with $pool.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with include "openrl.objectStoreEnvFrom" .root }}
  {{- . | nindent 2 }}
  {{- end }}
  ports:
    - {name: probes, containerPort: 9090}
  {{- include "openrl.probes" (dict "port" "probes" "startupMinutes" $pool.startupBudgetMinutes) | nindent 2 }}
  lifecycle:
    preStop:
      httpGet: {path: /drain, port: probes}
  resources:
    {{- .resources | nindent 4 }}
  securityContext:
    {{- include "openrl.containerSecurity" .root | nindent 4 }}
  volumeMounts:
    {{- include "openrl.mounts" .volumes | nindent 4 }}
    - {name: shm, mountPath: /dev/shm}
{{- end -}}

{{/* Adapters reach the server as files of the pod's own volume, under the path that the worker names. */}}
{{- define "openrl.vllmContainer" -}}
{{- $pool := .pool -}}
{{- $model := first .models -}}
- name: vllm
  image: {{ include "openrl.image" (dict "image" $pool.vllm.image "tag" "") }}
  imagePullPolicy: {{ $pool.vllm.image.pullPolicy }}
  command:
    - vllm
    - serve
    - {{ $model.path | quote }}
    - --served-model-name
    - {{ $model.name | quote }}
    - --port
    - "8000"
    - --enable-lora
    - --max-lora-rank
    - {{ $pool.vllm.maxLoraRank | quote }}
    - --max-loras
    - {{ $pool.vllm.maxLoras | quote }}
    - --max-cpu-loras
    - {{ $pool.vllm.maxCpuLoras | quote }}
    - --logprobs-mode
    - processed_logprobs
    - --max-logprobs
    - "1024"
    - --enable-prompt-tokens-details
    - --tensor-parallel-size
    - {{ max 1 (mul (int $pool.gpu.count) (int $pool.nodes)) | quote }}
    {{- if gt (int $pool.nodes) 1 }}
    - --nnodes
    - $(LWS_GROUP_SIZE)
    - --node-rank
    - $(LWS_WORKER_INDEX)
    - --master-addr
    - $(LWS_LEADER_ADDRESS)
    {{- if .headless }}
    - --headless
    {{- end }}
    {{- end }}
    {{- with $pool.vllm.extraArgs }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  env:
    - {name: HOME, value: /tmp}
    - {name: VLLM_ALLOW_RUNTIME_LORA_UPDATING, value: "True"}
    - {name: VLLM_CACHE_ROOT, value: /var/lib/openrl/vllm}
    - {name: VLLM_NO_USAGE_STATS, value: "1"}
  {{- if not .headless }}
  ports:
    - {name: http, containerPort: 8000}
  startupProbe:
    httpGet: {path: /health, port: http}
    periodSeconds: 5
    timeoutSeconds: 3
    failureThreshold: {{ mul (int $pool.startupBudgetMinutes) 12 }}
  readinessProbe:
    httpGet: {path: /health, port: http}
    periodSeconds: 5
    timeoutSeconds: 3
    failureThreshold: 3
  livenessProbe:
    httpGet: {path: /health, port: http}
    periodSeconds: 15
    timeoutSeconds: 10
    failureThreshold: 8
  lifecycle:
    preStop:  # the worker beside it ends its samples first
      exec: {command: [sleep, {{ $pool.drainSeconds | quote }}]}
  {{- end }}
  resources:
    {{- include "openrl.poolResources" . | nindent 4 }}
  securityContext:
    {{- include "openrl.containerSecurity" .root | nindent 4 }}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    - {name: data, mountPath: /var/lib/openrl}
    - {name: cache, mountPath: /cache, readOnly: true}
    - {name: shm, mountPath: /dev/shm}
{{- end -}}

{{/* The pods of a group beside its leader: of a vLLM pool, a part of the leader's server; else workers like the leader. */}}
{{- define "openrl.poolFollowerSpec" -}}
{{- if eq .pool.kind "vllm" -}}
{{- $models := (include "openrl.poolModels" . | fromJson).models -}}
{{- $volumes := dict "root" .root "cache" true "noConfig" true "scratchSize" .pool.scratchSize -}}
{{- $more := merge (dict "models" $models "volumes" $volumes "headless" true) . -}}
{{- include "openrl.poolPodHead" $more }}
containers:
  {{- include "openrl.vllmContainer" $more | nindent 2 }}
volumes:
  {{- include "openrl.volumes" $volumes | nindent 2 }}
  - name: shm
    emptyDir: {medium: Memory, sizeLimit: {{ .pool.shmSize }}}
{{- else -}}
{{- include "openrl.poolPodSpec" . }}
{{- end -}}
{{- end -}}
