// Package musterv1 is the control API: what users of a cluster ask of apid, and what it
// answers.
package musterv1

// StaleHeader is a header of answers, in gRPC and in REST. An API server that has
// no contact with the store sets it to the seconds since the last contact: what the
// answer shows may be as old.
const StaleHeader = "muster-stale-seconds"

// StackLabel is on all objects of a stack. Its value is the stack's name. Docker's tools
// know it too.
const StackLabel = "com.docker.stack.namespace"
