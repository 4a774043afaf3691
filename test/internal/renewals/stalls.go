package renewals

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"
)

// A call can fail because the machine, or Consul on it, has no time. That would
// say nothing of certificates, so Consul is asked all the while as well, in the
// clear and past Muster, for something that takes a majority of its servers.
const (
	controlPause   = 200 * time.Millisecond
	controlTimeout = 10 * time.Second
	// slowControl is how long an answer may take. It comes within milliseconds on a
	// machine that is well, and Muster's daemons take 2 s for a stall themselves.
	slowControl = time.Second
	// aftermath is for how long a stall is felt: sessions that were lost are opened
	// again, and calls that were under way end.
	aftermath = 30 * time.Second
)

// failure is a call that failed.
type failure struct {
	at   time.Time
	what string
	err  error
}

func (f failure) String() string {
	return fmt.Sprintf("%s %s: %v", f.at.Format("15:04:05.000"), f.what, f.err)
}

// stall is a time at which Consul did not answer.
type stall struct{ from, to time.Time }

// stalled reports whether a call failed in a stall or soon after.
func (l *Load) stalled(f failure) bool {
	for _, s := range l.stalls {
		if f.at.After(s.from) && f.at.Before(s.to.Add(aftermath)) {
			return true
		}
	}
	return false
}

// control asks Consul until ctx ends.
func (l *Load) control(ctx context.Context) {
	for ctx.Err() == nil {
		began := time.Now()
		err := l.ask(ctx)
		if now := time.Now(); ctx.Err() == nil && (err != nil || now.Sub(began) > slowControl) {
			l.mu.Lock()
			l.stalls = append(l.stalls, stall{began, now})
			l.mu.Unlock()
		}
		select {
		case <-ctx.Done():
		case <-time.After(controlPause):
		}
	}
}

// ask has Consul's leader make sure that it leads, which takes a majority.
func (l *Load) ask(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+l.r.Consul.Address+"/v1/kv/renewals?consistent", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	_, err = io.Copy(io.Discard, resp.Body)
	// There is no such key.
	if err == nil && resp.StatusCode != http.StatusNotFound {
		err = fmt.Errorf("consul answers with %s", resp.Status)
	}
	return err
}
