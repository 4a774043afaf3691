{{/*
The manager daemons: which there are, their gRPC ports, and what is set for each. The port for operations is
1000 above that of gRPC. As JSON, sorted by name.
*/}}
{{- define "muster.ports" -}}
{"allocatord": 7702, "apid": 7700, "dispatcherd": 7704, "orchestratord": 7701, "schedulerd": 7703}
{{- end -}}

{{/* The values of one daemon: those of all managers, and over them its own. Given: root, daemon. */}}
{{- define "muster.settings" -}}
{{- mergeOverwrite (deepCopy .root.Values.managers) (deepCopy (get .root.Values .daemon)) | toYaml -}}
{{- end -}}

{{/* HTTP or HTTPS: what the port for operations speaks. */}}
{{- define "muster.opsScheme" -}}
{{- eq .Values.tls.mode "none" | ternary "HTTP" "HTTPS" -}}
{{- end -}}

{{/* The Secret of one daemon's certificate, in mode files. Given: root, daemon. */}}
{{- define "muster.tlsSecret" -}}
{{- default (printf "%s-%s-tls" (include "muster.fullname" .root) .daemon) (get .root.Values.tls.secrets .daemon) -}}
{{- end -}}

{{/* The Secret with Consul's authority. */}}
{{- define "muster.consulCASecret" -}}
{{- if .Values.consul.tls.ca -}}
{{- include "muster.fullname" . }}-consul-ca
{{- else -}}
{{- .Values.consul.tls.existingSecret -}}
{{- end -}}
{{- end -}}

{{/* The arguments of one manager daemon. Given: root, daemon, settings. */}}
{{- define "muster.args" -}}
{{- $v := .root.Values -}}
{{- $port := get (include "muster.ports" .root | fromJson) .daemon | int -}}
{{- $host := $v.ipv6 | ternary "[$(POD_IP)]" "$(POD_IP)" -}}
{{- if and (eq .daemon "dispatcherd") .settings.hostPort }}{{ $host = $v.ipv6 | ternary "[$(HOST_IP)]" "$(HOST_IP)" }}{{ end -}}
- {{ .daemon }}
- --listen=:{{ $port }}
- --advertise={{ $host }}:{{ $port }}
- --ops-listen=:{{ add $port 1000 }}
{{- if eq .daemon "apid" }}
- --rest-listen=:7780
{{- $name := printf "%s-apid" (include "muster.fullname" .root) }}
{{- $hosts := concat (list $name (printf "%s.%s" $name .root.Release.Namespace) (printf "%s.%s.svc" $name .root.Release.Namespace)) $v.tls.hosts }}
{{- if $v.ingress.enabled }}{{ range $v.ingress.hosts }}{{ $hosts = append $hosts .host }}{{ end }}{{ end }}
- --allowed-host={{ $hosts | uniq | join "," }}
{{- end }}
- --prefix={{ $v.prefix }}
- --log-level={{ $v.log.level }}
- --log-format={{ $v.log.format }}
- --stop-timeout={{ .settings.stopTimeoutSeconds }}s
{{- with $v.otlpEndpoint }}
- --otlp-endpoint={{ . }}
{{- end }}
- --consul-address={{ join "," $v.consul.addresses }}
{{- with $v.consul.datacenter }}
- --consul-datacenter={{ . }}
{{- end }}
{{- if $v.consul.tls.enabled }}
- --consul-tls
- --consul-ca-file=/etc/muster/consul-ca/ca.pem
{{- if $v.consul.tls.clientSecret }}
- --consul-cert-file=/etc/muster/consul-client/tls.crt
- --consul-key-file=/etc/muster/consul-client/tls.key
{{- end }}
{{- end }}
{{- if $v.consul.acl.enabled }}
- --consul-token-file=/etc/muster/consul-token/token
{{- end }}
{{- if and (eq $v.tls.mode "join") (eq .daemon "apid") }}
{{- $name := printf "%s-apid" (include "muster.fullname" .root) }}
- --cluster-key-file=/etc/muster/cluster-key/cluster.key
- --certificate-lifetime={{ $v.tls.certificateLifetime }}
- --certificate-host={{ concat (list $name (printf "%s.%s" $name .root.Release.Namespace) (printf "%s.%s.svc" $name .root.Release.Namespace)) $v.tls.hosts | join "," }}
{{- else if eq $v.tls.mode "join" }}
- --join={{ include "muster.apidAddress" .root }}
- --join-token-file=/etc/muster/join/token
- --identity-dir=/var/lib/muster/identity
{{- if eq .daemon "dispatcherd" }}
- --cluster-key-file=/etc/muster/cluster-key/cluster.key
{{- end }}
{{- else if eq $v.tls.mode "files" }}
- --tls-cert-file=/etc/muster/tls/tls.crt
- --tls-key-file=/etc/muster/tls/tls.key
- --tls-ca-file=/etc/muster/tls/ca.crt
{{- else }}
- --insecure-listen
{{- end }}
{{- range .settings.extraArgs }}
- {{ . | quote }}
{{- end }}
{{- end -}}

{{/* The volumes of one manager daemon: each is given its own secrets only. Given: root, daemon. */}}
{{- define "muster.volumes" -}}
{{- $v := .root.Values -}}
{{- $full := include "muster.fullname" .root -}}
{{- if $v.consul.tls.enabled }}
- name: consul-ca
  secret:
    secretName: {{ include "muster.consulCASecret" .root }}
    items: [{key: {{ empty $v.consul.tls.ca | ternary $v.consul.tls.key "ca.pem" }}, path: ca.pem}]
    defaultMode: 0440
{{- with $v.consul.tls.clientSecret }}
- name: consul-client
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- end }}
{{- if $v.consul.acl.enabled }}
- name: consul-token
  secret:
    {{- if $v.consul.acl.tokens }}
    secretName: {{ $full }}-{{ .daemon }}-consul-token
    items: [{key: token, path: token}]
    {{- else }}
    secretName: {{ $v.consul.acl.existingSecret }}
    items: [{key: {{ .daemon }}, path: token}]
    {{- end }}
    defaultMode: 0440
{{- end }}
{{- if and (eq $v.tls.mode "join") (has .daemon (list "apid" "dispatcherd")) }}
- name: cluster-key
  secret:
    secretName: {{ $v.tls.clusterKey.existingSecret }}
    items: [{key: {{ $v.tls.clusterKey.key }}, path: cluster.key}]
    defaultMode: 0440
{{- end }}
{{- if and (eq $v.tls.mode "join") (ne .daemon "apid") }}
- name: join
  secret:
    secretName: {{ $v.tls.managerJoinToken.existingSecret }}
    items: [{key: {{ $v.tls.managerJoinToken.key }}, path: token}]
    defaultMode: 0440
# The key and the certificate: in memory, and gone with the pod.
- name: identity
  emptyDir:
    medium: Memory
    sizeLimit: 1Mi
{{- else if eq $v.tls.mode "files" }}
- name: tls
  secret:
    secretName: {{ include "muster.tlsSecret" . }}
    defaultMode: 0440
{{- end }}
{{- end -}}

{{/* Where they are mounted. Given: root, daemon. */}}
{{- define "muster.mounts" -}}
{{- $v := .root.Values -}}
{{- if $v.consul.tls.enabled }}
- {name: consul-ca, mountPath: /etc/muster/consul-ca, readOnly: true}
{{- if $v.consul.tls.clientSecret }}
- {name: consul-client, mountPath: /etc/muster/consul-client, readOnly: true}
{{- end }}
{{- end }}
{{- if $v.consul.acl.enabled }}
- {name: consul-token, mountPath: /etc/muster/consul-token, readOnly: true}
{{- end }}
{{- if and (eq $v.tls.mode "join") (has .daemon (list "apid" "dispatcherd")) }}
- {name: cluster-key, mountPath: /etc/muster/cluster-key, readOnly: true}
{{- end }}
{{- if and (eq $v.tls.mode "join") (ne .daemon "apid") }}
- {name: join, mountPath: /etc/muster/join, readOnly: true}
- {name: identity, mountPath: /var/lib/muster/identity}
{{- else if eq $v.tls.mode "files" }}
- {name: tls, mountPath: /etc/muster/tls, readOnly: true}
{{- end }}
{{- end -}}
