package dispatcherd

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/pflag"

	"github.com/musterhq/muster/dispatcherd/internal/liveness"
)

// maxLogReaders is less than the streams that a server allows on one connection:
// if those of an apid were used up, further ones would wait and not be refused.
const maxLogReaders = 9_000

// Config are the settings of a dispatcher.
type Config struct {
	// HeartbeatPeriod is how often a worker is heard where the cluster's
	// settings do not say. Shorter finds silent workers sooner, and costs
	// messages: a dispatcher with n workers takes n/HeartbeatPeriod a second.
	HeartbeatPeriod time.Duration
	// HeartbeatMisses is after how many silent periods a node is down.
	HeartbeatMisses int
	// ReconnectGrace is how long a worker whose stream closed may take to come
	// back before its node is down. It must cover a new connection, and no more:
	// it is what a killed worker's tasks wait for.
	ReconnectGrace time.Duration
	// RestartGrace is the same for a worker that said that it restarts.
	RestartGrace time.Duration
	// TakeoverGrace is the same for workers of a dispatcher that died or gave
	// its shard away: they did nothing wrong, and may have to look for the
	// new one.
	TakeoverGrace time.Duration
	// UnknownAfter is when a node of another dispatcher that has not come yet is
	// said to be UNKNOWN. Nodes that come sooner cost no write, so that a
	// takeover of living nodes is free.
	UnknownAfter time.Duration
	// OrphanAfter is how long a node is down before its tasks are given up.
	OrphanAfter time.Duration
	// CrowdedNodes is how many connected nodes one dispatcher hears at the
	// plain period. With twice as many, the period is twice as long: heartbeats cost
	// a dispatcher so much and no more.
	CrowdedNodes int
	// HelloTimeout bounds the wait for a session's first message.
	HelloTimeout time.Duration
	// OwnerWait is how long a worker is kept waiting when nobody owns its shard,
	// before it is told to try again.
	OwnerWait time.Duration
	// SettleTimeout is how long a session's first assignments wait for records
	// that other records refer to, for tables arrive each for itself.
	SettleTimeout time.Duration
	// MessageTasks and MessageBytes bound one message of assignments.
	MessageTasks int
	MessageBytes int
	// LogQueueBytes is how much output waits for a slow reader of logs before the
	// worker waits, too.
	LogQueueBytes int
	// LogReaders is how many log subscriptions the dispatcher serves: one for each
	// node that each log stream of a user reads.
	LogReaders int
}

// DefaultConfig returns the defaults.
func DefaultConfig() Config {
	return Config{
		HeartbeatPeriod: 2 * time.Second,
		HeartbeatMisses: 3,
		ReconnectGrace:  3 * time.Second,
		RestartGrace:    30 * time.Second,
		TakeoverGrace:   30 * time.Second,
		UnknownAfter:    5 * time.Second,
		OrphanAfter:     24 * time.Hour,
		CrowdedNodes:    2_000,
		HelloTimeout:    10 * time.Second,
		OwnerWait:       2 * time.Second,
		SettleTimeout:   time.Second,
		MessageTasks:    1000,
		MessageBytes:    1 << 20,
		LogQueueBytes:   1 << 20,
		LogReaders:      8192,
	}
}

// AddFlags adds the settings that operators have reason to change. Their
// defaults are the values that c holds.
func (c *Config) AddFlags(fs *pflag.FlagSet) {
	fs.DurationVar(&c.HeartbeatPeriod, "heartbeat-period", c.HeartbeatPeriod, "how often workers are heard, unless the cluster's settings say, or there are more than crowded-nodes")
	fs.IntVar(&c.HeartbeatMisses, "heartbeat-misses", c.HeartbeatMisses, "after how many silent periods a node is down")
	fs.IntVar(&c.CrowdedNodes, "crowded-nodes", c.CrowdedNodes, "how many workers one dispatcher hears every heartbeat-period; with n times as many each is heard n times less often")
	fs.DurationVar(&c.ReconnectGrace, "reconnect-grace", c.ReconnectGrace, "how long a worker whose connection closed may stay away before its node is down")
	fs.DurationVar(&c.RestartGrace, "restart-grace", c.RestartGrace, "the same for a worker that said that it restarts")
	fs.DurationVar(&c.TakeoverGrace, "takeover-grace", c.TakeoverGrace, "the same for workers of a dispatcher that died or gave its shard away")
	fs.DurationVar(&c.UnknownAfter, "unknown-after", c.UnknownAfter, "when a node that has not come over from another dispatcher is said to be unknown")
	fs.DurationVar(&c.OrphanAfter, "orphan-after", c.OrphanAfter, "how long a node is down before its tasks are given up as orphaned")
	fs.IntVar(&c.LogReaders, "log-readers", c.LogReaders, fmt.Sprintf("how many log readers the dispatcher serves at once, one for each node that each log stream reads, shared out fairly among clients; at most %d", maxLogReaders))
}

// timeouts returns how long the dispatcher waits for nodes.
func (c *Config) timeouts() liveness.Timeouts {
	return liveness.Timeouts{
		HeartbeatMisses: c.HeartbeatMisses, Reconnect: c.ReconnectGrace, Restart: c.RestartGrace,
		Takeover: c.TakeoverGrace, Unknown: c.UnknownAfter, Orphan: c.OrphanAfter,
	}
}

// Validate names every setting that cannot be.
func (c Config) Validate() error {
	var faults []error
	for _, d := range []struct {
		name  string
		value time.Duration
	}{
		{"HeartbeatPeriod", c.HeartbeatPeriod}, {"ReconnectGrace", c.ReconnectGrace}, {"RestartGrace", c.RestartGrace},
		{"TakeoverGrace", c.TakeoverGrace}, {"UnknownAfter", c.UnknownAfter}, {"OrphanAfter", c.OrphanAfter},
		{"HelloTimeout", c.HelloTimeout}, {"OwnerWait", c.OwnerWait}, {"SettleTimeout", c.SettleTimeout},
	} {
		if d.value <= 0 {
			faults = append(faults, fmt.Errorf("%s is %s, want more than 0", d.name, d.value))
		}
	}
	for _, n := range []struct {
		name  string
		value int
	}{
		{"HeartbeatMisses", c.HeartbeatMisses}, {"CrowdedNodes", c.CrowdedNodes}, {"MessageTasks", c.MessageTasks},
		{"MessageBytes", c.MessageBytes}, {"LogQueueBytes", c.LogQueueBytes}, {"LogReaders", c.LogReaders},
	} {
		if n.value < 1 {
			faults = append(faults, fmt.Errorf("%s is %d, want at least 1", n.name, n.value))
		}
	}
	if c.LogReaders > maxLogReaders {
		faults = append(faults, fmt.Errorf("LogReaders (--log-readers) is %d, want at most %d", c.LogReaders, maxLogReaders))
	}
	if c.UnknownAfter > c.TakeoverGrace {
		faults = append(faults, fmt.Errorf("UnknownAfter (%s) is longer than TakeoverGrace (%s)", c.UnknownAfter, c.TakeoverGrace))
	}
	return errors.Join(faults...)
}
