package state

// EarlyFailureLimit is how many early failures in a row are taken for an accident. A
// slot with that many is retried with a growing delay, and reported as failing.
const EarlyFailureLimit = 3
