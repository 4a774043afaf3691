//go:build tools

// Package tools pins the Kubernetes API server that the chart is installed on in tests.
package tools

import _ "k8s.io/kubernetes/cmd/kube-apiserver"
