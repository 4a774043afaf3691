//go:build tools

// Package tools pins what writes a release's bill of materials.
package tools

import _ "github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod"
