package renewals

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
)

// A call can fail because the machine, its disk, or Consul on it, has no time. That
// would say nothing of certificates, so all the while the disk and Consul are asked
// for what a renewal asks of them, in the clear and past Muster.
const (
	probePause   = 200 * time.Millisecond
	probeTimeout = 10 * time.Second
	// slowProbe is how long one may take, from when it is due. It takes milliseconds on
	// a machine that is well, and Muster's daemons take 2 s for a stall themselves.
	slowProbe = time.Second
	// aftermath is for how long a stall is felt: sessions that were lost are opened
	// again, and calls that were under way end.
	aftermath = 30 * time.Second
)

// failure is a call that failed, or what a log says.
type failure struct {
	at   time.Time
	what string
	err  error
}

func (f failure) String() string {
	return fmt.Sprintf("%s %s: %v", f.at.Format("15:04:05.000"), f.what, f.err)
}

// stall is a time at which a probe took long.
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

// probe does something again and again until ctx ends, and notes when that takes long,
// or comes late, as it does when this process itself is given no time.
func (l *Load) probe(ctx context.Context, do func(context.Context) error) {
	for due := time.Now(); ctx.Err() == nil; {
		bounded, cancel := context.WithTimeout(ctx, probeTimeout)
		err := do(bounded)
		cancel()
		now := time.Now()
		if ctx.Err() == nil && (err != nil || now.Sub(due) > slowProbe) {
			l.mu.Lock()
			l.stalls = append(l.stalls, stall{due, now})
			l.mu.Unlock()
		}
		due = now.Add(probePause)
		select {
		case <-ctx.Done():
		case <-time.After(time.Until(due)):
		}
	}
}

// askConsul writes a key, which takes a majority of Consul's servers and their disks.
func (l *Load) askConsul(ctx context.Context) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPut, "http://"+l.r.Consul.Address+"/v1/kv/renewals", strings.NewReader(time.Now().String()))
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	_, err = io.Copy(io.Discard, resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("consul answers with %s", resp.Status)
	}
	return err
}

// askDisk writes a file to the disk, as the holder of a certificate does.
func askDisk(context.Context) error {
	f, err := os.CreateTemp("", "muster-renewals-")
	if err != nil {
		return err
	}
	_, err = f.WriteString(f.Name())
	return errors.Join(err, f.Sync(), f.Close(), os.Remove(f.Name()))
}
