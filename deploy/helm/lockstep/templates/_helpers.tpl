{{/* What is said once, and used by every object. Most take a dict `x`, made by "lockstep.x". */}}

{{- define "lockstep.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if .Values.fullnameOverride -}}{{ .Values.fullnameOverride }}
{{- else if contains $name .Release.Name -}}{{ .Release.Name }}
{{- else -}}{{ .Release.Name }}-{{ $name }}
{{- end -}}
{{- end -}}

{{/* The longest name that is made of it ends in -reconcile, of a CronJob, which may have 52 characters. */}}
{{- define "lockstep.name" -}}
{{- $name := printf "%s-%s" (include "lockstep.fullname" .root) .key -}}
{{- if gt (len $name) 42 -}}
{{- fail (printf "\n\npipelines.%s: objects would be called %s, which is longer than 42 characters.\nRemedy: set fullnameOverride to something shorter.\n" .key $name) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{/* `over` laid over `under`: objects are merged, everything else is replaced, also by 0 and false. */}}
{{- define "lockstep.over" -}}
{{- $out := deepCopy .under -}}
{{- range $key, $value := .over -}}
{{- $there := index $out $key -}}
{{- if and (kindIs "map" $value) (kindIs "map" $there) -}}
{{- $_ := set $out $key (include "lockstep.over" (dict "under" $there "over" $value) | fromYaml) -}}
{{- else -}}
{{- $_ := set $out $key $value -}}
{{- end -}}
{{- end -}}
{{- toYaml $out -}}
{{- end -}}

{{/*
All that is known about a pipeline, of (dict "root" $ "key" KEY "pipeline" VALUE). `v`: its settings; `file`: its file;
`inCluster`: its lease is kept in this cluster; `claim`: its state is on a claim. The caller adds `root`.
*/}}
{{- define "lockstep.x" -}}
{{- $defaults := omit .root.Values "pipelines" "global" "nameOverride" "fullnameOverride" "commonLabels" "commonAnnotations" "imagePullSecrets" "metrics" "test" -}}
{{- $own := omit (default dict .pipeline) "file" -}}
{{- $v := include "lockstep.over" (dict "under" $defaults "over" $own) | fromYaml -}}
{{- $said := include "lockstep.said" . | fromYaml -}}
{{- $file := $said.file -}}
{{- $standbys := gt (int $v.replicas) 1 -}}
{{- $state := default dict $file.state -}}
{{- $shared := eq (toString (default false $state.shared)) "true" -}}
{{- if and (not $file.lease) (or $standbys $shared $state.url) -}}
{{- $_ := set $file "lease" (dict "type" "kubernetes") -}}
{{- end -}}
{{- $lease := default dict $file.lease -}}
{{- $inCluster := and (eq (toString $lease.type) "kubernetes") (not $lease.url) (not $lease.token) -}}
{{- $x := dict "key" .key "name" (include "lockstep.name" .) "v" $v "file" $file "shared" $shared "inCluster" $inCluster "claim" (or (not $file.lease) $shared) -}}
{{- include "lockstep.refuse" $x -}}
{{- $_ := set $file "admin" (dict "listen" (printf "%s:%d" $v.admin.host (int $v.admin.port)) "token" "${LOCKSTEP_ADMIN_TOKEN}") -}}
{{- $_ := set $file "state" (merge (dict "dir" (printf "/var/lib/lockstep/%s" $file.name)) $state) -}}
{{- toYaml $x -}}
{{- end -}}

{{/* The file as it was given: keys, or text. */}}
{{- define "lockstep.said" -}}
{{- $where := printf "pipelines.%s.file" .key -}}
{{- $file := (default dict .pipeline).file -}}
{{- if kindIs "string" $file -}}
{{- $file = fromYaml $file -}}
{{- if and (hasKey $file "Error") (eq (len $file) 1) -}}
{{- fail (printf "\n\n%s: the text is no YAML: %s\nRemedy: give a pipeline file in YAML or JSON, as keys or as text; TOML is not taken here.\n" $where $file.Error) -}}
{{- end -}}
{{- end -}}
{{- if not $file -}}
{{- fail (printf "\n\n%s: there is no pipeline file.\nRemedy: write it below `file`, or give it by --set-file %s=shop.yaml\n" $where $where) -}}
{{- end -}}
{{- $file = deepCopy $file -}}
{{- if not $file.name -}}{{- $_ := set $file "name" .key -}}{{- end -}}
{{- toYaml (dict "file" $file) -}}
{{- end -}}

{{/* What cannot work is said before anything is installed, with what to do about it. */}}
{{- define "lockstep.refuse" -}}
{{- $at := printf "\n\npipelines.%s" .key -}}
{{- $state := default dict .file.state -}}
{{- $lease := default dict .file.lease -}}
{{- $several := gt (int .v.replicas) 1 -}}
{{- if .file.admin -}}
{{- fail (printf "%s.file.admin: the chart writes this section, for probes and the Service.\nRemedy: leave it out; `admin` of the values has port and token.\n" $at) -}}
{{- end -}}
{{- if $state.dir -}}
{{- fail (printf "%s.file.state.dir: the chart mounts the state directory, and writes where.\nRemedy: leave it out; `persistence` of the values has the volume.\n" $at) -}}
{{- end -}}
{{- if not .v.admin.existingSecret -}}
{{- fail (printf "%s.admin.existingSecret: the admin endpoint is reached from outside the pod, and needs a token.\nRemedy: make one, and name it:\n  kubectl create secret generic lockstep-admin --from-literal=%s=\"$(openssl rand -hex 32)\"\n  --set admin.existingSecret=lockstep-admin\n" $at .v.admin.secretKey) -}}
{{- end -}}
{{- if and .inCluster (not (regexMatch "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$" .file.name)) -}}
{{- fail (printf "%s.file.name: `%s` cannot name a lease of Kubernetes.\nRemedy: use letters, digits and `-`, or keep the lease elsewhere (file.lease).\n" $at .file.name) -}}
{{- end -}}
{{- if and .inCluster $lease.namespace (contains "${" $lease.namespace) -}}
{{- fail (printf "%s.file.lease.namespace: the chart makes a Role there, and has to know where that is.\nRemedy: write the namespace itself.\n" $at) -}}
{{- end -}}
{{- if and .file.lease (not .shared) -}}
{{- if and (ne (toString $lease.type) "postgres") (not $state.url) -}}
{{- fail (printf "%s: whoever takes over would not find what the former process knew (lease: %s).\nRemedy: one of\n  file.state.url: a PostgreSQL database that keeps it, or file.lease of type postgres, whose database does;\n  file.state.shared: true, with persistence.accessModes: [ReadWriteMany];\n  replicas: 1, and neither lease nor state in the file.\n" $at (toString $lease.type)) -}}
{{- end -}}
{{- $local := list -}}
{{- range $name, $sink := default dict .file.sinks -}}
{{- if has (toString $sink.type) (list "file" "tantivy") -}}{{- $local = append $local (printf "file.sinks.%s is of type %s" $name $sink.type) -}}{{- end -}}
{{- end -}}
{{- range $name, $transform := default dict .file.transforms -}}
{{- if and (eq (toString $transform.type) "dedupe") (ne (dig "store" "type" "embedded" $transform) "redis") -}}{{- $local = append $local (printf "file.transforms.%s has no `store` of type redis" $name) -}}{{- end -}}
{{- end -}}
{{- if eq (dig "dead_letters" "type" "embedded" .file) "embedded" -}}{{- $local = append $local "file.dead_letters is not of the type of a sink, such as kafka" -}}{{- end -}}
{{- if $local -}}
{{- fail (printf "%s: this is kept in the state directory of one pod, where whoever takes over does not find it:\n  %s\nRemedy: keep it on a server; or file.state.shared: true, with persistence.accessModes: [ReadWriteMany]; or replicas: 1, and neither lease nor state in the file.\n" $at (join "\n  " $local)) -}}
{{- end -}}
{{- if .v.persistence.existingClaim -}}
{{- fail (printf "%s.persistence.existingClaim: with this lease each pod has a folder of its own, and the claim would not be used.\nRemedy: leave it out, or say file.state.shared: true.\n" $at) -}}
{{- end -}}
{{- end -}}
{{- if and .shared (not .v.persistence.existingClaim) (not (has "ReadWriteMany" .v.persistence.accessModes)) -}}
{{- fail (printf "%s.persistence.accessModes: file.state.shared says that all pods have the directory, and the claim is for one node.\nRemedy: persistence.accessModes: [ReadWriteMany], of a storage class that has it, or persistence.existingClaim.\n" $at) -}}
{{- end -}}
{{- if and (not .v.terminationGracePeriodSeconds) (contains "${" (toString .file.shutdown_timeout)) -}}
{{- fail (printf "%s.file.shutdown_timeout: pods have to be given so long to end, and the chart cannot know it.\nRemedy: write the time itself, or set terminationGracePeriodSeconds.\n" $at) -}}
{{- end -}}
{{- end -}}

{{- define "lockstep.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
lockstep/pipeline: {{ .key }}
{{- end -}}

{{/* Of pods: nothing that changes with every version of the chart, so that pods are not replaced for that. */}}
{{- define "lockstep.podLabels" -}}
{{- with .v.podLabels }}{{ toYaml . }}
{{ end -}}
{{- with .root.Values.commonLabels }}{{ toYaml . }}
{{ end -}}
{{- include "lockstep.selector" . }}
{{- end -}}

{{/* Of objects that are of no pipeline, too. */}}
{{- define "lockstep.labels" -}}
{{- with .root.Values.commonLabels }}{{ toYaml . }}
{{ end -}}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- with .key }}
lockstep/pipeline: {{ . }}
{{- end }}
{{- end -}}

{{/* The metadata of an object, of (dict "x" X "suffix" "" "annotations" dict "namespace" ""). */}}
{{- define "lockstep.metadata" -}}
name: {{ .x.name }}{{ .suffix }}
namespace: {{ default .x.root.Release.Namespace .namespace }}
labels:
  {{- include "lockstep.labels" .x | nindent 2 }}
{{- with merge (default dict .annotations) .x.root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "lockstep.image" -}}
{{- $image := .v.image -}}
{{- if $image.digest -}}{{ $image.repository }}@{{ $image.digest }}
{{- else -}}{{ $image.repository }}:{{ default .root.Chart.AppVersion $image.tag }}
{{- end -}}
{{- end -}}

{{- define "lockstep.serviceAccount" -}}
{{- if .v.serviceAccount.create -}}{{ default .name .v.serviceAccount.name }}
{{- else -}}{{ default "default" .v.serviceAccount.name }}
{{- end -}}
{{- end -}}

{{- define "lockstep.file" -}}
{{- toYaml .file -}}
{{- end -}}

{{/* The pipeline file as an object, of (dict "x" X "suffix" "" "annotations" dict). */}}
{{- define "lockstep.fileObject" -}}
apiVersion: v1
kind: {{ .x.v.fileIn }}
metadata:
  {{- include "lockstep.metadata" . | nindent 2 }}
{{ if eq .x.v.fileIn "Secret" }}stringData{{ else }}data{{ end }}:
  pipeline.yaml: |
    {{- include "lockstep.file" .x | nindent 4 }}
{{- end -}}

{{/* Its seconds, rounded up: of `250ms`, `10s`, `15m`, `24h`, `7d`. */}}
{{- define "lockstep.seconds" -}}
{{- $number := regexFind "^[0-9]+" . | int64 -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- if eq $unit "ms" -}}{{ div (add $number 999) 1000 }}
{{- else -}}{{ mul $number (get (dict "s" 1 "m" 60 "h" 3600 "d" 86400) $unit) }}
{{- end -}}
{{- end -}}

{{/* What a process needs that reads the pipeline file: environment and mounts, of a container. */}}
{{- define "lockstep.container" -}}
image: {{ include "lockstep.image" . | quote }}
imagePullPolicy: {{ .v.image.pullPolicy }}
command: [lockstep]
env:
  - name: LOCKSTEP_LOG
    value: {{ .v.log.level | quote }}
  - name: LOCKSTEP_LOG_FORMAT
    value: {{ .v.log.format | quote }}
  - name: LOCKSTEP_ADMIN_TOKEN
    valueFrom:
      secretKeyRef:
        name: {{ .v.admin.existingSecret }}
        key: {{ .v.admin.secretKey }}
  {{- with .v.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .v.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .v.securityContext | nindent 2 }}
volumeMounts:
  - name: file
    mountPath: /etc/lockstep
    readOnly: true
  - name: state
    mountPath: /var/lib/lockstep
  - name: tmp
    mountPath: /tmp
  {{- with .v.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* And volumes, of its pod: of (dict "x" X "suffix" "" "claim" true). */}}
{{- define "lockstep.volumes" -}}
- name: file
  {{- if eq .x.v.fileIn "Secret" }}
  secret:
    secretName: {{ .x.name }}{{ .suffix }}
  {{- else }}
  configMap:
    name: {{ .x.name }}{{ .suffix }}
  {{- end }}
- name: state
  {{- if .claim }}
  persistentVolumeClaim:
    claimName: {{ default .x.name .x.v.persistence.existingClaim }}
  {{- else }}
  emptyDir:
    sizeLimit: {{ .x.v.persistence.emptyDirSizeLimit }}
  {{- end }}
- name: tmp
  emptyDir:
    sizeLimit: 64Mi
{{- with .x.v.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Who a pod is, and where it goes. */}}
{{- define "lockstep.placement" -}}
enableServiceLinks: false
securityContext:
  {{- toYaml .v.podSecurityContext | nindent 2 }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .v.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .v.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .v.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .v.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{/* Role and RoleBinding for the lease, of (dict "x" X "suffix" "" "annotations" dict "account" NAME). */}}
{{- define "lockstep.rbac" -}}
{{- $namespace := default .x.root.Release.Namespace .x.file.lease.namespace -}}
{{- $metadata := include "lockstep.metadata" (merge (dict "namespace" $namespace) .) -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  {{- $metadata | nindent 2 }}
rules:
  # A name cannot be said where something is made.
  - apiGroups: [coordination.k8s.io]
    resources: [leases]
    verbs: [create]
  - apiGroups: [coordination.k8s.io]
    resources: [leases]
    resourceNames: [{{ .x.file.name | quote }}]
    verbs: [get, update, watch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  {{- $metadata | nindent 2 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: {{ .x.name }}{{ .suffix }}
subjects:
  - kind: ServiceAccount
    name: {{ .account }}
    namespace: {{ .x.root.Release.Namespace }}
{{- end -}}
