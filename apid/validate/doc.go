// Package validate says whether what a user asks for can be acted on, and if
// not, names every field that is in the way.
//
// There are two kinds of fault. A field is invalid if no version of Muster
// would take it: INVALID_ARGUMENT. A field is unimplemented if the contract can
// say it and this version does not act on it: it is refused with UNIMPLEMENTED
// instead of being ignored. What is unimplemented stands in one table, in
// unimplemented.go.
//
// The package reads specs and what executors said of themselves; it never
// reads the store.
package validate
