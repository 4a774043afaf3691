{{/* Peers for a NetworkPolicy. Pods of the release that are certain daemons. Given: root, daemons. */}}
{{- define "muster.peers" -}}
- podSelector:
    matchLabels:
      {{- include "muster.selector" .root | nindent 6 }}
    matchExpressions:
      - key: app.kubernetes.io/component
        operator: In
        values: {{ .daemons | toJson }}
{{- end -}}

{{/* Ports of a NetworkPolicy. Given: a list of numbers. */}}
{{- define "muster.policyPorts" -}}
{{- range . }}
- {protocol: TCP, port: {{ . }}}
{{- end }}
{{- end -}}

{{/* The ports of Consul's HTTP API, as in consul.addresses, each once. */}}
{{- define "muster.consulPorts" -}}
{{- $ports := list -}}
{{- range .Values.consul.addresses }}{{ $ports = append $ports (splitList ":" . | last) }}{{ end -}}
{{- uniq $ports | toJson -}}
{{- end -}}
