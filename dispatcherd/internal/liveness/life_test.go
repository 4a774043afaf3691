package liveness

import (
	"testing"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// TestLife follows lives, second by second.
func TestLife(t *testing.T) {
	t.Parallel()
	cfg := timeouts()
	begin := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	const (
		keep         = musterv1.NodeStatus_STATE_UNSPECIFIED
		unknown      = musterv1.NodeStatus_UNKNOWN
		ready        = musterv1.NodeStatus_READY
		disconnected = musterv1.NodeStatus_DISCONNECTED
		fallen       = musterv1.NodeStatus_DOWN
	)
	type step struct {
		after time.Duration // since begin
		do    func(life, time.Time) life
		want  musterv1.NodeStatus_State
		phase phase
	}
	pass := func(l life, now time.Time) life { return l.at(now, cfg) }
	heartbeat := func(l life, now time.Time) life { return l.at(now, cfg).hear(now) }
	closing := func(l life, now time.Time) life { return l.closeStream(now, cfg) }
	restart := func(l life, now time.Time) life { return l.goodbye(now, true, cfg) }
	leave := func(l life, now time.Time) life { return l.goodbye(now, false, cfg) }
	back := func(_ life, now time.Time) life { return connect(now, period, cfg) }
	resume := func(l life, now time.Time) life { return l.afterPause(now, cfg).at(now, cfg) }
	for name, tt := range map[string]struct {
		life  life
		steps []step
	}{
		"silent": {connect(begin, period, cfg), []step{
			{5999 * time.Millisecond, pass, ready, connected},
			{6 * time.Second, pass, fallen, down},
		}},
		"heard": {connect(begin, period, cfg), []step{
			{2 * time.Second, heartbeat, ready, connected},
			{7 * time.Second, heartbeat, ready, connected},
			{12 * time.Second, pass, ready, connected},
			{13 * time.Second, pass, fallen, down},
		}},
		"slow heartbeats by the cluster's setting": {connect(begin, 10*time.Second, cfg), []step{
			{29 * time.Second, pass, ready, connected},
			{30 * time.Second, pass, fallen, down},
		}},
		"closed and back": {connect(begin, period, cfg), []step{
			{1 * time.Second, closing, disconnected, closed},
			{3900 * time.Millisecond, pass, disconnected, closed},
			{3900 * time.Millisecond, back, ready, connected},
			{4 * time.Second, pass, ready, connected},
		}},
		"closed and gone": {connect(begin, period, cfg), []step{
			{1 * time.Second, closing, disconnected, closed},
			{4 * time.Second, pass, fallen, down},
		}},
		"restarting": {connect(begin, period, cfg), []step{
			{1 * time.Second, restart, unknown, restarting},
			{1 * time.Second, closing, unknown, restarting},
			{30 * time.Second, pass, unknown, restarting},
			{31 * time.Second, pass, fallen, down},
		}},
		"leaving": {connect(begin, period, cfg), []step{
			{1 * time.Second, leave, fallen, down},
		}},
		"taken over and come": {expect(begin, cfg), []step{
			{4 * time.Second, pass, keep, expected},
			{4 * time.Second, back, ready, connected},
		}},
		"taken over and late": {expect(begin, cfg), []step{
			{5 * time.Second, pass, unknown, missing},
			{29 * time.Second, pass, unknown, missing},
			{29 * time.Second, back, ready, connected},
		}},
		"taken over and gone": {expect(begin, cfg), []step{
			{29 * time.Second, pass, unknown, missing},
			{30 * time.Second, pass, fallen, down},
		}},
		"taken over, and not checked for a minute": {expect(begin, cfg), []step{
			{time.Minute, pass, fallen, down},
		}},
		"given up": {downSince(begin, cfg), []step{
			{24*time.Hour - time.Second, pass, fallen, down},
			{24 * time.Hour, pass, fallen, orphaned},
			{1000 * time.Hour, pass, fallen, orphaned},
			{1000 * time.Hour, back, ready, connected},
		}},
		"process paused while connected": {connect(begin, period, cfg), []step{
			{time.Minute, resume, ready, connected},
			{66 * time.Second, pass, fallen, down},
		}},
		"process paused while away": {connect(begin, period, cfg).closeStream(begin, cfg), []step{
			{time.Minute, resume, disconnected, closed},
			{63 * time.Second, pass, fallen, down},
		}},
		"process paused while expected": {expect(begin, cfg), []step{
			{time.Minute, resume, keep, expected},
			{63 * time.Second, pass, fallen, down},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := tt.life
			for _, s := range tt.steps {
				l = s.do(l, begin.Add(s.after))
				if got, reason := l.state(); got != s.want || l.phase != s.phase {
					t.Fatalf("after %s: state %s (%s), phase %d; want %s, phase %d", s.after, got, reason, l.phase, s.want, s.phase)
				}
			}
		})
	}
}

// timeouts returns the defaults of a dispatcher.
func timeouts() Timeouts {
	return Timeouts{
		HeartbeatMisses: 3, Reconnect: 3 * time.Second, Restart: 30 * time.Second,
		Takeover: 30 * time.Second, Unknown: 5 * time.Second, Orphan: 24 * time.Hour,
	}
}
