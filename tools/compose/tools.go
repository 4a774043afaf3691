//go:build tools

// Package tools pins the Docker Compose that tests bring the cluster up with.
package tools

import _ "github.com/docker/compose/v2/cmd"
