//go:build tools

// Package tools pins the Consul server that tests run.
package tools

import _ "github.com/hashicorp/consul"
