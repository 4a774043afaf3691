package dispatcherd

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/pflag"

	"github.com/musterhq/muster/dispatcherd/internal/liveness"
	"github.com/musterhq/muster/internal/seal"
)

// maxLogReaders is below the number of streams that a server allows on one
// connection. If an apid used them up, further ones would wait instead of being
// refused.
const maxLogReaders = 9_000

// Config are the settings of a dispatcher.
type Config struct {
	// Keys are the cluster's, which open secrets for workers. It is nil if there are none.
	Keys *seal.Keyring
	// HeartbeatPeriod is the heartbeat period if the cluster's settings contain none.
	// A shorter period finds silent workers sooner, and costs messages: a dispatcher
	// with n workers receives n/HeartbeatPeriod per second.
	HeartbeatPeriod time.Duration
	// HeartbeatMisses is the number of silent periods after which a node is down.
	HeartbeatMisses int
	// ReconnectGrace is how long a worker whose stream closed may take to come back
	// before its node is down. It only has to cover a new connection: the tasks of a
	// killed worker wait for it.
	ReconnectGrace time.Duration
	// RestartGrace is the same for a worker that announced its restart.
	RestartGrace time.Duration
	// TakeoverGrace is the same for workers of a dispatcher that died or gave its
	// shard away. They may have to look for the new one.
	TakeoverGrace time.Duration
	// UnknownAfter is when a node of another dispatcher that has not connected yet
	// is shown as UNKNOWN. Nodes that connect sooner cost no write, so a takeover of
	// living nodes costs none.
	UnknownAfter time.Duration
	// OrphanAfter is how long a node is down before its tasks are given up.
	OrphanAfter time.Duration
	// CrowdedNodes is the number of connected nodes up to which the usual period
	// applies. With twice as many, the period is twice as long, so that the cost of
	// heartbeats is limited.
	CrowdedNodes int
	// HelloTimeout limits the time until a session's first message.
	HelloTimeout time.Duration
	// OwnerWait is how long a worker waits if no replica owns its shard, before it is
	// told to try again.
	OwnerWait time.Duration
	// SettleTimeout is how long a session's first assignments wait for records that
	// they refer to: each table arrives on its own.
	SettleTimeout time.Duration
	// MessageTasks and MessageBytes limit one message of assignments. gRPC takes a buffer
	// of 1 MiB for a message of more than 32 KiB, and clears it on both sides.
	MessageTasks int
	MessageBytes int
	// LogQueueBytes is how much output waits for a slow reader before the worker
	// waits too.
	LogQueueBytes int
	// LogReaders is the greatest number of log subscriptions. Each log stream of a
	// user has one for each node that it reads.
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
		MessageBytes:    31 << 10,
		LogQueueBytes:   1 << 20,
		LogReaders:      8192,
	}
}

// AddFlags adds flags for the settings that operators may want to change. The
// values of c are their defaults.
func (c *Config) AddFlags(fs *pflag.FlagSet) {
	fs.DurationVar(&c.HeartbeatPeriod, "heartbeat-period", c.HeartbeatPeriod, "how often workers are heard, unless the cluster's settings say, or there are more than crowded-nodes")
	fs.IntVar(&c.HeartbeatMisses, "heartbeat-misses", c.HeartbeatMisses, "after how many silent periods a node is down")
	fs.IntVar(&c.CrowdedNodes, "crowded-nodes", c.CrowdedNodes, "how many workers one dispatcher hears every heartbeat-period; with n times as many each is heard n times less often")
	fs.DurationVar(&c.ReconnectGrace, "reconnect-grace", c.ReconnectGrace, "how long a worker whose connection closed may stay away before its node is down")
	fs.DurationVar(&c.RestartGrace, "restart-grace", c.RestartGrace, "the same for a worker that said that it restarts")
	fs.DurationVar(&c.TakeoverGrace, "takeover-grace", c.TakeoverGrace, "the same for workers of a dispatcher that died or gave its shard away")
	fs.DurationVar(&c.UnknownAfter, "unknown-after", c.UnknownAfter, "when a node that has not come over from another dispatcher becomes UNKNOWN")
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

// Validate returns an error that names every invalid setting.
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
