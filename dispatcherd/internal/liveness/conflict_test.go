package liveness

import (
	"errors"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestContest decides which worker is a node that has no session.
func TestContest(t *testing.T) {
	t.Parallel()
	cfg := timeouts()
	now := time.Now()
	for name, tt := range map[string]struct {
		predecessor predecessor
		contested   bool
	}{
		"no predecessor":                      {},
		"the same process":                    {predecessor{"new", "10.0.0.1", now.Add(time.Second)}, false},
		"restarted on its machine":            {predecessor{"old", "10.0.0.2", now.Add(time.Second)}, false},
		"on another machine, at once":         {predecessor{"old", "10.0.0.1", now.Add(time.Second)}, true},
		"on another machine, after the wait":  {predecessor{"old", "10.0.0.1", now}, false},
		"on another machine, after a goodbye": {predecessor{}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := &node{id: "n1", predecessor: tt.predecessor}
			err := n.contest(Worker{Node: "n1", Instance: "new", Address: "10.0.0.2"}, "host", now, now.Add(-time.Hour), cfg)
			var contested *ContestedError
			if errors.As(err, &contested) != tt.contested || (err == nil) == tt.contested {
				t.Errorf("contest: %v", err)
			}
			if err != nil && status.Code(err) != codes.Unavailable {
				t.Errorf("the worker is told %v", err)
			}
		})
	}
	var n node
	n.remember("old", "10.0.0.1", now, cfg)
	if left := n.predecessor.until.Sub(now); left <= 0 || left >= cfg.Reconnect {
		t.Errorf("a worker on another machine waits %s, and the node is down after %s", left, cfg.Reconnect)
	}
}
