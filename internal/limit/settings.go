package limit

import (
	"errors"
	"fmt"
	"math"

	"github.com/spf13/pflag"
)

// closedRate is the default rate of a client in a cluster that requires identities. It is
// far more than a person or a pipeline needs, and far less than an apid can serve.
const closedRate = 200

// Settings say how often a client may call, and how many streams it may have open.
type Settings struct {
	// ClientRate is how many calls a second one client may make, and ClientBurst how
	// many at once. 0 means no limit. A negative rate means closedRate in a cluster that
	// requires identities, and no limit in others.
	ClientRate  float64
	ClientBurst int
	// UnauthenticatedRate and UnauthenticatedBurst limit the calls of one host that have no
	// identity or are refused. 0 means no limit.
	UnauthenticatedRate  float64
	UnauthenticatedBurst int
	// ClientWatches and ClientLogs are how many watches and log streams one client
	// may have open. 0: any number.
	ClientWatches, ClientLogs int
}

// DefaultSettings returns the defaults.
func DefaultSettings() Settings {
	return Settings{ClientRate: -1, ClientBurst: 1000, UnauthenticatedRate: 50, UnauthenticatedBurst: 500, ClientWatches: 256, ClientLogs: 64}
}

// AddFlags adds the settings; their defaults are the values that s holds.
func (s *Settings) AddFlags(fs *pflag.FlagSet) {
	fs.Float64Var(&s.ClientRate, "client-rate", s.ClientRate, fmt.Sprintf("calls a second that one client may make: the name of a token or a certificate, and without one a host; 0: no limit; -1: %d with TLS, and no limit in the clear", closedRate))
	fs.IntVar(&s.ClientBurst, "client-burst", s.ClientBurst, "burst of calls by one client above --client-rate")
	fs.Float64Var(&s.UnauthenticatedRate, "unauthenticated-rate", s.UnauthenticatedRate, "with TLS: calls a second of one host that show no identity (joining), and as many that are refused; hosts together may make forty times as many of the former; 0: no limit")
	fs.IntVar(&s.UnauthenticatedBurst, "unauthenticated-burst", s.UnauthenticatedBurst, "burst of such calls by one host above --unauthenticated-rate")
	fs.IntVar(&s.ClientWatches, "client-watches", s.ClientWatches, "open watches of one client per apid; clients as for --client-rate; 0: no limit")
	fs.IntVar(&s.ClientLogs, "client-logs", s.ClientLogs, "open log streams of one client per apid; clients as for --client-rate; 0: no limit")
}

// Validate returns an error that names every invalid setting.
func (s Settings) Validate() error {
	var faults []error
	for _, r := range []struct {
		flag  string
		value float64
		least float64
	}{{"client-rate", s.ClientRate, -1}, {"unauthenticated-rate", s.UnauthenticatedRate, 0}} {
		if math.IsNaN(r.value) || math.IsInf(r.value, 0) || r.value < r.least {
			faults = append(faults, fmt.Errorf("--%s: invalid number of calls per second %v", r.flag, r.value))
		}
	}
	for _, b := range []struct {
		flag  string
		value int
	}{{"client-burst", s.ClientBurst}, {"unauthenticated-burst", s.UnauthenticatedBurst}} {
		if b.value < 1 {
			faults = append(faults, fmt.Errorf("--%s: %d is less than 1", b.flag, b.value))
		}
	}
	for _, n := range []struct {
		flag  string
		value int
	}{{"client-watches", s.ClientWatches}, {"client-logs", s.ClientLogs}} {
		if n.value < 0 {
			faults = append(faults, fmt.Errorf("--%s: %d is negative: want a number of streams, or 0 for no limit", n.flag, n.value))
		}
	}
	return errors.Join(faults...)
}

// effective replaces a negative rate by the default that it stands for.
func (s Settings) effective(closed bool) Settings {
	switch {
	case s.ClientRate < 0 && closed:
		s.ClientRate = closedRate
	case s.ClientRate < 0:
		s.ClientRate = 0
	}
	if !closed {
		s.UnauthenticatedRate = 0
	}
	return s
}
