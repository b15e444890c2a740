{{- define "tarmill.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "tarmill.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service | quote }}
app.kubernetes.io/part-of: tarmill
{{- end }}

{{/* NetworkPolicies of the runs let pods of this name in to ask how it goes: it is no matter of taste. */}}
{{- define "tarmill.selector" -}}
app.kubernetes.io/name: tarmill
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{- define "tarmill.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "tarmill.name" .) }}
{{- else }}{{ .Values.serviceAccount.name | default "default" }}{{ end }}
{{- end }}

{{- define "tarmill.image" -}}
{{- $tag := .image.tag | default .chart.AppVersion -}}
{{- if hasPrefix "sha256:" $tag }}{{ .image.repository }}@{{ $tag }}{{ else }}{{ .image.repository }}:{{ $tag }}{{ end }}
{{- end }}

{{- define "tarmill.kinds" -}}
[shardmaps, shardextracts, shardshuffles, shardsorts, sharduploads]
{{- end }}

{{/* What the operator does in a namespace; of Secrets it can read none. */}}
{{- define "tarmill.rules" -}}
- apiGroups: [tarmill.dev]
  resources: {{ include "tarmill.kinds" . }}
  verbs: [get, list, watch, delete]
- apiGroups: [tarmill.dev]
  resources: [shardmaps/status, shardextracts/status, shardshuffles/status, shardsorts/status, sharduploads/status]
  verbs: [get, update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: &children [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments]
  verbs: *children
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: *children
- apiGroups: [""]
  resources: [services]
  verbs: *children
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, list, watch, create, patch, update, delete]
- apiGroups: [kubernetes.dask.org]
  resources: [daskclusters]
  verbs: *children
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
- apiGroups: [""]
  resources: [pods/log]
  verbs: [get]
- apiGroups: [""]
  resources: [secrets]
  verbs: [create, delete]
- apiGroups: [""]
  resources: [events]
  verbs: [list, watch, create]
{{- end }}
