{{/* The Deployment of one manager daemon. Given: root, daemon. */}}
{{- define "muster.deployment" -}}
{{- $root := .root -}}
{{- $v := .root.Values -}}
{{- $s := include "muster.settings" . | fromYaml -}}
{{- $name := printf "%s-%s" (include "muster.fullname" .root) .daemon -}}
{{- $port := get (include "muster.ports" .root | fromJson) .daemon | int -}}
{{- $hostPort := and (eq .daemon "dispatcherd") $s.hostPort -}}
{{- $served := has .daemon (list "apid" "dispatcherd") -}}
{{- $preStop := $served | ternary ($s.preStopSleepSeconds | int) 0 -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ $name }}
  labels:
    {{- include "muster.labels" .root | nindent 4 }}
    app.kubernetes.io/component: {{ .daemon }}
spec:
  {{- if not $s.autoscaling.enabled }}
  replicas: {{ $s.replicas }}
  {{- end }}
  revisionHistoryLimit: 3
  minReadySeconds: {{ $s.minReadySeconds }}
  strategy:
    type: RollingUpdate
    rollingUpdate:
      {{- if $hostPort }}
      # A node has one port 7704: the new replica waits until the old one has stopped. Others serve its workers.
      maxSurge: 0
      maxUnavailable: 1
      {{- else }}
      maxSurge: 1
      maxUnavailable: 0
      {{- end }}
  selector:
    matchLabels:
      {{- include "muster.selector" .root | nindent 6 }}
      app.kubernetes.io/component: {{ .daemon }}
  template:
    metadata:
      labels:
        {{- include "muster.podLabels" .root | nindent 8 }}
        app.kubernetes.io/component: {{ .daemon }}
        {{- with $s.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- if or $s.podAnnotations $v.consul.acl.tokens $v.consul.tls.ca }}
      annotations:
        {{- if or $v.consul.acl.tokens $v.consul.tls.ca }}
        # Pods are replaced when a Secret that the chart makes changes.
        muster/secrets: {{ printf "%s/%s" (get $v.consul.acl.tokens .daemon) $v.consul.tls.ca | sha256sum }}
        {{- end }}
        {{- with $s.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- end }}
    spec:
      {{- if $v.serviceAccount.create }}
      serviceAccountName: {{ $name }}
      {{- end }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      {{- with $v.imagePullSecrets }}
      imagePullSecrets:
        {{- range . }}
        - name: {{ . }}
        {{- end }}
      {{- end }}
      terminationGracePeriodSeconds: {{ add $preStop $s.stopTimeoutSeconds 15 }}
      securityContext:
        runAsNonRoot: true
        runAsUser: 65532
        runAsGroup: 65532
        fsGroup: 65532
        seccompProfile:
          type: RuntimeDefault
      {{- with $s.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      {{- with $s.nodeSelector }}
      nodeSelector:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $s.tolerations }}
      tolerations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- $term := dict "topologyKey" "kubernetes.io/hostname" "matchLabelKeys" (list "pod-template-hash") "labelSelector" (dict "matchLabels" (merge (dict "app.kubernetes.io/component" .daemon) (include "muster.selector" .root | fromYaml))) }}
      {{- if eq $s.antiAffinity "required" }}
      affinity:
        podAntiAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            - {{- toYaml $term | nindent 14 }}
      {{- else if eq $s.antiAffinity "preferred" }}
      affinity:
        podAntiAffinity:
          preferredDuringSchedulingIgnoredDuringExecution:
            - weight: 100
              podAffinityTerm:
                {{- toYaml $term | nindent 16 }}
      {{- end }}
      {{- if $s.topologySpread.enabled }}
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: {{ $s.topologySpread.topologyKey }}
          whenUnsatisfiable: {{ $s.topologySpread.whenUnsatisfiable }}
          matchLabelKeys: [pod-template-hash]
          labelSelector:
            matchLabels:
              {{- include "muster.selector" .root | nindent 14 }}
              app.kubernetes.io/component: {{ .daemon }}
      {{- end }}
      containers:
        - name: {{ .daemon }}
          image: {{ include "muster.image" (dict "root" .root "image" $v.image) }}
          imagePullPolicy: {{ $v.image.pullPolicy }}
          args:
            {{- include "muster.args" (dict "root" .root "daemon" .daemon "settings" $s) | nindent 12 }}
          env:
            - name: POD_IP
              valueFrom: {fieldRef: {fieldPath: status.podIP}}
            {{- if $hostPort }}
            - name: HOST_IP
              valueFrom: {fieldRef: {fieldPath: status.hostIP}}
            {{- end }}
            {{- with $s.extraEnv }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          ports:
            - name: grpc
              containerPort: {{ $port }}
              {{- if $hostPort }}
              hostPort: {{ $port }}
              {{- end }}
            {{- if eq .daemon "apid" }}
            - name: rest
              containerPort: 7780
            {{- end }}
            - name: ops
              containerPort: {{ add $port 1000 }}
          {{- range list (list "startupProbe" "/livez") (list "livenessProbe" "/livez") (list "readinessProbe" "/readyz") }}
          {{ first . }}:
            httpGet:
              path: {{ last . }}
              port: ops
              scheme: {{ include "muster.opsScheme" $root }}
            {{- toYaml (get $s (first .)) | nindent 12 }}
          {{- end }}
          {{- if $preStop }}
          lifecycle:
            preStop:
              sleep:
                seconds: {{ $preStop }}
          {{- end }}
          resources:
            {{- toYaml $s.resources | nindent 12 }}
          securityContext:
            allowPrivilegeEscalation: false
            readOnlyRootFilesystem: true
            capabilities:
              drop: [ALL]
          {{- with include "muster.mounts" . | trim }}
          volumeMounts:
            {{- . | nindent 12 }}
          {{- end }}
      {{- with include "muster.volumes" . | trim }}
      volumes:
        {{- . | nindent 8 }}
      {{- end }}
{{- end -}}
