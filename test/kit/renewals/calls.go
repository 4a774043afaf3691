package renewals

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"google.golang.org/grpc/credentials"

	authv1 "github.com/musterhq/muster/api/muster/auth/v1"
	musterv1 "github.com/musterhq/muster/api/muster/v1"
	"github.com/musterhq/muster/internal/auth"
	"github.com/musterhq/muster/internal/daemon"
	"github.com/musterhq/muster/test/kit/cluster"
	"github.com/musterhq/muster/test/kit/wait"
)

// Pauses between calls: those on a connection that is there cost little, and each
// new connection is a handshake.
const (
	callPause    = 50 * time.Millisecond
	connectPause = 200 * time.Millisecond
)

// call is one that is made again and again.
type call struct {
	what  string
	pause time.Duration
	make  func(context.Context) error
}

// calls are those that one client each makes.
func (l *Load) calls() []call {
	var all []call
	for _, name := range l.r.Replicas("apid") {
		all = append(all,
			call{"call on a connection that stays", callPause, func(ctx context.Context) error { return l.stay(ctx, name) }},
			call{"call on a new connection", connectPause, func(ctx context.Context) error { return l.comeAndGo(ctx, name) }},
			call{"REST on a new connection", connectPause, func(ctx context.Context) error { return l.browse(ctx, name) }},
		)
	}
	for _, daemon := range cluster.Managers() {
		for _, name := range l.r.Replicas(daemon) {
			if !slices.Contains(MayRestart(), name) {
				all = append(all, call{"metrics on a new connection", connectPause, func(ctx context.Context) error { return l.scrape(ctx, daemon, name) }})
			}
		}
	}
	return all
}

// every makes a call again and again until ctx ends, and counts it. What is under
// way then may end.
func (l *Load) every(ctx context.Context, c call) {
	for ctx.Err() == nil {
		l.once(ctx, c.what, c.make)
		select {
		case <-ctx.Done():
		case <-time.After(c.pause):
		}
	}
}

func (l *Load) once(ctx context.Context, what string, call func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	if err := call(ctx); err != nil {
		l.fail(what, err)
		return
	}
	l.succeed(what)
}

// recover makes each call until it succeeds: also those that failed while the machine
// had no time must do so again.
func (l *Load) recover(ctx context.Context) {
	for _, c := range l.calls() {
		if err := wait.Until(ctx, c.make); err != nil {
			l.wrong(c.what+", after the load", err)
		}
	}
}

// stay calls on a connection that is older than the certificates it was made with.
func (l *Load) stay(ctx context.Context, apid string) error {
	_, err := l.r.Client(apid).ListTasks(ctx, &musterv1.ListTasksRequest{})
	return err
}

// comeAndGo makes a connection for its call.
func (l *Load) comeAndGo(ctx context.Context, apid string) error {
	conn, err := daemon.Dialer(credentials.NewTLS(l.r.TLS(authv1.Role_APID)))(l.r.Address(apid))
	if err != nil {
		return err
	}
	_, err = musterv1.NewControlServiceClient(conn).GetService(ctx, &musterv1.GetServiceRequest{Service: "steady"})
	return errors.Join(err, conn.Close())
}

// browse makes a connection to REST for its request.
func (l *Load) browse(ctx context.Context, apid string) error {
	_, err := l.get(ctx, authv1.Role_APID, "https://"+l.r.RESTAddress(apid)+"/v1/nodes")
	return err
}

// scrape fetches the metrics of a manager on a new connection, and notes which
// certificate it shows.
func (l *Load) scrape(ctx context.Context, daemon, name string) error {
	serial, err := l.get(ctx, auth.Managers()[daemon], "https://"+l.r.Ops(name)+"/metrics")
	if err == nil {
		l.shown(name, serial)
	}
	return err
}

// get fetches a page on a new connection to a daemon, and returns the serial number
// of its certificate.
func (l *Load) get(ctx context.Context, kind authv1.Role, url string) (serial string, err error) {
	transport := &http.Transport{TLSClientConfig: l.r.TLS(kind), DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := (&http.Client{Transport: transport}).Do(r)
	if err != nil {
		return "", err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	if err = errors.Join(err, resp.Body.Close()); err != nil {
		return "", err
	}
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("%s: %s", url, resp.Status)
	}
	return resp.TLS.PeerCertificates[0].SerialNumber.Text(16), nil
}

// change scales a service up and down, and waits each time until it is so: that
// takes all daemons and workers.
func (l *Load) change(ctx context.Context) {
	names := l.r.Replicas("apid")
	for n := 0; ctx.Err() == nil; n++ {
		c, size := l.r.Client(names[n%len(names)]), uint64(1+(n+1)%4)
		l.once(ctx, "scale", func(ctx context.Context) error {
			_, err := c.ScaleService(ctx, &musterv1.ScaleServiceRequest{Service: "changes", Replicas: size})
			return err
		})
		l.once(ctx, "change that is complete", func(ctx context.Context) error {
			// A fast cluster would answer one client more often than its limit allows.
			pause := time.NewTicker(callPause)
			defer pause.Stop()
			return wait.Until(ctx, func(ctx context.Context) error {
				select {
				case <-pause.C:
				case <-ctx.Done():
					return ctx.Err()
				}
				s, err := c.GetService(ctx, &musterv1.GetServiceRequest{Service: "changes"})
				if err != nil {
					l.fail("look at a change", err)
					return err
				}
				if st := s.Service.Status; !st.GetConverged() || st.GetDesiredTasks() != size || st.GetRunningTasks() != size {
					return fmt.Errorf("%d of %d tasks run", st.GetRunningTasks(), size)
				}
				return nil
			})
		})
	}
}
