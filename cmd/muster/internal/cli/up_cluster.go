package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"
)

// LocalCluster runs a cluster in memory on this machine until ctx ends. Its control API
// listens at an address, and ready is called once it can be used.
type LocalCluster func(ctx context.Context, address string, out io.Writer, ready func()) error

// connectTimeout bounds the attempt to find out whether a cluster runs on this machine.
const connectTimeout = 5 * time.Second

// withCluster does work with the cluster that the user names. If that is one of this
// machine and nothing listens at its address, a cluster is started there, which ends
// when work is done.
func (c *CLI) withCluster(ctx context.Context, work func(ctx context.Context) error) error {
	absent, err := c.absent(ctx)
	if err != nil {
		return err
	}
	if !absent || c.Local == nil {
		return work(ctx)
	}
	_, _ = fmt.Fprintf(c.Err, "no cluster answers at %s: starting one there, in memory (muster dev); it ends with this command\n", c.address)
	working, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// The cluster outlives the work, which removes the stack from it.
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		err := c.Local(running, c.address, c.Err, func() { close(ready) })
		if running.Err() == nil {
			// It failed. The work has no cluster any more.
			cancel(err)
		}
		ended <- err
	}()
	select {
	case <-ready:
		err = work(working)
	case <-working.Done():
		err = ctx.Err()
	}
	stop()
	failed := <-ended
	if failed != nil && errors.Is(context.Cause(working), failed) {
		return fmt.Errorf("the cluster ended: %w", failed)
	}
	return errors.Join(err, failed)
}

// absent reports whether the address of the cluster is one of this machine, without TLS,
// and nothing listens there.
func (c *CLI) absent(ctx context.Context) (bool, error) {
	t, err := c.target()
	if err != nil {
		return false, err
	}
	host, _, err := net.SplitHostPort(t.Address)
	if err != nil || t.known || t.Token != "" || c.tls != (tlsFlags{}) {
		return false, nil
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return false, nil
	}
	conn, err := (&net.Dialer{Timeout: connectTimeout}).DialContext(ctx, "tcp", t.Address)
	if err == nil {
		return false, conn.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED), nil
}
