//go:build tools

// Package tools pins the Docker CLI that tests drive.
package tools

import _ "github.com/docker/cli/cmd/docker"
