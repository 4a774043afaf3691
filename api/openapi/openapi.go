// Package openapi holds the OpenAPI document of the REST API, generated from
// the contract.
package openapi

import _ "embed"

//go:embed muster.swagger.json
var document []byte

// Document returns the document, as JSON.
func Document() []byte { return append([]byte(nil), document...) }
