package daemon

import "github.com/prometheus/client_golang/prometheus"

// StageBuckets are those of all histograms that tell how long a daemon took to
// bring tasks a stage further: from a millisecond to half a minute. They are
// alike, so that the stages can be compared and added up.
func StageBuckets() []float64 { return prometheus.ExponentialBuckets(0.001, 2, 16) }
