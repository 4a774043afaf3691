package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/timestamppb"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/backoff"
)

// statusPause is the time between two looks at a cluster that is waited for.
const statusPause = 500 * time.Millisecond

// errUnhealthy says that something of the cluster is not well.
var errUnhealthy = errors.New("the cluster is not well")

func (c *CLI) clusterStatus() *cobra.Command {
	var (
		o         output
		perShard  bool
		waitFor   time.Duration
		nodes     uint64
		statusCmd = &cobra.Command{
			Use: "status", Short: "Show the health of the cluster's daemons and which shards they own", Args: cobra.NoArgs,
		}
	)
	statusCmd.Long = `Show how the cluster's own parts do: the store, every instance of every manager daemon with the shards that it
owns, and the nodes in sum.

SINCE is how long the instance has held the latest of its shards; --shards shows each. LAG is how far the instance's
view of the store is behind: the commits that the store held when it was asked and that were not in the view, and for
how long the view may have lacked something (since the instance's last contact with the store, or since it saw there
the oldest change that it has not taken in).

The exit code is 0 if nothing is wrong, and 7 if something is: the store does not answer, an instance is not healthy,
does not answer or died within the last minute, a daemon has no instance, or a shard has no owner. The problem is printed on
standard error. A node that is down does not count as a problem.

--wait waits until nothing is wrong and a node is READY, so that services can run; --ready-nodes says how many must be, 0
for a cluster that has no workers yet. If fewer are READY by then, the exit code is 7 too.`
	statusCmd.Example = `  muster cluster status
  muster cluster status --wait 30s && echo all is well
  muster cluster status --format json | jq '.[0].problems'`
	statusCmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if cmd.Flags().Changed("ready-nodes") && waitFor <= 0 {
			return usage("--ready-nodes: needs --wait")
		}
		resp, err := c.waitForStatus(cmd, waitFor, nodes)
		if err != nil {
			return err
		}
		if n := resp.Nodes.GetReady(); waitFor > 0 && n < nodes {
			resp.Healthy = false
			resp.Problems = append(resp.Problems, fmt.Sprintf("ready nodes: %d, want %d: start workers (muster workerd), or read in their logs why they do not register", n, nodes))
		}
		switch {
		case o.format != "table":
			err = show(c, &o, []*musterv1.GetClusterStatusResponse{resp}, nil, nil)
		case perShard:
			err = c.printTable(shardTable(resp))
		default:
			err = c.printStatus(resp)
		}
		if err != nil {
			return err
		}
		if resp.Healthy && len(resp.Problems) == 0 {
			return nil
		}
		text := ""
		for _, p := range resp.Problems {
			text += "\n  " + printable(p)
		}
		return fmt.Errorf("%w:%s", errUnhealthy, text)
	}
	o.addFlags(statusCmd, false)
	statusCmd.Flags().BoolVar(&perShard, "shards", false, "show the owner of each shard")
	statusCmd.Flags().DurationVar(&waitFor, "wait", 0, "wait up to this long for a healthy cluster and READY nodes")
	statusCmd.Flags().Uint64Var(&nodes, "ready-nodes", 1, "number of nodes that must be READY for --wait to end")
	return statusCmd
}

// waitForStatus asks until the cluster is well and has so many nodes that are ready, or
// the time is over, and returns what was answered last.
func (c *CLI) waitForStatus(cmd *cobra.Command, most time.Duration, nodes uint64) (*musterv1.GetClusterStatusResponse, error) {
	over, cancel := context.WithTimeout(cmd.Context(), most)
	defer cancel()
	for {
		resp, err := call(c, cmd, api.GetClusterStatus, &musterv1.GetClusterStatusRequest{})
		if err == nil && resp.Healthy && resp.Nodes.GetReady() >= nodes || over.Err() != nil {
			return resp, err
		}
		_ = backoff.Sleep(over, statusPause)
		if err := cmd.Context().Err(); err != nil {
			return nil, err
		}
	}
}

// printStatus shows a line about the store, one about the nodes, and a table of
// instances.
func (c *CLI) printStatus(m *musterv1.GetClusterStatusResponse) error {
	c.printf("Store: %s\n", printable(aboutStore(m.Store)))
	if n := m.Nodes; n != nil {
		c.printf("Nodes: %d: %d ready, %d down, %d other; %d paused or drained\n", n.Total, n.Ready, n.Down, n.Other, n.Unavailable)
	}
	c.printf("\n")
	t := &table{header: []string{"DAEMON", "INSTANCE", "ADDRESS", "VERSION", "UP", "HEALTH", "SHARDS", "SINCE", "LAG"}}
	for _, d := range m.Daemons {
		t.add(d.Daemon, d.Instance, d.Address, d.Version, lasting(d.StartedAt), title(d.Health.String()), shardList(d.Shards), latest(d.Shards), lagText(d.View))
	}
	return c.printTable(t)
}

func aboutStore(s *musterv1.StoreStatus) string {
	text := s.Kind
	if s.Leader != "" {
		text += ", led by " + s.Leader
	}
	if len(s.Servers) > 0 {
		text += fmt.Sprintf(" of %d server(s)", len(s.Servers))
	}
	if s.Reachable && s.Error != "" {
		return text + fmt.Sprintf(", REFUSES REQUESTS: %s; last contact %v ago", s.Error, rounded(s.StaleFor.AsDuration()))
	}
	if s.Reachable {
		return text + fmt.Sprintf(", answers in %v", s.Latency.AsDuration().Round(10*time.Microsecond))
	}
	return text + fmt.Sprintf(", DOES NOT ANSWER; last contact %v ago", rounded(s.StaleFor.AsDuration()))
}

// shardList shows how many shards there are and which.
func shardList(held []*musterv1.ShardHolding) string {
	if len(held) == 0 {
		return "-"
	}
	var ranges []string
	for i := 0; i < len(held); {
		last := i
		for last+1 < len(held) && held[last+1].Shard == held[last].Shard+1 {
			last++
		}
		text := strconv.Itoa(int(held[i].Shard))
		if last > i {
			text += "-" + strconv.Itoa(int(held[last].Shard))
		}
		ranges = append(ranges, text)
		i = last + 1
	}
	return fmt.Sprintf("%d: %s", len(held), strings.Join(ranges, ","))
}

// latest says how long the latest of the shards has been held.
func latest(held []*musterv1.ShardHolding) string {
	var at *timestamppb.Timestamp
	for _, h := range held {
		if h.Since != nil && (at == nil || h.Since.AsTime().After(at.AsTime())) {
			at = h.Since
		}
	}
	return orDash(ago(at))
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func lasting(since *timestamppb.Timestamp) string {
	if since == nil {
		return "-"
	}
	return units.HumanDuration(time.Since(since.AsTime()))
}

func lagText(v *musterv1.ViewLag) string {
	switch lag := v.GetTime().AsDuration(); {
	case v == nil:
		return "?"
	case !v.Loaded:
		return "loading"
	case v.Commits == nil:
		return fmt.Sprintf("? commits, %v", rounded(lag))
	case *v.Commits == 0 && lag == 0:
		return "none"
	default:
		return fmt.Sprintf("%d commit(s), %v", *v.Commits, rounded(lag))
	}
}

// rounded keeps of a time what matters.
func rounded(d time.Duration) time.Duration {
	if d > time.Second {
		return d.Round(100 * time.Millisecond)
	}
	return d.Round(time.Millisecond)
}

// shardTable shows each shard and who owns it.
func shardTable(m *musterv1.GetClusterStatusResponse) *table {
	t := &table{header: []string{"SUBSYSTEM", "SHARD", "DAEMON", "INSTANCE", "SINCE"}}
	type holder struct {
		*musterv1.DaemonInstance
		since *timestamppb.Timestamp
	}
	holders := map[string]map[uint32]holder{}
	for _, d := range m.Daemons {
		for _, h := range d.Shards {
			if holders[h.Subsystem] == nil {
				holders[h.Subsystem] = map[uint32]holder{}
			}
			holders[h.Subsystem][h.Shard] = holder{d, h.Since}
		}
	}
	for _, s := range m.Subsystems {
		for shard := range s.Shards {
			name, since := "none", "-"
			if h, ok := holders[s.Subsystem][shard]; ok {
				name, since = h.Instance, orDash(ago(h.since))
			}
			t.add(s.Subsystem, strconv.Itoa(int(shard)), s.Daemon, name, since)
		}
	}
	return t
}
