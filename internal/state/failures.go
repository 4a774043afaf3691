package state

// EarlyFailureLimit is the number of consecutive early failures after which a slot is
// reported as failing and retried with a growing delay.
const EarlyFailureLimit = 3
