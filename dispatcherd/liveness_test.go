package dispatcherd

import (
	"testing"
	"time"

	musterv1 "github.com/musterhq/muster/api/muster/v1"
)

// TestLiveness tells lives, second by second.
func TestLiveness(t *testing.T) {
	t.Parallel()
	cfg := DefaultConfig()
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
		do    func(liveness, time.Time) liveness
		want  musterv1.NodeStatus_State
		phase phase
	}
	pass := func(l liveness, now time.Time) liveness { return l.at(now, cfg) }
	heartbeat := func(l liveness, now time.Time) liveness { return l.at(now, cfg).hear(now) }
	closing := func(l liveness, now time.Time) liveness { return l.closeStream(now, cfg) }
	restart := func(l liveness, now time.Time) liveness { return l.goodbye(now, true, cfg) }
	leave := func(l liveness, now time.Time) liveness { return l.goodbye(now, false, cfg) }
	back := func(_ liveness, now time.Time) liveness { return connect(now, cfg.HeartbeatPeriod, cfg) }
	forgive := func(l liveness, now time.Time) liveness { return l.forgive(now, cfg).at(now, cfg) }
	for name, tt := range map[string]struct {
		life  liveness
		steps []step
	}{
		"silent": {connect(begin, cfg.HeartbeatPeriod, cfg), []step{
			{5999 * time.Millisecond, pass, ready, connected},
			{6 * time.Second, pass, fallen, down},
		}},
		"heard": {connect(begin, cfg.HeartbeatPeriod, cfg), []step{
			{2 * time.Second, heartbeat, ready, connected},
			{7 * time.Second, heartbeat, ready, connected},
			{12 * time.Second, pass, ready, connected},
			{13 * time.Second, pass, fallen, down},
		}},
		"slow heartbeats by the cluster's setting": {connect(begin, 10*time.Second, cfg), []step{
			{29 * time.Second, pass, ready, connected},
			{30 * time.Second, pass, fallen, down},
		}},
		"closed and back": {connect(begin, cfg.HeartbeatPeriod, cfg), []step{
			{1 * time.Second, closing, disconnected, closed},
			{3900 * time.Millisecond, pass, disconnected, closed},
			{3900 * time.Millisecond, back, ready, connected},
			{4 * time.Second, pass, ready, connected},
		}},
		"closed and gone": {connect(begin, cfg.HeartbeatPeriod, cfg), []step{
			{1 * time.Second, closing, disconnected, closed},
			{4 * time.Second, pass, fallen, down},
		}},
		"restarting": {connect(begin, cfg.HeartbeatPeriod, cfg), []step{
			{1 * time.Second, restart, unknown, restarting},
			{1 * time.Second, closing, unknown, restarting},
			{30 * time.Second, pass, unknown, restarting},
			{31 * time.Second, pass, fallen, down},
		}},
		"leaving": {connect(begin, cfg.HeartbeatPeriod, cfg), []step{
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
		"taken over, and nobody looked for a minute": {expect(begin, cfg), []step{
			{time.Minute, pass, fallen, down},
		}},
		"given up": {lieDown(begin, cfg), []step{
			{24*time.Hour - time.Second, pass, fallen, down},
			{24 * time.Hour, pass, fallen, orphaned},
			{1000 * time.Hour, pass, fallen, orphaned},
			{1000 * time.Hour, back, ready, connected},
		}},
		"forgiven while connected": {connect(begin, cfg.HeartbeatPeriod, cfg), []step{
			{time.Minute, forgive, ready, connected},
			{66 * time.Second, pass, fallen, down},
		}},
		"forgiven while away": {connect(begin, cfg.HeartbeatPeriod, cfg).closeStream(begin, cfg), []step{
			{time.Minute, forgive, disconnected, closed},
			{63 * time.Second, pass, fallen, down},
		}},
		"forgiven while expected": {expect(begin, cfg), []step{
			{time.Minute, forgive, keep, expected},
			{63 * time.Second, pass, fallen, down},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := tt.life
			for _, s := range tt.steps {
				l = s.do(l, begin.Add(s.after))
				if got, reason := l.verdict(); got != s.want || l.phase != s.phase {
					t.Fatalf("after %s: state %s (%s), phase %d; want %s, phase %d", s.after, got, reason, l.phase, s.want, s.phase)
				}
			}
		})
	}
}

func TestPulse(t *testing.T) {
	t.Parallel()
	begin := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(ms int) time.Time { return begin.Add(time.Duration(ms) * time.Millisecond) }
	p := newPulse(begin)
	for ms := 0; ms <= 2000; ms += 500 {
		p.beat(at(ms))
	}
	if got := p.since(at(3000)); !got.Equal(begin) {
		t.Errorf("while it beats: runs since %s, want %s", got, begin)
	}
	if got := p.since(at(9000)); !got.Equal(at(9000)) {
		t.Errorf("asked before the first beat after a break: runs since %s, want %s", got, at(9000))
	}
	if pause := p.beat(at(9001)); pause != 7001*time.Millisecond {
		t.Errorf("the break was %s, want 7.001 s", pause)
	}
	if pause := p.beat(at(9501)); pause != 0 {
		t.Errorf("the next beat reports a break of %s", pause)
	}
	if got := p.since(at(9600)); !got.Equal(at(9001)) {
		t.Errorf("after a break: runs since %s, want %s", got, at(9001))
	}
}
