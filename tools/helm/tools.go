//go:build tools

// Package tools pins the Helm that the chart is rendered with.
package tools

import _ "helm.sh/helm/v3/cmd/helm"
