package liveness

import (
	"testing"
	"time"
)

func TestPauseDetector(t *testing.T) {
	t.Parallel()
	begin := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(ms int) time.Time { return begin.Add(time.Duration(ms) * time.Millisecond) }
	p := &PauseDetector{begin: begin}
	for ms := 0; ms <= 2000; ms += 500 {
		p.tick(at(ms))
	}
	if got := p.runningSince(at(3000)); !got.Equal(begin) {
		t.Errorf("while it ticks: runs since %s, want %s", got, begin)
	}
	if got := p.runningSince(at(9000)); !got.Equal(at(9000)) {
		t.Errorf("before the first tick after a pause: runs since %s, want %s", got, at(9000))
	}
	if pause := p.tick(at(9001)); pause != 7001*time.Millisecond {
		t.Errorf("the pause was %s, want 7.001 s", pause)
	}
	if pause := p.tick(at(9501)); pause != 0 {
		t.Errorf("the next tick reports a pause of %s", pause)
	}
	if got := p.runningSince(at(9600)); !got.Equal(at(9001)) {
		t.Errorf("after a pause: runs since %s, want %s", got, at(9001))
	}
}
